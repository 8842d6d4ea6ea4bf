"""Augmentation: what is drawn, what comes out, and that the same numbers give the same images."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from keras_resnet.data import operations
from keras_resnet.data.augment import AUGMENTATIONS, Augmentation

RED, GREEN, BLUE = FILL = (10, 200, 90)
SEED = tf.constant([3, 4], tf.int64)

# Everything that `apply` does, each alone, and much of it together.
KINDS = {
    "pad-crop": Augmentation(steps=("pad-crop",)),
    "shift": Augmentation(steps=("shift",)),
    "flip": Augmentation(steps=("flip",)),
    "randaugment": Augmentation(steps=("randaugment",)),
    "trivialaugment": Augmentation(steps=("trivialaugment",)),
    "erase": Augmentation(erase=0.5),
    "all": Augmentation(steps=("pad-crop", "flip", "randaugment", "trivialaugment"), erase=0.25),
}
kinds = pytest.mark.parametrize("augmentation", KINDS.values(), ids=KINDS)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_uniforms(batch, augmentation, seed=0):
    numbers = tf.random.stateless_uniform((batch, augmentation.draws), (seed, 0))
    return numbers.numpy()


def applied(augmentation, images, uniforms, fill=FILL):
    return augmentation.apply(images, uniforms, fill[: images.shape[-1]]).numpy()


def to_uniform(number, count):
    """The middle of the interval that means this one of so many."""
    return (number + 0.5) / count


# Fields


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", ["flip", None, 3, ("flip", 7), ("flip", "flip"), ("mirror",)]),
        ("steps", [("flip", "random-resized-crop"), [["flip"]]]),
        ("crop_area", [(0, 1), (0.5, 0.2), (0.1, 1.1), 0.5, (0.5,), ("a", "b"), None]),
        ("crop_ratio", [(0, 1), (2, 1), (-1, 1), (1, float("inf")), (1, float("nan")), "ab"]),
        ("randaugment", [(0, 9), (2, 31), (2, -1), (2, 9.5), (True, 9), 9, (1, 2, 3), None]),
        ("erase", [-0.1, 1.1, float("nan"), "often", None, True]),
        ("mixup", [-1, float("inf"), float("nan"), "0.2", None, True]),
        ("cutmix", [-1, float("inf"), float("nan"), "0.2", None, True]),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_by_its_field_and_value(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"`{field}` must be .* Received: {field}=") as raised:
            Augmentation(**{field: value})
        assert repr(value) in str(raised.value) or repr(tuple(value)) in str(raised.value)


def test_an_unknown_step_gets_the_nearest_name_and_all_names():
    with pytest.raises(ValueError, match="'rand-augment', did you mean 'randaugment'") as raised:
        Augmentation(steps=("flip", "rand-augment"))
    assert all(repr(name) in str(raised.value) for name in AUGMENTATIONS)


def test_lists_and_integers_become_what_the_fields_are():
    given_lists = Augmentation(
        steps=["flip"], crop_area=[0.5, 1], crop_ratio=[1, 2], randaugment=[1, 5], erase=1, mixup=1
    )
    assert given_lists == Augmentation(
        steps=("flip",),
        crop_area=(0.5, 1.0),
        crop_ratio=(1.0, 2.0),
        randaugment=(1, 5),
        erase=1.0,
        mixup=1.0,
    )
    assert isinstance(hash(given_lists), int)
    assert all(type(value) is float for value in (*given_lists.crop_area, given_lists.mixup))


def test_every_name_is_a_step():
    assert Augmentation(steps=tuple(AUGMENTATIONS)).steps == tuple(AUGMENTATIONS)


def test_only_the_random_resized_crop_is_left_to_the_reader():
    assert Augmentation(steps=("random-resized-crop",)).crops
    assert Augmentation(steps=("random-resized-crop",)).draws == 0
    for name in AUGMENTATIONS.keys() - {"random-resized-crop"}:
        assert not Augmentation(steps=(name,)).crops
        assert Augmentation(steps=(name,)).draws > 0


def test_it_mixes_if_mixup_or_cutmix_is_on():
    assert not Augmentation(steps=("flip",), erase=1).mixes
    assert Augmentation(mixup=0.2).mixes
    assert Augmentation(cutmix=1).mixes


def test_nothing_to_do_changes_nothing():
    images = random_images(3, 4, 5, 3)
    for augmentation in (Augmentation(), Augmentation(steps=("random-resized-crop",))):
        np.testing.assert_array_equal(applied(augmentation, images, np.zeros((3, 0))), images)


# What all of them have in common


@kinds
def test_the_same_numbers_give_the_same_images(augmentation):
    images, uniforms = random_images(16, 12, 10, 3), random_uniforms(16, augmentation)
    once, again = (applied(augmentation, images, uniforms) for _ in range(2))
    other = applied(augmentation, images, random_uniforms(16, augmentation, seed=1))
    np.testing.assert_array_equal(once, again)
    assert (other != once).any()


@kinds
def test_an_image_depends_on_itself_and_its_own_numbers_alone(augmentation):
    images, uniforms = random_images(9, 12, 10, 3), random_uniforms(9, augmentation)
    together = applied(augmentation, images, uniforms)
    for worker in range(3):
        own = slice(worker, None, 3)
        np.testing.assert_array_equal(
            applied(augmentation, images[own], uniforms[own]), together[own]
        )
    for i in range(9):
        np.testing.assert_array_equal(
            applied(augmentation, images[i : i + 1], uniforms[i : i + 1]), together[i : i + 1]
        )


@pytest.mark.parametrize(
    ("augmentation", "batch"),
    [*((augmentation, None) for augmentation in KINDS.values()), (KINDS["all"], 5)],
    ids=[*KINDS, "all-fixed"],
)
def test_a_tf_data_pipeline_gives_the_same_with_its_static_shape(augmentation, batch):
    images, uniforms = random_images(5, 9, 11, 3), random_uniforms(5, augmentation)
    data = tf.data.Dataset.from_tensor_slices((images, uniforms)).batch(5, batch is not None)
    data = data.map(lambda images, uniforms: augmentation.apply(images, uniforms, FILL))
    assert data.element_spec == tf.TensorSpec((batch, 9, 11, 3), tf.uint8)
    np.testing.assert_array_equal(next(iter(data)), applied(augmentation, images, uniforms))


@kinds
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (33, 31)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_works_in_grey_and_in_color(augmentation, size, channels):
    images = random_images(4, *size, channels)
    augmented = applied(augmentation, images, random_uniforms(4, augmentation))
    assert augmented.shape == images.shape


@kinds
@pytest.mark.parametrize("number", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_the_smallest_and_the_largest_number_mean_something(augmentation, number):
    images = random_images(2, 8, 8, 3)
    uniforms = np.full((2, augmentation.draws), number, np.float32)
    assert applied(augmentation, images, uniforms).shape == images.shape


@kinds
def test_images_that_are_no_raw_pixels_are_refused(augmentation):
    with pytest.raises(TypeError, match=r"uint8.*Received: dtype=float32"):
        augmentation.apply(tf.zeros((1, 4, 4, 3)), random_uniforms(1, augmentation), FILL)


@kinds
def test_what_does_not_fit_is_refused(augmentation):
    images, uniforms = tf.constant(random_images(2, 4, 4, 3)), random_uniforms(2, augmentation)
    with pytest.raises(ValueError, match=r"\(batch, height, width, channels\).*Received: shape="):
        augmentation.apply(images[0], uniforms, FILL)
    with pytest.raises(ValueError, match=rf"`uniforms` .*\(batch, {augmentation.draws}\)"):
        augmentation.apply(images, uniforms[:, 1:], FILL)
    for fill in [(1, 2), 5, (1, 2, 256), (1, 2, -1), (0.5, 1, 2)]:
        with pytest.raises(ValueError, match=r"`fill` .* 3 channels\. Received: fill="):
            augmentation.apply(images, uniforms, fill)


def test_operations_on_colors_refuse_other_channels_than_grey_and_rgb():
    for step in ("randaugment", "trivialaugment"):
        augmentation = Augmentation(steps=(step,))
        with pytest.raises(ValueError, match=r"3 channels \(RGB\) or 1 .*\(1, 4, 4, 4\)"):
            augmentation.apply(
                random_images(1, 4, 4, 4), random_uniforms(1, augmentation), (1, 2, 3, 4)
            )


def test_steps_are_applied_in_their_order_each_with_its_own_numbers():
    images = random_images(8, 9, 9, 3)
    both = Augmentation(steps=("pad-crop", "flip"), erase=1)
    turned = Augmentation(steps=("flip", "pad-crop"), erase=1)
    uniforms = random_uniforms(8, both)
    crop, flip, erase = uniforms[:, :2], uniforms[:, 2:3], uniforms[:, 3:]
    expected = applied(KINDS["pad-crop"], images, crop)
    expected = applied(KINDS["flip"], expected, flip)
    expected = applied(Augmentation(erase=1), expected, erase)
    np.testing.assert_array_equal(applied(both, images, uniforms), expected)
    uniforms = np.concatenate([flip, crop, erase], axis=1)
    assert (applied(turned, images, uniforms) != expected).any()


# Moving and mirroring


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4]), st.data())
def test_pad_crop_cuts_a_window_out_of_the_image_with_its_border(height, width, channels, data):
    image = random_images(height, width, channels)
    top, left = data.draw(st.tuples(st.integers(0, 8), st.integers(0, 8)))
    fill = np.arange(7, 7 + channels).astype(np.uint8)
    padded = np.tile(fill, (height + 8, width + 8, 1))
    padded[4:-4, 4:-4] = image
    augmented = KINDS["pad-crop"].apply(
        image[None], [[to_uniform(top, 9), to_uniform(left, 9)]], fill
    )
    np.testing.assert_array_equal(augmented[0], padded[top : top + height, left : left + width])


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4]), st.data())
def test_shift_cuts_a_window_out_of_the_image_with_its_mirrored_border(
    height, width, channels, data
):
    image = random_images(height, width, channels)
    top, left = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="symmetric")
    uniforms = [[to_uniform(top, 5), to_uniform(left, 5)]]
    augmented = KINDS["shift"].apply(image[None], uniforms, [0] * channels)
    np.testing.assert_array_equal(augmented[0], padded[top : top + height, left : left + width])


@pytest.mark.parametrize(("step", "margin"), [("pad-crop", 4), ("shift", 2)])
def test_all_windows_are_equally_likely(step, margin):
    size = 2 * margin + 1
    # Where the one white pixel in the middle goes says which window was cut out.
    image = np.zeros((size, size, 1), np.uint8)
    image[margin, margin] = 255
    count = 200 * size**2
    images = np.tile(image, (count, 1, 1, 1))
    moved = applied(KINDS[step], images, random_uniforms(count, KINDS[step]), fill=(0,))
    times = (moved[..., 0] == 255).sum(axis=0)
    assert times.sum() == count
    # 200 each are expected, with a standard deviation of 14; 5 of them are never reached by chance.
    assert np.abs(times - 200).max() < 5 * 14


def test_flip_mirrors_half_of_the_images_from_left_to_right():
    images = random_images(4000, 3, 5, 3)
    uniforms = random_uniforms(4000, KINDS["flip"])
    flipped = applied(KINDS["flip"], images, uniforms)
    is_flipped = uniforms[:, 0] < 0.5
    np.testing.assert_array_equal(flipped[is_flipped], images[is_flipped][:, :, ::-1])
    np.testing.assert_array_equal(flipped[~is_flipped], images[~is_flipped])
    assert abs(is_flipped.mean() - 0.5) < 5 * 0.5 / 4000**0.5


# Erasing


def erased_box(image, fill):
    """(top, left, height, width) of what has the color of the fill, all of it and nothing else."""
    rows, columns = np.nonzero((image == fill).all(axis=-1))
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    assert (image[top:bottom, left:right] == fill).all()
    assert len(rows) == (bottom - top) * (right - left)
    return top, left, bottom - top, right - left


def test_erasing_fills_one_rectangle_of_the_area_and_ratio_that_were_drawn():
    augmentation = Augmentation(erase=1)
    images = np.full((500, 64, 48, 3), 1, np.uint8) * np.arange(48, dtype=np.uint8)[:, None]
    uniforms = random_uniforms(500, augmentation)
    augmented = applied(augmentation, images, uniforms)
    boxes = np.array([erased_box(image, FILL) for image in augmented])
    area = (0.02 + 0.31 * uniforms[:, 1]) * 64 * 48
    ratio = np.exp(np.log(0.3) + uniforms[:, 11] * np.log(3.3 / 0.3))
    expected = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1)
    fits = (np.round(expected) < [64, 48]).all(axis=1)
    assert 0.9 < fits.mean() < 1  # the others took a later attempt
    assert np.abs(boxes[fits, 2:] - expected[fits]).max() <= 0.5 + 1e-4
    outside = (augmented != FILL).any(axis=-1)
    np.testing.assert_array_equal(augmented[outside], images[outside])
    assert boxes[:, :2].min() == 0  # the border is reached on every side
    assert (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist() == [64, 48]


def test_as_many_images_are_erased_as_the_probability_says():
    images = random_images(2000, 16, 16, 3)
    augmentation = Augmentation(erase=0.25)
    augmented = applied(augmentation, images, random_uniforms(2000, augmentation))
    is_erased = (augmented != images).any(axis=(1, 2, 3))
    assert abs(is_erased.mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_an_image_into_which_no_rectangle_fits_is_left_alone():
    images = random_images(50, 1, 40, 3)
    augmentation = Augmentation(erase=1)
    augmented = applied(augmentation, images, random_uniforms(50, augmentation))
    np.testing.assert_array_equal(augmented, images)


# The operations of RandAugment and TrivialAugment. Pillow does all that torchvision does on a CPU,
# and none of it was written here: there is no tolerance.

SPACES = {"rand": operations.RAND_AUGMENT, "trivial": operations.TRIVIAL_AUGMENT}
SIGNED = {
    *("shear-x", "shear-y", "translate-x", "translate-y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
}


def moved_by_pillow(picture, matrix, fill):
    affine, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return picture.transform(picture.size, affine, matrix, nearest, fillcolor=fill)


BY_PILLOW = {
    "identity": lambda picture, by, fill: picture,
    "shear-x": lambda picture, by, fill: moved_by_pillow(picture, (1, by, 0, 0, 1, 0), fill),
    "shear-y": lambda picture, by, fill: moved_by_pillow(picture, (1, 0, 0, by, 1, 0), fill),
    "translate-x": lambda picture, by, fill: moved_by_pillow(picture, (1, 0, -by, 0, 1, 0), fill),
    "translate-y": lambda picture, by, fill: moved_by_pillow(picture, (1, 0, 0, 0, 1, -by), fill),
    "rotate": lambda picture, by, fill: picture.rotate(by, fillcolor=fill),
    "brightness": lambda picture, by, fill: ImageEnhance.Brightness(picture).enhance(1 + by),
    "color": lambda picture, by, fill: ImageEnhance.Color(picture).enhance(1 + by),
    "contrast": lambda picture, by, fill: ImageEnhance.Contrast(picture).enhance(1 + by),
    "sharpness": lambda picture, by, fill: ImageEnhance.Sharpness(picture).enhance(1 + by),
    "posterize": lambda picture, by, fill: ImageOps.posterize(picture, int(by)),
    "solarize": lambda picture, by, fill: ImageOps.solarize(picture, by),
    "autocontrast": lambda picture, by, fill: ImageOps.autocontrast(picture),
    "equalize": lambda picture, by, fill: ImageOps.equalize(picture),
}


def by_pillow(image, operation, magnitude, sign, space):
    height, width, channels = image.shape
    by = float(space.magnitudes(height, width)[operation][magnitude])
    if sign and operation in SIGNED:
        by = -by
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    done = BY_PILLOW[operation](picture, by, FILL if channels == 3 else FILL[0])
    return np.asarray(done).reshape(image.shape)


def by_us(images, operation, magnitude, sign, space):
    numbers = [np.atleast_1d(values).astype(np.int32) for values in (operation, magnitude, sign)]
    fill = tf.constant(FILL[: images.shape[-1]], tf.uint8)
    return operations.operate(tf.constant(images), *numbers, fill, space).numpy()


def test_the_operations_are_those_of_pillow_that_this_test_knows():
    assert tuple(BY_PILLOW) == operations.OPERATIONS


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("size", [(32, 32), (24, 37)])
def test_every_magnitude_of_every_operation_is_pillows_to_the_last_bit(space, size):
    choices = list(itertools.product(range(len(BY_PILLOW)), range(operations.BINS), range(2)))
    images = random_images(len(choices), *size, 3)
    # Every other image in soft contrast: on noise over all values much would go unnoticed.
    images[::2] = images[::2] // 5 + random_images((len(choices) + 1) // 2, 1, 1, 3) // 2
    ours = by_us(images, *np.transpose(choices), space)
    for image, changed, (operation, magnitude, sign) in zip(images, ours, choices, strict=True):
        name = operations.OPERATIONS[operation]
        expected = by_pillow(image, name, magnitude, sign, space)
        np.testing.assert_array_equal(changed, expected, f"{name} {magnitude} {sign}")


@st.composite
def pictures(draw):
    """Small ones of every size, in grey or color, of few or many values."""
    height, width = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    low = draw(st.integers(0, 255))
    high = draw(st.integers(low, 255))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = draw(st.sampled_from([1, 3]))
    # The power gathers the values near the lower end, as in a dark picture.
    values = rng.random((height, width, channels)) ** draw(st.sampled_from([1, 4, 20]))
    return (low + values * (high - low)).astype(np.uint8)


@settings(max_examples=150)
@given(
    pictures(),
    st.sampled_from(list(BY_PILLOW)),
    st.integers(0, operations.BINS - 1),
    st.integers(0, 1),
    st.sampled_from(list(SPACES)),
)
# 16 pixels: equalizing takes steps of zero. 256 + 254 of one value: steps of one, and beyond 255.
@example(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), "equalize", 0, 0, "rand")
@example(np.array([0] * 509 + [1] + [2] * 2, np.uint8).reshape(16, 32, 1), "equalize", 0, 0, "rand")
@example(random_images(9, 9, 3), "rotate", 20, 0, "trivial")  # 90 degrees
def test_an_operation_is_pillows_on_any_picture(image, operation, magnitude, sign, space):
    ours = by_us(
        image[None], operations.OPERATIONS.index(operation), magnitude, sign, SPACES[space]
    )
    expected = by_pillow(image, operation, magnitude, sign, SPACES[space])
    np.testing.assert_array_equal(ours[0], expected)


def test_halves_are_rounded_up_where_colors_become_grey():
    red, green, blue = np.mgrid[:256, :256, :32].reshape(3, -1)
    halfway = (19595 * red + 38470 * green + 7471 * blue) % 65536 == 32768  # Pillow's weights
    colors = np.stack([red, green, blue], axis=-1)[halfway].astype(np.uint8)
    assert len(colors) > 10
    # At the last magnitude, with a minus, hardly anything but grey is left.
    ours = by_us(colors[None, None], operations.OPERATIONS.index("color"), 30, 1, SPACES["trivial"])
    expected = by_pillow(colors[None], "color", 30, 1, SPACES["trivial"])
    np.testing.assert_array_equal(ours[0], expected)


def test_magnitudes_begin_with_no_change():
    for space in SPACES.values():
        for name, magnitudes in space.magnitudes(30, 40).items():
            assert magnitudes.shape == (operations.BINS,)
            start = {"posterize": 8, "solarize": 255}.get(name, 0)
            assert magnitudes[0] == start
            assert (np.diff(np.abs(magnitudes - start)) >= 0).all()


def test_randaugment_does_its_operations_one_after_the_other():
    augmentation = Augmentation(steps=("randaugment",), randaugment=(3, 7))
    assert augmentation.draws == 6
    count = len(operations.OPERATIONS)
    choices = np.random.default_rng(0).integers(0, [count, 2] * 3, (40, 6))
    images = expected = random_images(40, 16, 16, 3)
    for i in range(0, 6, 2):
        expected = by_us(
            expected, *choices[:, [i]].T, np.full(40, 7), *choices[:, [i + 1]].T, SPACES["rand"]
        )
    augmented = applied(augmentation, images, to_uniform(choices, [count, 2] * 3))
    np.testing.assert_array_equal(augmented, expected)


def test_trivialaugment_does_one_operation_of_any_magnitude():
    counts = [len(operations.OPERATIONS), operations.BINS, 2]
    choices = np.random.default_rng(0).integers(0, counts, (100, 3))
    images = random_images(100, 16, 16, 3)
    augmented = applied(KINDS["trivialaugment"], images, to_uniform(choices, counts))
    np.testing.assert_array_equal(augmented, by_us(images, *choices.T, SPACES["trivial"]))


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True, width=32))
def test_a_number_below_one_is_one_of_so_many(count, uniform):
    number = int(operations.to_integers(tf.constant([uniform]), count)[0])
    assert 0 <= number < count
    assert number == pytest.approx(uniform * count, abs=1)


# Mixing


def mixed(augmentation, images, labels, classes=5, seed=SEED):
    images, targets = augmentation.mix(tf.constant(images), tf.constant(labels), classes, seed)
    return images.numpy(), targets.numpy()


def random_batch(batch=6, shape=(8, 10, 3), classes=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, *shape)).astype(np.float32), np.arange(batch) % classes


MIXES = {
    "mixup": Augmentation(mixup=0.4),
    "cutmix": Augmentation(cutmix=1.0),
    "both": Augmentation(mixup=0.4, cutmix=1.0),
}
mixes = pytest.mark.parametrize("augmentation", MIXES.values(), ids=MIXES)


def test_mixup_takes_images_and_labels_in_the_same_proportion():
    images, labels = random_batch()
    for seed in range(5):
        ours, targets = mixed(MIXES["mixup"], images, labels, seed=(seed, 7))
        share = targets[0, 0]
        assert 0 < share < 1
        expected = share * images + (1 - share) * np.roll(images, -1, axis=0)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
        one_hot = np.eye(5, dtype=np.float32)[labels]
        expected = share * one_hot + (1 - share) * np.roll(one_hot, -1, axis=0)
        np.testing.assert_allclose(targets, expected, rtol=0, atol=1e-7)


def test_cutmix_pastes_one_rectangle_and_counts_its_area():
    images, labels = random_batch(shape=(20, 30, 3))
    areas = []
    for seed in range(40):
        ours, targets = mixed(MIXES["cutmix"], images, labels, seed=(seed, 7))
        is_own = (ours == images).all(axis=(0, 3))
        is_other = (ours == np.roll(images, -1, axis=0)).all(axis=(0, 3))
        np.testing.assert_array_equal(is_own, ~is_other)
        rows, columns = is_other.any(axis=1), is_other.any(axis=0)
        np.testing.assert_array_equal(is_other, rows[:, None] & columns)
        for inside in (rows, columns):  # in one piece
            assert np.count_nonzero(np.diff(inside.astype(int), prepend=0, append=0)) in (0, 2)
        assert targets[0, 0] == pytest.approx(is_own.mean(), abs=1e-6)
        areas.append(is_other.mean())
    assert min(areas) < 0.1
    assert max(areas) > 0.6


@mixes
def test_targets_are_shares_that_sum_to_one(augmentation):
    images, labels = random_batch()
    for seed in range(10):
        _, targets = mixed(augmentation, images, labels, seed=(seed, 1))
        assert targets.dtype == np.float32
        assert targets.shape == (6, 5)
        assert (targets >= 0).all()
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=0, atol=1e-6)


@mixes
def test_the_same_seed_mixes_the_same_and_another_does_not(augmentation):
    images, labels = random_batch()
    once, again, other = (mixed(augmentation, images, labels, seed=(seed, 1)) for seed in (0, 0, 1))
    for ours, same, different in zip(once, again, other, strict=True):
        np.testing.assert_array_equal(ours, same)
        assert (ours != different).any()


@mixes
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_pipeline_of_any_floating_dtype_keeps_dtype_and_shape(augmentation, dtype):
    images, labels = random_batch()
    data = tf.data.Dataset.from_tensors((images, labels)).map(
        lambda images, labels: augmentation.mix(tf.cast(images, dtype), labels, 5, SEED)
    )
    assert data.element_spec == (
        tf.TensorSpec((6, 8, 10, 3), dtype),
        tf.TensorSpec((6, 5), tf.float32),
    )
    ours, targets = next(iter(data))
    # Whatever the dtype, the arithmetic is that of float32 at least, rounded once.
    rounded = tf.cast(tf.cast(images, dtype), tf.float32)
    expected, expected_targets = mixed(augmentation, rounded, labels)
    expected = tf.cast(tf.cast(expected, dtype), tf.float32)
    tolerance = 1e-6 if dtype == "float64" else 0
    np.testing.assert_allclose(tf.cast(ours, tf.float32), expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(targets, expected_targets)


def mixed_by_many_seeds(augmentation, images, labels, classes, seeds):
    """Images `(seeds, batch, ...)` and targets `(seeds, batch, classes)`."""
    data = tf.data.Dataset.range(seeds).map(
        lambda seed: augmentation.mix(images, labels, classes, tf.stack([seed, 5]))
    )
    images, targets = next(iter(data.batch(seeds)))
    return images.numpy(), targets.numpy()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_proportions_follow_the_beta_distribution(alpha):
    images = np.zeros((2, 1, 1, 1), np.float32)
    _, targets = mixed_by_many_seeds(Augmentation(mixup=alpha), images, [0, 1], 2, 2000)
    shares = targets[:, 0, 0]
    # The distribution's mean and variance; the standard error of the mean is below 0.011.
    assert abs(shares.mean() - 0.5) < 0.05
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_with_both_on_half_of_the_batches_get_cutmix():
    images, labels = random_batch(batch=2, shape=(4, 4, 1))
    ours, _ = mixed_by_many_seeds(MIXES["both"], images, labels, 2, 400)
    is_cutmix = ((ours == images) | (ours == images[::-1])).all(axis=(1, 2, 3, 4))
    assert abs(is_cutmix.mean() - 0.5) < 5 * 0.5 / 400**0.5


@mixes
def test_padding_is_mixed_with_nothing_and_has_no_target(augmentation):
    images, labels = random_batch()
    labels[4:] = -1
    ours, targets = mixed(augmentation, images, labels)
    np.testing.assert_allclose(ours[4:], images[4:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(targets[4:], 0)
    alone, alone_targets = mixed(augmentation, images[:4], labels[:4])
    np.testing.assert_array_equal(ours[:4], alone)
    np.testing.assert_array_equal(targets[:4], alone_targets)


@mixes
def test_shares_of_the_classes_are_mixed_as_labels_are(augmentation):
    images, labels = random_batch()
    labels[4:] = -1
    shares = np.where(labels[:, None] < 0, 0, np.eye(5)[labels])
    for ours, expected in zip(
        mixed(augmentation, images, shares), mixed(augmentation, images, labels), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


@mixes
def test_a_batch_of_one_stays_what_it_is(augmentation):
    images, labels = random_batch(batch=1)
    ours, targets = mixed(augmentation, images, labels)
    np.testing.assert_allclose(ours, images, rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, np.eye(5)[:1], rtol=0, atol=1e-6)


def test_without_mixing_images_stay_and_targets_are_one_hot():
    images, labels = random_batch()
    ours, targets = mixed(Augmentation(steps=("flip",)), images, labels)
    np.testing.assert_array_equal(ours, images)
    np.testing.assert_array_equal(targets, np.eye(5)[labels])


@mixes
def test_raw_pixels_are_not_mixed(augmentation):
    with pytest.raises(TypeError, match=r"floating-point.*Received: dtype=uint8"):
        augmentation.mix(random_images(2, 4, 4, 3), [0, 1], 2, SEED)


def test_an_augmentation_can_be_taken_apart_and_put_together():
    values = dataclasses.asdict(KINDS["all"])
    assert Augmentation(**values) == KINDS["all"]

"""Augmentation beside torchvision's, which it says it follows."""

import numpy as np
import peers
import pytest
import tensorflow as tf
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomErasing, autoaugment, v2

from keras_resnet.data import operations
from keras_resnet.data.augment import Augmentation

SIZES = [(32, 32), (224, 224), (31, 47)]
NAMES = {  # theirs by ours
    name: "AutoContrast" if name == "autocontrast" else name.title().replace("-", "")
    for name in operations.OPERATIONS
}


def rand_space(size):
    return autoaugment.RandAugment()._augmentation_space(operations.BINS, size)


def trivial_space(size):
    return autoaugment.TrivialAugmentWide()._augmentation_space(operations.BINS)


SPACES = {
    "rand": (operations.RAND_AUGMENT, rand_space),
    "trivial": (operations.TRIVIAL_AUGMENT, trivial_space),
}
spaces = pytest.mark.parametrize(("ours", "theirs"), SPACES.values(), ids=SPACES)


@spaces
@pytest.mark.parametrize("size", SIZES)
def test_operations_and_magnitudes_are_the_same(ours, theirs, size):
    magnitudes, space = ours.magnitudes(*size), theirs(size)
    assert list(space) == [NAMES[name] for name in magnitudes]
    for name, values in magnitudes.items():
        expected, _ = space[NAMES[name]]
        expected = np.broadcast_to(expected.double().numpy(), operations.BINS)
        if name.startswith("translate"):
            expected = np.trunc(expected)
        np.testing.assert_array_equal(values, expected, name)


@spaces
def test_every_operation_gives_the_same_bytes(ours, theirs):
    space, fill, size = theirs((32, 40)), (10, 200, 90), (32, 40)
    choices = [
        (number, magnitude, sign)
        for number, name in enumerate(NAMES)
        for magnitude in range(operations.BINS)
        for sign in range(2 if space[NAMES[name]][1] else 1)
    ]
    images = np.random.default_rng(0).integers(0, 256, (len(choices), *size, 3), dtype=np.uint8)
    numbers = map(tf.constant, zip(*choices, strict=True))
    changed = operations.operate(tf.constant(images), *numbers, tf.constant(fill, tf.uint8), ours)
    for image, same, (number, magnitude, sign) in zip(images, changed, choices, strict=True):
        name = [*NAMES.values()][number]
        values = space[name][0].reshape(-1).expand(operations.BINS)
        by = float(values[magnitude]) * (-1 if sign else 1)
        nearest = InterpolationMode.NEAREST
        expected = autoaugment._apply_op(Image.fromarray(image), name, by, nearest, fill)
        np.testing.assert_array_equal(same, expected, f"{name} {magnitude} {sign}")


def assert_same_distribution(ours, theirs):
    """The two-sample test of Kolmogorov and Smirnov, at one in ten thousand."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    points = np.concatenate([ours, theirs])
    shares = [
        np.searchsorted(values, points, side="right") / len(values) for values in (ours, theirs)
    ]
    limit = 2.23 * (1 / len(ours) + 1 / len(theirs)) ** 0.5
    assert np.abs(shares[0] - shares[1]).max() < limit


@pytest.mark.parametrize("size", [(32, 32), (20, 60)])
def test_erased_rectangles_have_the_same_distribution(size):
    count = 3000
    augmentation = Augmentation(erase=1)
    uniforms = tf.random.stateless_uniform((count, augmentation.draws), (0, 1))
    erased = augmentation.apply(np.zeros((count, *size, 1), np.uint8), uniforms, (1,)).numpy()
    ours = [np.argwhere(image) for image in erased[..., 0]]
    torch.manual_seed(0)
    erasing = RandomErasing(p=1, value=1)
    theirs = [np.argwhere(erasing(torch.zeros(1, *size))[0].numpy()) for _ in range(count)]
    for value in (
        lambda places: len(places),
        lambda places: np.ptp(places[:, 0]),
        lambda places: places[:, 0].min(),
        lambda places: places[:, 1].min(),
    ):
        assert_same_distribution(*(list(map(value, filter(len, e))) for e in (ours, theirs)))
    missed = [sum(len(places) == 0 for places in each) for each in (ours, theirs)]
    assert missed[0] == pytest.approx(missed[1], abs=5 * (max(missed) + 1) ** 0.5)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_have_the_same_distribution(kind, alpha):
    count, size = 3000, (16, 24)
    augmentation = Augmentation(**{kind: alpha})
    images = np.zeros((2, *size, 1), np.float32)
    mixed = tf.data.Dataset.range(count).map(
        lambda seed: augmentation.mix(images, [0, 1], 2, tf.stack([seed, 0]))[1][0, 0]
    )
    ours = next(iter(mixed.batch(count))).numpy()
    torch.manual_seed(0)
    mixing = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind](alpha=alpha, num_classes=2)
    batch = torch.zeros(2, 1, *size), torch.tensor([0, 1])
    theirs = [float(mixing(*batch)[1][0, 0]) for _ in range(count)]
    assert_same_distribution(ours, theirs)


def test_mixup_mixes_the_same_images():
    images = np.random.default_rng(0).random((5, 8, 8, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 1, 0])
    ours, targets = Augmentation(mixup=0.4).mix(images, labels, 3, tf.constant([1, 2]))
    mixing = v2.MixUp(num_classes=3)
    share = float(targets[2, 2])
    mixing._dist = torch.distributions.Bernoulli(torch.tensor([1.0]))
    mixing._dist.sample = lambda _: torch.tensor([share])
    # Theirs mixes with the image before, ours with the one after.
    theirs, mixed = mixing(peers.torch_input(images[::-1]), torch.from_numpy(labels[::-1].copy()))
    np.testing.assert_allclose(ours, peers.from_torch(theirs)[::-1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, mixed.numpy()[::-1], rtol=0, atol=1e-6)

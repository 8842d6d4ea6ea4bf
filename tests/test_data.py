"""Labelled images from every kind of source, and the pipelines that feed a network."""

import concurrent.futures
import errno
import functools
import importlib.resources
import io
import re
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_resnet import BadImageError, Preprocessing, data, imagenet, training
from keras_resnet import preprocessing as preprocessing_module
from keras_resnet.data import reading
from keras_resnet.data.reading import RandomWindows
from keras_resnet.data.splits import StreamSplit

SHAPE = (32, 32, 3)
DEFAULT = Preprocessing()
ORIENTATION = 0x0112  # the EXIF tag


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def numbered(count, size=4):
    """Images that say their number in every pixel, with labels 0, 1, 2, 0, ..."""
    numbers = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None, None], (count, size, size, 3))
    return images, np.arange(count) % 3


def source_of(count):
    return data.from_arrays(numbered(count), numbered(3), "abc")


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def make_classes(root, start=0, **counts):
    """Class directories of numbered images: `make_classes(root, cat=3, dog=2)`."""
    number = start
    for class_name, count in counts.items():
        for i in range(count):
            save(root / class_name / f"{i:03}.png", np.full((5, 7, 3), number, np.uint8))
            number += 1
    return root


def load_folder(path, **options):
    return data.load(f"folder:{path}", **options)


def read(split, batch_size=4, shape=SHAPE, preprocessing=DEFAULT, **options):
    """All raw images and labels of an epoch."""
    batches = list(split.batches(batch_size, shape, preprocessing, **options).as_numpy_iterator())
    return tuple(np.concatenate(part) for part in zip(*batches, strict=True))


def numbers(split, **options):
    """The numbers of numbered images, in the order in which they come."""
    images, _ = read(split, **options)
    np.testing.assert_array_equal(images, np.broadcast_to(images[:, :1, :1, :1], images.shape))
    return images[:, 0, 0, 0].tolist()


def linear_classifier(classes):
    image = keras.Input(SHAPE)
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    return keras.Model(image, keras.layers.Dense(classes)(pooled))


# The embedded digits


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_the_digits_are_as_documented(digits):
    assert (digits.name, digits.bad_images) == ("digits", ())
    assert digits.class_names == tuple("0123456789")
    assert (digits.train.examples, digits.test.examples) == (1442, 355)
    for split in (digits.train, digits.test):
        images, labels = read(split, batch_size=500)
        assert (images.shape, images.dtype) == ((split.examples, *SHAPE), np.uint8)
        assert labels.dtype == np.int32
        # About a tenth of every split is of each class.
        share = np.bincount(labels, minlength=10) / split.examples
        assert share.min() > 0.09
        assert share.max() < 0.11


def test_every_fifth_digit_of_a_class_is_for_testing(digits):
    archive = importlib.resources.files("keras_resnet.data").joinpath("digits.npz")
    with archive.open("rb") as file, np.load(file) as arrays:
        small, labels = arrays["images"], arrays["labels"]
    nth_of_its_class = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    is_test = nth_of_its_class % 5 == 4
    for split, chosen in ((digits.train, ~is_test), (digits.test, is_test)):
        split_images, split_labels = read(split, batch_size=500)
        np.testing.assert_array_equal(split_labels, labels[chosen])
        # Sixteen levels of grey on the full range of a byte, enlarged like any other image.
        for i in range(0, len(split_labels), 50):
            grey = np.round(small[chosen][i] / 16 * 255).astype(np.uint8)
            np.testing.assert_array_equal(split_images[i], DEFAULT.fit(grey, (32, 32)))


def test_no_digit_is_in_both_splits(digits):
    train, test = (
        {image.tobytes() for image in read(split, batch_size=500)[0]}
        for split in (digits.train, digits.test)
    )
    assert len(train) == 1442
    assert len(test) == 355
    assert not train & test


# Arrays


def test_arrays_come_back_as_they_are():
    images, labels = random_pixels(5, *SHAPE), np.array([0, 1, 1, 0, 2])
    source = data.from_arrays((images, labels), (images[:2], labels[:2]), ["a", "b", "c"], "mine")
    assert (source.name, source.class_names) == ("mine", ("a", "b", "c"))
    for split, count in ((source.train, 5), (source.test, 2)):
        assert split.examples == count
        read_images, read_labels = read(split)
        np.testing.assert_array_equal(read_images, images[:count])
        np.testing.assert_array_equal(read_labels, labels[:count])


def test_labels_to_learn_from_may_be_shares_of_the_classes():
    images, _ = numbered(10)
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 10)
    source = data.from_arrays((images, shares), numbered(3), "abc")
    pixels, targets = read(source.train, shape=(4, 4, 3), shuffle=(0, 0), remainder="pad")
    assert targets.dtype == np.float32
    numbers = pixels[:10, 0, 0, 0]
    np.testing.assert_array_equal(np.sort(numbers), np.arange(10))
    np.testing.assert_array_equal(targets[:10], shares[numbers].astype(np.float32))
    np.testing.assert_array_equal(targets[10:], np.zeros((2, 3)))
    expected = np.bincount(shares.argmax(axis=1), minlength=3)
    np.testing.assert_array_equal(source.train.class_counts(3), expected)
    # Where one label is wanted it is that of the largest share: to calibrate with, and to draw.
    sample, labels = source.train.take(10, (4, 4, 3), DEFAULT)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, shares.argmax(axis=1)[sample[:, 0, 0, 0]])
    copies, labels = source.train.copies(4, 2, seed=0)
    numbers = read(copies, shape=(4, 4, 3))[0][:, 0, 0, 0]
    np.testing.assert_array_equal(labels, shares.argmax(axis=1)[numbers])


IMAGES, LABELS = numbered(6)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, "uint8 images.*Received: dtype=float32"),
        (IMAGES / 255, LABELS, "uint8 images.*Received: dtype=float64"),
        (IMAGES[..., 0], LABELS, r"uint8 images.*Received: .*\(6, 4, 4\)"),
        (IMAGES[:0], LABELS[:0], r"uint8 images.*Received: .*\(0, 4, 4, 3\)"),
        (IMAGES, LABELS[:5], r"one integer label per image.*Received: .*\(5,\) for 6 images"),
        (IMAGES, np.eye(3, dtype=int)[LABELS], r"one integer label per.*Received: .*\(6, 3\)"),
        (IMAGES, LABELS.astype(float), "one integer label per image.*Received: dtype=float64"),
        (IMAGES, LABELS + 1, r"labels 0\.\.2.*Received: 1\.\.3"),
        (IMAGES, LABELS - 1, r"labels 0\.\.2.*Received: -1\.\.1"),
    ],
)
@pytest.mark.parametrize("argument", ["train", "test"])
def test_arrays_that_do_not_fit_are_refused_by_name(images, labels, message, argument):
    splits = {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS)} | {argument: (images, labels)}
    with pytest.raises(ValueError, match=f"`{argument}` must hold {message}"):
        data.from_arrays(**splits, class_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (np.eye(4)[LABELS], r"shares of the classes, \(6, 3\). Received: .*\(6, 4\)"),
        (np.eye(3)[LABELS[:5]], r"shares of the classes, \(6, 3\). Received: .*\(5, 3\)"),
        (np.eye(3)[LABELS] * 2, r"sum to 1 .*Received: \[2.0, 0.0, 0.0\] for image 0"),
        (np.full((6, 3), [1.5, -0.5, 0]), r"from 0 on.*Received: \[1.5, -0.5, 0.0\]"),
        (np.full((6, 3), np.nan), r"sum to 1 .*Received: \[nan, nan, nan\]"),
    ],
)
def test_shares_that_are_none_are_refused(shares, message):
    with pytest.raises(ValueError, match=f"`train` must hold .*{message}"):
        data.from_arrays((IMAGES, shares), (IMAGES, LABELS), "abc")


def test_what_is_tested_on_has_one_label_per_image():
    with pytest.raises(ValueError, match="`test` must hold one integer label per image"):
        data.from_arrays((IMAGES, LABELS), (IMAGES, np.eye(3)[LABELS]), "abc")


# Names


@pytest.mark.parametrize("name", ["cifar10", "", "folder", "folder:", "tfds:", "zip:a.zip"])
def test_an_unknown_kind_of_source_is_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError, match=r"'digits', 'folder:PATH'.*'tfds:NAME'") as raised:
        data.load(name)
    assert str(raised.value).endswith(f"Received: {name!r}")


def test_a_data_error_is_a_value_error():
    assert issubclass(data.DataError, ValueError)


# Folders


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folder_may_say_its_splits(tmp_path, held_out):
    make_classes(tmp_path / "train", dog=3, cat=2)
    make_classes(tmp_path / held_out, start=10, cat=1, dog=2)
    source = load_folder(tmp_path)
    assert source.name == f"folder:{tmp_path}"
    # In the order of their names, whatever the order on the disk.
    assert source.class_names == ("cat", "dog")
    assert (source.train.examples, source.test.examples) == (5, 3)
    assert numbers(source.train) == [3, 4, 0, 1, 2]
    assert read(source.train)[1].tolist() == [0, 0, 1, 1, 1]
    assert numbers(source.test) == [10, 11, 12]
    assert read(source.test)[1].tolist() == [0, 1, 1]


def test_of_test_and_val_the_test_images_are_for_testing(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        make_classes(tmp_path / split, start=10 * i, cat=1, dog=1)
    assert numbers(load_folder(tmp_path).test) == [20, 21]


def test_a_folder_without_splits_is_divided_80_to_20_in_every_class(tmp_path):
    make_classes(tmp_path, cat=20, dog=10, fox=2)
    source = load_folder(tmp_path)
    assert source.class_names == ("cat", "dog", "fox")
    assert np.bincount(read(source.train)[1]).tolist() == [16, 8, 1]
    assert np.bincount(read(source.test)[1]).tolist() == [4, 2, 1]
    # Every image is in one split, and only in one.
    assert sorted(numbers(source.train) + numbers(source.test)) == list(range(32))
    for split in (source.train, source.test):
        expected = np.digitize(numbers(split), [20, 30])
        np.testing.assert_array_equal(read(split)[1], expected)


def test_the_division_depends_on_the_seed_alone(tmp_path):
    make_classes(tmp_path, cat=20, dog=20)
    first, again, other = (numbers(load_folder(tmp_path, seed=seed).test) for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)
    assert numbers(load_folder(tmp_path).test) == first


def test_files_in_subdirectories_belong_to_the_class(tmp_path):
    make_classes(tmp_path / "train", cat=1, dog=1)
    make_classes(tmp_path / "test", cat=1, dog=1)
    make_classes(tmp_path / "train" / "cat" / "2024", start=7, summer=1)
    source = load_folder(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert numbers(source.train) == [0, 7, 1]


@pytest.mark.parametrize(
    "hidden",
    [
        "train/cat/.DS_Store",
        "test/dog/._000.png",
        "train/.ipynb_checkpoints/000.png",
        ".cache/000.png",
        "train/cat/.thumbnails/000.png",
    ],
)
def test_hidden_files_and_directories_are_ignored(tmp_path, hidden):
    make_classes(tmp_path / "train", cat=1, dog=1)
    make_classes(tmp_path / "test", cat=1, dog=1)
    path = tmp_path / hidden
    path.parent.mkdir(exist_ok=True)
    path.write_text("no image")
    source = load_folder(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert (source.train.examples, source.test.examples) == (2, 2)


def test_a_home_directory_can_be_written_as_usual(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_classes(tmp_path / "pictures", cat=5, dog=5)
    assert load_folder("~/pictures").train.examples == 8


def test_directories_called_by_wnids_are_classes_of_imagenet(tmp_path):
    make_classes(tmp_path, n02124075=5, n01440764=5, n01443537=5)
    assert load_folder(tmp_path).class_names == ("tench", "goldfish", "Egyptian cat")
    make_classes(tmp_path, cat=5)
    names = load_folder(tmp_path).class_names
    assert names == ("cat", "n01440764", "n01443537", "n02124075")


def test_all_classes_of_imagenet_are_in_the_order_of_the_networks_outputs(tmp_path):
    picture = save(tmp_path / "one.png", random_pixels(4, 4, 3))
    for split in ("train", "val"):
        for wnid, _ in imagenet.classes():
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "0.png").hardlink_to(picture)
    source = load_folder(tmp_path)
    assert source.class_names == imagenet.class_names()
    assert source.train.class_counts(1000).tolist() == [1] * 1000


def no_such_directory(root):
    return root, "No such directory"


def a_file(root):
    root.write_text("")
    return root, "No such directory"


def no_classes(root):
    root.mkdir()
    save(root / "0.png", random_pixels(4, 4, 3))
    return root, "at least two; it holds none"


def one_class(root):
    make_classes(root, cat=3)
    return root, r"at least two; it holds \['cat'\]"


def one_class_to_train(root):
    make_classes(root / "train", cat=3)
    make_classes(root / "test", cat=3)
    return root / "train", r"at least two; it holds \['cat'\]"


def only_train(root):
    make_classes(root / "train", cat=3, dog=3)
    return root, "'train' but none named 'test or val'"


def only_test(root):
    make_classes(root / "test", cat=3, dog=3)
    return root, "'test' but none named 'train'"


def only_val(root):
    make_classes(root / "val", cat=3, dog=3)
    return root, "'val' but none named 'train'"


def class_only_to_train(root):
    make_classes(root / "train", cat=1, dog=1, fox=1)
    make_classes(root / "test", cat=1, dog=1)
    return root / "test", "'fox' is missing there"


def class_only_to_test(root):
    make_classes(root / "train", cat=1, dog=1)
    make_classes(root / "test", cat=1, dog=1, fox=1)
    return root / "test", "'fox' is only there"


def empty_class(root):
    make_classes(root, cat=3, dog=3)
    (root / "fox").mkdir()
    return root / "fox", "class directory is empty"


def single_image(root):
    make_classes(root, cat=3, dog=1)
    return root / "dog", "at least two images"


@pytest.mark.parametrize(
    "make",
    [
        no_such_directory,
        a_file,
        no_classes,
        one_class,
        one_class_to_train,
        only_train,
        only_test,
        only_val,
        class_only_to_train,
        class_only_to_test,
        empty_class,
        single_image,
    ],
)
def test_a_folder_that_is_no_source_is_refused_by_its_path(tmp_path, make):
    path, message = make(tmp_path / "pictures")
    with pytest.raises(data.DataError, match=message) as raised:
        load_folder(tmp_path / "pictures")
    assert str(path) in str(raised.value)


# Bad images


def text(path):
    path.write_text("this is no image\n" * 20)


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    save(path, random_pixels(64, 64, 3))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture
def photographs(tmp_path):
    make_classes(tmp_path / "train", cat=4, dog=4)
    make_classes(tmp_path / "test", start=10, cat=2, dog=2)
    return tmp_path


@pytest.mark.parametrize("damage", [text, empty])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_that_is_no_image_is_refused_with_the_way_to_skip_it(photographs, damage, split):
    path = photographs / split / "cat" / "bad.jpg"
    damage(path)
    with pytest.raises(data.DataError, match="--skip-bad-images") as raised:
        load_folder(photographs)
    assert str(path) in str(raised.value)


def test_an_empty_file_is_called_empty(photographs):
    empty(photographs / "train" / "cat" / "bad.jpg")
    with pytest.raises(data.DataError, match=r"bad\.jpg \(empty file\)"):
        load_folder(photographs)


def test_the_error_counts_the_others(photographs):
    for i in range(3):
        text(photographs / "train" / "cat" / f"bad{i}.jpg")
    with pytest.raises(data.DataError, match=r"bad0\.jpg .*so are 2 others"):
        load_folder(photographs)


def test_bad_images_are_skipped_and_listed_where_that_is_asked_for(photographs):
    bad = [
        photographs / "test" / "dog" / "cut.jpg",
        photographs / "train" / "cat" / "empty.jpg",
        photographs / "train" / "dog" / "text.jpg",
    ]
    for path, damage in zip(bad, (truncated, empty, text), strict=True):
        damage(path)
    source = load_folder(photographs, skip_bad_images=True)
    assert sorted(source.bad_images) == [str(path) for path in bad]
    assert (source.train.examples, source.test.examples) == (8, 4)
    assert numbers(source.train) == list(range(8))
    assert numbers(source.test) == list(range(10, 14))


def test_nothing_is_skipped_where_all_images_are_good(photographs):
    source = load_folder(photographs, skip_bad_images=True)
    assert source.bad_images == ()
    assert (source.train.examples, source.test.examples) == (8, 4)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_of_nothing_but_bad_images_is_refused(photographs, split):
    for path in (photographs / split / "dog").iterdir():
        truncated(path)
    with pytest.raises(data.DataError, match="No image of class 'dog' is left"):
        load_folder(photographs, skip_bad_images=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_is_cut_short_stops_a_training_by_its_path(photographs, split):
    path = photographs / split / "cat" / "cut.jpg"
    truncated(path)
    source = load_folder(photographs)
    recipe = training.Recipe(epochs=1, batch_size=3)
    with pytest.raises(BadImageError, match=re.escape(str(path))):
        training.fit(linear_classifier(2), source, recipe, preprocessing=DEFAULT, verbose=False)


def test_an_image_that_is_cut_short_stops_an_evaluation_by_its_path(photographs):
    path = photographs / "test" / "cat" / "cut.jpg"
    truncated(path)
    with pytest.raises(BadImageError, match=re.escape(str(path))):
        training.evaluate(linear_classifier(2), load_folder(photographs), preprocessing=DEFAULT)


def test_an_image_that_is_cut_short_stops_a_sample_by_its_path(photographs):
    path = photographs / "train" / "cat" / "cut.jpg"
    truncated(path)
    with pytest.raises(BadImageError, match=re.escape(str(path))):
        load_folder(photographs).train.take(9, SHAPE, DEFAULT)


def vanish(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-20])


def shrink(path):
    save(path, smooth(16, 16))


def become_another_format(path):
    Image.fromarray(smooth(32, 32)).save(path, "WEBP")


@pytest.fixture
def exact_photographs(tmp_path):
    """Twelve JPEGs to train that are of the network's size."""
    for i in range(16):
        split = "train" if i < 12 else "test"
        save(tmp_path / split / "ab"[i % 2] / f"{i:02}.jpg", smooth(32, 32, seed=i))
    return tmp_path


@pytest.mark.parametrize(
    ("happen", "error", "message"),
    [
        (vanish, data.DataError, "has vanished since the data was loaded: {}$"),
        (cut_short, BadImageError, "cannot be read|can be read: {} "),
        (shrink, data.DataError, "has changed since the data was loaded: {}$"),
        (become_another_format, data.DataError, "has changed since the data was loaded: {}$"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"start": 1, "share": (1, 2)}], ids=["whole", "part"])
def test_what_happens_to_a_file_in_mid_training_is_said_by_its_path(
    exact_photographs, happen, error, message, options
):
    split = load_folder(exact_photographs, cache="none").train
    order = np.random.default_rng([7, 1]).permutation(12)
    path = Path(split.paths[order[9]])  # in the last of three batches, in an odd row
    happen(path)
    batches = iter(data.batches(split, 4, SHAPE, DEFAULT, shuffle=(7, 1), **options))
    for _ in range(2 - options.get("start", 0)):
        next(batches)
    with pytest.raises(error, match=message.format(re.escape(str(path)))), split.own_errors():
        next(batches)


def test_a_file_that_vanishes_while_random_parts_are_read_is_named(exact_photographs):
    split = load_folder(exact_photographs).train
    Path(split.paths[5]).unlink()
    batches = data.batches(
        split, 4, SHAPE, DEFAULT, augment=["random-resized-crop"], shuffle=(0, 0)
    )
    with pytest.raises(data.DataError, match=f"vanished.*{split.paths[5]}"), split.own_errors():
        list(batches)


def test_a_training_names_the_file_that_vanished(exact_photographs):
    source = load_folder(exact_photographs)
    Path(source.train.paths[5]).unlink()
    recipe = training.Recipe(epochs=1, batch_size=4)
    with pytest.raises(data.DataError, match=f"vanished.*{source.train.paths[5]}"):
        training.fit(linear_classifier(2), source, recipe, preprocessing=DEFAULT, verbose=False)


def test_an_error_of_somebody_else_stays_what_it_is(exact_photographs):
    split = load_folder(exact_photographs).train
    list(split.batches(4, SHAPE, DEFAULT).take(1))
    with pytest.raises(tf.errors.InvalidArgumentError), split.own_errors():
        tf.reshape(tf.zeros(3), (2,))


# Pixels

PREPROCESSINGS = {
    "default": DEFAULT,
    "crop": Preprocessing(crop=0.5),
    "bicubic": Preprocessing(interpolation="bicubic", crop=0.875),
}

preprocessings = pytest.mark.parametrize(
    "preprocessing", PREPROCESSINGS.values(), ids=PREPROCESSINGS
)


@pytest.fixture(scope="module")
def all_kinds_of_files(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    palette = Image.frombytes("P", (50, 40), (random_pixels(40, 50) // 64).tobytes())
    palette.putpalette(random_pixels(12).tolist())
    for split in ("train", "test"):
        cat, dog = root / split / "cat", root / split / "dog"
        save(cat / "exact.png", random_pixels(*SHAPE))
        save(cat / "grey.png", random_pixels(33, 80))
        save(cat / "large.jpg", random_pixels(120, 90, 3))
        palette.save(cat / "palette.png")
        save(dog / "small.gif", random_pixels(8, 8))
        save(dog / "transparent.png", random_pixels(50, 40, 4))
        save(dog / "turned.jpg", random_pixels(48, 96, 3), exif=turned)
    return root


@preprocessings
@pytest.mark.parametrize("shape", [SHAPE, (24, 40, 3), (32, 32, 1)])
def test_files_give_the_pixels_that_a_single_photograph_gives(
    all_kinds_of_files, preprocessing, shape
):
    split = load_folder(all_kinds_of_files).train
    images, _ = read(split, batch_size=3, shape=shape, preprocessing=preprocessing)
    files = sorted((all_kinds_of_files / "train").rglob("*.*"))
    expected = [preprocessing.fit(path, shape[:2], shape[2]) for path in files]
    np.testing.assert_array_equal(images, np.stack(expected))


def smooth(height, width, seed=0):
    """Something that a JPEG can hold."""
    small = Image.fromarray(random_pixels(4, 5, 3, seed=seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def grey(height, width):
    return np.ascontiguousarray(smooth(height, width)[..., 0])


def with_late_orientation(path):
    """A PNG whose orientation is said behind its pixels."""
    picture = io.BytesIO()
    Image.fromarray(smooth(32, 32)).save(picture, "PNG")
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + content
    chunk = len(content).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    whole = picture.getvalue()
    path.write_bytes(whole[:-12] + chunk + whole[-12:])


def upside_down():
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    return exif


PLAIN_FILES = {
    "444.jpg": lambda path: save(path, smooth(32, 32), subsampling=0, quality=95),
    "422.jpg": lambda path: save(path, smooth(32, 32), subsampling=1),
    "420.jpg": lambda path: save(path, smooth(32, 32), subsampling=2),
    "420_odd.jpg": lambda path: save(path, smooth(45, 37), subsampling=2),
    "noise.jpg": lambda path: save(path, random_pixels(40, 33, 3), quality=50),
    "grey.jpg": lambda path: save(path, grey(32, 32)),
    "progressive.jpg": lambda path: save(path, smooth(64, 48), progressive=True),
    "optimized.jpg": lambda path: save(path, smooth(32, 32), optimize=True, quality=30),
    "upright.jpg": lambda path: save(path, smooth(32, 32), exif=Image.Exif()),
    "rgb.png": lambda path: save(path, random_pixels(32, 32, 3)),
    "large.png": lambda path: save(path, random_pixels(50, 61, 3)),
    "grey.png": lambda path: save(path, random_pixels(32, 32)),
}
OTHER_FILES = {
    "turned.jpg": lambda path: save(path, smooth(32, 32), exif=upside_down()),
    "cmyk.jpg": lambda path: Image.fromarray(smooth(32, 32)).convert("CMYK").save(path),
    "turned.png": lambda path: save(path, smooth(32, 32), exif=upside_down()),
    "turned_late.png": with_late_orientation,
    "alpha.png": lambda path: save(path, random_pixels(32, 32, 4)),
    "transparent.png": lambda path: save(path, smooth(32, 32), transparency=(9, 9, 9)),
    "palette.png": lambda path: Image.fromarray(smooth(32, 32)).quantize(9).save(path),
    "16_bits.png": lambda path: save(path, random_pixels(32, 32).astype(np.uint16) * 257),
    "1_bit.png": lambda path: Image.fromarray(grey(32, 32)).convert("1").save(path),
    "animation.png": lambda path: Image.fromarray(smooth(32, 32)).save(
        path, save_all=True, append_images=[Image.fromarray(smooth(32, 32, seed=1))]
    ),
    "small.gif": lambda path: save(path, grey(32, 32)),
    "web.webp": lambda path: save(path, smooth(32, 32)),
    "bits.bmp": lambda path: save(path, smooth(32, 32)),
    "tagged.tiff": lambda path: save(path, smooth(32, 32)),
    "called_otherwise.png": lambda path: Image.fromarray(smooth(32, 32)).save(path, "JPEG"),
}


@pytest.fixture(scope="session")
def formats(tmp_path_factory):
    """A folder with one file of every kind; those of the class `other` need Pillow."""
    root = tmp_path_factory.mktemp("formats")
    for directory, files in (("plain", PLAIN_FILES), ("other", OTHER_FILES)):
        for split in ("train", "test"):
            (root / split / directory).mkdir(parents=True)
        for name, write in files.items():
            write(root / "train" / directory / name)
        save(root / "test" / directory / "0.png", smooth(32, 32))
    return root


@pytest.mark.parametrize("shape", [SHAPE, (32, 32, 1), (45, 37, 3)])
def test_every_kind_of_file_gives_pillows_pixels(formats, shape):
    split = load_folder(formats).train
    images, _ = read(split, shape=shape)
    for path, image in zip(split.paths, images, strict=True):
        expected = DEFAULT.fit(path, shape[:2], shape[2])
        np.testing.assert_array_equal(image, expected, err_msg=path)


@pytest.mark.parametrize("name", PLAIN_FILES)
def test_plain_files_are_decoded_by_tensorflow(formats, tmp_path, monkeypatch, name):
    """Not by Pillow: its reader is out of order, and they are read all the same."""
    for split in ("train", "test"):
        for class_name in "ab":
            target = tmp_path / split / class_name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((formats / "train" / "plain" / name).read_bytes())
    split = load_folder(tmp_path).train
    expected = preprocessing_module.read_image(split.paths[0])
    monkeypatch.setattr("keras_resnet.data.reading.read_image", None)
    images, _ = read(split, shape=expected.shape)
    np.testing.assert_array_equal(images, [expected, expected])


# Random resized crops

CROPS = data.Augmentation(steps=("random-resized-crop",))


def crops_of(split, shape=SHAPE, preprocessing=DEFAULT, shuffle=(3, 4), **options):
    augment = options.pop("crop", CROPS)
    return read(split, 4, shape, preprocessing, shuffle=shuffle, crop=augment, **options)


def coordinates(size=64):
    """An image that says where each pixel is: its row in red, its column in green."""
    rows, columns = np.mgrid[:size, :size].astype(np.uint8) * (256 // size)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1)


def test_crops_have_the_areas_and_ratios_that_are_asked_for():
    images = np.broadcast_to(coordinates(), (1500, 64, 64, 3))
    labels = np.zeros(1500, int)
    split = data.from_arrays((images, labels), (images[:1], labels[:1]), "a").train
    augment = data.Augmentation(
        steps=("random-resized-crop",), crop_area=(0.2, 0.5), crop_ratio=(0.5, 1.0)
    )
    crops, _ = crops_of(split, (16, 16, 3), crop=augment)
    # From the middle of the first pixel to the middle of the last: 15 of 16 parts.
    height = (crops[:, 15, 8, 0].astype(float) - crops[:, 0, 8, 0]) / 4 * 16 / 15
    width = (crops[:, 8, 15, 1].astype(float) - crops[:, 8, 0, 1]) / 4 * 16 / 15
    area, ratio = height * width / 64**2, width / height
    assert 0.18 < area.min() < 0.23
    assert 0.45 < area.max() < 0.53
    assert abs(area.mean() - 0.35) < 0.02
    assert 0.45 < ratio.min() < 0.53
    assert 0.95 < ratio.max() < 1.1
    # Uniform in the logarithm.
    assert abs(np.log2(ratio).mean() + 0.5) < 0.04
    # All over the image.
    top, left = crops[:, 0, 8, 0] / 4, crops[:, 8, 0, 1] / 4
    assert min(top.min(), left.min()) < 2
    assert top.max() > 20
    assert left.max() > 30


@pytest.mark.parametrize("shape", [(24, 24, 3), (64, 48, 3), (48, 48, 1)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_resized_as_pillow_resizes(tmp_path, shape, interpolation):
    make_classes(tmp_path / "test", a=1, b=1)
    for i in range(10):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", smooth(56, 50, seed=i))
    split = load_folder(tmp_path).train
    preprocessing = Preprocessing(interpolation=interpolation)
    crops, labels = crops_of(split, shape, preprocessing)
    again, _ = crops_of(split, shape, preprocessing)
    np.testing.assert_array_equal(crops, again)
    order = np.random.default_rng([3, 4]).permutation(10)
    windows = RandomWindows((3, 4), CROPS.crop_area, CROPS.crop_ratio)(
        np.arange(10), np.full((10, 2), (56, 50))
    )
    for crop, number, (top, left, height, width) in zip(crops, order, windows, strict=True):
        part = Image.open(split.paths[number]).crop((left, top, left + width, top + height))
        resampling = Image.Resampling[interpolation.upper()]
        expected = part.resize((shape[1], shape[0]), resampling)
        expected = np.asarray(expected.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)
        difference = np.abs(crop.astype(int) - expected)
        assert difference.max() <= (1 if interpolation == "bilinear" else 3)
        if height > shape[0] or width > shape[1]:
            assert difference.max() == 0
    assert labels.tolist() == split.labels[order].tolist()


def test_a_crop_of_a_jpeg_is_that_part_of_it(tmp_path):
    """But for its sides, where the colors are interpolated without what is cut off."""
    make_classes(tmp_path / "test", a=1, b=1)
    for i in range(8):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg", smooth(90, 70, seed=i))
    split = load_folder(tmp_path).train
    windows = RandomWindows((3, 4), CROPS.crop_area, CROPS.crop_ratio)(
        np.arange(8), np.full((8, 2), (90, 70))
    )
    for path, (top, left, height, width) in zip(split.paths, windows, strict=True):
        part = reading.decode(tf.io.read_file(path), reading.JPEG, [top, left, height, width])
        whole = np.asarray(Image.open(path)).astype(int)
        difference = np.abs(part.numpy() - whole[top : top + height, left : left + width])
        assert difference[:, 1:-1].max() == 0
        assert difference.max() < 32


def test_every_kind_of_file_can_be_cropped(formats):
    split = load_folder(formats).train
    crops, labels = crops_of(split, (20, 24, 3))
    assert crops.shape == (split.examples, 20, 24, 3)
    assert sorted(labels) == sorted(split.labels)


@settings(max_examples=30)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(1, 3)),
    seed=st.integers(0, 2**32 - 1),
    place=st.integers(0, 10_000),
)
def test_a_window_lies_inside_of_the_image(height, width, ratio, seed, place):
    ratio = (ratio[0], ratio[0] * ratio[1])
    windows = RandomWindows((seed, 0), (0.08, 1.0), ratio)
    top, left, part_height, part_width = windows(np.array([place]), np.array([[height, width]]))[0]
    assert 0 <= top <= top + part_height <= height
    assert 0 <= left <= left + part_width <= width
    assert part_height > 0
    assert part_width > 0


def test_an_image_of_another_ratio_than_any_window_gives_its_center():
    windows = RandomWindows((0, 0), (0.5, 1.0), (3 / 4, 4 / 3))
    assert windows(np.array([0]), np.array([[10, 100]])).tolist() == [[0, 43, 10, 13]]
    assert windows(np.array([0]), np.array([[100, 10]])).tolist() == [[43, 0, 13, 10]]


# Caches


def test_what_was_read_once_is_kept(all_kinds_of_files, tmp_path):
    root = tmp_path / "copy"
    for path in all_kinds_of_files.rglob("*.*"):
        target = root / path.relative_to(all_kinds_of_files)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    split = load_folder(root).train
    first = read(split, shuffle=(0, 0))
    for path in (root / "train").rglob("*.*"):
        path.unlink()
    second = read(split, shuffle=(0, 0))
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)
    # Not mixed up with another size or another preprocessing, which has to read again.
    with pytest.raises(tf.errors.OpError):
        read(split, preprocessing=Preprocessing(crop=0.5))


def test_images_that_exceed_the_memory_are_read_every_time(photographs, monkeypatch):
    monkeypatch.setattr("keras_resnet.data.caching.MEMORY_BYTES", 0)
    split = load_folder(photographs).train
    assert numbers(split) == list(range(8))
    save(photographs / "train" / "cat" / "000.png", np.full((5, 7, 3), 99, np.uint8))
    assert numbers(split) == [99, *range(1, 8)]


def test_a_source_can_be_loaded_without_a_cache(photographs):
    split = load_folder(photographs, cache="none").train
    assert numbers(split) == list(range(8))
    save(photographs / "train" / "cat" / "000.png", np.full((5, 7, 3), 99, np.uint8))
    assert numbers(split) == [99, *range(1, 8)]


def test_a_cache_that_is_filled_in_part_gives_the_same_batches(photographs):
    split = load_folder(photographs).train
    expected = numbers(load_folder(photographs).train, shuffle=(0, 1))
    for share in ((0, 2), (1, 2)):
        list(split.batches(4, SHAPE, DEFAULT, shuffle=(0, 0), start=1, share=share))
        assert numbers(split, shuffle=(0, 1)) == expected
    padded, labels = read(split, 3, shuffle=(0, 1), remainder="pad")
    assert padded[:8, 0, 0, 0].tolist() == expected
    assert not padded[8:].any()
    assert labels[8:].tolist() == [-1]


@pytest.mark.parametrize("cache", ["disk", "disk:", "ram", None])
def test_an_unknown_cache_is_refused(photographs, cache):
    with pytest.raises(ValueError, match=r"'memory', 'none' or 'disk:DIRECTORY'\. Received: "):
        load_folder(photographs, cache=cache)


@pytest.fixture
def disk(tmp_path):
    """A directory for caches, and the argument that says so."""
    directory = tmp_path / "cache"
    return directory, f"disk:{directory}"


def images_in(directory):
    return sorted(path.name for path in directory.glob("*.images"))


@preprocessings
def test_a_cache_on_the_disk_serves_later_processes(all_kinds_of_files, disk, preprocessing):
    directory, cache = disk
    expected = read(load_folder(all_kinds_of_files).train, preprocessing=preprocessing)
    for _ in range(2):
        split = load_folder(all_kinds_of_files, cache=cache).train
        cached = read(split, preprocessing=preprocessing)
        for ours, theirs in zip(cached, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        (file,) = directory.glob("*.images")
        assert file.stat().st_size == 4096 + split.examples * (32 * 32 * 3 + 4)
        # Nothing else is left there, and files that are in the cache are not read.
        assert {path.suffix for path in directory.iterdir()} <= {".images", ".lock"}
    written = file.stat().st_mtime_ns
    read(load_folder(all_kinds_of_files, cache=cache).train, preprocessing=preprocessing)
    assert file.stat().st_mtime_ns == written


def test_a_cache_on_the_disk_is_not_taken_for_another(photographs, disk):
    directory, cache = disk
    read(load_folder(photographs, cache=cache).train)
    assert len(images_in(directory)) == 1
    read(load_folder(photographs, cache=cache).train, shape=(16, 16, 3))
    read(load_folder(photographs, cache=cache).train, preprocessing=Preprocessing(crop=0.5))
    assert len(images_in(directory)) == 3
    save(photographs / "train" / "cat" / "000.png", np.full((5, 7, 3), 99, np.uint8))
    assert numbers(load_folder(photographs, cache=cache).train) == [99, *range(1, 8)]
    assert len(images_in(directory)) == 4


def lose_the_end(path):
    path.write_bytes(path.read_bytes()[:-1])


def lose_the_start(path):
    content = path.read_bytes()
    path.write_bytes(bytes(10) + content[10:])


def lose_everything(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [lose_the_end, lose_the_start, lose_everything])
def test_a_damaged_cache_is_made_again(photographs, disk, damage):
    directory, cache = disk
    assert numbers(load_folder(photographs, cache=cache).train) == list(range(8))
    (file,) = directory.glob("*.images")
    damage(file)
    assert numbers(load_folder(photographs, cache=cache).train) == list(range(8))


def test_a_cache_that_cannot_be_written_leaves_nothing(photographs, disk, monkeypatch):
    directory, cache = disk

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*\.images'"):
        read(load_folder(photographs, cache=cache).train)
    assert images_in(directory) == []
    assert [path.suffix for path in directory.iterdir()] in ([], [".lock"])


def test_a_file_that_is_cut_short_ends_a_cache_by_its_path(photographs, disk):
    directory, cache = disk
    path = photographs / "train" / "cat" / "cut.jpg"
    truncated(path)
    with pytest.raises(BadImageError, match=re.escape(str(path))):
        read(load_folder(photographs, cache=cache).train)
    assert images_in(directory) == []


def test_several_processes_that_want_the_same_cache_make_it_once(photographs, disk):
    directory, cache = disk
    splits = [load_folder(photographs, cache=cache).train for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        assert list(threads.map(numbers, splits)) == [list(range(8))] * 4
    assert len(images_in(directory)) == 1


def test_a_sample_does_not_make_a_cache(photographs, disk):
    directory, cache = disk
    images, _ = load_folder(photographs, cache=cache).train.take(3, SHAPE, DEFAULT)
    np.testing.assert_array_equal(images, load_folder(photographs).train.take(3, SHAPE, DEFAULT)[0])
    assert not directory.exists()


def test_a_source_says_how_to_load_it_again_with_its_cache(photographs, disk):
    directory, cache = disk
    again = load_folder(photographs, cache=cache).reload
    assert again["cache"] == cache
    numbers(data.load(**again).train)
    assert len(images_in(directory)) == 1
    assert "cache" not in load_folder(photographs).reload


def test_random_crops_make_no_cache(photographs, disk):
    directory, cache = disk
    for policy in (cache, "memory"):
        split = load_folder(photographs, cache=policy).train
        first, again = (crops_of(split, shuffle=(0, epoch))[0] for epoch in (0, 1))
        assert sorted(first[:, 0, 0, 0]) == sorted(again[:, 0, 0, 0]) == list(range(8))
    assert not directory.exists()


# The order


@settings(max_examples=15)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    shuffle=st.none() | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 300)),
)
def test_an_epoch_holds_every_example_once(count, batch_size, shuffle):
    images, labels = numbered(count)
    split = data.from_arrays((images, labels), (images, labels), "abc").train
    batches = list(
        split.batches(batch_size, (4, 4, 3), DEFAULT, shuffle=shuffle).as_numpy_iterator()
    )
    assert [len(labels) for _, labels in batches] == [
        min(batch_size, count - start) for start in range(0, count, batch_size)
    ]
    seen = np.concatenate([images[:, 0, 0, 0] for images, _ in batches])
    np.testing.assert_array_equal(np.sort(seen), np.arange(count))
    # An image keeps its label.
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), seen % 3)
    if shuffle is None:
        np.testing.assert_array_equal(seen, np.arange(count))


def first_numbers(batches):
    """For every batch, the number that each image says, or -1 for padding."""
    seen = []
    for images, labels in batches.as_numpy_iterator():
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert (images[labels < 0] == 0).all()
        seen.append(np.where(labels < 0, -1, images[:, 0, 0, 0].astype(int)).tolist())
    return seen


@settings(max_examples=25)
@given(
    count=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    remainder=st.sampled_from(["keep", "drop", "pad"]),
    shuffle=st.none() | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 300)),
    draw=st.data(),
)
def test_shares_of_workers_make_up_the_batches(count, batch_size, remainder, shuffle, draw):
    split = source_of(count).train
    options = {"shuffle": shuffle, "remainder": remainder}
    workers = draw.draw(st.integers(1, batch_size), "workers")
    start = draw.draw(st.integers(0, count // batch_size + 1), "start")
    order = read(split, shuffle=shuffle, shape=(4, 4, 3))[0][:, 0, 0, 0].tolist()
    full, rest = divmod(count, batch_size)
    if rest and remainder == "pad":
        order += [-1] * (batch_size - rest)
    elif remainder == "drop":
        order = order[: full * batch_size]
    expected = [order[i : i + batch_size] for i in range(0, len(order), batch_size)][start:]
    for worker in range(workers):
        batches = split.batches(
            batch_size, (4, 4, 3), DEFAULT, start=start, share=(worker, workers), **options
        )
        rows = [batch[worker::workers] for batch in expected]
        # A worker without a row of the last batch has one batch less.
        assert first_numbers(batches) == [batch for batch in rows if batch]
        assert remainder == "keep" or all(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive integer. Received: 0"),
        ({"remainder": "cut"}, "'keep', 'drop' or 'pad'. Received: 'cut'"),
        ({"start": -1}, "`start` must be 0 or positive. Received: -1"),
        ({"share": (2, 2)}, r"`share`.*Received: share=\(2, 2\)"),
        ({"share": (-1, 2)}, r"`share`.*Received: share=\(-1, 2\)"),
        ({"share": (0, 5)}, r"`share`.*an example for each.*share=\(0, 5\), batch_size=4"),
        ({"crop": data.Augmentation(steps=("random-resized-crop",))}, "give `shuffle`"),
    ],
)
def test_batches_that_cannot_be_are_refused(options, message):
    options = {"batch_size": 4} | options
    with pytest.raises(ValueError, match=message):
        source_of(9).train.batches(shape=(4, 4, 3), preprocessing=DEFAULT, **options)


def test_classes_are_counted():
    counts = source_of(8).train.class_counts(4)
    assert counts.tolist() == [3, 3, 2, 0]
    assert counts.dtype == np.int64


def test_the_order_is_that_of_the_seed_and_the_epoch():
    order = numbers(source_of(40).train, shuffle=(1, 2))
    assert numbers(source_of(40).train, shuffle=(1, 2)) == order
    assert numbers(source_of(40).train, shuffle=(1, 2), batch_size=7) == order
    for other in ((1, 3), (2, 2), (2, 1)):
        assert numbers(source_of(40).train, shuffle=other) != order


@pytest.fixture
def global_seed():
    """Sets TensorFlow's seed, and unsets it after the test."""
    yield tf.random.set_seed
    tf.random.set_seed(None)


def test_the_order_does_not_depend_on_the_global_seed(global_seed):
    split = source_of(40).train
    global_seed(1)
    order = numbers(split, shuffle=(0, 0))
    global_seed(2)
    assert numbers(split, shuffle=(0, 0)) == order


@pytest.mark.parametrize("count", [1, 7, 40, 100])
def test_a_sample_takes_different_images_and_at_most_all(count):
    split = source_of(40).train
    images, labels = split.take(count, (4, 4, 3), DEFAULT)
    chosen = images[:, 0, 0, 0]
    assert len(set(chosen)) == len(chosen) == min(count, 40)
    np.testing.assert_array_equal(labels, chosen % 3)
    again, _ = split.take(count, (4, 4, 3), DEFAULT)
    np.testing.assert_array_equal(images, again)


def test_a_sample_is_drawn_by_its_seed():
    split = source_of(40).train
    first, other = (split.take(10, (4, 4, 3), DEFAULT, seed=seed)[0] for seed in (0, 1))
    assert set(first[:, 0, 0, 0]) != set(other[:, 0, 0, 0])
    assert set(first[:, 0, 0, 0]) != set(range(10))


# TensorFlow Datasets


# Files that a data set may hold as they are, among them such as TensorFlow decodes otherwise than
# Pillow: turned, in the colors of a printer, transparent, or with 16 bits.
ENCODED = [
    "plain/420.jpg",
    "plain/444.jpg",
    "plain/progressive.jpg",
    "plain/grey.jpg",
    "plain/rgb.png",
    "plain/grey.png",
    "plain/large.png",
    "other/turned.jpg",
    "other/cmyk.jpg",
    "other/turned.png",
    "other/turned_late.png",
    "other/transparent.png",
    "other/palette.png",
    "other/16_bits.png",
    "other/small.gif",
]


@pytest.fixture(scope="session")  # their names can be registered once in a process
def datasets(tmp_path_factory, formats):
    """Small data sets that TensorFlow Datasets finds by their names, without a network."""
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp("datasets")
    features = tfds.features
    pets = features.ClassLabel(names=["cat", "dog", "fox"])

    def prepare(registry_name, structure, examples):
        class Builder(tfds.core.GeneratorBasedBuilder):
            __module__ = "pets"  # no package, in whose files TFDS would look for checksums
            name = registry_name
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=features.FeaturesDict(structure)
                )

            def _split_generators(self, dl_manager):
                return {split: enumerate(examples[split]) for split in examples}

            def _generate_examples(self):
                raise NotImplementedError

        Builder(data_dir=directory).download_and_prepare()

    def pictures(count, shape=None):
        sizes = [shape or (20 + 3 * i, 50 - i, 3) for i in range(count)]
        return [
            {"image": random_pixels(*size, seed=i), "label": i % 3} for i, size in enumerate(sizes)
        ]

    tfds.disable_progress_bar()
    image = features.Image(shape=(None, None, 3))
    exact = features.Image(shape=SHAPE)
    prepare(
        "small_pets",
        {"image": image, "label": pets},
        {"train": pictures(20), "test": pictures(7), "validation": pictures(5)},
    )
    prepare(
        "exact_pets",
        {"image": exact, "label": features.ClassLabel(num_classes=3)},
        {"train": pictures(6, SHAPE), "validation": pictures(5, SHAPE)},
    )
    prepare("only_train_pets", {"image": image, "label": pets}, {"train": pictures(3)})
    prepare(
        "unlabelled_pets",
        {"image": image},
        {split: [{"image": p["image"]} for p in pictures(3)] for split in ("train", "test")},
    )
    prepare(
        "measured_pets",
        {"image": image, "label": features.Scalar(np.float32)},
        {split: pictures(3) for split in ("train", "test")},
    )
    prepare(
        "encoded_pets",
        {"image": image, "label": pets},
        {
            split: [
                {"image": io.BytesIO((formats / "train" / name).read_bytes()), "label": i % 3}
                for i, name in enumerate(ENCODED)
            ]
            for split in ("train", "test")
        },
    )

    class ManualPets(tfds.core.GeneratorBasedBuilder):
        """Pets that somebody has to fetch."""

        __module__ = "pets"
        name = "manual_pets"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the\n   pets for pets.tar."

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=features.FeaturesDict({"image": image, "label": pets})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(dl_manager.manual_dir / "pets.tar")}

        def _generate_examples(self, path):
            yield 0, {"image": path.read_bytes(), "label": 0}

    tfds.core.add_data_dir(directory)
    return {"directory": directory, "small_pets": pictures(20), "exact_pets": pictures(6, SHAPE)}


def fitted(examples, preprocessing):
    """Fitted pixels, as bytes, to their labels."""
    return {preprocessing.fit(e["image"], (32, 32)).tobytes(): e["label"] for e in examples}


def contents(split, **options):
    images, labels = read(split, **options)
    return [image.tobytes() for image in images], labels.tolist()


@pytest.mark.parametrize("shuffle", [None, (0, 0)])
@preprocessings
@pytest.mark.parametrize("dataset", ["small_pets", "exact_pets"])
def test_a_dataset_gives_every_image_once_with_the_pixels_that_a_photograph_gives(
    datasets, dataset, preprocessing, shuffle
):
    split = data.load(f"tfds:{dataset}").train
    images, labels = contents(split, preprocessing=preprocessing, shuffle=shuffle)
    expected = fitted(datasets[dataset], preprocessing)
    assert split.examples == len(images) == len(expected)
    assert dict(zip(images, labels, strict=True)) == expected


def test_a_dataset_names_its_classes_and_splits(datasets):
    source = data.load("tfds:small_pets")
    assert source.name == "tfds:small_pets"
    assert source.class_names == ("cat", "dog", "fox")
    assert (source.train.examples, source.test.examples) == (20, 7)
    unnamed = data.load("tfds:exact_pets")
    assert unnamed.class_names == ("0", "1", "2")
    # The images for validation are for testing where there are no others.
    assert (unnamed.train.examples, unnamed.test.examples) == (6, 5)


def test_a_dataset_is_shuffled_by_the_seed_and_the_epoch(datasets):
    split = data.load("tfds:small_pets").train
    order = contents(split, shuffle=(1, 2))
    assert contents(split, shuffle=(1, 2)) == order
    for other in ((1, 3), (2, 2)):
        assert contents(split, shuffle=other) != order


def stream_of(name, **options):
    return data.load(f"tfds:{name}", cache="none", **options).train


@pytest.mark.parametrize("cache", ["none", "memory"])
@preprocessings
def test_files_in_a_dataset_give_pillows_pixels(datasets, formats, preprocessing, cache):
    split = data.load("tfds:encoded_pets", cache=cache).train
    images, labels = contents(split, preprocessing=preprocessing)
    files = [(formats / "train" / name).read_bytes() for name in ENCODED]
    fits = [preprocessing.fit(file, (32, 32)).tobytes() for file in files]
    expected = sorted(zip(fits, [i % 3 for i in range(len(files))], strict=True))
    assert sorted(zip(images, labels, strict=True)) == expected


def test_a_dataset_can_be_read_as_random_crops(datasets):
    split = stream_of("encoded_pets")
    first, labels = crops_of(split, (20, 24, 3))
    assert first.shape == (split.examples, 20, 24, 3)
    assert np.bincount(labels).tolist() == split.class_counts(3).tolist()
    np.testing.assert_array_equal(crops_of(split, (20, 24, 3))[0], first)
    other, _ = crops_of(split, (20, 24, 3), shuffle=(3, 5))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("crop", [None, CROPS], ids=["fitted", "cropped"])
@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
def test_a_stream_is_shared_and_resumed_like_files(datasets, remainder, crop):
    split = stream_of("small_pets")
    options = {"shuffle": (1, 2), "remainder": remainder, "crop": crop}
    batches = list(split.batches(6, SHAPE, DEFAULT, **options).as_numpy_iterator())
    count = {"keep": 20, "drop": 18, "pad": 20}[remainder]
    seen = np.concatenate([labels for _, labels in batches])
    assert (seen >= 0).sum() == count
    assert [len(labels) for _, labels in batches] == {
        "keep": [6, 6, 6, 2],
        "drop": [6, 6, 6],
        "pad": [6, 6, 6, 6],
    }[remainder]
    for worker, workers in [(0, 1), (0, 4), (1, 4), (2, 4), (3, 4)]:
        share = split.batches(6, SHAPE, DEFAULT, start=1, share=(worker, workers), **options)
        expected = [
            (images[worker::workers], labels[worker::workers]) for images, labels in batches[1:]
        ]
        expected = [batch for batch in expected if len(batch[1])]
        for ours, theirs in zip(share.as_numpy_iterator(), expected, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])


def test_a_worker_decodes_its_own_share_of_a_stream_alone(datasets, monkeypatch):
    decoded = []

    def note(contents):
        decoded.append(contents)
        return preprocessing_module.read_image(contents)

    monkeypatch.setattr("keras_resnet.data.reading.read_image", note)
    monkeypatch.setattr("keras_resnet.data.reading.decoder_of", lambda _: tf.constant(0))
    split = stream_of("small_pets")
    list(split.batches(6, SHAPE, DEFAULT, shuffle=(1, 2), start=1, share=(1, 3)))
    assert len(decoded) == 2 + 2 + 1
    assert len(set(decoded)) == 5


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_the_order_of_a_dataset_does_not_depend_on_the_global_seed(datasets, global_seed, cache):
    split = data.load("tfds:small_pets", cache=cache).train
    global_seed(1)
    order = contents(split, shuffle=(0, 0))
    global_seed(2)
    assert contents(split, shuffle=(0, 0)) == order


def test_a_stream_says_how_many_examples_it_mixes(datasets):
    assert stream_of("small_pets").shuffle_buffer == 20
    assert source_of(40).train.shuffle_buffer == 40
    images = tf.data.Dataset.range(300).map(lambda i: (tf.strings.as_string(i), i))
    split = StreamSplit(300, lambda _: images, shuffle_buffer=10)
    assert split.shuffle_buffer == 10
    order = [int(label) for _, label in split._encoded((0, 0))]
    assert sorted(order) == list(range(300))
    # No example can come earlier than the buffer reaches.
    assert max(label - place for place, label in enumerate(order)) < 10


def test_a_dataset_counts_its_classes(datasets):
    for cache in ("none", "memory"):
        split = data.load("tfds:small_pets", cache=cache).train
        assert split.class_counts(4).tolist() == [7, 7, 6, 0]


def test_a_dataset_can_be_cached_on_the_disk(datasets, disk):
    directory, cache = disk
    expected = contents(data.load("tfds:small_pets").train, shuffle=(0, 1))
    for _ in range(2):
        source = data.load("tfds:small_pets", cache=cache)
        assert contents(source.train, shuffle=(0, 1)) == expected
        assert len(images_in(directory)) == 1
        assert source.reload == {"name": "tfds:small_pets", "cache": cache}
    contents(source.test)
    assert len(images_in(directory)) == 2
    source.train.take(3, (16, 16, 3), DEFAULT)
    assert len(images_in(directory)) == 2


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty directory where TensorFlow Datasets looks for its own."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(
        "tensorflow_datasets.builder", functools.partial(tfds.builder, data_dir=tmp_path)
    )
    return tmp_path


@pytest.mark.parametrize("has_directory", [False, True])
def test_a_dataset_that_has_to_be_downloaded_by_hand_says_how(datasets, data_dir, has_directory):
    manual = data_dir / "downloads" / "manual"
    if has_directory:
        save(manual / "something.png", random_pixels(4, 4, 3))
    with pytest.raises(data.DataError, match="by hand") as raised:
        data.load("tfds:manual_pets")
    message = str(raised.value)
    assert str(manual) in message
    assert "`tfds build manual_pets`" in message
    assert message.endswith("Ask the pets for pets.tar.")
    assert "\n" not in message


def test_imagenet_names_the_archives_that_it_needs(data_dir):
    with pytest.raises(data.DataError, match=r"ILSVRC2012_img_train\.tar and ILSVRC2012_img_val"):
        data.load("tfds:imagenet2012")


def test_a_dataset_trains_a_network(datasets):
    recipe = training.Recipe(epochs=1, batch_size=8, learning_rate=1e-3, augment=("shift",))
    result = training.fit(
        linear_classifier(3), "tfds:small_pets", recipe, preprocessing=DEFAULT, verbose=False
    )
    assert np.isfinite(result.history[0]["val_loss"])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("no_such_pets", "knows no data set 'no_such_pets'"),
        ("unlabelled_pets", r"'image' and 'label', and has \['image'\]"),
        ("measured_pets", "label"),
        ("only_train_pets", r"'test' and 'validation'; it has \['train'\]"),
    ],
)
def test_a_dataset_that_is_no_source_is_refused(datasets, dataset, message):
    with pytest.raises(data.DataError, match=message):
        data.load(f"tfds:{dataset}")


def test_a_dataset_of_tfds_itself_can_look_up_its_checksums():
    import tensorflow_datasets as tfds

    # The first thing that a download does.
    assert any("cifar-10" in url for url in tfds.builder_cls("cifar10").url_infos)


# From pixels to network input

NETWORK_INPUTS = {
    "default": DEFAULT,
    "caffe": Preprocessing(mean=(103.939, 116.779, 123.68), std=1, channels="bgr"),
    "imagenet": Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
}


def random_source(count, shape=SHAPE):
    images = random_pixels(count, *shape)
    labels = np.arange(count) % 2
    return data.from_arrays((images, labels), (images, labels), ["a", "b"])


def epoch(split, batch_size=16, shape=SHAPE, preprocessing=DEFAULT, **options):
    batches = data.batches(split, batch_size, shape, preprocessing, **options)
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("preprocessing", NETWORK_INPUTS.values(), ids=NETWORK_INPUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_network_gets_the_preprocessed_pixels(preprocessing, dtype):
    split = random_source(10).train
    images, labels = epoch(split, batch_size=4, preprocessing=preprocessing, dtype=dtype)
    assert (images.dtype, labels.dtype) == (dtype, np.int32)
    np.testing.assert_array_equal(images, preprocessing(random_pixels(10, *SHAPE)).astype(dtype))
    np.testing.assert_array_equal(labels, np.arange(10) % 2)


@pytest.mark.parametrize("augment", [(), ("flip",), ("pad-crop", "flip"), ("random-resized-crop",)])
@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
def test_the_shapes_are_static(augment, remainder):
    batches = data.batches(
        random_source(10).train,
        4,
        SHAPE,
        DEFAULT,
        augment=augment,
        shuffle=(0, 0),
        remainder=remainder,
    )
    batch = None if remainder == "keep" else 4
    images, labels = batches.element_spec
    assert (images.shape, images.dtype) == ((batch, *SHAPE), tf.float32)
    assert (labels.shape, labels.dtype) == ((batch,), tf.int32)


STEPS = ["random-resized-crop", "pad-crop", "shift", "flip", "randaugment", "trivialaugment"]
steps = pytest.mark.parametrize("name", STEPS)


def test_every_step_is_tested_here():
    assert set(data.AUGMENTATIONS) == set(STEPS)


@steps
def test_an_augmentation_depends_on_the_seed_and_the_epoch_alone(name, global_seed):
    split = random_source(24).train
    global_seed(1)
    images, labels = epoch(split, augment=[name], shuffle=(1, 2))
    global_seed(2)
    again, labels_again = epoch(split, augment=[name], shuffle=(1, 2))
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)


@steps
def test_every_epoch_and_every_batch_is_augmented_anew(name):
    # All images are the same, so the order does not matter.
    pixels = np.broadcast_to(random_pixels(*SHAPE), (24, *SHAPE))
    split = data.from_arrays((pixels, np.zeros(24, int)), (pixels, np.zeros(24, int)), "a").train
    first, *others = (
        epoch(split, 8, augment=[name], shuffle=s)[0] for s in ((1, 2), (1, 3), (2, 2))
    )
    for other in others:
        assert not np.array_equal(first, other)
    assert not np.array_equal(first[:8], first[8:16])


@steps
def test_a_label_stays_with_its_augmented_image(name):
    split = random_source(40).train
    _, plain = epoch(split, shuffle=(0, 0))
    _, augmented = epoch(split, augment=[name], shuffle=(0, 0))
    np.testing.assert_array_equal(plain, augmented)


EVERYTHING = data.Augmentation(steps=("pad-crop", "flip"), erase=0.5)


@pytest.mark.parametrize(
    "augment",
    [EVERYTHING, data.Augmentation(steps=("random-resized-crop", "flip"))],
    ids=["draws", "crops"],
)
@pytest.mark.parametrize("workers", [2, 3])
def test_examples_look_the_same_however_many_workers_there_are(augment, workers):
    split = random_source(21).train
    options = {"batch_size": 8, "augment": augment, "shuffle": (3, 1), "remainder": "pad"}
    whole = list(data.batches(split, shape=SHAPE, preprocessing=DEFAULT, **options))
    for worker in range(workers):
        part = list(
            data.batches(
                split, shape=SHAPE, preprocessing=DEFAULT, share=(worker, workers), **options
            )
        )
        assert len(part) == len(whole) == 3
        for ours, all_rows in zip(part, whole, strict=True):
            np.testing.assert_array_equal(ours[0], all_rows[0][worker::workers])
            np.testing.assert_array_equal(ours[1], all_rows[1][worker::workers])


@pytest.mark.parametrize(
    "augment",
    [
        EVERYTHING,
        data.Augmentation(steps=("random-resized-crop", "flip")),
        data.Augmentation(mixup=0.2, cutmix=1.0),
    ],
    ids=["draws", "crops", "mixes"],
)
def test_a_resumed_epoch_goes_on_with_the_batches_of_a_whole_one(augment):
    split = random_source(23).train
    options = {"augment": augment, "shuffle": (3, 1), "classes": 2}
    whole = list(data.batches(split, 8, SHAPE, DEFAULT, **options))
    assert len(whole) == 3
    for start in range(4):
        rest = list(data.batches(split, 8, SHAPE, DEFAULT, start=start, **options))
        assert len(rest) == 3 - start
        for ours, theirs in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])


def test_augmentation_works_on_pixels_and_fills_with_the_mean_of_the_network():
    color = (124, 116, 104)  # ImageNet's mean, rounded; stated as BGR
    preprocessing = Preprocessing(mean=(103.939, 116.779, 123.68), std=1, channels="bgr")
    split = random_source(40).train
    augment = data.Augmentation(steps=("pad-crop", "flip"))
    images, _ = epoch(split, 40, augment=augment, shuffle=(5, 6), preprocessing=preprocessing)
    raw, _ = read(split, 40, shuffle=(5, 6))
    filled = np.pad(raw, [(0, 0), (4, 4), (4, 4), (0, 0)])
    is_border = np.pad(np.zeros(raw.shape[:3], bool), [(0, 0), (4, 4), (4, 4)], constant_values=1)
    filled[is_border] = (124, 117, 104)
    assert np.abs(np.subtract(color, (124, 117, 104))).max() <= 1
    for image, source in zip(images, filled, strict=True):
        windows = [
            preprocessing(source[y : y + 32, x : x + 32][:, ::mirrored])
            for y in range(9)
            for x in range(9)
            for mirrored in (1, -1)
        ]
        assert any(np.array_equal(image, window) for window in windows)


def test_mixed_labels_are_targets():
    split = random_source(10).train
    augment = data.Augmentation(mixup=0.2)
    batches = data.batches(
        split, 4, SHAPE, DEFAULT, augment=augment, shuffle=(0, 0), classes=3, remainder="drop"
    )
    images, targets = batches.element_spec
    assert (images.shape, targets.shape, targets.dtype) == ((4, *SHAPE), (4, 3), tf.float32)
    for _, targets in batches.as_numpy_iterator():
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


def test_mixing_without_the_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"give `classes`.*mixup=0\.2"):
        data.batches(
            source_of(4).train,
            2,
            SHAPE,
            DEFAULT,
            augment=data.Augmentation(mixup=0.2),
            shuffle=(0, 0),
        )


def test_an_unknown_augmentation_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"'pad-crop', 'shift', 'flip'.*Received: .*'rotate'"):
        data.batches(source_of(4).train, 2, SHAPE, DEFAULT, augment=["rotate"], shuffle=(0, 0))


@pytest.mark.parametrize(
    ("augment", "received"),
    [(["flip"], r"augment=\('flip',\)"), (data.Augmentation(erase=0.5), "erase=0.5")],
)
def test_augmentation_without_seeds_is_refused(augment, received):
    with pytest.raises(ValueError, match=f"`shuffle`.*Received: .*{received}"):
        data.batches(source_of(4).train, 2, SHAPE, DEFAULT, augment=augment)

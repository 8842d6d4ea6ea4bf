"""Labelled images from every kind of source, and the pipelines that feed a network."""

import importlib.resources
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_resnet import BadImageError, Preprocessing, data, training

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


IMAGES, LABELS = numbered(6)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, "uint8 images.*Received: dtype=float32"),
        (IMAGES / 255, LABELS, "uint8 images.*Received: dtype=float64"),
        (IMAGES[..., 0], LABELS, r"uint8 images.*Received: .*\(6, 4, 4\)"),
        (IMAGES[:0], LABELS[:0], r"uint8 images.*Received: .*\(0, 4, 4, 3\)"),
        (IMAGES, LABELS[:5], r"one integer label per image.*Received: .*\(5,\) for 6 images"),
        (IMAGES, np.eye(3)[LABELS], r"one integer label per image.*Received: .*\(6, 3\)"),
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
    monkeypatch.setattr("keras_resnet.data.sources._CACHE_BYTES", 0)
    split = load_folder(photographs).train
    assert numbers(split) == list(range(8))
    save(photographs / "train" / "cat" / "000.png", np.full((5, 7, 3), 99, np.uint8))
    assert numbers(split) == [99, *range(1, 8)]


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


@pytest.mark.parametrize(("count", "batch_size", "full"), [(10, 4, 2), (12, 4, 3), (3, 4, 0)])
def test_the_examples_that_do_not_fill_a_batch_can_be_left_out(count, batch_size, full):
    split = source_of(count).train
    batches = split.batches(
        batch_size, (4, 4, 3), DEFAULT, shuffle=(0, 0), drop_remainder=True
    ).as_numpy_iterator()
    seen = [images[:, 0, 0, 0].tolist() for images, _ in batches]
    assert [len(batch) for batch in seen] == [batch_size] * full
    assert len({number for batch in seen for number in batch}) == batch_size * full


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


@pytest.fixture(scope="session")  # their names can be registered once in a process
def datasets(tmp_path_factory):
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
    tfds.core.add_data_dir(directory)
    return {"small_pets": pictures(20), "exact_pets": pictures(6, SHAPE)}


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


@pytest.mark.parametrize("augment", [(), ("flip",), ("pad-crop", "flip"), ("shift",)])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_the_shapes_are_static(augment, drop_remainder):
    batches = data.batches(
        random_source(10).train,
        4,
        SHAPE,
        DEFAULT,
        augment=augment,
        shuffle=(0, 0),
        drop_remainder=drop_remainder,
    )
    batch = 4 if drop_remainder else None
    images, labels = batches.element_spec
    assert (images.shape, images.dtype) == ((batch, *SHAPE), tf.float32)
    assert (labels.shape, labels.dtype) == ((batch,), tf.int32)


augmentations = pytest.mark.parametrize("name", ["flip", "pad-crop", "shift"])


def test_every_augmentation_is_tested_here():
    assert set(data.AUGMENTATIONS) == {"flip", "pad-crop", "shift"}


@augmentations
def test_an_augmentation_depends_on_the_seed_and_the_epoch_alone(name, global_seed):
    split = random_source(40).train
    global_seed(1)
    images, labels = epoch(split, augment=[name], shuffle=(1, 2))
    global_seed(2)
    again, labels_again = epoch(split, augment=[name], shuffle=(1, 2))
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)


@augmentations
@pytest.mark.parametrize("other", [(1, 3), (2, 2)])
def test_every_epoch_is_augmented_anew(name, other):
    # All images are the same, so the order does not matter.
    pixels = np.broadcast_to(random_pixels(*SHAPE), (40, *SHAPE))
    split = data.from_arrays((pixels, np.zeros(40, int)), (pixels, np.zeros(40, int)), "a").train
    first, second = (epoch(split, augment=[name], shuffle=s)[0] for s in ((1, 2), other))
    assert not np.array_equal(first, second)
    # And so is every batch of an epoch.
    assert not np.array_equal(first[:16], first[16:32])


@augmentations
def test_a_label_stays_with_its_augmented_image(name):
    split = random_source(40).train
    _, plain = epoch(split, shuffle=(0, 0))
    _, augmented = epoch(split, augment=[name], shuffle=(0, 0))
    np.testing.assert_array_equal(plain, augmented)


def augmented_and_plain(name, count=250):
    split = random_source(count, (12, 10, 3)).train
    options = {"shape": (12, 10, 3), "shuffle": (0, 0)}
    return epoch(split, augment=[name], **options)[0], epoch(split, **options)[0]


def test_flip_mirrors_about_every_other_image():
    augmented, plain = augmented_and_plain("flip")
    mirrored = plain[:, :, ::-1]
    is_plain = np.all(augmented == plain, axis=(1, 2, 3))
    is_mirrored = np.all(augmented == mirrored, axis=(1, 2, 3))
    np.testing.assert_array_equal(is_plain, ~is_mirrored)
    assert 0.4 < is_mirrored.mean() < 0.6


@pytest.mark.parametrize(
    ("name", "margin", "mode"), [("pad-crop", 4, "constant"), ("shift", 2, "symmetric")]
)
def test_a_crop_is_a_window_of_the_padded_image(name, margin, mode):
    augmented, plain = augmented_and_plain(name)
    # The fill of a constant margin is zero: the middle grey after the default preprocessing.
    padded = np.pad(plain, [(0, 0), (margin, margin), (margin, margin), (0, 0)], mode)
    height, width = plain.shape[1:3]
    matches = np.array(
        [
            [
                np.all(augmented == padded[:, y : y + height, x : x + width], axis=(1, 2, 3))
                for x in range(2 * margin + 1)
            ]
            for y in range(2 * margin + 1)
        ]
    )
    np.testing.assert_array_equal(matches.sum(axis=(0, 1)), 1)
    # Every shift of rows occurs, and every shift of columns, and they are not the same.
    assert matches.any(axis=(1, 2)).all()
    assert matches.any(axis=(0, 2)).all()
    assert matches.any(axis=2).sum() > 4 * margin + 1


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(data.AUGMENTATIONS)),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    channels=st.sampled_from([1, 3]),
    seed=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
)
def test_an_augmentation_keeps_shape_and_type_and_is_repeatable(
    name, height, width, channels, seed
):
    images = tf.constant(random_pixels(3, height, width, channels) / 255)
    step = data.AUGMENTATIONS[name]
    first, second = (step(images, tf.constant(seed, tf.int64)) for _ in range(2))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    np.testing.assert_array_equal(first, second)
    # Nothing is made up: all values are the image's own, or zero.
    assert set(np.unique(first)) <= {0.0, *np.unique(images)}


def test_augmentations_are_applied_in_their_order():
    split = random_source(40).train
    pair = epoch(split, augment=["pad-crop", "flip"], shuffle=(0, 0))[0]
    turned = epoch(split, augment=["flip", "pad-crop"], shuffle=(0, 0))[0]
    crop = epoch(split, augment=["pad-crop"], shuffle=(0, 0))[0]
    is_crop = np.all(pair == crop, axis=(1, 2, 3))
    is_mirrored_crop = np.all(pair == crop[:, :, ::-1], axis=(1, 2, 3))
    assert (is_crop | is_mirrored_crop).all()
    assert is_crop.any()
    assert is_mirrored_crop.any()
    assert not np.array_equal(pair, turned)


def test_an_unknown_augmentation_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"\['flip', 'pad-crop', 'shift'\].*Received: 'rotate'"):
        data.batches(source_of(4).train, 2, SHAPE, DEFAULT, augment=["rotate"], shuffle=(0, 0))


def test_augmentation_without_seeds_is_refused():
    with pytest.raises(ValueError, match=r"`shuffle`.*Received: augment=\('flip',\)"):
        data.batches(source_of(4).train, 2, SHAPE, DEFAULT, augment=["flip"])

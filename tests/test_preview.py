"""The picture of what a network sees: the right images in the right places, with their labels."""

import io
import re

import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image

from keras_resnet import Preprocessing
from keras_resnet.data import Augmentation, DataError, ImageData, from_arrays, load
from keras_resnet.data.preview import describe, preview
from keras_resnet.data.splits import StreamSplit

COLORS = np.array([(200, 30, 40), (20, 180, 60), (40, 50, 220), (240, 230, 20)], np.uint8)
NAMES = ("red", "green", "blue", "yellow")


@pytest.fixture
def drawn(monkeypatch):
    """What `preview` draws, taken from matplotlib: see `Drawn`."""
    figures = []
    save = Figure.savefig

    def spy(self, *arguments, **options):
        figures.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)

    def draw(*arguments, **options):
        preview(*arguments, **options)
        return Drawn(figures.pop(), options.get("columns", 7))

    return draw


class Drawn:
    """A picture: its title, and rows of one image from evaluation and others from training."""

    def __init__(self, figure, columns):
        self.title = figure.texts[0].get_text()
        images = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
        rows = range(0, len(images), columns + 1)
        self.evaluation = np.array([images[i] for i in rows])
        self.training = np.array([images[i + 1 : i + 1 + columns] for i in rows])
        self.names = [figure.axes[i].get_ylabel() for i in rows]
        texts = [axes.get_xlabel() for axes in figure.axes]
        self.shares = [texts[i + 1 : i + 1 + columns] for i in rows]


def plain(count=4, size=8):
    """Images of one color each, which is their class."""
    images = np.broadcast_to(COLORS[:count, None, None], (count, size, size, 3))
    arrays = (np.ascontiguousarray(images), np.arange(count))
    return from_arrays(arrays, arrays, NAMES[:count], name="colors")


def halves(count=2):
    """Images that are darker on their left."""
    images = np.zeros((count, 8, 8, 3), np.uint8)
    images[:, :, 4:] = 255
    arrays = (images, np.arange(count))
    return from_arrays(arrays, arrays, NAMES[:count], name="halves")


def test_every_image_is_drawn_in_its_row_with_the_name_of_its_class(drawn, tmp_path):
    picture = drawn(plain(), Augmentation(), tmp_path / "p.png", shape=(8, 8, 3), columns=3)
    assert sorted(picture.names) == sorted(NAMES)
    for name, evaluation, training in zip(
        picture.names, picture.evaluation, picture.training, strict=True
    ):
        assert (evaluation == COLORS[NAMES.index(name)]).all()
        assert training.shape == (3, 8, 8, 3)
        assert (training == COLORS[NAMES.index(name)]).all()


def test_the_file_holds_the_pixels_enlarged(tmp_path):
    path = preview(plain(), Augmentation(), tmp_path / "p.png", shape=(8, 8, 3), columns=3)
    picture = np.asarray(Image.open(path).convert("RGB"))
    for color in COLORS:
        rows, columns = np.nonzero((picture == color).all(axis=-1))
        # 8 pixels at a scale of 16, four times side by side; the border may fall between pixels.
        assert rows.max() + 1 - rows.min() == pytest.approx(128, abs=2)
        assert len(rows) == pytest.approx(4 * 128**2, rel=0.04)
        assert len(np.unique(columns)) == pytest.approx(4 * 128, rel=0.02)


def test_evaluation_sees_the_image_as_it_is_and_training_what_is_made_of_it(drawn, tmp_path):
    flip = Augmentation(steps=("flip",))
    picture = drawn(halves(), flip, tmp_path / "p.png", shape=(8, 8, 3), columns=8)
    assert (picture.evaluation == halves().train.take(1, (8, 8, 3), Preprocessing())[0]).all()
    is_flipped = picture.training[:, :, 0, 0, 0] == 255
    assert is_flipped.any(axis=1).all()
    assert not is_flipped.all(axis=1).any()
    assert (picture.training[is_flipped] == picture.evaluation[0][:, ::-1]).all()


@pytest.mark.parametrize("name", ["tf", "caffe", "imagenet"])
def test_preprocessing_is_undone(drawn, tmp_path, name):
    picture = drawn(
        plain(),
        Augmentation(),
        tmp_path / "p.png",
        shape=(8, 8, 3),
        preprocessing=Preprocessing.named(name),
        columns=1,
    )
    expected = [COLORS[NAMES.index(name)] for name in picture.names]
    np.testing.assert_array_equal(picture.evaluation[:, 0, 0], expected)
    np.testing.assert_array_equal(picture.training[:, 0, 0, 0], expected)


def test_grey_images_are_drawn_in_grey(drawn, tmp_path):
    picture = drawn(halves(), Augmentation(), tmp_path / "p.png", shape=(8, 8, 1), columns=1)
    assert picture.evaluation.shape == (2, 8, 8)
    assert set(np.unique(picture.evaluation)) == {0, 255}
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert (pixels[..., 0] == pixels[..., 1]).all()


def test_mixed_images_stand_beside_the_one_of_the_larger_share_with_all_shares(drawn, tmp_path):
    mixup = Augmentation(mixup=1)
    picture = drawn(plain(), mixup, tmp_path / "p.png", shape=(8, 8, 3), columns=6)
    mixed = 0
    for name, images, texts in zip(picture.names, picture.training, picture.shares, strict=True):
        for image, text in zip(images, texts, strict=True):
            shares = {n: int(share) / 100 for share, n in re.findall(r"(\d+) % (\w+)", text)}
            assert sum(shares.values()) == pytest.approx(1, abs=0.011)
            assert max(shares, key=shares.get) == name or shares[name] == 0.5
            color = sum(share * COLORS[NAMES.index(n)] for n, share in shares.items())
            # Shares are rounded to a hundredth, of up to 255, twice; and the pixel is rounded.
            np.testing.assert_allclose(image[0, 0], color, rtol=0, atol=3.1)
            mixed += len(shares) > 1
    assert mixed > 6


def test_no_shares_stand_below_images_that_are_not_mixed(drawn, tmp_path):
    flip = Augmentation(steps=("flip",))
    picture = drawn(plain(), flip, tmp_path / "p.png", shape=(8, 8, 3), columns=2)
    assert not any(text for row in picture.shares for text in row)


def test_the_title_says_data_size_recipe_and_what_is_done(drawn, tmp_path):
    augmentation = Augmentation(steps=("flip",), mixup=0.2)
    picture = drawn(
        plain(), augmentation, tmp_path / "p.png", shape=(8, 8, 3), recipe="modern", columns=7
    )
    assert picture.title == "colors, 8 × 8 × 3, recipe modern\nflip, mixup 0.2"


def test_long_names_keep_their_ends_and_long_titles_are_wrapped(drawn, tmp_path):
    arrays = (np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]))
    names = ("a_name_without_an_end", "another_name_of_this_kind")
    data = from_arrays(arrays, arrays, names, name="folder:/" + "deep/" * 40 + "photographs")
    picture = drawn(data, Augmentation(), tmp_path / "p.png", shape=(8, 8, 3), columns=1)
    assert sorted(picture.names) == ["…_without_an_end", "…me_of_this_kind"]
    assert picture.title.startswith("…")
    assert "/photographs, 8 × 8 × 3" in picture.title.replace("\n", "")
    assert all(len(line) < 60 for line in picture.title.splitlines())


def test_the_same_seed_draws_the_same_picture(tmp_path):
    augmentation = Augmentation(steps=("pad-crop",), cutmix=1)
    options = {"shape": (8, 8, 3), "rows": 2, "columns": 2}
    first, again, other = (
        preview(plain(), augmentation, tmp_path / f"{i}.png", seed=seed, **options).read_bytes()
        for i, seed in enumerate([0, 0, 1])
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (3, 3), (20, 4)])
def test_there_are_as_many_rows_as_wanted_or_images(drawn, tmp_path, rows, expected):
    mixing = Augmentation(mixup=1)
    picture = drawn(plain(), mixing, tmp_path / "p.png", shape=(8, 8, 3), rows=rows, columns=3)
    assert picture.training.shape[:2] == (expected, 3)
    assert len(picture.names) == expected


# Sources


def save_halves(root):
    """Class folders of wide pictures, black on their left, white on their right."""
    image = np.zeros((20, 80, 3), np.uint8)
    image[:, 40:] = 255
    for name in NAMES[:2]:
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def is_a_part(images):
    """Whether crops show parts that the center of the wide picture does not have."""
    return any(len(np.unique(image)) == 1 for row in images for image in row)


CROP = Augmentation(steps=("random-resized-crop",), crop_area=(0.05, 0.2))


def test_random_crops_are_cut_out_of_the_whole_file(drawn, tmp_path):
    data = load(f"folder:{save_halves(tmp_path / 'images')}")
    picture = drawn(data, CROP, tmp_path / "p.png", shape=(16, 16, 3), rows=3, columns=6)
    assert (picture.evaluation[:, :, 0] == 0).all()
    assert (picture.evaluation[:, :, -1] == 255).all()
    assert is_a_part(picture.training)


def test_a_stream_is_drawn_likewise(drawn, tmp_path):
    image = np.zeros((20, 80, 3), np.uint8)
    image[:, 40:] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    stream = tf.data.Dataset.from_tensor_slices(([buffer.getvalue()] * 6, [0, 1] * 3))
    split = StreamSplit(6, lambda seed: stream)
    data = ImageData("stream", split, split, NAMES[:2])
    picture = drawn(data, CROP, tmp_path / "p.png", shape=(16, 16, 3), rows=3, columns=6)
    assert set(picture.names) <= set(NAMES[:2])
    assert (picture.evaluation[:, :, -1] == 255).all()
    assert is_a_part(picture.training)


def test_a_file_that_has_vanished_is_named_and_nothing_is_written(tmp_path):
    root = save_halves(tmp_path / "images")
    data = load(f"folder:{root}")
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.png"):
        preview(data, Augmentation(), tmp_path / "p.png", shape=(16, 16, 3))
    assert not (tmp_path / "p.png").exists()


# The file


def test_a_picture_is_not_overwritten_unasked(tmp_path):
    path = tmp_path / "p.png"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="force"):
        preview(plain(), Augmentation(), path, shape=(8, 8, 3), columns=1)
    assert path.read_text() == "old"
    assert preview(plain(), Augmentation(), path, shape=(8, 8, 3), columns=1, force=True) == path
    assert Image.open(path).format == "PNG"


def test_a_failed_drawing_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    path.write_text("old")

    def fail(self, name, **_):
        name.write_text("half a pic")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        preview(plain(), Augmentation(), path, shape=(8, 8, 3), columns=1, force=True)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("out", ["picture", "picture.jpg", "picture.png.txt"])
def test_a_name_that_is_no_png_is_refused(tmp_path, out):
    with pytest.raises(ValueError, match=rf"`out`.*\.png\. Received: .*{out}"):
        preview(plain(), Augmentation(), tmp_path / out)


@pytest.mark.parametrize("argument", ["rows", "columns"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_a_count_that_is_no_positive_number_is_refused(tmp_path, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` .*positive integer.*Received: {value}"):
        preview(plain(), Augmentation(), tmp_path / "p.png", **{argument: value})


# In words


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (Augmentation(), "no augmentation"),
        (Augmentation(steps=("pad-crop", "flip")), "pad-crop, flip"),
        (
            Augmentation(steps=("random-resized-crop", "trivialaugment"), crop_area=(0.25, 1)),
            "random-resized-crop 25 to 100 % of the area, trivialaugment",
        ),
        (Augmentation(steps=("randaugment",), randaugment=(3, 5)), "randaugment 3 × 5"),
        (
            Augmentation(erase=0.25, mixup=0.2, cutmix=1),
            "erase 25 % of the images, mixup 0.2, cutmix 1",
        ),
    ],
)
def test_an_augmentation_is_described_in_a_line(augmentation, words):
    assert describe(augmentation) == words

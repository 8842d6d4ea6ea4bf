"""The pixels and values that a network sees, against timm, torchvision, TensorFlow and Keras.

Where both sides decode and resize with Pillow, every pixel is equal: that is how timm and
torchvision evaluate, for every size, crop, interpolation and shape of picture. Against TensorFlow's
JPEG decoder and its resizing, the largest differences are these, in levels of 0..255, over the JPEG
files below; a test measures every one of them.

                                                photographs    quality 95+    noise
    decoder               resizing              -  lin  cub    -  lin  cub    -  lin  cub
    Pillow                Pillow                0    0    0    0    0    0    0    0    0
    Pillow                TensorFlow            0    1    4    0    1    2    0    1   15
    INTEGER_ACCURATE      Pillow                0    0    0    0    0    0    0    0    0
    INTEGER_ACCURATE      TensorFlow            0    1    4    0    1    2    0    1   15
    TensorFlow's default  Pillow                5    4    5   17   13   14    9    7    8
    TensorFlow's default  TensorFlow            5    4    5   17   13   14    9    7   15
    Pillow                without antialias     0   78   76    0   35   35    0   66   53

"-" is the decoded file before it is resized, "lin" bilinear and "cub" bicubic.

- `INTEGER_ACCURATE` is TensorFlow's decoder with that `dct_method`. Its default is the fast
  transform, which loses the accuracy that files of a high quality ask for.
- Both resize alike, but Pillow rounds and clips to bytes between rows and columns, TensorFlow only
  at the end: that shows where a bicubic kernel overshoots.
- A `tf.data` pipeline therefore stays within 4 levels of ours on photographs if it decodes with
  `INTEGER_ACCURATE` and resizes with `antialias=True`, and within 1 if it resizes bilinearly.

Two things are meant to be different from timm's `Image.open(path).convert("RGB")`: a picture is
turned upright as its EXIF orientation says, and transparent pixels are laid over white.
"""

import io
import json
import math
import types

import keras
import numpy as np
import peers  # noqa: F401  declares the operators that timm's import of torchvision asks for
import pytest
import tensorflow as tf
import timm
import torch
import torchvision
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from timm.data import ImageNetInfo, create_transform, resolve_data_config

from keras_resnet import Preprocessing, imagenet, preprocessing
from keras_resnet.preprocessing import timm_input_shape

INTERPOLATIONS = ["bilinear", "bicubic"]
CROPS = [0.875, 0.9, 0.95, 1.0]


# Pictures


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(height, width):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(np.uint8(255 * np.stack([x, y, (x + y) / 2], axis=-1)))


def drawn(height, width, seed=0):
    """Sky, ground, round things with hard edges, blur and grain: the statistics of a photograph."""
    rng = np.random.default_rng(seed)
    y = np.linspace(0, 1, height)[:, None, None]
    pixels = np.broadcast_to((1 - y) * [90, 140, 220] + y * [180, 160, 90], (height, width, 3))
    picture = Image.fromarray(np.uint8(pixels))
    draw = ImageDraw.Draw(picture)
    for _ in range(40):
        (x, y), radius = rng.integers(0, (width, height)), rng.integers(2, max(3, height // 5))
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        draw.line((x, y, width - x, height - y), fill=color, width=2)
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float64)
    return Image.fromarray(np.uint8(np.clip(blurred + rng.normal(0, 4, blurred.shape), 0, 255)))


def jpeg(picture, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


JPEGS = {
    "photographs": [
        jpeg(drawn(375, 500), quality=85),
        jpeg(drawn(500, 333, seed=1), quality=75, progressive=True),
        jpeg(drawn(768, 1024, seed=2), quality=80, subsampling=0),
        jpeg(drawn(131, 97, seed=3), quality=50, subsampling=1),
        jpeg(drawn(375, 500, seed=10), quality=75, subsampling=0),
        jpeg(gradient(301, 417), quality=85),
    ],
    "quality 95+": [
        jpeg(drawn(375, 500, seed=5), quality=95),
        jpeg(drawn(500, 333, seed=6), quality=95, subsampling=0),
        jpeg(drawn(600, 800, seed=7), quality=100),
    ],
    "noise": [jpeg(noise(260, 311), quality=95), jpeg(noise(400, 300), quality=75)],
}
FILES = [content for files in JPEGS.values() for content in files]


# timm and torchvision: geometry and resizing


def timm_transform(size, crop, interpolation, **options):
    options = {"normalize": False} | options
    return create_transform(
        input_size=(3, *size), is_training=False, crop_pct=crop, interpolation=interpolation,
        **options,
    )  # fmt: skip


def difference(picture, size, crop, interpolation, ours=None):
    """The largest difference of a pixel from timm's, in levels of 0..255."""
    ours = Preprocessing(interpolation=interpolation, crop=crop) if ours is None else ours
    fitted = ours.fit(picture, size).astype(int)
    theirs = timm_transform(size, crop, interpolation)(picture).numpy().transpose(1, 2, 0)
    assert fitted.shape == theirs.shape
    return int(np.abs(fitted - theirs).max())


SHAPES = {
    "landscape": (375, 500),
    "portrait": (500, 375),
    "wide_photo": (360, 640),
    "tall_photo": (640, 359),
    "square": (299, 299),
    "odd": (331, 277),
    "smaller_than_the_network": (120, 90),
    "tiny": (3, 5),
    "as_large_as_the_network": (224, 224),
    "as_large_as_the_resized": (256, 256),
    "one_side_as_large": (256, 401),
    "panorama": (60, 1500),
    "column": (1500, 60),
    "one_row": (1, 37),
    "one_column": (37, 1),
}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_pixel_is_the_one_that_timm_sees(shape, crop, interpolation):
    for picture in (noise(*shape), drawn(*shape), gradient(*shape)):
        for side in (224, 160):
            assert difference(picture, (side, side), crop, interpolation) == 0


@pytest.mark.parametrize("size", [(256, 256), (288, 288), (320, 320), (224, 288), (301, 200)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_pixel_is_the_one_that_timm_sees_at_other_sizes(size, interpolation):
    for shape in ((375, 500), (701, 433), (150, 151)):
        for crop in (0.875, 0.965, 1.0):
            assert difference(drawn(*shape), size, crop, interpolation) == 0


sides = st.integers(1, 120)
long = st.tuples(st.integers(1, 4), st.integers(1, 300))
shapes = st.tuples(sides, sides) | long | long.map(lambda shape: shape[::-1])
target_sides = st.integers(1, 48)
sizes = target_sides.map(lambda side: (side, side)) | st.tuples(target_sides, target_sides)


@given(
    shape=shapes,
    size=sizes,
    crop=st.sampled_from([*CROPS, 0.5, 0.965, 224 / 232]) | st.floats(0.3, 1.0),
    interpolation=st.sampled_from(INTERPOLATIONS),
    seed=st.integers(0, 5),
)
@example(shape=(2, 300), size=(47, 48), crop=0.9, interpolation="bicubic", seed=0)
@example(shape=(81, 25), size=(13, 13), crop=0.95, interpolation="bilinear", seed=0)
def test_no_picture_and_no_target_give_another_pixel_than_timm(
    shape, size, crop, interpolation, seed
):
    assert difference(noise(*shape, seed), size, crop, interpolation) == 0


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resized", [224, 232, 256, 342])
def test_every_pixel_is_the_one_that_torchvision_sees(resized, interpolation):
    mode = torchvision.transforms.InterpolationMode(interpolation)
    theirs = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(resized, mode), torchvision.transforms.CenterCrop(224)]
    )
    ours = Preprocessing(interpolation=interpolation, crop=224 / resized)
    for shape in ((375, 500), (640, 359), (100, 90)):
        picture = drawn(*shape)
        np.testing.assert_array_equal(ours.fit(picture, (224, 224)), np.asarray(theirs(picture)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("content", FILES, ids=range(len(FILES)))
def test_a_jpeg_file_becomes_the_pixels_that_timm_sees(content, interpolation, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    ours = Preprocessing(interpolation=interpolation, crop=0.875)
    with Image.open(path) as picture:
        theirs = timm_transform((224, 224), 0.875, interpolation)(picture.convert("RGB"))
    expected = theirs.numpy().transpose(1, 2, 0)
    for source in (path, content, tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE")):
        np.testing.assert_array_equal(ours.fit(source, (224, 224)), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_pictures_of_other_modes_become_the_pixels_that_timm_sees(mode):
    picture = drawn(100, 140).convert(mode)
    assert difference_of_modes(picture, Preprocessing(crop=0.875)) == 0


def difference_of_modes(picture, ours):
    theirs = timm_transform((64, 64), ours.crop, ours.interpolation)(picture.convert("RGB"))
    fitted = ours.fit(picture, (64, 64)).astype(int)
    return np.abs(fitted - theirs.numpy().transpose(1, 2, 0)).max()


def test_a_turned_picture_is_the_one_that_timm_sees_once_it_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = jpeg(drawn(90, 140), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    fitted = Preprocessing(crop=0.875).fit(content, (64, 64))
    expected = timm_transform((64, 64), 0.875, "bilinear")(upright).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(fitted, expected)


# The comparison can fail: each of these is a mistake that somebody made


def rounded_longer_side(image, size, crop):
    shorter = math.floor(size[0] / crop)
    return tuple(round(side * shorter / min(image)) for side in image)


def strided_resize(picture, resized, box, interpolation):
    filter_ = Image.Resampling[interpolation.upper()]
    return picture.resize(resized[::-1], filter_, reducing_gap=2.0).crop(box)


MISTAKES = {
    "center_rounded_down": ("round", math.floor),
    "resized_side_rounded_to_nearest": ("math", types.SimpleNamespace(floor=round)),
    "longer_side_rounded_to_nearest": ("_resized_size", rounded_longer_side),
    "reducing_gap": ("_resize_and_crop", strided_resize),
}


@pytest.mark.parametrize(("name", "wrong"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_geometry_is_noticed(name, wrong, monkeypatch):
    monkeypatch.setattr(preprocessing, name, wrong, raising=False)
    found = [
        difference(drawn(*shape), (224, 224), crop, "bilinear") > 0
        for shape in ((500, 333), (433, 701), (1000, 1500))
        for crop in (0.875, 0.95)
    ]
    assert any(found)


@pytest.mark.parametrize(
    "wrong", [{"interpolation": "bilinear"}, {"crop": 0.875}, {"crop": 0.955}], ids=str
)
def test_a_wrong_preprocessing_is_noticed(wrong):
    right = {"interpolation": "bicubic", "crop": 0.95}
    for picture in (drawn(375, 500), noise(375, 500)):
        assert difference(picture, (224, 224), 0.95, "bicubic", Preprocessing(**right)) == 0
        assert difference(picture, (224, 224), 0.95, "bicubic", Preprocessing(**right | wrong)) > 5


# TensorFlow's decoder and resizing, as in the table above

DECODERS = {
    "Pillow": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
    "INTEGER_ACCURATE": lambda c: tf.io.decode_jpeg(c, dct_method="INTEGER_ACCURATE").numpy(),
    "TensorFlow's default": lambda content: tf.io.decode_jpeg(content).numpy(),
}


def tensorflow_fit(pixels, interpolation, *, antialias=True):
    """Resize to 256 and crop to 224 as TensorFlow does, rounded to bytes."""
    shape = np.array(pixels.shape[:2])
    height, width = 256 * shape // shape.min()
    resized = tf.image.resize(pixels, (height, width), interpolation, antialias=antialias)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    cut = tf.image.crop_to_bounding_box(resized, top, left, 224, 224)
    return np.uint8(np.clip(np.rint(cut), 0, 255))


def pillow_fit(pixels, interpolation):
    return Preprocessing(interpolation=interpolation, crop=0.875).fit(pixels, (224, 224))


RESIZING = {
    "Pillow": pillow_fit,
    "TensorFlow": tensorflow_fit,
    "without antialias": lambda *args: tensorflow_fit(*args, antialias=False),
}


def stated_differences():
    """`(decoder, resizing, files, levels)` for every entry of the table in the docstring above."""
    stated = []
    for line in __doc__.splitlines():
        decoder, resizing, levels = line[4:26].strip(), line[26:44].strip(), line[44:].split()
        if decoder in DECODERS and resizing in RESIZING:
            for k, files in enumerate(JPEGS):
                stated.append((decoder, resizing, files, [*map(int, levels[3 * k : 3 * k + 3])]))
    return stated


@pytest.mark.parametrize(("decoder", "resizing", "files", "stated"), stated_differences())
def test_the_largest_differences_are_those_that_the_table_states(decoder, resizing, files, stated):
    measured = np.zeros(3, int)
    for content in JPEGS[files]:
        pixels = DECODERS[decoder](content)
        pairs = [(preprocessing.read_image(content), pixels)]
        for way in INTERPOLATIONS:
            pairs.append((pillow_fit(content, way), RESIZING[resizing](pixels, way)))
        levels = [np.abs(ours.astype(int) - theirs).max() for ours, theirs in pairs]
        measured = np.maximum(measured, levels)
    # TensorFlow resizes in float32, whose last bits depend on the machine.
    slack = np.array(stated) - measured
    assert ((slack == 0) | ((slack == 1) & (measured > 0))).all(), measured


def test_every_decoder_and_resizing_is_in_the_table():
    stated = stated_differences()
    assert len({entry[:3] for entry in stated}) == len(stated) == 7 * len(JPEGS)
    accurate = [e for e in stated if e[0] != "TensorFlow's default" and e[1] != "without antialias"]
    assert max(max(levels) for _, _, files, levels in accurate if files != "noise") <= 4


# Values: every byte in every channel, so nothing is left to chance

BYTES = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1).reshape(16, 16, 3)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ],
)
def test_the_values_are_those_that_timm_computes(mean, std):
    config = {"mean": mean, "std": std, "input_size": (3, 16, 16), "crop_pct": 1.0}
    ours = Preprocessing.from_timm_config(config)
    transform = timm_transform((16, 16), 1.0, "bicubic", normalize=True, mean=mean, std=std)
    theirs = transform(Image.fromarray(BYTES)).numpy().transpose(1, 2, 0)
    values = ours(ours.fit(BYTES, (16, 16)))
    assert values.dtype == theirs.dtype == np.float32
    # timm divides by 255 first, and each of its three steps rounds.
    assert np.abs(values - theirs).max() <= 2.5e-7 * np.abs(theirs).max()


KERAS_MODES = {"caffe": "caffe", "tf": "tf", "torch": "imagenet"}  # Keras's name: ours
APPLICATIONS = {
    "caffe": keras.applications.resnet.preprocess_input,
    "tf": keras.applications.resnet_v2.preprocess_input,
    "torch": lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="torch"),
}
# In units of the last place of the largest value, 150, 1 and 2.6: Keras divides by 127.5 or 255
# before it subtracts, and rounds after each step.
ULPS = {"caffe": 0, "tf": 0.5, "torch": 2}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [np.array, tf.constant], ids=["numpy", "tensorflow"])
@pytest.mark.parametrize("mode", KERAS_MODES)
def test_the_values_are_those_that_keras_applications_computes(mode, kind, dtype):
    pixels = kind(BYTES[None].astype(dtype))
    values = np.asarray(Preprocessing.named(KERAS_MODES[mode])(pixels))
    theirs = np.asarray(APPLICATIONS[mode](pixels))  # of a numpy array, in place
    assert values.dtype == theirs.dtype == dtype
    ulp = np.spacing(np.abs(theirs).max())
    assert np.abs(values - theirs).max() <= ULPS[mode] * ulp


@pytest.mark.parametrize("name", ["caffe", "tf", "imagenet"])
def test_another_convention_is_noticed(name):
    values = Preprocessing.named(name)(BYTES)
    for mode, ours in KERAS_MODES.items():
        theirs = APPLICATIONS[mode](BYTES.astype(np.float32))
        assert np.allclose(values, theirs, rtol=0, atol=0.05) == (ours == name)


# Configurations


@pytest.mark.parametrize("use_test_size", [False, True])
def test_every_configuration_that_timm_ships_is_read_as_timm_reads_it(use_test_size):
    refused = set()
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name).to_dict()
        theirs = resolve_data_config(pretrained_cfg=config, use_test_size=use_test_size)
        as_file = json.loads(json.dumps({"architecture": name, "pretrained_cfg": config}))
        try:
            ours = Preprocessing.from_timm_config(as_file, use_test_size=use_test_size)
        except ValueError:
            refused.add((theirs["crop_mode"] != "center", theirs["crop_pct"] > 1))
            assert "resnet" not in name
            continue
        channels, height, width = theirs["input_size"]
        assert timm_input_shape(as_file, use_test_size=use_test_size) == (height, width, channels)
        assert (ours.interpolation, ours.crop) == (theirs["interpolation"], theirs["crop_pct"])
        assert ours.mean == pytest.approx([255 * mean for mean in theirs["mean"]], rel=1e-9)
        assert ours.std == pytest.approx([255 * std for std in theirs["std"]], rel=1e-9)
    assert (False, False) not in refused  # nothing but other crop modes and enlarged crops


def test_a_network_of_timm_sees_what_its_configuration_says():
    config = timm.get_pretrained_cfg("resnet50.a1_in1k").to_dict()
    transform = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    ours, (height, width, _) = Preprocessing.from_timm_config(config), timm_input_shape(config)
    picture = drawn(375, 500)
    values = ours(ours.fit(picture, (height, width)))
    theirs = transform(picture).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(values, theirs, rtol=0, atol=1e-6)


# The classes of ImageNet


def test_the_classes_stand_in_the_order_of_timm():
    theirs = ImageNetInfo("imagenet-1k")
    assert [wnid for wnid, _ in imagenet.classes()] == theirs.label_names()


def test_the_names_are_words_that_wordnet_has_for_the_class():
    theirs = ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True)
    first, others = 0, set()
    for wnid, name in imagenet.classes():
        lemmas = theirs[wnid].split(", ")
        first += name == lemmas[0]
        if name not in lemmas:
            others.add(name)
    assert first == 996
    assert others == {"crane (bird)", "crane (machine)"}


def test_predictions_are_decoded_as_keras_applications_does(monkeypatch):
    # Keras downloads this table when it first needs it.
    index = {str(i): list(entry) for i, entry in enumerate(imagenet.classes())}
    monkeypatch.setattr(keras.src.applications.imagenet_utils, "CLASS_INDEX", index)
    scores = np.random.default_rng(0).random((4, 1000)).astype(np.float32)
    for top in (1, 5, 1000):
        theirs = keras.applications.resnet.decode_predictions(scores, top=top)
        assert imagenet.decode_predictions(scores, top=top) == theirs


def test_torch_tensors_are_decoded():
    scores = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    expected = imagenet.decode_predictions(scores.numpy())
    assert imagenet.decode_predictions(scores) == expected

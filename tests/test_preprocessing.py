"""Pixels to network input, and any image file to pixels."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import run_python

import keras_resnet
from keras_resnet import BadImageError, Preprocessing, read_image
from keras_resnet.preprocessing import timm_input_shape

BYTES = np.arange(256, dtype=np.uint8)

IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
CAFFE = {"mean": (103.939, 116.779, 123.68), "std": 1.0, "channels": "bgr"}
VARIANTS = {
    "default": {},
    "plus_minus_one": {"mean": 127.5, "std": 127.5},
    "imagenet": IMAGENET,
    "caffe": CAFFE,
    "bicubic_crop": {"interpolation": "bicubic", "crop": 0.875},
}

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# Values


def test_the_default_is_exactly_x_over_128_minus_1():
    values = Preprocessing()(BYTES.reshape(16, 16, 1))
    assert values.dtype == np.float32
    # Every byte over 128 is a multiple of 2**-7, so float32 holds the result without rounding.
    exact = BYTES.astype(np.float64) / 128 - 1
    np.testing.assert_array_equal(values.ravel().astype(np.float64), exact)


def test_mean_and_std_go_by_channel():
    pixels = random_pixels(4, 5, 3)
    values = Preprocessing(mean=(10, 20, 30), std=(1, 2, 4))(pixels)
    expected = (pixels.astype(np.float32) - np.float32([10, 20, 30])) / np.float32([1, 2, 4])
    np.testing.assert_array_equal(values, expected)


def test_bgr_turns_the_channels_around_before_the_mean_is_taken():
    pixels = np.zeros((1, 1, 3), np.uint8) + np.uint8([1, 2, 3])
    values = Preprocessing(mean=(0, 0, 1), std=1, channels="bgr")(pixels)
    np.testing.assert_array_equal(values, np.float32([[[3, 2, 0]]]))


@variants
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_numpy_and_tensorflow_give_the_same_bits(variant, dtype, compiled):
    preprocessing = Preprocessing(**variant)
    pixels = random_pixels(2, 16, 16, 3).astype(dtype)
    in_numpy = preprocessing(pixels)
    function = tf.function(preprocessing) if compiled else preprocessing
    in_tensorflow = function(tf.constant(pixels))
    assert isinstance(in_numpy, np.ndarray)
    assert tf.is_tensor(in_tensorflow)
    assert in_numpy.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert in_tensorflow.dtype.name == in_numpy.dtype.name
    assert in_numpy.shape == tuple(in_tensorflow.shape) == pixels.shape
    np.testing.assert_array_equal(in_numpy, in_tensorflow.numpy())


@pytest.mark.parametrize("kind", [np.asarray, tf.constant], ids=["numpy", "tensorflow"])
def test_an_image_with_another_number_of_channels_is_refused(kind):
    grey = kind(random_pixels(4, 4, 1))
    with pytest.raises(ValueError, match="channels"):
        Preprocessing(**IMAGENET)(grey)


class ArrayOfAnotherLibrary:
    """What JAX, PyTorch and others have in common."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return self._values


@variants
def test_arrays_of_other_libraries_give_numpy_arrays(variant):
    pixels = random_pixels(2, 4, 4, 3)
    preprocessing = Preprocessing(**variant)
    values = preprocessing(ArrayOfAnotherLibrary(pixels))
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, preprocessing(pixels))


@pytest.mark.parametrize("library", ["jax.numpy", "torch"])
def test_jax_and_torch_are_read_as_numpy(library):
    library = pytest.importorskip(library)
    pixels = random_pixels(8, 10, 3)
    preprocessing = Preprocessing(**IMAGENET)
    values = preprocessing(library.asarray(pixels))
    assert isinstance(values, np.ndarray)
    np.testing.assert_array_equal(values, preprocessing(pixels))
    fitted = preprocessing.fit(library.asarray(pixels), (5, 5))
    assert isinstance(fitted, np.ndarray)
    np.testing.assert_array_equal(fitted, preprocessing.fit(pixels, (5, 5)))


@pytest.mark.parametrize("kind", [np.asarray, tf.constant], ids=["numpy", "tensorflow"])
@pytest.mark.parametrize("shape", [(), (3,), (4, 4)])
def test_pixels_without_height_width_and_channels_are_refused(kind, shape):
    with pytest.raises(ValueError, match=r"\(\.\.\., height, width, channels\).*Received: shape="):
        Preprocessing()(kind(random_pixels(*shape)))


@pytest.mark.parametrize("static", [None, (None, None, None)], ids=["rank", "sides"])
def test_a_shape_that_is_not_known_yet_is_no_obstacle(static):
    pixels = random_pixels(4, 5, 3)
    preprocessing = Preprocessing(**IMAGENET)
    function = tf.function(preprocessing, input_signature=[tf.TensorSpec(static, tf.uint8)])
    np.testing.assert_array_equal(function(tf.constant(pixels)), preprocessing(pixels))


def test_neither_values_nor_fitting_need_tensorflow_where_no_tensor_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # an import of it would fail
    pixels = random_pixels(9, 9, 3)
    for source in (pixels, ArrayOfAnotherLibrary(pixels)):
        assert Preprocessing()(source).shape == (9, 9, 3)
        assert Preprocessing().fit(source, (4, 4)).shape == (4, 4, 3)


def test_the_pixels_are_left_alone():
    pixels = np.full((2, 2, 3), 7.0, np.float32)
    Preprocessing(**CAFFE)(pixels)
    np.testing.assert_array_equal(pixels, 7)


# Conventions of public checkpoints


def test_the_names_stand_for_what_the_checkpoints_were_trained_on():
    pixels = random_pixels(6, 7, 3).astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = {
        "tf": pixels / 127.5 - 1,
        "caffe": pixels[..., ::-1] - [103.939, 116.779, 123.68],
        "imagenet": (pixels / 255 - mean) / std,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(Preprocessing.named(name)(pixels), values, rtol=0, atol=1e-13)


def test_a_name_can_be_combined_with_other_attributes():
    named = Preprocessing.named("imagenet", crop=0.875, interpolation="bicubic")
    assert named == Preprocessing(**IMAGENET, crop=0.875, interpolation="bicubic")
    assert Preprocessing.named("imagenet") == Preprocessing(**IMAGENET)
    assert Preprocessing.named("caffe", channels="rgb").channels == "rgb"
    with pytest.raises(ValueError, match="`crop`"):
        Preprocessing.named("tf", crop=2)


@pytest.mark.parametrize("name", ["torch", "TF", "", None, ["tf"]])
def test_an_unknown_name_gets_the_list_of_names(name):
    with pytest.raises(ValueError, match=r"'caffe', 'imagenet', 'tf'.*Received: name=") as raised:
        Preprocessing.named(name)
    assert repr(name) in str(raised.value)


# Configurations of timm

TIMM = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 192],
        "test_input_size": [3, 288, 256],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


def timm_config(**changes):
    return {**TIMM, "pretrained_cfg": {**TIMM["pretrained_cfg"], **changes}}


def test_a_timm_configuration_becomes_its_preprocessing():
    expected = Preprocessing.named("imagenet", interpolation="bicubic", crop=0.95)
    for config in (TIMM, TIMM["pretrained_cfg"]):
        assert Preprocessing.from_timm_config(config) == expected
        assert timm_input_shape(config) == (224, 192, 3)


def test_a_timm_configuration_can_be_asked_for_its_test_size():
    at_test_size = Preprocessing.from_timm_config(TIMM, use_test_size=True)
    assert at_test_size == Preprocessing.named("imagenet", interpolation="bicubic", crop=1.0)
    assert timm_input_shape(TIMM, use_test_size=True) == (288, 256, 3)
    # Where there is none, it is the only size there is.
    config = timm_config(test_input_size=None, test_crop_pct=None)
    assert Preprocessing.from_timm_config(config, use_test_size=True).crop == 0.95
    assert timm_input_shape(config, use_test_size=True) == (224, 192, 3)


def test_a_silent_timm_configuration_means_the_defaults_of_timm():
    config = {"mean": (0.5,), "std": (0.5,), "crop_pct": None}
    expected = Preprocessing(mean=127.5, std=127.5, interpolation="bicubic", crop=0.875)
    assert Preprocessing.from_timm_config(config) == expected
    assert timm_input_shape(config) == (224, 224, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_mode", "squash"),
        ("crop_mode", "border"),
        ("crop_mode", ["center"]),
        ("interpolation", "lanczos"),
        ("interpolation", "random"),
        ("interpolation", ""),
        ("interpolation", {}),
        ("crop_pct", 0),
        ("crop_pct", 1.1),
        ("crop_pct", -0.5),
        ("crop_pct", float("nan")),
        ("crop_pct", "0.875"),
        ("crop_pct", True),
        ("mean", 0.5),
        ("mean", "0.5"),
        ("mean", []),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, None]),
        ("mean", ["0.5", 0.5, 0.5]),
        ("mean", [True, 0.5, 0.5]),
        ("mean", [0.5, float("nan"), 0.5]),
        ("mean", [10**400, 0.5, 0.5]),
        ("std", [0.5, 0.5, 0.0]),
        ("std", [0.5, 0.5, -0.5]),
        ("std", [1e-30]),
        ("std", [float("inf")]),
        ("std", {"r": 0.2}),
    ],
)
def test_a_timm_configuration_that_cannot_be_reproduced_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=rf"`{key}`.*Received: .*{key}="):
        Preprocessing.from_timm_config(timm_config(**{key: value}))


def test_a_timm_configuration_for_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"`mean`.* must hold 3 numbers.*Received: mean="):
        Preprocessing.from_timm_config(timm_config(mean=[0.5, 0.5], std=[0.5, 0.5]))
    grey = timm_config(mean=[0.5], std=[0.5], input_size=[1, 28, 28])
    assert Preprocessing.from_timm_config(grey).mean == (127.5,)
    assert timm_input_shape(grey) == (28, 28, 1)


@pytest.mark.parametrize(
    "size", [224, "224", [], [224, 224], [3, 224, 0], [3, 224, -1], [3, 224.0, 224], [True, 8, 8]]
)
def test_a_timm_input_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=r"`input_size`.*Received: input_size="):
        timm_input_shape(timm_config(input_size=size))
    with pytest.raises(ValueError, match=r"`input_size`.*Received: input_size="):
        timm_input_shape(timm_config(test_input_size=size), use_test_size=True)


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        "resnet50",
        {},
        {"pretrained_cfg": None},
        {"pretrained_cfg": []},
        {"architectures": ["ResNetForImageClassification"], "num_channels": 3},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_pct": 0.875},
        {"mean": [0.5] * 3},
    ],
)
def test_what_is_no_timm_configuration_is_refused(config):
    for read in (Preprocessing.from_timm_config, timm_input_shape):
        with pytest.raises(ValueError, match=r"`config` must be .* timm .*Received: "):
            read(config)


numbers = st.integers() | st.floats() | st.just(0.5)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
timm_keys = st.sampled_from([*TIMM["pretrained_cfg"], "pretrained_cfg"])


@given(changes=st.dictionaries(timm_keys, json_values | st.lists(numbers, min_size=1, max_size=3)))
def test_whatever_a_json_file_holds_it_is_a_preprocessing_or_a_value_error(changes):
    try:
        preprocessing = Preprocessing.from_timm_config(timm_config(**changes))
    except ValueError:
        return
    values = preprocessing(BYTES.reshape(16, 16, 1).repeat(3, axis=-1))
    assert np.isfinite(values).all()


# Bytes as an int8 network takes them


def test_the_default_gives_a_network_its_bytes_as_they_are():
    assert Preprocessing().byte_quantization == (1 / 128, 128)


@given(mean=st.integers(0, 255), exponent=st.integers(-4, 10), repeat=st.sampled_from([1, 3]))
def test_a_byte_is_exactly_its_value_where_std_is_a_power_of_two(mean, exponent, repeat):
    std = 2.0**exponent
    preprocessing = Preprocessing(mean=(mean,) * repeat, std=(std,))
    scale, zero_point = preprocessing.byte_quantization
    values = preprocessing(np.stack([BYTES] * 3, axis=-1)[None])
    np.testing.assert_array_equal(values[0, :, 0], scale * (BYTES.astype(np.float64) - zero_point))


@given(mean=st.floats(-300, 300) | st.integers(-5, 300), std=st.floats(0.01, 1000))
def test_a_byte_is_its_value_wherever_there_is_a_byte_quantization(mean, std):
    preprocessing = Preprocessing(mean=mean, std=std)
    quantization = preprocessing.byte_quantization
    assert (quantization is not None) == (float(mean).is_integer() and 0 <= mean <= 255)
    if quantization is not None:
        scale, zero_point = quantization
        assert isinstance(zero_point, int)
        values = preprocessing(BYTES.astype(np.float64).reshape(16, 16, 1)).ravel()
        # x * (1 / std) rounds twice where x / std rounds once: at most 1.5 epsilon apart.
        np.testing.assert_allclose(
            scale * (BYTES.astype(np.float64) - zero_point), values, rtol=2**-51, atol=0
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": 127.5, "std": 127.5},
        {"mean": -1},
        {"mean": 256},
        {"mean": (1, 2, 3)},
        {"std": (1, 2, 3)},
        {"channels": "bgr"},
        IMAGENET,
        CAFFE,
    ],
)
def test_no_byte_quantization_where_bytes_do_not_fall_on_the_grid(fields):
    assert Preprocessing(**fields).byte_quantization is None


# The value object


@variants
def test_a_preprocessing_survives_json(variant):
    preprocessing = Preprocessing(**variant)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_one_number_and_a_sequence_of_one_are_the_same():
    assert (
        Preprocessing(mean=128, std=[128])
        == Preprocessing(mean=np.array([128.0]))
        == Preprocessing()
    )
    assert hash(Preprocessing(mean=128)) == hash(Preprocessing())


def test_a_preprocessing_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocessing().crop = 0.5


def test_from_dict_refuses_an_unknown_field():
    with pytest.raises(ValueError, match="gamma"):
        Preprocessing.from_dict(Preprocessing().to_dict() | {"gamma": 2.2})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", ()),
        ("mean", float("nan")),
        ("mean", (1, float("inf"), 3)),
        ("mean", (1, 2)),  # std has three
        ("mean", None),
        ("mean", "grey"),
        ("mean", [[1, 2], [3, 4]]),
        ("mean", 10**400),
        ("std", ()),
        ("std", 0),
        ("std", (1, -1, 1)),
        ("std", float("inf")),
        ("std", (1, 2)),  # mean has three
        ("std", "wide"),
        ("channels", "rgba"),
        ("channels", None),
        ("interpolation", "nearest"),
        ("crop", 0),
        ("crop", 1.5),
        ("crop", -0.5),
        ("crop", float("nan")),
        ("crop", "all"),
        ("crop", None),
    ],
)
def test_a_bad_field_is_named_with_what_was_received(field, value):
    with pytest.raises((ValueError, TypeError), match=rf"`{field}`.*Received: .*{field}="):
        Preprocessing(**(IMAGENET | {field: value}))


def test_from_model_finds_what_a_model_carries():
    caffe = Preprocessing(**CAFFE)
    model = keras_resnet.ResNet8(preprocessing=caffe)
    assert Preprocessing.from_model(model) is caffe
    assert Preprocessing.from_model(keras_resnet.ResNet8()) == Preprocessing()


def test_from_model_refuses_a_model_that_does_not_say():
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image), name="foreign")
    with pytest.raises(ValueError, match=r"`preprocessing`.*Received: .*'foreign'"):
        Preprocessing.from_model(model)


# Fitting an image to a network


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_of_the_right_size_passes_unchanged(interpolation):
    pixels = random_pixels(20, 30, 3)
    fitted = Preprocessing(interpolation=interpolation).fit(pixels, (20, 30))
    np.testing.assert_array_equal(fitted, pixels)


RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(height, width, axis):
    """Red above or left, blue below or right."""
    pixels = np.empty((height, width, 3), np.uint8)
    first, second = np.array_split(pixels, 2, axis=axis)
    first[:], second[:] = RED, BLUE
    return pixels


@pytest.mark.parametrize(("shape", "axis"), [((20, 60), 1), ((60, 20), 0)])
def test_the_center_is_cut_out_of_the_longer_side(shape, axis):
    fitted = Preprocessing().fit(halves(*shape, axis), (20, 20))
    np.testing.assert_array_equal(fitted, halves(20, 20, axis))


def test_the_shorter_side_is_resized_and_the_center_cut_out():
    pixels = halves(40, 80, axis=1)
    fitted = Preprocessing().fit(pixels, (20, 20))
    resized = Image.fromarray(pixels).resize((40, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fitted, np.asarray(resized)[:, 10:30])
    assert tuple(fitted[10, 0]) == RED
    assert tuple(fitted[10, -1]) == BLUE


def test_the_crop_fraction_cuts_a_margin_off_every_side():
    # The shorter side is resized to 20 / 0.5 = 40, which it is already.
    pixels = random_pixels(40, 50, 3)
    fitted = Preprocessing(crop=0.5).fit(pixels, (20, 20))
    np.testing.assert_array_equal(fitted, pixels[10:30, 15:35])


def test_bicubic_and_bilinear_resize_as_pillow_does():
    pixels = random_pixels(64, 64, 3)
    for name, filter_ in (
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
    ):
        fitted = Preprocessing(interpolation=name).fit(pixels, (24, 24))
        expected = np.asarray(Image.fromarray(pixels).resize((24, 24), filter_))
        np.testing.assert_array_equal(fitted, expected)


@pytest.mark.parametrize(
    ("side", "crop", "resized"),
    [(224, 0.875, 256), (224, 0.95, 235), (288, 0.95, 303), (224, 0.9, 248), (32, 0.9, 35)],
)
def test_the_shorter_side_is_resized_to_size_over_crop_rounded_down(side, crop, resized):
    pixels = random_pixels(resized, resized + 10, 3)
    fitted = Preprocessing(crop=crop).fit(pixels, (side, side))
    top, left = round((resized - side) / 2), round((resized + 10 - side) / 2)
    # No resizing took place, which would have blurred the noise.
    np.testing.assert_array_equal(fitted, pixels[top : top + side, left : left + side])


def test_the_longer_side_is_rounded_down():
    pixels = random_pixels(30, 49, 3)
    fitted = Preprocessing().fit(pixels, (20, 20))
    resized = Image.fromarray(pixels).resize((32, 20), Image.Resampling.BILINEAR)  # 20 / 30 * 49
    np.testing.assert_array_equal(fitted, np.asarray(resized)[:, 6:26])


@pytest.mark.parametrize(("extra", "start"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)])
def test_half_a_pixel_is_cut_off_on_the_even_side(extra, start):
    wide = random_pixels(20, 20 + extra, 3)
    for pixels in (wide, wide.swapaxes(0, 1)):
        fitted = Preprocessing().fit(pixels, (20, 20))
        cut = wide[:, start : start + 20]
        np.testing.assert_array_equal(fitted, cut if pixels is wide else cut.swapaxes(0, 1))


def test_a_target_that_is_not_square_rounds_both_sides_to_the_nearest():
    # floor(18 / 0.9) = 20 by floor(27 / 0.9) = 30; 41 rows to 20 make 70 columns to 34.1.
    pixels = random_pixels(41, 70, 3)
    fitted = Preprocessing(crop=0.9).fit(pixels, (18, 27))
    resized = Image.fromarray(pixels).resize((34, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fitted, np.asarray(resized)[1:19, 4:31])  # from 3.5 on


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (2, 601), (601, 2), (3, 1000), (1000, 3)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_very_long_picture_gives_the_pixels_that_pillow_gives(shape, interpolation):
    pixels = random_pixels(*shape, 3)
    fitted = Preprocessing(interpolation=interpolation, crop=0.875).fit(pixels, (224, 224))
    height, width = (256 * side // min(shape) for side in shape)
    whole = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(fitted, expected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounts")
@pytest.mark.parametrize("shape", [(1, 1500), (1500, 1)])
def test_a_very_long_picture_takes_little_memory(shape):
    # Resized as a whole it would be 256 x 384,000 pixels of 4 bytes: 393 MB.
    program = f"""
import re, numpy, keras_resnet
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1000
fit = keras_resnet.Preprocessing(crop=0.875).fit
fit(numpy.zeros((300, 300, 3), "uint8"), (224, 224))
before = peak()
fit(numpy.zeros({(*shape, 3)}, "uint8"), (224, 224))
print(peak() - before)
"""
    done = run_python(program)
    assert done.stderr == ""
    assert float(done.stdout) < 150


@pytest.mark.parametrize("size", [8, (8,), (8, 8, 3), (0, 8), (8, -1), (8.0, 8), ("8", 8), None])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=r"`size` must be \(height, width\).*Received: size="):
        Preprocessing().fit(random_pixels(9, 9, 3), size)


# Fitting tensors


@pytest.mark.parametrize("shape", [(20, 31, 3), (20, 31, 1), (20, 31, 4), (20, 31)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_a_picture_and_a_tensor_are_fitted_alike(shape, channels):
    pixels = random_pixels(*shape)
    preprocessing = Preprocessing(interpolation="bicubic", crop=0.9)
    expected = preprocessing.fit(pixels, (13, 11), channels)
    picture = Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels)
    np.testing.assert_array_equal(preprocessing.fit(picture, (13, 11), channels), expected)
    for tensor in (tf.constant(pixels), tf.Variable(pixels)):
        fitted = preprocessing.fit(tensor, (13, 11), channels)
        assert tf.is_tensor(fitted)
        assert fitted.dtype == tf.uint8
        np.testing.assert_array_equal(fitted, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_fitted_inside_a_pipeline_with_a_static_shape(channels):
    images = [random_pixels(h, w, 3) for h, w in ((20, 30), (31, 9), (12, 10))]
    preprocessing = Preprocessing(crop=0.875)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=tf.TensorSpec((None, None, 3), tf.uint8)
    ).map(lambda image: preprocessing.fit(image, (12, 10), channels))
    assert dataset.element_spec == tf.TensorSpec((12, 10, channels), tf.uint8)
    for image, fitted in zip(images, dataset, strict=True):
        np.testing.assert_array_equal(fitted, preprocessing.fit(image, (12, 10), channels))


def test_images_are_fitted_inside_a_tf_function():
    pixels = random_pixels(20, 31, 3)
    fit = tf.function(lambda image: Preprocessing().fit(image, (8, 9)))
    np.testing.assert_array_equal(fit(tf.constant(pixels)), Preprocessing().fit(pixels, (8, 9)))


@pytest.mark.parametrize("dtype", ["float32", "int32", "string"])
def test_a_tensor_that_is_not_uint8_is_refused(dtype):
    tensor = tf.zeros((4, 4, 3), dtype) if dtype != "string" else tf.constant("image.png")
    with pytest.raises(TypeError, match=rf"uint8.*Received: dtype={dtype}"):
        Preprocessing().fit(tensor, (4, 4))
    dataset = tf.data.Dataset.from_tensors(tensor)
    with pytest.raises(TypeError, match=rf"uint8.*Received: dtype={dtype}"):
        dataset.map(lambda image: Preprocessing().fit(image, (4, 4)))


def test_a_tensor_of_another_shape_is_refused():
    batch = tf.constant(random_pixels(2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"Received: shape=\(2, 4, 4, 3\)"):
        Preprocessing().fit(batch, (4, 4))
    mapped = tf.data.Dataset.from_tensors(batch).map(lambda x: Preprocessing().fit(x, (4, 4)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Received: shape=\(2, 4, 4, 3\)"):
        list(mapped)


sides = st.integers(1, 80)


@given(
    image=st.tuples(sides, sides),
    size=st.tuples(sides, sides),
    channels=st.sampled_from([1, 3]),
    crop=st.sampled_from([1.0, 0.875, 0.5]),
)
def test_the_fitted_size_is_always_exact(image, size, channels, crop):
    fitted = Preprocessing(crop=crop).fit(np.full((*image, 3), 77, np.uint8), size, channels)
    assert fitted.shape == (*size, channels)
    assert fitted.dtype == np.uint8
    # No border creeps in: an image of one color stays an image of one color.
    np.testing.assert_array_equal(fitted, 77)


def test_a_grey_network_gets_one_channel():
    pixels = np.repeat(random_pixels(9, 7, 1), 3, axis=-1)
    fitted = Preprocessing().fit(pixels, (9, 7), channels=1)
    np.testing.assert_array_equal(fitted, pixels[..., :1])


# Reading images


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def test_a_path_bytes_a_picture_and_an_array_give_the_same_pixels(tmp_path):
    pixels = random_pixels(11, 13, 3)
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.fromarray(pixels)))
    content = path.read_bytes()
    sources = (path, str(path), content, bytearray(content), Image.open(path), pixels)
    for source in sources:
        read = read_image(source)
        assert (read.shape, read.dtype) == ((11, 13, 3), np.uint8)
        np.testing.assert_array_equal(read, pixels)


def test_what_is_read_can_be_written_to_and_is_a_copy():
    pixels = random_pixels(3, 3, 3)
    before = pixels.copy()
    read_image(pixels)[:] = 0
    np.testing.assert_array_equal(pixels, before)


ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # a telephone held upright
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation, form):
    picture = Image.fromarray(random_pixels(16, 32, 3))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(picture, form, exif=exif)
    expected = UPRIGHT[orientation](read_image(encoded(picture, form)))
    np.testing.assert_array_equal(read_image(content), expected)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(content))), expected)
    fitted = Preprocessing().fit(content, expected.shape[:2])
    np.testing.assert_array_equal(fitted, expected)


def test_grey_becomes_three_equal_channels():
    pixels = random_pixels(5, 6)
    expected = np.repeat(pixels[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(pixels))), expected)
    np.testing.assert_array_equal(read_image(pixels), expected)
    np.testing.assert_array_equal(read_image(pixels[..., None]), expected)


def test_one_channel_is_read_as_grey():
    pixels = random_pixels(5, 6)
    np.testing.assert_array_equal(read_image(pixels, channels=1), pixels[..., None])
    white = np.full((2, 2, 3), 255, np.uint8)
    np.testing.assert_array_equal(read_image(white, channels=1), np.full((2, 2, 1), 255))


@pytest.mark.parametrize("channels", [0, 2, 4, None])
def test_only_three_channels_or_one_can_be_read(channels):
    with pytest.raises(ValueError, match=f"Received: channels={channels}"):
        read_image(random_pixels(2, 2, 3), channels)


# Alpha 51 is one fifth: white shows through with 255 * 4 / 5 = 204.
ALPHA = np.uint8([0, 51, 255])


def test_grey_with_alpha_is_laid_over_white():
    pixels = np.stack([np.zeros(3, np.uint8), ALPHA], axis=-1)
    read = read_image(encoded(Image.frombytes("LA", (3, 1), pixels.tobytes())))
    np.testing.assert_array_equal(read, np.uint8([[[255] * 3, [204] * 3, [0] * 3]]))


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "array"])
def test_color_with_alpha_is_laid_over_white(as_file):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[..., 3] = ALPHA
    read = read_image(encoded(Image.fromarray(pixels)) if as_file else pixels)
    np.testing.assert_array_equal(read, np.uint8([[[255, 255, 255], [255, 204, 204], [255, 0, 0]]]))


def palette_picture():
    picture = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    picture.putpalette([*RED, *BLUE, 0, 255, 0])
    return picture


def test_a_palette_is_looked_up():
    read = read_image(encoded(palette_picture()))
    np.testing.assert_array_equal(read, np.uint8([[RED, BLUE, (0, 255, 0)]]))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_transparent_palette_color_is_white(form):
    read = read_image(encoded(palette_picture(), form, transparency=1))
    np.testing.assert_array_equal(read, np.uint8([[RED, (255, 255, 255), (0, 255, 0)]]))


def test_a_transparent_grey_value_is_white():
    picture = Image.fromarray(np.uint8([[10, 20, 30]]))
    read = read_image(encoded(picture, transparency=20))
    np.testing.assert_array_equal(read[..., 0], [[10, 255, 30]])


def test_a_cmyk_jpeg_comes_out_in_its_colors():
    # Cyan, magenta, yellow, black: no cyan and full magenta and yellow make red.
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    read = read_image(encoded(picture, "JPEG", quality=100))
    assert read.shape == (16, 16, 3)
    np.testing.assert_array_equal(read, np.broadcast_to(np.uint8(RED), read.shape))


def test_sixteen_bit_grey_keeps_its_high_byte():
    high = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for values in (high * 256, high * 256 + 255):
        read = read_image(encoded(Image.fromarray(values)))
        np.testing.assert_array_equal(read, np.repeat(high[..., None], 3, axis=-1))
    white = read_image(encoded(Image.fromarray(np.full((2, 2), 65535, np.uint16))))
    np.testing.assert_array_equal(white, np.full((2, 2, 3), 255))


def test_one_bit_is_black_and_white():
    picture = Image.fromarray(np.array([[True, False, True]]))
    assert picture.mode == "1"
    read = read_image(encoded(picture))
    np.testing.assert_array_equal(read[..., 0], [[255, 0, 255]])


def damaged():
    whole = {
        form: encoded(Image.fromarray(random_pixels(32, 32, 3)), form) for form in ("PNG", "JPEG")
    }
    return {
        "truncated.png": whole["PNG"][: len(whole["PNG"]) // 2],
        "truncated.jpg": whole["JPEG"][: len(whole["JPEG"]) // 2],
        "header_only.jpg": whole["JPEG"][:20],
        "text.jpg": b"this is no image\n" * 20,
        "empty.png": b"",
        "no_pixels.pgm": b"P5 0 0 255\n",
    }


@pytest.mark.parametrize(("name", "content"), damaged().items(), ids=damaged())
def test_a_damaged_file_is_refused_by_its_path(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=name):
        read_image(path)
    with pytest.raises(BadImageError, match="bytes"):
        read_image(content)
    with pytest.raises(BadImageError, match=name):
        Preprocessing().fit(path, (8, 8))


def test_a_bad_image_is_a_value_error():
    assert issubclass(BadImageError, ValueError)


def test_a_missing_path_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16, bool])
def test_an_array_of_another_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match=rf"uint8.*Received: dtype={np.dtype(dtype)}"):
        read_image(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("shape", [(3,), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3), (0, 4, 3), (4, 4, 0)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"Received: shape=\(") as raised:
        read_image(np.zeros(shape, np.uint8))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("source", [None, 7, [[0, 0]], {"path": "a.png"}])
def test_an_object_of_another_kind_is_refused(source):
    with pytest.raises(TypeError, match=f"Received: {type(source).__name__}"):
        read_image(source)

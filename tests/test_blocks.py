"""The residual block, its shortcuts, its attention, and the layers that branches are made of."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from keras_resnet import blocks
from keras_resnet.blocks import Toolkit
from keras_resnet.layers import BlurPool, FanOutNormal, ZeroPadShortcut

TOOLKIT = Toolkit()

# JAX computes in float64 only where it is configured to, and Keras synchronizes nothing there.
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
# JAX compiles every operation anew for every shape.
EXAMPLES = 100 if ON_TENSORFLOW else 20
DTYPES = ["float32", "float16", *(["float64"] if ON_TENSORFLOW else [])]


@pytest.fixture(autouse=True)
def _the_same_weights_on_every_run():
    keras.utils.set_random_seed(0)


def random_values(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def run(function, values):
    return ops.convert_to_numpy(function(ops.convert_to_tensor(values)))


def layer_types(model):
    return [type(layer).__name__ for layer in model.layers]


def randomize(model):
    """Fresh scales and offsets are all 1 and 0, so an error in them would cancel."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for variable in layer.weights:
            low, high = (0.5, 1.5) if variable.name in ("gamma", "moving_variance") else (-1, 1)
            variable.assign(rng.uniform(low, high, variable.shape))
    return model


def inbound(model, name):
    """Names of the layers that a layer reads."""
    arguments = model.get_layer(name).input
    arguments = arguments if isinstance(arguments, list) else [arguments]
    return [tensor._keras_history.operation.name for tensor in arguments]


# Convolutions


def reference_convolution(image, kernel, stride, rows_above):
    """One channel in and out, over zeros, the first window starting `rows_above` rows outside."""
    size = kernel.shape[0]
    canvas = np.pad(image, ((rows_above, size), (rows_above, size)))
    steps = range(0, image.shape[0], stride), range(0, image.shape[1], stride)
    return np.array(
        [[(canvas[i : i + size, j : j + size] * kernel).sum() for j in steps[1]] for i in steps[0]]
    )


def convolve(toolkit, image, kernel, stride):
    inputs = keras.Input((*image.shape, 1))
    model = keras.Model(inputs, toolkit.conv(inputs, 1, kernel.shape[0], stride=stride))
    model.layers[-1].set_weights([kernel[:, :, None, None]])
    return run(model, image[None, :, :, None])[0, :, :, 0]


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (8, 9), (32, 33), (1, 2)])
def test_strided_convolutions_pad_symmetrically(shape, size):
    # Small whole numbers: every sum is exact in float32, in whatever order it is taken.
    rng = np.random.default_rng(0)
    image = rng.integers(-9, 9, shape).astype(np.float32)
    kernel = rng.integers(-9, 9, (size, size)).astype(np.float32)
    expected = reference_convolution(image, kernel, 2, rows_above=(size - 1) // 2)
    np.testing.assert_array_equal(convolve(Toolkit(), image, kernel, stride=2), expected)


def rows_behind_output_row_0(toolkit, height):
    """Which pixel rows, counted from 0, and which kernel rows, meet in the first output row."""
    image = np.tile(10.0 ** np.arange(height)[:, None], (1, height)).astype(np.float32)
    kernel = np.zeros((3, 3), np.float32)
    kernel[:, 1] = (1, 2, 3)
    digits = f"{int(convolve(toolkit, image, kernel, stride=2)[0, 1]):d}"
    return {row: int(digit) for row, digit in enumerate(reversed(digits)) if digit != "0"}


def test_the_first_output_row_of_a_strided_convolution_reads_rows_minus_1_to_1():
    # {pixel row: kernel row from 1}; kernel row 1 lies on row -1, which is all zeros.
    assert rows_behind_output_row_0(Toolkit(), 6) == {0: 2, 1: 3}
    assert rows_behind_output_row_0(Toolkit(), 5) == {0: 2, 1: 3}


def test_same_padding_reads_rows_0_to_2_of_an_even_size():
    same = Toolkit(padding="same")
    assert rows_behind_output_row_0(same, 6) == {0: 1, 1: 2, 2: 3}
    assert rows_behind_output_row_0(same, 5) == {0: 2, 1: 3}


def test_without_a_stride_both_paddings_are_one():
    image, kernel = random_values(6, 7), random_values(3, 3)
    symmetric = convolve(Toolkit(), image, kernel, stride=1)
    np.testing.assert_array_equal(symmetric, convolve(Toolkit(padding="same"), image, kernel, 1))


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_a_convolution_rounds_its_size_up(padding, stride, kernel_size):
    for height, width in ((32, 32), (33, 47)):
        y = Toolkit(padding=padding).conv(
            keras.Input((height, width, 3)), 8, kernel_size, stride=stride
        )
        assert y.shape == (None, -(-height // stride), -(-width // stride), 8)


@pytest.mark.parametrize(
    ("kernel_size", "channels", "filters"), [(3, 64, 512), (3, 512, 64), (1, 512, 1024)]
)
def test_kernels_are_normal_with_variance_2_over_the_fan_out(kernel_size, channels, filters):
    inputs = keras.Input((8, 8, channels))
    model = keras.Model(inputs, TOOLKIT.conv(inputs, filters, kernel_size))
    kernel = model.layers[-1].get_weights()[0].astype(np.float64)
    variance = 2 / (kernel_size**2 * filters)
    # Over 290,000 values or more the estimate's own deviation is sqrt(2 / 290,000) = 0.26 %.
    assert kernel.var() == pytest.approx(variance, rel=0.01)
    # 0.27 % of a normal distribution lies beyond three deviations, nothing of a truncated one.
    assert np.mean(np.abs(kernel) > 3 * variance**0.5) == pytest.approx(0.0027, rel=0.15)


@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
def test_a_seed_gives_the_same_kernel_again_in_every_dtype(dtype):
    start = FanOutNormal(seed=7)
    kernel = start((3, 3, 16, 32), dtype=dtype)
    assert keras.backend.standardize_dtype(kernel.dtype) == dtype
    kernel, again = (
        ops.convert_to_numpy(ops.cast(values, "float32"))
        for values in (kernel, start((3, 3, 16, 32), dtype=dtype))
    )
    np.testing.assert_array_equal(kernel, again)
    # Of 4,608 values: the estimate's own deviation is 2 %.
    assert kernel.var() == pytest.approx(2 / (9 * 32), rel=0.1)


def test_every_kernel_starts_from_its_own_seed():
    assert not np.array_equal(*(FanOutNormal()((3, 3, 8, 8)) for _ in range(2)))
    keras.utils.set_random_seed(3)
    first = FanOutNormal()((3, 3, 8, 8))
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(FanOutNormal()((3, 3, 8, 8)), first)


def test_an_initializer_survives_its_configuration():
    start = FanOutNormal(seed=7)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(start))
    assert isinstance(copy, FanOutNormal)
    np.testing.assert_array_equal(copy((1, 1, 4, 8)), start((1, 1, 4, 8)))


def integers(*shape):
    """Small whole numbers: every sum is exact, in whatever order it is taken."""
    return np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (3, 3)])
@pytest.mark.parametrize("dilation", [2, 4])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_a_dilated_kernel_has_zeros_between_its_samples(padding, dilation, size):
    image, kernel = integers(*size), integers(3, 3)
    inputs = keras.Input((*size, 1))
    model = keras.Model(inputs, Toolkit(padding=padding).conv(inputs, 1, 3, dilation=dilation))
    model.layers[-1].set_weights([kernel[:, :, None, None]])
    spread = np.zeros((2 * dilation + 1,) * 2, np.float32)
    spread[::dilation, ::dilation] = kernel
    expected = reference_convolution(image, spread, 1, rows_above=dilation)
    np.testing.assert_array_equal(run(model, image[None, :, :, None])[0, :, :, 0], expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_groups_of_channels_are_convolved_separately(stride):
    x, kernel = integers(2, 7, 8, 6), integers(3, 3, 2, 12)
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, TOOLKIT.conv(inputs, 12, 3, groups=3, stride=stride))
    model.layers[-1].set_weights([kernel])
    part = keras.Input((7, 8, 2))
    alone = keras.Model(part, TOOLKIT.conv(part, 4, 3, stride=stride))
    expected = []
    for group in range(3):
        alone.layers[-1].set_weights([kernel[..., 4 * group : 4 * group + 4]])
        expected.append(run(alone, x[..., 2 * group : 2 * group + 2]))
    np.testing.assert_array_equal(run(model, x), np.concatenate(expected, axis=-1))


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_an_even_kernel_is_refused(kernel_size):
    with pytest.raises(ValueError, match=f"`kernel_size`.*Received: kernel_size={kernel_size}"):
        TOOLKIT.conv(keras.Input((8, 8, 3)), 4, kernel_size)


# Options of the toolkit


@pytest.mark.parametrize(
    ("conv_bias", "bare", "has_bias"),
    [
        ("none", False, False),
        ("none", True, False),
        ("all", False, True),
        ("all", True, True),
        ("bare", False, False),
        ("bare", True, True),
    ],
)
def test_convolutions_have_the_biases_that_they_are_told(conv_bias, bare, has_bias):
    x = keras.Input((4, 4, 3))
    model = keras.Model(x, Toolkit(conv_bias=conv_bias).conv(x, 4, 3, bare=bare))
    assert model.layers[-1].use_bias == has_bias


def test_bare_convolutions_of_a_block_are_those_that_no_normalization_follows():
    toolkit = Toolkit(conv_bias="bare")
    x = keras.Input((4, 4, 3))

    def biased(*, norm_on_projection, last_norm):
        branch = functools.partial(
            blocks.bottleneck_branch, filters=4, last_norm=last_norm, toolkit=toolkit, name="block"
        )
        options = {"norm_on_projection": norm_on_projection, "toolkit": toolkit, "name": "block"}
        model = keras.Model(x, blocks.residual(x, branch, **options))
        convs = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
        assert len(convs) == 4
        return {conv.name for conv in convs if conv.use_bias}

    assert biased(norm_on_projection=True, last_norm=True) == set()
    assert biased(norm_on_projection=False, last_norm=True) == {"block_shortcut_conv"}
    assert biased(norm_on_projection=True, last_norm=False) == {"block_conv3"}
    assert biased(norm_on_projection=False, last_norm=False) == {
        "block_shortcut_conv",
        "block_conv3",
    }


@pytest.mark.parametrize(
    ("channels", "groups"), [(7, 1), (4, 4), (16, 16), (32, 32), (48, 16), (64, 32), (100, 4)]
)
def test_group_normalization_has_as_many_of_32_groups_as_divide_the_channels(channels, groups):
    x = keras.Input((4, 4, channels))
    model = keras.Model(x, Toolkit(norm_kind="group", norm_epsilon=0.25).norm(x))
    (norm,) = model.layers[1:]
    assert isinstance(norm, layers.GroupNormalization)
    assert (norm.groups, norm.epsilon) == (groups, 0.25)
    values = random_values(2, 4, 4, channels)
    grouped = values.reshape(2, 4, 4, groups, channels // groups).astype(np.float64)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 0.25)).reshape(values.shape)
    np.testing.assert_allclose(run(model, values), expected, rtol=1e-4, atol=1e-5)


def test_batch_normalization_has_the_papers_defaults():
    inputs = keras.Input((4, 4, 3))
    norm = keras.Model(inputs, TOOLKIT.norm(inputs)).layers[-1]
    assert (norm.momentum, norm.epsilon, norm.synchronized) == (0.9, 1e-5, False)


def test_the_options_of_a_toolkit_reach_its_layers():
    toolkit = Toolkit(
        conv_bias="all",
        norm_momentum=0.5,
        norm_epsilon=0.25,
        sync_bn=ON_TENSORFLOW,
        dtype="mixed_bfloat16",
    )
    x = keras.Input((8, 8, 4))
    branch = functools.partial(blocks.basic_branch, filters=8, stride=2, toolkit=toolkit)
    model = keras.Model(x, blocks.residual(x, branch, toolkit=toolkit))
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    convs = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert len(norms) == len(convs) == 3
    assert {(n.momentum, n.epsilon, n.synchronized) for n in norms} == {(0.5, 0.25, ON_TENSORFLOW)}
    assert all(conv.use_bias for conv in convs)
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"bfloat16"}
    assert {v.dtype for v in model.variables} == {"float32"}


@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("branch", [blocks.basic_branch, blocks.bottleneck_branch])
def test_a_branch_that_starts_at_zero_is_silent(branch, last_norm):
    x = keras.Input((4, 4, 3))
    options = {"last_norm": last_norm, "name": "b"}
    model = keras.Model(x, branch(x, 8, zero_start=True, **options))
    loud = keras.Model(x, branch(x, 8, **options))
    assert np.all(run(model, random_values(2, 4, 4, 3)) == 0)
    assert np.any(run(loud, random_values(2, 4, 4, 3)) != 0)
    # By one layer alone: the scale of the last normalization, or the last kernel.
    zero = [x.name for x in model.layers if x.weights and not np.any(x.get_weights()[0])]
    last = 2 if branch is blocks.basic_branch else 3
    assert zero == [f"b_norm{last}" if last_norm else f"b_conv{last}"]


# The two branches of the paper


def convolutions(model):
    return [
        (layer.kernel_size[0], layer.strides[0], layer.filters)
        for layer in model.layers
        if isinstance(layer, layers.Conv2D)
    ]


def test_a_basic_branch_is_two_3x3_convolutions_the_first_with_the_stride():
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, blocks.basic_branch(x, 8, stride=2))
    assert convolutions(model) == [(3, 2, 8), (3, 1, 8)]
    assert model.output_shape == (None, 4, 4, 8)
    assert layer_types(model)[-1] == "BatchNormalization"


@pytest.mark.parametrize(
    ("stride_on", "expected"),
    [
        ("1x1", [(1, 2, 8), (3, 1, 8), (1, 1, 32)]),
        ("3x3", [(1, 1, 8), (3, 2, 8), (1, 1, 32)]),
    ],
)
def test_a_bottleneck_strides_where_it_is_told(stride_on, expected):
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, blocks.bottleneck_branch(x, 8, stride=2, stride_on=stride_on))
    assert convolutions(model) == expected
    assert model.output_shape == (None, 4, 4, 32)
    assert layer_types(model)[-1] == "BatchNormalization"


@pytest.mark.parametrize(
    ("filters", "base_width", "cardinality", "inner"),
    [
        (64, 64, 1, 64),  # ResNet-50
        (64, 4, 32, 128),  # ResNeXt-50 32x4d
        (256, 8, 32, 1024),  # ResNeXt-101 32x8d, stage 4
        (64, 64, 8, 512),  # ResNeXt-29 8x64d
        (64, 128, 1, 128),  # Wide ResNet-50-2
        (24, 4, 2, 2),  # rounded down, for each group
    ],
)
def test_the_inside_of_a_bottleneck_is_as_wide_as_its_groups(
    filters, base_width, cardinality, inner
):
    x = keras.Input((4, 4, 8))
    y = blocks.bottleneck_branch(
        x, filters, base_width=base_width, cardinality=cardinality, expansion=2
    )
    model = keras.Model(x, y)
    assert convolutions(model) == [(1, 1, inner), (3, 1, inner), (1, 1, 2 * filters)]
    convs = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert [conv.groups for conv in convs] == [1, cardinality, 1]


def test_the_3x3_convolutions_dilate():
    x = keras.Input((8, 8, 4))
    for branch, rates in ((blocks.basic_branch, [2, 4]), (blocks.bottleneck_branch, [1, 2, 1])):
        model = keras.Model(x, branch(x, 4, dilations=(2, 4)))
        convs = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
        assert [conv.dilation_rate for conv in convs] == [(rate, rate) for rate in rates]


def test_blur_and_dropout_stand_in_front_of_the_last_3x3_or_1x1():
    """Zhang 2019, section 3.2, and Zagoruyko and Komodakis 2016, figure 1 (d)."""
    x = keras.Input((8, 8, 4))
    options = {"stride": 2, "blur": True, "dropout": 0.5, "name": "b"}
    basic = keras.Model(x, blocks.basic_branch(x, 4, **options))
    assert [layer.name for layer in basic.layers[1:]] == [
        *("b_conv1", "b_norm1", "b_act1", "b_blur", "b_dropout", "b_conv2", "b_norm2")
    ]
    bottleneck = keras.Model(x, blocks.bottleneck_branch(x, 4, stride_on="3x3", **options))
    assert [layer.name for layer in bottleneck.layers[1:]] == [
        *("b_conv1", "b_norm1", "b_act1", "b_dropout"),
        *("b_conv2", "b_norm2", "b_act2", "b_blur", "b_conv3", "b_norm3"),
    ]
    for model in (basic, bottleneck):
        assert {stride for _, stride, _ in convolutions(model)} == {1}
        assert model.output_shape[1:3] == (4, 4)
        assert model.get_layer("b_blur").stride == 2
        assert model.get_layer("b_dropout").rate == 0.5


def test_dropout_acts_while_training_alone():
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, blocks.basic_branch(x, 4, dropout=0.5, last_norm=False))
    still = keras.Model(x, blocks.basic_branch(x, 4, last_norm=False))
    still.set_weights(model.get_weights())
    values = random_values(2, 8, 8, 4)
    np.testing.assert_array_equal(run(model, values), run(still, values))
    assert not np.array_equal(
        ops.convert_to_numpy(model(values, training=True)),
        ops.convert_to_numpy(still(values, training=True)),
    )


# Attention


@pytest.mark.parametrize(
    ("channels", "ratio", "inner"),
    [
        (64, 1 / 16, 8),  # at least 8
        (128, 1 / 16, 8),
        (256, 1 / 16, 16),
        (2048, 1 / 16, 128),
        (192, 1 / 16, 16),  # 12 is as far from 8
        (184, 1 / 16, 8),  # 11.5 is nearer to 8
        (256, 1 / 4, 64),
        (24, 1, 24),
    ],
)
def test_squeeze_and_excitation_has_a_multiple_of_8_channels_inside(channels, ratio, inner):
    x = keras.Input((2, 2, channels))
    model = keras.Model(x, blocks.squeeze_excite(x, ratio=ratio, name="se"))
    assert convolutions(model) == [(1, 1, inner), (1, 1, channels)]
    assert model.output_shape == (None, 2, 2, channels)
    # The two matrix products of the paper, with their offsets.
    assert model.count_params() == 2 * channels * inner + inner + channels


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_squeeze_and_excitation_is_its_formula():
    x = keras.Input((5, 4, 16))
    model = randomize(keras.Model(x, blocks.squeeze_excite(x, ratio=0.5, name="se")))
    values = random_values(3, 5, 4, 16)
    w1, b1 = model.get_layer("se_conv1").get_weights()
    w2, b2 = model.get_layer("se_conv2").get_weights()
    squeezed = values.mean((1, 2))
    gates = sigmoid(np.maximum(squeezed @ w1[0, 0] + b1, 0) @ w2[0, 0] + b2)
    assert np.ptp(gates) > 0.5
    expected = values * gates[:, None, None, :]
    np.testing.assert_allclose(run(model, values), expected, rtol=1e-5, atol=1e-6)


# |log2(C) / 2 + 1 / 2|, the paper's equation 12 with gamma = 2 and b = 1, brought to an odd number
# as its authors' code and timm do: cut to a whole one, and an even one made larger by 1. 3.5 gives
# 3, 4 and 4.5 give 5, 5 and 5.5 give 5, 6 gives 7. Less than 64 channels have no fewer neighbors.
@pytest.mark.parametrize(
    ("channels", "size"),
    [(64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7), (16, 3), (1, 3), (96, 3)],
)
def test_efficient_attention_looks_at_as_many_neighbors_as_the_paper_says(channels, size):
    x = keras.Input((2, 2, channels))
    model = keras.Model(x, blocks.efficient_attention(x, name="eca"))
    assert model.get_layer("eca_conv").kernel.shape == (size, 1, 1)
    assert model.count_params() == size
    assert model.output_shape == (None, 2, 2, channels)


def test_efficient_attention_is_its_formula():
    x = keras.Input((5, 4, 128))
    model = randomize(keras.Model(x, blocks.efficient_attention(x, name="eca")))
    values = random_values(3, 5, 4, 128)
    kernel = model.get_layer("eca_conv").get_weights()[0].ravel()
    means = np.pad(values.mean((1, 2)), ((0, 0), (2, 2)))
    gates = sigmoid(np.stack([means[:, n : n + 5] @ kernel for n in range(128)], axis=1))
    assert np.ptp(gates) > 0.1
    expected = values * gates[:, None, None, :]
    np.testing.assert_allclose(run(model, values), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", [blocks.squeeze_excite, blocks.efficient_attention])
def test_attention_takes_open_sizes_and_keeps_the_dtype(attention):
    x = keras.Input((None, None, 32), dtype="bfloat16")
    model = keras.Model(x, attention(x, toolkit=Toolkit(dtype="mixed_bfloat16")))
    assert model.output_shape == (None, None, None, 32)
    assert model.output.dtype == "bfloat16"
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"bfloat16"}


# Stochastic depth


def test_a_dropped_branch_is_whole_or_gone_and_its_mean_is_kept():
    x = keras.Input((3, 2, 4))
    model = keras.Model(x, blocks.drop_branch(x, 0.25))
    images = np.random.default_rng(0).uniform(1, 2, (4000, 3, 2, 4)).astype(np.float32)
    out = ops.convert_to_numpy(model(images, training=True))
    kept = out.any(axis=(1, 2, 3))
    assert np.all(out[~kept] == 0)
    np.testing.assert_allclose(out[kept], images[kept] / 0.75, rtol=1e-6)
    # The standard deviation of the share is sqrt(0.25 x 0.75 / 4000) = 0.7 %.
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    assert out.mean() == pytest.approx(images.mean(), rel=0.04)


def test_nothing_is_dropped_in_inference():
    x = keras.Input((3, 2, 4))
    values = random_values(50, 3, 2, 4)
    np.testing.assert_array_equal(run(keras.Model(x, blocks.drop_branch(x, 0.9)), values), values)


# The residual block


def stack(x, *, filters, depth, stride=1):
    """`depth` convolutions with everything between them, as many as one likes."""
    for n in range(depth):
        x = TOOLKIT.act(x) if n else x
        x = TOOLKIT.norm(TOOLKIT.conv(x, filters, 3, stride=stride if n == 0 else 1))
    return x


def block_and_parts(branch, input_shape=(8, 8, 4), **options):
    """A model from x to F(x), to what the shortcut gives, and to the block's output."""
    x = keras.Input(input_shape)
    branch_outputs = []

    def watched(x):
        branch_outputs.append(branch(x))
        return branch_outputs[-1]

    out = blocks.residual(x, watched, name="block", **options)
    (y,) = branch_outputs
    block = keras.Model(x, out)
    names = [layer.name for layer in block.layers]
    shortcut = block.get_layer("block_add").input[0] if "block_add" in names else x
    return keras.Model(x, {"x": x, "branch": y, "shortcut": shortcut, "out": out})


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_branch_that_keeps_the_shape_is_added_to_its_input(depth):
    model = block_and_parts(functools.partial(stack, filters=4, depth=depth))
    parts = model(random_values(2, 8, 8, 4))
    parts = {name: ops.convert_to_numpy(part) for name, part in parts.items()}
    np.testing.assert_array_equal(parts["out"], np.maximum(parts["branch"] + parts["x"], 0))
    assert len(convolutions(model)) == depth


@pytest.mark.parametrize(
    ("filters", "stride", "depth"),
    [(8, 1, 1), (4, 2, 3), (8, 2, 1), (8, 2, 5), (3, 1, 3), (8, 3, 1)],
)
def test_a_branch_that_changes_the_shape_is_added_to_a_projection(filters, stride, depth):
    model = block_and_parts(functools.partial(stack, filters=filters, depth=depth, stride=stride))
    parts = model(random_values(2, 8, 8, 4))
    parts = {name: ops.convert_to_numpy(part) for name, part in parts.items()}
    np.testing.assert_array_equal(parts["out"], np.maximum(parts["branch"] + parts["shortcut"], 0))
    projection = model.get_layer("block_shortcut_conv")
    assert (projection.kernel_size, projection.strides) == ((1, 1), (stride, stride))
    # The projection takes every stride-th pixel, from the first on, and is normalized.
    pixels = parts["x"][:, ::stride, ::stride]
    kernel = projection.get_weights()[0][0, 0]
    expected = run(model.get_layer("block_shortcut_norm"), pixels @ kernel)
    np.testing.assert_allclose(parts["shortcut"], expected, rtol=1e-5, atol=1e-6)


def test_a_projection_goes_without_normalization_where_it_is_told():
    branch = functools.partial(stack, filters=8, depth=1)
    model = block_and_parts(branch, norm_on_projection=False)
    names = [layer.name for layer in model.layers]
    assert "block_shortcut_conv" in names
    assert "block_shortcut_norm" not in names


SHORTCUTS = {  # option: (kind where the shape is kept, kind where it changes)
    "A": (None, "ZeroPadShortcut"),
    "B": (None, "Conv2D"),
    "C": ("Conv2D", "Conv2D"),
}


@pytest.mark.parametrize("option", SHORTCUTS)
@pytest.mark.parametrize("changes", [False, True])
def test_each_option_has_its_kind_of_shortcut(option, changes):
    branch = functools.partial(stack, filters=8 if changes else 4, depth=2)
    model = block_and_parts(branch, shortcut=option)
    kinds = {
        type(layer).__name__
        for layer in model.layers
        if layer.name in ("block_shortcut", "block_shortcut_conv")
    }
    expected = SHORTCUTS[option][changes]
    assert kinds == ({expected} if expected else set())


def test_without_a_shortcut_the_block_is_plain():
    model = block_and_parts(functools.partial(stack, filters=8, depth=2), shortcut="none")
    parts = model(random_values(2, 8, 8, 4))
    branch, out = (ops.convert_to_numpy(parts[name]) for name in ("branch", "out"))
    np.testing.assert_array_equal(out, np.maximum(branch, 0))
    assert not {"Add", "ZeroPadShortcut"} & set(layer_types(model))
    assert len(convolutions(model)) == 2


def test_without_activation_the_sum_stays_as_it_is():
    model = block_and_parts(functools.partial(stack, filters=4, depth=1), activate=False)
    parts = model(random_values(2, 8, 8, 4))
    parts = {name: ops.convert_to_numpy(part) for name, part in parts.items()}
    np.testing.assert_array_equal(parts["out"], parts["branch"] + parts["x"])
    assert parts["out"].min() < 0


@settings(max_examples=15)
@given(
    size=st.tuples(st.integers(7, 70), st.integers(7, 70)),
    stride=st.integers(1, 3),
    option=st.sampled_from("AB"),
)
def test_the_stride_is_read_from_the_shapes(size, stride, option):
    branch = functools.partial(stack, filters=8, depth=1, stride=stride)
    model = block_and_parts(branch, (*size, 4), shortcut=option)
    if option == "A":
        assert model.get_layer("block_shortcut").stride == stride
    else:
        assert model.get_layer("block_shortcut_conv").strides == (stride, stride)
    expected = (None, -(-size[0] // stride), -(-size[1] // stride), 8)
    assert model.get_layer("block_out").output.shape == expected


@settings(max_examples=10)
@given(size=st.tuples(st.integers(2, 9), st.integers(2, 9)))
def test_a_stride_of_2_is_read_from_the_smallest_images(size):
    branch = functools.partial(stack, filters=4, depth=1, stride=2)
    model = block_and_parts(branch, (*size, 4))
    assert model.get_layer("block_shortcut_conv").strides == (2, 2)


def test_open_sizes_work_where_the_stride_is_given():
    branch = functools.partial(stack, filters=8, depth=1, stride=2)
    model = block_and_parts(branch, (None, None, 4), stride=2)
    for height, width in ((8, 8), (7, 5)):
        out = model(random_values(1, height, width, 4))["out"]
        assert out.shape == (1, -(-height // 2), -(-width // 2), 8)


def test_open_sizes_need_the_stride():
    branch = functools.partial(stack, filters=8, depth=1, stride=2)
    for shape in ((None, None, 4), (8, None, 4)):
        with pytest.raises(ValueError, match=r"`stride`.*Received: "):
            blocks.residual(keras.Input(shape), branch)


@pytest.mark.parametrize(
    "reshape",
    [
        layers.Conv2D(4, 3, strides=(2, 1), padding="same"),
        layers.Conv2D(4, 3, padding="valid"),
        layers.Cropping2D(((0, 1), (0, 0))),
        layers.UpSampling2D(2),
        layers.MaxPooling2D(2),  # 9 to 4, where a stride of 2 rounds up to 5
    ],
    ids=["one side only", "valid", "cropped", "enlarged", "rounded down"],
)
def test_a_branch_must_shrink_both_sides_by_one_whole_stride(reshape):
    with pytest.raises(ValueError, match=r"one whole stride.*Received: "):
        blocks.residual(keras.Input((9, 9, 4)), reshape)


def test_an_unknown_shortcut_is_named():
    with pytest.raises(ValueError, match=r"`shortcut`.*Received: shortcut='D'"):
        blocks.residual(keras.Input((8, 8, 4)), lambda x: x, shortcut="D")


# Pre-activation


def preactivated(x, *, filters, stride=1):
    """A branch whose input is normalized and activated already."""
    return TOOLKIT.conv(x, filters, 3, stride=stride, name="conv1")


def parts_of(branch, values, **options):
    """What enters the block, what its branch and its shortcut give, and what leaves it."""
    model = block_and_parts(branch, values.shape[1:], **options)
    randomize(model)
    parts = {k: ops.convert_to_numpy(v) for k, v in model(values, training=False).items()}
    return model, parts


def activated(model, values):
    """The branch's input, from the block's own layers."""
    return run(model.get_layer("block_pre_act"), run(model.get_layer("block_pre_norm"), values))


PREACT = {"pre_activation": True, "activate": False}


def test_a_preactivated_block_normalizes_activates_convolves_and_adds_its_input_as_it_came():
    values = random_values(2, 8, 8, 4)
    model, parts = parts_of(functools.partial(preactivated, filters=4), values, **PREACT)
    assert [layer.name for layer in model.layers] == [
        model.layers[0].name,
        *("block_pre_norm", "block_pre_act", "conv1", "block_out"),
    ]
    gamma, beta, mean, variance = model.get_layer("block_pre_norm").get_weights()
    normalized = (values - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    expected = np.maximum(normalized, 0)
    np.testing.assert_allclose(activated(model, values), expected, rtol=1e-4, atol=1e-5)
    branch = run(model.get_layer("conv1"), activated(model, values))
    np.testing.assert_array_equal(parts["branch"], branch)
    np.testing.assert_array_equal(parts["out"], branch + values)
    assert parts["out"].min() < 0


@pytest.mark.parametrize("norm_on_projection", [True, False])
@pytest.mark.parametrize(
    ("filters", "stride", "option"), [(8, 1, "B"), (8, 2, "B"), (4, 1, "C"), (4, 2, "C")]
)
def test_a_preactivated_projection_starts_from_the_activated_input(
    filters, stride, option, norm_on_projection
):
    values = random_values(2, 8, 7, 4)
    branch = functools.partial(preactivated, filters=filters, stride=stride)
    options = {"shortcut": option, "norm_on_projection": norm_on_projection, **PREACT}
    model, parts = parts_of(branch, values, **options)
    assert inbound(model, "block_shortcut_conv") == ["block_pre_act"]
    projected = run(model.get_layer("block_shortcut_conv"), activated(model, values))
    if norm_on_projection:
        projected = run(model.get_layer("block_shortcut_norm"), projected)
    else:
        assert "block_shortcut_norm" not in [layer.name for layer in model.layers]
    assert model.get_layer("block_shortcut_conv").strides == (stride, stride)
    np.testing.assert_array_equal(parts["out"], parts["branch"] + projected)


@pytest.mark.parametrize(("filters", "option"), [(8, "A"), (4, "A"), (4, "B")])
def test_a_preactivated_identity_is_subsampled_as_it_came(filters, option):
    """Option A; and option B where the size alone changes, as in keras.applications' V2."""
    values = random_values(2, 8, 7, 4)
    branch = functools.partial(preactivated, filters=filters, stride=2)
    model, parts = parts_of(branch, values, shortcut=option, **PREACT)
    more = (filters - 4) // 2
    identity = np.pad(values[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (more, more)))
    np.testing.assert_array_equal(parts["out"], parts["branch"] + identity)
    assert "block_shortcut_conv" not in [layer.name for layer in model.layers]


def test_a_preactivated_block_may_be_plain():
    values = random_values(2, 8, 8, 4)
    branch = functools.partial(preactivated, filters=8)
    model, parts = parts_of(branch, values, shortcut="none", **PREACT)
    expected = run(model.get_layer("conv1"), activated(model, values))
    np.testing.assert_array_equal(parts["out"], expected)


# Average pooled projections


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (8, 5), (1, 2)])
def test_an_average_pooled_projection_averages_what_is_inside_the_image(size):
    values = random_values(2, *size, 4)
    branch = functools.partial(stack, filters=8, depth=1, stride=2)
    model, parts = parts_of(branch, values, projection="avg")
    height, width = (-(-n // 2) for n in size)
    pooled = np.array(
        [
            [values[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for j in range(width)]
            for i in range(height)
        ]
    ).transpose(2, 0, 1, 3)
    convolution = model.get_layer("block_shortcut_conv")
    assert convolution.strides == (1, 1)
    projected = pooled @ convolution.get_weights()[0][0, 0]
    expected = run(model.get_layer("block_shortcut_norm"), projected)
    np.testing.assert_allclose(parts["shortcut"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_in_a_dilated_block_it_averages_at_every_pixel_and_zeros_beyond_the_edge(size):
    values = random_values(2, *size, 4)
    branch = functools.partial(stack, filters=8, depth=1)
    model, parts = parts_of(branch, values, projection="avg", subsamples=True)
    padded = np.pad(values, ((0, 0), (0, 1), (0, 1), (0, 0)))
    corners = (padded[:, i : i + size[0], j : j + size[1]] for i in (0, 1) for j in (0, 1))
    pooled = sum(corners) / 4
    projected = pooled @ model.get_layer("block_shortcut_conv").get_weights()[0][0, 0]
    expected = run(model.get_layer("block_shortcut_norm"), projected)
    np.testing.assert_allclose(parts["shortcut"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("filters", "options"),
    [
        (8, {"projection": "avg"}),  # nothing is subsampled
        (8, {"projection": "conv", "subsamples": True}),
        (4, {"projection": "avg", "subsamples": True}),  # an identity
        (8, {"projection": "avg", "subsamples": True, "shortcut": "A"}),
    ],
    ids=str,
)
def test_no_other_shortcut_is_averaged(filters, options):
    model = block_and_parts(functools.partial(stack, filters=filters, depth=1), **options)
    assert "AveragePooling2D" not in layer_types(model)
    assert model.get_layer("block_out").output.shape == (None, 8, 8, filters)


# A block of one's own


def test_a_block_of_ones_own_takes_five_lines():
    def separable(x):
        x = layers.DepthwiseConv2D(5, strides=2, padding="same", use_bias=False)(x)
        x = TOOLKIT.act(TOOLKIT.norm(x))
        return TOOLKIT.norm(TOOLKIT.conv(x, 16, 1))

    x = keras.Input((9, 9, 8))
    model = keras.Model(x, blocks.residual(x, separable))
    assert model.output_shape == (None, 5, 5, 16)
    out = run(model, random_values(2, 9, 9, 8))
    assert np.isfinite(out).all()
    assert out.min() == 0


# The shortcut of option A


@settings(max_examples=EXAMPLES)
@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    channels=st.integers(1, 9),
    added=st.integers(0, 9),
    stride=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    training=st.booleans(),
)
def test_a_zero_padded_shortcut_is_subsampling_and_zeros(
    height, width, channels, added, stride, dtype, training
):
    x = random_values(2, height, width, channels).astype(dtype)
    shortcut = ZeroPadShortcut(channels + added, stride, dtype=dtype)
    out = run(functools.partial(shortcut, training=training), x)
    before = added // 2
    expected = np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (before, added - before)))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, expected)
    assert shortcut.compute_output_shape(x.shape) == expected.shape


def test_a_zero_padded_shortcut_halves_and_pads_evenly():
    # The case of the paper's networks, with nothing computed: 4 zeros, 8 channels, 4 zeros.
    x = random_values(2, 32, 32, 8)
    out = run(ZeroPadShortcut(16, 2), x)
    assert out.shape == (2, 16, 16, 16)
    np.testing.assert_array_equal(out[..., 4:12], x[:, ::2, ::2])
    assert np.all(out[..., :4] == 0)
    assert np.all(out[..., 12:] == 0)


def test_a_zero_padded_shortcut_has_no_weights():
    shortcut = ZeroPadShortcut(16, 2)
    shortcut.build((None, 8, 8, 8))
    assert shortcut.weights == []


def test_a_zero_padded_shortcut_passes_the_gradient_on():
    x = keras.Input((4, 4, 2))
    shortcut = ZeroPadShortcut(4, 2)
    gate = layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="ones")
    model = keras.Model(x, shortcut(gate(x)))
    model.compile(keras.optimizers.SGD(1.0), lambda target, y: ops.sum(y))
    model.train_on_batch(np.ones((1, 4, 4, 2), np.float32), np.zeros((1, 2, 2, 4), np.float32))
    # Each of the two channels is kept at 2 x 2 pixels of value 1: 1 - 4 = -3.
    np.testing.assert_array_equal(gate.get_weights()[0].ravel(), [-3, -3])


def test_a_zero_padded_shortcut_keeps_open_sizes_open():
    assert ZeroPadShortcut(16, 2)(keras.Input((None, None, 8))).shape == (None, None, None, 16)


def test_a_zero_padded_shortcut_survives_its_configuration():
    shortcut = ZeroPadShortcut(16, 2, name="shortcut", dtype="mixed_bfloat16")
    config = keras.saving.serialize_keras_object(shortcut)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, ZeroPadShortcut)
    assert copy.get_config() == shortcut.get_config()
    assert (copy.filters, copy.stride, copy.name) == (16, 2, "shortcut")
    assert copy.dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize("stride", [0, -1])
def test_a_zero_padded_shortcut_refuses_a_stride_below_1(stride):
    with pytest.raises(ValueError, match=f"`stride`.*Received: stride={stride}"):
        ZeroPadShortcut(16, stride)


def test_a_zero_padded_shortcut_cannot_drop_channels():
    with pytest.raises(ValueError, match=r"`filters`.*Received: filters=4"):
        ZeroPadShortcut(4)(keras.Input((8, 8, 8)))


# Subsampling behind a blur


def reference_blur(image, stride):
    """The nine weighted neighbors of each pixel, over an image that is mirrored at its edges."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    height, width = image.shape[1:3]
    total = np.zeros_like(image)
    for i, a in enumerate((1, 2, 1)):
        for j, b in enumerate((1, 2, 1)):
            total += a * b * padded[:, i : i + height, j : j + width]
    return (total / 16)[:, ::stride, ::stride]


@settings(max_examples=EXAMPLES)
@given(
    height=st.integers(2, 17),
    width=st.integers(2, 17),
    channels=st.integers(1, 5),
    stride=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_a_blur_is_its_formula_at_every_size(height, width, channels, stride, dtype):
    # Sums of small whole numbers over 16 are exact in every one of the dtypes.
    x = integers(2, height, width, channels)
    blur = BlurPool(stride, dtype=dtype)
    out = run(blur, x.astype(dtype))
    expected = reference_blur(x, stride)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, expected)
    assert blur.compute_output_shape(x.shape) == expected.shape


def test_a_blur_keeps_a_constant_image_up_to_its_edges():
    x = np.full((1, 9, 6, 3), 0.7, np.float32)
    np.testing.assert_allclose(run(BlurPool(2), x), 0.7, rtol=1e-6)


def test_a_blur_takes_the_aliasing_out():
    # Stripes of one pixel: every second pixel is all light; a blur sees their mean.
    stripes = np.tile(np.array([1.0, 0.0], np.float32), 8)[None, None, :, None].repeat(8, axis=1)
    assert np.all(stripes[:, ::2, ::2] == 1)
    np.testing.assert_allclose(run(BlurPool(2), stripes), 0.5, rtol=1e-6)


def test_a_blur_has_no_weights_and_keeps_open_sizes_open():
    x = keras.Input((None, None, 8))
    model = keras.Model(x, BlurPool(2)(x))
    assert model.weights == []
    assert model.output_shape == (None, None, None, 8)
    assert run(model, random_values(1, 5, 6, 8)).shape == (1, 3, 3, 8)


def test_a_blur_computes_in_the_dtype_of_its_policy():
    x = keras.Input((6, 6, 4))
    assert BlurPool(2, dtype="mixed_bfloat16")(x).dtype == "bfloat16"


def test_a_blur_comes_back_from_a_file(tmp_path):
    x = keras.Input((7, 6, 4))
    model = keras.Model(x, BlurPool(3, name="blur", dtype="mixed_bfloat16")(x))
    model.save(tmp_path / "blur.keras")
    loaded = keras.saving.load_model(tmp_path / "blur.keras")
    blur = loaded.get_layer("blur")
    assert isinstance(blur, BlurPool)
    assert blur.get_config() == model.get_layer("blur").get_config()
    assert (blur.stride, blur.dtype_policy.name) == (3, "mixed_bfloat16")
    values = integers(2, 7, 6, 4)
    out = ops.convert_to_numpy(ops.cast(loaded(values), "float32"))
    np.testing.assert_array_equal(out, reference_blur(values, 3))


@pytest.mark.parametrize("stride", [0, -1])
def test_a_blur_refuses_a_stride_below_1(stride):
    with pytest.raises(ValueError, match=f"`stride`.*Received: stride={stride}"):
        BlurPool(stride)


def test_a_blur_needs_to_know_the_channels():
    with pytest.raises(ValueError, match=r"channels.*Received: input shape \(None, 8, 8, None\)"):
        BlurPool(2)(keras.Input((8, 8, None)))

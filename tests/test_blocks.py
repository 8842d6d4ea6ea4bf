"""The residual block, its shortcuts, and the layers that branches are made of."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from keras_resnet import blocks
from keras_resnet.blocks import Toolkit
from keras_resnet.layers import ZeroPadShortcut

TOOLKIT = Toolkit()


@pytest.fixture(autouse=True)
def _the_same_weights_on_every_run():
    keras.utils.set_random_seed(0)


def random_values(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def run(function, values):
    return ops.convert_to_numpy(function(ops.convert_to_tensor(values)))


def layer_types(model):
    return [type(layer).__name__ for layer in model.layers]


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


# Options of the toolkit


def test_batch_normalization_has_the_papers_defaults():
    inputs = keras.Input((4, 4, 3))
    norm = keras.Model(inputs, TOOLKIT.norm(inputs)).layers[-1]
    assert (norm.momentum, norm.epsilon, norm.synchronized) == (0.9, 1e-5, False)


def test_the_options_of_a_toolkit_reach_its_layers():
    toolkit = Toolkit(
        conv_bias="all", norm_momentum=0.5, norm_epsilon=0.25, sync_bn=True, dtype="mixed_bfloat16"
    )
    x = keras.Input((8, 8, 4))
    branch = functools.partial(blocks.basic_branch, filters=8, stride=2, toolkit=toolkit)
    model = keras.Model(x, blocks.residual(x, branch, toolkit=toolkit))
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    convs = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert len(norms) == len(convs) == 3
    assert {(n.momentum, n.epsilon, n.synchronized) for n in norms} == {(0.5, 0.25, True)}
    assert all(conv.use_bias for conv in convs)
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"bfloat16"}
    assert {v.dtype for v in model.variables} == {"float32"}


def test_a_zero_scale_silences_the_branch():
    x = keras.Input((4, 4, 3))
    for branch in (blocks.basic_branch, blocks.bottleneck_branch):
        model = keras.Model(x, branch(x, 8, zero_start=True))
        assert np.all(run(model, random_values(2, 4, 4, 3)) == 0)


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


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize(("filters", "stride"), [(8, 1), (4, 2), (8, 2), (3, 1), (8, 3)])
def test_a_branch_that_changes_the_shape_is_added_to_a_projection(depth, filters, stride):
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


@settings(max_examples=30)
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


@settings(max_examples=20)
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


@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    channels=st.integers(1, 9),
    added=st.integers(0, 9),
    stride=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
)
def test_a_zero_padded_shortcut_is_subsampling_and_zeros(
    height, width, channels, added, stride, dtype
):
    x = random_values(2, height, width, channels).astype(dtype)
    shortcut = ZeroPadShortcut(channels + added, stride, dtype=dtype)
    out = run(shortcut, x)
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

"""The residual block, its branches and their attention, as functions of tensors.

At the heart stands `residual`, the paper's H(x) = F(x) + x for any branch F. Everything else in
this module is a branch, a weighting of its channels, or one of the layers that these are made of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import keras

from keras_resnet.architecture import Shortcut
from keras_resnet.layers import BatchNormalization, BlurPool, FanOutNormal, ZeroPadShortcut

Tensor = Any  # keras.KerasTensor while a model is built; Keras ships no types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toolkit:
    """The convolution, normalization and activation of a network: chosen once, passed down.

    Attributes:
        padding: `"symmetric"`: a k x k convolution pads (k - 1) / 2 zeros on every side, also when
            it strides, as Caffe and PyTorch do. `"same"`: TensorFlow's rule, which with a stride
            puts the odd zero at the end and so shifts the grid by a pixel.
        conv_bias: which convolutions have a bias: `"none"`, `"all"`, or `"bare"`, those that no
            normalization follows.
        norm_kind: `"batch"` or `"group"`.
        norm_momentum: decay of batch normalization's moving statistics.
        norm_epsilon: a normalization's addition to the variance.
        sync_bn: whether batch statistics are taken over all replicas (TensorFlow backend only).
        dtype: a Keras dtype policy, or None for the global one.
    """

    padding: Literal["symmetric", "same"] = "symmetric"
    conv_bias: Literal["none", "all", "bare"] = "none"
    norm_kind: Literal["batch", "group"] = "batch"
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    sync_bn: bool = False
    dtype: Any = None

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bare: bool = False,
        zero: bool = False,
        name: str | None = None,
    ) -> Tensor:
        """A convolution: `(batch, h, w, c)` to `(batch, ceil(h / stride), ceil(w / stride),
        filters)`.

        Its kernel starts from `FanOutNormal`.

        A grouped convolution has no gradient on TensorFlow's CPU; Keras compiles it with XLA there,
        which trains, slowly, under a strategy too.

        Args:
            x: the input.
            filters: output channels, a multiple of `groups`, as the input's are.
            kernel_size: odd height and width of the kernel.
            stride: step between outputs; 1 if it dilates.
            dilation: step between the kernel's samples.
            groups: how many equal parts the channels are split into, convolved separately.
            bare: whether no normalization follows.
            zero: whether the kernel starts at zero.
            name: name of the layer.
        """
        if kernel_size % 2 == 0:
            raise ValueError(
                "Argument `kernel_size` must be odd, so that the padding has two equal sides. "
                f"Received: kernel_size={kernel_size}"
            )
        padding = "same"
        if self.padding == "symmetric" and stride > 1:
            x = self.pad(x, (kernel_size - 1) // 2, name=name)
            padding = "valid"
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=stride,
            padding=padding,
            dilation_rate=dilation,
            groups=groups,
            use_bias=self.conv_bias == "all" or (bare and self.conv_bias == "bare"),
            kernel_initializer="zeros" if zero else FanOutNormal(),
            dtype=self.dtype,
            name=name,
        )(x)

    def pad(self, x: Tensor, margin: int, *, name: str | None = None) -> Tensor:
        """Zeros on every side of an image; nothing for a margin of 0."""
        if margin == 0:
            return x
        return keras.layers.ZeroPadding2D(margin, dtype=self.dtype, name=_join(name, "pad"))(x)

    def norm(self, x: Tensor, *, zero_scale: bool = False, name: str | None = None) -> Tensor:
        """Normalization: over every axis but the channels, or over groups of channels.

        Groups are 32, as in Wu and He 2018, or as many of those as divide the channels.
        """
        start = "zeros" if zero_scale else "ones"
        if self.norm_kind == "group":
            return keras.layers.GroupNormalization(
                groups=math.gcd(32, x.shape[-1]),
                epsilon=self.norm_epsilon,
                gamma_initializer=start,
                dtype=self.dtype,
                name=name,
            )(x)
        return BatchNormalization(
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            gamma_initializer=start,
            synchronized=self.sync_bn,
            dtype=self.dtype,
            name=name,
        )(x)

    def act(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """The rectifier."""
        return keras.layers.ReLU(dtype=self.dtype, name=name)(x)


DEFAULT = Toolkit()


def residual(
    x: Tensor,
    branch: Callable[[Tensor], Tensor],
    *,
    shortcut: Shortcut | str = Shortcut.B,
    projection: Literal["conv", "avg"] = "conv",
    stride: int | None = None,
    subsamples: bool = False,
    pre_activation: bool = False,
    activate: bool = True,
    norm_on_projection: bool = True,
    toolkit: Toolkit = DEFAULT,
    name: str | None = None,
) -> Tensor:
    """The paper's building block: act(F(x) + shortcut(x)), for any branch F.

    He et al. 2015, section 3.2, equations 1 and 2. Where F keeps the shape, the shortcut is the
    identity; where it changes, the input is brought to the new shape as `shortcut` says.

    Args:
        x: `(batch, height, width, channels)`.
        branch: F, a function from `x` to a tensor; as many layers as one likes, without the last
            activation, which follows the sum.
        shortcut: `"A"`, `"B"` (default), `"C"` or `"none"`, as in `Shortcut`. With `"none"` the
            result is act(F(x)), a block of a plain network. Where only the size changes, `"B"`
            subsamples the identity if `pre_activation` is on, as keras.applications' V2 does.
        projection: where a projection strides: `"conv"`, in its 1x1 convolution, or `"avg"`, by 2x2
            average pooling in front of it.
        stride: the branch's stride. None reads the smallest that fits from the shapes, which must
            then be static.
        subsamples: with a stride of 1, that the branch dilates in place of striding; an average
            pooled projection then still averages.
        pre_activation: normalize and activate `x` in front of the branch and of a projection, but
            not of an identity (He et al. 2016, figure 4 (e)).
        activate: whether the rectifier follows the sum (pre-activation networks go without).
        norm_on_projection: whether a projection is normalized.
        toolkit: the layers to build with.
        name: prefix for the names of the layers; None lets Keras name them.

    Returns:
        A tensor with the shape of F(x).

    Raises:
        ValueError: for an unknown shortcut, if the branch does not shrink the image by one whole
            stride, or if the stride cannot be read from the shapes and is not given.
    """
    shortcut = Shortcut.parse(shortcut)
    before = x
    if pre_activation:
        x = toolkit.norm(x, name=_join(name, "pre_norm"))
        x = toolkit.act(x, name=_join(name, "pre_act"))
    y = branch(x)
    last = "add" if activate else "out"
    if shortcut is not Shortcut.NONE:
        stride = _stride_between(x, y) if stride is None else stride
        filters = y.shape[-1]
        widens = x.shape[-1] != filters
        changes_shape = stride != 1 or widens
        projects = widens or (changes_shape and not pre_activation)
        if shortcut is Shortcut.C or (shortcut is Shortcut.B and projects):
            if projection == "avg" and (stride > 1 or subsamples):
                x, stride = _average(x, stride, toolkit, _join(name, "shortcut_pool")), 1
            x = toolkit.conv(
                x,
                filters,
                1,
                stride=stride,
                bare=not norm_on_projection,
                name=_join(name, "shortcut_conv"),
            )
            if norm_on_projection:
                x = toolkit.norm(x, name=_join(name, "shortcut_norm"))
        elif changes_shape:
            x = ZeroPadShortcut(filters, stride, dtype=toolkit.dtype, name=_join(name, "shortcut"))(
                before
            )
        else:
            x = before
        y = keras.layers.Add(dtype=toolkit.dtype, name=_join(name, last))([x, y])
    return toolkit.act(y, name=_join(name, "out")) if activate else y


def _average(x: Tensor, stride: int, toolkit: Toolkit, name: str | None) -> Tensor:
    """2x2 averages; over what is inside the image where it strides, and with zeros at the lower and
    right edge where it does not, as in timm.
    """
    padding = "same"
    if stride == 1:
        margins = ((0, 1), (0, 1))
        x = keras.layers.ZeroPadding2D(margins, dtype=toolkit.dtype, name=_join(name, "pad"))(x)
        padding = "valid"
    return keras.layers.AveragePooling2D(
        2, strides=stride, padding=padding, dtype=toolkit.dtype, name=name
    )(x)


def basic_branch(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    dilations: tuple[int, int] = (1, 1),
    blur: bool = False,
    dropout: float = 0.0,
    last_norm: bool = True,
    zero_start: bool = False,
    toolkit: Toolkit = DEFAULT,
    name: str | None = None,
) -> Tensor:
    """Two 3x3 convolutions, the first with the stride. He et al. 2015, figure 5, left.

    `(batch, h, w, c)` to `(batch, ceil(h / stride), ceil(w / stride), filters)`.

    Args:
        x: the input.
        filters: channels of both convolutions.
        stride: of the first convolution.
        dilations: of the two convolutions.
        blur: stride by a `BlurPool` behind the first activation, not in the convolution.
        dropout: rate of dropout between the convolutions.
        last_norm: whether the last convolution is normalized (not in a pre-activation network).
        zero_start: whether the branch starts as zero.
        toolkit: the layers to build with.
        name: prefix for the names of the layers.
    """
    x = toolkit.conv(
        x,
        filters,
        3,
        stride=1 if blur else stride,
        dilation=dilations[0],
        name=_join(name, "conv1"),
    )
    x = toolkit.norm(x, name=_join(name, "norm1"))
    x = toolkit.act(x, name=_join(name, "act1"))
    if blur:
        x = BlurPool(stride, dtype=toolkit.dtype, name=_join(name, "blur"))(x)
    if dropout:
        x = keras.layers.Dropout(dropout, dtype=toolkit.dtype, name=_join(name, "dropout"))(x)
    return _last_conv(x, filters, 3, 2, dilations[1], last_norm, zero_start, toolkit, name)


def bottleneck_branch(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    stride_on: Literal["1x1", "3x3"] = "1x1",
    expansion: int = 4,
    base_width: int = 64,
    cardinality: int = 1,
    dilations: tuple[int, int] = (1, 1),
    blur: bool = False,
    dropout: float = 0.0,
    last_norm: bool = True,
    zero_start: bool = False,
    toolkit: Toolkit = DEFAULT,
    name: str | None = None,
) -> Tensor:
    """1x1, 3x3 and 1x1 convolutions: narrow, look, widen. He et al. 2015, figure 5, right.

    `(batch, h, w, c)` to `(batch, ceil(h / stride), ceil(w / stride), filters * expansion)`.

    Args:
        x: the input.
        filters: the stage's width. The first two convolutions have
            `floor(filters * base_width / 64) * cardinality` channels.
        stride: of the first convolution (`stride_on="1x1"`, v1) or the second (`"3x3"`, v1.5).
        stride_on: see `stride`.
        expansion: output channels over `filters`.
        base_width: see `filters`.
        cardinality: groups of the 3x3 convolution (Xie et al. 2017, figure 3 (c)).
        dilations: the first is the 3x3 convolution's.
        blur: stride by a `BlurPool` behind the 3x3 convolution's activation, not in it.
        dropout: rate of dropout in front of the 3x3 convolution.
        last_norm: whether the last convolution is normalized (not in a pre-activation network).
        zero_start: whether the branch starts as zero.
        toolkit: the layers to build with.
        name: prefix for the names of the layers.
    """
    inner = filters * base_width // 64 * cardinality
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    x = toolkit.conv(x, inner, 1, stride=first, name=_join(name, "conv1"))
    x = toolkit.norm(x, name=_join(name, "norm1"))
    x = toolkit.act(x, name=_join(name, "act1"))
    if dropout:
        x = keras.layers.Dropout(dropout, dtype=toolkit.dtype, name=_join(name, "dropout"))(x)
    x = toolkit.conv(
        x,
        inner,
        3,
        stride=1 if blur else second,
        dilation=dilations[0],
        groups=cardinality,
        name=_join(name, "conv2"),
    )
    x = toolkit.norm(x, name=_join(name, "norm2"))
    x = toolkit.act(x, name=_join(name, "act2"))
    if blur:
        x = BlurPool(stride, dtype=toolkit.dtype, name=_join(name, "blur"))(x)
    return _last_conv(x, filters * expansion, 1, 3, 1, last_norm, zero_start, toolkit, name)


def _last_conv(
    x: Tensor,
    filters: int,
    kernel_size: int,
    number: int,
    dilation: int,
    normalize: bool,
    zero_start: bool,
    toolkit: Toolkit,
    name: str | None,
) -> Tensor:
    """A branch's last convolution, with its normalization if it has one."""
    x = toolkit.conv(
        x,
        filters,
        kernel_size,
        dilation=dilation,
        bare=not normalize,
        zero=zero_start and not normalize,
        name=_join(name, f"conv{number}"),
    )
    if not normalize:
        return x
    return toolkit.norm(x, zero_scale=zero_start, name=_join(name, f"norm{number}"))


def squeeze_excite(
    x: Tensor, *, ratio: float = 1 / 16, toolkit: Toolkit = DEFAULT, name: str | None = None
) -> Tensor:
    """Weights each channel by what all channels say of the whole image. Hu et al. 2018, figure 3.

    `(batch, h, w, c)` to the same shape. Inside are `ratio * c` channels, rounded to a multiple of
    8 and at least 8, as in timm; from 128 channels on, a ratio of 1/16 gives the paper's.
    """
    channels = x.shape[-1]
    inner = max(8, int(channels * ratio + 4) // 8 * 8)
    options = {"dtype": toolkit.dtype}
    s = keras.layers.GlobalAveragePooling2D(keepdims=True, name=_join(name, "pool"), **options)(x)
    s = keras.layers.Conv2D(inner, 1, name=_join(name, "conv1"), **options)(s)
    s = toolkit.act(s, name=_join(name, "act"))
    s = keras.layers.Conv2D(channels, 1, name=_join(name, "conv2"), **options)(s)
    s = keras.layers.Activation("sigmoid", name=_join(name, "gate"), **options)(s)
    return keras.layers.Multiply(name=_join(name, "scale"), **options)([x, s])


def efficient_attention(
    x: Tensor, *, toolkit: Toolkit = DEFAULT, name: str | None = None
) -> Tensor:
    """Weights each channel by what its neighbors say of the whole image. Wang et al. 2020,
    section 3.2.

    `(batch, h, w, c)` to the same shape. The neighborhood is the odd number at
    `(log2(c) + 1) / 2`, at least 3 (the paper's equation 12 with gamma = 2, b = 1).
    """
    channels = x.shape[-1]
    size = int((math.log2(channels) + 1) / 2)
    size = max(3, size + 1 - size % 2)
    options = {"dtype": toolkit.dtype}
    s = keras.layers.GlobalAveragePooling2D(name=_join(name, "pool"), **options)(x)
    s = keras.layers.Reshape((channels, 1), name=_join(name, "row"), **options)(s)
    s = keras.layers.Conv1D(
        1, size, padding="same", use_bias=False, name=_join(name, "conv"), **options
    )(s)
    s = keras.layers.Activation("sigmoid", name=_join(name, "gate"), **options)(s)
    s = keras.layers.Reshape((1, 1, channels), name=_join(name, "column"), **options)(s)
    return keras.layers.Multiply(name=_join(name, "scale"), **options)([x, s])


def drop_branch(
    x: Tensor, rate: float, *, toolkit: Toolkit = DEFAULT, name: str | None = None
) -> Tensor:
    """Stochastic depth: while training, a whole image's branch is zero with probability `rate`.

    Huang et al. 2016, arXiv:1603.09382. What is kept grows by 1 / (1 - rate), so that inference
    needs no change.
    """
    shape = (None, 1, 1, 1)
    return keras.layers.Dropout(rate, noise_shape=shape, dtype=toolkit.dtype, name=name)(x)


def _join(prefix: str | None, suffix: str) -> str | None:
    return None if prefix is None else f"{prefix}_{suffix}"


def _stride_between(x: Tensor, y: Tensor) -> int:
    """The stride that leads from the size of `x` to the size of `y`."""
    sizes = [(x.shape[axis], y.shape[axis]) for axis in (1, 2)]
    if any(before is None or after is None for before, after in sizes):
        raise ValueError(
            "The stride of a branch can only be read from static heights and widths; give "
            f"`stride`. Received: an input of shape {x.shape}, a branch output of shape {y.shape}"
        )
    stride = max(-(-before // after) for before, after in sizes)
    if any(-(-before // stride) != after for before, after in sizes):
        raise ValueError(
            "A branch must keep the height and width or shrink both by one whole stride, rounding "
            f"up. Received: an input of shape {x.shape}, a branch output of shape {y.shape}"
        )
    return stride

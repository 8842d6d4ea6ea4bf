"""The residual block and its branches, as functions of tensors.

At the bottom stands `residual`, the paper's H(x) = F(x) + x for any branch F. Everything else in
this module is a branch, or one of the three kinds of layer that a branch is made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import keras

from keras_resnet.architecture import Shortcut
from keras_resnet.layers import ZeroPadShortcut

Tensor = Any  # keras.KerasTensor while a model is built; Keras ships no types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toolkit:
    """The convolution, normalization and activation of a network: chosen once, passed down.

    Attributes:
        padding: `"symmetric"`: a k x k convolution pads (k - 1) / 2 zeros on every side, also when
            it strides, as Caffe and PyTorch do. `"same"`: TensorFlow's rule, which with a stride
            puts the odd zero at the end and so shifts the grid by a pixel.
        conv_bias: whether convolutions have a bias.
        norm_momentum: decay of batch normalization's moving statistics.
        norm_epsilon: batch normalization's addition to the variance.
        sync_bn: whether batch statistics are taken over all replicas (TensorFlow backend only).
        dtype: a Keras dtype policy, or None for the global one.
    """

    padding: Literal["symmetric", "same"] = "symmetric"
    conv_bias: bool = False
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    sync_bn: bool = False
    dtype: Any = None

    def conv(
        self, x: Tensor, filters: int, kernel_size: int, *, stride: int = 1, name: str | None = None
    ) -> Tensor:
        """A convolution: `(batch, h, w, c)` to `(batch, ceil(h / stride), ceil(w / stride),
        filters)`.

        Initialized as in He et al. 2015, "Delving Deep into Rectifiers": normal, with variance 2
        over the fan-out.
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
            use_bias=self.conv_bias,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            ),
            dtype=self.dtype,
            name=name,
        )(x)

    def pad(self, x: Tensor, margin: int, *, name: str | None = None) -> Tensor:
        """Zeros on every side of an image; nothing for a margin of 0."""
        if margin == 0:
            return x
        return keras.layers.ZeroPadding2D(margin, dtype=self.dtype, name=_join(name, "pad"))(x)

    def norm(self, x: Tensor, *, zero_scale: bool = False, name: str | None = None) -> Tensor:
        """Batch normalization over every axis but the channels."""
        return keras.layers.BatchNormalization(
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            gamma_initializer="zeros" if zero_scale else "ones",
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
    stride: int | None = None,
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
            result is act(F(x)), a block of a plain network.
        stride: the branch's stride. None reads the smallest that fits from the shapes, which must
            then be static.
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
    y = branch(x)
    if shortcut is not Shortcut.NONE:
        stride = _stride_between(x, y) if stride is None else stride
        filters = y.shape[-1]
        changes_shape = stride != 1 or x.shape[-1] != filters
        if shortcut is Shortcut.C or (shortcut is Shortcut.B and changes_shape):
            x = toolkit.conv(x, filters, 1, stride=stride, name=_join(name, "shortcut_conv"))
            if norm_on_projection:
                x = toolkit.norm(x, name=_join(name, "shortcut_norm"))
        elif shortcut is Shortcut.A and changes_shape:
            x = ZeroPadShortcut(filters, stride, dtype=toolkit.dtype, name=_join(name, "shortcut"))(
                x
            )
        y = keras.layers.Add(dtype=toolkit.dtype, name=_join(name, "add"))([x, y])
    return toolkit.act(y, name=_join(name, "out")) if activate else y


def basic_branch(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    zero_scale: bool = False,
    toolkit: Toolkit = DEFAULT,
    name: str | None = None,
) -> Tensor:
    """Two 3x3 convolutions, the first with the stride. He et al. 2015, figure 5, left.

    `(batch, h, w, c)` to `(batch, ceil(h / stride), ceil(w / stride), filters)`.
    """
    x = toolkit.conv(x, filters, 3, stride=stride, name=_join(name, "conv1"))
    x = toolkit.norm(x, name=_join(name, "norm1"))
    x = toolkit.act(x, name=_join(name, "act1"))
    x = toolkit.conv(x, filters, 3, name=_join(name, "conv2"))
    return toolkit.norm(x, zero_scale=zero_scale, name=_join(name, "norm2"))


def bottleneck_branch(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    stride_on: Literal["1x1", "3x3"] = "1x1",
    expansion: int = 4,
    zero_scale: bool = False,
    toolkit: Toolkit = DEFAULT,
    name: str | None = None,
) -> Tensor:
    """1x1, 3x3 and 1x1 convolutions: narrow, look, widen. He et al. 2015, figure 5, right.

    `(batch, h, w, c)` to `(batch, ceil(h / stride), ceil(w / stride), filters * expansion)`. The
    stride sits on the first convolution (`"1x1"`, v1) or on the second (`"3x3"`, v1.5).
    """
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    x = toolkit.conv(x, filters, 1, stride=first, name=_join(name, "conv1"))
    x = toolkit.norm(x, name=_join(name, "norm1"))
    x = toolkit.act(x, name=_join(name, "act1"))
    x = toolkit.conv(x, filters, 3, stride=second, name=_join(name, "conv2"))
    x = toolkit.norm(x, name=_join(name, "norm2"))
    x = toolkit.act(x, name=_join(name, "act2"))
    x = toolkit.conv(x, filters * expansion, 1, name=_join(name, "conv3"))
    return toolkit.norm(x, zero_scale=zero_scale, name=_join(name, "norm3"))


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

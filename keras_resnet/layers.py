"""The few layers that Keras lacks, and what it does slowly: start values, batch normalization."""

from __future__ import annotations

import concurrent.futures
import math
import os
import random
from typing import Any

import keras
import numpy as np
from keras import ops

_PART = 1 << 19  # values that one stream of random numbers draws


@keras.saving.register_keras_serializable(package="keras_resnet")
class FanOutNormal(keras.initializers.Initializer):
    """Start values for the kernel of a convolution: normal, with variance 2 over the fan-out.

    He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852, section 2.2, the backward
    case. The same as Keras's `VarianceScaling(2, "fan_out", "untruncated_normal")`, but drawn by
    numpy, on all cores: that saves a third of what building a ResNet-50 takes, and one seed gives
    the same network on every backend.

    Args:
        seed: an integer; None takes one from Python's `random`, which
            `keras.utils.set_random_seed` sets.
    """

    def __init__(self, seed: int | None = None):
        self.seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        *window, _, filters = shape
        scale = math.sqrt(2 / (math.prod(window) * filters))
        values = np.empty(shape, np.float64 if dtype == "float64" else np.float32)
        flat = values.reshape(-1)

        def fill(part: int) -> None:
            piece = flat[part * _PART : (part + 1) * _PART]
            bits = np.random.SFC64(np.random.SeedSequence((self.seed, part)))
            np.random.Generator(bits).standard_normal(out=piece, dtype=piece.dtype)
            piece *= scale

        # Each part has a stream of its own, so that any number of threads draws the same.
        parts = range(-(-flat.size // _PART))
        if len(parts) == 1:
            fill(0)
        else:
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(fill, parts))
        return values if dtype in (None, "float32", "float64") else ops.cast(values, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


# What TensorFlow's fused kernel computes in; its statistics are float32 for all of them.
_FUSED_DTYPES = ("float32", "bfloat16", "float16")


@keras.saving.register_keras_serializable(package="keras_resnet")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalization, faster while it trains on TensorFlow.

    Ioffe and Szegedy 2015, arXiv:1502.03167. Arguments, weights, configuration and results are
    those of `keras.layers.BatchNormalization`, which takes the moments of a batch and applies them
    in a dozen operations; here one kernel does it, and another one its gradient. Outputs, gradients
    and moving statistics agree within one rounding of the compute dtype.

    The kernel is called for images `(batch, height, width, channels)` in float32, bfloat16 or
    float16. Everything else is Keras's own code: inference (which a converter therefore folds into
    convolutions as it knows how to), frozen layers, other backends, dtypes, ranks and axes, masks,
    renormalization, and statistics that are taken over several replicas.
    """

    # A class of this name, and none else: Keras writes it into the keys of a weights file.

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if training and self.trainable and mask is None and self._has_kernel(inputs):
            return self._normalize_batch(inputs)
        return super().call(inputs, training=training, mask=mask)

    def _has_kernel(self, inputs: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and not self.renorm
            # Rounded in between by neither the kernel nor the stock layer.
            and keras.backend.standardize_dtype(inputs.dtype) == self.compute_dtype
            and self.compute_dtype in _FUSED_DTYPES
            and not (self.synchronized and _has_several_replicas())
        )

    def _normalize_batch(self, inputs: Any) -> Any:
        """Normalizes with the batch's own moments, and moves the statistics towards them."""
        import tensorflow as tf

        channels = inputs.shape[-1]
        gamma = ops.cast(self.gamma, "float32") if self.scale else tf.ones(channels)
        beta = ops.cast(self.beta, "float32") if self.center else tf.zeros(channels)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, gamma, beta, epsilon=self.epsilon
        )
        # The kernel divides by one less than the number of values (Bessel's correction). Of one
        # value the variance is 0, whatever a device makes of the division by 0.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), "float32")
        variance = tf.math.multiply_no_nan(variance, (count - 1.0) / count)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            before = ops.cast(moving, "float32")
            moving.assign(before * self.momentum + batch * (1.0 - self.momentum))
        return outputs


def _has_several_replicas() -> bool:
    """Whether this is one replica of several, on the TensorFlow backend."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


@keras.saving.register_keras_serializable(package="keras_resnet")
class ZeroPadShortcut(keras.layers.Layer):
    """The parameter-free shortcut across a change of shape: option A of the paper, section 3.3.

    Takes every `stride`-th pixel and adds zero channels, split evenly on both sides (an odd one
    goes to the end). Input `(batch, height, width, channels)`, output
    `(batch, ceil(height / stride), ceil(width / stride), filters)`, same dtype, bit-exact.

    The subsampling is a depthwise 1x1 convolution with a constant kernel of ones, not a strided
    slice: TFLite's XNNPACK delegate has no strided slice, so a slice would cut the exported graph
    into pieces that run on either side of it. The kernel is a constant of the graph, not a weight.
    While training, it is average pooling over single pixels, which picks the same ones: the
    convolution's gradient took a tenth of a ResNet-20's step in bfloat16.

    Args:
        filters: output channels, at least the input's.
        stride: step between the pixels that are kept.

    Raises:
        ValueError: if `filters` is less than the input's channels, or `stride` is less than 1.
    """

    def __init__(self, filters: int, stride: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        if stride < 1:
            raise ValueError(
                f"Argument `stride` must be a positive integer. Received: stride={stride}"
            )
        self.filters = filters
        self.stride = stride

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        if channels is None or channels > self.filters:
            raise ValueError(
                "A zero-padded shortcut can only add channels: `filters` must be at least the "
                f"input's channels. Received: filters={self.filters}, input shape {input_shape}"
            )
        self.kernel = np.ones((1, 1, channels, 1))
        before = (self.filters - channels) // 2
        self.channel_padding = (before, self.filters - channels - before)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        outputs = inputs
        if self.stride > 1 and training:
            outputs = ops.average_pool(inputs, 1, self.stride, data_format="channels_last")
        elif self.stride > 1:
            kernel = ops.convert_to_tensor(self.kernel, dtype=inputs.dtype)
            outputs = ops.depthwise_conv(
                inputs, kernel, strides=self.stride, padding="valid", data_format="channels_last"
            )
        if any(self.channel_padding):
            outputs = ops.pad(outputs, [(0, 0), (0, 0), (0, 0), self.channel_padding])
        return outputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, _ = input_shape
        return (
            batch,
            None if height is None else -(-height // self.stride),
            None if width is None else -(-width // self.stride),
            self.filters,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "stride": self.stride}


@keras.saving.register_keras_serializable(package="keras_resnet")
class BlurPool(keras.layers.Layer):
    """Subsampling behind a blur, against aliasing: Zhang 2019, "Making Convolutional Networks
    Shift-Invariant Again", section 3.2.

    A depthwise convolution with the constant kernel (1, 2, 1) x (1, 2, 1) / 16, whose image is
    mirrored at its edges. Input `(batch, height, width, channels)`, output
    `(batch, ceil(height / stride), ceil(width / stride), channels)`, same dtype; no weights.

    Args:
        stride: step between the pixels that are kept; 1 blurs alone.

    Raises:
        ValueError: if `stride` is less than 1.
    """

    def __init__(self, stride: int = 2, **kwargs: Any):
        super().__init__(**kwargs)
        if stride < 1:
            raise ValueError(
                f"Argument `stride` must be a positive integer. Received: stride={stride}"
            )
        self.stride = stride

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        row = np.array([1.0, 2.0, 1.0]) / 4
        kernel = np.outer(row, row)[:, :, None, None]
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"The channels must be known. Received: input shape {input_shape}")
        self.kernel = np.repeat(kernel, channels, axis=2)

    def call(self, inputs: Any) -> Any:
        padded = ops.pad(inputs, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
        kernel = ops.convert_to_tensor(self.kernel, dtype=inputs.dtype)
        return ops.depthwise_conv(
            padded, kernel, strides=self.stride, padding="valid", data_format="channels_last"
        )

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = input_shape
        return (
            batch,
            None if height is None else -(-height // self.stride),
            None if width is None else -(-width // self.stride),
            channels,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stride": self.stride}

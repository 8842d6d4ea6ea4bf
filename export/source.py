"""The source of an export: a Keras classifier, and images to compare it on."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import Split
from keras_resnet.export.calibration import Calibration
from keras_resnet.models import split_head
from keras_resnet.preprocessing import Preprocessing

_GOLDEN_IMAGES = 32
_BATCH = 64


class SourceNetwork:
    """A float32 classifier with its preprocessing, in the forms that an export needs.

    Attributes:
        preprocessing: how the model's input is made.
        shape: `(height, width, channels)` of the input.
        model: the classifier.
        logits: the same without its softmax.
    """

    def __init__(self, model: keras.Model, preprocessing: Preprocessing):
        self.preprocessing = preprocessing
        self.shape = fixed_input_shape(model)
        self.model = _as_float32(model)
        self.logits = _logits(self.model)
        self._gives_logits = self.logits is self.model
        raw = tf.TensorSpec((None, *self.shape), tf.uint8)
        self._predict = tf.function(self._reference, input_signature=[raw])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Raw uint8 images `(n, h, w, c)` to float32 probabilities `(n, classes)`."""
        parts = [
            self._predict(tf.constant(images[i : i + _BATCH]))
            for i in range(0, len(images), _BATCH)
        ]
        return np.concatenate([part.numpy() for part in parts])

    def _reference(self, pixels: tf.Tensor) -> tf.Tensor:
        # The model as it was given, not the parts that are exported: what is compared with the
        # exported file must not share a mistake with it.
        scores = self.model(self.preprocessing(pixels), training=False)
        return tf.nn.softmax(scores) if self._gives_logits else scores

    def probabilities(self, pixels: tf.Tensor) -> tf.Tensor:
        """Raw pixels of any dtype to probabilities."""
        return tf.nn.softmax(self.pixel_logits(pixels))

    def preprocessed_logits(self, values: tf.Tensor) -> tf.Tensor:
        """Preprocessed values to logits."""
        return self.logits(values, training=False)

    def pixel_logits(self, pixels: tf.Tensor) -> tf.Tensor:
        """Raw pixels to logits."""
        return self.preprocessed_logits(self.preprocessing(pixels))


def golden_images(
    split: Split | None,
    calibration: Calibration | None,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
) -> np.ndarray:
    """Real images where there are any, else smooth noise from a fixed seed."""
    if split is not None:
        return split.take(_GOLDEN_IMAGES, shape, preprocessing, seed=1)[0]
    if calibration is not None:
        return calibration.images[:_GOLDEN_IMAGES]
    height, width, channels = shape
    coarse = np.random.default_rng(1).integers(0, 256, (_GOLDEN_IMAGES, 8, 8, channels), np.uint8)
    rows = np.linspace(0, 7, height).round().astype(int)
    columns = np.linspace(0, 7, width).round().astype(int)
    return coarse[:, rows][:, :, columns]


def fixed_input_shape(model: keras.Model) -> tuple[int, int, int]:
    """`(height, width, channels)`; raises `ValueError` unless the model is such a classifier."""
    if not getattr(model, "inputs", None) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "Only a functional model with one input and one output can be exported. "
            f"Received: {model!r}"
        )
    shape, outputs = tuple(model.input_shape[1:]), model.output_shape
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "A model needs a fixed input size (height, width, channels) to be exported; build it "
            f"with `input_shape`. Received: input shape {model.input_shape}"
        )
    if len(outputs) != 2:
        raise ValueError(
            f"Only a classifier can be exported. Received: a model with the output shape {outputs}"
        )
    return shape


def _logits(model: keras.Model) -> keras.Model:
    """The model up to its logits, also where the softmax is fused into its last layer."""
    network, are_logits = split_head(model)
    if are_logits:
        return network
    last = model.layers[-1]
    if not isinstance(last, keras.layers.Dense):
        raise ValueError(
            "A classifier must end in logits, a softmax, or a dense layer with a softmax. "
            f"Received: the last layer {last.name!r}, a {type(last).__name__}"
        )
    dense = keras.layers.Dense(last.units, use_bias=last.use_bias, name="logits")
    network = keras.Model(model.inputs, dense(last.input))
    dense.set_weights(last.get_weights())
    return network


def _as_float32(model: keras.Model) -> keras.Model:
    """The model itself, or a copy of it in float32 if it computes in another type."""
    if all(layer.dtype_policy.name == "float32" for layer in model.layers):
        return model
    copy = model.__class__.from_config(_with_float32(model.get_config()))
    copy.set_weights(model.get_weights())
    return copy


def _with_float32(config: Any) -> Any:
    """A configuration with every dtype policy replaced."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and value is not None else _with_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_with_float32(value) for value in config)
    return config

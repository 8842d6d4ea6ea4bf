"""The source of an export: a Keras network, and images to compare it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import Split
from keras_resnet.export.calibration import Calibration
from keras_resnet.models import split_head
from keras_resnet.preprocessing import Preprocessing

_GOLDEN_IMAGES = 32
_BATCH = 64

OutputKind = Literal["probabilities", "logits", "features"]
OUTPUT_KINDS: tuple[OutputKind, ...] = ("probabilities", "logits", "features")


class SourceNetwork:
    """A float32 network with its preprocessing, in the forms that an export needs.

    Attributes:
        preprocessing: how the model's input is made.
        shape: `(height, width, channels)` of the input.
        model: the network.
        kind: what an exported file gives.
        outputs: names of what it gives: `("probabilities",)`, `("logits",)`, or those of the
            features.
        logits: a classifier without its softmax; of a network that gives features, all of it.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocessing: Preprocessing,
        outputs: OutputKind = "probabilities",
    ):
        """Takes a network apart.

        Args:
            model: a classifier, or a network that gives features.
            preprocessing: how its input is made.
            outputs: what an exported file is to give.

        Raises:
            ValueError: if the model is not what `outputs` asks for.
        """
        if outputs not in OUTPUT_KINDS:
            raise ValueError(
                f"Argument `outputs` must be one of {list(OUTPUT_KINDS)}. Received: {outputs!r}"
            )
        self.preprocessing, self.kind = preprocessing, outputs
        gives_features = outputs == "features"
        self.shape = fixed_input_shape(model, is_classifier=not gives_features)
        self.outputs = feature_names(model) if gives_features else (str(outputs),)
        self.model = _as_float32(model)
        self.logits = self.model if gives_features else _logits(self.model)
        # Keras numbers the models of a process, and tensors are named after them: the same network
        # has to give the same file.
        self.logits.name = self.model.name
        self._gives_logits = self.logits is self.model
        raw = tf.TensorSpec((None, *self.shape), tf.uint8)
        self._predict = tf.function(self._reference, input_signature=[raw])

    def predict(self, images: np.ndarray) -> Any:
        """Raw uint8 images `(n, h, w, c)` to what the network makes of them.

        Returns:
            float32 probabilities `(n, classes)`, also where files give logits; of a network that
            gives features, a dictionary of arrays `(n, ...)` by `outputs`.
        """
        parts = [
            self._predict(tf.constant(images[i : i + _BATCH]))
            for i in range(0, len(images), _BATCH)
        ]
        if self.kind == "features":
            return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}
        return np.concatenate([part.numpy() for part in parts])

    def _reference(self, pixels: tf.Tensor) -> Any:
        # The model as it was given, not the parts that are exported: what is compared with the
        # exported file must not share a mistake with it.
        scores = self.model(self.preprocessing(pixels), training=False)
        if self.kind == "features":
            return self._named(scores)
        return tf.nn.softmax(scores) if self._gives_logits else scores

    def tensors(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Raw pixels of any dtype to what an exported file gives, by `outputs`."""
        if self.kind == "features":
            return self._named(self.pixel_logits(pixels))
        scores = self.probabilities if self.kind == "probabilities" else self.pixel_logits
        return {self.outputs[0]: scores(pixels)}

    def _named(self, features: Any) -> dict[str, tf.Tensor]:
        if isinstance(features, Mapping):
            return {name: features[name] for name in self.outputs}
        listed = features if isinstance(features, list | tuple) else [features]
        return dict(zip(self.outputs, listed, strict=True))

    def probabilities(self, pixels: tf.Tensor) -> tf.Tensor:
        """Raw pixels of any dtype to probabilities."""
        return tf.nn.softmax(self.pixel_logits(pixels))

    def preprocessed_logits(self, values: tf.Tensor) -> Any:
        """Preprocessed values to logits."""
        return self.logits(values, training=False)

    def pixel_logits(self, pixels: tf.Tensor) -> Any:
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


def fixed_input_shape(model: keras.Model, *, is_classifier: bool = True) -> tuple[int, int, int]:
    """`(height, width, channels)`; raises `ValueError` unless the model can be exported.

    Args:
        model: a functional model of one input.
        is_classifier: whether its only output has to be scores of classes.
    """
    outputs: Sequence[Any] = getattr(model, "outputs", None) or ()
    inputs: Sequence[Any] = getattr(model, "inputs", None) or ()
    if len(inputs) != 1 or not outputs or (is_classifier and len(outputs) != 1):
        raise ValueError(
            "Only a functional model with one input and one output can be exported; several "
            "outputs are for `outputs='features'`. "
            f"Received: {model!r}"
        )
    shape: tuple[Any, ...] = tuple(inputs[0].shape[1:])
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "A model needs a fixed input size (height, width, channels) to be exported; build it "
            f"with `input_shape`. Received: input shape {(None, *shape)}"
        )
    if is_classifier and len(outputs[0].shape) != 2:
        raise ValueError(
            "Only a classifier can be exported, unless `outputs` is 'features'. Received: a model "
            f"with the output shape {tuple(outputs[0].shape)}"
        )
    return shape


def feature_names(model: keras.Model) -> tuple[str, ...]:
    """Names of a model's outputs: the keys of a dictionary, or else what they are.

    Of an only output, `"embedding"` if it is a vector and `"features"` if it is a map; of several
    without keys, the names of their layers.

    Raises:
        ValueError: if its outputs are nested.
    """
    structure = model.compute_output_spec(model.inputs[0])
    parts = structure.values() if isinstance(structure, Mapping) else structure
    nests = (Mapping, list, tuple)
    if isinstance(structure, nests) and any(isinstance(part, nests) for part in parts):
        raise ValueError(
            "`outputs='features'` takes a model that gives a tensor, or a list or a dictionary of "
            f"tensors. Received: a model that gives {structure!r}"
        )
    if isinstance(structure, Mapping):
        return tuple(structure)
    if len(model.outputs) > 1:
        return tuple(model.output_names)
    return ("embedding",) if len(model.outputs[0].shape) == 2 else ("features",)


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
    dense = keras.layers.Dense(last.units, use_bias=last.use_bias, name=last.name)
    network = keras.Model(model.inputs, dense(last.input), name=model.name)
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

"""The `tf_keras` twin of a Keras 3 classifier, since TFMOT takes Keras 2 models only.

The twin is built layer by layer from the model's own configuration, up to the logits, gets the
weights, and is compared with the model before anything is done with it. Its layers have the names
of the model's, so that what was trained finds its way back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import layers as own_layers
from keras_resnet.export.optimize.legacy import tf_keras
from keras_resnet.export.source import SourceNetwork, golden_images

# Largest distance between the logits of two equal networks, relative to their length.
TOLERANCE = 1e-6
_COMPARED = 8  # images

# What is taken over from a layer's configuration. Left out are initializers, since the weights are
# copied; regularizers, since the decay is the recipe's; and Keras 3's dtype policies.
_WINDOW = ("strides", "padding", "data_format")
_CONVOLUTION = ("kernel_size", "dilation_rate", "activation", "use_bias", *_WINDOW)
_GLOBAL_POOLING = ("data_format", "keepdims")
_NORMALIZATION = ("axis", "epsilon", "center", "scale")
_FIELDS: dict[str, tuple[str, ...]] = {
    "Activation": ("activation",),
    "Add": (),
    "AveragePooling2D": ("pool_size", *_WINDOW),
    "BatchNormalization": ("momentum", "synchronized", *_NORMALIZATION),
    "Concatenate": ("axis",),
    "Conv1D": ("filters", "groups", *_CONVOLUTION),
    "Conv2D": ("filters", "groups", *_CONVOLUTION),
    "Dense": ("units", "activation", "use_bias"),
    "DepthwiseConv2D": ("depth_multiplier", *_CONVOLUTION),
    "Dropout": ("rate", "noise_shape", "seed"),
    "Flatten": ("data_format",),
    "GlobalAveragePooling2D": _GLOBAL_POOLING,
    "GlobalMaxPooling2D": _GLOBAL_POOLING,
    "GroupNormalization": ("groups", *_NORMALIZATION),
    "MaxPooling2D": ("pool_size", *_WINDOW),
    "Multiply": (),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "Reshape": ("target_shape",),
    "ZeroPadding2D": ("padding", "data_format"),
    # This package's own.
    "BlurPool": ("stride",),
    "ZeroPadShortcut": ("filters", "stride"),
}


class UnsupportedLayerError(ValueError):
    """A layer that a method cannot work with; the message names it and says what would work."""


@tf_keras.utils.register_keras_serializable(package="keras_resnet")
class ZeroPadShortcut(tf_keras.layers.Layer):
    """`keras_resnet.layers.ZeroPadShortcut`."""

    def __init__(self, filters: int, stride: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters, self.stride = filters, stride

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        channels = inputs.shape[-1]
        outputs = inputs
        if self.stride > 1:
            kernel = tf.ones((1, 1, channels, 1), inputs.dtype)
            strides = (1, self.stride, self.stride, 1)
            outputs = tf.nn.depthwise_conv2d(inputs, kernel, strides, "VALID")
        before = (self.filters - channels) // 2
        after = self.filters - channels - before
        if before or after:
            outputs = tf.pad(outputs, [(0, 0), (0, 0), (0, 0), (before, after)])
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "stride": self.stride}


@tf_keras.utils.register_keras_serializable(package="keras_resnet")
class BlurPool(tf_keras.layers.Layer):
    """`keras_resnet.layers.BlurPool`."""

    def __init__(self, stride: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        row = np.array([1.0, 2.0, 1.0]) / 4
        kernel = np.repeat(np.outer(row, row)[:, :, None, None], inputs.shape[-1], axis=2)
        padded = tf.pad(inputs, [(0, 0), (1, 1), (1, 1), (0, 0)], "REFLECT")
        strides = (1, self.stride, self.stride, 1)
        return tf.nn.depthwise_conv2d(padded, tf.constant(kernel, inputs.dtype), strides, "VALID")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stride": self.stride}


_OWN = {"ZeroPadShortcut": ZeroPadShortcut, "BlurPool": BlurPool}


@dataclasses.dataclass(frozen=True)
class Node:
    """A layer of the Keras 3 model, and the names of the layers whose outputs it takes."""

    layer: Any
    inputs: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The name of the layer's class."""
        return type(self.layer).__name__


# Given a node of the graph and its counterpart, built and with its weights: what takes its place.
Wrap = Callable[[Node, Any], Any]


class Twin:
    """A Keras 3 classifier and the same network in `tf_keras`, proved to be equal.

    Args:
        source: the classifier, in float32, with its preprocessing.

    Attributes:
        source: as it was given.
        nodes: the layers up to the logits, each behind those that it takes.
        model: a `tf_keras.Model` from preprocessed values to logits.

    Raises:
        UnsupportedLayerError: for a layer that has no counterpart.
        ValueError: if the statistics of a batch normalization are those it was built with.
        RuntimeError: if the logits differ by more than `TOLERANCE`.
    """

    def __init__(self, source: SourceNetwork):
        self.source = source
        self.nodes = _nodes(source.logits)
        refuse_cold_statistics(source.logits)
        self.model = self.build()
        self._check_equal()

    def build(self, wrap: Wrap | None = None, *, dtype: str = "float32") -> Any:
        """The network in `tf_keras`, with the model's weights and variables of its own.

        Args:
            wrap: gives what takes the place of a layer.
            dtype: of the layers.
        """
        tensors: dict[str, Any] = {}
        for node in self.nodes:
            name = node.layer.name
            if not node.inputs:
                shape = node.layer.batch_shape[1:]
                first = tensors[name] = tf_keras.Input(shape, dtype=dtype, name=name)
                if wrap is not None:
                    tensors[name] = wrap(node, tf_keras.layers.Activation("linear"))(first)
                continue
            inputs = [tensors[source] for source in node.inputs]
            argument: Any = inputs if len(inputs) > 1 else inputs[0]
            layer = _counterpart(node.layer, dtype)
            if node.layer.weights:
                layer.build(argument.shape)
                layer.set_weights(node.layer.get_weights())
            if wrap is not None:
                layer = wrap(node, layer)
            tensors[name] = layer(argument)
        return tf_keras.Model(first, tensors[name], name=self.source.logits.name)

    def give_back(self, trained: Any) -> keras.Model:
        """The Keras 3 model with the weights of a trained `tf_keras` model of the same layers.

        Raises:
            RuntimeError: if the two are not equal then.
        """
        original = self.source.model
        model = original.__class__.from_config(original.get_config())
        there = {layer.name: layer for layer in trained.layers}
        for layer in model.layers:
            if layer.weights:
                # A softmax in the last layer is split off under another name.
                name = layer.name if layer.name in there else self.nodes[-1].layer.name
                layer.set_weights(there[name].get_weights())
        again = Twin(SourceNetwork(model, self.source.preprocessing))
        _refuse_distance(_distance(again.model, trained, self._values()))
        return model

    def _check_equal(self) -> None:
        network, values = self.source.logits, self._values()
        distance = _distance(network, self.model, values)
        if not distance <= TOLERANCE:
            # The kernels of the two libraries round differently, and a hundred layers add it up;
            # what is not rounding stays in float64.
            wide = _with_dtype(network, "float64")
            distance = _distance(wide, self.build(dtype="float64"), values.astype(np.float64))
        _refuse_distance(distance)

    def _values(self) -> np.ndarray:
        images = golden_images(None, None, self.source.shape, self.source.preprocessing)
        return self.source.preprocessing(images[:_COMPARED])


def refuse_cold_statistics(model: Any) -> None:
    """Raises `ValueError` for a batch normalization whose moving statistics were never moved.

    Such a network is as good as untrained: in evaluation it computes something else than in
    training, and its quantized file can have factors that a device refuses (XNNPACK: 256 and more).
    """
    for layer in model.layers:
        if type(layer).__name__ != "BatchNormalization":
            continue
        mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
        if not mean.any() and (variance == 1).all():
            raise ValueError(
                "The moving statistics of a batch normalization were never warmed up (means 0, "
                "variances 1): train the network before it is optimized, or recompute them with "
                f"`precise_bn`. Received: a model whose layer {layer.name!r} has seen no data"
            )


def _nodes(network: keras.Model) -> tuple[Node, ...]:
    """The graph of a functional model, from its configuration, which names what a layer takes."""
    nodes = []
    for entry in network.get_config()["layers"]:
        layer = network.get_layer(entry["name"] if "name" in entry else entry["config"]["name"])
        calls = entry["inbound_nodes"]
        if isinstance(layer, keras.layers.InputLayer):
            nodes.append(Node(layer, ()))
            continue
        if len(calls) != 1 or list(_tensors_in(calls[0]["kwargs"])):
            raise UnsupportedLayerError(
                "Only layers that are called once, with their inputs alone, can be optimized. "
                f"Received: the layer {layer.name!r}, which is called {len(calls)} times"
            )
        _check_layer(layer)
        nodes.append(Node(layer, tuple(_tensors_in(calls[0]["args"]))))
    return tuple(nodes)


def _tensors_in(value: Any) -> Iterator[str]:
    """The layers that the tensors in a serialized call come from."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
        else:
            yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


def _check_layer(layer: Any) -> None:
    kind = type(layer).__name__
    known = (getattr(keras.layers, kind, None), getattr(own_layers, kind, None))
    if kind not in _FIELDS or type(layer) not in known:
        raise UnsupportedLayerError(
            "Only plain Keras layers and those of this package have a counterpart in Keras 2, "
            f"which TFMOT needs: {', '.join(sorted(_FIELDS))}. Use one of them, or quantize after "
            f"training (`export.to_tflite`). Received: the layer {layer.name!r}, a "
            f"{type(layer).__module__}.{kind}"
        )
    activation = layer.get_config().get("activation", "")
    if not isinstance(activation, str):
        raise UnsupportedLayerError(
            "An activation must be one of Keras's own, by its name. Received: the layer "
            f"{layer.name!r} with the activation {activation!r}"
        )


def _counterpart(layer: Any, dtype: str) -> Any:
    """The layer in `tf_keras`, not built yet."""
    kind = type(layer).__name__
    config = layer.get_config()
    options = {field: config[field] for field in _FIELDS[kind] if field in config}
    make = _OWN.get(kind) or getattr(tf_keras.layers, kind)
    return make(name=layer.name, trainable=layer.trainable, dtype=dtype, **options)


def _distance(network: Any, model: Any, values: np.ndarray) -> float:
    """Between the logits of both, relative to their length."""
    expected = network(tf.constant(values), training=False).numpy()
    actual = model(tf.constant(values), training=False).numpy()
    return float(np.linalg.norm(expected - actual) / np.linalg.norm(expected))


def _refuse_distance(distance: float) -> None:
    if not distance <= TOLERANCE:
        raise RuntimeError(
            "The tf_keras twin is not the same network, which is a fault of this package: its "
            f"logits are off by {distance:.2g} of their size, more than {TOLERANCE:.0e}"
        )


def _with_dtype(network: keras.Model, dtype: str) -> keras.Model:
    def changed(config: Any) -> Any:
        if isinstance(config, dict):
            return {k: dtype if k == "dtype" and v else changed(v) for k, v in config.items()}
        if isinstance(config, list | tuple):
            return type(config)(changed(item) for item in config)
        return config

    copy = network.__class__.from_config(changed(network.get_config()))
    copy.set_weights(network.get_weights())
    return copy

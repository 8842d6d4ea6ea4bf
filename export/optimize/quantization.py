"""The fake-quantized twin: TFMOT's quantizers where a TFLite file has rounding, and nowhere else.

TFMOT's own plan for a network knows a list of layers and of patterns, and refuses what is not on
it: normalization in front of a convolution, layers of one's own, gates. Here every layer of the
graph gets a `QuantizeConfig` of ours, by what the converter will make of it: a convolution, its
normalization and its rectifier become one operation, so they are rounded once, behind the last.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.export import flatbuffer
from keras_resnet.export.conversion import quiet_converter
from keras_resnet.export.optimize.legacy import tf_keras, tfmot
from keras_resnet.export.optimize.twin import Node, Twin, UnsupportedLayerError

_quantizers: Any = tfmot.quantization.keras.quantizers

# Operations whose output takes the numbers of its input as they are.
_PASSING = ("Dropout", "Flatten", "GlobalMaxPooling2D", "MaxPooling2D", "Reshape", "ZeroPadding2D")
# The kernels that are rounded in training. That of a Conv1D is left to the converter, which rounds
# it like every constant; with a fake quantizer in front of it, it ends with no file at all.
_KERNELS = {"Conv2D": "kernel", "Dense": "kernel", "DepthwiseConv2D": "depthwise_kernel"}
_CONVOLUTIONS = (*_KERNELS, "Conv1D")


class _Weights(_quantizers.LastValueQuantizer):
    """The 8 bits that TFLite stores kernels in: symmetric, per output channel or per tensor."""

    def __init__(self, per_axis: bool):
        super().__init__(num_bits=8, per_axis=per_axis, symmetric=True, narrow_range=True)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        shape = (tensor_shape[-1],) if self.per_axis else ()
        return {
            f"{end}_var": layer.add_weight(
                f"{name}_{end}",
                shape=shape,
                initializer=tf_keras.initializers.Constant(value),
                trainable=False,
            )
            for end, value in (("min", -6.0), ("max", 6.0))
        }


class _Config(tfmot.quantization.keras.QuantizeConfig):
    """Which kernel of a layer is rounded, and how its output is."""

    def __init__(self, kernel: str | None, per_axis: bool, output: Any):
        self._kernel = kernel
        self._weights = _Weights(per_axis)
        self._output = output

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return [] if self._kernel is None else [(getattr(layer, self._kernel), self._weights)]

    def get_activations_and_quantizers(self, _layer: Any) -> list[Any]:
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        for weight in quantize_weights:
            setattr(layer, str(self._kernel), weight)

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        pass

    def get_output_quantizers(self, _layer: Any) -> list[Any]:
        return [] if self._output is None else [self._output]

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("The fake-quantized network is converted, not saved.")


def check_layers(twin: Twin) -> None:
    """Raises `UnsupportedLayerError` for a layer that has no 8-bit counterpart."""
    for node in twin.nodes:
        problem = _problem(node)
        if problem:
            raise UnsupportedLayerError(
                f"Quantization-aware training cannot round what this layer gives: {problem}. "
                f"Received: the layer {node.layer.name!r}, a {node.kind}"
            )


def _problem(node: Node) -> str:
    if node.kind == "GroupNormalization":
        return (
            "it divides by moments of the image, for which TFLite has no 8-bit operator; train "
            "the network with batch normalization"
        )
    activation = getattr(getattr(node.layer, "activation", None), "__name__", "linear")
    known = ("linear", "relu", "sigmoid") if node.kind == "Activation" else ("linear", "relu")
    if activation not in known:
        return f"its activation is {activation!r}, and not one of {known}"
    return ""


def fake_quantized(twin: Twin) -> Any:
    """The twin with the rounding of an int8 file, its ranges not set yet."""
    followers = _followers(twin.nodes)

    def wrap(node: Node, layer: Any) -> Any:
        if not node.inputs:
            return _rounded(layer, None, _input_quantizer(twin), name="pixels")
        output = _output_quantizer() if _is_rounded(node, followers) else None
        before = _before_normalization(node, twin)
        wrapped = _rounded(layer, node.kind, output)
        return wrapped if before is None else _Chain(before, wrapped)

    return twin.build(wrap)


class _Chain:
    """Two layers, one behind the other."""

    def __init__(self, *layers: Any):
        self._layers = layers

    def __call__(self, tensor: Any) -> Any:
        for layer in self._layers:
            tensor = layer(tensor)
        return tensor


def _rounded(layer: Any, kind: str | None, output: Any, name: str = "") -> Any:
    config = _Config(_KERNELS.get(str(kind)), kind != "Dense", output)
    options = {"name": name} if name else {}
    # Without TFMOT's prefix, the tensors of the file carry the names of the model's layers.
    wrapper = tfmot.quantization.keras.QuantizeWrapperV2
    return wrapper(layer, config, name_prefix="", **options)


def _before_normalization(node: Node, twin: Twin) -> Any:
    """A depthwise convolution with ones, for a normalization that follows no convolution.

    The converter folds the two into one 8-bit operation. A normalization alone would become a
    multiplication and an addition, with a rounding in between that was not trained for.
    """
    if node.kind != "BatchNormalization" or _kind_of(node.inputs[0], twin) in _CONVOLUTIONS:
        return None
    ones = tf_keras.layers.DepthwiseConv2D(
        1,
        use_bias=False,
        depthwise_initializer="ones",
        trainable=False,
        name=f"{node.layer.name}_ones",
    )
    return _rounded(ones, "DepthwiseConv2D", None)


def _kind_of(name: str, twin: Twin) -> str:
    return next(node.kind for node in twin.nodes if node.layer.name == name)


def _followers(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    followers = collections.defaultdict(list)
    for node in nodes:
        for name in node.inputs:
            followers[name].append(node)
    return followers


def _is_rounded(node: Node, followers: dict[str, list[Node]]) -> bool:
    """Whether the output of a layer is a tensor of the int8 file."""
    if node.kind in _PASSING:
        return False
    if node.kind == "Activation" and node.layer.activation.__name__ != "relu":
        return False  # the converter knows a sigmoid's range
    following = followers[node.layer.name]
    if len(following) != 1:
        return True
    is_relu = _is_relu(following[0])
    if node.kind in _CONVOLUTIONS:
        return not (is_relu or following[0].kind == "BatchNormalization")
    return not (is_relu and node.kind in ("Add", "BatchNormalization"))


def _is_relu(node: Node) -> bool:
    if node.kind == "ReLU":
        return True
    return node.kind == "Activation" and node.layer.activation.__name__ == "relu"


def _output_quantizer() -> Any:
    return _quantizers.MovingAverageQuantizer(
        num_bits=8, per_axis=False, symmetric=False, narrow_range=False
    )


def _input_quantizer(twin: Twin) -> Any:
    """The 256 values that a raw byte can become; where they are not that, their range."""
    ends = twin.source.preprocessing(np.array([0.0, 255.0]).repeat(3).reshape(2, 1, 3))
    low, high = float(ends.min()), float(ends.max())
    return _quantizers.FixedQuantizer(num_bits=8, init_min=low, init_max=high, narrow_range=False)


def set_ranges(model: Any, twin: Twin, batches: Iterable[np.ndarray]) -> None:
    """Sets all ranges to those of the float network: of its kernels, and of its outputs on batches.

    TFMOT begins at -6...6 and moves by a thousandth per step: after the few hundred steps of a
    fine-tuning the ranges would still be those. Begun where they belong, they only follow.
    """
    set_kernel_ranges(model)
    ranges = {}
    for layer in model.layers:
        found = [w for w in layer.weights if w.name.endswith(("output_min:0", "output_max:0"))]
        if found:
            ranges[layer.layer.name] = found
    names = list(ranges)
    outputs = [twin.model.get_layer(name).output for name in names]
    probe = tf_keras.Model(twin.model.input, outputs)

    @tf.function
    def ends(values: tf.Tensor) -> list[list[tf.Tensor]]:
        # A model with a single output gives it without a list.
        found = tf.nest.flatten(probe(values, training=False))
        return [[tf.reduce_min(output), tf.reduce_max(output)] for output in found]

    means = np.mean([np.array(ends(values)) for values in batches], axis=0)
    for name, (low, high) in zip(names, means, strict=True):
        ranges[name][0].assign(min(0.0, low))
        ranges[name][1].assign(max(0.0, high))


def set_kernel_ranges(model: Any) -> None:
    """Sets the ranges of the kernels to what they are; training leaves them a step behind."""
    for layer in model.layers:
        weights = {weight.name.split("/")[-1]: weight for weight in layer.weights}
        for kernel in ("kernel", "depthwise_kernel"):
            if f"{kernel}_min:0" in weights:
                high = weights[f"{kernel}_max:0"]
                size = np.abs(weights[f"{kernel}:0"].numpy())
                largest = size.max(axis=tuple(range(size.ndim - high.shape.rank)))
                weights[f"{kernel}_min:0"].assign(-largest)
                high.assign(largest)


def convert(model: Any, twin: Twin) -> bytes:
    """An int8 `.tflite` of the trained twin, from raw uint8 pixels to float32 probabilities.

    The ranges are the fake quantizers', so there is nothing to calibrate. The softmax is put behind
    in float: 8-bit probabilities cannot rank many classes.
    """
    preprocessing = twin.source.preprocessing
    by_byte = preprocessing.byte_quantization is not None

    @tf.function
    def logits(pixels: tf.Tensor) -> tf.Tensor:
        # Where a byte is a preprocessed value, the quantization of the input is all there is to do.
        if not by_byte:
            raw = tf.quantization.fake_quant_with_min_max_args(pixels, 0.0, 255.0)
            pixels = preprocessing(raw)
        return model(pixels, training=False)

    signature = tf.TensorSpec((1, *twin.source.shape), tf.float32, name="pixels")
    with quiet_converter():
        concrete = logits.get_concrete_function(signature)
        # Without the model beside the function, it is not written to disk and read again for the
        # same file: a thirtieth of the time.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.uint8
        content = bytes(converter.convert())
    return _with_softmax(content)


def _with_softmax(content: bytes) -> bytes:
    model = flatbuffer.unpack(content)
    graph = model.subgraphs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SOFTMAX
    code.version = 1
    model.operatorCodes.append(code)
    logits = graph.tensors[graph.outputs[0]]
    probabilities = schema.TensorT()
    probabilities.shape, probabilities.type = logits.shape, schema.TensorType.FLOAT32
    probabilities.buffer = 0  # the empty one
    graph.tensors.append(probabilities)
    softmax = schema.OperatorT()
    softmax.opcodeIndex = len(model.operatorCodes) - 1
    softmax.inputs, softmax.outputs = [int(graph.outputs[0])], [len(graph.tensors) - 1]
    softmax.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
    softmax.builtinOptions = schema.SoftmaxOptionsT()
    softmax.builtinOptions.beta = 1.0
    graph.operators.append(softmax)
    graph.outputs = softmax.outputs
    logits.name = b"logits"
    flatbuffer.name_ends(model, "pixels", ["probabilities"])
    return flatbuffer.pack(model)

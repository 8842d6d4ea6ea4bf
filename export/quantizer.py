"""From a float32 `.tflite` file and images to one that computes in 8-bit or 16-bit integers.

The ranges of the activations are read from the float file itself, run on the images under XNNPACK
with every tensor among its outputs; the rest is arithmetic on the flatbuffer. So the file that is
measured is the file that is quantized, batch normalization and activations folded, and it takes
seconds where TFLiteConverter's own calibration runs a minute in slow kernels.

The arithmetic is that of the TFLite 8-bit quantization specification: activations are int8 with a
scale and a zero point per tensor, weights are symmetric int8 with a scale per output channel,
biases int32. In `int16x8` activations are symmetric int16 and biases int64. Operators that are not
known here stay in float32 between a DEQUANTIZE and a QUANTIZE.

Where float32 comes out, a classifier's mean over the image and its dense layer take the dequantized
features: logits in 8 bits tie now and then. The dense layer's weights are int8 all the same; its
kernel rounds the features, with a scale for every image.

Needs ai-edge-litert and numpy alone.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.export.flatbuffer import (
    drop_unused,
    name_ends,
    pack,
    unpack,
    with_all_outputs,
)

# The axis of the output channels in the weights of the operators that have any.
_WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
# Their kernels copy or compare values as they are: input and output share scale and zero point.
_SAME_SCALE = {
    "AVERAGE_POOL_2D", "CONCATENATION", "EXPAND_DIMS", "MAX_POOL_2D", "MIRROR_PAD", "PAD",
    "RESHAPE", "REVERSE_V2", "SLICE", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE",
}  # fmt: skip
_OWN_SCALE = {"ADD", "SUB", "MUL", "MEAN", "RELU", "RELU6"}
_OWN_SCALE_8_BIT = {"GELU", "HARD_SWISH"}  # whose 16-bit kernels do not exist
# Their kernels ask for one scale and zero point of the output: name -> (int8, int16).
_FIXED_SCALE = {
    "LOGISTIC": ((1 / 256, -128), (1 / 32768, 0)),
    "SOFTMAX": ((1 / 256, -128), (1 / 32768, 0)),
    "TANH": ((1 / 128, 0), (1 / 32768, 0)),
}
_KNOWN = {*_WEIGHTED, *_SAME_SCALE, *_OWN_SCALE, *_FIXED_SCALE}
# The version of an operator says since when its kernel takes 8-bit (and 16-bit) tensors.
_VERSIONS = {
    "ADD": (2, 4), "AVERAGE_POOL_2D": (2, 3), "CONCATENATION": (2, 3), "CONV_2D": (3, 4),
    "DEPTHWISE_CONV_2D": (3, 5), "DEQUANTIZE": (2, 3), "FULLY_CONNECTED": (4, 7),
    "LOGISTIC": (2, 3), "MAX_POOL_2D": (2, 3), "MEAN": (2, 3), "MIRROR_PAD": (2, 3),
    "MUL": (2, 4), "PAD": (2, 3), "QUANTIZE": (2, 2), "RELU": (2, 3), "RELU6": (2, 3),
    "SLICE": (2, 4), "SOFTMAX": (2, 3), "STRIDED_SLICE": (2, 4), "SUB": (2, 5), "TANH": (2, 3),
    "TRANSPOSE": (2, 4),
}  # fmt: skip
_VERSION_OF_FLOAT_DENSE = 9  # with int8 weights all the same
_OPERATORS = {
    number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
}
# XNNPACK refuses a convolution whose accumulators would be scaled up by this much.
_LARGEST_REQUANTIZATION = 255.0
_LARGEST_BIAS = 2.0**30
# Kernels clip at 6 for ReLU6, counted in steps: it has to stay an int32.
_SMALLEST_SCALE = 2.0**-28

METHOD = "minimum and maximum, corrected biases"

Params = tuple[float, int]  # scale and zero point of a tensor: value = scale * (q - zero_point)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What the values of a tensor were on the calibration images.

    Attributes:
        minimum: the smallest.
        maximum: the largest.
        mean: per channel (the last axis).
    """

    minimum: float
    maximum: float
    mean: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a file is quantized.

    Attributes:
        scheme: `"int8"` or `"int16x8"`.
        source: dtype of the input: `"uint8"`, `"int8"` (both hold the pixels as bytes) or
            `"float32"`.
        target: dtype of the outputs: `"float32"`, `"int8"` or `"uint8"`.
        keep_float: names of outputs of operators, in the float file, that stay in float32.
        correct_bias: whether the mean error that rounding the weights makes is taken off the
            biases.
        per_channel_dense: whether the weights of 8-bit dense layers have a scale per output, too;
            TFLite Micro wants one for all.
    """

    scheme: str = "int8"
    source: str = "uint8"
    target: str = "float32"
    keep_float: Collection[str] = ()
    correct_bias: bool = True
    per_channel_dense: bool = True


def quantize(
    float_content: bytes,
    images: np.ndarray,
    scheme: str = "int8",
    *,
    source: str = "uint8",
    target: str = "float32",
    keep_float: Collection[str] = (),
    correct_bias: bool = True,
    per_channel_dense: bool = True,
) -> bytes:
    """A quantized file from a float32 one.

    Args:
        float_content: a `.tflite` file with one float32 input of raw pixels 0..255.
        images: uint8 `(n, height, width, channels)`, from which the ranges are read.
        scheme: `"int8"` or `"int16x8"`.
        source: see `Options`; of `int16x8` it is float32.
        target: see `Options`.
        keep_float: see `Options`.
        correct_bias: see `Options`.
        per_channel_dense: see `Options`.

    Raises:
        ValueError: if a name in `keep_float` is none of the file's.
    """
    options = Options(
        scheme=scheme,
        source=source,
        target=target,
        keep_float=keep_float,
        correct_bias=correct_bias,
        per_channel_dense=per_channel_dense,
    )
    return rewrite(float_content, observe(float_content, images), options)


def observe(
    float_content: bytes, images: np.ndarray, *, threads: int | None = None
) -> dict[int, Observation]:
    """What the input and every activation of a float32 file hold on the images, by their numbers.

    Args:
        float_content: a `.tflite` file with one float32 input of raw pixels.
        images: uint8 `(n, height, width, channels)`.
        threads: of the CPU; None takes all.
    """
    from ai_edge_litert.interpreter import Interpreter

    content, _ = with_all_outputs(float_content)
    interpreter = Interpreter(model_content=content, num_threads=threads or os.cpu_count())
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    numbers = [d["index"] for d in interpreter.get_output_details() if d["dtype"] == np.float32]
    extremes: dict[int, list[tuple[float, float]]] = {i: [] for i in numbers}
    sums: dict[int, Any] = dict.fromkeys(numbers, 0.0)
    batch = int(source["shape"][0])
    for start in range(0, len(images), batch):
        # The last batch is filled up with its own last image.
        rows = np.minimum(np.arange(start, start + batch), len(images) - 1)
        interpreter.set_tensor(source["index"], images[rows].astype(np.float32))
        interpreter.invoke()
        for i in numbers:
            values = interpreter.get_tensor(i)
            extremes[i].append((float(values.min()), float(values.max())))
            sums[i] += channel_means(values)
    runs = -(-len(images) // batch)
    pixels = Observation(0.0, 255.0, np.mean([channel_means(i.astype("f4")) for i in images], 0))
    return {source["index"]: pixels} | {
        i: Observation(min(lo for lo, _ in pairs), max(hi for _, hi in pairs), sums[i] / runs)
        for i, pairs in extremes.items()
    }


def channel_means(values: np.ndarray) -> np.ndarray:
    """The mean of every channel (the last axis), float64."""
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    return rows.mean(axis=0).astype(np.float64)


def rewrite(content: bytes, observed: Mapping[int, Observation], options: Options) -> bytes:
    """The quantized file, given what was observed; `quantize` in two steps for experiments.

    Raises:
        ValueError: if a name in `keep_float` is none of the file's.
    """
    model = unpack(content)
    _Rewriter(model, observed, options).run()
    drop_unused(model)
    return pack(model)


class _Rewriter:
    """Replaces the operators of a graph by quantized ones, in order."""

    def __init__(self, model: schema.ModelT, observed: Mapping[int, Observation], options: Options):
        self.model, self.observed, self.options = model, observed, options
        self.graph = model.subgraphs[0]
        self.is_16 = options.scheme == "int16x8"
        self.dtype = np.dtype(np.int16 if self.is_16 else np.int8)
        self.names = [self._name(operator) for operator in self.graph.operators]
        self.integer: dict[int, int] = {}  # tensors of the float file to their quantized forms
        self.real: dict[int, int] = {}  # ... and to their float forms
        self.emitted: list[schema.OperatorT] = []
        self.codes: dict[tuple[int, int], int] = {}

    def run(self) -> None:
        """Rewrites the model in place."""
        graph, inputs = self.graph, [int(i) for i in self.graph.inputs]
        operators = list(graph.operators)
        self.classifier = self._float_classifier()
        self.quantized = [self._is_quantizable(i) for i in range(len(operators))]
        skipped = self._absorbed_preprocessing() if self.options.source != "float32" else {}
        self.params = self._choose_params(skipped)
        self._emit_input(inputs[0], skipped)
        for i, operator in enumerate(operators):
            if i in skipped:
                continue
            if self.quantized[i]:
                self._emit_quantized(self.names[i], operator)
            elif i in self.classifier and self.names[i] == "FULLY_CONNECTED":
                self._emit_dense(operator)
            else:
                self._emit_float(operator)
        names = [self._tensor_name(int(i)) for i in graph.outputs]
        graph.outputs = [self._emit_output(int(i)) for i in graph.outputs]
        graph.operators = self.emitted
        name_ends(self.model, self._tensor_name(inputs[0]), names)

    # What is quantized, and to what

    def _name(self, operator: schema.OperatorT) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def _tensor_name(self, index: int) -> str:
        return str(self.graph.tensors[index].name.decode())

    def _constant(self, index: int) -> np.ndarray | None:
        """The float values that the file holds for a tensor, or None if it is computed."""
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None or len(data) == 0:
            return None
        shape = () if tensor.shape is None else tuple(tensor.shape)
        return np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32).reshape(shape)

    def _is_activation(self, index: int) -> bool:
        return (
            index >= 0
            and self.graph.tensors[index].type == schema.TensorType.FLOAT32
            and self._constant(index) is None
        )

    def _float_classifier(self) -> set[int]:
        """The dense layer that gives float32 logits, and the mean that it takes."""
        if self.is_16 or self.options.target != "float32":
            return set()
        found = set()
        for output in map(int, self.graph.outputs):
            number = self._origin(output)
            if number is not None and self.names[number] == "SOFTMAX":
                number = self._origin(int(self.graph.operators[number].inputs[0]))
            if number is None or self.names[number] != "FULLY_CONNECTED":
                continue
            features, weights, *_ = map(int, self.graph.operators[number].inputs)
            if self._constant(weights) is None or not self._is_activation(features):
                continue
            if self._is_kept(number):
                continue
            found.add(number)
            mean = self._origin(features)
            if mean is not None and self.names[mean] == "MEAN" and not self._is_output(features):
                found.add(mean)
        return found

    def _origin(self, index: int) -> int | None:
        """The number of the operator that computes a tensor."""
        for number, operator in enumerate(self.graph.operators):
            if index in map(int, operator.outputs):
                return number
        return None

    def _is_kept(self, number: int) -> bool:
        outputs = map(int, self.graph.operators[number].outputs)
        return any(self._tensor_name(i) in self.options.keep_float for i in outputs)

    def _is_quantizable(self, number: int) -> bool:
        operator, name = self.graph.operators[number], self.names[number]
        outputs = [int(i) for i in operator.outputs]
        known = name in _KNOWN or (name in _OWN_SCALE_8_BIT and not self.is_16)
        if not known or not all(self._is_activation(i) for i in outputs):
            return False
        if number in self.classifier or self._is_kept(number):
            return False
        if name in _WEIGHTED and self._constant(int(operator.inputs[1])) is None:
            return False
        # Eight bits cannot rank a thousand probabilities: the softmax behind the logits is left in
        # float unless its integers were asked for.
        ends = name == "SOFTMAX" and outputs[0] in map(int, self.graph.outputs)
        return not (ends and self.options.target == "float32")

    def _absorbed_preprocessing(self) -> dict[int, Params]:
        """The operators behind the input that only give a byte another scale and zero point.

        A raw byte minus 128 *is* the int8 tensor of `pixels / 128 - 1`: such operators cost
        nothing, exactly. Their numbers, and what each makes of the byte.
        """
        absorbed: dict[int, Params] = {}
        current, (scale, offset) = int(self.graph.inputs[0]), (1.0, 0.0)
        trail: dict[int, tuple[float, float]] = {}
        for i, operator in enumerate(self.graph.operators):
            step = self._uniform_step(i, current)
            readers = [op for op in self.graph.operators if current in map(int, op.inputs)]
            if step is None or len(readers) != 1 or self._is_output(current):
                break
            scale, offset = scale * step[0], offset * step[0] + step[1]
            trail[i] = (scale, offset)
            current = int(operator.outputs[0])
            zero_point = -offset / scale
            if abs(zero_point - round(zero_point)) < 1e-4 and 0 <= round(zero_point) <= 255:
                # Up to here, and with all that stands before.
                absorbed = {k: (a, round(-b / a)) for k, (a, b) in trail.items()}
        return absorbed

    def _is_output(self, index: int) -> bool:
        return index in map(int, self.graph.outputs)

    def _uniform_step(self, number: int, source: int) -> tuple[float, float] | None:
        """`(a, b)` of an operator that computes `a * x + b` of the source with `a > 0`."""
        affine = self._affine_step(number, source)
        if affine is None or any(np.unique(part).size != 1 for part in affine):
            return None
        a, b = (float(part.flat[0]) for part in affine)
        return (a, b) if a > 0 else None

    def _affine_step(self, number: int, source: int) -> tuple[np.ndarray, np.ndarray] | None:
        operator, name = self.graph.operators[number], self.names[number]
        inputs = [int(i) for i in operator.inputs]
        options = operator.builtinOptions
        if name not in ("ADD", "SUB", "MUL") or inputs[0] != source:
            return None
        if options is not None and options.fusedActivationFunction:
            return None
        constant = self._constant(inputs[1])
        if constant is None or not self.quantized[number]:
            return None
        one, zero = np.ones_like(constant), np.zeros_like(constant)
        return {"ADD": (one, constant), "SUB": (one, -constant), "MUL": (constant, zero)}[name]

    def _choose_params(self, skipped: Mapping[int, Params]) -> dict[int, Params]:
        """Scale and zero point of every tensor that a quantized operator reads or writes."""
        ranges = self._ranges()
        fixed: dict[int, Params] = {}
        for number, (operator, name) in enumerate(
            zip(self.graph.operators, self.names, strict=True)
        ):
            if self.quantized[number] and name in _FIXED_SCALE:
                fixed[int(operator.outputs[0])] = _FIXED_SCALE[name][self.is_16]
        for number, (scale, zero_point) in skipped.items():
            output = int(self.graph.operators[number].outputs[0])
            fixed[output] = (scale, zero_point - 128)
        source = int(self.graph.inputs[0])
        fixed[source] = self._params(0.0, 255.0)

        group = _Groups(ranges)
        for number, (operator, name) in enumerate(
            zip(self.graph.operators, self.names, strict=True)
        ):
            if not self.quantized[number] or name not in _SAME_SCALE:
                continue
            output = int(operator.outputs[0])
            for i in map(int, operator.inputs):
                # Where a fixed scale meets others, in a CONCATENATION, it is converted.
                if i in ranges and not (name == "CONCATENATION" and group.of(i) in fixed):
                    group.join(i, output, fixed)
        params: dict[int, Params] = {}
        for i in ranges:
            of = group.of(i)
            params[i] = fixed[of] if of in fixed else self._params(*group.range(i))
        self._limit_requantization(params, group, fixed)
        return params

    def _ranges(self) -> dict[int, tuple[float, float]]:
        ranges = {i: (o.minimum, o.maximum) for i, o in self.observed.items()}
        # The preprocessing maps 0..255, whatever the images at hand happen to hold.
        current = int(self.graph.inputs[0])
        low, high = np.float64(0), np.float64(255)
        ranges[current] = (0.0, 255.0)
        for number, operator in enumerate(self.graph.operators):
            step = self._affine_step(number, current)
            if step is None:
                break
            ends = (step[0] * low + step[1], step[0] * high + step[1])
            low, high = np.minimum(*ends), np.maximum(*ends)
            current = int(operator.outputs[0])
            ranges[current] = (float(low.min()), float(high.max()))
        return ranges

    def _params(self, low: float, high: float) -> Params:
        """Zero is always a value of the grid: padding and ReLU need it exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        width, steps = (max(-low, high), 32767) if self.is_16 else (high - low, 255)
        scale = max(float(np.float32(width or 1.0) / np.float32(steps)), _SMALLEST_SCALE)
        return scale, 0 if self.is_16 else int(np.clip(round(-128 - low / scale), -128, 127))

    def _limit_requantization(
        self, params: dict[int, Params], group: _Groups, fixed: Mapping[int, Params]
    ) -> None:
        """Widens outputs that are so narrow that a kernel refuses to scale up to them."""
        for number, (operator, name) in enumerate(
            zip(self.graph.operators, self.names, strict=True)
        ):
            if not self.quantized[number] or name not in (*_WEIGHTED, "ADD", "SUB", "MUL"):
                continue
            inputs, output = [int(i) for i in operator.inputs], int(operator.outputs[0])
            if group.of(output) in fixed:
                continue
            scales = [self._scale_of(i, params) for i in inputs[:2]]
            if name in _WEIGHTED:
                weights = self._constant(inputs[1])
                scales = [scales[0] * float(np.abs(np.asarray(weights)).max(initial=0)) / 127]
            elif name == "MUL":
                scales = [float(np.prod(scales))]
            least = max(scales) / _LARGEST_REQUANTIZATION
            if params[output][0] < least:
                for i in group.members(output):
                    params[i] = (least, params[i][1])

    def _scale_of(self, index: int, params: Mapping[int, Params]) -> float:
        constant = self._constant(index)
        if constant is None:
            return params[index][0]
        return self._params(float(constant.min()), float(constant.max()))[0]

    # Writing the quantized graph

    def _emit_input(self, source: int, skipped: Mapping[int, Params]) -> None:
        if self.options.source == "float32":
            self.real[source] = source
            return
        last = source
        if skipped:
            last = int(self.graph.operators[max(skipped)].outputs[0])
        scale, zero_point = self.params[last]
        integer = self._new_tensor(
            f"{self._tensor_name(source)}_int8", source, np.int8, (scale, zero_point)
        )
        self.integer[last] = integer
        if self.options.source == "int8":
            self.graph.tensors[integer].name = self.graph.tensors[source].name
            self.graph.inputs = [integer]
            return
        unsigned = self._new_tensor(
            self._tensor_name(source), source, np.uint8, (scale, zero_point + 128)
        )
        self.graph.inputs = [unsigned]
        self._emit("QUANTIZE", [unsigned], [integer])

    def _emit_output(self, index: int) -> int:
        target = self.options.target
        if target == "float32":
            return self._as_real(index)
        number = self._as_integer(index)
        if target == "int8":
            return number
        scale, zero_point = self.params[index]
        name = f"{self._tensor_name(index)}_uint8"
        unsigned = self._new_tensor(name, number, np.uint8, (scale, zero_point + 128))
        self._emit("QUANTIZE", [number], [unsigned])
        return unsigned

    def _emit_float(self, operator: schema.OperatorT) -> None:
        inputs = []
        for i in map(int, operator.inputs):
            # The shape of a tensor is that of its quantized form.
            inputs.append(self._as_real(i) if self._is_activation(i) else i)
        operator.inputs = inputs
        for i in map(int, operator.outputs):
            self.real[i] = i
        self.emitted.append(operator)

    def _emit_dense(self, operator: schema.OperatorT) -> None:
        """Float32 features, int8 weights, float32 logits.

        The weights have one scale: one per output took TFLite until 2024.
        """
        name, inputs = "FULLY_CONNECTED", [int(i) for i in operator.inputs]
        rounded, scales, bias = self._rounded_weights(name, inputs, np.inf, per_channel=False)
        weights = self._new_constant(inputs[1], rounded, scales)
        biases = self._new_constant(_bias_or_weights(inputs), bias.astype(np.float32))
        operator.builtinOptions.asymmetricQuantizeInputs = True
        taken, output = [self._as_real(inputs[0]), weights, biases], int(operator.outputs[0])
        self._emit(name, taken, [output], operator, _VERSION_OF_FLOAT_DENSE)
        self.real[output] = output

    def _emit_quantized(self, name: str, operator: schema.OperatorT) -> None:
        inputs = [int(i) for i in operator.inputs]
        output = int(operator.outputs[0])
        if name in _WEIGHTED:
            quantized = self._weighted_inputs(name, inputs)
        else:
            quantized = [self._input(name, i, output) for i in inputs]
        if self.is_16 and name in ("ADD", "SUB"):
            operator.builtinOptions.potScaleInt16 = False
        if name == "AVERAGE_POOL_2D" and self._is_plain_average(operator):
            quantized += self._average_weights(operator.builtinOptions, inputs[0])
            name, operator = "DEPTHWISE_CONV_2D", _depthwise_like(operator)
        integer = self._new_tensor(
            self._tensor_name(output), output, self.dtype, self.params[output]
        )
        self.integer[output] = integer
        self._emit(name, quantized, [integer], operator)

    def _input(self, name: str, index: int, output: int) -> int:
        if self._is_activation(index):
            number = self._as_integer(index)
            if name == "CONCATENATION" and self.params[index] != self.params[output]:
                rescaled = self._new_tensor(
                    f"{self._tensor_name(index)}_rescaled", index, self.dtype, self.params[output]
                )
                self._emit("QUANTIZE", [number], [rescaled])
                return rescaled
            return number
        constant = None if index < 0 else self._constant(index)
        if constant is None:  # axes, shapes, paddings
            return index
        scale, zero_point = self._params(float(constant.min()), float(constant.max()))
        values = self._rounded(constant / np.float64(scale) + zero_point)
        return self._new_constant(index, values, [scale], zero_points=[zero_point])

    def _weighted_inputs(self, name: str, inputs: list[int]) -> list[int]:
        scale_in, _ = self.params[inputs[0]]
        source = self._as_integer(inputs[0])
        per_channel = name != "FULLY_CONNECTED" or self.options.per_channel_dense
        largest = scale_in * _LARGEST_BIAS
        rounded, scales, bias = self._rounded_weights(name, inputs, largest, per_channel)
        steps = np.float64(scale_in) * scales
        biases = np.round(bias / steps).astype(np.int64 if self.is_16 else np.int32)
        return [
            source,
            self._new_constant(inputs[1], rounded, scales, _WEIGHTED[name]),
            self._new_constant(_bias_or_weights(inputs), biases, steps),
        ]

    def _rounded_weights(
        self, name: str, inputs: list[int], largest_bias: float, per_channel: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights as int8, a scale for each output channel or one for all, and the real bias."""
        weights = np.asarray(self._constant(inputs[1]))  # `_is_quantizable` has seen to it
        bias = self._constant(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else None
        axis = _WEIGHTED[name]
        channels = weights.shape[axis]
        bias = np.zeros(channels) if bias is None else bias.astype(np.float64)

        others = tuple(a for a in range(weights.ndim) if a != axis)
        scales = (np.abs(weights).max(axis=others).astype(np.float64) / 127).astype(np.float32)
        # A channel of tiny or no weights gets a scale with which its bias still fits.
        needed = np.abs(bias) / largest_bias
        scales = np.maximum(scales, np.maximum(needed, 1e-12).astype(np.float32))
        if not per_channel:
            scales = scales.max(keepdims=True)

        along = [1] * weights.ndim
        along[axis] = len(scales)
        wide = scales.reshape(along).astype(np.float64)
        rounded = np.clip(np.round(weights / wide), -127, 127)
        if self.options.correct_bias and inputs[0] in self.observed:
            bias = bias - self._mean_error(name, rounded * wide - weights, inputs[0])
        return rounded.astype(np.int8), scales, bias

    def _is_plain_average(self, operator: schema.OperatorT) -> bool:
        """Whether every window lies within the image, so that a convolution can take its mean.

        XNNPACK has no 8-bit average pooling: it would split the network in two. A depthwise
        convolution with equal weights is the same sum.
        """
        if self.is_16:
            return False
        _, height, width, _ = self.graph.tensors[int(operator.inputs[0])].shape
        pool = operator.builtinOptions
        rows = (height, pool.filterHeight, pool.strideH)
        columns = (width, pool.filterWidth, pool.strideW)
        fits = all(n % stride == 0 and size <= stride for n, size, stride in (rows, columns))
        return pool.padding == schema.Padding.VALID or fits

    def _average_weights(self, pool: schema.Pool2DOptionsT, source: int) -> list[int]:
        channels = int(self.graph.tensors[source].shape[-1])
        size = (1, pool.filterHeight, pool.filterWidth, channels)
        scales: np.ndarray = np.full(
            channels, 1 / (127 * pool.filterHeight * pool.filterWidth), np.float32
        )
        steps = np.float32(np.float64(self.params[source][0]) * scales)
        weights = np.full(size, 127, np.int8)
        return [
            self._new_constant(source, weights, scales, 3),
            self._new_constant(source, np.zeros(channels, np.int32), steps),
        ]

    def _mean_error(self, name: str, error: np.ndarray, source: int) -> np.ndarray:
        """What rounded weights add to every output channel on average (Nagel et al. 2019, 4.2).

        The error of the weights times the mean of what they multiply, which was observed. (At the
        borders padding makes the true mean a little smaller.)
        """
        means = self.observed[source].mean
        if name == "DEPTHWISE_CONV_2D":
            multiplier = error.shape[3] // len(means)
            return np.asarray(error.sum(axis=(0, 1, 2)) * np.repeat(means, multiplier))
        if name == "FULLY_CONNECTED":
            return np.asarray(error @ means)
        groups = len(means) // error.shape[3]
        per_group = error.sum(axis=(1, 2)).reshape(groups, -1, error.shape[3])
        return np.asarray(np.einsum("goi,gi->go", per_group, means.reshape(groups, -1)).reshape(-1))

    def _as_integer(self, index: int) -> int:
        """The quantized form of a tensor; made by a QUANTIZE where there is none yet."""
        if index not in self.integer:
            name = f"{self._tensor_name(index)}_quantized"
            made = self._new_tensor(name, index, self.dtype, self.params[index])
            self._emit("QUANTIZE", [self.real[index]], [made])
            self.integer[index] = made
        return self.integer[index]

    def _as_real(self, index: int) -> int:
        """The float form of a tensor; made by a DEQUANTIZE where there is none yet."""
        if index not in self.real:
            name = f"{self._tensor_name(index)}_dequantized"
            made = self._new_tensor(name, index, np.float32, None)
            self._emit("DEQUANTIZE", [self.integer[index]], [made])
            self.real[index] = made
        return self.real[index]

    def _emit(
        self,
        name: str,
        inputs: list[int],
        outputs: list[int],
        like: schema.OperatorT | None = None,
        version: int | None = None,
    ) -> None:
        operator = schema.OperatorT() if like is None else copy.copy(like)
        operator.opcodeIndex = self._code(name, version)
        operator.inputs, operator.outputs = inputs, outputs
        self.emitted.append(operator)

    def _code(self, name: str, version: int | None = None) -> int:
        number = getattr(schema.BuiltinOperator, name)
        version = version or _VERSIONS.get(name, (1, 1))[self.is_16]
        if (number, version) not in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = number, version
            code.deprecatedBuiltinCode = min(number, 127)
            self.model.operatorCodes.append(code)
            self.codes[number, version] = len(self.model.operatorCodes) - 1
        return self.codes[number, version]

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        limits = np.iinfo(np.dtype(self.dtype).name)
        return np.clip(np.round(values), limits.min, limits.max).astype(self.dtype)

    def _new_tensor(self, name: str, like: int, dtype: Any, params: Params | None) -> int:
        tensor = schema.TensorT()
        model = self.graph.tensors[like]
        tensor.name = name.encode()
        tensor.shape, tensor.shapeSignature = model.shape, model.shapeSignature
        tensor.type = getattr(schema.TensorType, np.dtype(dtype).name.upper())
        tensor.buffer = 0
        if params is not None:
            tensor.quantization = _quantization([params[0]], [params[1]])
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _new_constant(
        self,
        like: int,
        values: np.ndarray,
        scales: Any = None,
        axis: int = 0,
        zero_points: Any = None,
    ) -> int:
        index = self._new_tensor(self._tensor_name(like), like, values.dtype, None)
        tensor = self.graph.tensors[index]
        tensor.shape = list(values.shape)
        if scales is not None:
            tensor.quantization = _quantization(scales, zero_points or [0] * len(scales), axis)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1
        return index


def _bias_or_weights(inputs: list[int]) -> int:
    return inputs[2] if len(inputs) > 2 and inputs[2] >= 0 else inputs[1]


def _depthwise_like(operator: schema.OperatorT) -> schema.OperatorT:
    """A depthwise convolution with the windows of a pooling."""
    pool, options = operator.builtinOptions, schema.DepthwiseConv2DOptionsT()
    options.padding, options.depthMultiplier = pool.padding, 1
    options.strideH, options.strideW = pool.strideH, pool.strideW
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = pool.fusedActivationFunction
    convolution = copy.copy(operator)
    convolution.builtinOptionsType = schema.BuiltinOptions.DepthwiseConv2DOptions
    convolution.builtinOptions = options
    return convolution


def _quantization(scales: Any, zero_points: Any, axis: int = 0) -> schema.QuantizationParametersT:
    quantization = schema.QuantizationParametersT()
    quantization.scale = [float(np.float32(scale)) for scale in scales]
    quantization.zeroPoint = [int(zero_point) for zero_point in zero_points]
    quantization.quantizedDimension = axis
    return quantization


class _Groups:
    """Tensors that have to share a scale and a zero point."""

    def __init__(self, ranges: dict[int, tuple[float, float]]):
        self._ranges = ranges
        self._root = {i: i for i in ranges}

    def of(self, index: int) -> int:
        """The tensor that stands for a tensor's group."""
        return self._root[index]

    def members(self, index: int) -> list[int]:
        """All tensors of a tensor's group."""
        return [i for i, root in self._root.items() if root == self._root[index]]

    def range(self, index: int) -> tuple[float, float]:
        """The range of values of a tensor's group."""
        pairs = [self._ranges[i] for i in self.members(index)]
        return min(low for low, _ in pairs), max(high for _, high in pairs)

    def join(self, first: int, second: int, fixed: Collection[int]) -> None:
        """Makes two groups one; a fixed tensor stands for the group that it is in."""
        a, b = self._root[first], self._root[second]
        old, new = (a, b) if b in fixed else (b, a)
        for i in self.members(old):
            self._root[i] = new

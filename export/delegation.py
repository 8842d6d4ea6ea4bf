"""Which operators XNNPACK takes, and into how many pieces that cuts a graph.

XNNPACK is the delegate that LiteRT applies on every CPU unless it is told not to. What it leaves
runs in TFLite's own kernels: five to six times slower on a ResNet-50 (measured), and every change
of hands is one more partition. The conditions below are those of `tflite/delegates/xnnpack/
xnnpack_delegate.cc` in https://github.com/google-ai-edge/LiteRT; they were compared with what the
interpreter of ai-edge-litert 2.3.0 does for convolutional networks. Operators of other networks
(attention, variables, MediaPipe's custom operators) are taken as not delegated.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from keras_resnet.export.graph import Graph, Operator, Tensor

XNNPACK_SOURCE = (
    "https://github.com/google-ai-edge/LiteRT/blob/main/tflite/delegates/xnnpack/"
    "xnnpack_delegate.cc, compared with ai-edge-litert 2.3.0"
)
_QUANTIZED = ("int8", "uint8")


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_FLOAT_ONLY = names(
    "ABS CEIL COS EXP FLOOR GELU HARD_SWISH NEG RELU RELU6 RELU_N1_TO_1 ROUND RSQRT SIN SQRT "
    "SQUARE DIV MAXIMUM MINIMUM PRELU SQUARED_DIFFERENCE"
)
_FLOAT_OR_QUANTIZED = names("ELU LOGISTIC TANH LEAKY_RELU DEPTH_TO_SPACE SPACE_TO_DEPTH")
_MAX_RANK = 6
# Inputs that must be there; one elsewhere. A file may hold operators with fewer.
_INPUTS = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"), 3),
    **dict.fromkeys(("FULLY_CONNECTED", "BATCH_MATMUL", "ADD", "SUB", "MUL", "DIV"), 2),
    **dict.fromkeys(("MAXIMUM", "MINIMUM", "PRELU", "SQUARED_DIFFERENCE", "SPLIT"), 2),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "PAD", "TRANSPOSE"), 2),
    "RESIZE_BILINEAR": 2,
    "SLICE": 3,
    "STRIDED_SLICE": 4,
}


def xnnpack_refusal(graph: Graph, operator: Operator) -> str | None:
    """Why XNNPACK leaves an operator to TFLite's own kernels; None if it takes it."""
    check = _CHECKS.get(operator.name)
    if check is None and operator.name not in _FLOAT_ONLY | _FLOAT_OR_QUANTIZED:
        return "XNNPACK has no such operator"
    needed = _INPUTS.get(operator.name, 1)
    if len(operator.inputs) < needed or min(operator.inputs[:needed]) < 0 or not operator.outputs:
        return f"it lacks one of its {needed} inputs, or its output"
    if check is not None:
        return check(graph, operator)
    flowing = _flowing(graph, operator)
    others = sorted({t.dtype for t in flowing} - {"float32"})
    if operator.name in _FLOAT_ONLY and others:
        return f"it is delegated in float32 only, not in {' and '.join(others)}"
    return _tensors_refusal(flowing)


def partitions(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """The pieces of a graph that XNNPACK runs: the numbers of their operators.

    As TFLite does (`PartitionGraphIntoIndependentNodeSubsets`): pieces alternate between delegated
    and other operators, and each takes, in order of execution, every operator of its kind whose
    inputs are there.
    """
    taken = _delegated(graph)
    missing = [0] * len(graph.operators)
    for made in graph.producers:
        for number in graph.consumers.get(made, []):
            missing[number] += 1
    # The operators whose inputs are there, in order of execution: (others, delegated).
    ready: tuple[list[int], list[int]] = ([], [])
    for number, count in enumerate(missing):
        if count == 0:
            ready[number in taken].append(number)
    found: list[tuple[int, ...]] = []
    while ready[0] or ready[1]:
        kind = min((numbers[0], delegated) for delegated, numbers in enumerate(ready) if numbers)[1]
        piece = []
        while ready[kind]:
            number = heapq.heappop(ready[kind])
            piece.append(number)
            for made in dict.fromkeys(graph.operators[number].outputs):
                for user in graph.consumers.get(made, []):
                    missing[user] -= 1
                    if missing[user] == 0:
                        heapq.heappush(ready[user in taken], user)
        if kind:
            found.append(tuple(sorted(piece)))
    return tuple(found)


def _delegated(graph: Graph) -> set[int]:
    """The numbers of the operators that XNNPACK takes.

    Weights that a DEQUANTIZE or DENSIFY widens are unpacked when the file is loaded, so these
    operators count as delegated where all who take them are.
    """
    unpacking = {i for i, op in enumerate(graph.operators) if _unpacks(graph, op)}
    taken = {
        i
        for i, op in enumerate(graph.operators)
        if i not in unpacking and xnnpack_refusal(graph, op) is None
    }
    for i in sorted(unpacking, reverse=True):
        users = graph.consumers.get(graph.operators[i].outputs[0], [])
        if all(user in taken for user in users):
            taken.add(i)
    return taken


def _unpacks(graph: Graph, op: Operator) -> bool:
    if op.name not in ("DEQUANTIZE", "DENSIFY") or len(op.inputs) != 1 or len(op.outputs) != 1:
        return False
    source = graph.source(op.outputs[0])
    return source.index != op.outputs[0] and source.dtype in ("float16", "int8", "float32")


def _is_static(graph: Graph, index: int) -> bool:
    """Whether a tensor's values are known when the file is loaded."""
    return index >= 0 and graph.source(index).is_constant


def _flowing(graph: Graph, op: Operator) -> list[Tensor]:
    """The tensors of an operator, without shapes, axes and other arguments."""
    arguments = {
        "MEAN": 1, "SUM": 1, "REDUCE_MAX": 1, "REDUCE_MIN": 1, "PAD": 1, "RESHAPE": 1,
        "SLICE": 1, "STRIDED_SLICE": 1, "TRANSPOSE": 1, "RESIZE_BILINEAR": 1,
    }  # fmt: skip
    inputs = op.inputs[1:] if op.name == "SPLIT" else op.inputs[: arguments.get(op.name)]
    return [graph.tensors[i] for i in (*inputs, *op.outputs) if i >= 0]


def _tensors_refusal(tensors: list[Tensor]) -> str | None:
    """Why these activations cannot flow through one operator."""
    for tensor in tensors:
        if len(tensor.shape) > _MAX_RANK:
            return f"its tensors have more than {_MAX_RANK} dimensions"
        if tensor.dtype != "float32" and tensor.dtype not in _QUANTIZED:
            return f"it is delegated in float32 and 8 bits, not in {tensor.dtype}"
        if tensor.dtype in _QUANTIZED and len(tensor.scale) != 1:
            return f"tensor {tensor.name!r} has {len(tensor.scale)} scales where one is needed"
    if len({tensor.dtype for tensor in tensors}) > 1:
        return "its inputs and outputs have different types"
    return None


def _check_convolution(graph: Graph, op: Operator) -> str | None:
    if not all(_is_static(graph, i) for i in op.inputs[1:]):
        return "its weights are computed while the graph runs"
    x, weights, bias = (graph.tensors[i] for i in op.inputs[:3])
    y = graph.tensors[op.outputs[0]]
    if any(len(t.shape) != 4 for t in (x, weights, y)):
        return "its tensors do not have four dimensions"
    if (x.dtype, weights.dtype, y.dtype) == ("float32", "int8", "float32"):
        if op.name == "CONV_2D":
            return None  # quantized while it runs
        return "8-bit weights with float32 activations are delegated in CONV_2D only"
    channels = 0 if op.name == "CONV_2D" else 3
    return _tensors_refusal([x, y]) or _weights_refusal(x, weights, channels) or _bias_refusal(bias)


def _check_fully_connected(graph: Graph, op: Operator) -> str | None:
    if op.version == 8:
        return "sparse weights are not delegated"
    x, weights = (graph.tensors[i] for i in op.inputs[:2])
    y = graph.tensors[op.outputs[0]]
    if len(weights.shape) != 2:
        return "its weights do not have two dimensions"
    static = [i for i in op.inputs[1:] if i >= 0 and graph.tensors[i].dtype != "float32"]
    if not all(_is_static(graph, i) for i in static):
        return "its weights are computed while the graph runs"
    if (x.dtype, y.dtype) == ("float32", "float32") and weights.dtype in ("int8", "int4"):
        return None  # quantized while it runs
    bias = graph.tensors[op.inputs[2]] if len(op.inputs) > 2 and op.inputs[2] >= 0 else None
    return (
        _tensors_refusal([x, y])
        or (None if weights.dtype == "int4" else _weights_refusal(x, weights, 0))
        or (None if bias is None else _bias_refusal(bias))
    )


def _check_transposed_convolution(graph: Graph, op: Operator) -> str | None:
    if not all(_is_static(graph, i) for i in (*op.inputs[:2], *op.inputs[3:]) if i >= 0):
        return "its weights or its output's shape are computed while the graph runs"
    x, weights, y = (graph.tensors[i] for i in (op.inputs[2], op.inputs[1], op.outputs[0]))
    return _tensors_refusal([x, y]) or _weights_refusal(x, weights, 0)


def _weights_refusal(x: Tensor, weights: Tensor, channels: int) -> str | None:
    if weights.dtype != x.dtype:
        return f"{weights.dtype} weights with {x.dtype} activations are not delegated"
    if weights.dtype in _QUANTIZED and not weights.scale:
        return "its weights have no scale"
    if len(weights.scale) > 1:
        if weights.dtype == "uint8":
            return "uint8 weights with one scale per channel are not delegated"
        if weights.quantized_dimension != channels:
            return f"its weights are quantized along axis {weights.quantized_dimension}"
    if weights.scale and not 0 < weights.scale_range[0] <= weights.scale_range[1] < math.inf:
        return "its weights have a scale that is no positive number"
    return None


def _bias_refusal(bias: Tensor) -> str | None:
    if bias.dtype in ("float32", "float16"):
        return None
    if bias.dtype != "int32" or not bias.scale or bias.quantized_dimension != 0:
        return f"its bias, {bias.dtype} with {len(bias.scale)} scales, is not delegated"
    return None


def _check_scaled(graph: Graph, op: Operator) -> str | None:
    """ADD, SUB and MUL: the inputs' scales must be near the output's."""
    tensors = _flowing(graph, op)
    refusal = _tensors_refusal(tensors)
    if refusal or len(tensors) != 3 or tensors[0].dtype == "float32":
        return refusal
    first, second, output = (t.scale[0] for t in tensors)
    if op.name == "MUL":
        factors, low = [first * second / output if output else math.inf], 2.0**-16
    else:
        factors, low = [s / output if output else math.inf for s in (first, second)], 2.0**-10
    for factor in factors:
        if not low <= factor < 256:
            return f"its inputs are rescaled by {factor:.3g}, which is not in [{low:.3g}, 256)"
    return None


def _check_quantize(graph: Graph, op: Operator) -> str | None:
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if y.dtype not in _QUANTIZED or len(y.scale) != 1:
        return f"QUANTIZE to {y.dtype} is not delegated"
    if x.dtype == "float32":
        return None
    if x.dtype != y.dtype or len(x.scale) != 1:
        return f"QUANTIZE from {x.dtype} to {y.dtype} is not delegated"
    factor = x.scale[0] / y.scale[0] if y.scale[0] else math.inf
    if not 1 / 256 <= factor <= 128:
        return f"its input is rescaled by {factor:.3g}, which is not in [1/256, 128]"
    return None


def _check_dequantize(graph: Graph, op: Operator) -> str | None:
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if x.dtype in _QUANTIZED and len(x.scale) == 1 and y.dtype == "float32":
        return None
    return f"DEQUANTIZE from {x.dtype} to {y.dtype} is not delegated"


def _check_pooling(graph: Graph, op: Operator) -> str | None:
    tensors = _flowing(graph, op)
    if op.name == "AVERAGE_POOL_2D" and any(t.dtype != "float32" for t in tensors):
        return "it is delegated in float32 only (MEAN over the axes is delegated in 8 bits)"
    window = [(op.options["stride_w"], op.options["filter_width"])]
    window.append((op.options["stride_h"], op.options["filter_height"]))
    if any(stride > size for stride, size in window):
        return "its stride exceeds its window"
    return _tensors_refusal(tensors)


def _check_reshape(graph: Graph, op: Operator) -> str | None:
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if x.dtype in _QUANTIZED and (x.scale, x.zero_point) != (y.scale, y.zero_point):
        return "its input and its output have different scales"
    return _tensors_refusal([x, y]) or _check_arguments(graph, op)


def _check_arguments(graph: Graph, op: Operator) -> str | None:
    """MEAN, PAD, RESHAPE and the like: what they are told must be known beforehand."""
    arguments = op.inputs[:1] if op.name == "SPLIT" else op.inputs[1:]
    if not all(_is_static(graph, i) for i in arguments):
        return "its shape, axes or sizes are computed while the graph runs"
    return _tensors_refusal(_flowing(graph, op))


def _check_strided_slice(graph: Graph, op: Operator) -> str | None:
    if any(op.options[f"{mask}_mask"] for mask in ("ellipsis", "new_axis", "shrink_axis")):
        return "it adds or removes an axis"
    if any(n != 1 for n in graph.tensors[op.inputs[3]].values):
        return "its steps are not 1"
    return _check_arguments(graph, op)


def _check_concatenation(graph: Graph, op: Operator) -> str | None:
    if not 2 <= len(op.inputs) <= 5:
        return f"it joins {len(op.inputs)} tensors, and 2 to 5 are delegated"
    tensors = _flowing(graph, op)
    if tensors[-1].dtype == "uint8" and len({(t.scale, t.zero_point) for t in tensors}) > 1:
        return "its inputs and its output have different scales"
    return _tensors_refusal(tensors)


def _check_softmax(graph: Graph, op: Operator) -> str | None:
    if op.options["beta"] != 1:
        return f"its beta is {op.options['beta']:g}, and 1 is delegated"
    if any(t.dtype != "float32" for t in _flowing(graph, op)):
        return "it is delegated in float32 only"
    return None


def _check_batch_matmul(graph: Graph, op: Operator) -> str | None:
    x, other = (graph.tensors[i] for i in op.inputs[:2])
    y = graph.tensors[op.outputs[0]]
    if x.dtype == y.dtype == "float32" and other.dtype in ("float32", "int8"):
        return None
    return f"it is delegated with float32 activations, not with {x.dtype}"


_CHECKS: dict[str, Callable[[Graph, Operator], str | None]] = {
    "CONV_2D": _check_convolution,
    "DEPTHWISE_CONV_2D": _check_convolution,
    "FULLY_CONNECTED": _check_fully_connected,
    "TRANSPOSE_CONV": _check_transposed_convolution,
    "ADD": _check_scaled,
    "SUB": _check_scaled,
    "MUL": _check_scaled,
    "QUANTIZE": _check_quantize,
    "DEQUANTIZE": _check_dequantize,
    "AVERAGE_POOL_2D": _check_pooling,
    "MAX_POOL_2D": _check_pooling,
    "RESHAPE": _check_reshape,
    **dict.fromkeys(
        ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "PAD", "SLICE", "TRANSPOSE", "SPLIT"),
        _check_arguments,
    ),
    "RESIZE_BILINEAR": _check_arguments,
    "STRIDED_SLICE": _check_strided_slice,
    "CONCATENATION": _check_concatenation,
    "SOFTMAX": _check_softmax,
    "BATCH_MATMUL": _check_batch_matmul,
}

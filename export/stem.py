"""A first convolution that reads two pixels at a time, so that 8-bit kernels waste less of it.

The kernels that 8-bit convolutions run in multiply eight input channels at once (XNNPACK's `c8`:
AVX2, AVX-512 VNNI, ARM i8mm, WASM), and a picture has three: five in eight multiplications are with
zeros. Two neighbouring pixels side by side are six channels of a picture half as wide, without a
byte moved; a stride of 2 across becomes 1, and the weights are rearranged, with zeros where the
kernel's width is odd. The sums are of the same numbers, so the outputs are the same to the bit.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.export.flatbuffer import drop_unused, pack, unpack

_LANES = 8
_INT32 = schema.TensorType.INT32


def fold_stem(content: bytes) -> bytes:
    """Folds the columns of the first convolution's input in pairs, where that pays and can be.

    It pays for int8 with at most four input channels and a stride of 2 across. It can be where the
    padding is an operator before the convolution, as in networks whose padding is symmetric.

    Returns:
        The new file, or the same where that is not so.
    """
    model = unpack(content)
    found = _stem(model)
    if found is None or not _fold(model, *found):
        return content
    drop_unused(model)
    return pack(model)


def _fold(model: schema.ModelT, place: int, pad: schema.OperatorT, conv: schema.OperatorT) -> bool:
    graph = model.subgraphs[0]
    source, padded = graph.tensors[int(pad.inputs[0])], graph.tensors[int(conv.inputs[0])]
    batch, height, width, channels = map(int, source.shape)
    weights = _values(model, int(conv.inputs[1]), np.int8)
    amounts = _values(model, int(pad.inputs[1]), np.int32)
    left, right = map(int, amounts[2])

    # The padding on the left has to be whole pairs: one column more where it is odd, which meets a
    # column of zeros of the kernel.
    pairs_left, shift = (left + 1) // 2, left % 2
    folded = _folded(weights, shift)
    columns = (width + left + right - weights.shape[2]) // 2 + 1
    pairs_right = columns - 1 + folded.shape[2] - pairs_left - width // 2
    if pairs_right < 0:  # the last columns of the picture were cut off
        return False

    shape = [batch, height, width // 2, 2 * channels]
    pairs = _tensor(graph, source, shape)
    graph.operators.insert(place, _reshape(model, int(pad.inputs[0]), pairs, shape))
    amounts = np.array([amounts[0], amounts[1], [pairs_left, pairs_right], [0, 0]], np.int32)
    height, width = int(padded.shape[1]), shape[2] + int(sum(amounts[2]))
    wide = _tensor(graph, padded, [batch, height, width, shape[3]])
    pad.inputs = [pairs, _constant(model, amounts, b"pairs/paddings")]
    pad.outputs = [wide]
    conv.inputs = [wide, _weights(model, int(conv.inputs[1]), folded), *conv.inputs[2:]]
    conv.builtinOptions.strideW = 1
    return True


def _stem(model: schema.ModelT) -> tuple[int, schema.OperatorT, schema.OperatorT] | None:
    """The place of the PAD, the PAD and the first convolution, if they are as they have to be."""
    graph = model.subgraphs[0]
    names = [_number(model, operator) for operator in graph.operators]
    if schema.BuiltinOperator.CONV_2D not in names:
        return None
    at = names.index(schema.BuiltinOperator.CONV_2D)
    conv, options = graph.operators[at], graph.operators[at].builtinOptions
    weights = graph.tensors[int(conv.inputs[1])]
    source = int(conv.inputs[0])
    made = [i for i, op in enumerate(graph.operators) if source in map(int, op.outputs)]
    users = [op for op in graph.operators if source in map(int, op.inputs)]
    if not made or names[made[0]] != schema.BuiltinOperator.PAD or len(users) != 1:
        return None
    pad = graph.operators[made[0]]
    shape = [int(n) for n in graph.tensors[int(pad.inputs[0])].shape]
    fits = (
        weights.type == schema.TensorType.INT8
        and options.strideW == 2
        and options.dilationWFactor == 1
        and options.padding == schema.Padding.VALID
        and shape[3] == int(weights.shape[3])  # no groups
        and 2 * shape[3] <= _LANES
        and shape[2] % 2 == 0
        and source not in map(int, graph.outputs)
    )
    return (made[0], pad, conv) if fits else None


def _folded(weights: np.ndarray, shift: int) -> np.ndarray:
    """`(outputs, height, width, channels)` to half the width and twice the channels."""
    missing = (shift + weights.shape[2]) % 2
    wide = np.pad(weights, ((0, 0), (0, 0), (shift, missing), (0, 0)))
    outputs, height, width, channels = wide.shape
    return wide.reshape(outputs, height, width // 2, 2 * channels)


def _number(model: schema.ModelT, operator: schema.OperatorT) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _values(model: schema.ModelT, index: int, dtype: type) -> np.ndarray:
    tensor = model.subgraphs[0].tensors[index]
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    return data.view(dtype).reshape([int(n) for n in tensor.shape])


def _tensor(graph: schema.SubGraphT, like: schema.TensorT, shape: list[int]) -> int:
    """A new activation with the name, type and quantization of another."""
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = like.name + b"/pairs", like.type, 0
    tensor.shape, tensor.quantization = np.array(shape, np.int32), like.quantization
    if like.shapeSignature is not None:
        tensor.shapeSignature = np.array([int(like.shapeSignature[0]), *shape[1:]], np.int32)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _constant(model: schema.ModelT, values: np.ndarray, name: bytes) -> int:
    graph = model.subgraphs[0]
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape = name, _INT32, np.array(values.shape, np.int32)
    tensor.buffer = _buffer(model, values)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _weights(model: schema.ModelT, index: int, values: np.ndarray) -> int:
    graph = model.subgraphs[0]
    old, tensor = graph.tensors[index], schema.TensorT()
    tensor.name, tensor.type, tensor.quantization = old.name, old.type, old.quantization
    tensor.shape, tensor.buffer = np.array(values.shape, np.int32), _buffer(model, values)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _buffer(model: schema.ModelT, values: np.ndarray) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _reshape(model: schema.ModelT, source: int, target: int, shape: list[int]) -> schema.OperatorT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    code.version = 1
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    # Of an open batch, -1.
    tensor = model.subgraphs[0].tensors[target]
    is_open = tensor.shapeSignature is not None and int(tensor.shapeSignature[0]) == -1
    wanted = [-1 if is_open else shape[0], *shape[1:]]
    operator.inputs = [source, _constant(model, np.array(wanted, np.int32), b"pairs/shape")]
    operator.outputs = [target]
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT()
    operator.builtinOptions.newShape = wanted
    return operator

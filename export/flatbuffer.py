"""Surgery on `.tflite` files: read into objects, changed, and written back.

Needs ai-edge-litert and numpy alone, so that it also works on a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"


def unpack(content: bytes) -> schema.ModelT:
    """The objects of a `.tflite` file's bytes.

    Raises:
        ValueError: if they are no such file.
    """
    if content[4:8] != IDENTIFIER:
        raise ValueError(f"Not a TFLite file. Received: bytes that begin with {content[:8]!r}")
    return schema.ModelT.InitFromPackedBuf(content, 0)


def pack(model: schema.ModelT) -> bytes:
    """The bytes of a `.tflite` file; the same objects give the same bytes."""
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = _AlignedBuilder(size + (1 << 16))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def with_all_outputs(content: bytes) -> tuple[bytes, list[str]]:
    """The same network with every tensor that depends on the input among its outputs.

    A delegate hands out nothing but the outputs of the graph. With all of them there, XNNPACK runs
    the network at its full speed and every intermediate can be read all the same.

    Returns:
        The file, and the names of its outputs in their order; the original outputs keep their
        place among the others, in the order of execution.

    Raises:
        ValueError: if the bytes are no `.tflite` file.
    """
    model = unpack(content)
    graph = model.subgraphs[0]
    graph.outputs = activations(graph)
    return pack(model), [graph.tensors[i].name.decode() for i in graph.outputs]


def activations(graph: schema.SubGraphT) -> list[int]:
    """The numbers of the tensors that are computed from the input, in the order of execution.

    The input itself is left out, and so is what is computed from constants alone (weights that are
    stored in float16 and widened when the file is loaded).
    """
    found = dict.fromkeys(map(int, graph.inputs))
    for operator in graph.operators:
        if any(int(i) in found for i in operator.inputs):
            found |= dict.fromkeys(map(int, operator.outputs))
    return list(found)[len(graph.inputs) :]


def name_ends(model: schema.ModelT, source: str, targets: Sequence[str]) -> None:
    """Gives the input and the outputs names, as tensors and in the only signature."""
    graph = model.subgraphs[0]

    def entry(index: int, name: str) -> schema.TensorMapT:
        graph.tensors[index].name = name.encode()
        mapped = schema.TensorMapT()
        mapped.name, mapped.tensorIndex = name.encode(), int(index)
        return mapped

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs = [entry(graph.inputs[0], source)]
    signature.outputs = [
        entry(index, name) for index, name in zip(graph.outputs, targets, strict=True)
    ]
    model.signatureDefs = [signature]


def drop_unused(model: schema.ModelT) -> None:
    """Removes the tensors, constants and operator codes that nothing refers to any more."""
    graph = model.subgraphs[0]
    codes = sorted({operator.opcodeIndex for operator in graph.operators})
    for operator in graph.operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[i] for i in codes]

    used = {*map(int, graph.inputs), *map(int, graph.outputs)}
    for operator in graph.operators:
        used |= {int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0}
    number = {old: new for new, old in enumerate(sorted(used))} | {-1: -1}
    graph.tensors = [graph.tensors[i] for i in sorted(used)]
    for end in (graph, *graph.operators):
        end.inputs = [number[int(i)] for i in end.inputs]
        end.outputs = [number[int(i)] for i in end.outputs]
    for signature in model.signatureDefs or ():
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = number[entry.tensorIndex]

    # The first buffer is the empty one by convention; metadata have theirs as well.
    owners = [*graph.tensors, *(model.metadata or ())]
    kept = sorted({0, *(owner.buffer for owner in owners)})
    for owner in owners:
        owner.buffer = kept.index(owner.buffer)
    model.buffers = [model.buffers[i] for i in kept]


class _AlignedBuilder(flatbuffers.Builder):
    """Puts constants at multiples of 16 bytes, as the TFLite schema asks and Python forgets."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, 16)
        self.head -= x.size
        self.Bytes[self.head : self.head + x.size] = x.tobytes()
        return self.EndVector()

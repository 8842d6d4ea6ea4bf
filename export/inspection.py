"""What a .tflite holds, read from the flatbuffer alone."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.export.delegation import partitions, xnnpack_refusal
from keras_resnet.export.graph import WEIGHTED, Graph, Operator, Tensor, read_graph
from keras_resnet.export.tables import TFLiteFileError
from keras_resnet.export.targets import Finding, check

__all__ = [
    "Graph",
    "Inspection",
    "Layer",
    "Operator",
    "TFLiteFileError",
    "Tensor",
    "arena_bytes",
    "inspect",
    "multiply_adds",
    "read_graph",
]

# Of what TFLite Micro hands out: micro_arena_constants.h.
_ALIGNMENT = 16
_MANY = 20_000  # activations: planning takes time that grows with their square
_LAYERS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Layer:
    """An operator with constants or with multiplications.

    Attributes:
        name: of its output.
        operator: e.g. `"CONV_2D"`.
        size: bytes that its constants take in the file; what two layers share counts for the first.
        multiply_adds: for one image.
    """

    name: str
    operator: str
    size: int
    multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        file: its path, or "" if bytes were given.
        size: its bytes.
        scheme: the number format that it really has, or `"mixed"`.
        graph: all tensors and operators.
        operators: how many there are of each kind, in all subgraphs, commonest first.
        layers: largest first.
        multiply_adds: of all layers that an interpreter runs, for one image.
        arena_bytes: of memory for what flows between the layers, as `arena_bytes` estimates it;
            None for a graph of more than 20,000 activations.
        partitions: the operators, by their numbers, of each piece that XNNPACK runs.
        left: why operators are left to TFLite's own kernels: (name, reason) and how often.
        target: what the file was held against, or None.
        findings: what the target refuses or runs slowly.
    """

    file: str
    size: int
    scheme: str
    graph: Graph
    operators: dict[str, int]
    layers: tuple[Layer, ...]
    multiply_adds: int
    arena_bytes: int | None
    partitions: tuple[tuple[int, ...], ...]
    left: dict[tuple[str, str], int]
    target: str | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether the target would not run the file."""
        return any(finding.severity == "refused" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists, dictionaries, strings and numbers, for JSON."""
        graph = self.graph
        return {
            "file": self.file,
            "size": self.size,
            "scheme": self.scheme,
            "description": graph.description,
            "subgraphs": 1 + len(graph.others),
            "metadata": sorted(graph.metadata),
            "inputs": [_describe(graph.tensors[i]) for i in graph.inputs],
            "outputs": [_describe(graph.tensors[i]) for i in graph.outputs],
            "operators": self.operators,
            "tensors": [_describe(tensor) for tensor in graph.tensors],
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "multiply_adds": self.multiply_adds,
            "arena_bytes": self.arena_bytes,
            "xnnpack": {
                "partitions": [list(piece) for piece in self.partitions],
                "left": [
                    {"operator": name, "reason": reason, "count": count}
                    for (name, reason), count in self.left.items()
                ],
            },
            "target": self.target,
            "refused": self.is_refused,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        graph = self.graph
        lines = [
            f"{self.file or 'model'}: {self.scheme}, {_bytes(self.size)}, "
            f"{self.multiply_adds / 1e6:,.2f} million multiply-adds"
        ]
        ends = (("input", graph.inputs), ("output", graph.outputs))
        lines += [f"{kind:10}{_line(graph.tensors[i])}" for kind, ends_ in ends for i in ends_]
        lines.append(f"operators {_histogram(self.operators)}")
        dtypes = collections.Counter(tensor.dtype for tensor in graph.tensors)
        lines.append(f"tensors   {_histogram(dict(dtypes.most_common()))}")
        if graph.others:
            lines.append(f"subgraphs {1 + len(graph.others)}")
        if graph.metadata:
            lines.append(f"metadata  {', '.join(sorted(graph.metadata))}")
        if self.arena_bytes is not None:
            lines.append(f"arena     about {_bytes(self.arena_bytes)} of activations")
        lines += self._delegation()
        if self.layers:
            lines.append("largest layers")
        lines += [
            f"  {layer.size:>11,} bytes  {layer.multiply_adds / 1e6:>9.2f} M  "
            f"{layer.operator:18}{layer.name}"
            for layer in self.layers[:_LAYERS_SHOWN]
        ]
        if self.target is not None:
            verdict = "refuses this file" if self.is_refused else "takes this file"
            lines.append(f"{self.target} {verdict}")
            lines += [str(finding) for finding in self.findings]
        return "\n".join(lines)

    def _delegation(self) -> list[str]:
        taken, all_ = sum(map(len, self.partitions)), len(self.graph.operators)
        pieces = f"{len(self.partitions)} partition{'s' if len(self.partitions) != 1 else ''}"
        return [
            f"xnnpack   takes {taken} of {all_} operators in {pieces}",
            *(f"  leaves {count} {name}: {reason}" for (name, reason), count in self.left.items()),
        ]


def inspect(file: str | os.PathLike[str] | bytes, target: str | None = None) -> Inspection:
    """What any `.tflite` file holds, from the flatbuffer alone: nothing is run.

    Args:
        file: a path, or the bytes.
        target: one of `TARGETS` (`"xnnpack"`, `"tflm"`, `"web"`, `"mediapipe"`): the file is also
            held against what this one refuses or runs slowly.

    Raises:
        OSError: if there is no such file.
        TFLiteFileError: (a ValueError) if it is no TFLite file, or a damaged one.
        ValueError: if there is no such target.
    """
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    graph = _read(file, content)
    graphs = (graph, *graph.others)
    operators = collections.Counter(op.title for each in graphs for op in each.operators)
    pieces = partitions(graph)
    taken = {number for piece in pieces for number in piece}
    left = collections.Counter(
        (op.title, xnnpack_refusal(graph, op) or "others take its output")
        for number, op in enumerate(graph.operators)
        if number not in taken
    )
    return Inspection(
        file="" if isinstance(file, bytes) else os.fspath(file),
        size=len(content),
        scheme=graph.scheme,
        graph=graph,
        operators=dict(operators.most_common()),
        layers=_layers(graphs),
        multiply_adds=sum(multiply_adds(graph, op) for op in graph.operators),
        arena_bytes=arena_bytes(graph),
        partitions=pieces,
        left=dict(left.most_common()),
        target=target,
        findings=() if target is None else tuple(check(graph, target)),
    )


def _read(file: str | os.PathLike[str] | bytes, content: bytes) -> Graph:
    """The graph of a content that was read once; errors name the file."""
    try:
        return read_graph(content)
    except TFLiteFileError as error:
        if isinstance(file, bytes):
            raise
        raise TFLiteFileError(str(error).replace("the bytes given", os.fspath(file))) from None


def multiply_adds(graph: Graph, operator: Operator) -> int:
    """Multiplications of an operator that are added up, for a batch of one where it is open.

    As papers count them: convolutions (grouped and depthwise ones as such, transposed ones by
    their input), matrix products and fully connected layers; nothing else, and no biases.
    """
    if not operator.outputs or len(operator.inputs) < 2 or min(operator.inputs[:2]) < 0:
        return 0
    output = graph.tensors[operator.outputs[0]]
    if operator.name == "BATCH_MATMUL":
        x = graph.tensors[operator.inputs[0]]
        axis = -2 if operator.options["adj_x"] else -1
        return output.elements * abs(x.shape[axis]) if len(x.shape) > 1 else 0
    weights = graph.tensors[operator.inputs[1]].shape
    ranks = {"FULLY_CONNECTED": 2, "CONV_3D": 5}
    if operator.name not in WEIGHTED or len(weights) != ranks.get(operator.name, 4):
        return 0
    if operator.name == "TRANSPOSE_CONV":  # every value of the input meets the whole kernel
        if len(operator.inputs) < 3 or operator.inputs[2] < 0:
            return 0
        return graph.tensors[operator.inputs[2]].elements * math.prod(map(abs, weights[:3]))
    # How many inputs one value of the output is made of. The kernels lie in the file as
    # (out, height, width, in / groups), (1, height, width, channels), (out, in) and
    # (depth, height, width, in, out).
    made_of = {
        "CONV_2D": weights[1:],
        "DEPTHWISE_CONV_2D": weights[1:3],
        "FULLY_CONNECTED": weights[1:],
        "CONV_3D": weights[:4],
    }[operator.name]
    return output.elements * math.prod(map(abs, made_of))


def arena_bytes(graph: Graph) -> int | None:
    """Bytes that the activations need at least when their memory is used again and again.

    This is the plan of TFLite Micro's `GreedyMemoryPlanner` (greedy_memory_planner.cc): every
    tensor lives from the operator that makes it to the last one that takes it, inputs from the
    start, outputs to the end; the largest is placed first, each at the lowest offset where it
    overlaps no tensor that lives at the same time; sizes are rounded up to 16 bytes. It equals
    the "head" that the interpreter of tflite-micro 0.dev20261023 reports, to the byte where no
    kernel asks for scratch memory. What an interpreter keeps besides (its own structures, in TFLite
    Micro the "tail") comes on top. LiteRT plans alike with 64-byte steps for what runs in its own
    kernels; inside a delegate it is XNNPACK that decides.

    Weights that are widened when the file is loaded (float16, sparse) are not counted.

    Returns:
        None for a graph of more than 20,000 activations.
    """
    lives: dict[int, list[int]] = {i: [0, 0] for i in graph.inputs}
    for number, op in enumerate(graph.operators, start=1):
        for i in op.outputs:
            lives[i] = [number, number]
        for i in op.inputs:
            if i in lives:
                lives[i][1] = number
    for i in graph.outputs:
        if i in lives:
            lives[i][1] = len(graph.operators)
    wanted = []
    for i, (first, last) in lives.items():
        tensor = graph.tensors[i]
        if tensor.is_constant or tensor.is_variable or graph.source(i).is_constant:
            continue
        size = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if size:
            wanted.append((size, i, first, last))
    return _planned(sorted(wanted, reverse=True)) if len(wanted) <= _MANY else None


def _planned(wanted: list[tuple[int, int, int, int]]) -> int:
    """The height of what is stacked: (size, number, first use, last use), in this order."""
    firsts = np.array([first for _, _, first, _ in wanted])
    lasts = np.array([last for _, _, _, last in wanted])
    offsets: list[int] = []
    height = 0
    for number, (size, _, first, last) in enumerate(wanted):
        together = np.flatnonzero((firsts[:number] <= last) & (lasts[:number] >= first)).tolist()
        offset = 0
        for other in sorted(together, key=offsets.__getitem__):
            if offsets[other] - offset >= size:
                break
            offset = max(offset, offsets[other] + wanted[other][0])
        offsets.append(offset)
        height = max(height, offset + size)
    return height


def _layers(graphs: tuple[Graph, ...]) -> tuple[Layer, ...]:
    counted: set[int] = set()
    layers = []
    for graph in graphs:
        for op in graph.operators:
            if any(graph.source(i).is_constant for i in op.outputs):
                continue  # it only widens weights, and these belong to the layer that takes them
            size = 0
            for constant in (graph.source(i) for i in op.inputs if i >= 0):
                if constant.is_constant and constant.buffer not in counted:
                    counted.add(constant.buffer)
                    size += constant.size
            work = multiply_adds(graph, op)
            if size or work:
                name = graph.tensors[op.outputs[0]].name.split(";")[0] if op.outputs else ""
                layers.append(Layer(name, op.title, size, work))
    return tuple(sorted(layers, key=lambda layer: -layer.size))


def _describe(tensor: Tensor) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "size": tensor.size,
    }
    if tensor.scale:
        about["scale"] = list(tensor.scale)
        about["zero_point"] = list(tensor.zero_point)
        about["quantized_dimension"] = tensor.quantized_dimension
    return about


def _line(tensor: Tensor) -> str:
    shape = ", ".join("?" if n < 0 else str(n) for n in tensor.shape)
    line = f"{tensor.name} ({shape}) {tensor.dtype}"
    if len(tensor.scale) == 1:
        zero_point = tensor.zero_point[0] if tensor.zero_point else 0
        line += f", scale {tensor.scale[0]:.6g}, zero point {zero_point}"
    return line


def _histogram(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _bytes(size: int) -> str:
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:,.2f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"

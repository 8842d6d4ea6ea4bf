"""The graphs of a `.tflite` file, read from the flatbuffer alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.export.tables import Content, Table, TFLiteFileError

_TYPES = {
    number: name.lower() for name, number in vars(schema.TensorType).items() if name.isupper()
}
_OPERATORS = {
    number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
}
# Bits of a value. Strings, resources and variants have no fixed size.
_BITS = {
    **dict.fromkeys(("int2",), 2),
    **dict.fromkeys(("int4", "uint4"), 4),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 8),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("int32", "uint32", "float32"), 32),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 64),
    "complex128": 128,
}
# The operators that hold a network's weights: the numbers of their input and of their weights.
WEIGHTED = {
    "CONV_2D": (0, 1),
    "DEPTHWISE_CONV_2D": (0, 1),
    "FULLY_CONNECTED": (0, 1),
    "CONV_3D": (0, 1),
    "TRANSPOSE_CONV": (2, 1),
}
# The options that something here asks for: (position in the schema, format, default).
_POOLING: dict[str, tuple[int, str, float]] = {
    "stride_w": (1, "<i", 0),
    "stride_h": (2, "<i", 0),
    "filter_width": (3, "<i", 0),
    "filter_height": (4, "<i", 0),
    "activation": (5, "<b", 0),
}
_OPTIONS: dict[str, dict[str, tuple[int, str, float]]] = {
    "CONV_2D": {
        "stride_w": (1, "<i", 0),
        "stride_h": (2, "<i", 0),
        "activation": (3, "<b", 0),
        "dilation_w": (4, "<i", 1),
        "dilation_h": (5, "<i", 1),
    },
    "DEPTHWISE_CONV_2D": {
        "stride_w": (1, "<i", 0),
        "stride_h": (2, "<i", 0),
        "depth_multiplier": (3, "<i", 0),
        "activation": (4, "<b", 0),
        "dilation_w": (5, "<i", 1),
        "dilation_h": (6, "<i", 1),
    },
    "AVERAGE_POOL_2D": _POOLING,
    "MAX_POOL_2D": _POOLING,
    "FULLY_CONNECTED": {"activation": (0, "<b", 0), "weights_format": (1, "<b", 0)},
    "SOFTMAX": {"beta": (0, "<f", 0.0)},
    "ADD": {"activation": (0, "<b", 0)},
    "SUB": {"activation": (0, "<b", 0)},
    "MUL": {"activation": (0, "<b", 0)},
    "DIV": {"activation": (0, "<b", 0)},
    "BATCH_MATMUL": {"adj_x": (0, "<B", 0), "adj_y": (1, "<B", 0)},
    "LEAKY_RELU": {"alpha": (0, "<f", 0.0)},
    "STRIDED_SLICE": {
        "ellipsis_mask": (2, "<i", 0),
        "new_axis_mask": (3, "<i", 0),
        "shrink_axis_mask": (4, "<i", 0),
    },
}
_FEW = 64  # integers: more are data, not the shape, axes or paddings of an operator


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        index: its number.
        name: its name.
        shape: -1 where it is open.
        dtype: e.g. `"int8"`.
        is_constant: whether the file holds its values.
        size: bytes of these values.
        scale: of the quantization, one per channel or one for all; empty if it is not quantized.
        zero_point: likewise.
        quantized_dimension: the axis that the scales belong to, where there are several.
        buffer: number of the buffer that holds the values; tensors may share one.
        is_variable: whether it keeps its values from one run to the next.
        is_sparse: whether only the values that are not zero are stored.
        values: of constant integers, if they are few: shapes, axes, paddings.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    is_constant: bool
    size: int
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    quantized_dimension: int = 0
    buffer: int = 0
    is_variable: bool = False
    is_sparse: bool = False
    values: tuple[int, ...] = ()

    @functools.cached_property
    def scale_range(self) -> tuple[float, float]:
        """The smallest and the largest scale; NaN where one is."""
        return float(np.min(self.scale)), float(np.max(self.scale))

    @property
    def elements(self) -> int:
        """How many values it has, where an open dimension counts as one."""
        return math.prod(1 if n < 0 else n for n in self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of these values in memory; 0 where the type has no fixed size."""
        return -(-self.elements * _BITS.get(self.dtype, 0) // 8)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operation of a graph.

    Attributes:
        name: as TFLite calls it; `"CUSTOM"` if it is not TFLite's own.
        inputs: numbers of its tensors; -1 where an optional one is missing.
        outputs: likewise.
        custom_code: the name of a custom operator, e.g. `"FlexErf"`.
        version: of the operator.
        options: numbers that it is called with, those that inspection needs.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom_code: str = ""
    version: int = 1
    options: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def title(self) -> str:
        """The name, with that of a custom operator."""
        return f"{self.name}({self.custom_code})" if self.custom_code else self.name


@dataclasses.dataclass(frozen=True)
class Graph:
    """A subgraph of a file, in order of execution.

    Attributes:
        tensors, operators: what it is made of.
        inputs, outputs: numbers of tensors.
        name: of the subgraph.
        others: the file's further subgraphs (bodies of IF and WHILE, other signatures); only the
            first subgraph, which an interpreter runs, knows of them.
        metadata: what the file carries besides, by name.
        description: what the converter wrote into the file.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    name: str = ""
    others: tuple[Graph, ...] = ()
    metadata: Mapping[str, bytes] = dataclasses.field(default_factory=dict, compare=False)
    description: str = ""

    @functools.cached_property
    def producers(self) -> dict[int, int]:
        """The number of the operator that makes a tensor, by the number of the tensor."""
        return {t: i for i, op in enumerate(self.operators) for t in op.outputs}

    @functools.cached_property
    def consumers(self) -> dict[int, list[int]]:
        """The numbers of the operators that take a tensor, by the number of the tensor."""
        found: dict[int, list[int]] = {}
        for i, op in enumerate(self.operators):
            for t in dict.fromkeys(op.inputs):
                found.setdefault(t, []).append(i)
        return found

    def source(self, index: int) -> Tensor:
        """The tensor, or the stored one that it is a DEQUANTIZE or DENSIFY of.

        This is how a file holds float16 and sparse weights.
        """
        tensor = self.tensors[index]
        seen = set()
        while tensor.index in self.producers and tensor.index not in seen:
            seen.add(tensor.index)
            producer = self.operators[self.producers[tensor.index]]
            if producer.name not in ("DEQUANTIZE", "DENSIFY") or not producer.inputs:
                break
            if producer.inputs[0] < 0:
                break
            tensor = self.tensors[producer.inputs[0]]
        return tensor if tensor.is_constant else self.tensors[index]

    @property
    def scheme(self) -> str:
        """The number format that the weights and activations really have.

        A name from `SCHEMES`, or `"mixed"` where the layers do not agree.
        """
        small, classifier = self._small_weights(), self._float_classifier()
        kinds: set[tuple[str, str, str]] = set()
        of_classifier: set[tuple[str, str, str]] = set()
        for op, x, weights in self._weighted():
            y = self.tensors[op.outputs[0]]
            if weights.index in small and x.dtype == y.dtype == weights.dtype == "float32":
                continue
            # Only float16 weights are widened when the file is loaded; 8-bit weights that are
            # widened make a float network with small files, which is none of the schemes.
            stored = self.source(weights.index).dtype
            if weights.dtype == "float32" and stored not in ("float32", "float16"):
                stored = "widened " + stored
            kind = (x.dtype, stored, y.dtype)
            (of_classifier if op in classifier else kinds).add(kind)
        if of_classifier != {("float32", "int8", "float32")} or kinds != {("int8", "int8", "int8")}:
            kinds |= of_classifier
        names = {
            ("float32", "float32", "float32"): "float32",
            ("float32", "float16", "float32"): "float16",
            ("float32", "int8", "float32"): "dynamic_int8",
            ("int8", "int8", "int8"): "int8",
            ("int16", "int8", "int16"): "int16x8",
        }
        schemes = {names.get(kind, "mixed") for kind in kinds} or {self._of_no_weights()}
        if len(schemes) != 1:
            return "mixed"
        scheme = schemes.pop()
        flowing = {"int8": {"int8", "uint8"}, "int16x8": {"int16", "uint8", "int8"}}.get(scheme)
        return "mixed" if flowing and not self._flows_in(flowing) else scheme

    def _weighted(self) -> list[tuple[Operator, Tensor, Tensor]]:
        """The operators with weights, their inputs and their weights."""
        found = []
        for op in self.operators:
            x, weights = WEIGHTED.get(op.name, (0, 0))
            if not weights or len(op.inputs) <= max(x, weights) or not op.outputs:
                continue
            if min(op.inputs[x], op.inputs[weights]) >= 0:
                found.append((op, self.tensors[op.inputs[x]], self.tensors[op.inputs[weights]]))
        return found

    def _of_no_weights(self) -> str:
        """The scheme of a graph that only moves or combines its inputs."""
        dtypes = {self.tensors[i].dtype for op in self.operators for i in op.outputs if i >= 0}
        return "int8" if dtypes and dtypes <= {"int8", "uint8"} else "float32"

    def _flows_in(self, dtypes: set[str]) -> bool:
        """Whether floating-point numbers come only in, by a QUANTIZE, or out.

        Out is a DEQUANTIZE at an end, or in front of a classifier in float32.
        """
        classifier = self._float_classifier()
        ends = {*self.outputs, *(i for op in classifier for i in op.inputs)}
        operators = [
            op
            for op in self.operators
            if not (op.name == "QUANTIZE" and {*self.inputs} & {*op.inputs})
            and not (op.name == "DEQUANTIZE" and ends & {*op.outputs})
            and op not in classifier
        ]
        used = {i for op in operators for i in (*op.inputs, *op.outputs) if i >= 0}
        # 32- and 64-bit integers are biases, shapes, axes, and the numbers of classes.
        return {self.tensors[i].dtype for i in used} <= dtypes | {"int8", "int32", "int64"}

    def _float_classifier(self) -> list[Operator]:
        """What gives scores in float32, of an 8-bit file: SOFTMAX, a dense layer, its mean."""
        found, wanted = [], {*self.outputs}
        for name in ("SOFTMAX", "FULLY_CONNECTED", "MEAN"):
            for op in self.operators:
                if op.name == name and wanted & {*op.outputs} and self._takes_float(op):
                    found.append(op)
                    wanted.update(op.inputs[:1])
        return found

    def _takes_float(self, op: Operator) -> bool:
        """Whether it goes from float32 to float32, with 8-bit weights if it has any."""
        dtypes = [self.tensors[i].dtype for i in (*op.inputs[:2], *op.outputs) if i >= 0]
        if op.name == "FULLY_CONNECTED":
            return dtypes == ["float32", "int8", "float32"]
        return {*dtypes[:1], *dtypes[-1:]} == {"float32"}

    def _small_weights(self) -> set[int]:
        """Float weights that TFLite's dynamic quantization leaves alone: under 1,024 values.

        Only where the file has quantized weights besides; in a float file none are small.
        """
        weights = [weights for _, _, weights in self._weighted()]
        if all(tensor.dtype == "float32" for tensor in weights):
            return set()
        return {tensor.index for tensor in weights if tensor.elements < 1024}


def read_graph(file: str | os.PathLike[str] | bytes) -> Graph:
    """Reads a `.tflite` file, or its bytes: the subgraph that an interpreter runs, and the others.

    Every offset is checked before it is followed, every number of a tensor, buffer or operator
    before it is used, and constants must be as long as their shape and type say. What nobody can
    see is a changed weight: a bundle's digests are for that.

    Raises:
        OSError: if there is no such file.
        TFLiteFileError: (a ValueError) if it is no TFLite file, or a damaged one.
    """
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    where = "the bytes given" if isinstance(file, bytes) else os.fspath(file)
    if content[4:8] != b"TFL3":
        raise TFLiteFileError(f"Not a TFLite file: {where}. Received: {len(content)} bytes")
    try:
        return _Model(Content(content)).graph()
    except TFLiteFileError as error:
        raise TFLiteFileError(f"{error}. Received: {where}") from None


class _Model:
    """The tables of a file, on the way to graphs. Positions of fields: schema.fbs of TFLite."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._root = content.root()
        self._buffers = [self._buffer(table) for table in self._root.tables(4)]
        self._codes = [self._code(table) for table in self._root.tables(1)]

    def graph(self) -> Graph:
        graphs = [self._subgraph(table) for table in self._root.tables(2)]
        if not graphs:
            raise TFLiteFileError("The file is damaged: it holds no subgraph")
        metadata = {}
        for table in self._root.tables(6):
            at, size = self._at(self._buffers, table.integer(1, "<I"), "buffer")
            metadata[table.text(0)] = self._content.bytes[at : at + size]
        return dataclasses.replace(
            graphs[0],
            others=tuple(graphs[1:]),
            metadata=metadata,
            description=self._root.text(3),
        )

    def _buffer(self, table: Table) -> tuple[int, int]:
        """Where the bytes of a buffer lie, and how many they are."""
        at, size = table.integer(1, "<Q"), table.integer(2, "<Q")
        if at > 1:  # files that grow beyond 2 GB have the bytes behind the flatbuffer
            self._content.check(at, size)
            return at, size
        return table.span(0)

    def _code(self, table: Table) -> tuple[str, str, int]:
        """Name, custom name and version of a kind of operator."""
        # Numbers above 127 stand in the second field, which older files do not have.
        number = max(table.integer(0, "<b"), table.integer(3))
        name = _OPERATORS.get(number, f"UNKNOWN_{number}")
        return name, table.text(1) if name == "CUSTOM" else "", table.integer(2, default=1)

    def _subgraph(self, table: Table) -> Graph:
        tensors = tuple(self._tensor(i, t) for i, t in enumerate(table.tables(0)))
        return Graph(
            tensors=tensors,
            operators=tuple(self._operator(t, len(tensors)) for t in table.tables(3)),
            inputs=_indices(table, 1, len(tensors), lowest=0),
            outputs=_indices(table, 2, len(tensors), lowest=0),
            name=table.text(4),
        )

    def _tensor(self, index: int, table: Table) -> Tensor:
        at, size = self._at(self._buffers, table.integer(2, "<I"), "buffer")
        dtype = _TYPES.get(table.integer(1, "<b"), f"unknown_{table.integer(1, '<b')}")
        scale, zero_point, dimension = _quantization(table.table(4))
        if not np.isfinite(scale).all():
            raise TFLiteFileError(f"The file is damaged: tensor {index} has scales {scale[:3]}")
        few = dtype in ("int32", "int64") and 0 < size <= _FEW * _BITS[dtype] // 8
        width = _BITS[dtype] // 8 if few else 1
        tensor = Tensor(
            index=index,
            name=table.text(3),
            shape=_shape(table, index),
            dtype=dtype,
            is_constant=size > 0,
            size=size,
            scale=scale,
            zero_point=zero_point,
            quantized_dimension=dimension,
            buffer=table.integer(2, "<I"),
            is_variable=bool(table.integer(5, "<B")),
            is_sparse=table.table(6) is not None,
            values=tuple(
                np.frombuffer(self._content.bytes, f"<i{width}", size // width, at).tolist()
                if few
                else ()
            ),
        )
        dense = tensor.is_constant and not tensor.is_sparse and _BITS.get(dtype, 0) >= 8
        if dense and tensor.size != tensor.nbytes:
            raise TFLiteFileError(
                f"The file is damaged: tensor {index} ({tensor.name!r}) holds {size} bytes, and "
                f"its shape {tensor.shape} of {dtype} asks for {tensor.nbytes}"
            )
        return tensor

    def _operator(self, table: Table, tensors: int) -> Operator:
        name, custom_code, version = self._at(self._codes, table.integer(0, "<I"), "operator code")
        options = table.table(4)
        return Operator(
            name=name,
            inputs=_indices(table, 1, tensors, lowest=-1),
            outputs=_indices(table, 2, tensors, lowest=0),
            custom_code=custom_code,
            version=version,
            options={
                option: default if options is None else options.number(field, kind, default)
                for option, (field, kind, default) in _OPTIONS.get(name, {}).items()
            },
        )

    @staticmethod
    def _at(items: list, index: int, what: str) -> tuple:
        if index >= len(items):
            raise TFLiteFileError(
                f"The file is damaged: it refers to {what} {index} of {len(items)}"
            )
        return items[index]


def _indices(table: Table, field: int, count: int, *, lowest: int) -> tuple[int, ...]:
    """Numbers of tensors, all of which there are."""
    numbers = table.numbers(field, "<i4")
    if numbers is None:
        return ()
    for number in (*numbers[numbers < lowest], *numbers[numbers >= count]):
        raise TFLiteFileError(f"The file is damaged: it refers to tensor {number} of {count}")
    return tuple(numbers.tolist())


def _shape(table: Table, index: int) -> tuple[int, ...]:
    """The shape of a tensor, with -1 where it is open."""
    shape, signature = table.numbers(0, "<i4"), table.numbers(7, "<i4")
    sizes = () if shape is None else tuple(shape.tolist())
    if signature is not None and len(signature) == len(sizes):
        sizes = tuple(
            -1 if of == -1 else n for n, of in zip(sizes, signature.tolist(), strict=True)
        )
    if any(n < -1 for n in sizes):
        raise TFLiteFileError(f"The file is damaged: tensor {index} has the shape {sizes}")
    return sizes


def _quantization(table: Table | None) -> tuple[tuple[float, ...], tuple[int, ...], int]:
    """Scales, zero points and the axis that they belong to."""
    scale = None if table is None else table.numbers(2, "<f4")
    if table is None or scale is None:
        return (), (), 0
    zero_point = table.numbers(3, "<i8")
    zeros = () if zero_point is None else tuple(zero_point.tolist())
    return tuple(scale.tolist()), zeros, table.integer(6)

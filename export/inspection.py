"""What a .tflite holds, read from the flatbuffer alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_TYPES = {
    number: name.lower() for name, number in vars(schema.TensorType).items() if name.isupper()
}
_OPERATORS = {
    number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
}
# The operators that hold a network's weights, as (input, weights, ...) -> (output).
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


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
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    is_constant: bool
    size: int
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operation of a graph: its TFLite name, and the numbers of its tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The only subgraph of a file, in order of execution."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def scheme(self) -> str:
        """The number format that the weights and activations really have.

        A name from `SCHEMES`, or `"mixed"` where the layers do not agree.
        """
        made_by = {t: op for op in self.operators for t in op.outputs}
        small = self._small_weights()
        kinds = set()
        for op in self.operators:
            if op.name not in _WEIGHTED:
                continue
            x, weights, y = (self.tensors[i] for i in (*op.inputs[:2], op.outputs[0]))
            if not weights.is_constant and weights.index in made_by:
                # float16 weights are stored so, and widened when the file is loaded.
                source = made_by[weights.index]
                if source.name == "DEQUANTIZE":
                    weights = self.tensors[source.inputs[0]]
            if weights.index in small and x.dtype == y.dtype == weights.dtype == "float32":
                continue
            kinds.add((x.dtype, weights.dtype, y.dtype))
        names = {
            ("float32", "float32", "float32"): "float32",
            ("float32", "float16", "float32"): "float16",
            ("float32", "int8", "float32"): "dynamic_int8",
            ("int8", "int8", "int8"): "int8",
        }
        schemes = {names.get(kind, "mixed") for kind in kinds} or {"float32"}
        if schemes == {"int8"} and not self._is_8_bit_up_to_the_scores():
            return "mixed"
        return schemes.pop() if len(schemes) == 1 else "mixed"

    def _is_8_bit_up_to_the_scores(self) -> bool:
        """Whether only a DEQUANTIZE and a SOFTMAX at the very end give floating-point numbers."""
        operators = list(self.operators)
        for last in ("SOFTMAX", "DEQUANTIZE"):
            if operators and operators[-1].name == last:
                operators.pop()
        used = {i for op in operators for i in (*op.inputs, *op.outputs) if i >= 0}
        dtypes = {self.tensors[i].dtype for i in used if not self.tensors[i].is_constant}
        constants = {self.tensors[i].dtype for i in used if self.tensors[i].is_constant}
        # 32-bit integers are biases and the arguments of PAD, MEAN and the like.
        return dtypes <= {"int8", "uint8"} and constants <= {"int8", "int32"}

    def _small_weights(self) -> set[int]:
        """Float weights that TFLite's dynamic quantization leaves alone: under 1,024 values.

        Only where the file has quantized weights besides; in a float file none are small.
        """
        weighted = [op for op in self.operators if op.name in _WEIGHTED]
        if all(self.tensors[op.inputs[1]].dtype == "float32" for op in weighted):
            return set()
        return {op.inputs[1] for op in weighted if np.prod(self.tensors[op.inputs[1]].shape) < 1024}


def read_graph(file: str | os.PathLike[str] | bytes) -> Graph:
    """Reads a `.tflite` file, or its bytes.

    Raises:
        ValueError: if it is none, or holds more than one subgraph.
    """
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    if content[4:8] != b"TFL3":
        where = "the bytes given" if isinstance(file, bytes) else os.fspath(file)
        raise ValueError(f"Not a TFLite file: {where}")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if len(model.subgraphs) != 1:
        raise ValueError(
            f"Only files with one subgraph can be read. Received: {len(model.subgraphs)}"
        )
    subgraph = model.subgraphs[0]

    def tensor(index: int, packed: schema.TensorT) -> Tensor:
        data = model.buffers[packed.buffer].data
        quantization = packed.quantization
        has_scale = quantization is not None and quantization.scale is not None
        return Tensor(
            index=index,
            name=packed.name.decode(),
            shape=tuple(int(n) for n in (() if packed.shape is None else packed.shape)),
            dtype=_TYPES[packed.type],
            is_constant=data is not None and len(data) > 0,
            size=0 if data is None else len(data),
            scale=tuple(float(s) for s in quantization.scale) if has_scale else (),
            zero_point=tuple(int(z) for z in quantization.zeroPoint) if has_scale else (),
        )

    def operator(packed: schema.OperatorT) -> Operator:
        code = model.operatorCodes[packed.opcodeIndex]
        # Numbers above 127 stand in the second field, which older files do not have.
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return Operator(
            name=_OPERATORS[number],
            inputs=tuple(int(i) for i in packed.inputs),
            outputs=tuple(int(i) for i in packed.outputs),
        )

    return Graph(
        tensors=tuple(tensor(i, t) for i, t in enumerate(subgraph.tensors)),
        operators=tuple(operator(op) for op in subgraph.operators),
        inputs=tuple(int(i) for i in subgraph.inputs),
        outputs=tuple(int(i) for i in subgraph.outputs),
    )

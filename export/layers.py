"""Where a quantized network loses precision: layer by layer, under the Keras layers' names."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.export.flatbuffer import activations, pack, unpack, with_all_outputs
from keras_resnet.export.graph import WEIGHTED, Graph, Operator, read_graph
from keras_resnet.files import atomic_file
from keras_resnet.tables import columns

# What is written for "no error": JSON and bars want a finite number.
CEILING_DB = 120.0
# They hand values on as they are, so that an error in them was made by the layer in front.
_MOVERS = ("PAD", "PADV2", "MAX_POOL_2D", "RESHAPE", "TRANSPOSE", "STRIDED_SLICE")
_CONVERTERS = ("QUANTIZE", "DEQUANTIZE")
# How the operations of layers that hold weights are called, in the names of TensorFlow's graphs.
_WEIGHTED = re.compile(r"(convolution|depthwise|separable|MatMul|Conv2D)\d*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerError:
    """The error of one layer.

    Attributes:
        layer: name of the Keras layer, or of the tensor where no layer is in its name.
        operator: the TFLite operator.
        tensors: names in the float file of the tensors that hold its output: its own, and those of
            the operators behind it that only move values (PAD, MAX_POOL_2D, RESHAPE and the like).
        own_sqnr_db: signal-to-quantization-noise ratio of what this layer adds when it is fed with
            exact inputs; in decibels, at most 120. It is the mean over the channels of noise over
            signal, so that a large channel does not hide what is lost in the small ones.
        sqnr_db: the same ratio, over the whole tensor, of all noise that has gathered up to here.
        saturation: share of the values beyond the range that the quantized tensor can hold.
    """

    layer: str
    operator: str
    tensors: tuple[str, ...]
    own_sqnr_db: float
    sqnr_db: float
    saturation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return dataclasses.asdict(self) | {"tensors": list(self.tensors)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerError:
        """The inverse of `to_dict`."""
        return cls(**{**values, "tensors": tuple(values["tensors"])})


def compare_layers(
    float_content: bytes,
    quantized_content: bytes,
    images: np.ndarray,
    layer_names: Collection[str] = (),
) -> tuple[LayerError, ...]:
    """The error that every layer of a quantized file adds, and what has gathered behind it.

    Both files run on the same images with all their tensors as outputs. A layer's own error is
    measured in isolation: its operator gets the float network's values, quantized, and its output
    is compared with what the float operator makes of the same quantized values.

    Args:
        float_content: the `.tflite` file in float32.
        quantized_content: the same network in any scheme.
        images: raw uint8 `(n, height, width, channels)`; a dozen tell enough.
        layer_names: of the Keras model (`layer_names`), to name the layers by.

    Returns:
        One entry per layer, the lowest ratio of its own first.

    Raises:
        ValueError: if the two are not the same network, or there are fewer images than a batch.
    """
    exact = read_graph(float_content)
    pairs = _matched(exact, read_graph(quantized_content), layer_names)
    with_weights = sum(operator.name in WEIGHTED for operator in exact.operators)
    found = sum(pair.exact.name in WEIGHTED for pair in pairs)
    if not pairs or found < with_weights / 2:
        raise ValueError(
            "Two files can be compared layer by layer if they are the same network. Received: "
            f"files in which {found} of {with_weights} operators with weights correspond"
        )
    sums = _measure(float_content, quantized_content, images, pairs)
    errors = [
        LayerError(
            layer=pair.label,
            operator=pair.exact.name,
            tensors=pair.tensors,
            own_sqnr_db=own.channel_db(),
            sqnr_db=gathered.db(),
            saturation=own.outside / own.count,
        )
        for pair, (own, gathered) in zip(pairs, sums, strict=True)
        if pair.exact.name not in _MOVERS
    ]
    return tuple(sorted(errors, key=lambda error: error.own_sqnr_db))


def layer_names(model: Any) -> list[str]:
    """Names of the layers of a Keras model, those of models inside it included."""
    names = []
    for layer in model.layers:
        names.append(layer.name)
        if hasattr(layer, "layers"):
            names += layer_names(layer)
    return names


def layer_of(
    tensor_name: str, layer_names: Collection[str], *, numbered: bool = True
) -> str | None:
    """The Keras layer that a tensor of a `.tflite` file comes from, or None.

    A name is the path of scopes that TensorFlow computed the tensor in, and several of them, joined
    by ";", where operators were fused: `"model/act_1/Relu;model/conv_1/convolution"`. Of several
    layers the one with weights is named, else the one that computes first.

    Args:
        tensor_name: e.g. `"functional_1/stem_act_1/Relu;functional_1/stem_conv_1/convolution"`.
        layer_names: of the Keras model.
        numbered: whether the scopes carry a number behind the layer's name, as Keras 3 makes them
            (`stem_conv_1` for the layer `stem_conv`).
    """
    found = None
    for path in tensor_name.split(";"):
        *scopes, operation = path.split("/")
        for scope in reversed(scopes):
            name = re.sub(r"_\d+$", "", scope) if numbered else scope
            if name not in layer_names:
                name = scope
            if name in layer_names:
                found = name
                break
        else:
            continue
        if _WEIGHTED.fullmatch(operation):
            return found
    return found


def table(errors: Iterable[LayerError]) -> list[str]:
    """Lines of a table for people."""
    rows = [("layer", "operator", "own SQNR (dB)", "gathered (dB)", "saturated")]
    rows += [
        (
            error.layer,
            error.operator,
            f"{error.own_sqnr_db:.1f}",
            f"{error.sqnr_db:.1f}",
            f"{error.saturation:.2%}",
        )
        for error in errors
    ]
    return columns(rows, left=(0, 1))


def draw(errors: Sequence[LayerError], path: str | os.PathLike[str], *, most: int = 40) -> None:
    """Draws the worst layers' ratios as bars.

    Args:
        errors: of `compare_layers`.
        path: of the picture, `.png`, `.svg` or `.pdf`.
        most: how many layers to show.

    Raises:
        ValueError: for a suffix that matplotlib does not know.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = list(errors[:most])[::-1]  # the first bar is drawn at the bottom
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(shown)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(shown))
    axes.barh(rows, [error.own_sqnr_db for error in shown], color="#4477aa", label="of its own")
    gathered = [error.sqnr_db for error in shown]
    axes.plot(gathered, rows, "k|", markersize=9, markeredgewidth=2, label="gathered up to here")
    axes.set_yticks(rows, [error.layer for error in shown], fontsize=8, parse_math=False)
    axes.set_xlabel("signal-to-quantization-noise ratio (dB), short bars lose most")
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.legend(loc="lower right")
    path = Path(path)
    # Without a date, and with names from a fixed salt, the same figures give the same bytes.
    dates = {".svg": "Date", ".pdf": "CreationDate"}
    metadata = {dates[path.suffix]: None} if path.suffix in dates else {}
    with rc_context({"svg.hashsalt": "keras_resnet"}), atomic_file(path) as temporary:
        figure.savefig(temporary, metadata=metadata, dpi=120)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """An operator of the float graph and the same one of the quantized graph."""

    label: str
    tensors: tuple[str, ...]  # of LayerError
    exact: Operator
    quantized: Operator
    exact_number: int  # among the operators of its graph
    quantized_number: int


def _matched(exact: Graph, quantized: Graph, names: Collection[str]) -> list[_Pair]:
    """The operators that both graphs have, in the order of the float graph."""
    theirs = dict(_keys(quantized, names))
    pairs = []
    for key, number in _keys(exact, names):
        operator = exact.operators[number]
        other = quantized.operators[theirs[key]] if key in theirs else None
        if other is None or _shapes(exact, operator) != _shapes(quantized, other):
            continue
        tensors = (exact.tensors[operator.outputs[0]].name, *_moved(exact, operator))
        pairs.append(_Pair(key[0], tensors, operator, other, number, theirs[key]))
    return pairs


def _shapes(graph: Graph, operator: Operator) -> list[tuple[int, ...]]:
    """What an operator takes and gives."""
    return [graph.tensors[i].shape for i in (operator.inputs[0], operator.outputs[0])]


def _keys(graph: Graph, names: Collection[str]) -> Iterator[tuple[tuple[str, str, int], int]]:
    """What tells an operator in both graphs: layer, kind, and a number if there are several."""
    computed = set(graph.inputs)
    numbered = _is_numbered([tensor.name for tensor in graph.tensors], names)
    seen: Counter[tuple[str, str]] = Counter()
    for number, operator in enumerate(graph.operators):
        if not computed.intersection(operator.inputs):
            continue  # of constants: float16 weights that are widened
        computed.update(operator.outputs)
        if operator.name in _CONVERTERS:
            continue
        tensor = graph.tensors[operator.outputs[0]].name
        # The converter numbers equal names, and not alike in every scheme.
        label = layer_of(tensor, names, numbered=numbered) or tensor.rstrip("0123456789")
        seen[label, operator.name] += 1
        yield (label, operator.name, seen[label, operator.name]), number


def _is_numbered(tensor_names: Iterable[str], names: Collection[str]) -> bool:
    """Whether some scope is a layer's name with a number behind, and no layer's name as it is."""
    scopes = {scope for name in tensor_names for scope in re.split("[;/]", name)}
    return any(
        scope not in names and re.sub(r"_\d+$", "", scope) in names for scope in scopes - {*names}
    )


def _moved(graph: Graph, operator: Operator) -> list[str]:
    """Names of the tensors to which movers carry an operator's output."""
    found, names = {operator.outputs[0]}, []
    for other in graph.operators:
        if other.name in _MOVERS and other.inputs[0] in found:
            found.add(other.outputs[0])
            names.append(graph.tensors[other.outputs[0]].name)
    return names


class _Sums:
    """Energies of a signal and of its noise by channel, gathered over images."""

    def __init__(self) -> None:
        self.signal: Any = 0.0
        self.noise: Any = 0.0
        self.outside = self.count = 0

    def add(self, exact: np.ndarray, actual: np.ndarray) -> None:
        channels = exact.shape[-1] if exact.ndim else 1
        exact, actual = exact.reshape(-1, channels), actual.reshape(-1, channels)
        self.signal = self.signal + np.square(exact, dtype=np.float64).sum(axis=0)
        self.noise = self.noise + np.square(exact - actual, dtype=np.float64).sum(axis=0)
        self.count += exact.size

    def db(self) -> float:
        """Of all channels together."""
        signal = self.signal.sum()
        return _decibels(self.noise.sum() / signal) if signal > 0 else CEILING_DB

    def channel_db(self) -> float:
        """Mean over the channels that carry a signal; one that is lost counts 1, however badly."""
        live = self.signal > 0
        if not live.any():
            return CEILING_DB
        return _decibels(np.minimum(self.noise[live] / self.signal[live], 1).mean())


def _decibels(noise_over_signal: float) -> float:
    if noise_over_signal <= 10 ** (-CEILING_DB / 10):
        return CEILING_DB
    return float(-10 * np.log10(noise_over_signal))


def _measure(
    float_content: bytes, quantized_content: bytes, images: np.ndarray, pairs: Sequence[_Pair]
) -> list[tuple[_Sums, _Sums]]:
    """Own and gathered errors of the pairs."""
    exact = _File(float_content, [pair.exact_number for pair in pairs])
    quantized = _File(quantized_content, [pair.quantized_number for pair in pairs])
    sums = [(_Sums(), _Sums()) for _ in pairs]
    for batch in exact.batches(images):
        values, results = exact.whole(batch), quantized.whole(batch)
        # What the quantized tensors can hold of the exact values: both operators get the same.
        fed = [
            _real(_stored(values[number], detail), detail)
            for number, detail in zip(exact.sources, quantized.alone_inputs, strict=True)
        ]
        ideal, made = exact.alone(fed), quantized.alone(fed)
        for i, (pair, (own, gathered)) in enumerate(zip(pairs, sums, strict=True)):
            own.add(ideal[i], made[i])
            own.outside += _count_outside(ideal[i], quantized.alone_outputs[i])
            gathered.add(values[pair.exact.outputs[0]], results[pair.quantized.outputs[0]])
    return sums


class _File:
    """A `.tflite` file that is run in whole, with every intermediate, and operator by operator."""

    def __init__(self, content: bytes, numbers: Sequence[int]):
        """Loads it; `numbers` are those of the operators to run alone."""
        graph = unpack(content).subgraphs[0]
        self._inputs, self._tensors = graph.inputs, activations(graph)
        self._whole = _interpreter(with_all_outputs(content)[0])
        alone, self.sources = _isolated(content, numbers)
        self._alone = _interpreter(alone)
        self.alone_inputs = self._alone.get_input_details()
        self.alone_outputs = self._alone.get_output_details()

    def batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """The images in batches of the size that the file takes."""
        size = int(self._whole.get_input_details()[0]["shape"][0])
        if len(images) < size:
            raise ValueError(
                f"Argument `images` must hold a batch of {size} at least. Received: {len(images)}"
            )
        for start in range(0, len(images) - size + 1, size):
            yield images[start : start + size]

    def whole(self, pixels: np.ndarray) -> dict[int, np.ndarray]:
        """Real values of all tensors for raw uint8 pixels, by the tensors' numbers."""
        (detail,) = self._whole.get_input_details()
        # 8-bit pixels are stored as they are, or less 128; everything else takes their value.
        stored = (
            (pixels.astype(np.int16) - 128).astype(np.int8)
            if detail["dtype"] == np.int8
            else pixels.astype(detail["dtype"])
        )
        results = _run(self._whole, [stored])
        return {int(self._inputs[0]): pixels.astype(np.float32)} | dict(
            zip(self._tensors, results, strict=True)
        )

    def alone(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Real outputs of the operators for real inputs."""
        return _run(
            self._alone,
            [_stored(v, detail) for v, detail in zip(values, self.alone_inputs, strict=True)],
        )


def _isolated(content: bytes, numbers: Sequence[int]) -> tuple[bytes, list[int]]:
    """A file in which operators stand side by side, each with inputs of its own.

    Returns:
        The file, whose outputs are those of the operators, in the order of `numbers`; and of every
        input the number of the tensor that it stands for.
    """
    model = unpack(content)
    graph = model.subgraphs[0]
    computed = {*map(int, graph.inputs), *activations(graph)}
    of_constants = [op for op in graph.operators if not computed.intersection(map(int, op.outputs))]
    chosen = [graph.operators[number] for number in numbers]
    sources: list[int] = []
    first = len(graph.tensors)
    for operator in chosen:
        inputs = [int(i) for i in operator.inputs]
        for slot, number in enumerate(inputs):
            if number in computed:
                inputs[slot] = len(graph.tensors)
                graph.tensors.append(copy.copy(graph.tensors[number]))
                sources.append(number)
        operator.inputs = inputs
    graph.operators = [*of_constants, *chosen]
    graph.inputs = list(range(first, len(graph.tensors)))
    graph.outputs = [int(operator.outputs[0]) for operator in chosen]
    model.signatureDefs = []
    return pack(model), sources


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    return interpreter


def _run(interpreter: Any, stored: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Real outputs."""
    for detail, value in zip(interpreter.get_input_details(), stored, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [
        _real(interpreter.get_tensor(detail["index"]), detail)
        for detail in interpreter.get_output_details()
    ]


def _stored(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Real values as a tensor stores them."""
    dtype, (scale, zero_point) = detail["dtype"], detail["quantization"]
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(dtype)


def _real(stored: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """The real values of a tensor."""
    if not np.issubdtype(stored.dtype, np.integer):
        return stored.astype(np.float32)
    scale, zero_point = detail["quantization"]
    return ((stored.astype(np.int32) - zero_point) * scale).astype(np.float32)


def _count_outside(values: np.ndarray, detail: dict[str, Any]) -> int:
    """How many real values a tensor cannot hold, not even rounded."""
    dtype, (scale, zero_point) = detail["dtype"], detail["quantization"]
    if not np.issubdtype(dtype, np.integer):
        return 0
    limits = np.iinfo(dtype)
    steps = values / scale + zero_point
    return int(np.count_nonzero((steps < limits.min - 0.5) | (steps > limits.max + 0.5)))

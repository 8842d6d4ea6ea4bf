"""What a target refuses or runs slowly, held against a file before the target says it itself.

Every finding names its source. "measured" means that the refusal, or its absence, was seen with
the version named: LiteRT's interpreter and XNNPACK (ai-edge-litert 2.3.0 on x86-64), TFLite Micro
(tflite-micro 0.dev20261023182759), MediaPipe Tasks (mediapipe 1.2.2 for Python, 1.1.0 for the web)
and LiteRT.js 2.5.3 (in Chromium). Everything else is documented in the public file that is named,
and was not tried. The targets are:

* `xnnpack`: LiteRT on a CPU, which hands to XNNPACK what it can: Android, iOS, Linux, Windows.
* `tflm`: TFLite Micro's interpreter with all its operators; vendors' older copies know fewer.
* `web`: LiteRT.js in a browser, on the CPU (WebAssembly); it is LiteRT with XNNPACK inside, whose
  own refusals were measured on x86-64.
* `mediapipe`: MediaPipe Tasks' `ImageClassifier`; also LiteRT with XNNPACK inside.

No findings do not mean that a file runs: a target may lack memory, and a vendor's build operators.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

from keras_resnet.export.delegation import (
    XNNPACK_SOURCE,
    names,
    partitions,
    xnnpack_refusal,
)
from keras_resnet.export.graph import Graph, Operator, Tensor
from keras_resnet.export.tables import Content, Table, TFLiteFileError

TARGETS = ("xnnpack", "tflm", "web", "mediapipe")
SEVERITIES = ("refused", "slow", "note")

_WITH_XNNPACK = ("xnnpack", "web", "mediapipe")
_LITERT = "measured with ai-edge-litert 2.3.0"
_MICRO = "measured with tflite-micro 0.dev20261023182759"
_WEB = "measured with LiteRT.js 2.5.3 in Chromium 156"
_MEDIAPIPE = (
    "measured with mediapipe 1.2.2; mediapipe/tasks/cc/vision/utils/image_tensor_specs.cc in "
    "https://github.com/google-ai-edge/mediapipe"
)
_TRIED = {"xnnpack": _LITERT, "tflm": _MICRO}
# XNNPACK's: src/operators/convolution-nhwc.c and fully-connected-nc.c.
_MAX_FACTOR = 256.0
_SHOWN = 3
_LONGEST = 64  # operators that one island is named with
_NORMALIZATION = 1  # of the union ProcessUnitOptions
_AXIS_LABELS = 2  # of the enum AssociatedFileType
_HEAVY = names("CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED TRANSPOSE_CONV CONV_3D BATCH_MATMUL")
# Custom operators whose kernels come with LiteRT (register.cc) and with TFLite Micro; tried.
_LITERT_CUSTOM = names("TFLite_Detection_PostProcess Mfcc AudioSpectrogram NumericVerify")
_MICRO_CUSTOM = names("TFLite_Detection_PostProcess")

# What tflite-micro's wheel did not answer with "Didn't find op for builtin opcode".
_MICRO_OPERATORS = names(
    "ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL "
    "BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D "
    "COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU "
    "EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED "
    "GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D "
    "LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX "
    "MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU "
    "QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE "
    "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN "
    "SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE "
    "SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV "
    "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE "
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a target has against a file.

    Attributes:
        severity: `"refused"` (the target does not run the file, or cannot feed it), `"slow"`, or
            `"note"` (it runs; there is something to know).
        rule: a short name.
        text: what is wrong and what to do about it.
        where: the operators or tensors concerned.
        source: a public file, or the version that it was measured with.
    """

    severity: str
    rule: str
    text: str
    where: tuple[str, ...]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The same as a plain dictionary."""
        return {**dataclasses.asdict(self), "where": list(self.where)}

    def __str__(self) -> str:
        where = "; ".join(self.where[:_SHOWN])
        more = f" and {len(self.where) - _SHOWN} more" if len(self.where) > _SHOWN else ""
        return (
            f"  {self.severity}: {self.rule}: {self.text}"
            + (f"\n    at {where}{more}" if where else "")
            + f"\n    source: {self.source}"
        )


def check(graph: Graph, target: str) -> list[Finding]:
    """What a target refuses or runs slowly, worst first.

    Args:
        graph: as `read_graph` gives it.
        target: one of `TARGETS`.

    Raises:
        ValueError: if there is no such target.
    """
    if target not in TARGETS:
        raise ValueError(f"Argument `target` must be one of {list(TARGETS)}. Received: {target!r}")
    findings = [finding for rule in _RULES for finding in rule(graph, target)]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _found(
    severity: str, rule: str, where: Collection[str], text: str, source: str
) -> Iterator[Finding]:
    """A finding, if there is something to point at."""
    if where:
        yield Finding(severity, rule, text, tuple(dict.fromkeys(where)), source)


def _where(graph: Graph, op: Operator) -> str:
    """An operator, by its kind and the name of its output."""
    name = graph.tensors[op.outputs[0]].name.split(";")[0] if op.outputs else ""
    return f"{op.title} {name}".strip()


def _everything(graph: Graph) -> Iterator[tuple[Graph, Operator]]:
    """The operators of all subgraphs."""
    return ((each, op) for each in (graph, *graph.others) for op in each.operators)


def _foreign_operators(graph: Graph, target: str) -> Iterator[Finding]:
    """Operators that are not TFLite's own."""
    flex, custom, unknown = [], [], []
    known = _MICRO_CUSTOM if target == "tflm" else _LITERT_CUSTOM
    for each, op in _everything(graph):
        if op.custom_code.startswith("Flex"):
            flex.append(_where(each, op))
        elif op.name == "CUSTOM" and op.custom_code not in known:
            custom.append(_where(each, op))
        elif op.name.startswith("UNKNOWN_"):
            unknown.append(_where(each, op))
    yield from _found(
        "refused",
        "flex-operator",
        flex,
        "It needs TensorFlow's own kernels (the Flex delegate), which this target does not have: "
        "convert with TFLite's built-in operators only, and replace the layer that asks for it.",
        _TRIED.get(target, "https://ai.google.dev/edge/litert/models/ops_select"),
    )
    yield from _found(
        "refused",
        "custom-operator",
        custom,
        "It needs a kernel that the program has to bring along: replace the layer that asks for "
        "it, or register the kernel.",
        _TRIED.get(target, "https://ai.google.dev/edge/litert/models/ops_custom"),
    )
    yield from _found(
        "refused",
        "unknown-operator",
        unknown,
        "No operator has this number in the schema of ai-edge-litert 2.3.0: the file is newer than "
        "that, or damaged.",
        "schema_py_generated.py of ai-edge-litert 2.3.0",
    )


def _requantization(graph: Graph, target: str) -> Iterator[Finding]:
    """Sums that must be multiplied by 256 or more to become 8-bit numbers."""
    if target not in _WITH_XNNPACK:
        return
    large = []
    for op in graph.operators:
        if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        if len(op.inputs) < 2 or min(op.inputs[:2]) < 0 or not op.outputs:
            continue
        x, weights, y = (graph.tensors[i] for i in (*op.inputs[:2], op.outputs[0]))
        if not (x.scale and weights.scale and y.scale) or xnnpack_refusal(graph, op) is not None:
            continue
        factor = x.scale[0] * weights.scale_range[1] / y.scale[0] if y.scale[0] else float("inf")
        if factor >= _MAX_FACTOR:
            large.append(f"{_where(graph, op)} (factor {factor:.4g})")
    yield from _found(
        "refused",
        "requantization-factor",
        large,
        "The input's scale times the weights' scale is 256 times the output's scale or more, and "
        "XNNPACK fails to prepare the whole file: the output's range was calibrated far too small "
        "(a dead layer, or batch normalization whose statistics were never warmed up). Train, or "
        "calibrate with images like those of the training.",
        f"{_LITERT}: a factor of 255.9 allocates, 256.1 does not"
        + ("; measured with mediapipe 1.2.2" if target == "mediapipe" else ""),
    )


def _padding(graph: Graph, target: str) -> Iterator[Finding]:
    """Quantized PAD whose output has another scale than its input."""
    if target not in _WITH_XNNPACK:
        return
    where = []
    for op in graph.operators:
        if op.name == "PAD" and xnnpack_refusal(graph, op) is None:
            x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
            if x.dtype != "float32" and (x.scale, x.zero_point) != (y.scale, y.zero_point):
                where.append(_where(graph, op))
    yield from _found(
        "refused",
        "padding-scale",
        where,
        "Its output has another scale or zero point than its input, and XNNPACK fails to prepare "
        "the whole file: give both the input's.",
        f"{_LITERT}: failed to delegate PAD node",
    )


def _dynamic_batch(graph: Graph, target: str) -> Iterator[Finding]:
    """Open dimensions of an input."""
    open_ = [graph.tensors[i].name for i in graph.inputs if -1 in graph.tensors[i].shape]
    what = "An input's shape is open; export with a fixed batch. "
    severity, effect, source = {
        "web": ("refused", "LiteRT.js compares it with the array that it is given.", _WEB),
        "mediapipe": ("note", "MediaPipe runs it with a batch of 1.", _MEDIAPIPE),
        "tflm": ("note", "TFLite Micro cannot resize; it runs it with a batch of 1.", _MICRO),
        "xnnpack": (
            "note",
            "It is delegated, but operators that compute shapes stay outside, and another batch "
            "means another preparation.",
            _LITERT,
        ),
    }[target]
    yield from _found(severity, "dynamic-batch", open_, what + effect, source)


def _partitions(graph: Graph, target: str) -> Iterator[Finding]:
    """What XNNPACK leaves to TFLite's own kernels."""
    if target not in _WITH_XNNPACK:
        return
    pieces = partitions(graph)
    taken = {number for piece in pieces for number in piece}
    left = [op for number, op in enumerate(graph.operators) if number not in taken]
    reasons = collections.Counter(
        f"{op.title}: {xnnpack_refusal(graph, op) or 'others take its output'}" for op in left
    )
    where = [f"{count} x {reason}" for reason, count in reasons.most_common()]
    if len(pieces) == 1 and not any(op.name in _HEAVY for op in left):
        text = "It runs in TFLite's own kernels, before or after everything else."
        yield from _found("note", "not-delegated", where, text, XNNPACK_SOURCE)
        return
    how = {0: "takes nothing of it", 1: "runs it in one piece"}
    text = (
        f"XNNPACK {how.get(len(pieces), f'runs it in {len(pieces)} pieces')} and leaves "
        f"{len(left)} of {len(graph.operators)} operators to TFLite's own kernels (a ResNet-50 "
        "without the delegate is five to six times slower); every change costs a copy. Replace "
        "the layers named here."
    )
    yield from _found("slow", "not-delegated", where, text, XNNPACK_SOURCE)


def _micro_operators(graph: Graph, target: str) -> Iterator[Finding]:
    """Operators and kinds of weights that TFLite Micro has no kernel for."""
    if target != "tflm":
        return
    missing = [
        _where(each, op)
        for each, op in _everything(graph)
        if op.name not in _MICRO_OPERATORS and op.name != "CUSTOM"
    ]
    yield from _found(
        "refused",
        "missing-operator",
        missing,
        "TFLite Micro has no such operator: replace the layer.",
        _MICRO,
    )
    hybrid, wide = [], []
    for op in graph.operators:
        tensors = [graph.tensors[i] for i in (*op.inputs[:2], *op.outputs) if i >= 0]
        dtypes = [tensor.dtype for tensor in tensors]
        if op.name in _HEAVY and dtypes == ["float32", "int8", "float32"]:
            hybrid.append(_where(graph, op))
        if op.name == "DEQUANTIZE" and dtypes[:1] == ["float16"]:
            wide.append(_where(graph, op))
    yield from _found(
        "refused",
        "hybrid-weights",
        hybrid,
        "8-bit weights with float32 activations have no kernel: export `int8` or `float32`.",
        _MICRO,
    )
    yield from _found(
        "refused",
        "float16-weights",
        wide,
        "DEQUANTIZE takes no float16: export `int8` or `float32`.",
        _MICRO,
    )


def _per_channel_dense(graph: Graph, target: str) -> Iterator[Finding]:
    """Fully connected layers with one scale per output."""
    if target != "tflm":
        return
    where = []
    for op in graph.operators:
        if op.name == "FULLY_CONNECTED" and len(op.inputs) > 1 and min(op.inputs[:2]) >= 0:
            x, weights = (graph.tensors[i] for i in op.inputs[:2])
            if len(weights.scale) > 1 and x.dtype in ("int8", "int16"):
                where.append(_where(graph, op))
    yield from _found(
        "note",
        "per-channel-fully-connected",
        where,
        "It has one scale per output. TFLite Micro computes that since September 2024, refuses it "
        "before, and before May 2024 computed wrong numbers: use a recent one, or weights with one "
        "scale (vendors' kernels and Android's NNAPI ask for that too).",
        f"{_MICRO} (same bytes as LiteRT); https://github.com/tensorflow/tflite-micro/pull/2602 "
        "and /2673",
    )


def _float_islands(graph: Graph, _target: str) -> Iterator[Finding]:
    """DEQUANTIZE ... QUANTIZE between quantized operators."""
    island: dict[int, list[str]] = {}  # float tensors behind a DEQUANTIZE, and the operators since
    where = []
    for op in graph.operators:
        behind = [i for i in op.inputs if i in island]
        if op.name == "DEQUANTIZE" and op.inputs and op.inputs[0] >= 0:
            is_activation = not graph.source(op.inputs[0]).is_constant
            if is_activation and graph.tensors[op.inputs[0]].dtype != "float32":
                island.update((i, []) for i in op.outputs)
        elif op.name == "QUANTIZE" and behind:
            where += [name for i in behind for name in island[i]] or [_where(graph, op)]
        elif behind:
            since = [*dict.fromkeys(name for i in behind for name in island[i])][-_LONGEST:]
            if any(graph.tensors[i].dtype == "float32" for i in op.outputs):
                island.update((i, [*since, _where(graph, op)]) for i in op.outputs)
    yield from _found(
        "slow",
        "float-island",
        where,
        "It runs in floating point inside a quantized graph, between a DEQUANTIZE and a QUANTIZE: "
        "slower, and larger activations. Calibrate it too, or use an operator that has an 8-bit "
        "kernel.",
        "measured with ai-edge-litert 2.3.0: a ResNet-50 in float32 takes three times as long as "
        "in 8 bits",
    )


def _unfolded_normalization(graph: Graph, _target: str) -> Iterator[Finding]:
    """Multiplications and additions of constants that a convolution could do."""
    where = []
    for op in graph.operators:
        if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") or not op.outputs:
            continue
        y = graph.tensors[op.outputs[0]]
        users = graph.consumers.get(y.index, [])
        if len(users) != 1 or op.options.get("activation") or y.index in graph.outputs:
            continue
        user = graph.operators[users[0]]
        others = [graph.source(i) for i in user.inputs if i >= 0 and i != y.index]
        channels = y.shape[-1] if y.shape else 1
        is_affine = user.name in ("MUL", "ADD", "SUB") and len(others) == 1
        if is_affine and others[0].is_constant and others[0].elements in (1, channels):
            where.append(_where(graph, user))
    yield from _found(
        "slow",
        "unfolded-batch-normalization",
        where,
        "A multiplication or addition by constants follows a convolution, which could do it with "
        "its own weights and bias: convert the network for inference (with batch normalization "
        "not training), in one piece.",
        "https://ai.google.dev/edge/litert/conversion/tensorflow/convert; the converter folds it",
    )


def _softmax_ties(graph: Graph, _target: str) -> Iterator[Finding]:
    """Probabilities in 8 bits."""
    where = []
    for op in graph.operators:
        if op.name == "SOFTMAX" and op.outputs:
            y = graph.tensors[op.outputs[0]]
            if y.dtype in ("int8", "uint8"):
                classes = y.shape[-1] if y.shape else 1
                where.append(f"{_where(graph, op)} ({classes} classes)")
    yield from _found(
        "note",
        "8-bit-softmax",
        where,
        "Its probabilities are multiples of 1/256: many classes come out as 0, and the best ones "
        "may tie, in an arbitrary order. Export logits, or probabilities in float32.",
        f"{_LITERT}: a ResNet-50 gave 153 equal maxima among 1,000 classes",
    )


def _web_types(graph: Graph, target: str) -> Iterator[Finding]:
    """Inputs and outputs that a browser's arrays are not made for."""
    if target != "web":
        return
    yield from _found(
        "refused",
        "input-output-type",
        _ends(graph, ("float32", "int32", "uint8"), graph.inputs, graph.outputs),
        "LiteRT.js takes and gives float32, int32 and uint8 only: export with uint8 or float32 at "
        "both ends (8 bits inside are fine).",
        _WEB,
    )


def _mediapipe(graph: Graph, target: str) -> Iterator[Finding]:
    """What `ImageClassifier` asks of a file."""
    if target != "mediapipe":
        return
    types = ("float32", "uint8")
    yield from _found(
        "refused",
        "input-output-type",
        _ends(graph, types, graph.inputs, ()) + _ends(graph, (*types, "bool"), (), graph.outputs),
        "ImageClassifier takes and gives float32 and uint8 only: export with these at both ends "
        "(8 bits inside are fine).",
        _MEDIAPIPE,
    )
    if graph.others or len(graph.inputs) != 1:
        text = (
            f"ImageClassifier takes files with one subgraph and one input. This one has "
            f"{1 + len(graph.others)} and {len(graph.inputs)}."
        )
        yield Finding("refused", "one-image", text, (), _MEDIAPIPE)
        return
    image = graph.tensors[graph.inputs[0]]
    if len(image.shape) != 4 or abs(image.shape[0]) != 1 or image.shape[3] not in (3, 4):
        yield Finding(
            "refused",
            "one-image",
            "ImageClassifier feeds one RGB image, (1, height, width, 3).",
            (f"{image.name} {image.shape}",),
            _MEDIAPIPE,
        )
    yield from _mediapipe_metadata(graph, image)


def _mediapipe_metadata(graph: Graph, image: Tensor) -> Iterator[Finding]:
    is_normalized, has_labels = _metadata(graph)
    if image.dtype == "float32" and not is_normalized:
        yield Finding(
            "refused",
            "metadata",
            "A float32 image needs TFLite metadata with NormalizationOptions (mean 0 and standard "
            "deviation 1 where the file takes raw pixels): use a bundle's file, or take pixels as "
            "uint8.",
            (image.name,),
            _MEDIAPIPE,
        )
    zero_point = image.zero_point[0] if image.zero_point else 0
    if image.dtype == "uint8" and (len(image.scale) != 1 or (image.scale[0], zero_point) != (1, 0)):
        yield Finding(
            "note",
            "input-scale",
            "MediaPipe feeds raw bytes and ignores the input's scale and zero point, which are not "
            "1 and 0: the probabilities are right only if raw bytes are what the file is made for.",
            (image.name,),
            _MEDIAPIPE,
        )
    if not has_labels:
        yield Finding(
            "note",
            "labels",
            "No label file goes with its scores: classes come out as numbers.",
            tuple(graph.tensors[i].name for i in graph.outputs),
            _MEDIAPIPE,
        )


def _metadata(graph: Graph) -> tuple[bool, bool]:
    """Whether the metadata say how the image is normalized, and name a label file.

    Positions of fields: metadata_schema.fbs of MediaPipe.
    """
    content = graph.metadata.get("TFLITE_METADATA", b"")
    is_normalized = has_labels = False
    try:
        for subgraph in Content(content).root().tables(3) if content else ():
            inputs, outputs = list(subgraph.tables(2)), list(subgraph.tables(3))
            units = [unit for tensor in inputs for unit in tensor.tables(4)]
            is_normalized |= any(unit.integer(0, "<B") == _NORMALIZATION for unit in units)
            files: list[Table] = [file for tensor in outputs for file in tensor.tables(6)]
            has_labels |= any(file.integer(2, "<b") == _AXIS_LABELS for file in files)
    except TFLiteFileError:
        return False, False  # metadata that cannot be read are as good as none
    return is_normalized, has_labels


def _ends(
    graph: Graph, dtypes: Collection[str], inputs: Collection[int], outputs: Collection[int]
) -> list[str]:
    """The inputs and outputs of another type."""
    tensors = [graph.tensors[i] for i in (*inputs, *outputs)]
    return [f"{t.name} ({t.dtype})" for t in tensors if t.dtype not in dtypes]


_RULES: tuple[Callable[[Graph, str], Iterator[Finding]], ...] = (
    _foreign_operators,
    _micro_operators,
    _requantization,
    _padding,
    _web_types,
    _mediapipe,
    _dynamic_batch,
    _partitions,
    _float_islands,
    _unfolded_normalization,
    _per_channel_dense,
    _softmax_ties,
)

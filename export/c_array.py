"""A file as C++ source, with all that a program for a microcontroller has to know of it.

TFLite Micro opens a `.tflite` file where it lies in memory, so the file becomes an array that the
linker puts into flash. The names follow TFLite Micro's own examples (`g_model`, `g_model_size`;
tensorflow/lite/micro/tools/generate_cc_arrays.py in https://github.com/tensorflow/tflite-micro).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import re
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_resnet.export.bundle import Bundle, check_labels
from keras_resnet.export.clients import resolver_methods
from keras_resnet.export.delegation import names
from keras_resnet.export.graph import Graph, Tensor, read_graph
from keras_resnet.export.inspection import arena_bytes
from keras_resnet.export.metadata import read_metadata
from keras_resnet.export.targets import check
from keras_resnet.files import atomic_file, refuse_existing

# Of the array and of the arena: micro_arena_constants.h of TFLite Micro.
_ALIGNMENT = 16
_BYTES_IN_A_LINE = 16
_MOST_BESIDE = 1 << 24  # bytes beside the activations that no file needs
# What the interpreter keeps beside the activations, where it cannot be asked: always, for each
# operator, and for each output channel (a multiplier and a shift of 4 bytes each).
# Generous: it asked for 6.7 kB with the 15 operators and 346 channels of a ResNet-8 (8.6 kB by
# this rule), for 36.9 kB with a ResNet-56 (42.0) and for 47.0 kB with a ResNet-18 (50.2).
_PLANNED_ALWAYS, _PLANNED_OPERATOR, _PLANNED_CHANNEL = 2048, 256, 8

# No namespace may be called so.
_KEYWORDS = names(
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t "
    "char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr "
    "constinit continue decltype default delete do double dynamic_cast else enum explicit export "
    "extern false float for friend goto if inline int long mutable namespace new noexcept not "
    "not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires "
    "return short signed sizeof static static_assert static_cast std struct switch template this "
    "thread_local throw true try typedef typeid typename union unsigned using virtual void "
    "volatile wchar_t while xor xor_eq "
)

_HEADER = string.Template("""\
// A .tflite file of $size bytes for TFLite Micro, written by keras-resnet. Do not edit.
// SHA-256 of the file: $digest
#ifndef KERAS_RESNET_${guard}_H_
#define KERAS_RESNET_${guard}_H_

#include <cstddef>

// The file. tflite::GetModel(g_$name) opens it where it lies.
extern const unsigned char g_$name[];
extern const unsigned int g_${name}_size;

namespace $name {

// Input: one image, $pixels.
// The scale and the zero point are the file's own; with these bytes nothing is left to compute.
constexpr int kInputHeight = $height;
constexpr int kInputWidth = $width;
constexpr int kInputChannels = $channels;
constexpr int kInputSize = $input_size;
constexpr float kInputScale = $input_scale;
constexpr int kInputZeroPoint = $input_zero_point;

// Output: $output, one number for each class.
// A number q stands for the score (q - kOutputZeroPoint) * kOutputScale.
constexpr int kClasses = $classes;
constexpr float kOutputScale = $output_scale;
constexpr int kOutputZeroPoint = $output_zero_point;

// Names of the classes, in UTF-8.
extern const char* const kLabels[kClasses];

$arena_remark
constexpr std::size_t kArenaSize = $arena;

// For tflite::MicroMutableOpResolver<kOperators>; says whether all operators were registered.
constexpr unsigned int kOperators = $operators;

template <typename Resolver>
bool AddOperators(Resolver& resolver) {
  return $registrations;  // 0 is kTfLiteOk
}

}  // namespace $name

#endif  // KERAS_RESNET_${guard}_H_
""")

_SOURCE = string.Template("""\
#include "$name.h"

alignas($alignment) const unsigned char g_$name[] = {
$bytes
};
const unsigned int g_${name}_size = $size;

namespace $name {

const char* const kLabels[kClasses] = {
$labels
};

}  // namespace $name
""")

_MEASURED = """\
// Bytes of the smallest arena, aligned to 16, with which TFLite Micro's interpreter runs the file:
// measured on a 64-bit machine with tflite-micro {version}. A 32-bit one
// needs a little less; kernels of a chip's maker (CMSIS-NN, ESP-NN) may want memory on top."""
_PLANNED = """\
// Bytes of the arena, to be aligned to 16: planned, not measured, for want of the Python package
// tflite-micro. They are the {activations} bytes that the activations take, and {margin} for the
// interpreter's own structures. Kernels of a chip's maker (CMSIS-NN, ESP-NN) may want memory on
// top. AllocateTensors() tells."""


@dataclasses.dataclass(frozen=True)
class CArray:
    """A file as C++ source.

    Attributes:
        header: `model.h`: declarations, shapes, scales, the size of the arena, the operators.
        source: `model.cc`: the file's bytes and the labels.
        arena_bytes: memory that the interpreter needs, a multiple of 16.
        is_measured: whether TFLite Micro's own interpreter said so; else it is a plan.
    """

    header: Path
    source: Path
    arena_bytes: int
    is_measured: bool


def write_c_array(
    file: str | os.PathLike[str] | Bundle,
    directory: str | os.PathLike[str],
    *,
    name: str = "model",
    force: bool = False,
) -> CArray:
    """Writes a file as `model.h` and `model.cc`; the same file gives the same sources.

    Args:
        file: a bundle or its directory, or the `.tflite` file of a classifier: in `int8`, for one
            image, with int8 or uint8 at both ends. A bare file's labels are those of its metadata.
        directory: where to put the two.
        name: of the two files, of the array (`g_model`) and of the namespace.
        force: whether files that are there already may be replaced.

    Raises:
        ValueError: if the file is another one, or TFLite Micro refuses it; if the name is no
            identifier of C++; or if a label holds a zero byte, at which C ends a string.
        FileExistsError: if one of the files is there already.
        OSError: if a file cannot be read or written.
    """
    _check_name(name)
    directory = Path(directory)
    header, source = directory / f"{name}.h", directory / f"{name}.cc"
    for path in (header, source):
        refuse_existing(path, force)
    path, labels = _path_and_labels(file)
    content = path.read_bytes()
    graph = check_c_array(content)
    classes = _ends(graph)[1].shape[-1]
    labels = labels or tuple(f"class {i}" for i in range(classes))
    check_labels(labels, classes)
    arena, is_measured, remark = _arena(path, graph)
    texts = {
        header: _header(content, graph, name, arena, remark),
        source: _source(content, labels, name),
    }
    for path, text in texts.items():
        with atomic_file(path, force=force) as temporary:
            temporary.write_text(text, encoding="ascii", newline="\n")
    return CArray(header, source, arena, is_measured)


def check_c_array(content: bytes) -> Graph:
    """The graph of a file that `write_c_array` takes.

    Raises:
        ValueError: if it takes it not, with what to export instead.
    """
    graph = read_graph(content)
    ends = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    is_classifier = [len(tensor.shape) for tensor in ends] == [4, 2]
    is_small = all(tensor.dtype in ("int8", "uint8") for tensor in ends)
    is_single = all(tensor.shape[:1] == (1,) for tensor in ends)
    if not (graph.scheme == "int8" and is_classifier and is_small and is_single):
        told = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in ends)
        raise ValueError(
            "A C array is made of a classifier in int8 with int8 or uint8 at both ends, for one "
            "image: export it with scheme 'int8', io 'int8', batch 1, and probabilities or logits "
            f"as its output. Received: {graph.scheme}, {told}"
        )
    refusals = [finding for finding in check(graph, "tflm") if finding.severity == "refused"]
    if refusals:
        raise ValueError("TFLite Micro refuses the file:\n" + "\n".join(map(str, refusals)))
    return graph


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-zA-Z](_?[a-zA-Z0-9])*", name) or name in _KEYWORDS:
        raise ValueError(
            "Argument `name` must be an identifier of C++: letters, digits and single underscores, "
            f"and no word of the language. Received: name={name!r}"
        )


def _path_and_labels(file: str | os.PathLike[str] | Bundle) -> tuple[Path, tuple[str, ...]]:
    if not isinstance(file, Bundle) and Path(file).is_dir():
        file = Bundle.open(file)
    if isinstance(file, Bundle):
        return file.model_path, file.labels
    metadata = read_metadata(Path(file).read_bytes())
    return Path(file), () if metadata is None else metadata.labels


def _ends(graph: Graph) -> tuple[Tensor, Tensor]:
    return graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]


def _header(content: bytes, graph: Graph, name: str, arena: int, remark: str) -> str:
    image, scores = _ends(graph)
    _, height, width, channels = image.shape
    order = "row by row, every pixel R, G, B" if channels == 3 else "row by row"
    pixels = {"uint8": "its bytes 0..255", "int8": "its bytes 0..255 less 128, as int8"}
    methods = resolver_methods(graph)
    return _HEADER.substitute(
        name=name,
        guard=name.upper(),
        size=len(content),
        digest=hashlib.sha256(content).hexdigest(),
        pixels=f"{pixels[image.dtype]}, {order}",
        height=height,
        width=width,
        channels=channels,
        input_size=image.elements,
        input_scale=_float(image.scale[0]),
        input_zero_point=image.zero_point[0],
        output=scores.dtype,
        classes=scores.shape[-1],
        output_scale=_float(scores.scale[0]),
        output_zero_point=scores.zero_point[0],
        arena_remark=remark,
        arena=arena,
        operators=len(methods),
        registrations=" &&\n         ".join(f"resolver.{method}() == 0" for method in methods),
    )


def _source(content: bytes, labels: Sequence[str], name: str) -> str:
    lines = (
        content[start : start + _BYTES_IN_A_LINE].hex(",")
        for start in range(0, len(content), _BYTES_IN_A_LINE)
    )
    return _SOURCE.substitute(
        name=name,
        alignment=_ALIGNMENT,
        size=len(content),
        bytes="\n".join(f"  0x{line.replace(',', ', 0x')}," for line in lines),
        labels="\n".join(f"  {_quoted(label)}," for label in labels),
    )


def _float(value: float) -> str:
    """A float32 in the fewest digits that give it back."""
    return f"{np.float32(value)}f"


def _quoted(label: str) -> str:
    """A string of C++ with the label's UTF-8.

    Octal escapes end after three digits, whatever follows; hexadecimal ones would swallow it. A
    question mark may be part of a trigraph in older C++.
    """
    data = label.encode()
    if 0 in data:
        raise ValueError(f"C ends a string at a zero byte, so no label may hold one: {label!r}")
    plain = set(string.printable[:95].encode()) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in data) + '"'


def _arena(file: Path, graph: Graph) -> tuple[int, bool, str]:
    """Bytes of the arena, whether they were measured, and what to say of them."""
    activations = arena_bytes(graph)
    if activations is None:
        raise ValueError("The file has too many activations to plan their memory")
    try:
        version = importlib.metadata.version("tflite-micro")
    except importlib.metadata.PackageNotFoundError:
        margin = _margin(graph)
        remark = _PLANNED.format(activations=f"{activations:,}", margin=f"{margin:,}")
        return activations + margin, False, remark
    return _measured_arena(file, activations), True, _MEASURED.format(version=version)


def _margin(graph: Graph) -> int:
    channels = sum(
        len(graph.tensors[op.inputs[1]].scale)
        for op in graph.operators
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    )
    size = _PLANNED_ALWAYS + _PLANNED_OPERATOR * len(graph.operators) + _PLANNED_CHANNEL * channels
    return -(-size // _ALIGNMENT) * _ALIGNMENT


_SEARCH = f"""
import sys
from tflite_micro.python.tflite_micro import runtime

content = open(sys.argv[1], "rb").read()
too_small, enough = map(int, sys.argv[2:])
while enough - too_small > {_ALIGNMENT}:
    size = (too_small + enough) // 2 // {_ALIGNMENT} * {_ALIGNMENT}
    print("tried", size, flush=True)
    try:
        runtime.Interpreter.from_bytes(content, arena_size=size)
    except RuntimeError:
        too_small = size
    else:
        print("enough", size, flush=True)
        enough = size
runtime.Interpreter.from_bytes(content, arena_size=enough).invoke()
"""


def _measured_arena(file: Path, activations: int) -> int:
    """The smallest arena, in steps of 16 bytes, with which TFLite Micro's interpreter runs a file.

    In a process of its own: some kernels do not ask whether they got their memory, and crash.
    """
    too_small, enough = activations, activations + _MOST_BESIDE
    while True:
        bounds = (str(too_small), str(enough))
        command = [sys.executable, "-c", _SEARCH, str(file), *bounds]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        tried = [line.split() for line in ended.stdout.splitlines()]
        enough = min([enough, *(int(size) for word, size in tried if word == "enough")])
        too_small = max([too_small, *(int(size) for _, size in tried if int(size) < enough)])
        if ended.returncode == 0 and enough < activations + _MOST_BESIDE:
            return enough
        if ended.returncode >= 0 or not tried or enough - too_small <= _ALIGNMENT:
            raise ValueError(f"TFLite Micro does not run {file}: {ended.stderr.strip()[-500:]}")

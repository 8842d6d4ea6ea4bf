"""TFLite metadata: what a `.tflite` file tells its client about its input, output and labels.

MediaPipe's tasks, Android Studio and other clients read from it how to prepare an image and what
the scores are called. It is a small flatbuffer of its own (identifier `M001`) in a buffer of the
file's, and the label file lies in a zip archive behind the file's end. The fields and their numbers
are those of MediaPipe's `metadata_schema.fbs`, version 1.5.0; nothing but flatbuffers, which LiteRT
brings along, is needed to write them.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.export.flatbuffer import pack, unpack

BUFFER = b"TFLITE_METADATA"
LABEL_FILE = "labels.txt"

_IDENTIFIER = b"M001"
# All that is used here is in every version of the schema.
_MIN_PARSER_VERSION = "1.0.0"
# A foreign file's archive may hold anything; its label files are kilobytes.
_MAX_ASSOCIATED_BYTES = 1 << 24

# Every table's fields in the order of their numbers. A union takes two numbers: its type's comes
# before its own. What a classifier has no use for is left out at the end of a table.
_TABLES: dict[str, dict[str, str]] = {
    "ModelMetadata": {
        "name": "string",
        "description": "string",
        "version": "string",
        "subgraph_metadata": "[SubGraphMetadata]",
        "author": "string",
        "license": "string",
        "associated_files": "[AssociatedFile]",
        "min_parser_version": "string",
    },
    "SubGraphMetadata": {
        "name": "string",
        "description": "string",
        "input_tensor_metadata": "[TensorMetadata]",
        "output_tensor_metadata": "[TensorMetadata]",
        "associated_files": "[AssociatedFile]",
    },
    "TensorMetadata": {
        "name": "string",
        "description": "string",
        "dimension_names": "[string]",
        "content": "Content",
        "process_units": "[ProcessUnit]",
        "stats": "Stats",
        "associated_files": "[AssociatedFile]",
    },
    "Content": {"content_properties": "ContentProperties", "range": "ValueRange"},
    "ProcessUnit": {"options": "ProcessUnitOptions"},
    "Stats": {"max": "[float]", "min": "[float]"},
    "AssociatedFile": {
        "name": "string",
        "description": "string",
        "type": "AssociatedFileType",
        "locale": "string",
        "version": "string",
    },
    "FeatureProperties": {},
    "ImageProperties": {"color_space": "ColorSpaceType", "default_size": "ImageSize"},
    "ImageSize": {"width": "uint", "height": "uint"},
    "ValueRange": {"min": "int", "max": "int"},
    "NormalizationOptions": {"mean": "[float]", "std": "[float]"},
    "ScoreThresholdingOptions": {"global_score_threshold": "float"},
}
# The numbers of a union's types count from 1.
_UNIONS = {
    "ContentProperties": (
        "FeatureProperties",
        "ImageProperties",
        "BoundingBoxProperties",
        "AudioProperties",
    ),
    "ProcessUnitOptions": (
        "NormalizationOptions",
        "ScoreCalibrationOptions",
        "ScoreThresholdingOptions",
        "BertTokenizerOptions",
        "SentencePieceTokenizerOptions",
        "RegexTokenizerOptions",
    ),
}
_ENUMS = {
    "AssociatedFileType": (
        "UNKNOWN",
        "DESCRIPTIONS",
        "TENSOR_AXIS_LABELS",
        "TENSOR_VALUE_LABELS",
        "TENSOR_AXIS_SCORE_CALIBRATION",
        "VOCABULARY",
        "SCANN_INDEX_FILE",
    ),
    "ColorSpaceType": ("UNKNOWN", "RGB", "GRAYSCALE"),
}
_SCALARS = {"uint": "<I", "int": "<i", "float": "<f"}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The metadata of a file.

    Attributes:
        values: the tables as nested dictionaries, by the schema's names; fields that are not there
            are left out, enumerations are their names, and a union has its type under `"type"`.
        files: contents of the archive behind the file, by name.
    """

    values: dict[str, Any]
    files: dict[str, bytes]

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """What is said of the inputs, in the file's order."""
        return self._subgraph.get("input_tensor_metadata", [])

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What is said of the outputs, in the file's order."""
        return self._subgraph.get("output_tensor_metadata", [])

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names that the first output's label file holds; empty without one."""
        for output in self.outputs[:1]:
            for file in output.get("associated_files", []):
                if file.get("type") == "TENSOR_AXIS_LABELS" and file.get("name") in self.files:
                    return tuple(self.files[file["name"]].decode(errors="replace").splitlines())
        return ()

    @property
    def normalization(self) -> tuple[list[float], list[float]] | None:
        """Mean and std with which a client prepares the first input; None if nothing is said."""
        for source in self.inputs[:1]:
            for unit in source.get("process_units", []):
                options = unit.get("options", {})
                if options.get("type") == "NormalizationOptions":
                    return options.get("mean", []), options.get("std", [])
        return None

    @property
    def _subgraph(self) -> dict[str, Any]:
        return (self.values.get("subgraph_metadata") or [{}])[0]


def add_metadata(
    content: bytes,
    labels: Sequence[str],
    *,
    name: str,
    description: str,
) -> bytes:
    """A `.tflite` file of raw image pixels with its metadata, and its labels zipped behind it.

    The pixels go in as they are (mean 0, std 1): the preprocessing is inside the file. Metadata
    that the file had before is replaced. The same arguments give the same bytes.

    Args:
        content: a file with one image input `(batch, height, width, channels)`.
        labels: class names in the order of the output; empty for a file that gives no scores.
        name: of the network.
        description: what it does, in a sentence.

    Raises:
        ValueError: if the file has not one input of images, or the number of labels does not fit
            its output.
    """
    model = unpack(content)
    graph = model.subgraphs[0]
    values = {
        "name": name,
        "description": description,
        "subgraph_metadata": [
            {
                "input_tensor_metadata": [_image(graph)],
                "output_tensor_metadata": _outputs(graph, labels),
            }
        ],
        "min_parser_version": _MIN_PARSER_VERSION,
    }
    _store(model, _encode(values))
    content = pack(model)
    if not labels:
        return content
    return zipped({LABEL_FILE: "".join(f"{label}\n" for label in labels).encode()}, behind=content)


def read_metadata(content: bytes) -> Metadata | None:
    """The metadata of a `.tflite` file, or None if it has none.

    Raises:
        ValueError: if the bytes are no such file, or its metadata are damaged.
    """
    model = unpack(content)
    for entry in model.metadata or []:
        if entry.name == BUFFER:
            data = model.buffers[entry.buffer].data
            return Metadata(_decode(b"" if data is None else bytes(data)), _unzip(content))
    return None


def zipped(
    files: Mapping[str, bytes], *, behind: bytes = b"", compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip archive, with `behind` before it; the same files give the same bytes.

    Clients that read a `.tflite` file's archive take it uncompressed only.
    """
    whole = io.BytesIO(behind)
    whole.seek(0, io.SEEK_END)
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.compress_type = compression
            entry.create_system = 3  # else it tells Windows from the rest
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return whole.getvalue()


def _image(graph: schema.SubGraphT) -> dict[str, Any]:
    """What is said of the input."""
    shapes = [list(map(int, graph.tensors[i].shape)) for i in graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(
            "Metadata are written for a file with one input of images (batch, height, width, "
            f"channels). Received: inputs of the shapes {shapes}"
        )
    _, height, width, channels = shapes[0]
    color = {3: "RGB", 1: "GRAYSCALE"}.get(channels, "UNKNOWN")
    return {
        "name": graph.tensors[graph.inputs[0]].name.decode(),
        "description": "The image: its pixels as they are, 0 to 255.",
        "content": {
            "content_properties": {
                "type": "ImageProperties",
                "color_space": color,
                "default_size": {"width": width, "height": height},
            }
        },
        "process_units": [
            {"options": {"type": "NormalizationOptions", "mean": [0.0], "std": [1.0]}}
        ],
        "stats": {"max": [255.0], "min": [0.0]},
    }


def _outputs(graph: schema.SubGraphT, labels: Sequence[str]) -> list[dict[str, Any]]:
    """What is said of the outputs; with labels, there is one."""
    outputs: list[dict[str, Any]] = [
        {
            "name": graph.tensors[i].name.decode(),
            "content": {"content_properties": {"type": "FeatureProperties"}},
        }
        for i in graph.outputs
    ]
    if labels:
        shapes = [list(map(int, graph.tensors[i].shape)) for i in graph.outputs]
        if len(shapes) != 1 or shapes[0][-1:] != [len(labels)]:
            raise ValueError(
                "Argument `labels` must hold one name per value of the only output. Received: "
                f"{len(labels)} names for outputs of the shapes {shapes}"
            )
        outputs[0]["description"] = "One score per class, in the order of the labels."
        outputs[0]["associated_files"] = [
            {
                "name": LABEL_FILE,
                "description": "The names of the classes.",
                "type": "TENSOR_AXIS_LABELS",
            }
        ]
    return outputs


def _store(model: schema.ModelT, data: bytes) -> None:
    """Puts metadata into the buffer that is named for them, a new one if there is none."""
    model.metadata = model.metadata or []
    entry = next((entry for entry in model.metadata if entry.name == BUFFER), None)
    if entry is None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = BUFFER, len(model.buffers)
        model.metadata.append(entry)
        model.buffers.append(schema.BufferT())
    model.buffers[entry.buffer].data = np.frombuffer(data, np.uint8)


def _encode(values: Mapping[str, Any]) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(_encode_table(builder, "ModelMetadata", values), _IDENTIFIER)
    return bytes(builder.Output())


def _encode_table(builder: flatbuffers.Builder, table: str, values: Mapping[str, Any]) -> int:
    """Writes a table behind what it refers to, which has to be there first; its offset."""
    fields = _numbered(table)
    offsets = {
        field: _encode_value(builder, kind, values[field])
        for field, (_, kind) in fields.items()
        if values.get(field) is not None and kind not in _SCALARS and kind not in _ENUMS
    }
    builder.StartObject(sum(2 if kind in _UNIONS else 1 for _, kind in fields.values()))
    for field, (number, kind) in fields.items():
        value = values.get(field)
        if value is None:
            continue
        if kind in _ENUMS:
            builder.PrependInt8Slot(number, _ENUMS[kind].index(value), 0)
        elif kind == "float":
            builder.PrependFloat32Slot(number, value, 0.0)
        elif kind == "uint":
            builder.PrependUint32Slot(number, value, 0)
        elif kind == "int":
            builder.PrependInt32Slot(number, value, 0)
        else:
            if kind in _UNIONS:
                type_number = _UNIONS[kind].index(value["type"]) + 1
                builder.PrependUint8Slot(number - 1, type_number, 0)
            builder.PrependUOffsetTRelativeSlot(number, offsets[field], 0)
    return builder.EndObject()


def _encode_value(builder: flatbuffers.Builder, kind: str, value: Any) -> int:
    """Writes what is not held in its table itself: a string, a vector or another table."""
    if kind == "string":
        return builder.CreateString(value)
    if kind in _UNIONS:
        return _encode_table(builder, value["type"], value)
    if not kind.startswith("["):
        return _encode_table(builder, kind, value)
    of = kind.strip("[]")
    offsets = value if of in _SCALARS else [_encode_value(builder, of, item) for item in value]
    builder.StartVector(4, len(offsets), 4)
    for item in reversed(offsets):
        builder.PrependFloat32(item) if of == "float" else builder.PrependUOffsetTRelative(item)
    return builder.EndVector()


def _numbered(table: str) -> dict[str, tuple[int, str]]:
    """The fields of a table with their numbers and kinds."""
    fields, number = {}, 0
    for field, kind in _TABLES[table].items():
        number += kind in _UNIONS
        fields[field] = (number, kind)
        number += 1
    return fields


def _decode(data: bytes) -> dict[str, Any]:
    try:
        if data[4:8] != _IDENTIFIER:
            raise ValueError(f"they begin with {data[:8]!r}")
        return _Reader(data).table("ModelMetadata", *struct.unpack_from("<I", data))
    except (ValueError, struct.error) as error:
        raise ValueError(f"The file's TFLite metadata are damaged: {error}") from None


class _Reader:
    """Reads tables out of bytes that may be damaged: every access stays inside them."""

    def __init__(self, data: bytes):
        self._data = data
        # A valid file refers to each of its bytes about once; a damaged one could refer to the same
        # tables again and again.
        self._left = len(data)

    def table(self, name: str, at: int) -> dict[str, Any]:
        """The fields that are there."""
        if name not in _TABLES:
            return {}
        vtable = at - self._number("<i", at)
        size = self._number("<H", vtable)
        values: dict[str, Any] = {}
        for field, (number, kind) in _numbered(name).items():
            where = self._slot(vtable, size, number)
            if where == 0:
                continue
            if kind in _UNIONS:
                of = self._slot(vtable, size, number - 1)
                of = self._number("<B", at + of) if of else 0
                if not 0 < of <= len(_UNIONS[kind]):
                    continue
                type_name = _UNIONS[kind][of - 1]
                values[field] = {"type": type_name, **self.table(type_name, self._to(at + where))}
            else:
                values[field] = self._value(kind, at + where)
        return values

    def _value(self, kind: str, at: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], at)
        if kind in _ENUMS:
            number = self._number("<b", at)
            names = _ENUMS[kind]
            return names[number] if 0 <= number < len(names) else f"unknown ({number})"
        start = self._to(at)
        if not kind.startswith("[") and kind != "string":
            return self.table(kind, start)
        count = self._number("<I", start)
        if kind == "string":
            self._check(start + 4, count)
            return self._data[start + 4 : start + 4 + count].decode(errors="replace")
        self._check(start + 4, 4 * count)
        return [self._value(kind[1:-1], start + 4 + 4 * i) for i in range(count)]

    def _slot(self, vtable: int, size: int, number: int) -> int:
        """Where a table keeps a field, from its start; 0 if it has none."""
        offset = 4 + 2 * number
        return self._number("<H", vtable + offset) if offset + 2 <= size else 0

    def _to(self, at: int) -> int:
        return at + self._number("<I", at)

    def _number(self, form: str, at: int) -> Any:
        self._check(at, struct.calcsize(form))
        return struct.unpack_from(form, self._data, at)[0]

    def _check(self, at: int, size: int) -> None:
        self._left -= 1
        if at < 0 or at + size > len(self._data) or self._left < 0:
            raise ValueError(f"they refer to {size} bytes at {at} of {len(self._data)}")


def _unzip(content: bytes) -> dict[str, bytes]:
    """What the archive behind a file holds; empty if there is none."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _MAX_ASSOCIATED_BYTES:
                raise ValueError(f"it holds more than {_MAX_ASSOCIATED_BYTES} bytes")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"The archive behind the file is damaged: {error}") from None

"""The bundle: a directory with a network, its labels, its manifest and its golden vectors."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.preprocessing import Preprocessing

if TYPE_CHECKING:
    from keras_resnet.export.verification import Verification

# Version 2 says what the outputs are (one dictionary each instead of one for the only output), and
# which weights, converter settings and operators the file was made with.
SCHEMA_VERSION = 2
MODEL, LABELS, MANIFEST, GOLDEN = "model.tflite", "labels.txt", "manifest.json", "golden.npz"
REPORT = "report.html"

_REQUIRED = (MODEL, LABELS, GOLDEN)
_OPTIONAL = (REPORT,)
# What comes out in one array is stored under this name, several arrays under names that begin so.
_EXPECTED = "expected"

Outputs = np.ndarray | dict[str, np.ndarray]


class BundleError(ValueError):
    """A directory that is no bundle, or one whose files are not those that were exported."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An exported network.

    Attributes:
        path: the directory.
        manifest: what `manifest.json` holds; of a bundle that an older version wrote, in today's
            form, with None for what that version did not note.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Opens a bundle and checks that its files are those that were exported.

        Raises:
            FileNotFoundError: if there is no such directory.
            BundleError: if it is no bundle, was written by a newer version, or was changed.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"No such bundle: {path}")
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{path} is no bundle: it has no {MANIFEST}")
        manifest, files = _read_manifest(path / MANIFEST)
        for name, expected in files.items():
            if not (path / name).is_file():
                raise BundleError(f"{path} is not complete: it has no {name}")
            if digest(path / name) != expected:
                raise BundleError(f"{path / name} was changed after it was exported")
        if manifest["schema_version"] == 1:
            manifest = _from_version_1(manifest)
        return cls(path, manifest)

    @property
    def model_path(self) -> Path:
        """The `.tflite` file."""
        return self.path / MODEL

    @property
    def report_path(self) -> Path | None:
        """The page that tells how the export was judged, or None without one."""
        return self.path / REPORT if REPORT in self.manifest["sha256"] else None

    @property
    def verification(self) -> Verification:
        """How the file compared with its source when it was exported."""
        from keras_resnet.export.verification import Verification

        return Verification.from_dict(self.manifest["verification"])

    @property
    def scheme(self) -> str:
        """A name from `SCHEMES`."""
        return str(self.manifest["scheme"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of the pixels that the file takes."""
        _, height, width, channels = self.manifest["input"]["shape"]
        return height, width, channels

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the file gives, e.g. `("probabilities",)`."""
        return tuple(output["name"] for output in self.manifest["outputs"])

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the scores; empty for a file that gives features."""
        return tuple((self.path / LABELS).read_text(encoding="utf-8").splitlines())

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image is fitted to the input; its mean and std are inside the file."""
        return Preprocessing.from_dict(self.manifest["preprocessing"])

    def golden(self) -> tuple[np.ndarray, Any]:
        """Raw images uint8 `(n, h, w, c)`, and what the source model gives for them.

        The probabilities `(n, classes)`; of a file that gives features, a dictionary of the arrays
        by the names of the outputs.
        """
        with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
            named = {
                name.removeprefix(f"{_EXPECTED}."): arrays[name]
                for name in arrays.files
                if name.startswith(f"{_EXPECTED}.")
            }
            return arrays["inputs"], named or arrays[_EXPECTED]


def write_files(
    directory: Path,
    content: bytes,
    labels: Sequence[str],
    golden: tuple[np.ndarray, Outputs],
    manifest: Mapping[str, Any],
    report_html: str | None = None,
) -> None:
    """Writes the files of a bundle; the same arguments give the same bytes.

    Args:
        directory: an empty one.
        content: of the `.tflite` file, with its metadata.
        labels: class names; empty for a file that gives features.
        golden: images, and the source model's outputs for them; see `Bundle.golden`.
        manifest: plain values. What can be read from the other arguments (the file's input,
            outputs and operators, the classes, every digest) is added here.
        report_html: the page `report.html`.
    """
    images, expected = golden
    arrays = {"inputs": images}
    if isinstance(expected, dict):
        arrays |= {f"{_EXPECTED}.{name}": array for name, array in expected.items()}
    else:
        arrays[_EXPECTED] = expected
    files = {
        MODEL: content,
        LABELS: "".join(f"{label}\n" for label in labels).encode(),
        GOLDEN: _npz(arrays),
    }
    if report_html is not None:
        files[REPORT] = report_html.encode()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    manifest = {
        **manifest,
        **_facts(content),
        "schema_version": SCHEMA_VERSION,
        "classes": len(labels) or None,
        "golden": {"images": len(images), "sha256": array_digest(arrays.values())},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    manifest["sha256"][MANIFEST] = _own_digest(manifest)
    (directory / MANIFEST).write_bytes(_text(manifest, sort_keys=True, allow_nan=False))


def array_digest(arrays: Iterable[Any]) -> str:
    """SHA-256 of arrays in their order: types, shapes and values, whatever file they come from.

    `array_digest(model.get_weights())` says whether two models have the same weights, also when
    one of them was saved and loaded in between.
    """
    hashed = hashlib.sha256()
    for item in arrays:
        array = np.ascontiguousarray(item)
        hashed.update(f"{array.dtype}{list(np.shape(item))}".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def check_labels(labels: tuple[str, ...], classes: int) -> None:
    """Raises `ValueError` unless there is one single-line label per class."""
    if len(labels) != classes:
        raise ValueError(
            f"Argument `labels` must hold one name per class. Received: {len(labels)} names for "
            f"{classes} classes"
        )
    for label in labels:
        if not label or label.splitlines() != [label]:
            raise ValueError(f"A label must be one line of text. Received: {label!r}")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A manifest that was not changed, and the digests of the other files."""
    content = path.read_bytes()
    try:
        manifest = json.loads(content)
        version, files = manifest["schema_version"], dict(manifest["sha256"])
        rewritten = _text(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error!r}") from None
    if type(version) is not int or version < 1:
        raise BundleError(f"{path} is damaged: its schema version is {version!r}")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path.parent} has schema version {version}; this version of keras_resnet reads up to "
            f"{SCHEMA_VERSION}. Install a newer keras-resnet-edge, or export it again with this one"
        )
    # Written anew it has the same bytes: a change that JSON does not see is a change as well.
    if content != rewritten or files.pop(MANIFEST, None) != _own_digest(manifest):
        raise BundleError(f"{path} was changed after it was exported")
    if not set(_REQUIRED) <= set(files) <= {*_REQUIRED, *_OPTIONAL}:
        raise BundleError(
            f"{path} is damaged: a bundle holds {', '.join(_REQUIRED)} and may hold "
            f"{', '.join(_OPTIONAL)}; it lists {', '.join(sorted(files))}"
        )
    return manifest, files


def _from_version_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """Today's form of a manifest of version 1, which had one output."""
    manifest = {**manifest, "outputs": [manifest["output"]]}
    output = manifest.pop("output")
    missing = dict.fromkeys(("weights", "converter", "operators", "golden"))
    return {**missing, "classes": output["shape"][-1], **manifest}


def _facts(content: bytes) -> dict[str, Any]:
    """What a `.tflite` file says of itself."""
    from keras_resnet.export.graph import read_graph

    graph = read_graph(content)
    (source,) = graph.inputs

    def described(index: int) -> dict[str, Any]:
        tensor = graph.tensors[index]
        values: dict[str, Any] = {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
        }
        if tensor.scale:
            values |= {"scale": tensor.scale[0], "zero_point": tensor.zero_point[0]}
        return values

    colors = {3: "raw RGB pixels 0..255"}.get(graph.tensors[source].shape[-1], "raw pixels 0..255")
    return {
        "input": {**described(source), "content": colors},
        "outputs": [described(index) for index in graph.outputs],
        "operators": dict(collections.Counter(operator.name for operator in graph.operators)),
    }


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """What `numpy.savez_compressed` writes, without the time of day."""
    from keras_resnet.export.metadata import zipped

    files = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        files[f"{name}.npy"] = file.getvalue()
    return zipped(files, compression=zipfile.ZIP_DEFLATED)


def _own_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without this digest."""
    files = {name: value for name, value in manifest["sha256"].items() if name != MANIFEST}
    text = json.dumps({**manifest, "sha256": files}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(manifest: dict[str, Any], **options: Any) -> bytes:
    return (json.dumps(manifest, indent=2, ensure_ascii=False, **options) + "\n").encode()

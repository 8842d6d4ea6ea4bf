"""The bundle: a directory with a network, its labels, its manifest and its golden vectors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.preprocessing import Preprocessing

SCHEMA_VERSION = 1
MODEL, LABELS, MANIFEST, GOLDEN = "model.tflite", "labels.txt", "manifest.json", "golden.npz"


class BundleError(ValueError):
    """A directory that is no bundle, or one whose files are not those that were exported."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An exported network.

    Attributes:
        path: the directory.
        manifest: what `manifest.json` holds.
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
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version, files = manifest["schema_version"], dict(manifest["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path / MANIFEST} is damaged: {error!r}") from None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version}; this version of keras_resnet reads "
                f"{SCHEMA_VERSION}. Export it again, or use the version that wrote it"
            )
        if files.get(MANIFEST) != _own_digest(manifest):
            raise BundleError(f"{path / MANIFEST} was changed after it was exported")
        for name in (MODEL, LABELS, GOLDEN):
            if not (path / name).is_file():
                raise BundleError(f"{path} is not complete: it has no {name}")
            if digest(path / name) != files.get(name):
                raise BundleError(f"{path / name} was changed after it was exported")
        return cls(path, manifest)

    @property
    def model_path(self) -> Path:
        """The `.tflite` file."""
        return self.path / MODEL

    @property
    def scheme(self) -> str:
        """A name from `SCHEMES`."""
        return str(self.manifest["scheme"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of the pixels that the file takes."""
        _, height, width, channels = self.manifest["input"]["shape"]
        return height, width, channels

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return tuple((self.path / LABELS).read_text(encoding="utf-8").splitlines())

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image is fitted to the input; its mean and std are inside the file."""
        return Preprocessing.from_dict(self.manifest["preprocessing"])

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw images uint8 `(n, h, w, c)`, and the source model's probabilities `(n, classes)`."""
        with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
            return arrays["inputs"], arrays["expected"]


def write_files(
    directory: Path,
    model: bytes,
    labels: tuple[str, ...],
    golden: tuple[np.ndarray, np.ndarray],
    manifest: dict[str, Any],
) -> None:
    """Writes the four files of a bundle; the manifest gets the digests of the others."""
    (directory / MODEL).write_bytes(model)
    (directory / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    np.savez_compressed(directory / GOLDEN, inputs=golden[0], expected=golden[1])
    manifest = {
        "schema_version": SCHEMA_VERSION,
        **manifest,
        "sha256": {name: digest(directory / name) for name in (MODEL, LABELS, GOLDEN)},
    }
    manifest["sha256"][MANIFEST] = _own_digest(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _own_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without this digest, whatever its spaces."""
    files = {name: value for name, value in manifest["sha256"].items() if name != MANIFEST}
    text = json.dumps({**manifest, "sha256": files}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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

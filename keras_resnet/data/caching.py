"""Fitted images that need not be read again: in memory, or in a file on the disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.files import atomic_file

# A cache in memory is used for splits whose fitted images take up to this many bytes. CIFAR-10
# takes 0.18 GB at 32 x 32 pixels.
MEMORY_BYTES = 1 << 30

# The images of a file start here, on a page of their own.
_HEADER_BYTES = 4096
_FORMAT = "keras-resnet images 1"

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


class Cache:
    """Images by number, kept once they were read. The number -1 stands for a black image.

    Args:
        images: uint8 `(examples, height, width, channels)`.
        is_filled: which of them are there, bool `(examples,)`; None for all.
    """

    def __init__(self, images: np.ndarray, is_filled: np.ndarray | None = None):
        self._images = images
        self._is_filled = np.ones(len(images), bool) if is_filled is None else is_filled

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """Which of these need not be read, bool `(n,)`."""
        return self._is_filled[numbers] | (numbers < 0)

    def get(self, numbers: np.ndarray) -> np.ndarray:
        """Those images, uint8 `(n, height, width, channels)`."""
        images = self._images[numbers]
        images[numbers < 0] = 0
        return images

    def complete(self, numbers: np.ndarray, was_read: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Keeps the images of a batch that were read, and adds those that were not."""
        read = numbers[was_read]
        self._images[read] = images[was_read]
        self._is_filled[read] = True
        return images if was_read.all() else self.get(numbers)


def in_memory(examples: int, shape: tuple[int, int, int]) -> Cache | None:
    """An empty cache, or None for images that take too much memory."""
    if examples * int(np.prod(shape)) > MEMORY_BYTES:
        return None
    # The system provides the memory as it is filled.
    return Cache(np.empty((examples, *shape), np.uint8), np.zeros(examples, bool))


def check_policy(cache: str) -> None:
    """Raises `ValueError` unless it is `"memory"`, `"none"` or `"disk:DIRECTORY"`."""
    kind, _, directory = cache.partition(":") if isinstance(cache, str) else ("", "", "")
    if cache not in ("memory", "none") and not (kind == "disk" and directory):
        raise ValueError(
            f"Argument `cache` must be 'memory', 'none' or 'disk:DIRECTORY'. Received: {cache!r}"
        )


def on_disk(
    directory: Path,
    key: dict[str, Any],
    examples: int,
    shape: tuple[int, int, int],
    read: Callable[[], Batches],
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a split in a file, which is made if it is not there.

    The file is complete or not there at all. Of several processes that want it at the same time,
    one makes it and the others wait. A file that is damaged is made again.

    Args:
        directory: where the file is.
        key: all that the pixels depend on; JSON.
        examples: how many images there are.
        shape: of each.
        read: reads batches of all images and labels, in the order of their numbers.

    Raises:
        OSError: if the file cannot be written, e.g. on a full disk; nothing is left of it then.
    """
    from filelock import FileLock

    header = {"format": _FORMAT, "examples": examples, "shape": shape, **key}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    path = Path(directory).expanduser() / f"{digest}.images"
    found = _open(path, digest, examples, shape)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _open(path, digest, examples, shape)
            if found is None:
                _write(path, digest, read())
                found = _open(path, digest, examples, shape)
    if found is None:
        raise OSError(f"The cache {path} has another size than was written to it")
    return found


def _header(digest: str) -> bytes:
    return json.dumps({"format": _FORMAT, "digest": digest}).encode().ljust(_HEADER_BYTES)


def _open(
    path: Path, digest: str, examples: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and labels, or None if there is no such file or it is not whole."""
    image_bytes = examples * int(np.prod(shape))
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    if header != _header(digest) or size != _HEADER_BYTES + image_bytes + 4 * examples:
        return None
    images = np.memmap(path, np.uint8, "r", _HEADER_BYTES, (examples, *shape))
    labels = np.fromfile(path, "<i4", examples, offset=_HEADER_BYTES + image_bytes)
    return images, labels


def _write(path: Path, digest: str, batches: Batches) -> None:
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            file.write(_header(digest))
            labels = []
            for images, some_labels in batches:
                file.write(images.data)
                labels.append(some_labels)
            file.write(np.concatenate(labels).astype("<i4").data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # of a write, which does not know the file's name
        raise OSError(error.errno, error.strerror, str(path)) from error

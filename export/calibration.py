"""The images from which a quantized network's ranges are read, and what can be wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.data import ImageData, Split, load
from keras_resnet.preprocessing import Preprocessing

# benchmarks/quantization.py: from about 50 images on, more of them change agreement by less than
# another choice of as many does; a hundred leave a margin and take seconds.
DEFAULT_COUNT = 100
# Fewer leave out what single channels do on images of other kinds.
_FEW = 25
# Adjacent pixels of photographs and drawings go together (0.7 to 0.99); those of noise do not.
_LEAST_CORRELATION = 0.3
_LEAST_SPREAD = 8.0  # standard deviation of all pixels, of 255
_MOST_EVALUATED = 0.05  # share of the images that may be among those of the evaluation by chance


class CalibrationWarning(UserWarning):
    """Calibration images that may not show a network what it will see."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Raw images for calibration.

    Attributes:
        images: uint8 `(n, height, width, channels)`, in the network's size.
        source: where they come from.
        warnings: what is suspicious of them.
    """

    images: np.ndarray
    source: str
    warnings: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels, in hexadecimal."""
        return hashlib.sha256(self.images.tobytes()).hexdigest()

    def check_overlap(self, evaluated: set[bytes]) -> tuple[str, ...]:
        """A warning if many of the images are among those that accuracy is measured on.

        Args:
            evaluated: `pixel_digests` of the latter.
        """
        shared = len(pixel_digests(self.images) & evaluated)
        if shared <= _MOST_EVALUATED * len(self.images):
            return ()
        return (
            f"{shared} of {len(self.images)} calibration images are evaluation images as well: the "
            "accuracy is measured on images that the ranges were chosen by, and is too good",
        )


def pixel_digests(images: Iterable[np.ndarray]) -> set[bytes]:
    """A digest of every image's pixels."""
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images}


def choose(
    calibration: Any, shape: tuple[int, int, int], preprocessing: Preprocessing, count: int
) -> Calibration:
    """Calibration images from a source, its name, a split, an array, or a file of one.

    Args:
        calibration: of a source, the training split is used: what is measured later must not have
            been used to choose the ranges.
        shape: of the network's input.
        preprocessing: how images are fitted to it.
        count: how many to take at random; of an array, also from an `.npz` file that holds one
            called `images`, all are taken.

    Raises:
        ValueError: if there is nothing to calibrate with, or it cannot be raw images.
    """
    source = "array"
    if isinstance(calibration, str | os.PathLike):
        source = Path(calibration).name
        is_array = source.endswith(".npz")
        calibration = _array_in(Path(calibration)) if is_array else load(os.fspath(calibration))
    if isinstance(calibration, ImageData):
        images, labels = calibration.train.take(count, shape, preprocessing)
        classes = len(calibration.class_names)
        return _checked(images, f"{calibration.name} (train)", labels, classes)
    if isinstance(calibration, Split):
        images, labels = calibration.take(count, shape, preprocessing)
        return _checked(images, "split", labels, None)
    if isinstance(calibration, np.ndarray):
        _check_array(calibration)
        images = np.stack([preprocessing.fit(i, shape[:2], shape[2]) for i in calibration])
        return _checked(images, source)
    raise ValueError(
        "A scheme with quantized activations reads their ranges from images: argument "
        "`calibration` must be a data source, its name, a split, a uint8 array or an .npz file. "
        f"Received: {calibration!r}"
    )


def _array_in(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images: np.ndarray = arrays["images"]
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            "A file of calibration images must hold an array `images`, as numpy.savez writes it. "
            f"Received: {path} ({error})"
        ) from error
    return images


def _check_array(images: np.ndarray) -> None:
    """Raises `ValueError`, with the likely reason, unless an array holds raw images."""
    if images.dtype == np.uint8 and images.ndim == 4 and len(images):
        return
    hint = ""
    if images.size and images.dtype != np.uint8 and images.dtype.kind in "iuf":
        low, high = images.min(), images.max()
        hint = f", values {low:.4g}..{high:.4g}"
        if low < 0 or high <= 1:
            hint += "; they look normalized: give the pixels as they were before"
        elif high > 255:
            hint += "; pixels end at 255"
        else:
            hint += "; if these are pixels, convert them with astype('uint8')"
    raise ValueError(
        "Argument `calibration` must hold raw uint8 images (n, height, width, channels). "
        f"Received: dtype={images.dtype}, shape={images.shape}{hint}"
    )


def _checked(
    images: np.ndarray, source: str, labels: np.ndarray | None = None, classes: int | None = None
) -> Calibration:
    """Images with what is suspicious of them.

    Raises:
        ValueError: if they cannot be images at all.
    """
    constant = sum(int(image.min() == image.max()) for image in images)
    if constant > len(images) / 2:
        raise ValueError(
            "Argument `calibration` must hold images with something on them, or the ranges fit "
            f"nothing else. Received: {constant} of {len(images)} images of one color"
        )
    if images.max() <= 1:
        raise ValueError(
            "Argument `calibration` must hold raw pixels 0..255. Received: values "
            f"{images.min()}..{images.max()}, as pixels between 0 and 1 have that were converted "
            "to integers"
        )
    found = list(_few_or_alike(images))
    spread = float(images.std())
    if spread < _LEAST_SPREAD:
        found.append(
            f"all pixels lie close together (standard deviation {spread:.1f} of 255): photographs "
            "spread over 40 to 80"
        )
    correlation = _adjacent_correlation(images)
    if correlation < _LEAST_CORRELATION:
        found.append(
            f"the images look like noise (adjacent pixels correlate by {correlation:.2f}): a "
            "network's activations on noise are not those on images"
        )
    shown = len(set(labels.tolist())) if labels is not None else None
    if shown == 1 and len(images) > 1 and classes != 1:
        found.append("all images are of one class: the others' activations were not seen")
    return Calibration(images, source, tuple(found))


def _few_or_alike(images: np.ndarray) -> Iterable[str]:
    different = len(pixel_digests(images))
    if different < _FEW:
        alike = "" if different == len(images) else f", of which {different} are different"
        yield (
            f"{len(images)} calibration images{alike}; under {_FEW} the ranges depend on which "
            f"they are, {DEFAULT_COUNT} are usual"
        )


def _adjacent_correlation(images: np.ndarray) -> float:
    """Correlation of pixels that lie side by side, over all images."""
    left: np.ndarray = images[:, :, :-1].astype(np.float64)
    right: np.ndarray = images[:, :, 1:].astype(np.float64)
    if left.size == 0 or left.std() == 0 or right.std() == 0:
        return 1.0
    product = ((left - left.mean()) * (right - right.mean())).mean()
    return float(product / (left.std() * right.std()))

"""The images from which a quantized network's ranges are read."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from keras_resnet.data import ImageData, Split, load
from keras_resnet.preprocessing import Preprocessing

# More images widen the ranges by less and less; conversion time grows with their number.
DEFAULT_COUNT = 100


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Raw images for calibration.

    Attributes:
        images: uint8 `(n, height, width, channels)`, in the network's size.
        source: where they come from.
    """

    images: np.ndarray
    source: str

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels, in hexadecimal."""
        return hashlib.sha256(self.images.tobytes()).hexdigest()

    def spanning(self) -> np.ndarray:
        """The images, with one black and one white value in the first.

        The input's range is read from them like any other, and only the full range 0..255 gives a
        raw byte its own step. Two values of one image leave every other range as it is.
        """
        images = self.images.copy()
        flat = images[0].reshape(-1)
        flat[0], flat[-1] = 0, 255
        return images


def choose(
    calibration: Any, shape: tuple[int, int, int], preprocessing: Preprocessing, count: int
) -> Calibration:
    """Calibration images from a source, its name, a split, or an array of images.

    Args:
        calibration: of a source, the training split is used: what is measured later must not have
            been used to choose the ranges.
        shape: of the network's input.
        preprocessing: how images are fitted to it.
        count: how many to take at random; of an array, all are taken.

    Raises:
        ValueError: if there is nothing to calibrate with.
    """
    if isinstance(calibration, str):
        calibration = load(calibration)
    if isinstance(calibration, ImageData):
        images, _ = calibration.train.take(count, shape, preprocessing)
        return Calibration(images, f"{calibration.name} (train)")
    if isinstance(calibration, Split):
        images, _ = calibration.take(count, shape, preprocessing)
        return Calibration(images, "split")
    if isinstance(calibration, np.ndarray):
        if calibration.dtype != np.uint8 or calibration.ndim != 4 or len(calibration) == 0:
            raise ValueError(
                "Argument `calibration` must hold raw uint8 images (n, height, width, channels). "
                f"Received: dtype={calibration.dtype}, shape={calibration.shape}"
            )
        images = np.stack([preprocessing.fit(i, shape[:2], shape[2]) for i in calibration])
        return Calibration(images, "array")
    raise ValueError(
        "Scheme int8 reads its ranges from images: argument `calibration` must be a data source, "
        f"its name, a split or a uint8 array. Received: {calibration!r}"
    )

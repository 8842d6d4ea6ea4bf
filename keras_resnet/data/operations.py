"""The operations of RandAugment and TrivialAugment, for batches of uint8 images.

Every image of a batch has its own operation. The arithmetic is Pillow's, which torchvision calls
for the same purpose, to the last bit: fixed-point coordinates and the nearest pixel for what moves,
single precision and truncation for what blends, tables for the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# (uint8 images (b, h, w, c), float32 uniforms (b, draws), uint8 fill (c,)) to images
Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

BINS = 31
"""How many magnitudes there are, 0..30."""


@dataclasses.dataclass(frozen=True)
class Space:
    """The largest magnitudes; the smallest is that of no change.

    Attributes:
        shear: pixels per pixel.
        translation: pixels.
        relative_translation: part of the side; counts where `translation` is 0.
        rotation: degrees.
        enhancement: of brightness, color, contrast and sharpness: distance of the factor from 1.
        posterization: bits that are dropped.
    """

    shear: float
    translation: float
    relative_translation: float
    rotation: float
    enhancement: float
    posterization: int

    def magnitudes(self, height: int, width: int) -> dict[str, np.ndarray]:
        """Of every operation, float64 `(31,)`; of those that have a sign, the positive ones.

        For `posterize` they are bits to keep, for `solarize` thresholds.
        """
        along_x, along_y = (
            self.translation or self.relative_translation * side for side in (width, height)
        )
        none, enhancement = np.zeros(BINS), _steps(0, self.enhancement)
        return {
            "identity": none,
            "shear-x": _steps(0, self.shear),
            "shear-y": _steps(0, self.shear),
            "translate-x": np.floor(_steps(0, along_x)),
            "translate-y": np.floor(_steps(0, along_y)),
            "rotate": _steps(0, self.rotation),
            "brightness": enhancement,
            "color": enhancement,
            "contrast": enhancement,
            "sharpness": enhancement,
            "posterize": 8 - np.round(_steps(0, self.posterization)),
            "solarize": _steps(255, 0),
            "autocontrast": none,
            "equalize": none,
        }


def _steps(first: float, last: float) -> np.ndarray:
    """Equal steps from one number to another, float64 `(31,)`, with the rounding of torchvision.

    `torch.linspace` computes in float32 from both ends to the middle. It matters where numbers are
    cut off afterwards: half of 32 pixels are 15 there.
    """
    start, stop = np.float32(first), np.float32(last)
    step, i = np.float64((stop - start) / np.float32(BINS - 1)), np.arange(BINS)
    values = np.where(i < BINS // 2, start + step * i, stop - step * (BINS - 1 - i))
    return values.astype(np.float32).astype(np.float64)


# torchvision/transforms/autoaugment.py
RAND_AUGMENT = Space(0.3, 0, 150 / 331, 30, 0.9, 4)
TRIVIAL_AUGMENT = Space(0.99, 32, 0, 135, 0.99, 6)

# By operation, in torchvision's order, the function that does it; see _FUNCTIONS.
_GROUPS = {
    "identity": "same",
    "shear-x": "affine",
    "shear-y": "affine",
    "translate-x": "affine",
    "translate-y": "affine",
    "rotate": "affine",
    "brightness": "brightness",
    "color": "color",
    "contrast": "contrast",
    "sharpness": "sharpness",
    "posterize": "posterize",
    "solarize": "solarize",
    "autocontrast": "autocontrast",
    "equalize": "equalize",
}
OPERATIONS = tuple(_GROUPS)
"""The names of the operations."""


def rand_augment(count: int, magnitude: int) -> Step:
    """`count` random operations, one after the other, of one magnitude (Cubuk et al. 2019).

    The function takes two random numbers per image and operation: which one, and its sign.
    """

    def step(images: tf.Tensor, uniforms: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
        for i in range(count):
            operation = to_integers(uniforms[:, 2 * i], len(OPERATIONS))
            sign = to_integers(uniforms[:, 2 * i + 1], 2)
            magnitudes = tf.fill(tf.shape(operation), magnitude)
            images = operate(images, operation, magnitudes, sign, fill, RAND_AUGMENT)
        return images

    return step


def trivial_augment(images: tf.Tensor, uniforms: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """One random operation of random magnitude (Müller and Hutter 2021, the wide space).

    Takes three random numbers per image: the operation, its magnitude and its sign.
    """
    operation, magnitude, sign = (
        to_integers(uniforms[:, i], count) for i, count in enumerate((len(OPERATIONS), BINS, 2))
    )
    return operate(images, operation, magnitude, sign, fill, TRIVIAL_AUGMENT)


def operate(
    images: tf.Tensor,
    operation: tf.Tensor,
    magnitude: tf.Tensor,
    sign: tf.Tensor,
    fill: tf.Tensor,
    space: Space,
) -> tf.Tensor:
    """Applies to every image its own operation.

    Args:
        images: uint8 `(batch, height, width, 1 | 3)`, all but the batch static.
        operation: int32 `(batch,)`, the position in `OPERATIONS`.
        magnitude: int32 `(batch,)`, 0..30.
        sign: int32 `(batch,)`, 0 or 1 for a negative magnitude, where the operation has a sign.
        fill: uint8 `(channels,)`, what comes in from outside of the image.
        space: the magnitudes.

    Raises:
        ValueError: if the images are neither RGB nor grey.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            "RandAugment and TrivialAugment are for images with 3 channels (RGB) or 1 (grey). "
            f"Received: shape={images.shape}"
        )
    tables = _Tables.of(space, *images.shape[1:3])
    row = (operation * BINS + magnitude) * 2 + sign
    groups = tf.constant([list(_FUNCTIONS).index(group) for group in _GROUPS.values()])
    functions = _FUNCTIONS | {"affine": functools.partial(_affine, fill=fill)}
    return by_group(
        tf.gather(groups, operation),
        tuple(functions.values()),
        images,
        tf.gather(tables.levels, row)[:, None, None, None],
        tf.gather(tables.affine, row)[:, None, None],
    )


@dataclasses.dataclass(frozen=True)
class _Tables:
    """What an operation, a magnitude and a sign mean; a row for each of the combinations.

    Attributes:
        affine: int32 `(rows, 6)`, from the output's coordinates to the input's, in 1/65536 pixels.
        levels: float32 `(rows,)`: the factor, mask or threshold of what changes values.
    """

    affine: np.ndarray
    levels: np.ndarray

    @classmethod
    @functools.cache
    def of(cls, space: Space, height: int, width: int) -> _Tables:
        affine, levels = [], []
        for operation, magnitudes in space.magnitudes(height, width).items():
            for magnitude in magnitudes:
                for sign in (1, -1):
                    affine.append(_fixed(_matrix(operation, sign * magnitude, height, width)))
                    levels.append(_level(operation, magnitude, sign))
        return cls(np.array(affine, np.int32), np.array(levels, np.float32))


def _matrix(operation: str, by: float, height: int, width: int) -> tuple[float, ...]:
    """`(a, b, c, d, e, f)`: the output's (x, y) shows the input's (ax + by + c, dx + ey + f)."""
    if operation == "rotate":
        return _rotation(by, height, width)
    shift_x, shift_y, shear_x, shear_y = (
        by * (operation == name) for name in ("translate-x", "translate-y", "shear-x", "shear-y")
    )
    return (1.0, shear_x, -shift_x, shear_y, 1.0, -shift_y)


def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Counterclockwise around the center, computed as `PIL.Image.Image.rotate` does."""
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return (cosine, sine, -cosine * x - sine * y + x, -sine, cosine, sine * x - cosine * y + y)


def _fixed(matrix: tuple[float, ...]) -> list[int]:
    """A matrix for the numbers of pixels, whose centers are half a pixel further, in 1/65536."""
    a, b, c, d, e, f = matrix
    from_numbers = (a, b, c + 0.5 * a + 0.5 * b, d, e, f + 0.5 * d + 0.5 * e)
    return [math.floor(65536 * value + 0.5) for value in from_numbers]


def _level(operation: str, magnitude: float, sign: int) -> float:
    if operation == "posterize":
        return 256 - 2 ** (8 - int(magnitude))
    if operation == "solarize":
        return math.ceil(magnitude)
    return 1 + sign * magnitude


# Each of the following takes some images, their levels `(batch, 1, 1, 1)` and their matrices
# `(batch, 1, 1, 6)`.


def _same(images: tf.Tensor, *_: Any) -> tf.Tensor:
    return images


def _affine(images: tf.Tensor, _: Any, matrices: tf.Tensor, *, fill: tf.Tensor) -> tf.Tensor:
    height, width = images.shape[1:3]
    a, b, c, d, e, f = tf.unstack(matrices, axis=-1)
    x, y = tf.range(width)[None, None, :], tf.range(height)[None, :, None]
    from_x = tf.bitwise.right_shift(a * x + (b * y + c), 16)
    from_y = tf.bitwise.right_shift(d * x + (e * y + f), 16)
    return take_pixels(images, from_y, from_x, fill)


def _brightness(images: tf.Tensor, levels: tf.Tensor, *_: Any) -> tf.Tensor:
    brighter = tf.cast(images, tf.float32) * levels
    return tf.cast(tf.minimum(brighter, 255), tf.uint8)


def _color(images: tf.Tensor, levels: tf.Tensor, *_: Any) -> tf.Tensor:
    if images.shape[-1] == 1:
        return images
    return _blend(_grey(images, channels=3), images, levels)


def _contrast(images: tf.Tensor, levels: tf.Tensor, *_: Any) -> tf.Tensor:
    sums = tf.reduce_sum(_grey(images, channels=1), axis=2)  # of a row, below 2**24: exact
    pixels = images.shape[1] * images.shape[2]
    total = tf.reduce_sum(tf.cast(sums, tf.int64), axis=1)
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean[:, None, None], images, levels)


def _sharpness(images: tf.Tensor, levels: tf.Tensor, *_: Any) -> tf.Tensor:
    if min(images.shape[1:3]) < 3:
        return images
    # 5 in the center and 1 around it: at most 13 * 255, which two bytes hold.
    pixels = tf.cast(images, tf.int16)
    columns = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    inner = pixels[:, 1:-1, 1:-1]
    sums = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:] + 4 * inner
    # A sum over 13 is never halfway between two integers.
    smooth = tf.cast(tf.floor(tf.cast(sums, tf.float32) / 13 + 0.5), tf.int16)
    change = tf.pad(smooth - inner, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return _blend(pixels + change, pixels, levels)


def _posterize(images: tf.Tensor, levels: tf.Tensor, *_: Any) -> tf.Tensor:
    return tf.bitwise.bitwise_and(images, tf.cast(levels, tf.uint8))


def _solarize(images: tf.Tensor, levels: tf.Tensor, *_: Any) -> tf.Tensor:
    is_inverted = images >= tf.cast(levels, tf.uint8)
    # 255 - x inverts all bits. On random bytes, tf.where takes five times as long.
    return tf.bitwise.bitwise_xor(images, tf.cast(is_inverted, tf.uint8) * 255)


def _autocontrast(images: tf.Tensor, *_: Any) -> tf.Tensor:
    low, high = (
        tf.cast(reduce(images, axis=(1, 2)), tf.float64)[..., None]
        for reduce in (tf.reduce_min, tf.reduce_max)
    )
    values = tf.range(256, dtype=tf.float64)
    scale = 255 / tf.maximum(high - low, 1)
    stretched = tf.clip_by_value(tf.floor(values * scale + -low * scale), 0, 255)
    return _look_up(images, tf.cast(tf.where(high > low, stretched, values), tf.uint8))


def _equalize(images: tf.Tensor, *_: Any) -> tf.Tensor:
    counts = _histograms(images)
    below = tf.cumsum(counts, axis=-1, exclusive=True)
    values = tf.range(256)
    # As many pixels as have the largest value; all the others shall spread over the 255 steps.
    largest = tf.reduce_max(tf.where(counts > 0, values, 0), axis=-1)
    step = tf.gather(below, largest, batch_dims=2)[..., None] // 255
    spread = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    return _look_up(images, tf.cast(tf.where(step > 0, spread, values), tf.uint8))


_FUNCTIONS: dict[str, Callable[..., tf.Tensor]] = {
    "same": _same,
    "affine": _affine,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}


def _grey(images: tf.Tensor, channels: int) -> tf.Tensor:
    """Lightness with the weights of ITU-R BT.601, in so many equal channels, float32."""
    pixels = tf.cast(images, tf.float32)
    if images.shape[-1] == 1:
        return pixels
    # A product of matrices is faster than a sum over 3 channels. It is below 2**24: exact.
    weights = np.repeat(np.array([[19595], [38470], [7471]], np.float32), channels, axis=1)
    with tf.device("CPU"):  # a GPU would multiply with fewer bits
        weighted = tf.matmul(tf.reshape(pixels, (-1, 3)), weights)
    grey = tf.floor((weighted + 32768) / 65536)
    return tf.reshape(grey, (-1, *images.shape[1:3], channels))


def _blend(first: tf.Tensor, second: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """From `first` at factor 0 to `second` at 1 and beyond, cut off to bytes, uint8."""
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    return tf.cast(tf.clip_by_value(first + factor * (second - first), 0, 255), tf.uint8)


def _look_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Every pixel's value in its image's and channel's table, uint8 `(batch, channels, 256)`."""
    values = tf.gather(tf.reshape(tables, [-1]), _places(images))
    return tf.reshape(values, (-1, *images.shape[1:]))


def _histograms(images: tf.Tensor) -> tf.Tensor:
    """How often each value occurs, int32 `(batch, channels, 256)`."""
    size = tf.shape(images)[0] * (images.shape[-1] * 256)
    counts = tf.math.bincount(tf.reshape(_places(images), [-1]), minlength=size, maxlength=size)
    return tf.reshape(counts, (-1, images.shape[-1], 256))


def _places(images: tf.Tensor) -> tf.Tensor:
    """Where each pixel's value stands in a table by image, channel and value, in a row.

    int32 `(batch, height, width * channels)`: with the channels in an axis of their own, the
    addition would take twice as long.
    """
    _, height, width, channels = images.shape
    first = tf.range(tf.shape(images)[0] * channels) * 256
    first = tf.tile(tf.reshape(first, (-1, 1, channels)), (1, 1, width))
    return tf.cast(tf.reshape(images, (-1, height, width * channels)), tf.int32) + first


def to_integers(uniforms: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Numbers in [0, 1) as int32 in 0..count-1, all equally likely."""
    scaled = tf.floor(uniforms * tf.cast(count, uniforms.dtype))
    return tf.minimum(tf.cast(scaled, tf.int32), count - 1)  # the product may round up


def take_pixels(
    images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, fill: tf.Tensor
) -> tf.Tensor:
    """Images made of their own pixels in another place.

    Args:
        images: uint8 `(batch, height, width, channels)`.
        rows: int32, broadcastable to `(batch, height, width)`: which row each pixel comes from.
        columns: likewise; where the row or the column is outside of the image, `fill` comes in.
        fill: uint8 `(channels,)`.
    """
    _, height, width, channels = images.shape
    batch = tf.shape(images)[0]
    # One gather over all pixels of the batch, with the fill after the last, is faster than one
    # along each axis, and than filling afterwards.
    pixels = tf.concat([tf.reshape(images, (-1, channels)), fill[None]], axis=0)
    first = tf.range(batch)[:, None, None] * (height * width)
    inside = (rows >= 0) & (rows < height) & ((columns >= 0) & (columns < width))
    index = tf.where(inside, (first + rows * width) + columns, batch * height * width)
    return tf.gather(pixels, index)


def paste(images: tf.Tensor, fill: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Fills a rectangle of every image.

    Args:
        images: uint8 `(batch, height, width, channels)`.
        fill: uint8 `(channels,)`.
        rows: bool `(batch, height)`, those of the rectangle.
        columns: bool `(batch, width)`, likewise.
    """
    _, height, width, channels = images.shape
    # Bits are chosen by masks, with the channels in the axis of the columns: with tf.where, and an
    # axis of their own, it takes ten times as long.
    pixels = tf.reshape(images, (-1, height, width * channels))
    is_row = tf.cast(rows, tf.uint8)[:, :, None] * 255
    is_column = tf.repeat(tf.cast(columns, tf.uint8), channels, axis=1)[:, None, :] * 255
    mask = tf.bitwise.bitwise_and(is_row, is_column)
    change = tf.bitwise.bitwise_xor(pixels, tf.tile(fill, [width]))
    filled = tf.bitwise.bitwise_xor(pixels, tf.bitwise.bitwise_and(change, mask))
    return tf.reshape(filled, (-1, height, width, channels))


def by_group(
    group: tf.Tensor,
    functions: Sequence[Callable[..., tf.Tensor]],
    images: tf.Tensor,
    *parameters: tf.Tensor,
) -> tf.Tensor:
    """Applies to every image the function of its group.

    Args:
        group: integers or booleans `(batch,)`, the number of the function.
        functions: each takes the images of its group, and their rows of `parameters`; it must also
            work on no image at all.
        images: `(batch, height, width, channels)`.
        parameters: each `(batch, ...)`.
    """
    group, count = tf.cast(group, tf.int32), len(functions)
    positions = tf.dynamic_partition(tf.range(tf.size(group)), group, count)
    arguments = [tf.dynamic_partition(values, group, count) for values in (images, *parameters)]
    done = [function(*own) for function, *own in zip(functions, *arguments, strict=True)]
    return tf.dynamic_stitch(positions, done)

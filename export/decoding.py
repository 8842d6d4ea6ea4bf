"""Image files to a network's pixels in TensorFlow alone, to be part of a saved graph.

Elsewhere Pillow decodes and resizes (`Preprocessing.fit`). A SavedModel has no Pillow, so the same
arithmetic is written here in TensorFlow's operations: pixel for pixel what Pillow 13 gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.preprocessing import Preprocessing

# Pillow's weights are whole numbers of 2^-22.
_PRECISION = 22
# The EXIF data stand in one of a JPEG's first segments, each of which has at most 2^16 bytes.
_SEGMENTS = 1 << 18
_ORIENTATION = 0x0112  # the EXIF tag
_SHORT = 3  # the EXIF type of a 16-bit number


def decode(contents: tf.Tensor) -> tf.Tensor:
    """The content of a JPEG or PNG file to uint8 `(height, width, 3)`, as `read_image` gives it.

    A JPEG is turned as its EXIF orientation says, and transparent pixels of a PNG are laid over
    white. Three rare kinds of file look different from what Pillow makes of them: JPEGs in CMYK,
    and orientations that stand in XMP or in a PNG.
    """
    return tf.cond(
        tf.strings.substr(contents, 0, 2) == b"\xff\xd8",
        lambda: _turned(
            tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
            _orientation(contents),
        ),
        lambda: _over_white(_decode_png(contents)),
    )


def fit(image: tf.Tensor, shape: tuple[int, int, int], preprocessing: Preprocessing) -> tf.Tensor:
    """`Preprocessing.fit`, of a uint8 image `(height, width, 3)` to uint8 of the shape."""
    *size, channels = shape
    whole = tf.shape(image, tf.int64)
    resized = _resized_size(whole[0], whole[1], size, preprocessing.crop)
    kernel = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}[preprocessing.interpolation]

    def rows_first() -> tf.Tensor:
        part = _resize(image, 1, resized[1], size[1], *kernel)
        return _resize(part, 0, resized[0], size[0], *kernel)

    def columns_first() -> tf.Tensor:
        part = _resize(image, 0, resized[0], size[0], *kernel)
        return _resize(part, 1, resized[1], size[1], *kernel)

    # Pillow takes the columns first of a picture that gets smaller and is more than twice as high
    # as wide.
    is_tall = (whole[0] > 2 * whole[1]) & (resized[0] < whole[0])
    fitted = tf.cond(is_tall, columns_first, rows_first)
    fitted = tf.ensure_shape(fitted, (*size, 3))
    return tf.cast(fitted if channels == 3 else _grey(fitted), tf.uint8)


def _resized_size(
    height: tf.Tensor, width: tf.Tensor, size: list[int], crop: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """The height and width out of which a center of `size` is cut; see `Preprocessing.fit`."""
    scaled = [math.floor(side / crop) for side in size]
    if scaled[0] != scaled[1]:
        sides = [tf.cast(side, tf.float64) for side in (height, width)]
        ratio = tf.minimum(sides[0] / scaled[0], sides[1] / scaled[1])
        # Both round halves to even.
        return tuple(tf.cast(tf.round(side / ratio), tf.int64) for side in sides)
    shorter = tf.constant(scaled[0], tf.int64)
    longest, shortest = tf.maximum(height, width), tf.minimum(height, width)
    quotient = tf.cast(shorter * longest, tf.float64) / tf.cast(shortest, tf.float64)
    longer = tf.cast(quotient, tf.int64)
    return tf.where(height > width, longer, shorter), tf.where(height > width, shorter, longer)


def _resize(
    image: tf.Tensor,
    axis: int,
    resized: tf.Tensor,
    count: int,
    kernel: Callable[[tf.Tensor], tf.Tensor],
    support: float,
) -> tf.Tensor:
    """The middle `count` of `resized` rows (axis 0) or columns (axis 1), int32 0..255."""
    start = tf.cast(tf.round(tf.cast(resized - count, tf.float64) / 2), tf.int64)
    low, weights = _weights(tf.shape(image, tf.int64)[axis], resized, start, count, kernel, support)
    last = tf.shape(image)[axis] - 1
    shape = [-1 if i == axis else 1 for i in range(3)]

    def add(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = tf.cast(tf.gather(image, tf.minimum(low + tap, last), axis=axis), tf.int32)
        return tap + 1, total + values * tf.reshape(weights[:, tap], shape)

    half = tf.zeros_like(tf.gather(image, low, axis=axis), tf.int32) + (1 << (_PRECISION - 1))
    _, total = tf.while_loop(lambda tap, _: tap < tf.shape(weights)[1], add, (0, half))
    return tf.clip_by_value(tf.bitwise.right_shift(total, _PRECISION), 0, 255)


def _weights(
    whole: tf.Tensor,
    resized: tf.Tensor,
    start: tf.Tensor,
    count: int,
    kernel: Callable[[tf.Tensor], tf.Tensor],
    support: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """For each of `count` new pixels, its first old one and the weights of those from there.

    int32 `(count,)` and `(count, taps)`; the arithmetic of Pillow's `precompute_coeffs`, operation
    by operation in double precision.
    """
    scale = tf.cast(whole, tf.float64) / tf.cast(resized, tf.float64)
    widened = tf.maximum(scale, 1.0)  # antialiasing: the kernel grows with what it averages
    center = (tf.cast(start + tf.range(count, dtype=tf.int64), tf.float64) + 0.5) * scale
    reach = support * widened
    low = tf.maximum(tf.cast(center - reach + 0.5, tf.int64), 0)
    high = tf.minimum(tf.cast(center + reach + 0.5, tf.int64), whole)
    old = low[:, None] + tf.range(tf.reduce_max(high - low))
    places = (tf.cast(old, tf.float64) - center[:, None] + 0.5) * (1.0 / widened)
    weights = tf.where(old < high[:, None], kernel(places), 0.0)
    weights /= tf.cumsum(weights, axis=1)[:, -1:]  # added up one by one, as Pillow does
    fixed = weights * (1 << _PRECISION)
    fixed = tf.cast(tf.where(weights < 0, fixed - 0.5, fixed + 0.5), tf.int32)
    return tf.cast(low, tf.int32), fixed


def _triangle(x: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1.0 - tf.abs(x), 0.0)


def _cubic(x: tf.Tensor) -> tf.Tensor:
    """Keys' kernel with a = -1/2."""
    a, x = -0.5, tf.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return tf.where(x < 1.0, near, tf.where(x < 2.0, far, 0.0))


def _grey(image: tf.Tensor) -> tf.Tensor:
    """Pillow's `convert("L")`: ITU-R 601 luma in 16-bit fixed point."""
    luma = tf.reduce_sum(image * [19595, 38470, 7471], axis=-1, keepdims=True)
    return tf.bitwise.right_shift(luma + 0x8000, 16)


def _decode_png(contents: tf.Tensor) -> tf.Tensor:
    """RGBA, uint8 `(height, width, 4)`."""
    image = tf.io.decode_png(contents, channels=4)
    depth, color = tf.unstack(tf.io.decode_raw(tf.strings.substr(contents, 24, 2), tf.uint8), 2)
    # Of grey in less than 8 bits, libpng gives the opaque pixels an alpha of less than 255.
    alpha = image[..., 3:]
    is_opaque = (depth < 8) & (color == 0) & (alpha > 0)
    alpha = tf.where(is_opaque, tf.constant(255, tf.uint8), alpha)
    return tf.concat([image[..., :3], alpha], axis=-1)


def _over_white(image: tf.Tensor) -> tf.Tensor:
    """RGBA over white, with the rounding of Pillow's `alpha_composite`; uint8 `(h, w, 3)`."""
    values = tf.cast(image, tf.int32)
    alpha = values[..., 3:]
    # Pillow keeps 7 more bits, and divides by 255 as (x + x / 256) / 256.
    mixed = 128 * (values[..., :3] * alpha + 255 * (255 - alpha)) + (0x80 << 7)
    mixed = tf.bitwise.right_shift(tf.bitwise.right_shift(mixed, 8) + mixed, 8)
    return tf.cast(tf.bitwise.right_shift(mixed, 7), tf.uint8)


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """An image upright, by its EXIF orientation 1..8."""

    def is_one_of(*numbers: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(numbers))

    image = tf.cond(orientation > 4, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.cond(is_one_of(2, 3, 6, 7), lambda: image[:, ::-1], lambda: image)
    return tf.cond(is_one_of(3, 4, 7, 8), lambda: image[::-1], lambda: image)


def _orientation(contents: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG, 1 where it has none; an int32 scalar."""
    start = tf.io.decode_raw(tf.strings.substr(contents, 0, _SEGMENTS), tf.uint8)
    # What lies behind the end reads as zero.
    data = tf.concat([tf.cast(start, tf.int32), tf.zeros(16, tf.int32)], axis=0)
    tiff = _exif_start(data)
    return tf.cond(tiff > 0, lambda: _tiff_orientation(data, tiff), lambda: tf.constant(1))


def _exif_start(data: tf.Tensor) -> tf.Tensor:
    """Where a JPEG's EXIF data begin, 0 if it has none: it is a chain of segments."""
    size = tf.size(data) - 16

    def is_exif(at: tf.Tensor) -> tf.Tensor:
        head = tf.constant([0xFF, 0xE1, *b"Exif\0\0"])
        segment = tf.concat([data[at : at + 2], data[at + 4 : at + 10]], axis=0)
        return tf.reduce_all(segment == head)

    def goes_on(at: tf.Tensor) -> tf.Tensor:
        # The last segment before the picture is SOS, 0xDA.
        is_segment = (data[at] == 0xFF) & (data[at + 1] >= 0xC0) & (data[at + 1] != 0xDA)
        return is_segment & ~is_exif(at)

    def follow(at: tf.Tensor) -> tf.Tensor:
        return tf.minimum(at + 2 + 256 * data[at + 2] + data[at + 3], size)

    at = tf.while_loop(goes_on, lambda at: (follow(at),), (tf.constant(2),))[0]
    return tf.where(is_exif(at), at + 10, 0)


def _tiff_orientation(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The orientation in EXIF data, which are a small TIFF file."""
    is_little = data[start] == ord("I")
    last = tf.size(data) - 1

    def number(at: tf.Tensor, size: int) -> tf.Tensor:
        digits = [tf.gather(data, tf.clip_by_value(at + i, 0, last)) for i in range(size)]
        little = sum(tf.bitwise.left_shift(digit, 8 * i) for i, digit in enumerate(digits))
        big = sum(tf.bitwise.left_shift(digit, 8 * i) for i, digit in enumerate(reversed(digits)))
        return tf.where(is_little, little, big)

    directory = start + number(start + 4, 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2))
    is_it = (number(entries, 2) == _ORIENTATION) & (number(entries + 2, 2) == _SHORT)
    found = tf.boolean_mask(number(entries + 8, 2), is_it)
    orientation = tf.concat([found, [1]], axis=0)[0]
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)

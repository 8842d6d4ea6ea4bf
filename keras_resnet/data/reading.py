"""Files to pixels, inside a `tf.data` pipeline.

Pillow says what an image looks like (`preprocessing.read_image`). TensorFlow decodes to the same
bytes, and several files at once, what most files are: upright JPEGs in grey or RGB, and PNGs of
8 bits in grey or RGB without transparency. Which file is which is decided once, by its header.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.preprocessing import BadImageError, Preprocessing, read_image

Shape = tuple[int, int, int]

# What decodes a file.
PILLOW, JPEG, PNG = range(3)

_ORIENTATION = 0x0112  # the EXIF tag
# As in torchvision.
_CROP_ATTEMPTS = 10
# Random numbers are drawn for this many places at a time.
_CHUNK = 1024
# Tells the seeds of crops from those of the order.
_CROP_STREAM = 0x63726F70


class DataError(ValueError):
    """A source of images that is not what it should be; the message names the path."""


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image file before it is decoded.

    Attributes:
        decoder: `PILLOW`, `JPEG` or `PNG`.
        height: in pixels, upright.
        width: likewise.
        bytes: of the file.
        modified: when it was written, in nanoseconds.
    """

    decoder: int
    height: int
    width: int
    bytes: int
    modified: int


def read_headers(paths: Sequence[Path], decode: bool) -> list[Header | str]:
    """The header of every file, or why it is no image.

    Reading the header finds files that are none; only decoding finds those that are cut short,
    and takes as long as an epoch's reading does.
    """
    from rich.progress import track

    def headers() -> Iterator[Header | str]:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            yield from threads.map(lambda path: _read_header(path, decode), paths, chunksize=64)

    return list(
        track(
            headers(),
            description="Checking images",
            total=len(paths),
            transient=True,
            disable=len(paths) < 5_000,
            console=stderr_console(),
        )
    )


def stderr_console() -> Any:
    """Where progress is shown."""
    from rich.console import Console

    return Console(stderr=True)


def _read_header(path: Path, decode: bool) -> Header | str:
    from PIL import Image

    status = path.stat()
    try:
        if decode:
            read_image(path)
        with Image.open(path) as picture:
            width, height = picture.size
            turns = _orientation(picture)
            if turns > 4:
                width, height = height, width
            decoder = _decoder(picture, path) if turns == 1 else PILLOW
    except (OSError, BadImageError, Image.DecompressionBombError) as error:
        return "empty file" if status.st_size == 0 else str(error.__cause__ or error)
    return Header(decoder, height, width, status.st_size, status.st_mtime_ns)


def _orientation(picture: Any) -> int:
    """1 for an upright picture, 2..8 for others."""
    if not {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & set(picture.info):
        return 1
    value = picture.getexif().get(_ORIENTATION, 1)
    return value if value in range(2, 9) else 1


def _decoder(picture: Any, path: Path) -> int:
    if picture.mode not in ("RGB", "L"):
        return PILLOW
    if picture.format == "JPEG":
        return JPEG
    if picture.format == "PNG" and _is_plain_png(path):
        return PNG
    return PILLOW


def _is_plain_png(path: Path) -> bool:
    """Whether it has 8 bits of grey or RGB, and nothing that changes how it looks.

    Transparency and animation are said by chunks of their own, and the orientation by one that may
    come after the pixels, where Pillow looks only once it has decoded them.
    """
    with path.open("rb") as file:
        file.seek(8)
        while True:
            chunk = file.read(8)
            length, name = int.from_bytes(chunk[:4], "big"), chunk[4:]
            if name == b"IHDR":
                depth, color = file.read(10)[-2:]
                if depth != 8 or color not in (0, 2):
                    return False
                length -= 10
            elif name in (b"tRNS", b"acTL", b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return False
            elif name in (b"IEND", b""):
                return name == b"IEND"
            file.seek(length + 4, os.SEEK_CUR)


def check_file(path: str, header: Header) -> None:
    """Raises what is wrong with a file that could not be read, if anything still is.

    Raises:
        DataError: if it is no longer the file of which the header was read.
        BadImageError: if it cannot be decoded.
    """
    try:
        read_image(path)
        is_same = _read_header(Path(path), decode=False) == header
    except FileNotFoundError:
        raise DataError(f"An image has vanished since the data was loaded: {path}") from None
    if not is_same:
        raise DataError(f"An image has changed since the data was loaded: {path}")
    if header.decoder == PILLOW:
        return
    try:
        decode(tf.io.read_file(path), header.decoder)
    except tf.errors.OpError as error:
        raise DataError(
            f"An image that Pillow can decode, but TensorFlow cannot; save it anew: {path} "
            f"({error.message})"
        ) from None


def decode(contents: tf.Tensor, decoder: int, part: tf.Tensor | None = None) -> tf.Tensor:
    """The content of a file to uint8 `(height, width, 3)`, as `read_image` gives it.

    With a part `(top, left, height, width)`, int32, that part alone; of a JPEG, little else is then
    computed. Where a JPEG's colors are at half the resolution, those of a part's first and last
    column can differ from the whole image's: they are interpolated without what lies beside them.
    """
    if decoder == JPEG:
        options = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        if part is None:
            return tf.io.decode_jpeg(contents, **options)
        return tf.io.decode_and_crop_jpeg(contents, part, **options)
    if decoder == PNG:
        image = tf.io.decode_png(contents, channels=3)
    else:
        image = tf.numpy_function(read_image, [contents], tf.uint8, stateful=False)
        image = tf.ensure_shape(image, (None, None, 3))
    return image if part is None else cut(image, part)


def cut(image: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """The part of an image at `(top, left, height, width)`."""
    top, left, height, width = tf.unstack(part)
    return image[top : top + height, left : left + width]


def decoder_of(contents: tf.Tensor) -> tf.Tensor:
    """What decodes the content of a file whose header was not read before: an int32 scalar.

    Says `PILLOW` also for many files that TensorFlow could decode as well, e.g. a JPEG with any
    EXIF data near its start.
    """
    start = tf.strings.substr(contents, 0, 1024)

    # \C is any byte; a dot would be a character of UTF-8.
    def jpeg() -> tf.Tensor:
        is_plain = tf.io.extract_jpeg_shape(contents)[2] != 4
        return is_plain & ~tf.strings.regex_full_match(start, rb"\C*(Exif|http://ns)\C*")

    def png() -> tf.Tensor:
        odd = rb"\C*(tRNS|acTL|eXIf|[izt][TX]Xt)\C*"
        is_plain = tf.strings.regex_full_match(start, rb"\C{12}IHDR\C{8}\x08[\x00\x02]\C*")
        return is_plain & ~tf.strings.regex_full_match(contents, odd)

    is_jpeg = tf.strings.substr(contents, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(contents, 0, 8) == b"\x89PNG\r\n\x1a\n"
    is_plain = tf.case([(is_jpeg, jpeg), (is_png, png)], default=lambda: tf.constant(False))
    return tf.where(is_plain, tf.where(is_jpeg, JPEG, PNG), PILLOW)


def fit(image: tf.Tensor, shape: Shape, preprocessing: Preprocessing) -> tf.Tensor:
    """`Preprocessing.fit`, which leaves most images of the right size alone."""

    def resized() -> tf.Tensor:
        return tf.numpy_function(
            lambda pixels: preprocessing.fit(pixels, shape[:2], shape[2]),
            [image],
            tf.uint8,
            stateful=False,
        )

    if preprocessing.crop != 1 or shape[2] != 3:
        return tf.ensure_shape(resized(), shape)
    fits = tf.reduce_all(tf.shape(image) == shape)
    return tf.ensure_shape(tf.cond(fits, lambda: image, resized), shape)


def resize(image: tf.Tensor, shape: Shape, interpolation: str, is_small: bool = False) -> tf.Tensor:
    """An RGB image of any size to `shape`, antialiased, whatever its proportions were.

    An enlarged image has nothing to antialias, and TensorFlow's plain kernels give Pillow's pixels
    to 1 level (bilinear) or 3 (bicubic), in a quarter of the time. Their antialiasing kernel takes
    several times as long as Pillow does, so what gets smaller goes through Pillow. `is_small` says
    that this does not occur.
    """
    height, width, channels = shape
    if is_small:
        resized = _enlarge(image, (height, width), interpolation)
    else:
        size = tf.shape(image)
        resized = tf.cond(
            (size[0] <= height) & (size[1] <= width),
            lambda: _enlarge(image, (height, width), interpolation),
            lambda: _reduce(image, (height, width), interpolation),
        )
    resized = tf.ensure_shape(resized, (height, width, 3))
    return resized if channels == 3 else _grey(resized)


def _enlarge(image: tf.Tensor, size: tuple[int, int], interpolation: str) -> tf.Tensor:
    # The kernels take half as long from floats as from bytes, and the half that rounds costs less
    # on the small side of an enlargement.
    values = tf.cast(image, tf.float32)[None] + 0.5
    options = {"images": values, "size": size, "half_pixel_centers": True}
    if interpolation == "bilinear":
        resized = tf.raw_ops.ResizeBilinear(**options)[0]
    else:
        resized = tf.clip_by_value(tf.raw_ops.ResizeBicubic(**options)[0], 0, 255)
    return tf.cast(resized, tf.uint8)


def _reduce(image: tf.Tensor, size: tuple[int, int], interpolation: str) -> tf.Tensor:
    from PIL import Image

    resampling = Image.Resampling[interpolation.upper()]

    def reduce(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize(size[::-1], resampling))

    return tf.numpy_function(reduce, [image], tf.uint8, stateful=False)


def _grey(image: tf.Tensor) -> tf.Tensor:
    """Pillow's `convert("L")`: ITU-R 601 luma in 16-bit fixed point."""
    weighted = tf.cast(image, tf.int32) * [19595, 38470, 7471]
    luma = (tf.reduce_sum(weighted, axis=-1, keepdims=True) + 0x8000) // 0x10000
    return tf.cast(luma, tf.uint8)


class RandomWindows:
    """Random parts of images, drawn as torchvision's `RandomResizedCrop` does.

    Args:
        seeds: whole numbers from which, with an image's place in the epoch, all numbers come.
        area: the smallest and the largest part of the image's area; uniform.
        ratio: the smallest and the largest width / height; uniform in the logarithm.
    """

    def __init__(self, seeds: Sequence[int], area: tuple[float, float], ratio: tuple[float, float]):
        self._seeds = tuple(map(int, seeds))
        self._area = area
        self._ratio = ratio
        # Neighbours ask for the same chunk of random numbers, from several threads.
        self._chunk = functools.lru_cache(maxsize=4)(self._draw_chunk)

    def __call__(self, places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """For places `(n,)` and sizes (height, width) `(n, 2)`: (top, left, height, width).

        The first of ten attempts that fits into the image, or its center in the nearest ratio that
        is allowed; int32 `(n, 4)`.
        """
        windows = np.empty((len(places), 4), np.int32)
        chunks = places // _CHUNK
        for chunk in np.unique(chunks):
            here = chunks == chunk
            draws = self._chunk(int(chunk))[places[here] % _CHUNK]
            windows[here] = self._windows(draws, sizes[here])
        return windows

    def _draw_chunk(self, chunk: int) -> np.ndarray:
        generator = np.random.default_rng([*self._seeds, chunk, _CROP_STREAM])
        return generator.random((_CHUNK, 2 * _CROP_ATTEMPTS + 2))

    def _windows(self, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        areas, log_ratios, corners = np.split(draws, [_CROP_ATTEMPTS, 2 * _CROP_ATTEMPTS], axis=1)
        low, high = self._area
        areas = (low + areas * (high - low)) * np.prod(sizes, axis=1, keepdims=True)
        low, high = np.log(self._ratio)
        ratios = np.exp(low + log_ratios * (high - low))
        parts = np.stack([np.sqrt(areas / ratios), np.sqrt(areas * ratios)], axis=-1)
        parts = np.concatenate([np.rint(parts), self._central(sizes)[:, None]], axis=1).astype(int)
        fits = ((parts > 0) & (parts <= sizes[:, None])).all(axis=-1)
        first = fits.argmax(axis=1)
        part = parts[np.arange(len(parts)), first]
        free = sizes - part
        corner = np.where((first < _CROP_ATTEMPTS)[:, None], corners * (free + 1), free // 2)
        return np.concatenate([corner.astype(int), part], axis=1)

    def _central(self, sizes: np.ndarray) -> np.ndarray:
        """The largest part of an allowed ratio, which always fits."""
        height, width = sizes.T
        ratio = np.clip(width / height, *self._ratio)
        part = np.stack([np.minimum(height, width / ratio), np.minimum(width, height * ratio)], 1)
        return np.clip(np.rint(part), 1, sizes)

"""Preprocessing: how pixels become network input, one value object for everyone.

The same object prepares the training data, is put inside the exported graph and prepares a
photograph on the device, so that the three cannot disagree. Decoding and resizing are done by
Pillow everywhere, for the same reason.
"""

from __future__ import annotations

import dataclasses
import io
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Source = Any  # a path, bytes, a PIL image or a uint8 array


class BadImageError(ValueError):
    """A file or buffer that cannot be read as an image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """`(pixels - mean) / std`, after fitting an image to the network's size.

    The default, `x / 128 - 1`, is what this package trains with. It maps the 256 bytes to a grid
    of 8-bit steps, so in an int8 network the raw byte minus 128 *is* the input tensor and no
    operation is spent on preprocessing (see `byte_quantization`).

    Attributes:
        mean: subtracted from the pixels (0..255), per channel in the order of `channels`; one
            value serves all channels.
        std: divides the result, likewise.
        channels: `"rgb"`, or `"bgr"` for networks that came from Caffe.
        interpolation: `"bilinear"` or `"bicubic"`, both antialiased, as Pillow resizes.
        crop: the part of the resized image that the network sees: the shorter side is resized to
            `size / crop` and the center is cut out.
    """

    mean: tuple[float, ...] = (128.0,)
    std: tuple[float, ...] = (128.0,)
    channels: Literal["rgb", "bgr"] = "rgb"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            received = getattr(self, name)
            try:
                values = np.atleast_1d(np.asarray(received, dtype=float))
            except (TypeError, ValueError):
                values = np.array([np.nan])
            if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
                raise ValueError(
                    f"Argument `{name}` must hold finite numbers, one per channel or one for all. "
                    f"Received: {name}={received!r}"
                )
            object.__setattr__(self, name, tuple(map(float, values)))
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise ValueError(
                "Arguments `mean` and `std` must be for the same number of channels. "
                f"Received: mean={self.mean}, std={self.std}"
            )
        if any(v <= 0 for v in self.std):
            raise ValueError(f"Argument `std` must be positive. Received: std={self.std}")
        if self.channels not in ("rgb", "bgr"):
            raise ValueError(
                f"Argument `channels` must be 'rgb' or 'bgr'. Received: channels={self.channels!r}"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                "Argument `interpolation` must be 'bilinear' or 'bicubic'. "
                f"Received: interpolation={self.interpolation!r}"
            )
        if not isinstance(self.crop, int | float) or not 0 < self.crop <= 1:
            raise ValueError(
                f"Argument `crop` must be in (0, 1], e.g. 0.875. Received: crop={self.crop!r}"
            )

    @classmethod
    def from_model(cls, model: Any) -> Preprocessing:
        """The preprocessing that a model of this package carries.

        Raises:
            ValueError: if the model carries none, e.g. one from `keras.applications`.
        """
        preprocessing = getattr(model, "preprocessing", None)
        if not isinstance(preprocessing, cls):
            raise ValueError(
                "The model does not say how its input was preprocessed; give `preprocessing`, e.g. "
                f"keras_resnet.Preprocessing(). Received: a {type(model).__name__} named "
                f"{getattr(model, 'name', None)!r}"
            )
        return preprocessing

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Unknown attributes raise `ValueError`."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"Not a description of a preprocessing: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        values = dataclasses.asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, pixels: Any) -> Any:
        """Raw RGB pixels 0..255 of any numeric dtype to network input.

        Args:
            pixels: `(..., height, width, channels)`, a numpy array or a TensorFlow tensor.

        Returns:
            The same shape, float32 (float64 if `pixels` are), of the kind that was given.

        Raises:
            ValueError: if `mean` and `std` are for another number of channels.
        """
        channels = pixels.shape[-1]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise ValueError(
                    f"Pixels must have as many channels as `{name}` has values. Received: pixels "
                    f"of shape {tuple(pixels.shape)}, {name}={getattr(self, name)}"
                )
        if isinstance(pixels, np.ndarray):
            dtype = np.float64 if pixels.dtype == np.float64 else np.float32
            return self._normalize(pixels.astype(dtype), dtype)
        import tensorflow as tf

        pixels = tf.convert_to_tensor(pixels)
        dtype = np.float64 if pixels.dtype == tf.float64 else np.float32
        return self._normalize(tf.cast(pixels, dtype), dtype)

    def _normalize(self, values: Any, dtype: Any) -> Any:
        if self.channels == "bgr":
            values = values[..., ::-1]
        # A product, not a quotient: TensorFlow's graph optimizer makes it one anyway, and would
        # then differ from numpy in the last bit.
        reciprocal = np.asarray(1, dtype) / np.asarray(self.std, dtype)
        return (values - np.asarray(self.mean, dtype)) * reciprocal

    @property
    def byte_quantization(self) -> tuple[float, int] | None:
        """`(scale, zero point)` with which a raw byte is the preprocessed value.

        `value = scale * (byte - zero_point)`, to the last bit where `std` is a power of two, and
        to the rounding of the scale elsewhere. None where no such pair exists: different channels,
        BGR order, or a mean that is not a whole number (127.5 leaves every byte half a step off).
        """
        uniform = len(set(self.mean)) == 1 and len(set(self.std)) == 1
        if not uniform or self.channels != "rgb":
            return None
        mean, std = self.mean[0], self.std[0]
        if not mean.is_integer() or not 0 <= mean <= 255:
            return None
        return 1.0 / std, int(mean)

    def fit(self, image: Source, size: tuple[int, int], channels: int = 3) -> np.ndarray:
        """Any image to the pixels that a network of this size takes.

        The shorter side is resized to `size / crop` and the center is cut out; with a crop of 1, an
        image that has the size already passes unchanged.

        Args:
            image: what `read_image` takes.
            size: `(height, width)`, in pixels.
            channels: 3 for RGB, 1 for grey.

        Returns:
            uint8 array `(height, width, channels)`.
        """
        picture = _open(image)
        height, width = size
        scale = max(height / picture.height, width / picture.width) / self.crop
        if scale != 1.0:
            from PIL import Image

            filters = {
                "bilinear": Image.Resampling.BILINEAR,
                "bicubic": Image.Resampling.BICUBIC,
            }
            resized = (
                max(width, round(picture.width * scale)),
                max(height, round(picture.height * scale)),
            )
            picture = picture.resize(resized, filters[self.interpolation])
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        if (picture.width, picture.height) != (width, height):
            picture = picture.crop((left, top, left + width, top + height))
        return _to_array(picture, channels)


def read_image(image: Source, channels: int = 3) -> np.ndarray:
    """Any image file, buffer or array to RGB pixels.

    EXIF orientation is applied; grey, palette, CMYK and 16-bit images are brought to 8-bit RGB;
    transparent pixels are laid over white.

    Args:
        image: a path, the bytes of a file, a PIL image, or a uint8 array `(height, width)` or
            `(height, width, 1 | 3 | 4)`.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 array `(height, width, channels)`.

    Raises:
        BadImageError: the file or buffer is no image that Pillow can read.
        FileNotFoundError: the path does not exist.
        TypeError: an object of another type, or an array that is not uint8.
    """
    return _to_array(_open(image), channels)


def _open(source: Source) -> Image.Image:
    """An 8-bit RGB picture, upright."""
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    where: str | os.PathLike[str] = f"the {type(source).__name__} given"
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(ImageOps.exif_transpose(source))
        file: Any = source
        if isinstance(source, bytes | bytearray):
            file = io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            where = source
        else:
            raise TypeError(
                "An image must be a path, bytes, a PIL image or a uint8 numpy array. "
                f"Received: {type(source).__name__}"
            )
        with Image.open(file) as picture:
            return _to_rgb(ImageOps.exif_transpose(picture))
    except (FileNotFoundError, IsADirectoryError, PermissionError, TypeError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever their parsers raise
        raise BadImageError(f"Not an image that can be read: {where} ({error})") from error


def _from_array(array: np.ndarray) -> Image.Image:
    from PIL import Image

    if array.dtype != np.uint8:
        raise TypeError(
            "An image array must hold raw pixels: dtype uint8, values 0..255; do not scale or "
            f"normalize it. Received: dtype={array.dtype}, shape={array.shape}"
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if (
        array.ndim not in (2, 3)
        or 0 in array.shape
        or (array.ndim == 3 and array.shape[-1] not in (3, 4))
    ):
        raise ValueError(
            "An image array must have the shape (height, width) or (height, width, 1 | 3 | 4). "
            f"Received: shape={array.shape}"
        )
    return Image.fromarray(array)


def _to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode == "RGB":
        picture.load()
        return picture
    if picture.mode.startswith("I"):  # 16-bit grey: keep the high byte instead of clipping at 255
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError("a 32-bit image outside 0..65535 has no 8-bit form")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise BadImageError("an image of floating-point numbers has no agreed range")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _to_array(picture: Image.Image, channels: int) -> np.ndarray:
    if channels == 3:
        return np.array(picture)
    if channels == 1:
        return np.array(picture.convert("L"))[..., None]
    raise ValueError(
        "Images can be read with 3 channels (RGB) or 1 (grey); a network with others is for a "
        "pipeline of one's own. "
        f"Received: channels={channels}"
    )

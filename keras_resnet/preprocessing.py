"""Preprocessing: how pixels become network input, one value object for everyone.

The same object prepares the training data, is put inside the exported graph and prepares a
photograph on the device, so that the three cannot disagree. Decoding and resizing are done by
Pillow everywhere, for the same reason.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Source = Any  # a path, bytes, a PIL image or a uint8 array

# How the makers of public checkpoints prepared their pixels, on the scale 0..255.
_CONVENTIONS: dict[str, dict[str, Any]] = {
    "tf": {"mean": 127.5, "std": 127.5},
    "caffe": {"mean": (103.939, 116.779, 123.68), "std": 1.0, "channels": "bgr"},
    "imagenet": {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
}

_INTERPOLATIONS = ("bilinear", "bicubic")

# What timm assumes where a configuration is silent (timm/data/config.py). It has defaults for mean
# and std as well; here a configuration must state them, since a file that does not is none of timm.
_TIMM_DEFAULTS: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": None,
    "std": None,
}

# A picture that would be resized to more pixels than this (4 bytes each) is resized in strips.
_PIXELS_AT_ONCE = 2**24

_NOT_BYTES = (
    "An image array must hold raw pixels: dtype uint8, values 0..255; do not scale or normalize "
    "it. Received: dtype={dtype}, shape={shape}"
)


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
            `floor(size / crop)` and the center is cut out.
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
            except (TypeError, ValueError, OverflowError):
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
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                "Argument `interpolation` must be 'bilinear' or 'bicubic'. "
                f"Received: interpolation={self.interpolation!r}"
            )
        if not isinstance(self.crop, int | float) or not 0 < self.crop <= 1:
            raise ValueError(
                f"Argument `crop` must be in (0, 1], e.g. 0.875. Received: crop={self.crop!r}"
            )

    @classmethod
    def named(cls, name: str, /, **changes: Any) -> Preprocessing:
        """The convention by which a family of public checkpoints prepares its pixels.

        - `"tf"`: -1..1, `x / 127.5 - 1`; `keras.applications.resnet_v2`.
        - `"caffe"`: BGR minus the mean color of ImageNet; `keras.applications.resnet`.
        - `"imagenet"`: minus ImageNet's mean, over its standard deviation, per channel;
          torchvision and most of timm (`mode="torch"` of `keras.applications.imagenet_utils`).

        A name stands for the values alone: `interpolation` and `crop` keep their defaults unless
        `changes` says otherwise.

        Args:
            name: of the convention.
            changes: attributes to set, e.g. `crop=0.875`.

        Raises:
            ValueError: if there is no such name, or an attribute cannot have that value.
        """
        if not isinstance(name, str) or name not in _CONVENTIONS:
            raise ValueError(
                f"Argument `name` must be one of {sorted(_CONVENTIONS)}. Received: name={name!r}"
            )
        return cls(**(_CONVENTIONS[name] | changes))

    @classmethod
    def from_timm_config(
        cls, config: Mapping[str, Any], *, use_test_size: bool = False
    ) -> Preprocessing:
        """The preprocessing with which timm evaluates a pretrained network.

        It goes with the input shape of `timm_input_shape`. Like timm's `resolve_model_data_config`,
        both answer for the size that the network was trained at; where a configuration names a
        larger one to test at, its published accuracy is often that of the larger one.

        Args:
            config: the content of a network's `config.json` on the Hugging Face Hub, or the
                `pretrained_cfg` in it alone; read as untrusted data.
            use_test_size: take `test_crop_pct` where there is one.

        Raises:
            ValueError: if `config` is no configuration of timm, a value in it cannot be right, or
                it asks for another `crop_mode` or `interpolation` than can be reproduced here.
        """
        values = _timm_values(config, use_test_size)
        for name, known in (("crop_mode", ("center",)), ("interpolation", _INTERPOLATIONS)):
            if values[name] not in known:
                raise _bad_timm_value(name, f"must be one of {list(known)}", values[name])
        crop = values["crop_pct"]
        if not _is_number(crop) or not 0 < crop <= 1:
            raise _bad_timm_value("crop_pct", "must be a number in (0, 1]", crop)
        channels = timm_input_shape(config, use_test_size=use_test_size)[-1]
        return cls(
            mean=_timm_scaled(values, "mean", channels),
            std=_timm_scaled(values, "std", channels),
            interpolation=values["interpolation"],
            crop=float(crop),
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
            pixels: `(..., height, width, channels)`, a numpy array, a TensorFlow tensor, or an
                array of another library that numpy can read, e.g. JAX.

        Returns:
            The same shape, float32 (float64 if `pixels` are): a TensorFlow tensor for a TensorFlow
            tensor, and a numpy array for everything else.

        Raises:
            ValueError: if `mean` and `std` are for another number of channels, or `pixels` have
                fewer than three axes.
        """
        if not _is_tensorflow(pixels):
            pixels = np.asarray(pixels)
            self._check_shape(pixels.shape)
            dtype = np.float64 if pixels.dtype == np.float64 else np.float32
            return self._normalize(pixels.astype(dtype), dtype)
        import tensorflow as tf

        pixels = tf.convert_to_tensor(pixels)
        if pixels.shape.rank is not None:
            self._check_shape(tuple(pixels.shape))
        dtype = np.float64 if pixels.dtype == tf.float64 else np.float32
        return self._normalize(tf.cast(pixels, dtype), dtype)

    def _check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Raises `ValueError` if pixels of this shape cannot be normalized; None is not known."""
        if len(shape) < 3:
            raise ValueError(
                "Pixels must have the shape (..., height, width, channels). "
                f"Received: shape={shape}"
            )
        for name in ("mean", "std"):
            if shape[-1] is not None and len(getattr(self, name)) not in (1, shape[-1]):
                raise ValueError(
                    f"Pixels must have as many channels as `{name}` has values. Received: pixels "
                    f"of shape {shape}, {name}={getattr(self, name)}"
                )

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

    def fit(self, image: Source, size: tuple[int, int], channels: int = 3) -> Any:
        """Any image to the pixels that a network of this size takes.

        The shorter side is resized to `floor(size / crop)`, the longer one in proportion, and the
        center is cut out: pixel for pixel what timm and torchvision evaluate with. With a crop of
        1, an image that has the size already passes unchanged.

        Pillow 13 resizes the columns of a picture first that is more than twice as high as wide,
        earlier versions the rows of every picture: such a picture's pixels differ by up to 1
        between them.

        Args:
            image: what `read_image` takes, or a uint8 TensorFlow tensor of such a shape. Inside
                `tf.data` and `tf.function` the work is done by `tf.numpy_function`: on this
                machine's CPU, and not part of a saved graph.
            size: `(height, width)`, in pixels.
            channels: 3 for RGB, 1 for grey.

        Returns:
            uint8 `(height, width, channels)`: a TensorFlow tensor of that static shape for a
            TensorFlow tensor, and a numpy array for everything else.

        Raises:
            BadImageError: if the image cannot be read.
            TypeError: if it is of another type, or an array that is not uint8.
            ValueError: if `size` or `channels` cannot be right.
        """
        height, width = size = _checked_size(size)
        _check_channels(channels)
        if _is_tensorflow(image):
            return self._fit_tensor(image, size, channels)
        picture = _open(image)
        resized = _resized_size((picture.height, picture.width), size, self.crop)
        # Python rounds halves to even, and so does torchvision's center crop.
        top, left = (round((whole - part) / 2) for whole, part in zip(resized, size, strict=True))
        box = (left, top, left + width, top + height)
        return _to_array(_resize_and_crop(picture, resized, box, self.interpolation), channels)

    def _fit_tensor(self, image: Any, size: tuple[int, int], channels: int) -> Any:
        import tensorflow as tf

        image = tf.convert_to_tensor(image)
        if image.dtype != tf.uint8:
            raise TypeError(_NOT_BYTES.format(dtype=image.dtype.name, shape=image.shape))
        fitted = tf.numpy_function(
            lambda pixels: self.fit(pixels, size, channels), [image], tf.uint8, stateful=False
        )
        return tf.ensure_shape(fitted, (*size, channels))


def timm_input_shape(
    config: Mapping[str, Any], *, use_test_size: bool = False
) -> tuple[int, int, int]:
    """The `(height, width, channels)` at which timm evaluates a pretrained network.

    Args:
        config: what `Preprocessing.from_timm_config` takes.
        use_test_size: take `test_input_size` where there is one.

    Raises:
        ValueError: if `config` is no configuration of timm, or its input size is none.
    """
    shape = _timm_values(config, use_test_size)["input_size"]
    if not isinstance(shape, list | tuple) or len(shape) != 3 or not all(map(_is_count, shape)):
        raise _bad_timm_value("input_size", "must be [channels, height, width]", shape)
    channels, height, width = shape
    return height, width, channels


def _timm_values(config: Any, use_test_size: bool) -> dict[str, Any]:
    """The entries of `_TIMM_DEFAULTS`, as stated in a configuration; their values unchecked."""
    stated = config.get("pretrained_cfg", config) if isinstance(config, Mapping) else config
    if not isinstance(stated, Mapping) or stated.get("mean") is None or stated.get("std") is None:
        keys = list(stated)[:10] if isinstance(stated, Mapping) else type(stated).__name__
        raise ValueError(
            "Argument `config` must be the configuration of a timm network: a dictionary with "
            f"`mean` and `std`, or one whose `pretrained_cfg` has them. Received: {keys}"
        )
    values = {}
    for key, default in _TIMM_DEFAULTS.items():
        value = stated.get(key)
        values[key] = default if value is None else value
    for key in ("input_size", "crop_pct"):
        if use_test_size and stated.get(f"test_{key}") is not None:
            values[key] = stated[f"test_{key}"]
    return values


def _timm_scaled(values: Mapping[str, Any], name: str, channels: int) -> tuple[float, ...]:
    """A mean or std of pixels 0..1 as one of pixels 0..255."""
    numbers = values[name]
    if (
        not isinstance(numbers, list | tuple)
        or len(numbers) not in (1, channels)
        or not all(map(_is_number, numbers))
    ):
        raise _bad_timm_value(name, f"must hold {channels} numbers, or one for all", numbers)
    # The configurations' figures are decimals; rounded, their products are the decimals' too.
    return tuple(round(255.0 * number, 10) for number in numbers)


def _bad_timm_value(name: str, rule: str, received: Any) -> ValueError:
    return ValueError(f"`{name}` in the configuration {rule}. Received: {name}={received!r}")


def _is_number(value: Any) -> bool:
    """Whether it is a number that can describe pixels: no boolean, not out of all proportion."""
    return type(value) in (int, float) and bool(abs(value) <= 1e6)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _checked_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(_is_count, size)):
        raise ValueError(
            "Argument `size` must be (height, width), two positive whole numbers. "
            f"Received: size={size!r}"
        )
    return int(size[0]), int(size[1])


def _is_tensorflow(value: Any) -> bool:
    """Whether it is a tensor of TensorFlow, without importing it."""
    return type(value).__module__.partition(".")[0] == "tensorflow"


def _resized_size(image: tuple[int, int], size: tuple[int, int], crop: float) -> tuple[int, int]:
    """The `(height, width)` of a picture out of which a center of `size` is cut.

    Never smaller than `size`. Every rounding is torchvision's (`transforms.Resize` of one number)
    for a square, and timm's (`ResizeKeepRatio`) for other shapes.
    """
    height, width = image
    scaled = [math.floor(side / crop) for side in size]
    if scaled[0] != scaled[1]:
        ratio = min(height / scaled[0], width / scaled[1])
        return round(height / ratio), round(width / ratio)
    shorter = scaled[0]
    longer = int(shorter * max(image) / min(image))
    return (longer, shorter) if height > width else (shorter, longer)


def _resize_and_crop(
    picture: Image.Image,
    resized: tuple[int, int],
    box: tuple[int, int, int, int],
    interpolation: str,
) -> Image.Image:
    """Resized to `(height, width)`, and cut out at `(left, top, right, bottom)`."""
    from PIL import Image

    resampling = Image.Resampling[interpolation.upper()]
    height, width = resized
    enlarged = height >= picture.height and width >= picture.width
    if enlarged and height * width > _PIXELS_AT_ONCE:
        return _resize_in_strips(picture, resized, box, resampling)
    return picture.resize((width, height), resampling).crop(box)


def _resize_in_strips(
    picture: Image.Image,
    resized: tuple[int, int],
    box: tuple[int, int, int, int],
    resampling: Image.Resampling,
) -> Image.Image:
    """The same pixels in little memory, for a picture that is very long and gets enlarged.

    A picture of 1 x 3000 becomes one of 256 x 768,000 before its center is cut out. Pillow enlarges
    the rows first, then every column by itself: one can cut in between, and take the columns in
    turn.
    """
    from PIL import Image

    left, top, right, bottom = box
    height, width = resized
    rows = picture.resize((width, picture.height), resampling)
    fitted = Image.new(picture.mode, (right - left, bottom - top))
    step = max(1, _PIXELS_AT_ONCE // height)
    for start in range(left, right, step):
        stop = min(start + step, right)
        strip = rows.crop((start, 0, stop, picture.height))
        strip = strip.resize((stop - start, height), resampling)
        fitted.paste(strip.crop((0, top, stop - start, bottom)), (start - left, 0))
    return fitted


def read_image(image: Source, channels: int = 3) -> np.ndarray:
    """Any image file, buffer or array to RGB pixels.

    EXIF orientation is applied; grey, palette, CMYK and 16-bit images are brought to 8-bit RGB;
    transparent pixels are laid over white.

    Args:
        image: a path, the bytes of a file, a PIL image, or a uint8 array `(height, width)` or
            `(height, width, 1 | 3 | 4)`, of numpy or another library that numpy can read.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 array `(height, width, channels)`.

    Raises:
        BadImageError: the file or buffer is no image that Pillow can read.
        FileNotFoundError: the path does not exist.
        TypeError: an object of another type, or an array that is not uint8.
    """
    _check_channels(channels)
    return _to_array(_open(image), channels)


def _open(source: Source) -> Image.Image:
    """An 8-bit RGB picture, upright."""
    from PIL import Image, ImageOps

    if hasattr(source, "__array__") and not isinstance(source, Image.Image):
        return _to_rgb(_from_array(np.asarray(source)))
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
        raise TypeError(_NOT_BYTES.format(dtype=array.dtype, shape=array.shape))
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


def _check_channels(channels: Any) -> None:
    if channels not in (1, 3):
        raise ValueError(
            "Images can be read with 3 channels (RGB) or 1 (grey); a network with others is for a "
            "pipeline of one's own. "
            f"Received: channels={channels}"
        )


def _to_array(picture: Image.Image, channels: int) -> np.ndarray:
    if channels == 1:
        return np.array(picture.convert("L"))[..., None]
    return np.array(picture)

"""Augmentation: training images that differ every time they are seen.

What changes one image works on uint8 batches, before preprocessing, and takes every random number
from its caller; what mixes two images works on network input, after preprocessing.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.data import operations

AUGMENTATIONS: dict[str, str] = {
    "random-resized-crop": "a random part of the image, resized (Szegedy et al. 2014); only first",
    "pad-crop": "moved by up to 4 pixels each way, the border filled (He et al. 2015)",
    "shift": "moved by up to 2 pixels each way, the border mirrored",
    "flip": "half of the images mirrored from left to right",
    "randaugment": "some random operations of one magnitude (Cubuk et al. 2019)",
    "trivialaugment": "one random operation of random magnitude (Müller and Hutter 2021)",
}
"""The steps that an `Augmentation` can be made of, by name, each with what it does."""

# How many boxes random erasing tries before it leaves an image alone, as in torchvision.
_ERASE_ATTEMPTS = 10
_ERASE_AREA = (0.02, 0.33)
_ERASE_RATIO = (0.3, 3.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images, between reading and the network.

    First come `steps`, in their order, then random erasing; after preprocessing come mixup and
    cutmix. Where a source differs from torchvision's implementation, this follows torchvision.

    Attributes:
        steps: names from `AUGMENTATIONS`, in the order in which they are applied.
        crop_area: of `"random-resized-crop"`: the smallest and the largest part of the image's
            area.
        crop_ratio: of `"random-resized-crop"`: the smallest and the largest width / height.
        randaugment: of `"randaugment"`: operations per image, and their magnitude, 0..30.
        erase: probability with which a rectangle of 2 to 33 % of an image is erased (Zhong et al.
            2017); 0 is off.
        mixup: alpha of the Beta distribution by which batches are mixed with a batch in another
            order (Zhang et al. 2017); 0 is off.
        cutmix: likewise for rectangles that are cut from one image and pasted into another (Yun et
            al. 2019). With both on, every batch gets one of the two at random, at equal odds.

    Raises:
        ValueError: for a value that cannot be right.
    """

    steps: tuple[str, ...] = ()
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    randaugment: tuple[int, int] = (2, 9)
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        self._check_steps()
        self._check_range("crop_area", 1.0, "two rising numbers above 0 and up to 1")
        self._check_range("crop_ratio", math.inf, "two rising positive numbers, width / height")
        self._check_randaugment()
        self._check_number("erase", 1.0, "a probability, 0 to 1")
        self._check_number("mixup", math.inf, "zero or a positive number")
        self._check_number("cutmix", math.inf, "zero or a positive number")

    @property
    def crops(self) -> bool:
        """Whether images are read as random resized crops, which is not done by `apply`."""
        return "random-resized-crop" in self.steps

    @property
    def mixes(self) -> bool:
        """Whether there is mixing, after which labels are targets."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def draws(self) -> int:
        """How many random numbers `apply` takes per image."""
        return sum(draws for draws, _ in self._functions())

    def apply(self, images: tf.Tensor, uniforms: tf.Tensor, fill: Sequence[int]) -> tf.Tensor:
        """Augments every image by itself: all steps but the random resized crop, and erasing.

        An image depends on its own pixels and its own row of `uniforms` alone.

        Args:
            images: uint8 `(batch, height, width, channels)` in RGB; all but the batch static.
            uniforms: float32 `(batch, draws)` in [0, 1).
            fill: what comes in from outside of the image, 0..255 for every channel; also what
                erased pixels become.

        Returns:
            Images of the same dtype and shape.

        Raises:
            TypeError: if the images are not uint8.
            ValueError: if a shape or `fill` does not fit.
        """
        images = tf.convert_to_tensor(images)
        uniforms = tf.cast(uniforms, tf.float32)
        _check_images(images)
        functions = self._functions()
        if uniforms.shape.rank != 2 or uniforms.shape[1] not in (None, self.draws):
            raise ValueError(
                f"Argument `uniforms` must have the shape (batch, {self.draws}). "
                f"Received: shape={uniforms.shape}"
            )
        background = _checked_fill(fill, images.shape[-1])
        augmented, used = images, 0
        for draws, function in functions:
            augmented = function(augmented, uniforms[:, used : used + draws], background)
            used += draws
        return tf.ensure_shape(augmented, images.shape)

    def mix(
        self, images: tf.Tensor, labels: tf.Tensor, classes: int, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes every image with the next one of the batch, and its label in the same proportion.

        One proportion serves a whole batch, as in torchvision's references and timm's default; for
        cutmix it is corrected to the area that was really pasted. Padding, which has the label -1
        and comes last, is mixed with nothing, and its targets are zeros.

        Args:
            images: `(batch, height, width, channels)` of any floating-point dtype.
            labels: integers `(batch,)`, or shares of the classes `(batch, classes)`.
            classes: how many there are.
            seed: two integers, from which alone the random numbers come.

        Returns:
            Images of the same dtype and shape, and float32 targets `(batch, classes)` whose rows
            sum to 1. With neither mixup nor cutmix, the images as they are and one-hot targets.

        Raises:
            TypeError: if the images are not floating-point numbers.
        """
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        if not images.dtype.is_floating:
            raise TypeError(
                "Images can be mixed after preprocessing, as floating-point numbers. "
                f"Received: dtype={images.dtype.name}"
            )
        is_shares = labels.shape.rank == 2
        targets = tf.cast(labels if is_shares else tf.one_hot(labels, classes), tf.float32)
        if not self.mixes:
            return images, targets
        weights, share = self._weights(tf.shape(images)[1:], seed)
        # In float32 at least: bfloat16 holds less than a byte.
        dtype = tf.float64 if images.dtype == tf.float64 else tf.float32
        partner, precise = _partner(targets), tf.cast(images, dtype)
        weights, share = tf.cast(weights, dtype), tf.cast(share, tf.float32)
        mixed = weights * precise + (1 - weights) * tf.gather(precise, partner)
        targets = share * targets + (1 - share) * tf.gather(targets, partner)
        return tf.ensure_shape(tf.cast(mixed, images.dtype), images.shape), targets

    def _functions(self) -> list[tuple[int, Callable[..., tf.Tensor]]]:
        """What `apply` does in turn: random numbers that it takes, and a function."""
        count, magnitude = self.randaugment
        table: dict[str, tuple[int, Callable[..., tf.Tensor]]] = {
            "pad-crop": (2, _pad_crop),
            "shift": (2, _shift),
            "flip": (1, _flip),
            "randaugment": (2 * count, operations.rand_augment(count, magnitude)),
            "trivialaugment": (3, operations.trivial_augment),
        }
        functions = [table[name] for name in self.steps if name in table]
        if self.erase > 0:
            functions.append((3 + 2 * _ERASE_ATTEMPTS, self._erase))
        return functions

    def _erase(self, images: tf.Tensor, uniforms: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
        is_erased = uniforms[:, 0] < self.erase
        erase = functools.partial(_erase, fill=fill)
        return operations.by_group(is_erased, (_same, erase), images, uniforms[:, 1:])

    def _weights(self, shape: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Each value's share of its own image, `()` or of the image's shape, and their mean."""
        seeds = [tf.random.experimental.stateless_fold_in(seed, i) for i in range(3)]
        odds = 0.5 if self.mixup and self.cutmix else float(self.cutmix > 0)
        is_cutmix = tf.random.stateless_uniform((), seeds[0]) < odds
        alpha = tf.where(is_cutmix, tf.constant(self.cutmix, tf.float64), self.mixup)
        # Gamma variates of small alpha underflow in float32.
        gammas = tf.random.stateless_gamma((2,), seeds[1], alpha, dtype=tf.float64)
        share = gammas[0] / (gammas[0] + gammas[1])
        if not self.cutmix:
            return share, share
        outside = tf.cast(~_box(shape[0], shape[1], share, seeds[2]), tf.float64)
        # An axis of full length: multiplying by weights without channels takes twice as long.
        weights = tf.where(is_cutmix, tf.repeat(outside[..., None], shape[2], axis=2), share)
        return weights, tf.where(is_cutmix, tf.reduce_mean(outside), share)

    def _check(self, field: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(
                f"Augmentation field `{field}` must be {wanted}. "
                f"Received: {field}={getattr(self, field)!r}"
            )

    def _check_steps(self) -> None:
        is_sequence = isinstance(self.steps, Sequence) and not isinstance(self.steps, str)
        self._check("steps", is_sequence, f"a sequence of names from {list(AUGMENTATIONS)}")
        object.__setattr__(self, "steps", tuple(self.steps))
        for name in self.steps:
            known = isinstance(name, str) and name in AUGMENTATIONS
            near = difflib.get_close_matches(str(name), AUGMENTATIONS, n=1)
            hint = f" (for {name!r}, did you mean {near[0]!r}?)" if near else ""
            self._check("steps", known, f"names from {list(AUGMENTATIONS)}{hint}")
        self._check("steps", len(set(self.steps)) == len(self.steps), "names, each at most once")
        self._check(
            "steps",
            "random-resized-crop" not in self.steps[1:],
            "in an order where 'random-resized-crop' comes first",
        )

    def _check_range(self, field: str, largest: float, wanted: str) -> None:
        values = self._pair(field, wanted)
        good = all(map(_is_number, values)) and 0 < values[0] <= values[1] <= largest
        self._check(field, good, wanted)
        object.__setattr__(self, field, tuple(map(float, values)))

    def _check_randaugment(self) -> None:
        wanted = "(operations per image, at least 1; magnitude, 0 to 30), whole numbers"
        values = self._pair("randaugment", wanted)
        good = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
        self._check("randaugment", good and values[0] >= 1 and 0 <= values[1] <= 30, wanted)
        object.__setattr__(self, "randaugment", tuple(values))

    def _pair(self, field: str, wanted: str) -> Sequence[Any]:
        values = getattr(self, field)
        self._check(field, isinstance(values, tuple | list) and len(values) == 2, wanted)
        return values

    def _check_number(self, field: str, largest: float, wanted: str) -> None:
        value = getattr(self, field)
        self._check(field, _is_number(value) and 0 <= value <= largest, wanted)
        object.__setattr__(self, field, float(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_images(images: tf.Tensor) -> None:
    if images.dtype != tf.uint8:
        raise TypeError(
            "Images are augmented as raw pixels, before preprocessing: dtype uint8. "
            f"Received: dtype={images.dtype.name}"
        )
    if images.shape.rank != 4 or None in images.shape[1:]:
        raise ValueError(
            "Images to augment must have the shape (batch, height, width, channels), all but the "
            f"batch known. Received: shape={images.shape}"
        )


def _checked_fill(fill: Sequence[int], channels: int) -> tf.Tensor:
    values = np.asarray(fill)
    good = values.shape == (channels,) and np.issubdtype(values.dtype, np.integer)
    if not good or values.min() < 0 or values.max() > 255:
        raise ValueError(
            f"Argument `fill` must hold an integer 0..255 for each of {channels} channels. "
            f"Received: fill={fill!r}"
        )
    return tf.constant(values, tf.uint8)


def _same(images: tf.Tensor, *_: Any) -> tf.Tensor:
    return images


def _pad_crop(images: tf.Tensor, uniforms: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """A window of the image's size, out of the image with a border of 4 pixels around it."""
    rows, columns = _window(images, uniforms, margin=4)
    return operations.take_pixels(images, rows, columns, fill)


def _shift(images: tf.Tensor, uniforms: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """A window of the image's size, out of the image with a mirrored border of 2 pixels."""
    rows, columns = _window(images, uniforms, margin=2)
    rows, columns = _mirrored(rows, images.shape[1]), _mirrored(columns, images.shape[2])
    return operations.take_pixels(images, rows, columns, fill)


def _window(images: tf.Tensor, uniforms: tf.Tensor, margin: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows `(batch, height, 1)` and columns `(batch, 1, width)`, -margin..size + margin - 1."""
    start = operations.to_integers(uniforms, 2 * margin + 1) - margin
    return (
        start[:, 0, None, None] + tf.range(images.shape[1])[:, None],
        start[:, 1, None, None] + tf.range(images.shape[2]),
    )


def _mirrored(index: tf.Tensor, size: int) -> tf.Tensor:
    """Positions outside of 0..size-1 as the ones that they mirror, the border included."""
    index = tf.math.floormod(index, 2 * size)
    return tf.minimum(index, 2 * size - 1 - index)


def _flip(images: tf.Tensor, uniforms: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    return operations.by_group(uniforms[:, 0] < 0.5, (_same, _mirror), images)


def _mirror(images: tf.Tensor) -> tf.Tensor:
    # TensorFlow reverses bytes fast only in three dimensions, with 3 channels last.
    _, height, width, channels = images.shape
    rows = tf.reverse(tf.reshape(images, (-1, width, channels)), [1])
    return tf.reshape(rows, (-1, height, width, channels))


def _erase(images: tf.Tensor, uniforms: tf.Tensor, *, fill: tf.Tensor) -> tf.Tensor:
    """Fills a rectangle of random area, ratio and place, the first of ten that fits.

    `uniforms`: areas (10), ratios (10), top, left.
    """
    height, width = images.shape[1:3]
    sizes, place = uniforms[:, :-2], uniforms[:, -2:]
    # The last bit of TensorFlow's exponential depends on the place in the batch, and a rounding
    # may depend on it: hardly ever in double precision.
    area, ratio = tf.split(tf.cast(sizes, tf.float64), 2, axis=1)
    area = (_ERASE_AREA[0] + area * (_ERASE_AREA[1] - _ERASE_AREA[0])) * (height * width)
    low, high = map(math.log, _ERASE_RATIO)
    ratio = tf.exp(low + ratio * (high - low))
    heights = tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32)
    fits = (heights < height) & (widths < width)
    first = tf.argmax(fits, axis=1, output_type=tf.int32)
    # Where none fits, the first does not either; then nothing is erased.
    box_height, box_width, fits = (
        tf.gather(values, first, batch_dims=1)[:, None] for values in (heights, widths, fits)
    )
    top = operations.to_integers(place[:, :1], height - box_height + 1)
    left = operations.to_integers(place[:, 1:], width - box_width + 1)
    rows, columns = tf.range(height), tf.range(width)
    is_row = (rows >= top) & (rows < top + box_height) & fits
    is_column = (columns >= left) & (columns < left + box_width)
    return operations.paste(images, fill, is_row, is_column)


def _partner(targets: tf.Tensor) -> tf.Tensor:
    """For every example the one that it is mixed with: the next; the first for the last."""
    positions = tf.range(tf.shape(targets)[0])
    real = tf.reduce_sum(tf.cast(tf.reduce_any(targets > 0, axis=-1), tf.int32))
    return tf.where(positions < real, (positions + 1) % tf.maximum(real, 1), positions)


def _box(height: tf.Tensor, width: tf.Tensor, share: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Where the other image is pasted, bool `(height, width)`.

    A rectangle of the image's shape and `1 - share` of its area, around a random pixel, cut off at
    the border, as in torchvision.
    """
    half = 0.5 * tf.sqrt(1 - share)
    inside = []
    for size, uniform in zip(
        (height, width), tf.unstack(tf.random.stateless_uniform((2,), seed)), strict=True
    ):
        center = operations.to_integers(uniform, size)
        reach = tf.cast(half * tf.cast(size, half.dtype), tf.int32)
        positions = tf.range(size)
        inside.append((positions >= center - reach) & (positions < center + reach))
    return inside[0][:, None] & inside[1][None, :]

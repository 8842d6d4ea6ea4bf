"""From raw pixels to what the network sees: augmentation, then preprocessing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_resnet.data.sources import Split
from keras_resnet.preprocessing import Preprocessing

# Each maps preprocessed images (batch, height, width, channels) and a seed (2,) to images of the
# same shape. Random numbers come from the seed alone, so a batch can be made again.
Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def batches(
    split: Split,
    batch_size: int,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    *,
    dtype: str = "float32",
    augment: Sequence[str] = (),
    shuffle: Sequence[int] | None = None,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Batches of network input and labels, for one epoch.

    Args:
        split: where the images come from.
        batch_size: examples per batch, over all replicas.
        shape: `(height, width, channels)` of the network's input.
        preprocessing: the network's.
        dtype: of the images.
        augment: names from `AUGMENTATIONS`, applied in this order.
        shuffle: `(seed, epoch)` of the order and of the augmentation; None for neither.
        drop_remainder: leave out the examples that do not fill a batch.

    Returns:
        A data set of (images `(batch, height, width, channels)`, int32 labels `(batch,)`).

    Raises:
        ValueError: for an unknown augmentation, or augmentation without `shuffle`.
    """
    steps = [_augmentation(name) for name in augment]
    if steps and shuffle is None:
        raise ValueError(
            f"Augmentation needs seeds; give `shuffle`. Received: augment={tuple(augment)}"
        )
    raw = split.batches(
        batch_size, shape, preprocessing, shuffle=shuffle, drop_remainder=drop_remainder
    )

    def prepare(
        number: tf.Tensor, example: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = example
        images = preprocessing(images)
        if steps and shuffle is not None:
            seed = tf.random.experimental.stateless_fold_in(
                tf.constant([shuffle[0], shuffle[1]], tf.int64), number
            )
            for i, step in enumerate(steps):
                images = step(images, tf.random.experimental.stateless_fold_in(seed, i))
        return tf.cast(images, dtype), labels

    prepared = raw.enumerate().map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    # Every worker of a cluster reads all examples and keeps its share of each batch. With OFF all
    # workers would keep the same share.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return prepared.with_options(options).prefetch(tf.data.AUTOTUNE)


def _flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors every other image, at random, from left to right."""
    is_flipped = tf.random.stateless_uniform((tf.shape(images)[0], 1, 1, 1), seed) < 0.5
    return tf.where(is_flipped, images[:, :, ::-1], images)


def _pad_crop(images: tf.Tensor, seed: tf.Tensor, margin: int, mode: str) -> tf.Tensor:
    """Shifts every image by up to `margin` pixels each way; `mode` says what comes in."""
    batch, height, width = (tf.shape(images)[axis] for axis in range(3))
    padded = tf.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)], mode=mode)
    shifts = tf.random.stateless_uniform((batch, 2), seed, 0, 2 * margin + 1, tf.int32)
    rows = shifts[:, :1] + tf.range(height)
    columns = shifts[:, 1:] + tf.range(width)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": _flip,
    "pad-crop": functools.partial(_pad_crop, margin=4, mode="CONSTANT"),
    "shift": functools.partial(_pad_crop, margin=2, mode="SYMMETRIC"),
}
"""By name: `flip` mirrors at random; `pad-crop` shifts by up to 4 pixels and fills with zeros, the
middle grey of the default preprocessing (the paper, section 4.2); `shift` moves by up to 2 pixels
and fills with the mirrored border."""


def _augmentation(name: str) -> Augmentation:
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"Argument `augment` must hold names of {sorted(AUGMENTATIONS)}. Received: {name!r}"
        )
    return AUGMENTATIONS[name]

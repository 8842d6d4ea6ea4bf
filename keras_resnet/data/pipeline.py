"""From raw pixels to what the network sees: augmentation, then preprocessing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from keras_resnet.data.augment import Augmentation
from keras_resnet.data.splits import Remainder, Split, mapped
from keras_resnet.preprocessing import Preprocessing


def batches(
    split: Split,
    batch_size: int,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    *,
    dtype: str = "float32",
    augment: Augmentation | Sequence[str] = (),
    shuffle: Sequence[int] | None = None,
    remainder: Remainder = "keep",
    start: int = 0,
    share: tuple[int, int] = (0, 1),
    classes: int | None = None,
) -> tf.data.Dataset:
    """Batches of network input and labels, for one epoch.

    The random numbers of a batch come from the seed, the epoch and the number of the batch alone,
    for the whole global batch: an example looks the same however many workers share the batch, and
    whether the epoch was read from its start or from the middle.

    Args:
        split: where the images come from.
        batch_size: examples per batch, over all workers.
        shape: `(height, width, channels)` of the network's input.
        preprocessing: the network's.
        dtype: of the images.
        augment: an `Augmentation`, or the names of its steps.
        shuffle: `(seed, epoch)` of the order and of the augmentation; None for neither.
        remainder: see `Split.batches`.
        start: see `Split.batches`.
        share: see `Split.batches`. Mixup and cutmix mix within what one worker has.
        classes: how many there are, for an augmentation that mixes.

    Returns:
        A data set of (images `(batch, height, width, channels)`, int32 labels `(batch,)`), or of
        (images, float32 targets `(batch, classes)`) where the augmentation mixes, or where the
        labels are shares of the classes.

    Raises:
        ValueError: for an unknown augmentation, augmentation without `shuffle`, or mixing without
            `classes`.
    """
    if not isinstance(augment, Augmentation):
        augment = Augmentation(steps=tuple(augment))
    _check(augment, shuffle, classes)
    raw = split.batches(
        batch_size,
        shape,
        preprocessing,
        shuffle=shuffle,
        remainder=remainder,
        start=start,
        share=share,
        crop=augment if augment.crops else None,
    )
    fill = _fill(preprocessing, shape[-1])
    worker, workers = share

    def prepare(
        number: tf.Tensor, example: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = example
        seeds = None if shuffle is None else _seeds(shuffle, number)
        if augment.draws and seeds is not None:
            uniforms = tf.random.stateless_uniform((batch_size, augment.draws), seeds[0])
            uniforms = uniforms[worker::workers][: tf.shape(labels)[0]]
            images = augment.apply(images, uniforms, fill)
        images = tf.cast(_normalized(images, preprocessing), dtype)
        if augment.mixes and seeds is not None and classes is not None:
            seed = tf.random.experimental.stateless_fold_in(seeds[1], worker)
            return augment.mix(images, labels, classes, seed)
        return images, labels

    prepared = mapped(raw.enumerate(start), prepare)
    options = tf.data.Options()
    # The numbers of threads are stated: measuring what each element takes costs a tenth of reading
    # small images.
    options.autotune.enabled = False
    # What each worker reads is said by `share`.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return prepared.with_options(options).prefetch(2)


def _check(augment: Augmentation, shuffle: Sequence[int] | None, classes: int | None) -> None:
    if augment != Augmentation() and shuffle is None:
        raise ValueError(
            f"Augmentation needs seeds; give `shuffle`. Received: augment={augment.steps}"
            if augment.steps
            else f"Augmentation needs seeds; give `shuffle`. Received: {augment}"
        )
    if augment.mixes and classes is None:
        raise ValueError(f"Mixing needs the number of classes; give `classes`. Received: {augment}")


def _normalized(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """`preprocessing(images)`, in one pass over the memory instead of three where it can be.

    That is where no rounding is involved, as with this package's own `x / 128 - 1`.
    """
    quantization = preprocessing.byte_quantization
    if quantization is None or math.frexp(quantization[0])[0] != 0.5:
        return preprocessing(images)
    scale, zero_point = quantization
    return tf.quantization.dequantize(
        tf.bitcast(images, tf.quint8),
        -scale * zero_point,
        scale * (255 - zero_point),
        mode="MIN_COMBINED",
    )


def _seeds(shuffle: Sequence[int], number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Seeds of what is done to single images, and of mixing, in a batch of this number."""
    epoch = tf.constant([shuffle[0], shuffle[1]], tf.int64)
    seed = tf.random.experimental.stateless_fold_in(epoch, number)
    return tuple(tf.random.experimental.stateless_fold_in(seed, i) for i in range(2))


def _fill(preprocessing: Preprocessing, channels: int) -> tuple[int, ...]:
    """The mean of what the network was trained on, as a color: zero after preprocessing.

    To half a level: a mean is not always a whole number.
    """
    mean = preprocessing.mean if preprocessing.channels == "rgb" else preprocessing.mean[::-1]
    levels = [min(max(round(value), 0), 255) for value in mean]
    return tuple(levels * channels if len(levels) == 1 else levels)

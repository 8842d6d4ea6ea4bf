"""The labelled images of a split, and the order in which an epoch reads them.

A split yields batches of raw uint8 pixels in the network's size; augmentation and preprocessing
come after it, in `pipeline`. Whatever order it reads in comes from seeds alone: not from the
machine, the number of threads or workers, TensorFlow's global seed, or what was read before.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from keras_resnet.data import caching, reading
from keras_resnet.data.augment import Augmentation
from keras_resnet.data.caching import Cache
from keras_resnet.preprocessing import Preprocessing, read_image

Remainder = Literal["keep", "drop", "pad"]
Shape = tuple[int, int, int]

# From an example's number, and the part of the image that is wanted, to its pixels.
Reader = Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]

# A stream is shuffled this many examples at a time, or as many as fit into this many bytes while
# they are encoded: 10,000 photographs of ImageNet would take 1.1 GB in every worker.
SHUFFLE_BUFFER = 10_000
SHUFFLE_BYTES = 1 << 29

# With many examples under way, threads hardly ever wait for work: on two processors, small JPEGs
# took a quarter less of their time with 16 than with 4. They share the threads that TensorFlow has
# anyway. Batches are large, and what is done to them is spread over the processors by itself.
EXAMPLES_AT_ONCE = 8 * (os.cpu_count() or 1)
BATCHES_AT_ONCE = min(16, 1 + (os.cpu_count() or 1) // 2)

_CACHED_AT_ONCE = 64


class Split(abc.ABC):
    """Some of the labelled images of a source.

    Attributes:
        examples: how many there are.
        shuffle_buffer: how many examples are mixed at a time where an epoch is shuffled: all of
            them, unless the source is a stream that is not cached.
    """

    examples: int
    shuffle_buffer: int

    def batches(
        self,
        batch_size: int,
        shape: Shape,
        preprocessing: Preprocessing,
        *,
        shuffle: Sequence[int] | None = None,
        remainder: Remainder = "keep",
        start: int = 0,
        share: tuple[int, int] = (0, 1),
        crop: Augmentation | None = None,
    ) -> tf.data.Dataset:
        """Raw pixels in the network's size, for one epoch.

        Args:
            batch_size: examples per batch, over all workers.
            shape: `(height, width, channels)` to fit the images to.
            preprocessing: says how to resize and crop; its mean and std are not applied here.
            shuffle: seeds of the order, e.g. `(seed, epoch)`; None for the order of the source.
            remainder: what becomes of the examples that do not fill a batch: `"keep"` gives a
                smaller batch, `"drop"` none, and `"pad"` a full one, in which black images with
                the label -1 stand for those that are missing.
            start: the first batch to give, 0, 1, ...; the batches are those that a whole epoch
                gives from there on, and the images before are not decoded.
            share: `(i, n)`: only the rows `i::n` of every batch are read and given, for worker `i`
                of `n`. With `"keep"`, a worker that has no row of the last batch gets one less.
            crop: the augmentation that says which random part of every image is cut out and
                resized (Szegedy et al. 2014); None fits the center, as `Preprocessing.fit` does.
                What is cut out depends on the seeds and the example's place in the epoch. No cache
                is used.

        Returns:
            A data set of (uint8 `(batch, height, width, channels)`, int32 `(batch,)`), whose batch
            size is static unless `remainder` is `"keep"`. Where the labels are shares of the
            classes, they are float32 `(batch, classes)`, and zeros for what is missing.

        Raises:
            ValueError: if an argument cannot be right.
        """
        plan = Plan(self.examples, batch_size, remainder, start, share)
        windows = _random_windows(crop, shuffle)
        return self._batches(plan, shape, preprocessing, shuffle, windows)

    @abc.abstractmethod
    def _batches(
        self,
        plan: Plan,
        shape: Shape,
        preprocessing: Preprocessing,
        shuffle: Sequence[int] | None,
        windows: reading.RandomWindows | None,
    ) -> tf.data.Dataset:
        """`batches`, of checked arguments: which places to read, and windows of the images."""

    @abc.abstractmethod
    def class_counts(self, classes: int) -> np.ndarray:
        """How many examples there are of each label, or of each largest share: `(classes,)`."""

    @abc.abstractmethod
    def copies(self, count: int, times: int, seed: int) -> tuple[Split, np.ndarray]:
        """Random examples, at most all, each so many times one after the other, and their labels.

        The labels of the split that is returned are its examples' numbers, int32
        `(count * times,)`.
        """

    def take(
        self, count: int, shape: Shape, preprocessing: Preprocessing, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random sample, at most all: uint8 images `(count, h, w, c)` and int32 labels."""
        if count < 1:
            raise ValueError(f"Argument `count` must be a positive integer. Received: {count}")
        split = self._uncached()
        chosen = split.batches(min(count, self.examples), shape, preprocessing, shuffle=(seed, 0))
        with split.own_errors():
            images, labels = next(iter(chosen.take(1)))
        return images.numpy(), _single(labels.numpy())

    def _uncached(self) -> Split:
        """The same, without a cache that reads all images for the first one."""
        return self

    @contextlib.contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raises what went wrong while reading, instead of TensorFlow's report of it.

        Raises:
            DataError: if a file has vanished or changed since the split was made.
            BadImageError: if a file cannot be decoded.
        """
        try:
            yield
        except tf.errors.OpError:
            self._check_error()
            raise

    def _check_error(self) -> None:  # noqa: B027, most splits have nothing to say
        """Raises what went wrong inside the pipeline, which TensorFlow only reports as text."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which places of an epoch's order a worker reads, and how they make up batches.

    The fields are the arguments of `Split.batches`.
    """

    examples: int
    batch_size: int
    remainder: Remainder = "keep"
    start: int = 0
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(
                f"Argument `batch_size` must be a positive integer. Received: {self.batch_size}"
            )
        if self.remainder not in ("keep", "drop", "pad"):
            raise ValueError(
                "Argument `remainder` must be 'keep', 'drop' or 'pad'. "
                f"Received: {self.remainder!r}"
            )
        if self.start < 0:
            raise ValueError(f"Argument `start` must be 0 or positive. Received: {self.start}")
        worker, workers = self.share
        if not 0 <= worker < workers <= self.batch_size:
            raise ValueError(
                "Argument `share` must be (worker, workers) with worker < workers, and a batch "
                f"must have an example for each of them. Received: share={self.share}, "
                f"batch_size={self.batch_size}"
            )

    @property
    def rows(self) -> int:
        """How many examples of a full batch the worker has."""
        worker, workers = self.share
        return len(range(worker, self.batch_size, workers))

    @property
    def end(self) -> int:
        """The place after the last one, over all workers."""
        if self.remainder == "keep":
            return self.examples
        full, rest = divmod(self.examples, self.batch_size)
        return (full + (rest > 0 and self.remainder == "pad")) * self.batch_size

    def places(self) -> np.ndarray:
        """The worker's places in the epoch, int64; those from `examples` on are padding."""
        worker, workers = self.share
        places = np.arange(self.start * self.batch_size, self.end)
        return places[places % self.batch_size % workers == worker]

    def batched(self, values: np.ndarray) -> tf.data.Dataset:
        """Batches of something that there is for every place."""
        return self.batch(tf.data.Dataset.from_tensor_slices(values))

    def batch(self, examples: tf.data.Dataset) -> tf.data.Dataset:
        """The worker's examples in its batches."""
        return examples.batch(self.rows, drop_remainder=self.remainder != "keep")


class IndexedSplit(Split):
    """Images that can be had by number. A shuffled epoch is one random permutation of them all."""

    def __init__(self, labels: np.ndarray, cache: str = "memory"):
        self.labels = np.asarray(labels, np.int32 if np.ndim(labels) == 1 else np.float32)
        self.examples = self.shuffle_buffer = len(self.labels)
        self._cache = cache
        self._caches: dict[Any, Cache | None] = {}
        # Those that an error can come from: of a training, and of an evaluation or two.
        self._passes: collections.deque[_Pass] = collections.deque(maxlen=4)

    def _batches(
        self,
        plan: Plan,
        shape: Shape,
        preprocessing: Preprocessing,
        shuffle: Sequence[int] | None,
        windows: reading.RandomWindows | None,
    ) -> tf.data.Dataset:
        places = plan.places()
        numbers = self._order(shuffle)[np.minimum(places, self.examples - 1)]
        numbers[places >= self.examples] = -1
        labels = self.labels[numbers]
        labels[numbers < 0] = -1 if labels.ndim == 1 else 0
        if windows is None:
            parts, cache = None, self._cache_for(shape, preprocessing)
        else:
            parts, cache = windows(places, self._sizes()[numbers]), None
        if cache is not None and cache.has(numbers).all():
            images = mapped(
                plan.batched(numbers),
                lambda batch: _images(cache.get, [batch], (batch.shape[0], *shape)),
            )
        else:
            read = self._reader(shape, preprocessing)
            images = self._read(numbers, parts, plan, shape, read, cache)
        return tf.data.Dataset.zip((images, plan.batched(labels)))

    def class_counts(self, classes: int) -> np.ndarray:
        return np.bincount(_single(self.labels), minlength=classes)

    def copies(self, count: int, times: int, seed: int) -> tuple[Split, np.ndarray]:
        chosen = np.random.default_rng(seed).permutation(self.examples)[:count]
        numbers = np.repeat(chosen, times)
        return _Copies(self, numbers), _single(self.labels[numbers])

    @abc.abstractmethod
    def _reader(self, shape: Shape, preprocessing: Preprocessing) -> Reader:
        """Reads an example of this shape by its number."""

    @abc.abstractmethod
    def _sizes(self) -> np.ndarray:
        """`(height, width)` of every image before it is fitted, `(examples, 2)`."""

    @abc.abstractmethod
    def _check_example(self, number: int) -> None:
        """Raises the reason if an example cannot be read."""

    def _order(self, shuffle: Sequence[int] | None) -> np.ndarray:
        if shuffle is None:
            return np.arange(self.examples)
        return np.random.default_rng(list(shuffle)).permutation(self.examples)

    def _cache_for(self, shape: Shape, preprocessing: Preprocessing) -> Cache | None:
        key = (shape, preprocessing.interpolation, preprocessing.crop)
        if key not in self._caches:
            self._caches[key] = self._new_cache(shape, preprocessing)
        return self._caches[key]

    def _new_cache(
        self,
        shape: Shape,
        preprocessing: Preprocessing,  # noqa: ARG002, a cache on the disk depends on it
    ) -> Cache | None:
        return caching.in_memory(self.examples, shape) if self._cache == "memory" else None

    def _read(
        self,
        numbers: np.ndarray,
        parts: np.ndarray | None,
        plan: Plan,
        shape: Shape,
        read: Reader,
        cache: Cache | None,
    ) -> tf.data.Dataset:
        """Batches of images, of which those are read that are in no cache."""
        this_pass = _Pass(numbers, plan.rows)
        self._passes.append(this_pass)
        is_read = numbers >= 0 if cache is None else ~cache.has(numbers)
        columns = {"number": numbers}
        if parts is not None:
            columns["part"] = parts
        if not is_read.all():
            columns["is_read"] = is_read

        def read_example(example: dict[str, tf.Tensor]) -> tf.Tensor:
            def image() -> tf.Tensor:
                return read(example["number"], example.get("part"))

            if "is_read" not in example:
                return image()
            return tf.cond(example["is_read"], image, lambda: tf.zeros(shape, tf.uint8))

        def finish(order: tf.Tensor, *batch: tf.Tensor) -> tf.Tensor:
            # Called stateless: where operations must be deterministic, TensorFlow takes all
            # parallelism and prefetching from a pipeline that has a stateful one.
            noted = tf.numpy_function(this_pass.note, [order], [], stateful=False)
            with tf.control_dependencies([noted]):
                if cache is None:
                    return tf.identity(batch[-1])
                return _images(cache.complete, batch, batch[-1].shape)

        examples = tf.data.Dataset.from_tensor_slices(columns)
        images = mapped(examples, read_example, EXAMPLES_AT_ONCE)
        together = (
            tf.data.Dataset.range(len(this_pass)),
            plan.batched(numbers),
            plan.batched(is_read),
            plan.batch(images),
        )
        return mapped(tf.data.Dataset.zip(together), finish)

    def _check_error(self) -> None:
        for this_pass in self._passes:
            for number in this_pass.next_examples():
                if number >= 0:
                    self._check_example(int(number))


class _Pass:
    """How far one pass over some examples has come, which TensorFlow's errors do not say.

    Batches come in their order, but those behind an error may be done before it is raised.
    """

    def __init__(self, numbers: np.ndarray, rows: int):
        self._batches = [numbers[i : i + rows] for i in range(0, len(numbers), rows)]
        self._done: set[int] = set()

    def __len__(self) -> int:
        return len(self._batches)

    def note(self, batch: np.ndarray) -> None:
        """Says that the batch of this number is done."""
        if batch == 0:
            self._done.clear()
        self._done.add(int(batch))

    def next_examples(self) -> np.ndarray:
        """Those of the first batches that are not done."""
        missing = (i for i in range(len(self)) if i not in self._done)
        batches = [self._batches[i] for i in itertools.islice(missing, 3)]
        return np.concatenate([np.empty(0, int), *batches])


class _Copies(IndexedSplit):
    """Examples of another split by their numbers; the labels are their positions."""

    def __init__(self, split: IndexedSplit, numbers: np.ndarray):
        super().__init__(np.arange(len(numbers)), cache="none")
        self._split, self._numbers = split, numbers

    def _sizes(self) -> np.ndarray:
        return self._split._sizes()[self._numbers]

    def _reader(self, shape: Shape, preprocessing: Preprocessing) -> Reader:
        read = self._split._reader(shape, preprocessing)
        return lambda number, part: read(tf.gather(self._numbers, number), part)

    def _check_example(self, number: int) -> None:
        self._split._check_example(self._numbers[number])


class ArraySplit(IndexedSplit):
    """Images of one size that are in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        super().__init__(labels)
        self._images = images

    def _sizes(self) -> np.ndarray:
        return np.broadcast_to(self._images.shape[1:3], (self.examples, 2))

    def _cache_for(self, shape: Shape, preprocessing: Preprocessing) -> Cache | None:
        if self._images.shape[1:] == shape and preprocessing.crop == 1:
            return Cache(self._images)
        return super()._cache_for(shape, preprocessing)

    def _reader(self, shape: Shape, preprocessing: Preprocessing) -> Reader:
        def rgb(number: np.ndarray) -> np.ndarray:
            return read_image(self._images[number])

        def read(number: tf.Tensor, part: tf.Tensor | None) -> tf.Tensor:
            image = tf.numpy_function(rgb, [number], tf.uint8, stateful=False)
            image = tf.ensure_shape(image, (*self._images.shape[1:3], 3))
            if part is None:
                return reading.fit(image, shape, preprocessing)
            return reading.resize(reading.cut(image, part), shape, preprocessing.interpolation)

        return read

    def _check_example(self, number: int) -> None:
        read_image(self._images[number])


class FileSplit(IndexedSplit):
    """Image files, whose `paths` it keeps.

    Args:
        paths: of the files.
        labels: `(examples,)`.
        headers: what was read of them.
        cache: see `load`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: np.ndarray,
        headers: Sequence[reading.Header],
        cache: str = "memory",
    ):
        super().__init__(labels, cache)
        self.paths, self._headers = list(paths), list(headers)
        self._size_of = np.array([(h.height, h.width) for h in headers], np.int32)
        self._decoder_of = np.array([h.decoder for h in headers], np.int32)
        with tf.device("CPU"):
            self._path_tensor = tf.constant([os.fsencode(path) for path in self.paths])

    def _sizes(self) -> np.ndarray:
        return self._size_of

    def _reader(self, shape: Shape, preprocessing: Preprocessing) -> Reader:
        present = np.unique(self._decoder_of)
        with tf.device("CPU"):
            branches = tf.constant(np.searchsorted(present, self._decoder_of), tf.int32)
        is_fitted = preprocessing.crop == 1 and (self._size_of == shape[:2]).all()
        is_small = bool((self._size_of <= shape[:2]).all())

        def decode(number: tf.Tensor, part: tf.Tensor | None) -> tf.Tensor:
            contents = tf.io.read_file(tf.gather(self._path_tensor, number))
            if len(present) == 1:
                return reading.decode(contents, present[0], part)
            return tf.switch_case(
                tf.gather(branches, number),
                [functools.partial(reading.decode, contents, kind, part) for kind in present],
            )

        def read(number: tf.Tensor, part: tf.Tensor | None) -> tf.Tensor:
            image = tf.ensure_shape(decode(number, part), (None, None, 3))
            if part is not None:
                return reading.resize(image, shape, preprocessing.interpolation, is_small)
            if is_fitted and shape[2] == 3:
                return tf.ensure_shape(image, shape)
            return reading.fit(image, shape, preprocessing)

        return read

    def _uncached(self) -> FileSplit:
        split = copy.copy(self)
        if self._cache != "memory":
            split._cache, split._caches = "none", {}
        return split

    def _new_cache(self, shape: Shape, preprocessing: Preprocessing) -> Cache | None:
        if not self._cache.startswith("disk:"):
            return super()._new_cache(shape, preprocessing)
        files = [
            (path, header.bytes, header.modified)
            for path, header in zip(self.paths, self._headers, strict=True)
        ]
        images, _ = caching.on_disk(
            Path(self._cache.removeprefix("disk:")),
            _cache_key(files, preprocessing),
            self.examples,
            shape,
            lambda: _read_all(self._uncached(), shape, preprocessing),
        )
        return Cache(images)

    def _check_example(self, number: int) -> None:
        reading.check_file(self.paths[number], self._headers[number])


class StreamSplit(Split):
    """Images that come one after the other, as the contents of files.

    A shuffled epoch mixes `shuffle_buffer` examples at a time, of a stream that may itself have an
    order for every seed.

    Args:
        examples: how many there are.
        stream: from a seed, or None for the order of the source, to a `tf.data.Dataset` of
            (content of a file, integer label).
        shuffle_buffer: how many examples to mix at a time.
        cache: see `load`.
        identity: what says which images these are; JSON.
    """

    def __init__(
        self,
        examples: int,
        stream: Callable[[int | None], tf.data.Dataset],
        shuffle_buffer: int = SHUFFLE_BUFFER,
        cache: str = "none",
        identity: Any = None,
    ):
        self._cache = cache
        self._caches: dict[Any, ArraySplit | None] = {}
        self._identity = identity
        self.examples = examples
        self.shuffle_buffer = max(1, min(shuffle_buffer, examples))
        self._stream = stream
        self._labels: np.ndarray | None = None

    def _batches(
        self,
        plan: Plan,
        shape: Shape,
        preprocessing: Preprocessing,
        shuffle: Sequence[int] | None,
        windows: reading.RandomWindows | None,
    ) -> tf.data.Dataset:
        cached = self._cached(shape, preprocessing) if windows is None else None
        if cached is not None:
            fitted = dataclasses.replace(preprocessing, crop=1.0)
            return cached._batches(plan, shape, fitted, shuffle, None)
        worker, workers = plan.share

        def is_ours(place: tf.Tensor, _: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            return place % plan.batch_size % workers == worker

        def read(
            place: tf.Tensor, example: tuple[tf.Tensor, tf.Tensor]
        ) -> tuple[tf.Tensor, tf.Tensor]:
            contents, label = example
            image = _decode_stream(contents, place, windows)
            if windows is None:
                image = reading.fit(image, shape, preprocessing)
            else:
                image = reading.resize(image, shape, preprocessing.interpolation)
            return image, tf.cast(label, tf.int32)

        first = plan.start * plan.batch_size
        encoded = self._encoded(shuffle).take(plan.end).skip(first).enumerate(first)
        if workers > 1:  # before anything is decoded
            encoded = encoded.filter(tf.autograph.experimental.do_not_convert(is_ours))
        images = mapped(encoded, read, EXAMPLES_AT_ONCE)
        missing = int((plan.places() >= self.examples).sum())
        if missing:
            black = tf.data.Dataset.from_tensors((tf.zeros(shape, tf.uint8), tf.constant(-1)))
            images = images.concatenate(black.repeat(missing))
        return plan.batch(images)

    def class_counts(self, classes: int) -> np.ndarray:
        if self._labels is None:  # takes a pass over the stream, without decoding
            labels = self._stream(None).map(lambda _, label: tf.cast(label, tf.int64))
            self._labels = np.concatenate(list(labels.batch(4096).as_numpy_iterator()))
        return np.bincount(self._labels, minlength=classes)

    def copies(self, count: int, times: int, seed: int) -> tuple[Split, np.ndarray]:
        few = list(self._encoded((seed, 0)).take(count).as_numpy_iterator())
        contents = np.repeat(np.array([content for content, _ in few], object), times)
        labels = np.repeat([int(label) for _, label in few], times)
        stream = tf.data.Dataset.from_tensor_slices((contents, np.arange(len(labels))))
        return StreamSplit(len(labels), lambda _: stream), labels

    def _uncached(self) -> StreamSplit:
        split = copy.copy(self)
        split._cache, split._caches = "none", {}
        return split

    def _cached(self, shape: Shape, preprocessing: Preprocessing) -> ArraySplit | None:
        """All fitted images, which are read at the first call, if there is to be a cache."""
        key = (shape, preprocessing.interpolation, preprocessing.crop)
        if key not in self._caches:
            self._caches[key] = self._new_cache(shape, preprocessing)
        return self._caches[key]

    def _new_cache(self, shape: Shape, preprocessing: Preprocessing) -> ArraySplit | None:
        def read() -> caching.Batches:
            return _read_all(self._uncached(), shape, preprocessing)

        if self._cache.startswith("disk:"):
            key = _cache_key(self._identity, preprocessing)
            directory = Path(self._cache.removeprefix("disk:"))
            return ArraySplit(*caching.on_disk(directory, key, self.examples, shape, read))
        if self._cache == "memory" and self.examples * np.prod(shape) <= caching.MEMORY_BYTES:
            images, labels = zip(*read(), strict=True)
            return ArraySplit(np.concatenate(images), np.concatenate(labels))
        return None

    def _encoded(self, shuffle: Sequence[int] | None) -> tf.data.Dataset:
        if shuffle is None:
            return self._stream(None)
        seed = int(np.random.default_rng(list(shuffle)).integers(2**31))
        stream = self._stream(seed)

        def shuffled(_: tf.Tensor) -> tf.data.Dataset:
            # Of this function's graph alone: without it, the order would depend on the seed that
            # the user may have set for the whole of TensorFlow.
            tf.random.set_seed(seed)
            return stream.shuffle(self.shuffle_buffer, seed=seed)

        return tf.data.Dataset.from_tensors(0).flat_map(
            tf.autograph.experimental.do_not_convert(shuffled)
        )


def _single(labels: np.ndarray) -> np.ndarray:
    """Labels as they are; of shares of the classes, the class of the largest: int32 `(n,)`."""
    return labels if labels.ndim == 1 else labels.argmax(axis=1).astype(np.int32)


def _cache_key(images: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """All that fitted images depend on, but their shape: Pillow's resizing differs by version."""
    return {
        "images": images,
        "interpolation": preprocessing.interpolation,
        "crop": preprocessing.crop,
        "pillow": importlib.metadata.version("Pillow"),
    }


def _read_all(split: Split, shape: Shape, preprocessing: Preprocessing) -> caching.Batches:
    """Batches of all images and labels, in the order of the source."""
    from rich.progress import track

    batches = split.batches(_CACHED_AT_ONCE, shape, preprocessing)
    with split.own_errors():
        yield from track(
            batches.as_numpy_iterator(),
            description="Caching images",
            total=-(-split.examples // _CACHED_AT_ONCE),
            transient=True,
            disable=split.examples < 5_000,
            console=reading.stderr_console(),
        )


def mapped(
    dataset: tf.data.Dataset, function: Callable[..., Any], at_once: int = BATCHES_AT_ONCE
) -> tf.data.Dataset:
    """The data set of what a function of TensorFlow operations makes of each element, in order.

    Not rewritten by AutoGraph, which takes longer than all the rest of building a pipeline.
    """
    function = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(function, at_once, deterministic=True)


def _random_windows(
    crop: Augmentation | None, shuffle: Sequence[int] | None
) -> reading.RandomWindows | None:
    """What draws the parts of images that an augmentation wants read, if it wants parts."""
    if crop is None:
        return None
    if shuffle is None:
        raise ValueError("Random crops need seeds; give `shuffle`. Received: shuffle=None")
    return reading.RandomWindows(shuffle, crop.crop_area, crop.crop_ratio)


def _decode_stream(
    contents: tf.Tensor, place: tf.Tensor, windows: reading.RandomWindows | None
) -> tf.Tensor:
    """The content of a file to uint8 `(height, width, 3)`, or to a random part of it."""

    def jpeg() -> tf.Tensor:
        if windows is None:
            return reading.decode(contents, reading.JPEG)
        part = _random_part(windows, place, tf.io.extract_jpeg_shape(contents))
        return reading.decode(contents, reading.JPEG, part)

    def other(decoder: int) -> tf.Tensor:
        image = reading.decode(contents, decoder)
        if windows is None:
            return image
        return reading.cut(image, _random_part(windows, place, tf.shape(image)))

    branches = {
        reading.PILLOW: functools.partial(other, reading.PILLOW),
        reading.JPEG: jpeg,
        reading.PNG: functools.partial(other, reading.PNG),
    }
    return tf.ensure_shape(tf.switch_case(reading.decoder_of(contents), branches), (None, None, 3))


def _random_part(windows: reading.RandomWindows, place: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    def draw(place: np.ndarray, size: np.ndarray) -> np.ndarray:
        return windows(place[None], size[None, :2])[0]

    return tf.ensure_shape(tf.numpy_function(draw, [place, size], tf.int32, stateful=False), (4,))


def _images(
    function: Callable[..., np.ndarray], arguments: Sequence[tf.Tensor], shape: Sequence[int | None]
) -> tf.Tensor:
    """A batch that a Python function makes."""
    return tf.ensure_shape(tf.numpy_function(function, arguments, tf.uint8), shape)

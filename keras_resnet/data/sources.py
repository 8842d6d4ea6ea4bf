"""Where labelled images come from: the embedded digits, class folders, TensorFlow Datasets.

A source gives two splits. A split knows its labels and yields batches of raw uint8 pixels in the
network's size; augmentation and preprocessing come after it, in `pipeline`.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib.resources
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.preprocessing import BadImageError, Preprocessing, read_image

# Decoded images are kept in memory while a split fits into this many bytes, so that only the first
# epoch decodes. CIFAR-10 takes 0.18 GB at 32 x 32 pixels.
_CACHE_BYTES = 1 << 30

# TFDS streams; this many examples are shuffled at a time.
_SHUFFLE_BUFFER = 10_000


class DataError(ValueError):
    """A source of images that is not what it should be; the message names the path."""


class Split(abc.ABC):
    """Some of the labelled images of a source.

    Attributes:
        examples: how many there are.
    """

    examples: int

    @abc.abstractmethod
    def batches(
        self,
        batch_size: int,
        shape: tuple[int, int, int],
        preprocessing: Preprocessing,
        *,
        shuffle: Sequence[int] | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        """Raw pixels in the network's size.

        Args:
            batch_size: examples per batch.
            shape: `(height, width, channels)` to fit the images to.
            preprocessing: says how to resize and crop; its mean and std are not applied here.
            shuffle: seeds of the order, e.g. `(seed, epoch)`; None for the order of the source.
            drop_remainder: leave out the examples that do not fill a batch.

        Returns:
            A data set of (uint8 `(batch, height, width, channels)`, int32 `(batch,)`).
        """

    def take(
        self, count: int, shape: tuple[int, int, int], preprocessing: Preprocessing, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random sample: uint8 images `(count, h, w, c)` and int32 labels, at most all."""
        if count < 1:
            raise ValueError(f"Argument `count` must be a positive integer. Received: {count}")
        chosen = self.batches(min(count, self.examples), shape, preprocessing, shuffle=(seed, 0))
        with self.own_errors():
            images, labels = next(iter(chosen.take(1)))
        return images.numpy(), labels.numpy()

    @contextlib.contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raises what went wrong while reading, instead of TensorFlow's report of it."""
        try:
            yield
        except tf.errors.OpError:
            self._check_error()
            raise

    def _check_error(self) -> None:  # noqa: B027, most splits have nothing to say
        """Raises what went wrong inside the pipeline, which TensorFlow only reports as text."""


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A source: two splits, the names of the classes, and what was left out.

    Attributes:
        name: the name it was loaded by.
        train: what to learn from.
        test: what to measure on.
        class_names: in the order of the labels.
        bad_images: files that `skip_bad_images` left out.
        reload: arguments with which `load` gives the same again, or None if it cannot.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    bad_images: tuple[str, ...] = ()
    reload: dict[str, Any] | None = None


def load(name: str, *, skip_bad_images: bool = False, seed: int = 0) -> ImageData:
    """Loads a source by its name.

    Args:
        name: `"digits"`, `"folder:PATH"` or `"tfds:NAME"`.
        skip_bad_images: decode every file of a folder first and leave out those that are no
            images; they are listed in `ImageData.bad_images`.
        seed: of the split, where a folder has no `train/` and `test/` of its own.

    Raises:
        DataError: if the source is not what it should be.
        ValueError: if there is no such source.
    """
    kind, _, rest = name.partition(":")
    if name == "digits":
        return dataclasses.replace(_digits(), reload={"name": name})
    if kind == "folder" and rest:
        root = Path(rest).expanduser()
        again = {"name": f"folder:{root.resolve()}", "skip_bad_images": skip_bad_images}
        found = _folder(name, root, skip_bad_images, seed)
        return dataclasses.replace(found, reload={**again, "seed": seed})
    if kind == "tfds" and rest:
        return dataclasses.replace(_tfds(name, rest), reload={"name": name})
    raise ValueError(
        "Argument `data` must be 'digits', 'folder:PATH' (a directory with a directory of images "
        f"per class) or 'tfds:NAME' (a data set of TensorFlow Datasets). Received: {name!r}"
    )


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
    name: str = "arrays",
) -> ImageData:
    """A source of one's own: (uint8 images `(n, h, w, c)`, integer labels `(n,)`) twice.

    Raises:
        ValueError: if the arrays do not fit together.
    """
    splits = []
    for argument, (images, labels) in {"train": train, "test": test}.items():
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
            raise ValueError(
                f"Argument `{argument}` must hold uint8 images (n, height, width, channels). "
                f"Received: dtype={images.dtype}, shape={images.shape}"
            )
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"Argument `{argument}` must hold one integer label per image. Received: "
                f"dtype={labels.dtype}, shape={labels.shape} for {len(images)} images"
            )
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(
                f"Argument `{argument}` must hold labels 0..{len(class_names) - 1}, one for each "
                f"of `class_names`. Received: {labels.min()}..{labels.max()}"
            )
        splits.append(IndexedSplit(labels, images.__getitem__))
    return ImageData(name, splits[0], splits[1], tuple(class_names))


class IndexedSplit(Split):
    """Images that can be had by number, e.g. files or an array.

    A whole epoch is one random permutation, made from the seeds alone, so that the order of the
    examples does not depend on the machine, the number of threads or what was read before.
    """

    def __init__(self, labels: np.ndarray, read: Callable[[int], Any]):
        self.labels = np.asarray(labels, dtype=np.int32)
        self.examples = len(self.labels)
        self._read = read
        self._caches: dict[Any, _Cache] = {}
        self._error: Exception | None = None

    def batches(
        self,
        batch_size: int,
        shape: tuple[int, int, int],
        preprocessing: Preprocessing,
        *,
        shuffle: Sequence[int] | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        order = np.arange(self.examples)
        if shuffle is not None:
            order = np.random.default_rng(list(shuffle)).permutation(self.examples)
        cache = self._cache(shape, preprocessing)

        def read_batch(indices: np.ndarray) -> np.ndarray:
            try:
                return cache.get(indices)
            except Exception as error:
                self._error = error
                raise

        def to_batch(indices: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images = tf.numpy_function(read_batch, [indices], tf.uint8, stateful=False)
            return tf.ensure_shape(images, (None, *shape)), labels

        indices = tf.data.Dataset.from_tensor_slices((order, self.labels[order]))
        grouped = indices.batch(batch_size, drop_remainder=drop_remainder)
        fixed = batch_size if drop_remainder else None
        return grouped.map(to_batch, num_parallel_calls=tf.data.AUTOTUNE).map(
            lambda images, labels: (tf.ensure_shape(images, (fixed, *shape)), labels)
        )

    def _check_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _cache(self, shape: tuple[int, int, int], preprocessing: Preprocessing) -> _Cache:
        key = (shape, preprocessing.interpolation, preprocessing.crop)
        if key not in self._caches:

            def read(index: int) -> np.ndarray:
                return preprocessing.fit(self._read(index), shape[:2], shape[2])

            self._caches[key] = _Cache(read, self.examples, shape)
        return self._caches[key]


class _Cache:
    """Fitted images by number, kept once they were read if they fit into memory together."""

    def __init__(self, read: Callable[[int], np.ndarray], examples: int, shape: tuple[int, ...]):
        self._read = read
        self._shape = shape
        self._images: np.ndarray | None = None
        if examples * int(np.prod(shape)) <= _CACHE_BYTES:
            self._images = np.empty((examples, *shape), np.uint8)
            self._is_filled = np.zeros(examples, bool)

    def get(self, indices: np.ndarray) -> np.ndarray:
        if self._images is None:
            images = [self._read(int(i)) for i in indices]
            return np.stack(images) if images else np.empty((0, *self._shape), np.uint8)
        for i in indices[~self._is_filled[indices]]:
            self._images[i] = self._read(int(i))
            self._is_filled[i] = True
        return self._images[indices]


class StreamSplit(Split):
    """Images that come as a `tf.data` stream of (image, label), e.g. from TFDS.

    A shuffled epoch mixes `_SHUFFLE_BUFFER` examples at a time.
    """

    def __init__(self, examples: int, stream: Callable[[int | None], tf.data.Dataset]):
        self.examples = examples
        self._stream = stream

    def batches(
        self,
        batch_size: int,
        shape: tuple[int, int, int],
        preprocessing: Preprocessing,
        *,
        shuffle: Sequence[int] | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        def fit(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if image.shape != shape or preprocessing.crop != 1.0:
                image = tf.numpy_function(
                    lambda x: preprocessing.fit(x, shape[:2], shape[2]), [image], tf.uint8
                )
            return tf.ensure_shape(image, shape), tf.cast(label, tf.int32)

        seed = (
            None if shuffle is None else int(np.random.default_rng(list(shuffle)).integers(2**31))
        )
        examples = self._stream(seed)
        if seed is not None:
            examples = examples.shuffle(min(self.examples, _SHUFFLE_BUFFER), seed=seed)
        fitted = examples.map(fit, num_parallel_calls=tf.data.AUTOTUNE)
        return fitted.batch(batch_size, drop_remainder=drop_remainder)


def _digits() -> ImageData:
    """The embedded digits, enlarged from 8 x 8 grey levels 0..16 to 32 x 32 x 3 bytes.

    Every fifth image of a class is for testing: 1,442 to train and 355 to test.
    """
    archive = importlib.resources.files("keras_resnet.data").joinpath("digits.npz")
    with archive.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        small, labels = arrays["images"], arrays["labels"].astype(np.int32)
    grey = np.round(small * (255 / 16)).astype(np.uint8)
    to_size = Preprocessing()
    images = np.stack([to_size.fit(image, (32, 32)) for image in grey])
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[4::5]] = True
    return from_arrays(
        (images[~is_test], labels[~is_test]),
        (images[is_test], labels[is_test]),
        [str(digit) for digit in range(10)],
        name="digits",
    )


def _folder(name: str, root: Path, skip_bad_images: bool, seed: int) -> ImageData:
    if not root.is_dir():
        raise DataError(f"No such directory: {root}")
    train_root = root / "train"
    held_out = [root / split for split in ("test", "val") if (root / split).is_dir()]
    if train_root.is_dir() != bool(held_out):
        have, lacks = (train_root, "test or val") if not held_out else (held_out[0], "train")
        raise DataError(
            f"{root} has a directory {have.name!r} but none named {lacks!r}. Give both, or class "
            "directories alone, which are then split 80 to 20"
        )
    if held_out:
        class_names = tuple(d.name for d in _directories(train_root))
        splits = [_class_files(split, class_names) for split in (train_root, held_out[0])]
    else:
        class_names = tuple(d.name for d in _directories(root))
        splits = list(_split(_class_files(root, class_names), root, seed))
    bad = _find_bad([path for files in splits for path, _ in files], skip_bad_images)
    if bad and not skip_bad_images:
        path, reason = next(iter(bad.items()))
        more = f"; so are {len(bad) - 1} others" if len(bad) > 1 else ""
        raise DataError(
            f"Not an image that can be read: {path} ({reason}){more}. Remove it, or "
            "skip such files with skip_bad_images (--skip-bad-images)"
        )
    parts = []
    for files in splits:
        kept = [(path, label) for path, label in files if path not in bad]
        for label, class_name in enumerate(class_names):
            if not any(other == label for _, other in kept):
                raise DataError(f"No image of class {class_name!r} is left in {root}")
        labels = np.array([label for _, label in kept])
        parts.append(IndexedSplit(labels, [path for path, _ in kept].__getitem__))
    return ImageData(name, parts[0], parts[1], class_names, tuple(str(path) for path in bad))


def _directories(root: Path) -> list[Path]:
    found = sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    if len(found) < 2:
        raise DataError(
            f"{root} must hold one directory of images per class, at least two; it holds "
            f"{[d.name for d in found] or 'none'}"
        )
    return found


def _class_files(root: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    """(path, label) of every file, class by class; the directories must be the classes."""
    have = {d.name for d in _directories(root)}
    if have != set(class_names):
        odd = sorted(have ^ set(class_names))
        raise DataError(
            f"The classes of {root} differ from those of the training images: {odd[0]!r} is "
            f"{'only there' if odd[0] in have else 'missing there'}"
        )
    files = []
    for label, class_name in enumerate(class_names):
        directory = root / class_name
        of_class = sorted(
            path
            for path in directory.rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(directory).parts)
        )
        if not of_class:
            raise DataError(f"The class directory is empty: {directory}")
        files += [(path, label) for path in of_class]
    return files


def _split(
    files: list[tuple[Path, int]], root: Path, seed: int
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """80 % of every class to train and 20 % to test, at least one of each.

    The order is that of a hash of the seed and the file's name, so that a file that is added later
    leaves almost all others where they were.
    """

    def rank(file: tuple[Path, int]) -> bytes:
        text = f"{seed}:{file[0].relative_to(root).as_posix()}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    train, test = [], []
    for label in sorted({label for _, label in files}):
        members = sorted((file for file in files if file[1] == label), key=rank)
        if len(members) < 2:
            raise DataError(
                "A class needs at least two images, one to train and one to test; "
                f"{members[0][0].parent} has one"
            )
        held_out = max(1, round(0.2 * len(members)))
        test += sorted(members[:held_out])
        train += sorted(members[held_out:])
    return train, test


def _find_bad(paths: Sequence[Path], decode: bool) -> dict[Path, str]:
    """Files that are no images, with the reason.

    Reading the header finds files that are none; only decoding finds those that are cut short,
    and takes as long as an epoch's reading does.
    """
    from PIL import Image
    from rich.progress import track

    def problem(path: Path) -> str | None:
        try:
            if decode:
                read_image(path)
            else:
                Image.open(path).close()
        except (OSError, BadImageError, Image.DecompressionBombError) as error:
            return "empty file" if path.stat().st_size == 0 else str(error.__cause__ or error)
        return None

    def all_problems() -> Iterable[str | None]:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            yield from threads.map(problem, paths, chunksize=64)

    problems = track(
        all_problems(),
        description="Checking images",
        total=len(paths),
        transient=True,
        disable=len(paths) < 5_000,
        console=_stderr(),
    )
    return {path: reason for path, reason in zip(paths, problems, strict=True) if reason}


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _tfds(name: str, dataset: str) -> ImageData:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset)
    except tfds.core.registered.DatasetNotFoundError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"TensorFlow Datasets knows no data set {dataset!r}: {reason}") from None
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features):
        raise DataError(
            f"{name} is no image-classification data set: it must have the features 'image' and "
            f"'label', and has {sorted(features or ())}"
        )
    if not isinstance(features["label"], tfds.features.ClassLabel):
        raise DataError(
            f"{name} is no image-classification data set: its labels are "
            f"{type(features['label']).__name__}, not ClassLabel"
        )
    builder.download_and_prepare()
    splits = builder.info.splits
    held_out = next((s for s in ("test", "validation") if s in splits), None)
    if "train" not in splits or held_out is None:
        raise DataError(
            f"{name} must have a split 'train' and one of 'test' and 'validation'; it has "
            f"{sorted(splits)}"
        )

    def split(split_name: str) -> StreamSplit:
        def stream(seed: int | None) -> tf.data.Dataset:
            return builder.as_dataset(
                split=split_name,
                shuffle_files=seed is not None,
                read_config=tfds.ReadConfig(shuffle_seed=seed, interleave_cycle_length=16),
                as_supervised=False,
            ).map(lambda example: (example["image"], example["label"]))

        return StreamSplit(splits[split_name].num_examples, stream)

    return ImageData(name, split("train"), split(held_out), tuple(features["label"].names))

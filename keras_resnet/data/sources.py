"""Where labelled images come from: the embedded digits, class folders, TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet import imagenet
from keras_resnet.data.caching import check_policy
from keras_resnet.data.reading import DataError, Header, read_headers
from keras_resnet.data.splits import (
    SHUFFLE_BUFFER,
    SHUFFLE_BYTES,
    ArraySplit,
    FileSplit,
    Split,
    StreamSplit,
)
from keras_resnet.preprocessing import Preprocessing

# What TFDS cannot download by itself, from https://image-net.org for those who have registered.
_ARCHIVES = {"imagenet2012": "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"}


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


def load(
    name: str, *, skip_bad_images: bool = False, seed: int = 0, cache: str = "memory"
) -> ImageData:
    """Loads a source by its name.

    A folder's images are read in parallel, by TensorFlow where it decodes to the same bytes as
    Pillow. Of ImageNet, `"folder:PATH"` takes the usual directories, called by wnids; the data set
    `"tfds:imagenet2012"` has to be prepared by hand first, of which an error says how.

    Args:
        name: `"digits"`, `"folder:PATH"` or `"tfds:NAME"`.
        skip_bad_images: decode every file of a folder first and leave out those that are no
            images; they are listed in `ImageData.bad_images`.
        seed: of the split, where a folder has no `train/` and `test/` of its own.
        cache: what becomes of images once they are decoded and fitted to the network's size.
            `"memory"` keeps those of a split that takes up to 1 GiB; a data set of TFDS that is
            that small is read whole when it is first used, and its epochs are then permutations of
            everything. `"disk:DIRECTORY"` keeps them in a file, which is made before the first
            epoch and used again by every later process for as long as the source, the size and
            `Preprocessing` stay as they are. `"none"` reads them every time, as random resized
            crops do under each of these.

    Raises:
        DataError: if the source is not what it should be.
        ValueError: if there is no such source.
    """
    check_policy(cache)
    if cache.startswith("disk:"):
        cache = f"disk:{Path(cache.removeprefix('disk:')).expanduser().resolve()}"
    kept = {} if cache == "memory" else {"cache": cache}
    kind, _, rest = name.partition(":")
    if name == "digits":
        return dataclasses.replace(_digits(), reload={"name": name})
    if kind == "folder" and rest:
        root = Path(rest).expanduser()
        again = {"name": f"folder:{root.resolve()}", "skip_bad_images": skip_bad_images}
        found = _folder(name, root, skip_bad_images, seed, cache)
        return dataclasses.replace(found, reload={**again, "seed": seed, **kept})
    if kind == "tfds" and rest:
        return dataclasses.replace(_tfds(name, rest, cache), reload={"name": name, **kept})
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

    The labels to learn from may be shares of the classes instead, floating-point numbers
    `(n, classes)` of which each row sums to 1: what several people said of an image, or what
    another network did (Hinton et al. 2015). The accuracy that a training reports of its own
    images is then that of the largest share.

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
        if argument == "train" and labels.ndim == 2:
            _check_shares(labels, len(images), len(class_names))
            splits.append(ArraySplit(images, labels))
            continue
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
        splits.append(ArraySplit(images, labels))
    return ImageData(name, splits[0], splits[1], tuple(class_names))


def _check_shares(shares: np.ndarray, images: int, classes: int) -> None:
    """Refuses labels of training images that are no shares of the classes."""
    if shares.shape != (images, classes) or not np.issubdtype(shares.dtype, np.floating):
        raise ValueError(
            "Argument `train` must hold one integer label per image, or floating-point shares of "
            f"the classes, ({images}, {classes}). Received: dtype={shares.dtype}, "
            f"shape={shares.shape} for {images} images"
        )
    # Written so that a share that is no number is refused, too.
    wrong = ~((shares >= 0).all(axis=1) & (np.abs(shares.sum(axis=1) - 1) < 1e-3))
    if wrong.any():
        raise ValueError(
            "Argument `train` must hold shares of the classes from 0 on, which sum to 1 for each "
            f"image. Received: {shares[wrong][0].tolist()} for image {wrong.argmax()}"
        )


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


def _folder(name: str, root: Path, skip_bad_images: bool, seed: int, cache: str) -> ImageData:
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
    headers = _headers([path for files in splits for path, _ in files], skip_bad_images)
    parts = []
    for files in splits:
        kept = [(path, label) for path, label in files if path in headers]
        for label, class_name in enumerate(class_names):
            if not any(other == label for _, other in kept):
                raise DataError(f"No image of class {class_name!r} is left in {root}")
        parts.append(
            FileSplit(
                [str(path) for path, _ in kept],
                np.array([label for _, label in kept]),
                [headers[path] for path, _ in kept],
                cache,
            )
        )
    bad = tuple(str(path) for files in splits for path, _ in files if path not in headers)
    return ImageData(name, parts[0], parts[1], _readable(class_names), bad)


def _headers(paths: Sequence[Path], skip_bad_images: bool) -> dict[Path, Header]:
    """The headers of all files but bad ones, which are refused unless they are to be skipped."""
    read = dict(zip(paths, read_headers(paths, decode=skip_bad_images), strict=True))
    bad = {path: header for path, header in read.items() if isinstance(header, str)}
    if bad and not skip_bad_images:
        path, reason = next(iter(bad.items()))
        more = f"; so are {len(bad) - 1} others" if len(bad) > 1 else ""
        raise DataError(
            f"Not an image that can be read: {path} ({reason}){more}. Remove it, or "
            "skip such files with skip_bad_images (--skip-bad-images)"
        )
    return {path: header for path, header in read.items() if isinstance(header, Header)}


def _readable(directories: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes; those of ImageNet, where all directories are called by its wnids.

    The order stays: sorted by wnid is the order of the outputs of public checkpoints.
    """
    names = dict(imagenet.classes())
    if all(directory in names for directory in directories):
        return tuple(names[directory] for directory in directories)
    return directories


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


def _tfds(name: str, dataset: str, cache: str) -> ImageData:
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
    _prepare(builder, dataset)
    splits = builder.info.splits
    held_out = next((s for s in ("test", "validation") if s in splits), None)
    if "train" not in splits or held_out is None:
        raise DataError(
            f"{name} must have a split 'train' and one of 'test' and 'validation'; it has "
            f"{sorted(splits)}"
        )

    def split(split_name: str) -> StreamSplit:
        info = splits[split_name]

        def stream(seed: int | None) -> tf.data.Dataset:
            encoded = builder.as_dataset(
                split=split_name,
                decoders={"image": tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(
                    # TFDS would shuffle the files by a seed that it mixes with TensorFlow's own.
                    experimental_interleave_sort_fn=functools.partial(_shuffled, seed=seed),
                    interleave_cycle_length=16,
                    try_autocache=False,
                ),
            )
            return encoded.map(lambda example: (example["image"], example["label"]))

        mean_bytes = max(1, info.num_bytes // max(1, info.num_examples))
        buffer = min(SHUFFLE_BUFFER, SHUFFLE_BYTES // mean_bytes)
        identity = [builder.info.full_name, split_name, info.num_examples, info.num_bytes]
        return StreamSplit(info.num_examples, stream, buffer, cache, identity)

    return ImageData(name, split("train"), split(held_out), tuple(features["label"].names))


def _prepare(builder: Any, dataset: str) -> None:
    """Downloads a data set and brings it into TFDS's form, if that was not done before."""
    try:
        builder.download_and_prepare()
    except (AssertionError, OSError) as error:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        # TFDS raises AssertionError for an empty directory, and OSError for a missing archive.
        instructions = " ".join(str(builder.MANUAL_DOWNLOAD_INSTRUCTIONS).split())
        directory = builder.data_dir_root / "downloads" / "manual"
        raise DataError(
            f"tfds:{dataset} has to be downloaded by hand ({str(error).splitlines()[0]}). Put "
            f"{_ARCHIVES.get(builder.name, 'its archives')} into {directory} and run "
            f"`tfds build {dataset}`. TensorFlow Datasets says: {instructions}"
        ) from None


def _shuffled(files: list[Any], seed: int | None) -> list[Any]:
    if seed is None:
        return files
    return [files[i] for i in np.random.default_rng(seed).permutation(len(files))]

"""A network learns from what others say of the training images (Hinton et al. 2015).

    python examples/distill.py resnet56 --teachers a.keras b.keras cifar10/resnet20 \
        --data tfds:cifar10 --recipe paper-cifar --set epochs=10 --out runs/distilled

Several networks together name more images right than each of them alone, and cost as much as all of
them. The mean of their probabilities for a training image says more than its label: how much of a
cat there is in a dog. With these as the targets one network learns what the teachers know together.

The teachers see each training image once, as it is, before the first step; what they said is kept
in `shares.npz` of the run directory, and the same command goes on where it was stopped. Teachers
must have the classes and the input of the network that learns. All images are held in memory.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_resnet.quiet import import_tensorflow

import_tensorflow()

import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

import keras_resnet  # noqa: E402
from keras_resnet import data, training  # noqa: E402
from keras_resnet.files import atomic_file  # noqa: E402

BATCH = 500


def probabilities(teachers: Sequence[Any], images: np.ndarray, what: str) -> np.ndarray:
    """The mean of what the teachers say of raw images: float32 `(n, classes)`."""
    parts = []
    starts = range(0, len(images), BATCH)
    for start in track(starts, what, console=Console(stderr=True), transient=True):
        batch = images[start : start + BATCH].astype("float32")
        said = [np.asarray(t(t.preprocessing(batch), training=False)) for t in teachers]
        parts.append(np.mean(said, axis=0))
    return np.concatenate(parts)


def load_teachers(
    names: Sequence[str], source: data.ImageData, shape: tuple[int, ...]
) -> list[Any]:
    """The networks that teach.

    Raises:
        ValueError: if one has other classes or another input than the network that learns.
    """
    teachers = [keras_resnet.from_pretrained(name) for name in names]
    for name, teacher in zip(names, teachers, strict=True):
        if tuple(teacher.class_names or ()) != tuple(source.class_names):
            raise ValueError(
                f"{name} cannot teach {source.name}: its classes are {teacher.class_names}, "
                f"not {source.class_names}"
            )
        if tuple(teacher.input_shape[1:]) != shape:
            raise ValueError(f"{name} sees {teacher.input_shape[1:]}, what learns sees {shape}")
    return teachers


def taught(
    images: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    teachers: Sequence[Any],
    path: Path,
) -> np.ndarray:
    """What the teachers say of the training images, from the file if they said it before.

    Raises:
        ValueError: if the file is of other teachers or other images.
    """
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            before, shares = file["teachers"].tolist(), file["shares"]
            if before != list(names) or not np.array_equal(file["labels"], labels):
                raise ValueError(
                    f"{path} is what {', '.join(before)} said of {len(shares)} images. Name these "
                    "teachers and the same data to go on, or another --out"
                )
        return shares
    shares = probabilities(teachers, images, "Teaching")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, teachers=np.array(names), labels=labels, shares=shares)
    return shares


def main(arguments: Sequence[str] | None = None) -> None:
    """Asks the teachers, trains on what they said, and measures all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="NAME", help="what learns; see keras-resnet list")
    parser.add_argument(
        "--teachers", nargs="+", required=True, metavar="NAME", help="files, or cifar10/resnet20"
    )
    parser.add_argument("--weights", help="where what learns begins; default: at random")
    parser.add_argument("--data", default="digits", help="digits, folder:PATH or tfds:NAME")
    parser.add_argument("--recipe", default="small", help="see the README; default: small")
    parser.add_argument("--set", nargs="+", default=(), metavar="FIELD=VALUE", dest="changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the run directory")
    options = parser.parse_args(arguments)

    def build() -> Any:
        names = source.class_names
        model = keras_resnet.create_model(options.model, classes=len(names), class_names=names)
        if options.weights:
            keras_resnet.load_weights(model, options.weights)
        return model

    try:
        recipe = training.get_recipe(options.recipe).replace(options.changes)
        source = data.load(options.data)
        size = keras_resnet.get_architecture(options.model).input_size
        shape, whole = (size, size, 3), keras_resnet.Preprocessing()
        teachers = load_teachers(options.teachers, source, shape)
        tested = source.test.take(source.test.examples, shape, whole)
        together = probabilities(teachers, tested[0], "Measuring the teachers")
        right = (together.argmax(axis=1) == tested[1]).mean()
        print(f"the teachers together: {right:.2%} of {len(tested[1])} test images", flush=True)
        images, labels = source.train.take(source.train.examples, shape, whole)
        shares = taught(images, labels, options.teachers, teachers, options.out / "shares.npz")
        lessons = data.from_arrays((images, shares), tested, source.class_names, source.name)
        training.fit(build, lessons, recipe, run_dir=options.out, seed=options.seed, resume=True)
    except training.Interrupted as interruption:
        sys.exit(f"{interruption}; the same command goes on from there")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

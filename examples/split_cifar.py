"""Lays out CIFAR-10 images for training on coded ones and measuring on original ones.

    python examples/split_cifar.py cifar10_jpeg cifar10_png_4000 --out cifar

The first directory holds `train/CLASS/0123.jpg` and `test/CLASS/0123.jpg`; the second, as
`CLASS/20123.png`, some of the training images with their original pixels, numbered through all
classes. Those are left out of the training altogether, in either form; every other one serves to
choose between networks, and the rest to report on what was chosen. Three data sources come out,
which share their training images and differ in what they test on:

    folder:cifar/jpeg      the test images, coded
    folder:cifar/choose    original pixels, to choose by
    folder:cifar/report    original pixels, to report on

Images are linked, not copied.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from keras_resnet.files import atomic_directory


def left_out(originals: Path, classes: Sequence[str], per_class: int) -> dict[str, list[Path]]:
    """The original images of each class, by their number in it."""
    found = {}
    for index, name in enumerate(classes):
        paths = sorted((originals / name).glob("*.png"))
        numbers = [int(path.stem) - index * per_class for path in paths]
        if not paths or not 0 <= numbers[0] <= numbers[-1] < per_class:
            raise ValueError(
                f"{originals / name} must hold images numbered from {index * per_class:05}"
            )
        found[name] = paths
    return found


def lay_out(coded: Path, originals: Path, out: Path) -> dict[str, int]:
    """Makes the directories; returns the number of images of each part."""
    classes = sorted(path.name for path in (coded / "train").iterdir() if path.is_dir())
    counts = {name: len(list((coded / "train" / name).glob("*.jpg"))) for name in classes}
    if len(set(counts.values())) != 1:
        raise ValueError(f"Classes must have as many images as each other. Received: {counts}")
    per_class = counts[classes[0]]
    kept = left_out(originals, classes, per_class)
    parts = dict.fromkeys(("train", "jpeg", "choose", "report", "recoded"), 0)

    with atomic_directory(out, marker="train") as directory:

        def link(image: Path, part: str, *where: str) -> None:
            target = directory.joinpath(*where) / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(image.resolve())
            parts[part] += 1

        for index, name in enumerate(classes):
            numbers = {int(path.stem) - index * per_class for path in kept[name]}
            for image in sorted((coded / "train" / name).glob("*.jpg")):
                if int(image.stem) not in numbers:
                    link(image, "train", "train", name)
            for image in sorted((coded / "test" / name).glob("*.jpg")):
                link(image, "jpeg", "jpeg", "test", name)
            for image in kept[name]:
                part = "report" if parts["choose"] > parts["report"] else "choose"
                link(image, part, part, "test", name)
                if part == "report":
                    again = f"{int(image.stem) - index * per_class:04}.jpg"
                    link(coded / "train" / name / again, "recoded", "recoded", "test", name)
        for part in ("jpeg", "choose", "report", "recoded"):
            (directory / part / "train").symlink_to(Path("..", "train"))
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    """Lays out, and says what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("coded", type=Path)
    parser.add_argument("originals", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        parts = lay_out(options.coded, options.originals, options.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for part, count in parts.items():
        print(f"{part:8} {count:,}")


if __name__ == "__main__":
    main()

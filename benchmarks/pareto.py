"""The pictures to choose a network by: accuracy against latency and size.

    python benchmarks/pareto.py --evaluation folder:cifar/report --out docs/choosing

`cifar10.png` shows the networks of `weights="cifar10"` in every scheme, with the accuracy of the
exported file on the evaluation images (test split). `imagenet.png` shows builders for ImageNet with
random weights, so without an accuracy: latency and size do not depend on what a network has
learned. Nothing is verified there, for want of anything to agree about. A `.json` beside each
picture has the figures. One thread, one image at a time, all files taking turns.

Do it on a machine that does nothing else; the load before it began is among the figures.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from inference import untrained_file

from keras_resnet import export, from_pretrained
from keras_resnet.export.pareto import draw
from keras_resnet.files import atomic_file
from keras_resnet.weights import calibration_images
from keras_resnet.weights.catalog import CIFAR10_FILES

IMAGENET = (
    *("resnet18", "resnet34", "resnet50", "resnet50_v1_5", "resnet50d", "resnetblur50"),
    *("seresnet50", "ecaresnet50d", "resnetrs50", "resnext50_32x4d", "wide_resnet50_2"),
    *("resnet101", "resnet152"),
)
IMAGENET_SCHEMES = ("float32", "int8")
PICTURES = ("cifar10", "imagenet")


def cifar10(directory: Path, evaluation: str) -> dict[Path, str]:
    """A verified bundle of every network and scheme, and the network's name."""
    paths = {}
    for name in CIFAR10_FILES:
        model = from_pretrained(f"cifar10/{name}")
        calibration = calibration_images(f"cifar10/{name}")
        for scheme in export.SCHEMES:
            path = directory / f"{name}-{scheme}"
            export.to_tflite(model, path, scheme, calibration=calibration, evaluation=evaluation)
            paths[path] = name
    return paths


def imagenet(directory: Path) -> dict[Path, str]:
    """A file of every network and scheme, and the network's name."""
    paths = {}
    for name in IMAGENET:
        for scheme in IMAGENET_SCHEMES:
            path = directory / f"{name}-{scheme}.tflite"
            untrained_file(name, scheme, path)
            paths[path] = name
    return paths


def keep(measured: export.Benchmark, names: Iterable[str], out: Path) -> None:
    """The picture and the figures, and a table to read."""
    named = zip(measured.measurements, names, strict=True)
    measurements = tuple(
        dataclasses.replace(each, network=name, name=each.name.removesuffix(".tflite"))
        for each, name in named
    )
    measured = dataclasses.replace(measured, measurements=measurements)
    draw(measured, out.with_suffix(".png"))
    with atomic_file(out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(measured.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(measured)


def main() -> None:
    """Measures both kinds, one after the other, or the one that is asked for."""
    parser = argparse.ArgumentParser(description="Draw accuracy against latency and size.")
    parser.add_argument("--pictures", nargs="+", choices=PICTURES, default=PICTURES)
    parser.add_argument("--evaluation", help="data source of CIFAR-10's classes, for cifar10")
    parser.add_argument("--out", type=Path, required=True, help="directory of the pictures")
    parser.add_argument("--seconds", type=float, default=10, help="of each file; default: 10")
    parser.add_argument("--queries", type=int, default=64, help="of each file; default: 64")
    options = parser.parse_args()
    if "cifar10" in options.pictures and not options.evaluation:
        parser.error("cifar10 needs --evaluation, e.g. folder:cifar/report; or --pictures imagenet")
    options.out.mkdir(parents=True, exist_ok=True)
    for picture in options.pictures:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            files = (
                cifar10(directory, options.evaluation)
                if picture == "cifar10"
                else imagenet(directory)
            )
            measured = export.benchmark(
                list(files), seconds=options.seconds, queries=options.queries
            )
            keep(measured, files.values(), options.out / picture)


if __name__ == "__main__":
    main()

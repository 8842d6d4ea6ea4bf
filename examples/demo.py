"""The main job, end to end: train, quantize, verify, classify.

    python examples/demo.py [--out runs/demo]

Trains a ResNet-20 on the embedded handwritten digits, exports it in float32 and int8, verifies both
files against the network that they came from, and names three test images with the int8 one. Then
it exports the ResNet-20 that comes with the package, trained on CIFAR-10, and shows it pictures.
About two minutes on two cores.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_resnet.quiet import held_back_stderr, import_tensorflow

import_tensorflow()

import keras  # noqa: E402
from pictures import write_pictures  # noqa: E402
from PIL import Image  # noqa: E402

import keras_resnet  # noqa: E402
from keras_resnet import data, export, training  # noqa: E402
from keras_resnet.weights import calibration_images  # noqa: E402


def main() -> None:
    """Does the main job."""
    parser = argparse.ArgumentParser(description="Train, quantize, verify, classify.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory to write")
    out = parser.parse_args().out
    if out.exists() and not (out / "run" / "run.json").exists() and any(out.iterdir()):
        parser.error(f"{out} is not a directory of this demo; choose another --out")
    for name in ("run", "float32", "int8", "images", "cifar10", "pictures"):
        shutil.rmtree(out / name, ignore_errors=True)

    digits = data.load("digits")
    print(f"1. Training ResNet-20 on {digits.train.examples} handwritten digits")
    started = time.perf_counter()
    result = training.fit(keras_resnet.ResNet20, digits, "digits", run_dir=out / "run")
    print(f"   {time.perf_counter() - started:.0f} s")

    print("2. Exporting and verifying")
    bundles = {}
    for scheme in ("float32", "int8"):
        with held_back_stderr():
            bundles[scheme] = export.to_tflite(
                result.model, out / scheme, scheme, calibration=digits, evaluation=digits
            )
        print(indent(str(bundles[scheme].verification)))

    print("3. Naming three test images with the int8 file")
    with held_back_stderr():
        classifiers = {
            scheme: export.Classifier(bundle, threads=1) for scheme, bundle in bundles.items()
        }
    images, labels = digits.test.take(3, (32, 32, 3), keras_resnet.Preprocessing(), seed=2)
    (out / "images").mkdir()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = out / "images" / f"{number}_is_a_{label}.png"
        Image.fromarray(image).save(path)
        (named, probability), *_ = classifiers["int8"](path)
        print(f"   {path}: {named} ({probability:.1%})")

    print("4. Side by side")
    print_table(out, result.model, digits, bundles, classifiers, images[0])

    print("5. Naming pictures with a network that was trained on CIFAR-10")
    with held_back_stderr():
        bundle = export.to_tflite(
            keras_resnet.ResNet20(weights="cifar10"),
            out / "cifar10",
            "int8",
            calibration=calibration_images("cifar10"),
        )
        classifier = export.Classifier(bundle)
    for path in write_pictures(out / "pictures"):
        (named, probability), *_ = classifier(path)
        print(f"   {path}: {named} ({probability:.1%})")


def print_table(
    out: Path, model: Any, digits: Any, bundles: Any, classifiers: Any, image: Any
) -> None:
    """Accuracy, size and time of the Keras model and of each bundle."""
    pixels = model.preprocessing(image[None])
    times = milliseconds(
        {
            "keras": lambda: model.predict_on_batch(pixels),
            **{
                scheme: lambda c=classifier: c.probabilities(image[None])
                for scheme, classifier in classifiers.items()
            },
        }
    )
    keras_file = out / "run" / "model.keras"
    rows = [("keras", training.evaluate(model, digits).accuracy, keras_file)]
    for scheme, bundle in bundles.items():
        rows.append((scheme, bundle.verification.accuracy.exported_accuracy, bundle.model_path))
    print(f"   {'':8} {'accuracy':>9} {'bytes':>10} {'ms/image':>9}  file")
    for name, accuracy, path in rows:
        size = path.stat().st_size
        print(f"   {name:8} {accuracy:9.2%} {size:10,} {times[name]:9.2f}  {path}")
    print(f"   Keras {keras.__version__}; one image at a time, LiteRT on one thread.")


def milliseconds(calls: dict[str, Callable[[], Any]], rounds: int = 100) -> dict[str, float]:
    """Median time of each call, taken in turns so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def indent(text: str) -> str:
    """Every line three columns to the right."""
    return "\n".join(f"   {line}" for line in text.splitlines())


if __name__ == "__main__":
    main()

"""Exporting ResNet-50 to int8, beside plain TFLiteConverter: time, memory and agreement.

    python benchmarks/export.py [--rounds 3] [--images SOURCE] [--model FILE.keras] [--json]

Every conversion is a process of its own, with the clock started once everything is imported and the
network is loaded; the two contenders take turns, so that both see the same machine. Both get the
same network and the same 100 calibration images. Agreement is measured on held-out images against
the float network: on how many of them the same class is named, and how much of the probability
moved to another class.

Without `--model`, the network is a ResNet-50 with random weights, batch statistics of the
calibration images, the last scale of every block at a quarter (as zero-initialized scales are early
in a training), and a head that spreads the classes over the images. Untrained logits lie close
together, so that agreement on them is lower than on a trained network's. `--images` is a data
source; its images are fitted to the network's input, 224 x 224 of the untrained one. On a busy
machine the ratio of the processors' times is steadier than that of the clock's.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTENDERS = ("keras_resnet", "TFLiteConverter")
SIZE = (224, 224, 3)
DIRECTIONS = 8  # in which an untrained network's features are told apart


def convert_here(contender: str, model_path: Path, images_path: Path, out: Path) -> None:
    """Converts once and prints seconds and MiB; runs in a process of its own."""
    import numpy as np
    import tensorflow as tf

    import keras_resnet
    from keras_resnet.export import SCHEMES
    from keras_resnet.export.calibration import Calibration
    from keras_resnet.export.conversion import convert
    from keras_resnet.export.source import SourceNetwork

    model = keras_resnet.load_model(model_path)
    images = np.load(images_path)
    started, cpu_started = time.perf_counter(), time.process_time()
    if contender == "keras_resnet":
        network = SourceNetwork(model, model.preprocessing)
        content = convert(network, SCHEMES["int8"], Calibration(images, "benchmark"))
    else:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        values = model.preprocessing(images)
        converter.representative_dataset = lambda: ([value[None]] for value in values)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        content = converter.convert()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    out.write_bytes(content)
    figures = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mib": peak_mib(),
        "bytes": len(content),
    }
    print(json.dumps(figures))


def peak_mib() -> float:
    """The most memory that this process had; `getrusage` counts the parent's in."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def measure(contender: str, *paths: Path) -> dict[str, float]:
    """The figures of a conversion in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--contender", contender, *map(str, paths)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def untrained(images):
    """A ResNet-50 that tells these images apart, without having been trained."""
    import keras
    import numpy as np

    import keras_resnet

    keras.utils.set_random_seed(0)
    model = keras_resnet.create_model("resnet50")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            if layer.name.endswith(
                "norm3"
            ):  # residuals that are small beside what they are added to
                layer.gamma.assign(0.25 * keras.ops.ones_like(layer.gamma))
    model(model.preprocessing(images[:32]), training=True)
    pooled = keras.Model(model.inputs, model.get_layer("logits").input)
    features = pooled.predict(model.preprocessing(images), verbose=0)
    mean = features.mean(axis=0)
    # Along the directions in which the images differ most; the others hold rounding errors alone.
    _, strengths, directions = np.linalg.svd(features - mean, full_matrices=False)
    mixed = np.random.default_rng(0).normal(size=(DIRECTIONS, 1000)) / strengths[:DIRECTIONS, None]
    kernel = directions[:DIRECTIONS].T @ mixed
    kernel *= 3 / np.std((features - mean) @ kernel)
    model.get_layer("logits").set_weights([kernel, -mean @ kernel])
    return model


def in_float32(model):
    """The same network without mixed precision, which TFLiteConverter does not take."""
    import keras_resnet

    plain = keras_resnet.create_model(
        model.architecture,
        input_shape=model.input_shape[1:],
        classes=model.output_shape[-1],
        preprocessing=model.preprocessing,
    )
    plain.set_weights(model.get_weights())
    return plain


def agreement(file: Path, images, expected, preprocessing) -> dict[str, float]:
    """How a file's probabilities compare with the float network's."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=os.cpu_count())
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    takes_pixels = source["dtype"] == np.uint8
    interpreter.allocate_tensors()
    rows = []
    for image in images[:, None]:
        values = image if takes_pixels else preprocessing(image)
        interpreter.set_tensor(source["index"], values)
        interpreter.invoke()
        rows.append(interpreter.get_tensor(target["index"])[0])
    actual = np.stack(rows)
    return {
        "top1_agreement": float((actual.argmax(1) == expected.argmax(1)).mean()),
        "total_variation": float(np.abs(actual - expected).sum(1).mean() / 2),
    }


def main() -> None:
    """Measures in turns and prints medians."""
    parser = argparse.ArgumentParser(description="Export to int8 beside TFLiteConverter.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", default="digits", help="data source; default: digits")
    parser.add_argument("--model", type=Path, help="a .keras file of ours")
    parser.add_argument("--calibration-count", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contender", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        contender, *paths = options.contender
        convert_here(contender, *map(Path, paths))
        return

    import numpy as np

    import keras_resnet
    from keras_resnet import data

    source, preprocessing = data.load(options.images), keras_resnet.Preprocessing()
    given = in_float32(keras_resnet.load_model(options.model)) if options.model else None
    size = given.input_shape[1:] if given else SIZE
    images, _ = source.train.take(options.calibration_count, size, preprocessing)
    model = given or untrained(images)
    held_out, _ = source.test.take(options.held_out, size, model.preprocessing)
    expected = model.predict(model.preprocessing(held_out), verbose=0)

    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model.save(root / "model.keras")
        np.save(root / "images.npy", images)
        for _ in range(options.rounds):
            for name in CONTENDERS:
                paths = (root / "model.keras", root / "images.npy", root / f"{name}.tflite")
                figures[name].append(measure(name, *paths))
        quality = {
            name: agreement(root / f"{name}.tflite", held_out, expected, model.preprocessing)
            for name in CONTENDERS
        }
    ratios = {
        key: [a[key] / b[key] for a, b in zip(*figures.values(), strict=True)]
        for key in ("seconds", "cpu_seconds", "peak_mib")
    }
    if options.json:
        print(json.dumps({"rounds": figures, "agreement": quality, "ratios": ratios}))
        return
    for name in CONTENDERS:
        seconds = statistics.median(figure["seconds"] for figure in figures[name])
        cpu = statistics.median(figure["cpu_seconds"] for figure in figures[name])
        peak = statistics.median(figure["peak_mib"] for figure in figures[name])
        print(
            f"{name:16} {seconds:6.1f} s ({cpu:.1f} s of processors)  peak {peak:6.0f} MiB  "
            f"{figures[name][0]['bytes']:,} bytes  "
            f"top-1 agreement {quality[name]['top1_agreement']:.1%}  "
            f"total variation {quality[name]['total_variation']:.3f}"
        )
    for key, values in ratios.items():
        print(
            f"{key}, keras_resnet / TFLiteConverter: {statistics.median(values):.2f} "
            f"[{min(values):.2f}, {max(values):.2f}], {len(values)} rounds"
        )


if __name__ == "__main__":
    main()

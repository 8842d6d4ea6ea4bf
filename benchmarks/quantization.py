"""Which calibration pays: int8 networks by number of images and by method, on a trained network.

    python benchmarks/quantization.py RUN_OR_FILE.keras --data SOURCE [--images N] [--json]

The network is converted to float32 once, and quantized in many ways from images of the training
split. Each file is compared with the float one on the test split: accuracy, the share of the images
on which both name the same class, and the share of the probability that moved to another class.
Every way is repeated with other calibration images (`--seeds`); the spread is that of the repeats.

The methods, for the activations: `min-max`; `percentile`, which cuts that share of a tensor's
values; `mse`, the range whose squared rounding and clipping errors are least on samples; `average`,
the mean of the images' own extremes (as moving averages give). `bias` stands for corrected biases,
and `TFLiteConverter` for its own calibration and quantization.
"""

import argparse
import dataclasses
import json
import os
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_resnet
from keras_resnet import data
from keras_resnet.export.conversion import convert_float
from keras_resnet.export.flatbuffer import with_all_outputs
from keras_resnet.export.quantizer import Observation, Options, observe, rewrite
from keras_resnet.export.runtime import Runner
from keras_resnet.export.source import SourceNetwork

BATCH = 50
COUNTS = (5, 10, 25, 50, 100, 200, 500)
SAMPLES = 1000  # values of a tensor that are kept of every image


def sampled(content: bytes, images: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Of every tensor: random values `(n, SAMPLES)`, and each image's extremes `(n, 2)`."""
    rng = np.random.default_rng(0)
    interpreter = Interpreter(
        model_content=with_all_outputs(content)[0], num_threads=os.cpu_count()
    )
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    numbers = [detail["index"] for detail in interpreter.get_output_details()]
    values: dict[int, list[np.ndarray]] = {i: [] for i in numbers}
    for image in images:
        interpreter.set_tensor(source["index"], image[None].astype(np.float32))
        interpreter.invoke()
        for i in numbers:
            flat = interpreter.get_tensor(i).reshape(-1)
            drawn = flat[rng.integers(0, flat.size, SAMPLES)]
            values[i].append(np.concatenate([drawn, [flat.min(), flat.max()]]))
    stacked = {i: np.stack(rows) for i, rows in values.items()}
    return {i: (rows[:, :-2], rows[:, -2:]) for i, rows in stacked.items()}


def percentile(share: float) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
    """Ranges without so much of the values, half of it at each end."""

    def choose(values: np.ndarray, _: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(values, [share / 2, 1 - share / 2])
        return float(low), float(high)

    return choose


def average(_: np.ndarray, extremes: np.ndarray) -> tuple[float, float]:
    """The mean of the images' own ranges."""
    return float(extremes[:, 0].mean()), float(extremes[:, 1].mean())


def least_squares(values: np.ndarray, extremes: np.ndarray) -> tuple[float, float]:
    """The part of the full range whose errors are least."""
    low, high = min(0.0, extremes[:, 0].min()), max(0.0, extremes[:, 1].max())
    errors = {}
    for part in np.linspace(0.3, 1, 36):
        scale = max(part * (high - low) / 255, 1e-12)
        grid = np.clip(np.round(values / scale), np.round(part * low / scale),
                       np.round(part * high / scale))  # fmt: skip
        errors[float(part)] = float(np.square(grid * scale - values).mean())
    best = min(errors, key=lambda part: errors[part])
    return best * low, best * high


RANGES: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, float]]] = {
    "percentile 0.01 %": percentile(1e-4),
    "percentile 0.1 %": percentile(1e-3),
    "mse": least_squares,
    "average": average,
}


class Comparison:
    """Quantizes one network in many ways, and measures each."""

    def __init__(self, model: Any, source: Any, count: int):
        self.source, self.preprocessing = source, model.preprocessing
        self.network = SourceNetwork(model, model.preprocessing)
        self.shape = self.network.shape
        self.single = convert_float(self.network)
        self.batched = convert_float(self.network, batch=BATCH)
        self.images, self.labels = source.test.take(count, self.shape, self.preprocessing)
        self.expected = Runner(self.batched, threads=os.cpu_count())(self.images)

    def calibration(self, count: int, seed: int) -> np.ndarray:
        """Images of the training split."""
        return self.source.train.take(count, self.shape, self.preprocessing, seed=seed)[0]

    def measure(self, observed: dict[int, Observation], **options: Any) -> dict[str, float]:
        """The figures of the file that these observations give."""
        # Both files have the same tensors in the same order: only the batch is another.
        return self.figures(rewrite(self.batched, observed, Options(**options)))

    def figures(self, content: bytes) -> dict[str, float]:
        """The figures of a file."""
        actual = Runner(content, threads=os.cpu_count())(self.images)
        return {
            "accuracy": float((actual.argmax(1) == self.labels).mean()),
            "agreement": float((actual.argmax(1) == self.expected.argmax(1)).mean()),
            "moved": float(np.abs(actual - self.expected).sum(1).mean() / 2),
        }

    def ways(self, count: int, seed: int) -> dict[str, dict[str, float]]:
        """Every method on the same images."""
        images = self.calibration(count, seed)
        observed, samples = observe(self.single, images), sampled(self.single, images)
        found = {
            "min-max": self.measure(observed, correct_bias=False),
            "min-max, bias": self.measure(observed),
            "min-max, bias, one scale for the dense layer": self.measure(
                observed, per_channel_dense=False
            ),
        }
        for name, choose in RANGES.items():
            changed = {}
            for i, seen in observed.items():
                low, high = choose(*samples[i])
                changed[i] = dataclasses.replace(seen, minimum=low, maximum=high)
            found[f"{name}, bias"] = self.measure(changed)
        found["TFLiteConverter"] = self.figures(self.plain(images))
        return found

    def plain(self, images: np.ndarray) -> bytes:
        """What TFLiteConverter makes of the network, preprocessing and softmax included."""
        signature = tf.TensorSpec((1, *self.shape), tf.float32)
        function = tf.function(self.network.probabilities).get_concrete_function(signature)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images.astype("f4"))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return bytes(converter.convert())


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Median, smallest and largest of every figure."""
    return {
        key: [statistics.median(values), min(values), max(values)]
        for key in runs[0]
        if (values := [run[key] for run in runs])
    }


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description="Calibration methods on a trained network.")
    parser.add_argument("model", help="a .keras file of ours")
    parser.add_argument("--data", required=True, help="data source that it was trained on")
    parser.add_argument("--images", type=int, default=10_000, help="of the test split, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    source = data.load(options.data)
    comparison = Comparison(keras_resnet.load_model(options.model), source, options.images)
    exact = float((comparison.expected.argmax(1) == comparison.labels).mean())

    counts: dict[int, list[dict[str, float]]] = {count: [] for count in COUNTS}
    ways: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for count, runs in counts.items():
            observed = observe(comparison.single, comparison.calibration(count, seed))
            runs.append(comparison.measure(observed))
        for name, figures in comparison.ways(100, seed).items():
            ways.setdefault(name, []).append(figures)
    if options.json:
        print(json.dumps({"float32": exact, "counts": counts, "methods": ways}))
        return
    print(f"float32: accuracy {exact:.2%} on {len(comparison.images)} images")
    print_table("calibration images (min-max, bias)", {str(n): r for n, r in counts.items()})
    print_table("method (100 images)", ways)


def print_table(head: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """Rows of medians, with the smallest and the largest in brackets."""
    print(f"\n| {head} | accuracy | agreement | moved |\n|---|--:|--:|--:|")
    for name, runs in rows.items():
        cells = [
            f"{median:.2%} [{low:.2%}, {high:.2%}]" for median, low, high in summary(runs).values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

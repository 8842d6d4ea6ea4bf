"""What optimization in training costs and gains: accuracy and size of int8, pruned and clustered.

    keras-resnet train --model resnet20 --data digits --recipe digits --out runs/digits
    python benchmarks/optimization.py --run runs/digits
    python benchmarks/optimization.py --run runs/cifar --data folder:cifar10 --epochs 2 --json

One trained network, five ways to ship it, all measured on the same test images, every one of them:

    float32         the network as it is
    int8            quantized after training, calibrated on training images
    int8 qat        quantization-aware training, then converted
    pruned          half of each kernel's weights set to zero, trained on, in float32
    pruned int8     the same, quantized after training
    clustered       16 values per kernel, trained on, in float32
    clustered int8  the same, quantized after training

Each fine-tuning goes on with the run's own data, order, batch, decay and augmentation, for
`--epochs` from `--rate` of the run's learning rate down to zero. "Lost" are test images that the
float network names right and the file wrong, "won" the other way round, p is McNemar's exact test
of the two. Sizes are those of the `.tflite` file and of the same under `gzip -9`.

The figures of several `--seeds` (order of the images, augmentation, first centroids) show how much
of a difference is chance. What is finished is kept in `--work`, so that a run that was interrupted
goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("qat", "prune", "cluster")
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to ship the network."""

    name: str
    seed: int
    examples: int
    correct: int
    lost: int
    won: int
    p_value: float
    size: int
    gzipped: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of the test images that are named right."""
        return self.correct / self.examples


def main() -> None:
    """Trains, converts, measures and prints."""
    options = _options()
    from keras_resnet import data, training

    run = training.load_run(options.run)
    source = data.load(options.data) if options.data else run.load_data()
    work = Path(options.work or Path(options.run) / "optimization")
    work.mkdir(parents=True, exist_ok=True)
    labels, images = _test_images(source, run)
    float_file = _export(run.model, "float32", work / "float32", source)
    reference = _named(float_file, images)

    def row(name: str, seed: int, bundle: Path, seconds: float) -> Row:
        return _row(name, seed, bundle, seconds, images, labels, reference)

    rows = [row("float32", 0, float_file, 0.0)]
    started = time.perf_counter()
    plain = _export(run.model, "int8", work / "int8", source)
    rows.append(row("int8", 0, plain, time.perf_counter() - started))
    for seed in range(options.seeds):
        for method in options.methods:
            rows += _optimized(method, seed, run, source, work, options, row)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if options.json:
        fields = [dataclasses.asdict(r) | {"accuracy": r.accuracy} for r in rows]
        print(json.dumps({"machine": machine, "rows": fields}))
    else:
        print(f"{options.run}: {len(labels):,} test images, {machine}\n")
        print(_table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="run directory of a trained network")
    parser.add_argument("--data", help="default: the run's")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--rate", type=float, help="share of the run's learning rate; default: each method's"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", help="directory for what is made; default: in the run's")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _optimized(
    method: str,
    seed: int,
    run: Any,
    source: Any,
    work: Path,
    options: argparse.Namespace,
    row: Callable[[str, int, Path, float], Row],
) -> list[Row]:
    """The rows of one method, trained unless that was done before."""
    from keras_resnet import training
    from keras_resnet.export import optimize

    recipe = optimize.fine_tuning(run.recipe, method, epochs=options.epochs)
    if options.rate:
        recipe = recipe.replace(learning_rate=run.recipe.learning_rate * options.rate)
    place = work / f"{method}-{options.epochs}-{options.rate or 'default'}-{seed}"
    note = place.with_suffix(".seconds")
    started = time.perf_counter()
    if not note.exists():
        if method == "qat":
            optimize.quantization_aware(
                run.model, source, recipe, place, max_drop=1.0, seed=seed, force=True
            )
        else:
            optimize_network = getattr(optimize, method)
            optimize_network(run.model, source, recipe, seed=seed).save(place, force=True)
        note.write_text(f"{time.perf_counter() - started}\n")
    seconds = float(note.read_text())
    if method == "qat":
        return [row("int8 qat", seed, place, seconds)]
    model = training.load_run(place).model
    name = {"prune": "pruned", "cluster": "clustered"}[method]
    return [
        row(title, seed, _export(model, scheme, work / f"{place.name}-{scheme}", source), seconds)
        for title, scheme in ((name, "float32"), (f"{name} int8", "int8"))
    ]


def _test_images(source: Any, run: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """All labels, and the raw images in batches."""
    shape = tuple(run.info["input_shape"])
    batches = list(source.test.batches(_BATCH, shape, run.preprocessing).as_numpy_iterator())
    return np.concatenate([labels for _, labels in batches]), [images for images, _ in batches]


def _export(model: Any, scheme: str, path: Path, source: Any) -> Path:
    """A bundle, made unless it is there; nothing is rejected, since this measures."""
    from keras_resnet import export

    if not path.exists():
        calibration = source if scheme == "int8" else None
        export.to_tflite(model, path, scheme, calibration=calibration, max_drop=1.0)
    return path


def _named(bundle: Path, images: list[np.ndarray]) -> np.ndarray:
    """The class that a bundle names for every image."""
    from keras_resnet.export.runtime import Runner

    runner = Runner((bundle / "model.tflite").read_bytes(), threads=os.cpu_count())
    return np.concatenate([runner(batch).argmax(axis=1) for batch in images])


def _row(
    name: str,
    seed: int,
    bundle: Path,
    seconds: float,
    images: list[np.ndarray],
    labels: np.ndarray,
    reference: np.ndarray,
) -> Row:
    right, right_before = _named(bundle, images) == labels, reference == labels
    content = (bundle / "model.tflite").read_bytes()
    lost, won = int((right_before & ~right).sum()), int((right & ~right_before).sum())
    return Row(
        name=name,
        seed=seed,
        examples=len(labels),
        correct=int(right.sum()),
        lost=lost,
        won=won,
        p_value=mcnemar(lost, won),
        size=len(content),
        gzipped=len(gzip.compress(content, 9, mtime=0)),
        seconds=seconds,
    )


def mcnemar(lost: int, won: int) -> float:
    """The probability of so unequal a pair, if each change were a throw of a coin."""
    changed, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(changed, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**changed)


def _table(rows: list[Row]) -> str:
    lines = [
        "| network | seed | accuracy | difference | lost | won | p | bytes | gzipped | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    before = rows[0].accuracy
    for r in rows:
        lines.append(
            f"| {r.name} | {r.seed} | {r.accuracy:.2%} | {100 * (r.accuracy - before):+.2f} | "
            f"{r.lost} | {r.won} | {r.p_value:.2g} | {r.size:,} | {r.gzipped:,} | "
            f"{r.seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

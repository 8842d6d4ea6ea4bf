"""The degradation experiment: deeper plain networks learn worse, deeper residual ones do not.

    python examples/degradation.py                                # the embedded digits, ten minutes
    python examples/degradation.py --data folder:cifar10_jpeg --recipe paper-cifar \
        --set epochs=30 schedule=cosine --precision mixed_bfloat16 --out runs/degradation

Trains each network under the same recipe and seed, draws training and test error by epoch as Figure
6 of He et al. 2015 does, and prints the table. The runs are run directories as `keras-resnet train`
writes them; started again, the command goes on where it was stopped. `--networks` takes names from
`keras-resnet list`, and `resnet20-B` for another shortcut option than the network's own.

Beside its history, each run gets `gradients.csv`: the norm of the gradient of every convolution's
kernel, in the order of depth, on one batch of training images before the training and after 1, 2,
4, 8, ... epochs; `gradients.png` draws them. `--keep` copies the small files elsewhere: histories,
gradients and figures.
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_resnet.quiet import import_tensorflow

import_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_resnet  # noqa: E402
from keras_resnet import data, training  # noqa: E402
from keras_resnet.files import atomic_file  # noqa: E402
from keras_resnet.tables import columns  # noqa: E402
from keras_resnet.training.runs import Run  # noqa: E402

NETWORKS = ("plain20", "plain56", "resnet20", "resnet56")
# Test error on CIFAR-10 with its original pixels, in percent: table 6 of He et al. 2015.
PAPER = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97, "resnet110": 6.43}
BATCH = 128


class Gradients(keras.callbacks.Callback):
    """Notes the norm of every convolution's gradient, which leaves the training as it is."""

    def __init__(self, path: Path, images: np.ndarray, labels: np.ndarray):
        super().__init__()
        self.path, self.images, self.labels = path, images, labels

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Before the first step, and not when a training goes on."""
        if not self.path.exists():
            self.note(0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """After 1, 2, 4, 8, ... epochs."""
        done = epoch + 1
        if done & (done - 1) == 0:
            self.note(done)

    def note(self, epoch: int) -> None:
        """Adds the rows of an epoch; those that are there are written anew."""
        rows = [row for row in read_rows(self.path) if int(row["epoch"]) != epoch]
        rows += [
            {"epoch": epoch, "layer": name, "norm": f"{norm:.6g}"}
            for name, norm in gradient_norms(self.model, self.images, self.labels).items()
        ]
        with atomic_file(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "layer", "norm"])
            writer.writeheader()
            writer.writerows(rows)


def gradient_norms(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Norms of the gradients of a batch's loss, by convolution, in the order of depth."""
    values = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(values)
        # Stateless: batch normalization's averages stay as they are.
        scores, _ = model.stateless_call(values, others, images, training=True)
        loss = keras.losses.sparse_categorical_crossentropy(labels, scores)
        loss = keras.ops.mean(loss)
    gradients = tape.gradient(loss, values)
    return {
        variable.path.split("/")[-2]: float(tf.norm(tf.cast(gradient, tf.float32)))
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
        if len(variable.shape) == 4
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none, if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def architecture_of(name: str) -> keras_resnet.Architecture:
    """`resnet20`, or `resnet20-B` for the same with shortcut option B."""
    base, _, option = name.partition("-")
    row = keras_resnet.get_architecture(base)
    return row.replace(name=f"{base}_{option.lower()}", shortcut=option) if option else row


def train(name: str, source: data.ImageData, recipe: training.Recipe, options: Any) -> Run:
    """Trains a network, or goes on with it, or reads what is finished."""
    architecture = architecture_of(name)
    directory = options.out / name
    size = (architecture.input_size, architecture.input_size, 3)
    preprocessing = keras_resnet.Preprocessing()
    images, labels = source.train.take(BATCH, size, preprocessing, seed=0)
    print(f"{name} -> {directory}", flush=True)
    training.fit(
        lambda: keras_resnet.create_model(architecture, classes=len(source.class_names)),
        source,
        recipe,
        run_dir=directory,
        callbacks=[Gradients(directory / "gradients.csv", preprocessing(images), labels)],
        seed=options.seed,
        precision=options.precision,
        resume=True,
    )
    return training.load_run(directory)


def table(names: Sequence[str], runs: Sequence[Run]) -> list[list[str]]:
    """A head, and a row per network."""
    rows = [
        ["network", "parameters", "training error", "test error", "best test", "paper", "minutes"]
    ]
    summaries = training.compare(runs).to_dict()["runs"]
    for name, run, summary in zip(names, runs, summaries, strict=True):
        rows.append(
            [
                name,
                f"{run.model.count_params():,}",
                f"{1 - run.history[-1]['accuracy']:.2%}",
                f"{1 - summary['last_accuracy']:.2%}",
                f"{1 - summary['best_accuracy']:.2%}",
                f"{PAPER[name]:.2f}%" if name in PAPER else "",
                f"{summary['seconds'] / 60:.0f}",
            ]
        )
    return rows


def draw(names: Sequence[str], runs: Sequence[Run], path: Path) -> None:
    """Plain networks left, residual ones right; training error thin, test error bold."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    kinds = {
        kind: [(n, r) for n, r in zip(names, runs, strict=True) if n.startswith("plain") == plain]
        for kind, plain in (("plain", True), ("residual", False))
    }
    shown = {kind: members for kind, members in kinds.items() if members}
    figure = Figure(figsize=(5.2 * len(shown), 4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
    for axes, (kind, members) in zip(panels, shown.items(), strict=True):
        for number, (name, run) in enumerate(members):
            epochs = [row["epoch"] for row in run.history]
            for prefix, width in (("", 1.0), ("val_", 2.5)):
                errors = [100 * (1 - row[f"{prefix}accuracy"]) for row in run.history]
                label = name if prefix else None
                axes.plot(epochs, errors, color=f"C{number}", lw=width, label=label)
        # The first tenth of the training, in which the errors fall from ninety percent, is cut off.
        early = [run.history[len(run.history) // 10] for run in runs]
        highest = max(100 * (1 - row["accuracy"]) for row in early)
        axes.set(title=kind, xlabel="epoch", ylim=(0, min(100, 1.1 * highest)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("error (%); thin: training, bold: test")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_gradients(names: Sequence[str], runs: Sequence[Run], path: Path) -> None:
    """A panel per network: norms by depth, a line per epoch that was noted."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(runs), 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(runs), sharey=True))
    for axes, name, run in zip(panels, names, runs, strict=True):
        norms: dict[int, list[float]] = {}
        for row in read_rows(run.path / "gradients.csv"):
            norms.setdefault(int(row["epoch"]), []).append(float(row["norm"]))
        shades = np.linspace(0, 0.9, len(norms))
        for shade, (epoch, values) in zip(shades, norms.items(), strict=True):
            depths = range(1, len(values) + 1)
            color = colormaps["viridis"](shade)
            axes.semilogy(depths, values, color=color, label=f"epoch {epoch}")
        axes.set(title=name, xlabel="convolution, from the input on")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("norm of the gradient of its kernel")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right upper")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, draws, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--data", default="digits", help="digits, folder:PATH or tfds:NAME")
    parser.add_argument("--recipe", default="digits", help="see the README")
    parser.add_argument("--set", nargs="+", default=(), metavar="FIELD=VALUE", dest="changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/degradation"))
    parser.add_argument("--keep", type=Path, help="directory for copies of the small files")
    options = parser.parse_args(arguments)
    try:
        recipe = training.get_recipe(options.recipe).replace(options.changes)
        for name in options.networks:
            architecture_of(name)
        source = data.load(options.data)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    try:
        runs = [train(name, source, recipe, options) for name in options.networks]
    except training.Interrupted as interruption:
        sys.exit(f"{interruption}; the same command goes on from there")
    rows = table(options.networks, runs)
    draw(options.networks, runs, options.out / "degradation.png")
    draw_gradients(options.networks, runs, options.out / "gradients.png")
    print("\n".join(columns(rows, left=range(1))))
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        for picture in ("degradation.png", "gradients.png"):
            shutil.copy(options.out / picture, options.keep)
        for run in runs:
            for file in ("history.csv", "gradients.csv"):
                shutil.copy(run.path / file, options.keep / f"{run.path.name}-{file}")


if __name__ == "__main__":
    main()

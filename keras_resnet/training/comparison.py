"""Several runs side by side: one table, and one picture of their curves."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_resnet.files import atomic_file
from keras_resnet.tables import columns
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.runs import Run, load_run

# What a recipe says of itself, rather than of the training.
_REMARKS = ("name", "source", "result")

_NAN = math.nan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs that were read, in the order in which they were named.

    Attributes:
        runs: the runs; their models are not loaded.
    """

    runs: tuple[Run, ...]

    @property
    def names(self) -> list[str]:
        """What tells the runs apart: their directories' names, or paths if two have the same."""
        names = [run.path.resolve().name for run in self.runs]
        return names if len(set(names)) == len(names) else [str(run.path) for run in self.runs]

    @property
    def differences(self) -> dict[str, list[Any]]:
        """The fields of the recipes that are not the same in all runs, with each run's value."""
        # A run from before a field existed was trained as its default says.
        recipes = [{**Recipe().to_dict(), **run.info["recipe"]} for run in self.runs]
        fields = dict.fromkeys(field for recipe in recipes for field in recipe)
        values = {field: [recipe.get(field) for recipe in recipes] for field in fields}
        return {
            field: found
            for field, found in values.items()
            if field not in _REMARKS and any(value != found[0] for value in found)
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON; what is not known is None."""
        rows = [
            {"run": name, **_summary(run)} for name, run in zip(self.names, self.runs, strict=True)
        ]
        return {"runs": rows, "recipe_differences": self.differences}

    def __str__(self) -> str:
        """A table of the runs and, below it, one of what their recipes do not share."""
        head = ("run", "network", "data", "recipe", "epochs", "seed")
        figures = ("best test", "at epoch", "last test", "time", "images/s")
        rows: list[Sequence[Any]] = [(*head, *figures)]
        for row in self.to_dict()["runs"]:
            epochs = f"{row['epochs']} of {row['planned_epochs']}"
            rows.append(
                (
                    *(row[name] for name in ("run", "network", "data", "recipe")),
                    row["epochs"] if row["epochs"] == row["planned_epochs"] else epochs,
                    _shown(row["seed"]),
                    _percent(row["best_accuracy"]),
                    _shown(row["best_epoch"]),
                    _percent(row["last_accuracy"]),
                    _duration(row["seconds"]),
                    _shown(row["images_per_second"], ",.0f"),
                )
            )
        lines = columns(rows, left=range(4))
        if self.differences:
            lines.append("")
            rows = [(field, *map(_written, v)) for field, v in self.differences.items()]
            lines += columns([("recipe", *self.names), *rows])
        return "\n".join(lines)

    def save_picture(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Draws error and loss of all runs by epoch: training thin, test bold, a colour per run.

        Training errors and losses are those of the augmented images and smoothed labels: compare
        them only between recipes that agree in these.

        Args:
            path: the file, whose suffix says the format: `.png`, `.svg` or `.pdf`.
            force: whether it may replace a file.

        Raises:
            FileExistsError: if there is a file and `force` is off.
            ValueError: for a suffix that matplotlib does not know.
        """
        path = Path(path)
        figure = _draw(self.names, [run.history for run in self.runs])
        formats = sorted(figure.canvas.get_supported_filetypes())
        if path.suffix.removeprefix(".") not in formats:
            raise ValueError(
                f"Argument `path` must end in one of {['.' + name for name in formats]}. "
                f"Received: {os.fspath(path)!r}"
            )
        with atomic_file(path, force=force) as temporary:
            figure.savefig(temporary, dpi=120)


def compare(runs: Sequence[str | os.PathLike[str] | Run]) -> Comparison:
    """Reads runs to put them side by side. Their models are not loaded.

    Args:
        runs: run directories, or runs that were read; of a training that goes on, the epochs that
            are saved so far.

    Raises:
        ValueError: if there is none, one is named twice, or a `run.json` is damaged.
        FileNotFoundError: if a directory is no run.
    """
    if not runs or isinstance(runs, str):
        raise ValueError(f"Argument `runs` must be a list of run directories. Received: {runs!r}")
    read = tuple(run if isinstance(run, Run) else load_run(run) for run in runs)
    paths = [run.path.resolve() for run in read]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"Argument `runs` must name every run once. Received twice: {path}")
    return Comparison(read)


def _summary(run: Run) -> dict[str, Any]:
    info, history = run.info, run.history
    recipe = info["recipe"]
    accuracies = [row.get("val_accuracy", _NAN) for row in history]
    best = max((a for a in accuracies if not math.isnan(a)), default=None)
    # The first epoch's rate holds the time in which TensorFlow compiles the step.
    rates = [row["images_per_second"] for row in history if "images_per_second" in row]
    images = info["train_examples"] // recipe["batch_size"] * recipe["batch_size"]
    return {
        "network": info["model"],
        "data": info["data"],
        "recipe": recipe.get("name", "custom"),
        "status": info.get("status"),
        "epochs": len(history),
        "planned_epochs": recipe["epochs"],
        "seed": info.get("seed"),
        "best_accuracy": best,
        "best_epoch": None if best is None else accuracies.index(best) + 1,
        "last_accuracy": None if best is None or math.isnan(accuracies[-1]) else accuracies[-1],
        # Of the training steps: neither evaluation nor a pause before the run went on is in it.
        "seconds": sum(images / rate for rate in rates) if rates else None,
        "images_per_second": statistics.median(rates[1:] or rates) if rates else None,
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _shown(value: float | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_written, value)) or "-"
    return value or "-" if isinstance(value, str) else json.dumps(value)


def _duration(seconds: float | None) -> str:
    """A span of time as a person says it: `42 s`, `3:07 min`, `12:05 h`."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


def _draw(names: Sequence[str], histories: Sequence[Sequence[dict[str, float]]]) -> Any:
    """A matplotlib figure, made without pyplot and its global state."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    legend_rows = math.ceil((len(names) + 2) / 3)
    figure = Figure(figsize=(10, 4.0 + 0.2 * legend_rows), layout="constrained")
    error, loss = figure.subplots(1, 2)
    palette = colormaps["tab10"](range(10))
    if len(names) > len(palette):
        palette = colormaps["turbo"]([i / (len(names) - 1) for i in range(len(names))])
    handles = [Line2D([], [], color="gray", lw=1), Line2D([], [], color="gray", lw=2.5)]
    for history, color in zip(histories, palette, strict=False):
        epochs = [row["epoch"] for row in history]
        for prefix, width in (("", 1.0), ("val_", 2.5)):
            style = {"color": color, "lw": width}
            if len(epochs) == 1:  # a line of one point would be invisible
                style |= {"marker": "o", "ms": 3 * width}
            accuracies = [row.get(f"{prefix}accuracy", _NAN) for row in history]
            error.plot(epochs, [100 * (1 - accuracy) for accuracy in accuracies], **style)
            loss.plot(epochs, [row.get(f"{prefix}loss", _NAN) for row in history], **style)
        handles.append(Line2D([], [], color=color, lw=4))
    error.set(xlabel="epoch", ylabel="error (%)", title="error")
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="loss")
    for axes in (error, loss):
        _scale(axes)
    # The names are set afterwards: as labels, `_x` would be left out and `$` be mathematics.
    labels = ["training", "test", *map(_shortened, names)]
    legend = figure.legend(
        handles, map(str, range(len(labels))), loc="outside lower center", ncols=3, frameon=False
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
    return figure


def _scale(axes: Any) -> None:
    """Logarithmic upwards: runs differ in the last percent, and begin at ninety."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs="all"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)


def _shortened(name: str, most: int = 36) -> str:
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"

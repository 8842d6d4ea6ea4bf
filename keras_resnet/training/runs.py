"""A run directory: what a training leaves behind, and reading it again."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_resnet.data import ImageData, load
from keras_resnet.files import atomic_file
from keras_resnet.models import load_model
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.checkpoints import Checkpoints
from keras_resnet.training.recipes import Recipe

_LIBRARIES = ("keras", "tensorflow", "numpy", "Pillow")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory that was read.

    Attributes:
        path: the directory.
        info: what `run.json` holds.
        history: one dictionary per epoch.
    """

    path: Path
    info: dict[str, Any]
    history: list[dict[str, float]]

    @functools.cached_property
    def model(self) -> keras.Model:
        """The trained model."""
        return load_model(self.path / "model.keras")

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained by."""
        return Recipe.from_dict(self.info["recipe"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How the input of the network was made."""
        return Preprocessing.from_dict(self.info["preprocessing"])

    def load_data(self) -> ImageData:
        """The data it was trained on, split as it was then.

        Raises:
            ValueError: if they cannot be had again by a name, e.g. arrays.
        """
        if self.info["load_data"] is None:
            raise ValueError(
                f"The run {self.path} was trained on {self.info['data']}, which cannot be loaded "
                "by a name; say which data to use instead"
            )
        return load(**self.info["load_data"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return tuple(self.info["class_names"])


def load_run(run_dir: str | os.PathLike[str]) -> Run:
    """Reads a run directory; the model is loaded when it is first asked for.

    Raises:
        FileNotFoundError: if it is no run directory, or its training has not saved a model yet.
        ValueError: if its `run.json` is damaged.
    """
    path = Path(run_dir)
    for name in ("run.json", "model.keras"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is no finished run: it has no {name}")
    info = read_info(path)
    history = []
    if (path / "history.csv").is_file():
        with (path / "history.csv").open(newline="", encoding="utf-8") as file:
            history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return Run(path, info, history)


def read_info(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """What `run.json` of a run directory holds, whether its training is finished or not.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    path = Path(run_dir) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no run at {run_dir}: it has no run.json")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(info, dict):
        raise ValueError(f"{path} is damaged: it holds no dictionary")
    return info


def is_finished(run_dir: str | os.PathLike[str]) -> bool:
    """Whether there is a run whose training came to its end."""
    try:
        return bool(read_info(run_dir).get("status") == "finished")
    except FileNotFoundError:
        return False


_FILES = ("run.json", "model.keras", "history.csv", "curves.png", "checkpoints")


def refuse_existing_run(
    directory: str | os.PathLike[str], force: bool, *, resume: bool = False
) -> None:
    """Raises `FileExistsError` if a run could not be written there without losing something.

    A run that goes on loses nothing if it is finished, if it has checkpoints, or if it ended before
    it saved a model.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, not a directory")
    there = [name for name in _FILES if (path / name).exists()]
    if resume and ("checkpoints" in there or "model.keras" not in there or is_finished(path)):
        return
    if there and not force:
        advice = "it has no checkpoint to go on from; " if resume else ""
        raise FileExistsError(
            f"{path} holds {there[0]} already; {advice}choose another directory, or overwrite it "
            "with force (--force)"
        )


class RunWriter:
    """Writes a run directory, each file atomically; of several workers, the chief's does.

    Nothing is written before there is something to keep, a checkpoint or a finished epoch: a
    training that fails at once leaves an older run as it was.

    Attributes:
        directory: where it writes.
        checkpoints: the run's checkpoints.
        writes: whether this process is the one that writes.
        settings: what must stay the same when a training goes on from a checkpoint.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: keras.Model,
        data: ImageData,
        recipe: Recipe,
        preprocessing: Preprocessing,
        replicas: int,
        settings: Mapping[str, Any],
        checkpoints: Checkpoints,
        *,
        writes: bool = True,
    ):
        architecture = getattr(model, "architecture", None)
        self.directory = Path(directory)
        self.checkpoints = checkpoints
        self.writes = writes
        plain = {
            "model": model.name,
            "architecture": architecture and architecture.to_dict(),
            "input_shape": list(model.input_shape[1:]),
            "class_names": list(data.class_names),
            "preprocessing": preprocessing.to_dict(),
            "data": data.name,
            "train_examples": data.train.examples,
            "test_examples": data.test.examples,
            "recipe": recipe.to_dict(),
            **settings,
        }
        self.settings: dict[str, Any] = json.loads(json.dumps(plain))  # as it will be read
        self._info = {
            "status": "running",
            **self.settings,
            "load_data": data.reload,
            "bad_images": len(data.bad_images),
            "replicas": replicas,
            "started": _now(),
            "command": shlex.join(sys.argv),
            "versions": _versions(),
        }
        self._has_begun = False
        self._created = time.time()

    def _begin(self) -> None:
        """Puts this run in the place of an older one. Later calls do nothing."""
        if self._has_begun:
            return
        self._has_begun = True
        for name in ("model.keras", "history.csv", "curves.png"):
            (self.directory / name).unlink(missing_ok=True)
        self.checkpoints.clear()
        for path in (self.directory / "tensorboard").rglob("*"):
            if path.is_file() and path.stat().st_mtime < self._created:
                path.unlink()
        self._write_info({"epochs": 0})

    def resume(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Takes over the run that is there, if it has a checkpoint; see `Checkpoints.restore`.

        Raises:
            CheckpointError: if all checkpoints are damaged.
            ValueError: if it was a training of another kind.
        """
        if not self.checkpoints.steps():
            return None, []
        before = self.check_settings()
        self._has_begun = True
        self._info["started"] = before.get("started", self._info["started"])
        return self.checkpoints.restore()

    def check_settings(self) -> dict[str, Any]:
        """The `run.json` that is there, which must be of a training like this one.

        Raises:
            ValueError: if it is of another kind.
        """
        before = read_info(self.directory)
        flat = _flat(before)
        for name, value in _flat(self.settings).items():
            if flat.get(name) != value:
                raise ValueError(
                    f"The run {self.directory} cannot go on with another {name}. Received: "
                    f"{value!r}, and it began with {flat.get(name)!r}"
                )
        return before

    def mark(self, status: str) -> None:
        """Notes how the training stands, if anything of it was written."""
        if self.writes and self._has_begun:
            self._write_info({"status": status})

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes a checkpoint, see `Checkpoints.save`."""
        if self.writes:
            self._begin()
            self.checkpoints.save(step, state)

    def save(
        self,
        model: keras.Model,
        history: Sequence[dict[str, float]],
        status: str = "running",
        **more: Any,
    ) -> None:
        """Writes all files as they are now; `status` is running, interrupted or finished."""
        if not self.writes:
            return
        self._begin()
        with atomic_file(self.directory / "model.keras") as path:
            model.save(path)
        with (
            atomic_file(self.directory / "history.csv") as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.DictWriter(file, list(history[0]))
            table.writeheader()
            table.writerows(history)
        with atomic_file(self.directory / "curves.png") as path:
            _plot(history, str(self._info["model"]), path)
        self._write_info({"status": status, "epochs": len(history), "last": history[-1], **more})

    def _write_info(self, changes: Mapping[str, Any]) -> None:
        self._info |= {**changes, "saved": _now()}
        with atomic_file(self.directory / "run.json") as path:
            path.write_text(json.dumps(self._info, indent=2) + "\n", encoding="utf-8")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings one by one, without the remarks of the recipe, which change nothing."""
    # By way of a recipe: one from before a field existed was trained as its default says.
    recipe = Recipe.from_dict(settings.get("recipe") or {}).to_dict()
    fields = {f"recipe field {k}": v for k, v in recipe.items() if k not in ("source", "result")}
    return {k: v for k, v in settings.items() if k != "recipe"} | fields


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    from keras_resnet import __version__

    versions = {"keras_resnet": __version__, "python": platform.python_version()}
    return versions | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _plot(history: Sequence[dict[str, float]], title: str, path: Path) -> None:
    """Error and loss by epoch, training thin and test bold, as in the paper's figure 6."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    error, loss = figure.subplots(1, 2)
    error.plot(epochs, [100 * (1 - row["accuracy"]) for row in history], lw=1, label="training")
    error.plot(epochs, [100 * (1 - row["val_accuracy"]) for row in history], lw=2, label="test")
    error.set(xlabel="epoch", ylabel="error (%)", title=f"{title}: error", ylim=(0, None))
    loss.plot(epochs, [row["loss"] for row in history], lw=1, label="training")
    loss.plot(epochs, [row["val_loss"] for row in history], lw=2, label="test")
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=f"{title}: loss", ylim=(0, None))
    for axes in (error, loss):
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120)

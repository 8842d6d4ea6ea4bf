"""What a person sees of a training: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

# Reading the loss makes the host wait for the device, so it is not done at every step.
_TERMINAL_SECONDS = 0.5
_PLAIN_SECONDS = 30.0


class Progress:
    """Shows epochs and steps with loss, accuracy, images per second and the time left.

    `done` steps were taken before: what is left is reckoned from those that are taken now.
    """

    def __init__(self, epochs: int, steps: int, *, done: int = 0, enabled: bool = True):
        self._before = done
        self._epochs, self._steps = epochs, steps
        self._enabled = enabled
        self._console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._last = self._started = time.perf_counter()

    def __enter__(self) -> Progress:
        if self._enabled and self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(
                "starting", total=self._epochs * self._steps, completed=self._before, figures=""
            )
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def is_due(self) -> bool:
        """Whether it is time for an `update`."""
        pause = _PLAIN_SECONDS if self._bar is None else _TERMINAL_SECONDS
        return self._enabled and time.perf_counter() - self._last >= pause

    def update(self, epoch: int, step: int, logs: Mapping[str, float]) -> None:
        """Shows figures in the middle of an epoch."""
        self._last = time.perf_counter()
        done = epoch * self._steps + step
        figures = _figures(logs)
        if self._bar is not None:
            self._bar.update(
                self._task, description=self._title(epoch), completed=done, figures=figures
            )
        else:
            left = self._left(done)
            self._console.print(
                f"{self._title(epoch)}  step {step}/{self._steps}  {figures}  {_clock(left)} left"
            )

    def end_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Shows the figures of a whole epoch, on a line that stays."""
        self._last = time.perf_counter()
        if not self._enabled:
            return
        left = self._left((epoch + 1) * self._steps)
        self._console.print(f"{self._title(epoch)}  {_figures(logs)}  {_clock(left)} left")
        if self._bar is not None:
            self._bar.update(self._task, completed=(epoch + 1) * self._steps)

    def note(self, line: str) -> None:
        """Shows a line that stays."""
        if self._enabled:
            self._console.print(line)

    def _left(self, done: int) -> float:
        """Seconds that the other steps will take, at the pace so far."""
        pace = (self._last - self._started) / max(1, done - self._before)
        return pace * (self._epochs * self._steps - done)

    def _title(self, epoch: int) -> str:
        width = len(str(self._epochs))
        return f"epoch {epoch + 1:{width}}/{self._epochs}"


def _figures(logs: Mapping[str, float]) -> str:
    parts = [f"loss {logs['loss']:.4f}", f"accuracy {logs['accuracy']:.2%}"]
    if "val_accuracy" in logs:
        parts += [
            f"test loss {logs['val_loss']:.4f}",
            f"accuracy {logs['val_accuracy']:.2%}",
            f"{logs['images_per_second']:.0f} images/s",
        ]
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""When a training writes a checkpoint, and how it ends when it is told to."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import tensorflow as tf

# Several workers ask each other this often, in steps: it costs them a small collective.
_STEPS_BETWEEN_QUESTIONS = 10


class Interrupted(KeyboardInterrupt):
    """A training that was told to stop and wrote a checkpoint first.

    Attributes:
        signal: the number of the signal that told it.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


class Schedule:
    """When the next checkpoint is due.

    Args:
        every: a number of steps, or a time such as `"10m"`, `"90s"` or `"2h"`.

    Attributes:
        counts_steps: whether `every` is a number of steps; then all workers know by themselves.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, every: int | str):
        text = str(every)
        match = re.fullmatch(r"(\d+)([smh]?)", text)
        if isinstance(every, bool) or match is None or int(match[1]) < 1:
            raise ValueError(
                "Argument `checkpoint_every` must be a number of steps, or a time such as '90s', "
                f"'10m' or '2h'. Received: {every!r}"
            )
        self.counts_steps = not match[2]
        self._length = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether one should be written after so many steps of the whole training."""
        if self.counts_steps:
            return step % self._length == 0
        return time.monotonic() - self._last >= self._length

    def was_written(self) -> None:
        """Starts the time anew."""
        self._last = time.monotonic()


class Signals:
    """Notes SIGINT and SIGTERM while it is entered, for the loop to end between two steps.

    A second one ends at once. Python takes signals in the main thread alone; elsewhere nothing is
    noted and an interruption is Python's own.
    """

    def __init__(self, *, enabled: bool):
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self.received = 0

    def __enter__(self) -> Signals:
        if self._enabled:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        sys.stderr.write("stopping; a second signal stops at once, without a checkpoint\n")


class Agreement:
    """What one process of a training knows, brought to all of them at the same step."""

    def __init__(self, strategy: tf.distribute.Strategy):
        resolver = strategy.cluster_resolver
        jobs = resolver.cluster_spec().as_dict() if resolver is not None else {}
        self._is_alone = sum(len(jobs.get(job, ())) for job in ("chief", "worker")) <= 1

        def total(flags: tf.Tensor) -> tf.Tensor:
            return strategy.reduce("SUM", strategy.run(lambda x: x, args=(flags,)), axis=None)

        self._total = tf.function(total)

    def is_on(self, value: int) -> bool:
        """Whether all have the same value."""
        if self._is_alone:
            return True
        total, replicas = self._total(tf.constant([value, 1], tf.int32)).numpy()
        return bool(total == value * replicas)

    def on(self, step: int, schedule: Schedule, received: int) -> tuple[bool, int]:
        """Whether a checkpoint is due, and the signal that came to any of the workers, or 0.

        Must be called at the same steps by all.
        """
        is_due = schedule.is_due(step)
        if self._is_alone:
            return is_due, received
        if step % _STEPS_BETWEEN_QUESTIONS:
            return is_due and schedule.counts_steps, 0
        terminated = received == signal.SIGTERM
        flags = tf.constant([is_due, received != 0, terminated], tf.int32)
        due, stopped, terminated_any = self._total(flags).numpy()
        number = signal.SIGTERM if terminated_any else signal.SIGINT
        if schedule.counts_steps:
            due = is_due
        return bool(due), int(number) if stopped else 0

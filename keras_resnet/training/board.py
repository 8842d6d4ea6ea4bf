"""Summaries and profiles for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class=1,  # DATA_CLASS_SCALAR of summary.proto
)


class Board:
    """Writes `<run>/tensorboard`; without a run directory, nothing.

    Args:
        run_dir: the run directory, or None.
        profile: the first and the last step to profile, counted from 0, or None.
    """

    def __init__(self, run_dir: Path | None, profile: tuple[int, int] | None = None):
        self._directory = None if run_dir is None else run_dir / "tensorboard"
        self._profile = profile if run_dir is not None else None
        self._is_profiling = False
        self._writer: tf.summary.SummaryWriter | None = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_profiling:
            self._stop()
        if self._writer is not None:
            # What cannot be written any more was on its way to a full disk, which was reported.
            with contextlib.suppress(tf.errors.OpError):
                self._writer.close()

    def progress(self, step: int, logs: Mapping[str, float]) -> None:
        """The means of the epoch so far."""
        self._write(step, {f"so far/{name}": logs[name] for name in ("loss", "accuracy")})

    def epoch(self, step: int, logs: Mapping[str, float]) -> None:
        """The figures of an epoch, training and test in one chart each."""
        self._write(
            step,
            {
                "loss/training": logs["loss"],
                "loss/test": logs["val_loss"],
                "accuracy/training": logs["accuracy"],
                "accuracy/test": logs["val_accuracy"],
                "learning rate": logs["learning_rate"],
                "images per second": logs["images_per_second"],
            },
        )

    def before_step(self, step: int) -> None:
        """Starts or stops the profiler, if it is time."""
        if self._profile is None:
            return
        first, last = self._profile
        if step == first:
            tf.profiler.experimental.start(str(self._directory))
            self._is_profiling = True
        elif step == last + 1 and self._is_profiling:
            self._stop()

    def _stop(self) -> None:
        tf.profiler.experimental.stop()
        self._is_profiling = False

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self._directory is None:
            return
        if self._writer is None:  # with the first figures: what fails at once leaves no directory
            self._writer = tf.summary.create_file_writer(str(self._directory))
        with self._writer.as_default(step=step):
            for name, value in values.items():
                # What tf.summary.scalar writes; that one needs TensorBoard installed.
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=_SCALAR)
        self._writer.flush()

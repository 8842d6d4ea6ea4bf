"""Checkpoints of a training: everything that decides how it goes on, verified when it is read.

`tf.train.CheckpointManager` writes the variables and keeps the newest few. Beside each checkpoint
lies a JSON file with what is not a variable, the position in the data and the history, and with
the digests of the checkpoint's files. It is written last, so a checkpoint without it was cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_resnet.files import atomic_file

_NAME = "step"
_MANIFEST = re.compile(rf"{_NAME}-(\d+)\.json")
_VERSION = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and why."""


class Checkpoints:
    """The checkpoints of one training, in a directory of their own.

    Args:
        directory: where they lie.
        variables: by group; restored in place. Groups and the shapes in them must not change.
        keep: how many of the newest are kept, one at least.

    Raises:
        ValueError: for another `keep`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        variables: Mapping[str, Sequence[Any]],
        keep: int = 3,
    ):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"Argument `keep` must be a positive integer. Received: keep={keep!r}")
        self.directory = Path(directory)
        self._variables = {name: list(group) for name, group in variables.items() if group}
        self._checkpoint = tf.train.Checkpoint(**self._variables)
        self._keep = keep
        self._manager: tf.train.CheckpointManager | None = None
        self._restored = -1

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes a checkpoint of the variables as they are now, and removes the oldest.

        Args:
            step: the steps taken so far, which names it.
            state: what `restore` shall return; plain values, for JSON.

        Raises:
            CheckpointError: if it cannot be written, e.g. for want of space; those that are there
                stay as they were.
        """
        with self._own_errors(step):
            if self._manager is None:
                self._clear_up()
                # It would remove the old ones before the new one's manifest is written.
                self._manager = tf.train.CheckpointManager(
                    self._checkpoint, str(self.directory), None, checkpoint_name=_NAME
                )
            self._manager.save(checkpoint_number=step)
            manifest = {
                "version": _VERSION,
                "step": step,
                "state": dict(state),
                "variables": self._description(),
                "files": {path.name: _digest(path) for path in self._files(step)},
            }
            with atomic_file(self.directory / f"{_NAME}-{step}.json") as path:
                path.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
            for number in self.steps()[: -self._keep]:
                self._remove(number)

    @contextlib.contextmanager
    def _own_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(self.directory / f"{_NAME}-{step}_temp", ignore_errors=True)
            reason = getattr(error, "message", None) or str(error)
            raise CheckpointError(
                f"The checkpoint of step {step} cannot be written to {self.directory}: {reason}"
            ) from error

    def steps(self) -> list[int]:
        """The steps of the checkpoints that were finished, the oldest first."""
        if not self.directory.is_dir():
            return []
        found = (_MANIFEST.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def restore(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Reads the newest checkpoint that is whole into the variables.

        Returns:
            The `state` that was saved with it, or None if there is no checkpoint; and a line for
            each newer one that is damaged, which says what is wrong with it.

        Raises:
            CheckpointError: if there are checkpoints, and all are damaged.
            ValueError: if the newest whole one is of another network or another recipe.
        """
        damaged = []
        steps = self.steps()
        for step in reversed(steps):
            try:
                manifest = self._verified(step)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            self._check_variables(step, manifest["variables"])
            prefix = str(self.directory / f"{_NAME}-{step}")
            self._checkpoint.restore(prefix).assert_consumed()
            self._restored = step
            return manifest["state"], damaged
        if damaged:
            raise CheckpointError(
                f"None of the checkpoints in {self.directory} can be read: {'; '.join(damaged)}"
            )
        return None, []

    def _clear_up(self) -> None:
        """Removes what came after the step that was restored: damaged, or cut off by a crash.

        The first checkpoint is the time for it: reading changes nothing, and several workers read.
        The manager's own list goes too, since what it holds may be gone.
        """
        if not self.directory.is_dir():
            return
        whole = {step for step in self.steps() if step <= self._restored}
        for path in self.directory.iterdir():
            match = re.match(rf"\.?{_NAME}-(\d+)(?!\d)", path.name)
            if path.name == "checkpoint" or (match and int(match[1]) not in whole):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def clear(self) -> None:
        """Removes all checkpoints: another training begins in their place."""
        if self.directory.is_dir():
            shutil.rmtree(self.directory)

    def _verified(self, step: int) -> dict[str, Any]:
        path = self.directory / f"{_NAME}-{step}.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            files, version = dict(manifest["files"]), manifest["version"]
            _ = manifest["state"], manifest["variables"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error})") from None
        if version != _VERSION:
            raise CheckpointError(f"{path} is of version {version}; this reads {_VERSION}")
        if not files:
            raise CheckpointError(f"{path} is damaged (it names no files)")
        for name, digest in files.items():
            file = self.directory / Path(name).name
            if not file.is_file():
                raise CheckpointError(f"{file} is missing")
            try:
                is_whole = _digest(file) == digest
            except OSError as error:
                raise CheckpointError(f"{file} is damaged ({error})") from None
            if not is_whole:
                raise CheckpointError(f"{file} is damaged (its digest differs)")
        return dict(manifest)

    def _check_variables(self, step: int, saved: Any) -> None:
        present = self._description()
        if saved == present:
            return
        for group in present.keys() | saved.keys():
            have, want = saved.get(group, []), present.get(group, [])
            if have != want:
                raise ValueError(
                    f"The checkpoint of step {step} in {self.directory} is of another training. "
                    f"Received: {len(want)} variables of the kind {group!r}, where it has "
                    f"{len(have)}, or of other shapes"
                )

    def _description(self) -> dict[str, list[list[Any]]]:
        return {
            name: [[list(v.shape), tf.as_dtype(v.dtype).name] for v in group]
            for name, group in self._variables.items()
        }

    def _files(self, step: int) -> list[Path]:
        """The index and the data of a checkpoint."""
        return sorted(
            path
            for path in self.directory.glob(f"{_NAME}-{step}.*")
            if path.suffix != ".json" and not path.name.startswith(".")
        )

    def _remove(self, step: int) -> None:
        (self.directory / f"{_NAME}-{step}.json").unlink(missing_ok=True)
        for path in self._files(step):
            path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The training loop: one for every `tf.distribute` strategy.

Keras's own `fit` fails under MultiWorkerMirroredStrategy (keras-team/keras#20585). This loop needs
nothing but what `tf.distribute` documents: a distributed data set, `strategy.run` of a step whose
loss is divided by the global batch, and sums over the replicas.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_resnet import data as data_module
from keras_resnet.data import ImageData
from keras_resnet.data.augment import Augmentation
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.board import Board
from keras_resnet.training.checkpoints import CheckpointError
from keras_resnet.training.evaluation import Evaluator
from keras_resnet.training.interruption import Agreement, Interrupted, Schedule, Signals
from keras_resnet.training.metrics import Evaluation
from keras_resnet.training.progress import Progress
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.runs import RunWriter, is_finished
from keras_resnet.training.step import Trainer, share_of_worker

# With a run directory, a finished epoch is saved if the last save is this many seconds old.
_SAVE_SECONDS = 30.0

# Batches over which `precise_bn` takes the statistics, at most.
_PRECISE_BATCHES = 200

# The confusions of more classes than this are left out of run.json; a thousand make a million.
_CLASSES_IN_RUN_JSON = 100


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says at which step and why."""


class Loop:
    """A training under way: where it stands, and what it leaves behind.

    Attributes:
        history: one dictionary per finished epoch.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: ImageData,
        preprocessing: Preprocessing,
        seed: int,
        schedule: Schedule,
        writer: RunWriter | None,
        *,
        is_chief: bool,
    ):
        self._trainer, self._network = trainer, trainer.network
        self._data, self._preprocessing, self._seed = data, preprocessing, seed
        self._schedule, self._writer, self._is_chief = schedule, writer, is_chief
        self._evaluator = Evaluator(trainer.network, trainer.strategy)
        self._agreement = Agreement(trainer.strategy)
        self.history: list[dict[str, float]] = []
        self._evaluation: Evaluation | None = None
        self._finished_weights: list[Any] = []
        self._position = (0, 0)  # the epoch, and the steps of it that were taken
        self._seconds = 0.0  # of the epoch so far
        self._best: float | None = None
        self._epochs_since_best = 0
        self._is_over = False

    def run(
        self,
        listeners: keras.callbacks.CallbackList,
        *,
        resume: bool,
        verbose: bool,
        profile: tuple[int, int] | None,
    ) -> bool:
        """All epochs; False if the run that is resumed was finished before."""
        writer = self._writer
        if resume and writer is not None and is_finished(writer.directory):
            writer.check_settings()
            return False
        damaged = self._resume() if resume else []
        trainer, recipe = self._trainer, self._trainer.recipe
        progress = Progress(
            recipe.epochs, trainer.steps, done=self._step, enabled=verbose and self._is_chief
        )
        board = Board(writer.directory if writer and writer.writes else None, profile)
        self._network.stop_training = False
        saved = time.monotonic()
        with Signals(enabled=writer is not None) as signals, board, progress:
            for line in damaged:
                progress.note(f"left out a damaged checkpoint: {line}")
            if self._step:
                progress.note(f"going on after {self._where()}")
            while not self._is_over:
                epoch = self._position[0]
                trainer.begin_epoch(epoch)
                listeners.on_epoch_begin(epoch)
                logs = self._train_epoch(epoch, listeners, progress, board, signals)
                weights = self._end_epoch(epoch, logs, listeners)
                progress.end_epoch(epoch, logs)
                board.epoch(self._step, logs)
                self._is_over = (
                    self._stops_early(progress)
                    or self._network.stop_training
                    or epoch + 1 == recipe.epochs
                )
                # With the first epoch's, there is a model that must not be lost; what follows the
                # last may take long.
                self._checkpoint_if_due(signals, always=epoch == 0 or self._is_over)
                self._finished_weights = weights
                if not self._is_over and time.monotonic() - saved > _SAVE_SECONDS:
                    self._save_epochs()
                    saved = time.monotonic()
        return True

    def _end_epoch(
        self, epoch: int, logs: dict[str, float], listeners: keras.callbacks.CallbackList
    ) -> list[Any]:
        """Evaluates, and puts the epoch into the history; the weights that would be kept."""
        self._position, self._seconds = (epoch + 1, 0), 0.0
        self._check_finite()
        validation, weights = self._validate()
        logs |= validation
        listeners.on_epoch_end(epoch, logs)
        self.history.append({"epoch": epoch + 1, **logs})
        self._trainer.reset_totals()
        return weights

    def finish(self, *, precise_bn: bool) -> Evaluation:
        """Brings the weights to what is kept, measures and saves them."""
        trainer, recipe = self._trainer, self._trainer.recipe
        trainer.unfreeze()
        if recipe.early_stopping:
            trainer.take_best()
        else:
            trainer.take_averages()
        if precise_bn:
            steps = min(trainer.steps * trainer.accumulate, _PRECISE_BATCHES)
            plain = dataclasses.replace(recipe.augmentation, mixup=0.0, cutmix=0.0)
            micro_batch = recipe.batch_size // trainer.accumulate
            batches = self._batches(recipe.epochs, 0, micro_batch, plain)
            trainer.precise_statistics(batches, steps)
        if precise_bn or recipe.early_stopping or self._evaluation is None:
            self._evaluation = self._evaluate()
        if self._writer is not None:
            few = len(self._data.class_names) <= _CLASSES_IN_RUN_JSON
            test = self._evaluation.to_dict(confusion=few)
            self._writer.save(self._network, self.history, "finished", test=test)
        return self._evaluation

    def save_finished_epochs(self, error: BaseException) -> None:
        """Saves what the last finished epoch gave, after an interruption or a failure."""
        if self._writer is None:
            return
        # Where no checkpoint could be written, this may fail as well; that one is reported.
        expected = (OSError,) if isinstance(error, CheckpointError) else ()
        with contextlib.suppress(*expected), _attribute(self._network, "optimizer", None):
            if self._finished_weights:
                self._network.set_weights(self._finished_weights)
                self._writer.save(self._network, self.history, "interrupted")
            else:
                self._writer.mark("interrupted")

    def say_how_it_goes_on(self, error: BaseException) -> None:
        """Raises `Interrupted` in the place of a mere `KeyboardInterrupt` if there is a checkpoint.

        Such a one comes from a second signal, or after the last epoch.
        """
        bare = isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted)
        steps = self._writer.checkpoints.steps() if self._writer is not None else []
        if bare and steps and self._writer is not None:
            raise Interrupted(
                f"interrupted; the last checkpoint is that of step {steps[-1]}, in "
                f"{self._writer.checkpoints.directory}",
                signal.SIGINT,
            ) from error

    def _resume(self) -> list[str]:
        """Goes back to the last checkpoint, if there is one; says which were damaged."""
        if self._writer is None:
            return []
        state, damaged = self._writer.resume()
        if state is not None:
            self._is_over = state["over"]
            self._position = (state["epoch"], state["steps"])
            self._seconds = state["seconds"]
            self.history = state["history"]
            self._best, self._epochs_since_best = state["best"], state["epochs_since_best"]
        if not self._agreement.is_on(self._step):
            raise CheckpointError(
                "The workers have found different checkpoints; every machine must see the same run "
                f"directory. Received: {self._writer.directory}, which ends at step {self._step} "
                "here"
            )
        return damaged

    def _batches(
        self,
        epoch: int,
        start: int,
        batch_size: int | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[Any]:
        """The batches of an epoch from the one with the number `start` on."""
        recipe = self._trainer.recipe
        batch_size = batch_size or recipe.batch_size

        def of_share(share: tuple[int, int]) -> tf.data.Dataset:
            return data_module.batches(
                self._data.train,
                batch_size,
                self._network.input_shape[1:],
                self._preprocessing,
                dtype=str(self._network.inputs[0].dtype),
                augment=augmentation or recipe.augmentation,
                shuffle=(self._seed, epoch),
                remainder="drop",
                start=start,
                share=share,
                classes=len(self._data.class_names),
            )

        return share_of_worker(self._trainer.strategy, batch_size, of_share)

    def _train_epoch(
        self,
        epoch: int,
        listeners: keras.callbacks.CallbackList,
        progress: Progress,
        board: Board,
        signals: Signals,
    ) -> dict[str, float]:
        """The steps of one epoch; figures are read from the device when somebody wants them."""
        trainer, batch_size = self._trainer, self._trainer.recipe.batch_size
        hears_batches = any(_hears_batches(callback) for callback in listeners.callbacks)
        first = self._position[1]
        taken = first
        started = time.perf_counter() - self._seconds
        with self._data.train.own_errors():
            batches = self._batches(epoch, first)
            for step in range(first, trainer.steps):
                if step > first:  # behind the last step, the epoch is evaluated first
                    self._checkpoint_if_due(signals)
                board.before_step(self._step)
                listeners.on_train_batch_begin(step)
                sums = trainer.step(batches)
                taken = step + 1
                self._position = (epoch, taken)
                self._seconds = time.perf_counter() - started
                if hears_batches:
                    listeners.on_train_batch_end(step, self._means(sums, batch_size))
                if progress.is_due():
                    logs = self._means(trainer.totals, taken * batch_size)
                    progress.update(epoch, taken, logs)
                    board.progress(self._step, logs)
                if self._network.stop_training:
                    break
        logs = self._means(trainer.totals, taken * batch_size)
        logs["images_per_second"] = taken * batch_size / (time.perf_counter() - started)
        logs["learning_rate"] = trainer.learning_rate(self._step - 1)
        return logs

    def _means(self, sums: Any, examples: int) -> dict[str, float]:
        """Loss and accuracy from their sums; the place to see that the loss is no number."""
        # Of a variable under a strategy, only its tensor can be read.
        bad = int(tf.convert_to_tensor(self._trainer.bad_step))
        loss = float(tf.convert_to_tensor(sums[0])) / examples
        correct = int(tf.convert_to_tensor(sums[1])) / examples
        if bad >= 0:
            epoch, step = divmod(bad, self._trainer.steps)
            raise TrainingError(
                f"The loss is no finite number at step {step + 1} of epoch {epoch + 1} (step "
                f"{bad + 1} of all); a lower learning rate or a longer warm-up usually helps"
            )
        return {"loss": loss, "accuracy": correct}

    def _check_finite(self) -> None:
        """Raises if the loss or a weight is no finite number.

        A weight may be none while the loss still is: some rectifiers make 0 of what is no number.
        """
        self._means(self._trainer.totals, 1)
        if not self._trainer.is_finite():
            raise TrainingError(
                f"The weights are no finite numbers after step {self._step} of all; a lower "
                "learning rate or a longer warm-up usually helps"
            )

    def _validate(self) -> tuple[dict[str, float], list[Any]]:
        """What the test split says of the weights that would be kept, and those weights."""
        weights: list[Any] = []
        self._trainer.average_statistics()
        with self._trainer.averaged_weights():
            self._evaluation = self._evaluate()
            accuracy = self._evaluation.accuracy
            if self._trainer.recipe.early_stopping and (
                self._best is None or accuracy > self._best
            ):
                self._best, self._epochs_since_best = accuracy, 0
                self._trainer.keep_as_best()
            else:
                self._epochs_since_best += 1
            if self._writer is not None and self._writer.writes:
                weights = self._network.get_weights()
        logs = {"val_loss": self._evaluation.loss, "val_accuracy": accuracy}
        if self._evaluation.top5 is not None:
            logs["val_top5"] = self._evaluation.top5
        return logs, weights

    def _evaluate(self) -> Evaluation:
        batch_size = 2 * self._trainer.recipe.batch_size // self._trainer.accumulate
        return self._evaluator(self._data.test, self._preprocessing, batch_size)

    def _stops_early(self, progress: Progress) -> bool:
        patience = self._trainer.recipe.early_stopping
        if not patience or self._epochs_since_best < patience:
            return False
        progress.note(
            f"stopping: no better test accuracy than {self._best:.2%} for {patience} epochs"
        )
        return True

    def _save_epochs(self) -> None:
        # `_validate` has averaged what is saved. The other workers, whose clocks differ, need not
        # take part.
        if self._writer is None or not self._writer.writes:
            return
        with _attribute(self._network, "optimizer", None), self._trainer.averaged_weights():
            self._writer.save(self._network, self.history)

    def _checkpoint_if_due(self, signals: Signals, *, always: bool = False) -> None:
        """Writes a checkpoint if it is time; also if a signal came, which ends the training."""
        if self._writer is None:
            return
        is_due, received = self._agreement.on(self._step, self._schedule, signals.received)
        if is_due or received or always:
            self._write_checkpoint(self._writer)
        if received:
            raise Interrupted(
                f"interrupted after {self._where()}; the checkpoint is in "
                f"{self._writer.checkpoints.directory}",
                received,
            )

    @property
    def _step(self) -> int:
        """How many steps of the whole training were taken."""
        epoch, taken = self._position
        return epoch * self._trainer.steps + taken

    def _where(self) -> str:
        return f"step {self._step} of {self._trainer.recipe.epochs * self._trainer.steps}"

    def _write_checkpoint(self, writer: RunWriter) -> None:
        self._trainer.average_statistics()
        self._check_finite()
        epoch, taken = self._position
        state = {
            "epoch": epoch,
            "steps": taken,
            "seconds": self._seconds,
            "history": self.history,
            "best": self._best,
            "epochs_since_best": self._epochs_since_best,
            "over": self._is_over,
        }
        writer.save_checkpoint(self._step, state)
        self._schedule.was_written()


@contextlib.contextmanager
def listening(
    callbacks: Sequence[keras.callbacks.Callback],
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    recipe: Recipe,
) -> Iterator[keras.callbacks.CallbackList]:
    """Keras callbacks, from their beginning to their end; they look for the optimizer there."""
    with _attribute(network, "optimizer", optimizer):
        listeners = keras.callbacks.CallbackList(
            list(callbacks), model=network, epochs=recipe.epochs, verbose=0
        )
        listeners.on_train_begin()
        yield listeners
        listeners.on_train_end()


@contextlib.contextmanager
def _attribute(network: keras.Model, name: str, value: Any) -> Iterator[None]:
    """Another value of an attribute for a while: Keras saves an optimizer that it finds there."""
    before = getattr(network, name, None)
    setattr(network, name, value)
    try:
        yield
    finally:
        setattr(network, name, before)


def _hears_batches(callback: keras.callbacks.Callback) -> bool:
    # LambdaCallback sets its hooks on the instance, so the class alone does not tell.
    return any(
        getattr(getattr(callback, hook), "__func__", None)
        is not getattr(keras.callbacks.Callback, hook)
        for hook in ("on_train_batch_end", "on_batch_end")
    )

"""The training loop: one for every `tf.distribute` strategy.

Keras's own `fit` fails under MultiWorkerMirroredStrategy (keras-team/keras#20585). This loop needs
nothing but what `tf.distribute` documents: a distributed data set, `strategy.run` of a step whose
loss is divided by the global batch, and sums over the replicas.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import data as data_module
from keras_resnet.data import ImageData, Split
from keras_resnet.data.augment import Augmentation
from keras_resnet.models import check_classes
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.board import Board
from keras_resnet.training.checkpoints import CheckpointError, Checkpoints
from keras_resnet.training.evaluation import Evaluator
from keras_resnet.training.interruption import Agreement, Interrupted, Schedule, Signals
from keras_resnet.training.metrics import Evaluation
from keras_resnet.training.progress import Progress
from keras_resnet.training.recipes import Recipe, get_recipe
from keras_resnet.training.runs import RunWriter, is_finished, load_run, refuse_existing_run
from keras_resnet.training.step import Trainer, share_of_worker
from keras_resnet.training.strategies import is_chief, resolve_strategy

# With a run directory, a finished epoch is saved if the last save is this many seconds old.
_SAVE_SECONDS = 30.0

_PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "float64")

# Batches over which `precise_bn` takes the statistics, at most.
_PRECISE_BATCHES = 200


# The confusions of more classes than this are left out of run.json; a thousand make a million.
_CLASSES_IN_RUN_JSON = 100


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says at which step and why."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training gave.

    Attributes:
        model: the trained model, free of the strategy.
        history: one dictionary per epoch.
        run_dir: where the run was written, or None.
        evaluation: of the trained model on the test split; None for a run that was finished before.
    """

    model: keras.Model
    history: list[dict[str, float]]
    run_dir: Path | None
    evaluation: Evaluation | None = None


def fit(
    model: keras.Model | Callable[[], keras.Model],
    data: ImageData | str,
    recipe: Recipe | str,
    strategy: str | tf.distribute.Strategy | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    accumulate: int = 1,
    precision: str | None = None,
    class_weights: Mapping[str, float] | str | None = None,
    precise_bn: bool = False,
    checkpoint_every: int | str = "10m",
    keep_checkpoints: int = 3,
    resume: bool = False,
    profile: tuple[int, int] | None = None,
    verbose: bool = True,
    force: bool = False,
) -> Result:
    """Trains an image classifier.

    With a run directory, a training that was killed goes on with `resume=True` as if nothing had
    happened: on one CPU device the weights come out bit by bit the same, provided that TensorFlow's
    operations are deterministic (`tf.config.experimental.enable_op_determinism()`, which is for
    the program to call, since it holds for the whole process; `keras-resnet train` does).

    Args:
        model: a function that builds a functional classifier (called inside the strategy's scope),
            or a ready one, which gets the trained weights. Several workers need a function: a
            ready model has started TensorFlow before the strategy could.
        data: a source, or its name.
        recipe: a recipe, or its name.
        strategy: see `resolve_strategy`; None means "auto".
        run_dir: directory for `model.keras`, `history.csv`, `run.json`, `curves.png`, from the
            first finished epoch on, the checkpoints and the summaries for TensorBoard; None writes
            nothing.
        preprocessing: how the network's input is made; None takes the model's own.
        callbacks: Keras callbacks. Those with hooks for batches make every step wait for its loss;
            those that change the learning rate need a recipe with a constant one and no warm-up.
            What they remember is not part of a checkpoint.
        seed: of the initial weights (when `model` is a function), the order and the augmentation.
        accumulate: micro-batches per step, for a global batch that does not fit into the memory;
            the gradients are added up. Exactly the same without batch statistics; with batch
            normalization each micro-batch is normalized by its own.
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"` (with loss scaling), a
            Keras dtype policy for the function `model`; the head and the loss stay in float32.
        class_weights: factors on the loss by class name, or `"balanced"`: the number of examples
            over the number of classes over the number of examples of the class. The sum of an
            epoch's losses is over the weighted losses.
        precise_bn: recompute batch normalization's statistics over training data at the end.
        checkpoint_every: steps between two checkpoints, or a time such as `"10m"`.
        keep_checkpoints: how many of the newest are kept.
        resume: go on from the last checkpoint in `run_dir`, or start if there is none.
        profile: `(first, last)` step of the training to profile, for TensorBoard.
        verbose: whether to show the progress.
        force: whether a run that is at `run_dir` already may be overwritten.

    Returns:
        A `Result`.

    Raises:
        ValueError: if model, data and recipe do not fit together, or not with the run to resume.
        FileExistsError: if there is a run at `run_dir` and neither `force` nor `resume` is on.
        TrainingError: if the loss is no longer a finite number.
        CheckpointError: if a checkpoint cannot be written, or none can be read.
        Interrupted: after SIGINT (Ctrl-C) or SIGTERM, when the checkpoint is written. It is a
            `KeyboardInterrupt`.
    """
    # What can be wrong is checked in the order of its cost; what is there already, on every worker
    # and before the strategy waits for the others, though the chief alone writes later.
    recipe = get_recipe(recipe)
    _check_arguments(seed, precision, resume, run_dir, accumulate)
    schedule = Schedule(checkpoint_every)
    if run_dir is not None:
        refuse_existing_run(run_dir, force, resume=resume)
    data = data_module.load(data) if isinstance(data, str) else data
    weights = _class_weights(class_weights, data)
    resolved = resolve_strategy(strategy)
    chief, replicas = is_chief(resolved), resolved.num_replicas_in_sync
    _check_batch(recipe, data, replicas, accumulate)
    keras.utils.set_random_seed(seed)
    steps = data.train.examples // recipe.batch_size
    with resolved.scope():
        network = _in_scope(model, precision)
        _check_accumulation(network, accumulate, replicas)
        trainer = Trainer(
            network, recipe, resolved, steps, accumulate=accumulate, class_weights=weights
        )
    check_classes(network, data.name, data.class_names)
    if preprocessing is None:
        preprocessing = Preprocessing.from_model(network)
    if getattr(network, "class_names", ()) is None:
        network.class_names = data.class_names
    writer = None
    if run_dir is not None:
        settings = {
            "seed": seed,
            "accumulate": accumulate,
            "precision": precision,
            "sync_bn": _is_synchronized(network),
            "class_weights": class_weights,
            "precise_bn": precise_bn,
        }
        directory = Path(run_dir) / "checkpoints"
        writer = RunWriter(
            run_dir,
            network,
            data,
            recipe,
            preprocessing,
            replicas,
            settings,
            Checkpoints(directory, trainer.state(), keep=keep_checkpoints),
            writes=chief,
        )
    training = _Training(trainer, data, preprocessing, seed, schedule, writer, is_chief=chief)
    try:
        with _callbacks(callbacks, network, trainer.optimizer, recipe) as listeners:
            finished = training.run(listeners, resume=resume, verbose=verbose, profile=profile)
        if not finished:
            return _finished_before(network, model, resolved, Path(str(run_dir)))
        evaluation = training.finish(precise_bn=precise_bn)
    except BaseException as error:
        training.save_finished_epochs(error)
        training.say_how_it_goes_on(error)
        raise
    return Result(
        _free(network, model, resolved),
        training.history,
        None if run_dir is None else Path(run_dir),
        evaluation,
    )


def evaluate(
    model: keras.Model,
    data: ImageData | Split | str,
    *,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 256,
    strategy: str | tf.distribute.Strategy | None = "default",
    verbose: bool = False,
) -> Evaluation:
    """Measures a classifier on a source's test split, or on any split.

    Args:
        model: a functional classifier.
        data: a source, its name, or a split.
        preprocessing: how the network's input is made; None takes the model's own.
        batch_size: examples per step, over all replicas; the result does not depend on it.
        strategy: see `resolve_strategy`. The model must have been built in its scope.
        verbose: whether to show how far it is.
    """
    data = data_module.load(data) if isinstance(data, str) else data
    _check_input(model)
    if isinstance(data, ImageData):
        check_classes(model, data.name, data.class_names)
    split = data.test if isinstance(data, ImageData) else data
    preprocessing = preprocessing or Preprocessing.from_model(model)
    evaluator = Evaluator(model, resolve_strategy(strategy))
    return evaluator(split, preprocessing, batch_size, verbose=verbose)


class _Training:
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
        trainer, recipe = self._trainer, self._trainer.recipe
        damaged: list[str] = []
        if resume and self._writer is not None and is_finished(self._writer.directory):
            self._writer.check_settings()
            return False
        if resume:
            damaged = self._resume()
        first_epoch, taken = self._position
        progress = Progress(
            recipe.epochs,
            trainer.steps,
            recipe.batch_size,
            done=first_epoch * trainer.steps + taken,
            enabled=verbose and self._is_chief,
        )
        writer = self._writer
        board = Board(writer.directory if writer and writer.writes else None, profile)
        self._network.stop_training = False
        saved = time.monotonic()
        with Signals(enabled=writer is not None) as signals, board, progress:
            for line in damaged:
                progress.note(f"left out a damaged checkpoint: {line}")
            if first_epoch or taken:
                progress.note(f"going on after {self._where()}")
            for epoch in range(first_epoch, 0 if self._is_over else recipe.epochs):
                trainer.begin_epoch(epoch)
                listeners.on_epoch_begin(epoch)
                logs = self._train_epoch(epoch, listeners, progress, board, signals)
                self._check_finite((epoch + 1) * trainer.steps)
                validation, weights = self._validate()
                logs |= validation
                listeners.on_epoch_end(epoch, logs)
                self.history.append({"epoch": epoch + 1, **logs})
                self._position, self._seconds = (epoch + 1, 0), 0.0
                trainer.reset_totals()
                progress.end_epoch(epoch, logs)
                board.epoch((epoch + 1) * trainer.steps, logs)
                self._is_over = (
                    self._stops_early(progress)
                    or self._network.stop_training
                    or epoch + 1 == recipe.epochs
                )
                # With the first epoch's, there is a model that must not be lost; what follows the
                # last may take long.
                self._checkpoint_if_due(signals, always=epoch == 0 or self._is_over)
                self._finished_weights = weights
                if self._is_over:
                    break
                if time.monotonic() - saved > _SAVE_SECONDS:
                    self._save_epochs()
                    saved = time.monotonic()
        return True

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
        step = 0 if state is None else state["epoch"] * self._trainer.steps + state["steps"]
        if not self._agreement.is_on(step):
            raise CheckpointError(
                "The workers have found different checkpoints; every machine must see the same "
                f"run directory. Received: {self._writer.directory}, which ends at step {step} here"
            )
        if state is None:
            return []
        self._is_over = state["over"]
        self._position = (state["epoch"], state["steps"])
        self._seconds = state["seconds"]
        self.history = state["history"]
        self._best, self._epochs_since_best = state["best"], state["epochs_since_best"]
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
        started = time.perf_counter() - self._seconds
        taken = first
        with self._data.train.own_errors():
            batches = self._batches(epoch, first)
            for step in range(first, trainer.steps):
                board.before_step(epoch * trainer.steps + step)
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
                    board.progress(epoch * trainer.steps + taken, logs)
                if self._network.stop_training:
                    break
                if taken < trainer.steps:  # else the epoch is evaluated first
                    self._checkpoint_if_due(signals)
        logs = self._means(trainer.totals, taken * batch_size)
        logs["images_per_second"] = taken * batch_size / (time.perf_counter() - started)
        logs["learning_rate"] = trainer.learning_rate(epoch * trainer.steps + taken - 1)
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

    def _check_finite(self, step: int) -> None:
        """Raises if the loss or a weight is no finite number.

        A weight may be none while the loss still is: some rectifiers make 0 of what is no number.
        """
        self._means(self._trainer.totals, 1)
        if not self._trainer.is_finite():
            raise TrainingError(
                f"The weights are no finite numbers after step {step} of all; a lower learning "
                "rate or a longer warm-up usually helps"
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
        epoch, taken = self._position
        step = epoch * self._trainer.steps + taken
        is_due, received = self._agreement.on(step, self._schedule, signals.received)
        if is_due or received or always:
            self._write_checkpoint(self._writer, step)
        if received:
            raise Interrupted(
                f"interrupted after {self._where()}; the checkpoint is in "
                f"{self._writer.checkpoints.directory}",
                received,
            )

    def _where(self) -> str:
        epoch, taken = self._position
        steps = self._trainer.steps
        return f"step {epoch * steps + taken} of {self._trainer.recipe.epochs * steps}"

    def _write_checkpoint(self, writer: RunWriter, step: int) -> None:
        self._trainer.average_statistics()
        self._check_finite(step)
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
        writer.save_checkpoint(step, state)
        self._schedule.was_written()


def _in_scope(model: keras.Model | Callable[[], keras.Model], precision: str | None) -> keras.Model:
    """The network to train, with its variables in the scope that this is called in."""
    if not isinstance(model, keras.Model):
        if not callable(model):
            raise ValueError(
                "Argument `model` must be a functional keras.Model or a function that builds one. "
                f"Received: {type(model).__name__}"
            )
        with _policy(precision):
            model = model()
        if not isinstance(model, keras.Model):
            raise ValueError(
                "The function `model` must return a functional keras.Model. "
                f"Received: {type(model).__name__}"
            )
        network = model
    elif precision is not None:
        raise ValueError(
            "A ready model has its precision; give a function that builds one, or leave "
            f"`precision` out. Received: precision={precision!r}"
        )
    else:
        network = _copy(model) if tf.distribute.has_strategy() else model
    _check_input(network)
    if any(layer.variable_dtype in ("float16", "bfloat16") for layer in network.layers):
        raise ValueError(
            "Weights are trained in float32 at least: small steps would be lost. Use the dtype "
            "policy 'mixed_bfloat16' or 'mixed_float16'. Received: a model whose weights are in "
            "16 bits"
        )
    return network


@contextlib.contextmanager
def _policy(precision: str | None) -> Iterator[None]:
    """Keras's global dtype policy for a while."""
    before = keras.config.dtype_policy()
    if precision is not None:
        keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _finished_before(
    network: keras.Model,
    given: keras.Model | Callable[[], keras.Model],
    strategy: tf.distribute.Strategy,
    run_dir: Path,
) -> Result:
    """The result of a run that needs no more training."""
    run = load_run(run_dir)
    network.set_weights(run.model.get_weights())
    return Result(_free(network, given, strategy), run.history, run_dir)


def _free(
    network: keras.Model,
    given: keras.Model | Callable[[], keras.Model],
    strategy: tf.distribute.Strategy,
) -> keras.Model:
    """The trained model outside the strategy: the one that was given, or a copy of the network."""
    if isinstance(given, keras.Model):
        if given is not network:
            given.set_weights(network.get_weights())
            if hasattr(network, "class_names"):
                given.class_names = network.class_names
        return given
    is_default = strategy is tf.distribute.get_strategy()  # outside of every scope
    return network if is_default else _copy(network)


def _copy(model: keras.Model) -> keras.Model:
    copy = model.__class__.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def _check_arguments(
    seed: Any, precision: Any, resume: bool, run_dir: Any, accumulate: Any
) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(
            f"Argument `seed` must be 0 or a positive integer. Received: seed={seed!r}"
        )
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(
            f"Argument `accumulate` must be a positive integer. Received: {accumulate!r}"
        )
    if precision not in (None, *_PRECISIONS):
        raise ValueError(
            f"Argument `precision` must be one of {list(_PRECISIONS)}, or None for that of the "
            f"model. Received: precision={precision!r}"
        )
    if resume and run_dir is None:
        raise ValueError(
            "To resume a training, give the `run_dir` with its checkpoints. Received: run_dir=None"
        )


def _class_weights(given: Mapping[str, float] | str | None, data: ImageData) -> np.ndarray | None:
    """A factor for each class, float64 `(classes,)`."""
    if given is None:
        return None
    if given == "balanced":
        counts = data.train.class_counts(len(data.class_names))
        return counts.sum() / (len(counts) * np.maximum(counts, 1))
    if not isinstance(given, Mapping):
        raise ValueError(
            "Argument `class_weights` must be 'balanced' or a mapping from class names to factors. "
            f"Received: {given!r}"
        )
    unknown = set(given) - set(data.class_names)
    if unknown:
        raise ValueError(
            f"Argument `class_weights` must name classes of {data.name}: "
            f"{list(data.class_names)[:20]}. Received: {sorted(unknown)[0]!r}"
        )
    weights = np.array([given.get(name, 1.0) for name in data.class_names], np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(
            f"Argument `class_weights` must hold finite factors of 0 or more. Received: {given!r}"
        )
    return weights


def _check_batch(recipe: Recipe, data: ImageData, replicas: int, accumulate: int) -> None:
    if recipe.batch_size > data.train.examples:
        raise ValueError(
            "Recipe field `batch_size` must be at most the number of training images. Received: "
            f"batch_size={recipe.batch_size} for {data.train.examples} images of {data.name}"
        )
    if recipe.batch_size % (replicas * accumulate):
        raise ValueError(
            "Recipe field `batch_size`, the global batch, must be a multiple of the replicas times "
            f"`accumulate`. Received: batch_size={recipe.batch_size}, accumulate={accumulate} for "
            f"{replicas} replicas"
        )


def _is_synchronized(network: keras.Model) -> bool:
    return any(getattr(layer, "synchronized", False) for layer in network.layers)


def _check_accumulation(network: keras.Model, accumulate: int, replicas: int) -> None:
    if accumulate > 1 and replicas > 1 and _is_synchronized(network):
        raise ValueError(
            "Synchronized batch normalization cannot be combined with `accumulate` over several "
            "replicas: they would have to meet within every micro-batch. Leave one of them out. "
            f"Received: accumulate={accumulate}"
        )


def _check_input(model: keras.Model) -> None:
    if not getattr(model, "inputs", None) or len(model.inputs) != 1:
        raise ValueError(
            f"Argument `model` must be a functional keras.Model with one input. Received: {model!r}"
        )
    if len(model.input_shape) != 4 or None in model.input_shape[1:]:
        raise ValueError(
            "Argument `model` must take images of a fixed size (height, width, channels); build it "
            f"with `input_shape`. Received: input shape {model.input_shape}"
        )
    if model.input_shape[-1] not in (1, 3):
        raise ValueError(
            "Argument `model` must take images of 3 channels (RGB) or 1 (grey). "
            f"Received: channels={model.input_shape[-1]}"
        )


@contextlib.contextmanager
def _callbacks(
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

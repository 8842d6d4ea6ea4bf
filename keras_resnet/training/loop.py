"""The training loop: one for every `tf.distribute` strategy.

Keras's own `fit` fails under MultiWorkerMirroredStrategy (keras-team/keras#20585). This loop needs
nothing but what `tf.distribute` documents: a distributed data set, `strategy.run` of a step whose
loss is divided by the global batch, and sums over the replicas.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_resnet import data as data_module
from keras_resnet.data import ImageData, Split
from keras_resnet.models import check_classes, split_head
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.progress import Progress
from keras_resnet.training.recipes import Recipe, get_recipe
from keras_resnet.training.runs import RunWriter, refuse_existing_run
from keras_resnet.training.strategies import is_chief, resolve_strategy

# With a run directory, a finished epoch is saved if the last save is this many seconds old.
_SAVE_SECONDS = 30.0


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says at which step and why."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model names the images of a split; every example counts once.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: share of the examples whose highest score is the label's.
        correct: the number of those examples.
        examples: the number of all.
    """

    loss: float
    accuracy: float
    correct: int
    examples: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training gave.

    Attributes:
        model: the trained model, free of the strategy.
        history: one dictionary per epoch.
        run_dir: where the run was written, or None.
    """

    model: keras.Model
    history: list[dict[str, float]]
    run_dir: Path | None


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
    verbose: bool = True,
    force: bool = False,
) -> Result:
    """Trains an image classifier.

    Args:
        model: a function that builds a functional classifier (called inside the strategy's scope),
            or a ready one, which gets the trained weights. Several workers need a function: a
            ready model has started TensorFlow before the strategy could.
        data: a source, or its name.
        recipe: a recipe, or its name.
        strategy: see `resolve_strategy`; None means "auto".
        run_dir: directory for `model.keras`, `history.csv`, `run.json` and `curves.png`, from the
            first finished epoch on; None writes nothing.
        preprocessing: how the network's input is made; None takes the model's own.
        callbacks: Keras callbacks. Those with hooks for batches make every step wait for its loss;
            those that change the learning rate need a recipe with a constant one and no warm-up.
        seed: of the initial weights (when `model` is a function), the order and the augmentation.
        verbose: whether to show the progress.
        force: whether a run that is at `run_dir` already may be overwritten.

    Returns:
        A `Result`.

    Raises:
        ValueError: if model, data and recipe do not fit together.
        FileExistsError: if there is a run at `run_dir` and `force` is off.
        TrainingError: if the loss is no longer a finite number.
    """
    recipe = get_recipe(recipe)
    data = data_module.load(data) if isinstance(data, str) else data
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(
            f"Argument `seed` must be 0 or a positive integer. Received: seed={seed!r}"
        )
    if run_dir is not None:
        # On every worker, and before the strategy waits for the others: the chief writes later.
        refuse_existing_run(run_dir, force)
    resolved = resolve_strategy(strategy)
    chief, replicas = is_chief(resolved), resolved.num_replicas_in_sync
    _check_batch(recipe, data, replicas)
    keras.utils.set_random_seed(seed)
    steps = data.train.examples // recipe.batch_size
    with resolved.scope():
        network = _in_scope(model)
        trainer = _Trainer(network, recipe, resolved, steps)
    check_classes(network, data.name, data.class_names)
    if preprocessing is None:
        preprocessing = Preprocessing.from_model(network)
    if getattr(network, "class_names", ()) is None:
        network.class_names = data.class_names
    writer = None
    if run_dir is not None and chief:
        writer = RunWriter(run_dir, network, data, recipe, preprocessing, replicas, seed)

    finished = _Finished()
    try:
        with _callbacks(callbacks, network, trainer.optimizer, recipe) as listeners:
            progress = Progress(recipe.epochs, steps, recipe.batch_size, enabled=verbose and chief)
            _train(trainer, data, preprocessing, seed, listeners, progress, writer, finished)
    except BaseException:
        # Interrupted, or the weights are spoiled: what the last finished epoch gave is not lost.
        if writer is not None and finished.history:
            network.set_weights(finished.weights)
            writer.save(network, finished.history, "interrupted")
        raise
    if writer is not None:
        writer.save(network, finished.history, "finished")
    return Result(
        _free(network, model, resolved),
        finished.history,
        None if run_dir is None else Path(run_dir),
    )


def evaluate(
    model: keras.Model,
    data: ImageData | Split | str,
    *,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 256,
    strategy: str | tf.distribute.Strategy | None = "default",
) -> Evaluation:
    """Measures a classifier on a source's test split, or on any split.

    Args:
        model: a functional classifier.
        data: a source, its name, or a split.
        preprocessing: how the network's input is made; None takes the model's own.
        batch_size: examples per step, over all replicas; the result does not depend on it.
        strategy: see `resolve_strategy`. The model must have been built in its scope.
    """
    data = data_module.load(data) if isinstance(data, str) else data
    _check_input(model)
    if isinstance(data, ImageData):
        check_classes(model, data.name, data.class_names)
    split = data.test if isinstance(data, ImageData) else data
    preprocessing = preprocessing or Preprocessing.from_model(model)
    return _Evaluator(model, resolve_strategy(strategy))(split, preprocessing, batch_size)


@dataclasses.dataclass
class _Finished:
    """What the epochs that were finished gave: a dictionary for each, and the last's weights."""

    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    weights: list[Any] = dataclasses.field(default_factory=list)


def _train(
    trainer: _Trainer,
    data: ImageData,
    preprocessing: Preprocessing,
    seed: int,
    listeners: keras.callbacks.CallbackList,
    progress: Progress,
    writer: RunWriter | None,
    finished: _Finished,
) -> None:
    """All epochs, each noted in `finished`."""
    network, recipe = trainer.network, trainer.recipe
    evaluator = _Evaluator(network, trainer.strategy)
    saved = time.monotonic()
    network.stop_training = False
    with progress:
        for epoch in range(recipe.epochs):
            listeners.on_epoch_begin(epoch)
            batches = data_module.batches(
                data.train,
                recipe.batch_size,
                network.input_shape[1:],
                preprocessing,
                dtype=_dtype(network),
                augment=recipe.augment,
                shuffle=(seed, epoch),
                drop_remainder=True,
            )
            with data.train.own_errors():
                logs = _train_epoch(trainer, batches, epoch, listeners, progress)
            trainer.average_statistics()
            validation = evaluator(data.test, preprocessing, 2 * recipe.batch_size)
            logs |= {"val_loss": validation.loss, "val_accuracy": validation.accuracy}
            listeners.on_epoch_end(epoch, logs)
            finished.history.append({"epoch": epoch + 1, **logs})
            progress.end_epoch(epoch, logs)
            if writer is not None:
                finished.weights = network.get_weights()
                if time.monotonic() - saved > _SAVE_SECONDS:
                    with _attribute(network, "optimizer", None):
                        writer.save(network, finished.history)
                    saved = time.monotonic()
            if network.stop_training:
                break


def _train_epoch(
    trainer: _Trainer,
    batches: tf.data.Dataset,
    epoch: int,
    listeners: keras.callbacks.CallbackList,
    progress: Progress,
) -> dict[str, float]:
    """The steps of one epoch; figures are read from the device only when somebody wants them."""
    batch_size, steps = trainer.recipe.batch_size, trainer.steps
    hears_batches = any(_hears_batches(callback) for callback in listeners.callbacks)
    iterator = iter(trainer.strategy.experimental_distribute_dataset(batches))
    started = time.perf_counter()
    totals: Any = None
    step = 0
    for step in range(steps):
        listeners.on_train_batch_begin(step)
        sums = trainer.step(iterator)
        totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
        if hears_batches:
            listeners.on_train_batch_end(step, _means(sums, epoch, step, batch_size))
        if progress.is_due():
            seen = (step + 1) * batch_size
            progress.update(epoch, step + 1, _means(totals, epoch, step, seen))
        if trainer.network.stop_training:
            break
    seen = (step + 1) * batch_size
    logs = _means(totals, epoch, step, seen)
    logs["images_per_second"] = seen / (time.perf_counter() - started)
    logs["learning_rate"] = trainer.learning_rate(epoch * steps + step)
    return logs


def _sum_over_replicas(
    strategy: tf.distribute.Strategy, replica_step: Callable[..., list[tf.Tensor]]
) -> Callable[[Any], list[tf.Tensor]]:
    """A compiled step from an iterator of batches to the sums of what each replica returned."""

    def step(iterator: Any) -> list[tf.Tensor]:
        images, labels = next(iterator)
        values = strategy.run(replica_step, args=(images, labels))
        return [strategy.reduce("SUM", value, axis=None) for value in values]

    return tf.function(step)


class _Trainer:
    """One step of stochastic gradient descent, over all replicas. Made in the strategy's scope."""

    def __init__(
        self,
        network: keras.Model,
        recipe: Recipe,
        strategy: tf.distribute.Strategy,
        steps: int,
    ):
        self.network = network
        self.steps = steps  # per epoch
        self.recipe = recipe
        self.strategy = strategy
        self._rate = recipe.learning_rate_schedule(steps)
        self.optimizer = keras.optimizers.SGD(
            self._rate, momentum=recipe.momentum, nesterov=recipe.nesterov
        )
        self._scores, self._are_logits = split_head(network)
        self.optimizer.build(network.trainable_variables)
        # A kernel has at least two axes; biases and batch normalization have one.
        self._decayed = [len(v.shape) > 1 for v in network.trainable_variables]
        self.step = _sum_over_replicas(strategy, self._replica_step)
        self.average_statistics = tf.function(self._average_statistics)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        recipe, replicas = self.recipe, self.strategy.num_replicas_in_sync
        variables = self.network.trainable_variables
        with tf.GradientTape() as tape:
            scores = self._scores(images, training=True)
            losses = _cross_entropy(labels, scores, self._are_logits, recipe.label_smoothing)
            loss = tf.reduce_sum(losses) / recipe.batch_size
            for extra in self._scores.losses:  # a user's own regularizers
                loss += tf.cast(extra, loss.dtype) / replicas
        gradients = tape.gradient(loss, variables)
        if recipe.weight_decay:
            # The optimizer sums over the replicas, so each adds its share of the decay.
            share = recipe.weight_decay / replicas
            gradients = [
                gradient + share * tf.cast(variable, gradient.dtype) if is_decayed else gradient
                for gradient, variable, is_decayed in zip(
                    gradients, variables, self._decayed, strict=True
                )
            ]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return [tf.reduce_sum(losses), _count_correct(labels, scores)]

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, 1, ... of the whole training."""
        if isinstance(self._rate, float):  # callbacks may have changed it
            return float(tf.convert_to_tensor(self.optimizer.learning_rate))
        return float(self._rate(step))

    def _average_statistics(self) -> None:
        """Brings batch normalization's moving statistics of all replicas to their mean.

        Keras keeps those of each replica apart, and would save replica 0's.
        """
        if self.strategy.num_replicas_in_sync == 1:
            return

        def average() -> None:
            context = tf.distribute.get_replica_context()
            for variable in self.network.non_trainable_variables:
                if variable.dtype.startswith("float"):
                    # The copy is needed: collectives across workers refuse a variable's own value.
                    value = tf.identity(tf.convert_to_tensor(variable))
                    variable.assign(context.all_reduce("MEAN", value))

        self.strategy.run(average)


class _Evaluator:
    """Loss and accuracy, over all replicas; sums of examples, so that every example counts once."""

    def __init__(self, network: keras.Model, strategy: tf.distribute.Strategy):
        self._network = network
        self._strategy = strategy
        self._scores, self._are_logits = split_head(network)
        self._step = _sum_over_replicas(strategy, self._replica_step)

    def __call__(self, split: Split, preprocessing: Preprocessing, batch_size: int) -> Evaluation:
        # Every batch gets the same size, a multiple of the replicas: a replica without an example
        # cannot run the network. What is added has the label -1 and does not count.
        replicas = self._strategy.num_replicas_in_sync
        full = math.ceil(batch_size / replicas) * replicas
        shape = self._network.input_shape[1:]

        def pad(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            missing = full - tf.shape(labels)[0]
            images = tf.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
            labels = tf.pad(labels, [(0, missing)], constant_values=-1)
            return tf.ensure_shape(images, (full, *shape)), tf.ensure_shape(labels, (full,))

        batches = data_module.batches(
            split, batch_size, shape, preprocessing, dtype=_dtype(self._network)
        )
        iterator = iter(self._strategy.experimental_distribute_dataset(batches.map(pad)))
        loss, correct = 0.0, 0
        for _ in range(math.ceil(split.examples / batch_size)):
            with split.own_errors():
                batch_loss, batch_correct = self._step(iterator)
            loss += float(batch_loss)
            correct += int(batch_correct)
        return Evaluation(loss / split.examples, correct / split.examples, correct, split.examples)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        scores = self._scores(images, training=False)
        losses = _cross_entropy(
            tf.maximum(labels, 0), scores, self._are_logits, label_smoothing=0.0
        )
        return [
            tf.reduce_sum(tf.where(labels < 0, tf.zeros_like(losses), losses)),
            _count_correct(labels, scores),
        ]


def _cross_entropy(
    labels: tf.Tensor, scores: tf.Tensor, are_logits: bool, label_smoothing: float
) -> tf.Tensor:
    """Cross-entropy of every example, `(batch,)`, in nats."""
    if label_smoothing == 0.0:
        return keras.losses.sparse_categorical_crossentropy(labels, scores, from_logits=are_logits)
    targets = tf.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
    return keras.losses.categorical_crossentropy(
        targets, scores, from_logits=are_logits, label_smoothing=label_smoothing
    )


def _count_correct(labels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    named = tf.argmax(scores, axis=-1, output_type=labels.dtype)
    return tf.reduce_sum(tf.cast(named == labels, tf.int64))


def _means(sums: Any, epoch: int, step: int, examples: int) -> dict[str, float]:
    loss, correct = float(sums[0]) / examples, int(sums[1]) / examples
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss became {loss} at or before step {step + 1} of epoch {epoch + 1}; a lower "
            "learning rate or a longer warm-up usually helps"
        )
    return {"loss": loss, "accuracy": correct}


def _in_scope(model: keras.Model | Callable[[], keras.Model]) -> keras.Model:
    """The network to train, with its variables in the scope that this is called in."""
    if not isinstance(model, keras.Model):
        if not callable(model):
            raise ValueError(
                "Argument `model` must be a functional keras.Model or a function that builds one. "
                f"Received: {type(model).__name__}"
            )
        model = model()
        if not isinstance(model, keras.Model):
            raise ValueError(
                "The function `model` must return a functional keras.Model. "
                f"Received: {type(model).__name__}"
            )
        network = model
    else:
        network = _copy(model) if tf.distribute.has_strategy() else model
    _check_input(network)
    if any(layer.compute_dtype == "float16" for layer in network.layers):
        raise ValueError(
            "Training in float16 needs loss scaling, which this loop does not do: small gradients "
            "would vanish. Use the dtype policy 'mixed_bfloat16'. Received: a model that computes "
            "in float16"
        )
    return network


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


def _check_batch(recipe: Recipe, data: ImageData, replicas: int) -> None:
    if recipe.batch_size > data.train.examples:
        raise ValueError(
            "Recipe field `batch_size` must be at most the number of training images. Received: "
            f"batch_size={recipe.batch_size} for {data.train.examples} images of {data.name}"
        )
    if recipe.batch_size % replicas:
        raise ValueError(
            "Recipe field `batch_size`, the global batch, must be a multiple of the number of "
            f"replicas. Received: batch_size={recipe.batch_size} for {replicas} replicas"
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


def _dtype(model: keras.Model) -> str:
    return str(model.inputs[0].dtype)


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

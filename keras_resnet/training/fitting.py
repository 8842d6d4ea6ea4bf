"""Training and measuring an image classifier: what a user calls."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_resnet import data as data_module
from keras_resnet.data import ImageData, Split
from keras_resnet.models import check_classes
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.arguments import (
    check_accumulation,
    check_arguments,
    check_batch,
    check_input,
    class_weight_array,
    is_synchronized,
)
from keras_resnet.training.checkpoints import Checkpoints
from keras_resnet.training.evaluation import Evaluator
from keras_resnet.training.interruption import Schedule
from keras_resnet.training.loop import Loop, listening
from keras_resnet.training.metrics import Evaluation
from keras_resnet.training.networks import in_scope, outside
from keras_resnet.training.recipes import Recipe, get_recipe
from keras_resnet.training.runs import RunWriter, load_run, refuse_existing_run
from keras_resnet.training.step import Trainer
from keras_resnet.training.strategies import is_chief, resolve_strategy


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
    check_arguments(seed, precision, resume, run_dir, accumulate)
    schedule = Schedule(checkpoint_every)
    if run_dir is not None:
        refuse_existing_run(run_dir, force, resume=resume)
    data = data_module.load(data) if isinstance(data, str) else data
    weights = class_weight_array(class_weights, data)
    resolved = resolve_strategy(strategy)
    chief, replicas = is_chief(resolved), resolved.num_replicas_in_sync
    check_batch(recipe, data, replicas, accumulate)
    keras.utils.set_random_seed(seed)
    steps = data.train.examples // recipe.batch_size
    with resolved.scope():
        network = in_scope(model, precision)
        check_accumulation(network, accumulate, replicas)
        trainer = Trainer(
            network, recipe, resolved, steps, accumulate=accumulate, class_weights=weights
        )
    check_classes(network, data.name, data.class_names)
    if preprocessing is None:
        preprocessing = Preprocessing.from_model(network)
    if getattr(network, "class_names", ()) is None:
        network.class_names = data.class_names
    settings = {
        "seed": seed,
        "accumulate": accumulate,
        "precision": precision,
        "sync_bn": is_synchronized(network),
        "class_weights": class_weights,
        "precise_bn": precise_bn,
    }
    writer = None
    if run_dir is not None:
        checkpoints = Checkpoints(
            Path(run_dir) / "checkpoints", trainer.state(), keep=keep_checkpoints
        )
        writer = RunWriter(
            run_dir,
            network,
            data,
            recipe,
            preprocessing,
            replicas,
            settings,
            checkpoints,
            writes=chief,
        )
    loop = Loop(trainer, data, preprocessing, seed, schedule, writer, is_chief=chief)
    try:
        with listening(callbacks, network, trainer.optimizer, recipe) as listeners:
            finished = loop.run(listeners, resume=resume, verbose=verbose, profile=profile)
        if not finished:
            return _finished_before(network, model, resolved, Path(str(run_dir)))
        evaluation = loop.finish(precise_bn=precise_bn)
    except BaseException as error:
        loop.save_finished_epochs(error)
        loop.say_how_it_goes_on(error)
        raise
    return Result(
        outside(network, model, resolved),
        loop.history,
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
    check_input(model)
    if isinstance(data, ImageData):
        check_classes(model, data.name, data.class_names)
    split = data.test if isinstance(data, ImageData) else data
    preprocessing = preprocessing or Preprocessing.from_model(model)
    evaluator = Evaluator(model, resolve_strategy(strategy))
    return evaluator(split, preprocessing, batch_size, verbose=verbose)


def _finished_before(
    network: keras.Model,
    given: keras.Model | Callable[[], keras.Model],
    strategy: tf.distribute.Strategy,
    run_dir: Path,
) -> Result:
    """The result of a run that needs no more training."""
    run = load_run(run_dir)
    network.set_weights(run.model.get_weights())
    return Result(outside(network, given, strategy), run.history, run_dir)

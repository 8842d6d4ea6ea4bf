"""One step of training, over all replicas of a strategy, and what belongs to its state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.models import freeze, split_head
from keras_resnet.training.metrics import count_correct
from keras_resnet.training.recipes import Recipe

Step = Callable[[Any], list[tf.Tensor]]


def share_of_worker(
    strategy: tf.distribute.Strategy,
    batch_size: int,
    batches: Callable[[tuple[int, int]], tf.data.Dataset],
) -> Iterator[Any]:
    """An iterator over what this process reads of each global batch, split over its replicas.

    Args:
        strategy: says how many workers and replicas there are.
        batch_size: the global batch, a multiple of the replicas.
        batches: makes the data set of `share=(worker, workers)`.
    """

    def of_pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        share = (context.input_pipeline_id, context.num_input_pipelines)
        replicas = strategy.num_replicas_in_sync
        worker_batches = batches(share)
        if replicas == context.num_input_pipelines:
            return worker_batches
        return worker_batches.rebatch(batch_size // replicas, drop_remainder=True)

    return iter(strategy.distribute_datasets_from_function(of_pipeline))


def sum_over_replicas(
    strategy: tf.distribute.Strategy, replica_step: Callable[..., list[tf.Tensor]]
) -> Step:
    """A function of an iterator of batches that gives the sums of what each replica returned."""

    def step(iterator: Any) -> list[tf.Tensor]:
        values = strategy.run(replica_step, args=next(iterator))
        return [strategy.reduce("SUM", value, axis=None) for value in values]

    return step


def cross_entropy(
    labels: tf.Tensor, scores: tf.Tensor, are_logits: bool, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Cross-entropy of every example, `(batch,)`, in nats.

    `labels` are integers `(batch,)`, or shares of the classes `(batch, classes)`.
    """
    if labels.shape.rank == 1:
        if label_smoothing == 0.0:
            return keras.losses.sparse_categorical_crossentropy(
                labels, scores, from_logits=are_logits
            )
        labels = tf.one_hot(labels, scores.shape[-1])
    return keras.losses.categorical_crossentropy(
        tf.cast(labels, scores.dtype),
        scores,
        from_logits=are_logits,
        label_smoothing=label_smoothing,
    )


class Trainer:
    """One step of gradient descent, over all replicas. Made in the strategy's scope.

    Attributes:
        network: what is trained.
        steps: per epoch.
        accumulate: micro-batches per step.
        optimizer: its optimizer.
        totals: sums over the epoch so far: the loss, and the examples that were named right.
        bad_step: the first step of the training whose loss was not finite, or -1.
    """

    def __init__(
        self,
        network: keras.Model,
        recipe: Recipe,
        strategy: tf.distribute.Strategy,
        steps: int,
        *,
        accumulate: int = 1,
        class_weights: np.ndarray | None = None,
    ):
        self.network = network
        self.steps = steps
        self.recipe = recipe
        self.strategy = strategy
        self.accumulate = accumulate
        self._class_weights = class_weights
        self._rate = recipe.learning_rate_schedule(steps)
        self.optimizer = recipe.make_optimizer(steps)
        if any(layer.compute_dtype == "float16" for layer in network.layers):
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self._scores, self._are_logits = split_head(network)
        self.optimizer.build(network.trainable_variables)
        self._averages: list[tf.Variable] = []
        if recipe.ema:
            self._averages = [tf.Variable(v, trainable=False) for v in network.weights]
        self._best: list[tf.Variable] = []
        if recipe.early_stopping:
            self._best = [tf.Variable(v, trainable=False) for v in network.weights]
        self._taken = tf.Variable(0, dtype=tf.int64)
        self.bad_step = tf.Variable(-1, dtype=tf.int64)
        self.totals = [tf.Variable(0.0, dtype=tf.float64), tf.Variable(0, dtype=tf.int64)]
        self._frozen_layers: list[keras.layers.Layer] | None = None
        self._compile()
        self._swap_averages = tf.function(self._swap)
        self.keep_as_best = tf.function(self._keep_as_best)
        self.take_best = tf.function(self._take_best)
        self._all_finite = tf.function(self._are_finite)

    def state(self) -> dict[str, list[Any]]:
        """Every variable that decides how the training goes on, for a checkpoint.

        A network's `variables` hold, besides its weights, the states of its seed generators.
        """
        return {
            "network": list(self.network.variables),
            "optimizer": list(self.optimizer.variables),
            "averages": self._averages,
            "best": self._best,
            "progress": [self._taken, self.bad_step, *self.totals],
        }

    def begin_epoch(self, epoch: int) -> None:
        """Freezes or frees what the recipe says; must be called before the epoch's first step."""
        wants_frozen = bool(self.recipe.frozen) and epoch < self.recipe.frozen_epochs
        if wants_frozen and self._frozen_layers is None:
            before = [layer for layer in self.network.layers if layer.trainable]
            freeze(self.network, self.recipe.frozen, norm=False)
            self._frozen_layers = [layer for layer in before if not layer.trainable]
            self._compile()
        elif not wants_frozen:
            self.unfreeze()

    def unfreeze(self) -> None:
        """Frees what `begin_epoch` has frozen."""
        if self._frozen_layers is not None:
            for layer in self._frozen_layers:
                layer.trainable = True
            self._frozen_layers = None
            self._compile()

    def is_finite(self) -> bool:
        """Whether all weights are finite numbers."""
        return bool(self._all_finite())

    def _are_finite(self) -> tf.Tensor:
        weights = [v for v in self.network.weights if v.dtype.startswith("float")]
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(v)) for v in weights])

    def reset_totals(self) -> None:
        """To zero, for a new epoch."""
        for total in self.totals:
            total.assign(tf.zeros_like(total))

    def _compile(self) -> None:
        self._trained = list(self.network.trainable_variables)
        take = sum_over_replicas(self.strategy, self._replica_step)

        def step(iterator: Any) -> list[tf.Tensor]:
            sums = take(iterator)
            self.totals[0].assign_add(tf.cast(sums[0], tf.float64))
            self.totals[1].assign_add(sums[1])
            is_first_bad = (self.bad_step < 0) & ~tf.math.is_finite(sums[0])
            self.bad_step.assign(tf.where(is_first_bad, self._taken, self.bad_step))
            self._taken.assign_add(1)
            if self._averages:
                self._average_weights()
            return sums

        self.step = tf.function(step)
        self._average_statistics = tf.function(self._bring_statistics_together)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        gradients, sums = self._gradients(images, labels)
        if self.recipe.clip or self._scale is not None:
            gradients = self._over_all_replicas(gradients)
        gradients = self._with_decay(gradients)
        if self._scale is not None:
            # Put back for the optimizer, which looks for what is not finite and removes it.
            gradients = [gradient * self._scale for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, self._trained, strict=True))
        return sums

    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Of the replica's share of the mean loss, and the sums to report.

        Micro-batches follow each other in a loop, so that the memory is that of one.
        """
        parts = self.accumulate
        if parts == 1:
            return self._gradients_at_once(images, labels)

        def split(values: tf.Tensor) -> tf.Tensor:
            # The batch has no static size where several workers share it.
            return tf.reshape(values, (parts, -1, *values.shape[1:]))

        images, labels = split(images), split(labels)

        def add(part: tf.Tensor, gradients: Any, sums: Any) -> tuple[tf.Tensor, Any, Any]:
            more, counted = self._gradients_at_once(images[part], labels[part])
            return (
                part + 1,
                [a + b for a, b in zip(gradients, more, strict=True)],
                [a + b for a, b in zip(sums, counted, strict=True)],
            )

        zeros = [tf.zeros(v.shape, v.dtype) for v in self._trained]
        loss_type = keras.backend.standardize_dtype(self._scores.outputs[0].dtype)
        sums = [tf.zeros((), loss_type), tf.zeros((), tf.int64)]
        _, gradients, sums = tf.while_loop(
            lambda part, *_: part < parts,
            add,
            (tf.constant(0), zeros, sums),
            parallel_iterations=1,
            maximum_iterations=parts,
        )
        return gradients, sums

    def _gradients_at_once(
        self, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        recipe = self.recipe
        with tf.GradientTape() as tape:
            scores = self._scores(images, training=True)
            losses = cross_entropy(labels, scores, self._are_logits, recipe.label_smoothing)
            if self._class_weights is not None:
                losses *= self._weights_of(labels, losses.dtype)
            total = tf.reduce_sum(losses)
            loss = total / recipe.batch_size
            terms = self.strategy.num_replicas_in_sync * self.accumulate
            for extra in self._scores.losses:  # a user's own regularizers
                loss += tf.cast(extra, loss.dtype) / terms
            if self._scale is not None:
                loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, self._trained)
        if self._scale is not None:
            gradients = [gradient / self._scale for gradient in gradients]
        right = labels if labels.shape.rank == 1 else tf.argmax(labels, -1, tf.int32)
        return gradients, [total, count_correct(right, scores)]

    def _weights_of(self, labels: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        weights = tf.constant(self._class_weights, dtype)
        if labels.shape.rank == 1:
            return tf.gather(weights, labels)
        return tf.linalg.matvec(tf.cast(labels, dtype), weights)

    def _with_decay(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """With the decay inside; AdamW has it in the optimizer, outside of the gradient."""
        recipe = self.recipe
        if recipe.optimizer == "adamw":
            return list(gradients)
        # The optimizer sums over the replicas, so each adds its share of the decay.
        share = recipe.weight_decay / self.strategy.num_replicas_in_sync
        return [
            gradient + share * tf.cast(variable, gradient.dtype)
            if recipe.decays(variable)
            else gradient
            for gradient, variable in zip(gradients, self._trained, strict=True)
        ]

    @property
    def _scale(self) -> Any:
        """The factor on the loss that keeps small gradients in float16's range, or None."""
        return getattr(self.optimizer, "dynamic_scale", None)

    def _over_all_replicas(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """What needs the whole gradient: clipping, and whether all of it is finite.

        The optimizer sums over the replicas once more, hence the division.
        """
        replicas = self.strategy.num_replicas_in_sync
        if replicas > 1:
            gradients = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        if self.recipe.clip:
            gradients, _ = tf.clip_by_global_norm(gradients, self.recipe.clip)
        return [gradient / replicas for gradient in gradients]

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, 1, ... of the whole training."""
        if isinstance(self._rate, float):  # callbacks may have changed it
            return float(tf.convert_to_tensor(self.optimizer.learning_rate))
        return float(self._rate(step))

    def average_statistics(self) -> None:
        """Brings batch normalization's moving statistics of all replicas to their mean.

        Keras keeps those of each replica apart, and would save replica 0's. The averages of the
        weights hold such statistics as well. All workers must call this together.
        """
        if self.strategy.num_replicas_in_sync == 1:
            return
        self._average_statistics()
        with self.averaged_weights():
            if self._averages:
                self._average_statistics()

    def _bring_statistics_together(self) -> None:
        # Those of layers that train: a mean of equal numbers may differ from them by a rounding.
        statistics = [
            variable
            for layer in self.network.layers
            if layer.trainable
            for variable in layer.non_trainable_variables
            if variable.dtype.startswith("float")
        ]

        def average() -> None:
            context = tf.distribute.get_replica_context()
            # The copies are needed: collectives across workers refuse a variable's own value.
            values = [tf.identity(tf.convert_to_tensor(variable)) for variable in statistics]
            for variable, mean in zip(statistics, context.all_reduce("MEAN", values), strict=True):
                variable.assign(mean)

        if statistics:
            self.strategy.run(average)

    def _average_weights(self) -> None:
        """Moves the averages a step towards the weights, faster at the beginning.

        The average of few steps would still be the start values: after t steps it moves by at
        least 9 / (10 + t) of the way, as in TensorFlow's ExponentialMovingAverage.
        """
        taken = tf.cast(self._taken, tf.float32)
        decay = tf.minimum(self.recipe.ema, (1.0 + taken) / (10.0 + taken))

        def move(average: tf.Variable, weight: tf.Variable) -> None:
            step = tf.cast(1.0 - decay, average.dtype)
            average.assign_add(step * (tf.convert_to_tensor(weight) - average))

        self._update(self._averages, self.network.weights, move)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The network with what is to be measured and saved: the averages, if there are any."""
        self.take_averages()
        try:
            yield
        finally:
            self.take_averages()

    def take_averages(self) -> None:
        """Exchanges the weights and their averages, if there are any."""
        if self._averages:
            self._swap_averages()

    def _swap(self) -> None:
        def swap(average: tf.Variable, weight: tf.Variable) -> None:
            before = tf.identity(average)
            average.assign(weight)
            weight.assign(before)

        self._update(self._averages, self.network.weights, swap)

    def _keep_as_best(self) -> None:
        """Notes the weights as they are now for `take_best`."""
        self._update(self._best, self.network.weights, lambda best, weight: best.assign(weight))

    def _take_best(self) -> None:
        """Brings back the weights that were noted last."""
        self._update(self._best, self.network.weights, lambda best, weight: weight.assign(best))

    def _update(
        self,
        variables: Iterable[tf.Variable],
        weights: Iterable[Any],
        change: Callable[[tf.Variable, tf.Variable], Any],
    ) -> None:
        """Calls `change` with each pair, in every replica."""
        for variable, weight in zip(variables, weights, strict=True):
            self.strategy.extended.update(variable, change, args=(weight.value,), group=False)

    def precise_statistics(self, batches: Iterator[Any], steps: int) -> None:
        """Sets batch normalization's statistics to those of `steps` batches, weights unmoved.

        He et al. 2015, section 3.4 and the published models: mean and variance over training data,
        computed once after training. The variance is that of all values together: the mean of the
        batches' variances and of their squared means, minus the square of the mean.
        """
        layers = [
            layer
            for layer in self.network.layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        if not layers:
            return
        momenta = [layer.momentum for layer in layers]
        sums = [np.zeros((2, *layer.moving_mean.shape)) for layer in layers]

        def look(images: tf.Tensor, _: tf.Tensor) -> list[tf.Tensor]:
            self._scores(images, training=True)
            statistics = []
            for layer in layers:
                mean = tf.identity(tf.convert_to_tensor(layer.moving_mean))
                variance = tf.identity(tf.convert_to_tensor(layer.moving_variance))
                statistics.append(tf.stack([mean, variance + tf.square(mean)]))
            return statistics

        step = tf.function(sum_over_replicas(self.strategy, look))
        try:
            for layer in layers:
                layer.momentum = 0.0  # a moving average without a memory: the batch's own
            for _ in range(steps):
                for total, moments in zip(sums, step(batches), strict=True):
                    total += moments.numpy()
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        for layer, total in zip(layers, sums, strict=True):
            mean, square = total / (steps * self.strategy.num_replicas_in_sync)
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(np.maximum(square - mean**2, 0.0))

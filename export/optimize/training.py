"""Training a `tf_keras` model with this package's data, recipes and strategies.

The loop of `keras_resnet.training` takes Keras 3 networks. This one is for the few epochs of an
optimization, and means by a recipe what that one does: the loss over the global batch, the decay
inside the gradient, the clipping of the whole gradient, the schedule by the step. The optimizers,
the loss, the schedules, the order of the images and their augmentation are the same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from keras_resnet import data as data_module
from keras_resnet.data import ImageData, Split
from keras_resnet.export.optimize.twin import Twin, UnsupportedLayerError
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.arguments import check_batch
from keras_resnet.training.loop import TrainingError
from keras_resnet.training.metrics import count_correct
from keras_resnet.training.progress import Progress
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.step import cross_entropy, share_of_worker, sum_over_replicas

_EVALUATION_BATCH = 256

# What a recipe can ask for, and this loop does not do.
_NOT_HERE = {
    "ema": "averaged weights would be neither pruned nor clustered; set ema=0",
    "early_stopping": "the first epochs are not yet pruned or quantized; set early_stopping=0",
    "frozen": "the whole network is optimized; set frozen='' and frozen_epochs=0",
}

Hook = Callable[[], Any]


# The share of the rate that trained the network with which each method begins. Rounding moves the
# weights little; what lost half of its weights has to learn again.
_RATES = {"qat": 0.01, "prune": 0.1, "cluster": 0.01}


def fine_tuning(recipe: Recipe, method: str, *, epochs: int | None = None) -> Recipe:
    """A recipe for a method that goes on from where `recipe` has led to.

    Same batch, optimizer, decay and augmentation of single images; a tenth of the epochs, and a
    hundredth of the learning rate (to prune, a tenth), which falls to zero as half a cosine.

    Args:
        recipe: by which the network was trained.
        method: `"qat"`, `"prune"` or `"cluster"`.
        epochs: None for a tenth of the recipe's, at least 2.

    Raises:
        ValueError: for another method.
    """
    if method not in _RATES:
        raise ValueError(f"Argument `method` must be one of {list(_RATES)}. Received: {method!r}")
    return recipe.replace(
        epochs=epochs or max(2, round(recipe.epochs / 10)),
        learning_rate=recipe.learning_rate * _RATES[method],
        schedule="cosine",
        warmup_epochs=0,
        ema=0.0,
        early_stopping=0,
        frozen="",
        frozen_epochs=0,
        mixup=0.0,
        cutmix=0.0,
        name=f"{recipe.name}-{method}",
        source=f"derived from {recipe.name}",
        result="",
    )


def check_recipe(recipe: Recipe, data: ImageData, replicas: int) -> None:
    """Raises `ValueError` for a recipe that this loop cannot follow."""
    for field, advice in _NOT_HERE.items():
        if getattr(recipe, field):
            raise ValueError(
                f"Recipe field `{field}` has no meaning in an optimization: {advice}. Received: "
                f"{field}={getattr(recipe, field)!r}"
            )
    check_batch(recipe, data, replicas, 1)


def refuse_grouped(twin: Twin) -> None:
    """Raises `UnsupportedLayerError` for a convolution that Keras 2 has no gradient of here."""
    if tf.config.list_logical_devices("GPU"):
        return
    for node in twin.nodes:
        if getattr(node.layer, "groups", 1) > 1 and node.kind in ("Conv1D", "Conv2D"):
            raise UnsupportedLayerError(
                "Keras 2, which TFMOT needs, has no gradient of a grouped convolution on a CPU: "
                "optimize it on a GPU, or quantize it after training (`export.to_tflite`). "
                f"Received: the layer {node.layer.name!r}, with {node.layer.groups} groups"
            )


class FineTuning:
    """The training of a `tf_keras` model from preprocessed values to logits.

    Made in the strategy's scope.

    Attributes:
        model: what is trained.
        history: one dictionary per finished epoch.
    """

    def __init__(
        self,
        model: Any,
        data: ImageData,
        preprocessing: Preprocessing,
        recipe: Recipe,
        strategy: tf.distribute.Strategy,
        seed: int,
    ):
        self.model = model
        self.history: list[dict[str, float]] = []
        self._data, self._preprocessing, self._seed = data, preprocessing, seed
        self._recipe, self._strategy = recipe, strategy
        self._steps = data.train.examples // recipe.batch_size
        self._trained = list(model.trainable_variables)
        self._optimizer = recipe.make_optimizer(self._steps)
        self._optimizer.build(self._trained)
        self._step = tf.function(sum_over_replicas(strategy, self._replica_step))
        self._measure = tf.function(sum_over_replicas(strategy, self._replica_measure))

    def run(self, *, after_epoch: Hook | None = None, verbose: bool) -> None:
        """All epochs of the recipe.

        Args:
            after_epoch: called before the evaluation.
            verbose: whether to show the progress.

        Raises:
            TrainingError: if the loss is no longer a finite number.
        """
        recipe, steps = self._recipe, self._steps
        with Progress(recipe.epochs, steps, enabled=verbose) as progress:
            for epoch in range(recipe.epochs):
                started = time.perf_counter()
                logs = self._train_epoch(epoch, progress)
                seconds = time.perf_counter() - started
                logs["images_per_second"] = steps * recipe.batch_size / seconds
                if after_epoch is not None:
                    after_epoch()
                loss, correct = self.evaluate(self._data.test)
                logs["val_loss"] = loss
                logs["val_accuracy"] = correct / self._data.test.examples
                self.history.append({"epoch": epoch + 1, **logs})
                progress.end_epoch(epoch, logs)

    def evaluate(self, split: Split) -> tuple[float, int]:
        """Mean cross-entropy in nats, and how many examples are named right."""
        replicas = self._strategy.num_replicas_in_sync
        size = -(-_EVALUATION_BATCH // replicas) * replicas

        def of_share(share: tuple[int, int]) -> tf.data.Dataset:
            return data_module.batches(
                split,
                size,
                self.model.input_shape[1:],
                self._preprocessing,
                remainder="pad",
                share=share,
            )

        loss, correct = 0.0, 0
        with split.own_errors():
            batches = share_of_worker(self._strategy, size, of_share)
            for _ in range(-(-split.examples // size)):
                sums = self._measure(batches)
                loss, correct = loss + float(sums[0]), correct + int(sums[1])
        return loss / split.examples, correct

    def batches(self, epoch: int) -> Iterator[Any]:
        """The training batches of an epoch, in its order and with its augmentation."""

        def of_share(share: tuple[int, int]) -> tf.data.Dataset:
            return data_module.batches(
                self._data.train,
                self._recipe.batch_size,
                self.model.input_shape[1:],
                self._preprocessing,
                augment=self._recipe.augmentation,
                shuffle=(self._seed, epoch),
                remainder="drop",
                share=share,
                classes=len(self._data.class_names),
            )

        return share_of_worker(self._strategy, self._recipe.batch_size, of_share)

    def _train_epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        # Sums stay on the device until somebody wants them.
        size = self._recipe.batch_size
        sums = [tf.zeros(()), tf.zeros((), tf.int64)]

        def means(taken: int) -> dict[str, float]:
            loss = float(sums[0]) / (taken * size)
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise TrainingError(
                    f"The loss is no finite number in epoch {epoch + 1}, by step {taken}; a lower "
                    "learning rate usually helps"
                )
            return {"loss": loss, "accuracy": int(sums[1]) / (taken * size)}

        with self._data.train.own_errors():
            batches = self.batches(epoch)
            for step in range(self._steps):
                sums = [a + b for a, b in zip(sums, self._step(batches), strict=True)]
                if progress.is_due():
                    progress.update(epoch, step + 1, means(step + 1))
        return means(self._steps)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        recipe, replicas = self._recipe, self._strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            scores = self.model(images, training=True)
            losses = cross_entropy(labels, scores, True, recipe.label_smoothing)
            total = tf.reduce_sum(losses)
            loss = total / recipe.batch_size
        gradients = tape.gradient(loss, self._trained)
        if recipe.clip:
            # The optimizer sums over the replicas once more, hence the division.
            if replicas > 1:
                context = tf.distribute.get_replica_context()
                gradients = context.all_reduce("SUM", gradients)
            gradients, _ = tf.clip_by_global_norm(gradients, recipe.clip)
            gradients = [gradient / replicas for gradient in gradients]
        if recipe.optimizer != "adamw":  # which has the decay outside of the gradient
            share = recipe.weight_decay / replicas
            gradients = [
                gradient + share * variable if recipe.decays(variable) else gradient
                for gradient, variable in zip(gradients, self._trained, strict=True)
            ]
        self._optimizer.apply_gradients(zip(gradients, self._trained, strict=True))
        right = labels if labels.shape.rank == 1 else tf.argmax(labels, -1, tf.int32)
        return [total, count_correct(right, scores)]

    def _replica_measure(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        scores = self.model(images, training=False)
        losses = cross_entropy(tf.maximum(labels, 0), scores, True)
        counted = tf.where(labels < 0, tf.zeros_like(losses), losses)
        return [tf.reduce_sum(counted), count_correct(labels, scores)]

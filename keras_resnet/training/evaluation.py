"""Measuring a classifier over all replicas; every example counts once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track

from keras_resnet import data as data_module
from keras_resnet.data import Split
from keras_resnet.models import split_head
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.training.metrics import (
    TOP,
    Evaluation,
    count_confusions,
    count_correct,
    count_top,
)
from keras_resnet.training.step import cross_entropy, share_of_worker, sum_over_replicas


class Evaluator:
    """Loss, accuracy and confusions of a network, as sums over replicas, workers and batches."""

    def __init__(self, network: keras.Model, strategy: tf.distribute.Strategy):
        self._network = network
        self._strategy = strategy
        self._scores, self._are_logits = split_head(network)
        self._step = tf.function(sum_over_replicas(strategy, self._replica_step))

    def __call__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        verbose: bool = False,
    ) -> Evaluation:
        # Every batch gets the same size, a multiple of the replicas: a replica without an example
        # cannot run the network. What fills the last batch has the label -1 and does not count.
        replicas = self._strategy.num_replicas_in_sync
        full = math.ceil(batch_size / replicas) * replicas

        def of_share(share: tuple[int, int]) -> tf.data.Dataset:
            return data_module.batches(
                split,
                full,
                self._network.input_shape[1:],
                preprocessing,
                dtype=str(self._network.inputs[0].dtype),
                remainder="pad",
                share=share,
            )

        classes = self._network.output_shape[-1]
        loss, correct, top = 0.0, 0, 0
        confusion = np.zeros((classes, classes), np.int64)
        with split.own_errors():
            batches = share_of_worker(self._strategy, full, of_share)
            steps = range(math.ceil(split.examples / full))
            for _ in _shown(steps) if verbose else steps:
                sums = self._step(batches)
                loss += float(sums[0])
                correct += int(sums[1])
                top += int(sums[2])
                confusion += sums[3].numpy()
        examples = split.examples
        return Evaluation(
            loss / examples,
            correct / examples,
            correct,
            examples,
            top5=top / examples if classes > TOP else None,
            confusion=confusion,
        )

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor) -> list[Any]:
        scores = self._scores(images, training=False)
        losses = cross_entropy(tf.maximum(labels, 0), scores, self._are_logits)
        return [
            tf.reduce_sum(tf.where(labels < 0, tf.zeros_like(losses), losses)),
            count_correct(labels, scores),
            count_top(labels, scores),
            count_confusions(labels, scores),
        ]


def _shown(steps: range) -> Iterable[int]:
    """With a bar, for a person at a terminal."""
    return track(steps, description="Evaluating", transient=True, console=Console(stderr=True))

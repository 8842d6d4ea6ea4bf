"""Measures of a classifier: sums of what a batch gave, and what they say of a whole split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.tables import columns

TOP = 5
"""How many classes the second accuracy allows a network to name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a model names the images of a split; every example counts once.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: share of the examples whose highest score is the label's.
        correct: the number of those examples.
        examples: the number of all.
        top5: share of the examples whose label is among the five highest scores; None for fewer
            than six classes, where it would say nothing.
        confusion: int64 `(classes, classes)`: how often the label of the row was called what the
            column says; None if it was not counted.
    """

    loss: float
    accuracy: float
    correct: int
    examples: int
    top5: float | None = None
    confusion: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def precision(self) -> np.ndarray:
        """Of the examples called by a class's name, the share that were: float64 `(classes,)`.

        NaN for a class that was never named.

        Raises:
            ValueError: if the confusions were not counted.
        """
        return _ratio(np.diagonal(self._counted), self._counted.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """Of a class's examples, the share that was called so: float64 `(classes,)`.

        NaN for a class without examples.

        Raises:
            ValueError: if the confusions were not counted.
        """
        return _ratio(np.diagonal(self._counted), self._counted.sum(axis=1))

    @property
    def _counted(self) -> np.ndarray:
        if self.confusion is None:
            raise ValueError("This evaluation did not count confusions: its `confusion` is None")
        return self.confusion

    def to_dict(self, *, confusion: bool = True) -> dict[str, Any]:
        """Plain Python values, ready for JSON; what is undefined is None.

        Args:
            confusion: whether to list the confusions: of 1,000 classes, a million numbers.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {"loss": _plain(self.loss), "confusion": None}
        if self.confusion is not None:
            values |= {
                "confusion": self.confusion.tolist() if confusion else None,
                "precision": [_plain(value) for value in self.precision],
                "recall": [_plain(value) for value in self.recall],
            }
        return values

    def confused(self, most: int = 5) -> list[tuple[int, int, int]]:
        """The most frequent confusions: label, the class it was called, and how often.

        Those that are equally frequent stand in the order of the classes.

        Raises:
            ValueError: if the confusions were not counted.
        """
        wrong = self._counted.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [(int(a), int(b), int(wrong[a, b])) for a, b in pairs if wrong[a, b] > 0]

    def table(self, class_names: Sequence[str], *, rows: int = 20, most: int = 5) -> str:
        """Precision, recall and number of images of the classes, and the commonest confusions.

        Args:
            class_names: in the order of the outputs.
            rows: classes to show at most; of more, those with the lowest recall.
            most: confusions to show at most.

        Raises:
            ValueError: if the confusions were not counted, or there are not as many names.
        """
        if len(class_names) != len(self._counted):
            raise ValueError(
                f"Argument `class_names` must hold {len(self._counted)} names. "
                f"Received: {len(class_names)}"
            )
        shown = list(range(len(class_names)))
        if len(shown) > rows:  # NaN, a class without images, sorts last
            shown = list(np.argsort(self.recall, kind="stable")[:rows])
        support = self._counted.sum(axis=1)
        lines = columns(
            [("class", "precision", "recall", "images")]
            + [
                (class_names[i], _percent(self.precision[i]), _percent(self.recall[i]), support[i])
                for i in shown
            ]
        )
        if len(shown) < len(class_names):
            lines.append(f"and {len(class_names) - len(shown)} classes with a higher recall")
        for label, called, times in self.confused(most):
            often = "once" if times == 1 else f"{times} times"
            lines.append(f"{class_names[label]} was called {class_names[called]} {often}")
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Evaluation):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # an array is in it


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    undefined = np.full(whole.shape, np.nan)
    return np.divide(part, whole, out=undefined, where=whole > 0)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# What the steps compute. Each is a sum over the batch, so that sums over replicas and batches add
# up; an example with the label -1 fills a batch and never counts.


def count_correct(labels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """How many labels `(batch,)` have the highest score `(batch, classes)`: int64 scalar.

    Of equal scores the first class counts, as everywhere where argmax decides.
    """
    named = tf.argmax(scores, axis=-1, output_type=labels.dtype)
    return tf.reduce_sum(tf.cast(named == labels, tf.int64))


def count_top(labels: tf.Tensor, scores: tf.Tensor, top: int = TOP) -> tf.Tensor:
    """How many labels `(batch,)` are among the `top` highest scores: int64 scalar.

    Of equal scores the first classes count, so that no more than `top` ever do; `in_top_k` would
    count all of them.
    """
    named = tf.math.top_k(scores, min(top, scores.shape[-1])).indices
    found = tf.reduce_any(named == tf.cast(labels, named.dtype)[:, tf.newaxis], axis=-1)
    return tf.reduce_sum(tf.cast(found, tf.int64))


def count_confusions(labels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """How often every class was called every class: int64 `(classes, classes)`, a row per label."""
    classes = scores.shape[-1]
    named = tf.argmax(scores, axis=-1, output_type=tf.int32)
    # The cell of label -1 is negative, and a segment of a negative number is left out. A GPU has
    # this sum, without an order that matters, for int32.
    cells = tf.cast(labels, tf.int32) * classes + named
    counts = tf.math.unsorted_segment_sum(tf.ones_like(cells), cells, classes * classes)
    return tf.cast(tf.reshape(counts, (classes, classes)), tf.int64)

"""Parameters and multiply-adds of a network, stage by stage."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from keras_resnet.layers import BlurPool
from keras_resnet.models import stage_of


@dataclasses.dataclass(frozen=True)
class StageCount:
    """One line of the paper's table 1.

    Attributes:
        stage: `"stem"`, `"C2"`, `"C3"`, ... or `"head"`.
        output_shape: `(height, width, channels)` of the stage's last layer, or `(classes,)`.
        parameters: trainable parameters.
        statistics: parameters that training does not touch: batch normalization's moving averages.
        multiply_adds: multiplications with additions in convolutions and matrix products for one
            image. The zero-padded shortcut multiplies by one and is not counted, as in the paper.
    """

    stage: str
    output_shape: tuple[int, ...]
    parameters: int
    statistics: int
    multiply_adds: int


def count(model: keras.Model) -> list[StageCount]:
    """Counts a model of this package; its layers' names say which stage they belong to.

    Raises:
        ValueError: if the model's input size is open, since the work depends on it.
    """
    if any(size is None for size in model.input_shape[1:]):
        raise ValueError(
            "The work of a network depends on its input size; build it with a fixed `input_shape`. "
            f"Received: input shape {model.input_shape}"
        )
    stages: dict[str, list[Any]] = {}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            stages.setdefault(stage_of(layer.name), []).append(layer)
    return [
        StageCount(
            stage=stage,
            output_shape=tuple(layers[-1].output.shape[1:]),
            parameters=sum(math.prod(w.shape) for x in layers for w in x.trainable_weights),
            statistics=sum(math.prod(w.shape) for x in layers for w in x.non_trainable_weights),
            multiply_adds=sum(_multiply_adds(x) for x in layers),
        )
        for stage, layers in stages.items()
    ]


def _multiply_adds(layer: Any) -> int:
    if isinstance(layer, keras.layers.Conv2D | keras.layers.Conv1D):
        # The kernel is (height, width, channels in / groups, channels out).
        return math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    if isinstance(layer, BlurPool):
        return math.prod(layer.output.shape[1:]) * 9
    if isinstance(layer, keras.layers.Dense):
        return math.prod(layer.kernel.shape)
    return 0

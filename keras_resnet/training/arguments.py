"""What `fit` and `evaluate` are given, checked before anything of weight is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_resnet.data import ImageData
from keras_resnet.training.recipes import Recipe

_PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "float64")


def check_arguments(seed: Any, precision: Any, resume: bool, run_dir: Any, accumulate: Any) -> None:
    """Raises `ValueError` for what is wrong by itself."""
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


def check_batch(recipe: Recipe, data: ImageData, replicas: int, accumulate: int) -> None:
    """Raises `ValueError` if the global batch cannot be had or not be shared out."""
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


def check_accumulation(network: keras.Model, accumulate: int, replicas: int) -> None:
    """Raises `ValueError` for micro-batches that would have to wait for other replicas."""
    if accumulate > 1 and replicas > 1 and is_synchronized(network):
        raise ValueError(
            "Synchronized batch normalization cannot be combined with `accumulate` over several "
            "replicas: they would have to meet within every micro-batch. Leave one of them out. "
            f"Received: accumulate={accumulate}"
        )


def is_synchronized(network: keras.Model) -> bool:
    """Whether batch normalization is over all replicas together."""
    return any(getattr(layer, "synchronized", False) for layer in network.layers)


def check_input(model: keras.Model) -> None:
    """Raises `ValueError` for a network that does not take images of a fixed size."""
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


def class_weight_array(
    given: Mapping[str, float] | str | None, data: ImageData
) -> np.ndarray | None:
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

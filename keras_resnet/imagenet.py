"""The 1,000 classes of ILSVRC-2012, which public ImageNet checkpoints tell apart, and their names.

A class is a synset of Princeton WordNet 3.0, known by its number ("wnid"); its name here is the
synset's first lemma, or another one where two classes share the first. `imagenet_classes.txt` holds
both, one class per line, in the order of the networks' outputs: sorted by wnid.

WordNet 3.0 Copyright 2006 by Princeton University; its license is at
https://wordnet.princeton.edu/license-and-commercial-use.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import Any

import numpy as np


@functools.cache
def classes() -> tuple[tuple[str, str], ...]:
    """`(wnid, name)` of each class, in the order of the outputs, e.g. `("n01440764", "tench")`."""
    file = importlib.resources.files("keras_resnet").joinpath("imagenet_classes.txt")
    wnids_and_names = (line.partition(" ") for line in file.read_text("utf-8").splitlines())
    return tuple((wnid, name) for wnid, _, name in wnids_and_names)


@functools.cache
def class_names() -> tuple[str, ...]:
    """The name of each class, in the order of the outputs: no two alike, whatever their case."""
    return tuple(name for _, name in classes())


def decode_predictions(predictions: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """The most probable ImageNet classes of each sample, as `keras.applications` gives them.

    Args:
        predictions: `(batch, 1000)` probabilities or logits, of numpy or of another library that
            numpy can read.
        top: how many classes per sample.

    Returns:
        For each sample `[(wnid, name, score), ...]`, best first; of equal scores, the class that
        comes first in the order of the outputs.

    Raises:
        ValueError: if `predictions` have another shape or hold what is no number, or `top` is not
            in 1..1000.
    """
    scores = _checked_scores(predictions)
    count = len(classes())
    is_whole = isinstance(top, int | np.integer) and not isinstance(top, bool)
    if not is_whole or not 1 <= top <= count:
        raise ValueError(f"Argument `top` must be in 1..{count}. Received: top={top!r}")
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
    return [
        [(*classes()[i], float(sample[i])) for i in chosen]
        for sample, chosen in zip(scores, best, strict=True)
    ]


def _checked_scores(predictions: Any) -> np.ndarray:
    """As float64, in which bytes can be negated."""
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or predictions.shape[1] != len(classes()):
        raise ValueError(
            f"Argument `predictions` must have the shape (batch, {len(classes())}), one score per "
            f"class of ImageNet; add an axis to a single sample. Received: {predictions.shape}"
        )
    try:
        scores = predictions.astype(np.float64)
    except (TypeError, ValueError):
        scores = np.full(1, np.nan)
    if np.isnan(scores).any():
        raise ValueError(
            "Argument `predictions` must hold numbers. "
            f"Received: dtype={predictions.dtype}, with values that are none"
        )
    return scores

"""From a Keras classifier to a verified TensorFlow SavedModel."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.export.schemes import get_scheme
from keras_resnet.export.source import SourceNetwork, golden_images
from keras_resnet.export.verification import ExportRejected, compare, judge
from keras_resnet.files import atomic_directory
from keras_resnet.preprocessing import Preprocessing


def to_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    force: bool = False,
) -> Path:
    """Exports a classifier as a SavedModel, after proving that it is still the same network.

    The signature `serving_default` takes `pixels`, float32 `(batch, height, width, channels)`, raw
    RGB 0..255, and gives `probabilities`, float32 `(batch, classes)`. Serving it needs TensorFlow,
    but neither Keras nor this package.

    Args:
        model: a functional classifier that ends in logits or a softmax, with a fixed input size.
        path: the directory to make.
        preprocessing: how the model's input is made; None takes the model's own.
        force: whether a SavedModel that is at `path` already may be replaced.

    Returns:
        The path.

    Raises:
        ExportRejected: if the reloaded SavedModel differs from the model.
        FileExistsError: if there is something at `path` already.
        ValueError: if the model cannot be exported.
    """
    network = SourceNetwork(model, preprocessing or Preprocessing.from_model(model))
    golden = golden_images(None, None, network.shape, network.preprocessing)
    with atomic_directory(path, marker="saved_model.pb", force=force) as directory:
        module = tf.Module()
        module.variables_of_model = [variable.value for variable in network.logits.variables]
        signature = tf.TensorSpec((None, *network.shape), tf.float32, name="pixels")
        serve = tf.function(
            lambda pixels: {"probabilities": network.probabilities(pixels)},
            input_signature=[signature],
        )
        tf.saved_model.save(module, str(directory), signatures={"serving_default": serve})

        served = tf.saved_model.load(str(directory)).signatures["serving_default"]
        outputs = served(pixels=tf.constant(golden.astype(np.float32)))["probabilities"].numpy()
        exact = get_scheme("float32").name
        report = judge(exact, exact, compare(network.predict(golden), outputs))
        if not report.passed:
            raise ExportRejected(report)
    return Path(path)

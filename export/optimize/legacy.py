"""TensorFlow Model Optimization and the Keras 2 that it needs, beside the user's Keras 3.

Importing TFMOT sets `TF_USE_LEGACY_KERAS=1` in the environment. Whoever touches `tf.keras` for the
first time after that gets Keras 2, in this process and in every one that it starts. Two things keep
that away from the user: `tf.keras` is made to choose its Keras before, as it would have chosen
without us, and the variable is put back after the import. Nothing in TFMOT or `tf_keras` reads it
again: TFMOT has taken `tf_keras`, which is a package of its own, under its own name.

A process of our own for the optimization would keep it away as well, and was not chosen: a GPU's
memory belongs to the process that took it first, which is the one that holds the model; and neither
a `tf.distribute` strategy nor data that were given as arrays can be handed to another process.
"""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

_VARIABLE = "TF_USE_LEGACY_KERAS"


def _import() -> tuple[Any, Any]:
    before = os.environ.get(_VARIABLE)
    dir(tf.keras)  # which makes it choose
    try:
        import tensorflow_model_optimization
    except ImportError as error:
        raise ImportError(
            "Quantization-aware training, pruning and clustering need TensorFlow Model "
            "Optimization: pip install 'tensorflow-model-optimization>=0.8.1' tf-keras"
        ) from error
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
    import tf_keras

    return tensorflow_model_optimization, tf_keras


tfmot, tf_keras = _import()

"""`.tflite` files in every kind of input and output, straight from TensorFlow's converter."""

import functools
import warnings

import keras
import numpy as np
import tensorflow as tf
from toys import SMALL, warmed

import keras_resnet
from keras_resnet.quiet import held_back_stderr

SHAPE = (32, 32, 3)


def noise(count, seed=1, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


@functools.cache
def small():
    keras.utils.set_random_seed(0)
    return warmed(keras_resnet.create_model(SMALL))


def float_file(model, batch=1):
    """From float pixels 0..255 to probabilities."""
    return _converted(lambda x: {"probabilities": model(x / 128.0 - 1.0, training=False)}, batch)


def int8_file(model, ends, batch=1):
    """int8 up to the probabilities; `ends` is the type of the input and output.

    A quantized input is the raw byte, or the raw byte minus 128, which needs no preprocessing.
    """

    def prepared(x):
        return x / 128 - 1

    def options(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = ends
        pixels = noise(16).astype(np.float32)
        pixels[0, 0, 0, :2] = 0, 255  # the whole range, or a byte is no step of the input
        values = pixels if ends == tf.float32 else prepared(pixels)
        converter.representative_dataset = lambda: ([x[None]] for x in values)

    def network(x):
        return {"probabilities": model(prepared(x) if ends == tf.float32 else x, training=False)}

    return _converted(network, batch, options)


def _converted(function, batch, options=lambda converter: None):
    shape = (batch, *SHAPE)
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    with held_back_stderr(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="tensorflow")
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        options(converter)
        return converter.convert()

"""Networks and images that a training takes seconds for."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

import keras_resnet
from keras_resnet import Architecture

COLORS = ("red", "green", "blue")

TINY = Architecture(
    name="tiny",
    block="basic",
    blocks=(1, 1, 1),
    widths=(4, 8, 8),
    stem="cifar",
    shortcut="A",
    norm_momentum=0.5,  # so that a dozen steps make good statistics
    classes=3,
    input_size=32,
    source="the tests of the training loop",
)

SMALL = Architecture(
    name="small",
    block="basic",
    blocks=(1, 1, 1),
    widths=(8, 16, 32),
    stem="cifar",
    shortcut="A",
    source="the tests of export and of batch normalization",
    classes=10,
    input_size=32,
)


def paint(count, seed, skew=3):
    """Noise, brightened in the channel that is the label: easy to learn.

    Of `skew` images, one is red, one is green, and the rest are blue.
    """
    labels = np.minimum(np.arange(count) % skew, 2)
    images = np.random.default_rng(seed).integers(0, 192, (count, 32, 32, 3))
    images[np.arange(count), :, :, labels] += 63
    return images.astype(np.uint8), labels


def tiny(**options):
    return keras_resnet.create_model(TINY, **options)


def linear(dtype="float32", activation=None, classes=3, regularizer=None, channels=3):
    """A plain functional model, which carries no preprocessing; the fastest there is to train."""
    image = keras.Input((32, 32, channels), dtype=dtype)
    pooled = keras.layers.GlobalAveragePooling2D(dtype=dtype)(image)
    dense = keras.layers.Dense(
        classes, activation=activation, kernel_regularizer=regularizer, dtype=dtype
    )
    return keras.Model(image, dense(pooled), name="linear")


def shapes_only(build, *arguments, **keywords):
    """What a function builds, with weights that have shapes but no values: a fifth of the time.

    In a thread, because Keras lists such variables per thread, to give them values later: at the
    end of every stateless scope, among them the one in which it traces an operation.
    """

    def stateless():
        with keras.StatelessScope(initialize_variables=False):
            return build(*arguments, **keywords)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(stateless).result()


def warmed(model, values=None):
    """Gives batch normalization the statistics of values, else of noise."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    if values is None:
        values = np.random.default_rng(0).uniform(-1, 1, (8, *model.input_shape[1:]))
    model(values, training=True)
    return model

"""Labelled images by one name each, and the `tf.data` pipelines that feed a network.

`load("digits")`, `load("folder:photographs")`, `load("tfds:cifar10")`.
"""

from keras_resnet.data.augment import AUGMENTATIONS, Augmentation
from keras_resnet.data.pipeline import batches
from keras_resnet.data.reading import DataError
from keras_resnet.data.sources import ImageData, from_arrays, load
from keras_resnet.data.splits import Split

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "DataError",
    "ImageData",
    "Split",
    "batches",
    "from_arrays",
    "load",
]

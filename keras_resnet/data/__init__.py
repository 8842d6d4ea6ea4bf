"""Labelled images by one name each, and the `tf.data` pipelines that feed a network.

`load("digits")`, `load("folder:photographs")`, `load("tfds:cifar10")`.
"""

from keras_resnet.data.pipeline import AUGMENTATIONS, batches
from keras_resnet.data.sources import DataError, ImageData, Split, from_arrays, load

__all__ = ["AUGMENTATIONS", "DataError", "ImageData", "Split", "batches", "from_arrays", "load"]

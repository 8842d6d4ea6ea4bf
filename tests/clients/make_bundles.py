"""Makes the bundles that the clients are to open, and images for them.

    python tests/clients/make_bundles.py DIRECTORY

MediaPipe lives in an environment of its own, where there is no TensorFlow to make them with.
"""

import sys
from pathlib import Path

import numpy as np

import keras_resnet
from keras_resnet import data, export, training
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.weights import calibration_images

SHAPE = (32, 32, 3)
# The bundles' names, and how they are exported.
DIGITS = {
    "float32": {"scheme": "float32"},
    "int8": {},
    "int8-logits": {"outputs": "logits"},
    "int8-uint8-scores": {"io": "uint8"},
    "int8-micro": {"io": "int8"},
}
CIFAR10 = {"cifar10": {}, "cifar10-micro": {"io": "int8"}}


def main(directory: Path) -> None:
    """Exports a ResNet-8 that names digits, one that takes BGR minus a mean, and CIFAR-10's."""
    digits = data.load("digits")
    pixels, _ = digits.test.take(64, SHAPE, Preprocessing())
    # A label is a text, whatever is in it.
    labels = ["<b>0</b> & null", *digits.class_names[1:]]
    common = {"calibration": digits, "evaluation": digits, "labels": labels, "max_drop": 0.05}
    for prefix, preprocessing in (("", Preprocessing()), ("bgr-", Preprocessing.named("caffe"))):
        model = training.fit(
            lambda preprocessing=preprocessing: keras_resnet.ResNet8(preprocessing=preprocessing),
            digits,
            training.get_recipe("digits").replace(epochs=6),
            verbose=False,
        ).model
        for name, options in DIGITS.items():
            export.to_tflite(model, directory / f"{prefix}{name}", **common, **options)
    model = keras_resnet.ResNet20(weights="cifar10")
    images = calibration_images("cifar10/resnet20")
    for name, options in CIFAR10.items():
        export.to_tflite(model, directory / name, calibration=images, **options)
    # Colors tell RGB from BGR: digits are grey.
    coarse = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    colored = coarse.repeat(4, axis=1).repeat(4, axis=2)
    np.save(directory / "images.npy", np.concatenate([pixels, colored]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Makes the bundles that MediaPipe is to open, and images for it.

    python tests/mediapipe/make_bundles.py DIRECTORY

MediaPipe lives in an environment of its own, where there is no TensorFlow to make them with.
"""

import sys
from pathlib import Path

import numpy as np

import keras_resnet
from keras_resnet import data, export, training
from keras_resnet.preprocessing import Preprocessing

SHAPE = (32, 32, 3)
# The bundles' names, and how they are exported.
EXPORTS = {
    "float32": {"scheme": "float32"},
    "int8": {"scheme": "int8"},
    "int8_uint8_scores": {"scheme": "int8", "io": "uint8"},
    "int8_int8_pixels": {"scheme": "int8", "io": "int8"},
}


def main(directory: Path) -> None:
    """Trains a ResNet-8 on the digits and exports it, and one that takes BGR minus a mean."""
    digits = data.load("digits")
    pixels, _ = digits.test.take(64, SHAPE, Preprocessing())
    for prefix, preprocessing in (("", Preprocessing()), ("bgr_", Preprocessing.named("caffe"))):
        model = training.fit(
            lambda preprocessing=preprocessing: keras_resnet.create_model(
                "resnet8", class_names=digits.class_names, preprocessing=preprocessing
            ),
            digits,
            training.get_recipe("digits").replace(epochs=6),
            verbose=False,
        ).model
        for name, options in EXPORTS.items():
            path = directory / f"{prefix}{name}"
            export.to_tflite(
                model, path, calibration=digits, evaluation=digits, max_drop=0.05, **options
            )
    # Colors tell RGB from BGR: digits are grey.
    coarse = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    colored = coarse.repeat(4, axis=1).repeat(4, axis=2)
    np.save(directory / "images.npy", np.concatenate([pixels, colored]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

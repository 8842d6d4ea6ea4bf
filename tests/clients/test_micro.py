"""Python's classifier and TFLite Micro's own interpreter name what Keras names: `make clients`."""

import os
from pathlib import Path

import numpy as np
import pytest
from tflite_micro.python.tflite_micro import runtime

from keras_resnet import export

BUNDLES = Path(os.environ["BUNDLES"])
IMAGES = np.load(BUNDLES / "images.npy")
# Bundles, and their twins for microcontrollers: int8 at both ends.
TWINS = {"int8": "int8-micro", "bgr-int8": "bgr-int8-micro", "cifar10": "cifar10-micro"}


def on_micro(bundle, images):
    """Scores `(n, classes)` by TFLite Micro."""
    interpreter = runtime.Interpreter.from_file(str(bundle.model_path))
    outputs = []
    for pixels in images:
        interpreter.set_input((pixels ^ 0x80).view(np.int8)[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0)[0])
    return (np.stack(outputs).astype(np.float32) + 128) / 256


@pytest.mark.parametrize("name", TWINS)
def test_all_name_what_keras_names(name):
    golden, expected = export.Bundle.open(BUNDLES / name).golden()
    twin = export.Bundle.open(BUNDLES / TWINS[name])
    np.testing.assert_array_equal(twin.golden()[0], golden)
    for probabilities in (
        export.Classifier(BUNDLES / name).probabilities(golden),
        export.Classifier(twin).probabilities(golden),
        on_micro(twin, golden),
    ):
        np.testing.assert_array_equal(probabilities.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("name", TWINS)
def test_a_microcontroller_gives_the_bytes_of_our_classifier(name):
    """With reference kernels: XNNPACK rounds otherwise, and an unsure network shows it."""
    twin = export.Bundle.open(BUNDLES / TWINS[name])
    images = np.concatenate([twin.golden()[0], IMAGES])
    expected = export.Classifier(twin, reference=True).probabilities(images)
    assert len(set(expected.argmax(axis=1))) >= 8
    np.testing.assert_array_equal(on_micro(twin, images), expected)

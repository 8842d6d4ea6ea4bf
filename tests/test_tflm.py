"""Microcontrollers: TFLite Micro's own interpreter runs what is exported for them."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime
from toys import warmed

import keras_resnet
from keras_resnet import data, export
from keras_resnet.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.take(100, (32, 32, 3), Preprocessing())


@pytest.fixture(scope="module")
def bundle(digits, tmp_path_factory):
    """MLPerf Tiny's ResNet-8; only its last layer is fitted, which takes no training."""
    keras.utils.set_random_seed(0)
    model = keras_resnet.create_model("resnet8", class_names=digits.class_names)
    pixels, labels = digits.train.take(500, (32, 32, 3), Preprocessing())
    values = model.preprocessing(pixels)
    warmed(model, values)
    *_, pooled, dense, _ = model.layers
    features = keras.Model(model.inputs, pooled.output).predict(values, verbose=0)
    features = np.append(features, np.ones((len(features), 1)), axis=1)
    targets = 8 * np.eye(10)[labels]
    weights = np.linalg.solve(features.T @ features + 0.1 * np.eye(65), features.T @ targets)
    dense.set_weights([weights[:-1], weights[-1]])
    path = tmp_path_factory.mktemp("tflm") / "resnet8"
    return export.to_tflite(model, path, "int8", io="int8", calibration=pixels[:100])


@pytest.fixture(scope="module")
def on_micro(bundle, images):
    """What TFLite Micro gives for the images: int8 `(n, 10)`."""
    interpreter = runtime.Interpreter.from_file(str(bundle.model_path))
    outputs = []
    for pixels in images[0]:
        interpreter.set_input((pixels ^ 0x80).view(np.int8)[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0)[0])
    return np.stack(outputs)


def test_resnet8_gives_the_bytes_that_litert_gives(bundle, on_micro, images):
    """LiteRT's reference kernels, whose arithmetic TFLite Micro's are; XNNPACK rounds otherwise."""
    interpreter = Interpreter(
        str(bundle.model_path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] == target["dtype"] == np.int8
    outputs = []
    for pixels in images[0]:
        interpreter.set_tensor(source["index"], (pixels ^ 0x80).view(np.int8)[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"])[0])
    np.testing.assert_allclose(on_micro.astype(int), np.stack(outputs).astype(int), atol=1)


def test_it_names_the_classes_that_our_classifier_names(bundle, on_micro, images):
    """XNNPACK rounds otherwise, which this barely trained network notices where it is unsure."""
    pixels, labels = images
    probabilities = export.Classifier(bundle).probabilities(pixels)
    scores = (on_micro.astype(np.float32) + 128) / 256
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    is_sure = first - second > 0.2
    assert is_sure.mean() > 0.5
    assert (scores.argmax(axis=1) == labels)[is_sure].mean() > 0.8
    assert (scores.argmax(axis=1) == probabilities.argmax(axis=1))[is_sure].all()
    assert np.abs(scores - probabilities).sum(axis=1).mean() / 2 < 0.05

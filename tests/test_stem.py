"""A folded stem gives the same bits; what cannot be folded stays as it was."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tflite_files import noise
from toys import warmed

import keras_resnet
from keras_resnet import Preprocessing
from keras_resnet.export.conversion import convert_float
from keras_resnet.export.quantizer import quantize
from keras_resnet.export.source import SourceNetwork
from keras_resnet.export.stem import fold_stem


def int8_content(name, shape, batch=1):
    model = warmed(keras_resnet.create_model(name, input_shape=shape))
    network = SourceNetwork(model, Preprocessing.from_model(model))
    return quantize(convert_float(network, batch=batch), noise(8, shape=shape), "int8")


def outputs(content, images):
    interpreter = Interpreter(model_content=content)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(target["index"])


@pytest.mark.parametrize(
    ("name", "shape", "batch"),
    [
        ("resnet18", (64, 64, 3), 1),  # 7 x 7, padded by 3
        ("resnet18", (64, 62, 3), "dynamic"),
        ("resnet18", (64, 64, 1), 1),
        ("resnet18d", (64, 96, 3), 2),  # 3 x 3, padded by 1
    ],
)
def test_the_outputs_are_the_same_bits(name, shape, batch):
    content = int8_content(name, shape, batch)
    folded = fold_stem(content)
    assert folded != content
    images = noise(3 if batch == "dynamic" else batch, seed=5, shape=shape)
    expected = outputs(content, images)
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(outputs(folded, images), expected)


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (64, 65, 3)), ("resnet20", (32, 32, 3))])
def test_an_odd_width_and_a_stride_of_one_stay_as_they_were(name, shape):
    content = int8_content(name, shape)
    assert fold_stem(content) == content

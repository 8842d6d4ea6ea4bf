"""Files of every kind of input, output and batch are run alike."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tflite_files import SHAPE, float_file, int8_file, noise, small

from keras_resnet import export
from keras_resnet.export.runtime import Runner

PIXELS = noise(19, seed=7)


@pytest.fixture(scope="module")
def expected():
    return small().predict_on_batch(PIXELS / np.float32(128) - 1)


@pytest.mark.parametrize("ends", ["uint8", "int8", "float32"])
def test_whatever_the_file_takes_the_pixels_are_raw_bytes(ends, expected):
    actual = Runner(int8_file(small(), tf.as_dtype(ends)))(PIXELS)
    assert actual.dtype == np.float32
    # One step of the 8-bit output is 1/256, and the layers before it round as well.
    assert np.abs(actual - expected).sum(axis=1).mean() / 2 < 0.03
    np.testing.assert_allclose(actual.sum(axis=1), 1, atol=0.03)


def test_uint8_and_int8_files_give_the_same_numbers():
    first, second = (Runner(int8_file(small(), kind))(PIXELS) for kind in (tf.uint8, tf.int8))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("count", [1, 3, 4, 19])
def test_any_number_of_images_goes_through_any_batch(batch, count, expected):
    runner = _runner(batch)
    actual = runner(PIXELS[:count])
    np.testing.assert_allclose(actual, expected[:count], atol=1e-5)
    # A file of any batch was resized for the last images: the next ones must not notice.
    np.testing.assert_allclose(runner(PIXELS[:2]), expected[:2], atol=1e-5)


@pytest.mark.parametrize("batch", [4, "dynamic"])
def test_bundles_of_any_batch_classify_single_images(batch, expected, tmp_path):
    bundle = export.to_tflite(small(), tmp_path / "b", "float32", batch=batch)
    assert bundle.input_shape == SHAPE
    classifier = export.Classifier(bundle)
    np.testing.assert_allclose(classifier.probabilities(PIXELS), expected, atol=1e-5)
    assert classifier(PIXELS[0], top=1)[0][1] == pytest.approx(expected[0].max(), abs=1e-5)
    assert export.verify(bundle).passed


def test_logits_come_out_of_the_classifier_as_probabilities(expected, tmp_path):
    bundle = export.to_tflite(small(), tmp_path / "b", "float32", outputs="logits")
    assert bundle.outputs == ("logits",)
    actual = export.Classifier(bundle).probabilities(PIXELS)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert export.verify(bundle).passed


_RUNNERS = {}


def _runner(batch):
    if batch not in _RUNNERS:
        _RUNNERS[batch] = Runner(float_file(small(), batch))
    return _RUNNERS[batch]


def test_several_outputs_come_by_name():
    inputs = keras.Input(SHAPE, batch_size=1, name="pixels")
    x = keras.layers.Conv2D(4, 3, strides=2)(inputs)
    model = keras.Model(inputs, {"C2": x, "embedding": keras.layers.GlobalMaxPooling2D()(x)})
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    runner = Runner(content)
    outputs = runner(PIXELS)
    assert set(outputs) == set(runner.outputs)
    expected = model.predict(PIXELS.astype(np.float32), batch_size=1, verbose=0)
    by_rank = {array.ndim: array for array in outputs.values()}
    np.testing.assert_allclose(by_rank[4], expected["C2"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(by_rank[2], expected["embedding"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "images",
    [PIXELS.astype(np.float32), PIXELS[:, :16], PIXELS[0], PIXELS[:0]],
    ids=["float", "another size", "no batch", "none"],
)
def test_what_are_no_raw_images_is_refused(images):
    with pytest.raises(ValueError, match=r"raw pixels, uint8 \(n, 32, 32, 3\)"):
        _runner(1)(images)

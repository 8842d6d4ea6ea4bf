"""MediaPipe's ImageClassifier names the same classes as ours: `make clients`.

Runs in an environment with mediapipe, ai-edge-litert, numpy and Pillow, and without TensorFlow.
BUNDLES names the directory that `make_bundles.py` filled.
"""

import os
from pathlib import Path

import mediapipe
import numpy as np
import pytest
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.python import BaseOptions, vision

from keras_resnet import export
from keras_resnet.export.metadata import read_metadata

BUNDLES = Path(os.environ["BUNDLES"])
IMAGES = np.load(BUNDLES / "images.npy")
DIGITS = ["float32", "int8", "int8-uint8-scores"]
ACCEPTED = [*DIGITS, *(f"bgr-{name}" for name in DIGITS), "cifar10"]


def classifier_of(name):
    options = BaseOptions(model_asset_path=str(BUNDLES / name / "model.tflite"))
    return vision.ImageClassifier.create_from_options(
        vision.ImageClassifierOptions(base_options=options)
    )


def categories(classifier, pixels):
    image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
    return classifier.classify(image).classifications[0].categories


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_gives_the_same_classes_and_probabilities(name):
    ours = export.Classifier(BUNDLES / name)
    golden, keras = ours.bundle.golden()
    images = np.concatenate([golden, IMAGES])
    best = [ours.labels[i] for i in keras.argmax(axis=1)]
    expected = ours.probabilities(images)
    with classifier_of(name) as theirs:
        assert [categories(theirs, pixels)[0].category_name for pixels in golden] == best
        for pixels, probabilities in zip(images, expected, strict=True):
            found = categories(theirs, pixels)
            scores = {category.category_name: category.score for category in found}
            assert set(scores) == set(ours.labels)
            actual = np.array([scores[label] for label in ours.labels])
            np.testing.assert_allclose(actual, probabilities, atol=2 / 256)
            # Scores of 8 bits can tie; any of the best is then right.
            ties = {
                label
                for label, score in zip(ours.labels, probabilities, strict=True)
                if score == probabilities.max()
            }
            assert found[0].category_name in ties
            if "uint8-scores" not in name:
                assert found[0].category_name == ours(pixels)[0][0]


def test_the_images_tell_the_classes_and_the_channels_apart():
    for name in ("float32", "bgr-float32"):
        ours = export.Classifier(BUNDLES / name)
        expected = ours.probabilities(IMAGES)
        assert len(set(expected.argmax(axis=1))) >= 8
        moved = np.abs(expected - ours.probabilities(IMAGES[..., ::-1])).max()
        assert moved > 10 * 2 / 256


@pytest.mark.parametrize("name", ["int8-micro", "cifar10-micro"])
def test_it_refuses_int8_pixels(name):
    """So such files are for other clients; ours runs them."""
    assert export.verify(BUNDLES / name).passed
    with pytest.raises(Exception, match=r"(?i)input.*type"):
        classifier_of(name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_its_own_reader_finds_what_we_wrote(name):
    content = (BUNDLES / name / "model.tflite").read_bytes()
    ours = read_metadata(content)
    import ai_edge_litert.schema_py_generated as tflite

    model = tflite.ModelT.InitFromPackedBuf(content, 0)
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(data, 0)
    theirs = schema.ModelMetadataT.InitFromPackedBuf(data, 0)
    assert theirs.name.decode() == ours.values["name"]
    assert theirs.minParserVersion.decode() == ours.values["min_parser_version"]
    (graph,) = theirs.subgraphMetadata
    (source,), (target,) = graph.inputTensorMetadata, graph.outputTensorMetadata
    assert source.content.contentProperties.colorSpace == schema.ColorSpaceType.RGB
    size = source.content.contentProperties.defaultSize
    assert (size.height, size.width) == IMAGES.shape[1:3]
    (unit,) = source.processUnits
    assert list(unit.options.mean) == [0.0]
    assert list(unit.options.std) == [1.0]
    (file,) = target.associatedFiles
    assert file.type == schema.AssociatedFileType.TENSOR_AXIS_LABELS
    assert target.content.contentPropertiesType == schema.ContentProperties.FeatureProperties

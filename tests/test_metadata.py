"""What a `.tflite` file tells its clients, beside the network itself."""

import contextlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_files import float_file, noise, small

from keras_resnet.export.flatbuffer import pack, unpack
from keras_resnet.export.metadata import BUFFER, add_metadata, read_metadata
from keras_resnet.export.runtime import Runner

LABELS = [f"Ziffer {i} 数" for i in range(10)]
WORDS = {"name": "small", "description": "Digits, 0 to 9."}


@contextlib.contextmanager
def expected_error(words):
    """Damage may be noticed, with these words, or be in a place that says nothing."""
    try:
        yield
    except ValueError as error:
        if words not in str(error):
            raise


@pytest.fixture(scope="module")
def plain():
    return float_file(small())


@pytest.fixture(scope="module")
def described(plain):
    return add_metadata(plain, LABELS, **WORDS)


def test_what_was_written_is_read(described):
    metadata = read_metadata(described)
    assert metadata.values["name"] == "small"
    assert metadata.values["description"] == "Digits, 0 to 9."
    assert metadata.values["min_parser_version"] == "1.0.0"
    assert metadata.labels == tuple(LABELS)
    # Raw pixels: a client that divides or subtracts anything feeds wrong ones.
    assert metadata.normalization == ([0.0], [1.0])
    (source,), (target,) = metadata.inputs, metadata.outputs
    assert source["content"]["content_properties"] == {
        "type": "ImageProperties",
        "color_space": "RGB",
        "default_size": {"width": 32, "height": 32},
    }
    (labels,) = target["associated_files"]
    assert (labels["name"], labels["type"]) == ("labels.txt", "TENSOR_AXIS_LABELS")


def test_a_file_without_metadata_has_none(plain):
    assert read_metadata(plain) is None


def test_the_label_file_lies_uncompressed_behind_the_network(described):
    with zipfile.ZipFile(io.BytesIO(described)) as archive:
        (entry,) = archive.infolist()
        assert archive.read(entry).decode() == "".join(f"{label}\n" for label in LABELS)
    assert entry.compress_type == zipfile.ZIP_STORED
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)


def test_the_network_is_the_same(plain, described):
    pixels = noise(4)
    np.testing.assert_array_equal(Runner(plain)(pixels), Runner(described)(pixels))


def test_the_same_words_give_the_same_bytes_and_new_ones_replace_them(plain, described):
    assert add_metadata(plain, LABELS, **WORDS) == described
    other = add_metadata(plain, LABELS[::-1], **WORDS)
    assert other != described
    assert add_metadata(other, LABELS, **WORDS) == described


def test_a_file_of_features_has_no_labels(plain):
    metadata = read_metadata(add_metadata(plain, [], **WORDS))
    assert metadata.labels == ()
    assert metadata.files == {}
    assert len(metadata.outputs) == 1


def test_labels_must_fit_the_output(plain):
    with pytest.raises(ValueError, match="9 names for outputs of the shapes"):
        add_metadata(plain, LABELS[:9], **WORDS)


@pytest.fixture(scope="module")
def place(described):
    """Where the metadata lie in the file."""
    model = unpack(described)
    (entry,) = [entry for entry in model.metadata if entry.name == BUFFER]
    content = bytes(model.buffers[entry.buffer].data)
    start = described.index(content)
    return start, start + len(content)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_metadata_are_an_error_and_never_a_crash(described, place, data):
    start, stop = place
    content = bytearray(described)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(start, stop - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(start, stop))
    content[cut:stop] = bytes(stop - cut)
    with expected_error("metadata are damaged"):
        assert read_metadata(bytes(content)).labels in (tuple(LABELS), ())


@settings(max_examples=80)
@given(data=st.data())
def test_a_damaged_archive_is_an_error_and_never_a_crash(described, data):
    start = described.index(b"PK\x03\x04")
    content = bytearray(described)
    content[data.draw(st.integers(start, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with expected_error("archive behind the file is damaged"):
        read_metadata(bytes(content))


def test_metadata_survive_surgery_on_the_file(described):
    """Packing drops what lies behind the flatbuffer, and keeps the rest."""
    metadata = read_metadata(pack(unpack(described)))
    assert metadata.values == read_metadata(described).values
    assert metadata.labels == ()

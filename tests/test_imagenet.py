"""The classes of ImageNet and the names of what a network saw."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from processes import run_python

import keras_resnet
from keras_resnet import imagenet
from keras_resnet.imagenet import decode_predictions

# The classes


def test_there_are_a_thousand_classes_sorted_by_wnid():
    wnids = [wnid for wnid, _ in imagenet.classes()]
    assert len(wnids) == 1000
    assert wnids == sorted(set(wnids))
    assert all(len(w) == 9 and w[0] == "n" and w[1:].isdigit() for w in wnids)


# A few that every user of ImageNet knows by number.
@pytest.mark.parametrize(
    ("number", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (386, "n02504458", "African elephant"),
        (954, "n07753592", "banana"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_the_classes_stand_in_the_order_of_the_outputs(number, wnid, name):
    assert imagenet.classes()[number] == (wnid, name)
    assert imagenet.class_names()[number] == name


def test_no_two_names_are_alike_whatever_their_case():
    assert len({name.casefold() for name in imagenet.class_names()}) == 1000


def test_every_name_is_one_line_of_printable_ascii_that_can_name_a_folder():
    for name in imagenet.class_names():
        assert name.isascii()
        assert name.isprintable()
        assert name == name.strip() != ""
        assert not set(name) & set('/\\:*?"<>|')


def test_the_two_cranes_can_be_told_apart():
    names = dict(imagenet.classes())
    assert (names["n02012849"], names["n03126707"]) == ("crane (bird)", "crane (machine)")


def test_a_network_can_carry_the_names():
    model = keras_resnet.ResNet8(classes=1000, class_names=imagenet.class_names())
    assert model.class_names == imagenet.class_names()


def test_the_file_is_read_when_it_is_needed_and_once():
    program = (
        "import sys, keras_resnet\n"
        "assert 'keras_resnet.imagenet' not in sys.modules\n"
        "from keras_resnet import imagenet\n"
        "assert imagenet.classes.cache_info().currsize == 0\n"
        "assert imagenet.classes() is imagenet.classes()\n"
        "assert imagenet.class_names() is imagenet.class_names()\n"
        "assert imagenet.classes.cache_info().misses == 1\n"
        "assert not {'keras', 'tensorflow', 'PIL'} & set(sys.modules)\n"
    )
    assert run_python(program).stderr == ""


# Predictions


def one_hot(*numbers):
    return np.eye(1000, dtype=np.float32)[list(numbers)]


def test_the_best_class_comes_first_with_its_score():
    predictions = 0.7 * one_hot(0, 954) + 0.2 * one_hot(999, 1) + 0.1 * one_hot(1, 0)
    first, second = decode_predictions(predictions, top=3)
    assert [entry[:2] for entry in first] == [
        ("n01440764", "tench"),
        ("n15075141", "toilet tissue"),
        ("n01443537", "goldfish"),
    ]
    assert [name for _, name, _ in second] == ["banana", "goldfish", "tench"]
    assert [type(score) for _, _, score in first] == [float] * 3
    np.testing.assert_allclose([score for _, _, score in first], [0.7, 0.2, 0.1], rtol=1e-7)


def test_five_classes_are_the_default():
    assert [len(sample) for sample in decode_predictions(one_hot(1, 2, 3))] == [5, 5, 5]
    assert decode_predictions(one_hot()) == []


def test_equal_scores_stand_in_the_order_of_the_classes():
    (sample,) = decode_predictions(np.zeros((1, 1000)), top=1000)
    assert [entry[:2] for entry in sample] == list(imagenet.classes())
    (sample,) = decode_predictions(one_hot(500), top=4)
    assert [wnid for wnid, _, _ in sample] == [imagenet.classes()[i][0] for i in (500, 0, 1, 2)]


@given(data=st.data(), top=st.integers(1, 1000))
def test_scores_fall_and_what_is_left_out_is_no_better(data, top):
    seed = data.draw(st.integers(0, 2**32 - 1))
    predictions = np.random.default_rng(seed).integers(0, 50, (1, 1000)).astype(np.float32)
    (sample,) = decode_predictions(predictions, top=top)
    numbers = [imagenet.classes().index(entry[:2]) for entry in sample]
    assert len(set(numbers)) == top
    assert [score for _, _, score in sample] == predictions[0, numbers].tolist()
    for (a, score_a), (b, score_b) in itertools.pairwise(
        zip(numbers, predictions[0, numbers], strict=True)
    ):
        assert score_a > score_b or (score_a == score_b and a < b)
    left_out = np.delete(predictions[0], numbers)
    assert left_out.size == 0 or left_out.max() <= sample[-1][2]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float16", "bfloat16", "float64"])
def test_scores_of_every_dtype_are_ordered_rightly(dtype):
    # uint8 zeros and int8 -128 stay where they are when they are negated.
    scores = np.zeros((1, 1000))
    scores[0, [3, 700]] = 100, 127
    scores[0, 40] = 0 if dtype == "uint8" else -128
    for predictions in (tf.cast(scores, dtype), tf.cast(scores, dtype).numpy()):
        (sample,) = decode_predictions(predictions, top=1000)
        assert [score for _, _, score in sample][:3] == [127, 100, 0]
        assert [imagenet.classes().index(entry[:2]) for entry in sample][:3] == [700, 3, 0]
        assert sample[-1][2] == scores.min()


def test_infinite_logits_are_scores():
    logits = np.zeros((1, 1000))
    logits[0, [7, 8]] = np.inf, -np.inf
    (sample,) = decode_predictions(logits, top=1000)
    assert sample[0] == (*imagenet.classes()[7], np.inf)
    assert sample[-1] == (*imagenet.classes()[8], -np.inf)


def test_what_a_model_predicts_can_be_decoded_as_it_is():
    inputs = keras.Input((1000,))
    model = keras.Model(inputs, keras.layers.Softmax()(inputs))
    logits = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    decoded = decode_predictions(model(logits), top=1)
    assert decoded == decode_predictions(np.asarray(model(logits)), top=1)
    best = logits.argmax(axis=-1)
    assert [sample[0][:2] for sample in decoded] == [imagenet.classes()[i] for i in best]


@pytest.mark.parametrize("shape", [(), (1000,), (1, 999), (1, 1001), (1000, 1), (2, 1000, 1)])
def test_predictions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`predictions`.*\(batch, 1000\).*Received: ") as raised:
        decode_predictions(np.zeros(shape))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, "tench", None])
def test_predictions_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match=r"`predictions` must hold numbers.*Received: dtype="):
        decode_predictions(np.full((2, 1000), value))


@pytest.mark.parametrize("top", [0, -1, 1001, 1.0, 2.5, "5", None, True])
def test_a_top_that_cannot_be_is_refused(top):
    with pytest.raises(ValueError, match=r"`top` must be in 1\.\.1000.*Received: top=") as raised:
        decode_predictions(one_hot(0), top=top)
    assert repr(top) in str(raised.value)


def test_the_top_may_be_a_numpy_integer():
    assert decode_predictions(one_hot(3), top=np.int64(2)) == decode_predictions(one_hot(3), 2)

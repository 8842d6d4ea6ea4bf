"""Metrics: what the steps count, and what the counts say of a classifier."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_resnet.training import Evaluation
from keras_resnet.training.metrics import count_confusions, count_correct, count_top


@st.composite
def batches(draw):
    """Labels, some of which fill up a batch, and scores, many of them equal."""
    examples, classes = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    labels = draw(st.lists(st.integers(-1, classes - 1), min_size=examples, max_size=examples))
    generator = np.random.default_rng(draw(st.integers(0, 100)))
    scores = generator.integers(0, draw(st.sampled_from([1, 2, 100])), (examples, classes))
    return np.array(labels, np.int32), scores.astype(np.float32)


def ranking(scores):
    """The classes of an example by their score, the first of equal ones first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


# What the steps count


@given(batches())
def test_every_count_is_what_a_loop_over_the_examples_counts(batch):
    labels, scores = batch
    correct = top = 0
    confusion = np.zeros((scores.shape[1], scores.shape[1]), int)
    for label, row in zip(labels, scores, strict=True):
        if label < 0:
            continue
        named = ranking(row)
        correct += named[0] == label
        top += label in named[:5]
        confusion[label, named[0]] += 1
    assert int(count_correct(labels, scores)) == correct
    assert int(count_top(labels, scores)) == top
    assert count_confusions(labels, scores).numpy().tolist() == confusion.tolist()


@given(batches())
def test_the_counts_of_the_parts_of_a_batch_add_up(batch):
    labels, scores = batch
    for count in (count_correct, count_top, count_confusions):
        parts = [count(labels[i::3], scores[i::3]).numpy() for i in range(3) if len(labels) > i]
        assert np.array_equal(sum(parts), count(labels, scores).numpy())
        assert count(labels, scores).dtype == tf.int64


@given(batches())
def test_the_three_counts_agree(batch):
    labels, scores = batch
    confusion = count_confusions(labels, scores).numpy()
    assert confusion.trace() == int(count_correct(labels, scores)) <= int(count_top(labels, scores))
    assert confusion.sum() == (labels >= 0).sum()
    if scores.shape[1] <= 5:
        assert int(count_top(labels, scores)) == (labels >= 0).sum()


def test_equal_scores_count_as_argmax_and_top_k_decide():
    # An 8-bit softmax over many classes ties: a network that gives all classes one score names the
    # first, and the first five, and must not be right about every image.
    labels = np.arange(1000, dtype=np.int32)
    scores = np.full((1000, 1000), 0.001, np.float32)
    assert int(count_correct(labels, scores)) == 1
    assert int(count_top(labels, scores)) == 5
    assert int(tf.reduce_sum(tf.cast(tf.math.in_top_k(labels, scores, 5), tf.int32))) == 1000


def test_scores_in_half_precision_and_labels_of_any_integer_type_count_alike():
    labels = np.array([0, 2, -1])
    scores = np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1, 0, 0]])
    for label_type in (tf.int32, tf.int64):
        for score_type in (tf.float64, tf.bfloat16, tf.float16):
            of = tf.cast(labels, label_type), tf.cast(scores, score_type)
            assert int(count_correct(*of)) == 1
            assert int(count_top(*of)) == 2
            assert count_confusions(*of).numpy().tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_the_counts_compile_for_batches_of_any_size():
    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None, 7), tf.float32),
        ]
    )
    def count(labels, scores):
        return count_correct(labels, scores), count_top(labels, scores), count_confusions(labels, scores)  # fmt: skip  # noqa: E501

    for examples in (3, 0):
        labels, scores = tf.zeros((examples,), tf.int32), tf.zeros((examples, 7))
        correct, top, confusion = count(labels, scores)
        assert (int(correct), int(top), int(confusion[0, 0])) == (examples,) * 3


# What the counts say


def evaluation(confusion, **fields):
    confusion = np.array(confusion, np.int64)
    correct, examples = int(confusion.trace()), int(confusion.sum())
    values = {"loss": 0.5, "accuracy": correct / examples, "correct": correct, "examples": examples}
    return Evaluation(**(values | {"confusion": confusion} | fields))


#       called  a  b  c
CONFUSION = [[8, 2, 0], [1, 4, 0], [3, 2, 0]]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_precision_and_recall_are_what_counting_examples_gives(pairs):
    confusion = np.zeros((5, 5), np.int64)
    for label, called in pairs:
        confusion[label, called] += 1
    found = evaluation(confusion)
    for i in range(5):
        right = sum(label == called == i for label, called in pairs)
        are, named = sum(a == i for a, _ in pairs), sum(b == i for _, b in pairs)
        for value, whole in ((found.precision[i], named), (found.recall[i], are)):
            assert math.isnan(value) if whole == 0 else value == right / whole
    assert found.precision.dtype == found.recall.dtype == np.float64
    assert found.precision.shape == found.recall.shape == (5,)


def test_what_is_undefined_is_nan_and_in_json_null():
    found = evaluation([[3, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert found.precision.tolist()[:1] == [0.75]
    assert np.isnan(found.precision).tolist() == [False, True, True]
    assert np.isnan(found.recall).tolist() == [False, False, True]
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["precision"] == [0.75, None, None]
    assert values["recall"] == [1.0, 0.0, None]


def test_an_evaluation_is_plain_values_in_json():
    found = evaluation(CONFUSION, top5=None, loss=math.inf)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values == {
        "loss": None,
        "accuracy": 0.6,
        "correct": 12,
        "examples": 20,
        "top5": None,
        "confusion": CONFUSION,
        "precision": [8 / 12, 0.5, None],
        "recall": [0.8, 0.8, 0.0],
    }
    assert found.to_dict(confusion=False) == values | {"loss": None, "confusion": None}


def test_an_evaluation_without_confusions_says_so():
    found = Evaluation(0.5, 0.75, 3, 4, top5=1.0)
    assert found.to_dict() == {
        "loss": 0.5, "accuracy": 0.75, "correct": 3, "examples": 4, "top5": 1.0, "confusion": None,
    }  # fmt: skip
    for ask in (lambda: found.precision, lambda: found.recall, found.confused):
        with pytest.raises(ValueError, match="did not count confusions"):
            ask()


def test_evaluations_are_equal_if_all_their_figures_are():
    assert evaluation(CONFUSION) == evaluation(CONFUSION)
    assert evaluation(CONFUSION) != evaluation(CONFUSION, loss=0.25)
    assert evaluation(CONFUSION) != evaluation([[8, 2, 0], [1, 4, 0], [2, 3, 0]])
    assert evaluation(CONFUSION) != "an evaluation"


def test_the_commonest_confusions_come_first():
    assert evaluation(CONFUSION).confused() == [(2, 0, 3), (0, 1, 2), (2, 1, 2), (1, 0, 1)]
    assert evaluation(CONFUSION).confused(most=2) == [(2, 0, 3), (0, 1, 2)]
    assert evaluation([[3, 0], [0, 2]]).confused() == []


def test_a_table_shows_classes_and_confusions():
    assert evaluation(CONFUSION).table(["cat", "dog", "marmot"], most=2).splitlines() == [
        "class   precision  recall  images",
        "cat         66.7%   80.0%      10",
        "dog         50.0%   80.0%       5",
        "marmot          -    0.0%       5",
        "marmot was called cat 3 times",
        "cat was called dog 2 times",
    ]


def test_a_confusion_that_happened_once_is_said_so():
    assert evaluation([[3, 1], [0, 2]]).table("ab").splitlines()[-1] == "a was called b once"


def test_a_table_of_many_classes_shows_those_with_the_lowest_recall():
    confusion = np.diag(np.arange(1, 31))
    confusion[7, 8] = confusion[20, 21] = 100
    confusion[3, 3] = 0  # without images
    lines = evaluation(confusion).table([f"class {i}" for i in range(30)], rows=2).splitlines()
    assert lines == [
        "class     precision  recall  images",
        "class 7      100.0%    7.4%     108",
        "class 20     100.0%   17.4%     121",
        "and 28 classes with a higher recall",
        "class 7 was called class 8 100 times",
        "class 20 was called class 21 100 times",
    ]


def test_a_table_lines_up_names_in_wide_letters():
    lines = evaluation([[1, 0], [0, 1]]).table(["猫", "dog"]).splitlines()
    assert lines[1:] == [
        "猫        100.0%  100.0%       1",
        "dog       100.0%  100.0%       1",
    ]


def test_a_table_needs_a_name_for_every_class():
    with pytest.raises(ValueError, match=r"`class_names` must hold 3 names\. Received: 2"):
        evaluation(CONFUSION).table(["cat", "dog"])

"""What a step of training computes besides the gradient: micro-batches, weights of classes,
clipping, averages, frozen stages, mixed precision, and statistics taken anew.

In float64 where numbers are compared, with the whole training set as one batch.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import toys
from toys import COLORS, paint, tiny

from keras_resnet import Preprocessing, data, training
from keras_resnet.training import Recipe

RECIPE = Recipe(epochs=2, batch_size=48, learning_rate=0.125, schedule="constant", weight_decay=0.0)


SOURCE = data.from_arrays(paint(48, 0), paint(13, 1), COLORS, name="colors")
SKEWED = data.from_arrays(paint(48, 0, skew=5), paint(13, 1), COLORS, name="skewed")


def linear(dtype="float64"):
    return toys.linear(dtype)


def fit(model, recipe=RECIPE, source=SOURCE, **options):
    options.setdefault("preprocessing", Preprocessing())
    return training.fit(model, source, recipe, verbose=False, **options)


def twins(build):
    """Two models with the same weights, away from zeros and ones."""
    first, second = build(), build()
    weights = [w + 0.25 for w in first.get_weights()]
    first.set_weights(weights)
    second.set_weights(weights)
    return first, second


def gradients(model, source=SOURCE, weights=None):
    images, labels = source.train.take(48, (32, 32, 3), Preprocessing())
    with tf.GradientTape() as tape:
        logits = model(tf.cast(Preprocessing()(images), "float64"), training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        if weights is not None:
            losses *= np.asarray(weights)[labels]
        loss = tf.reduce_mean(losses)
    return [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


class EachStep(keras.callbacks.Callback):
    """Notes the weights after every step."""

    def __init__(self):
        super().__init__()
        self.weights, self.losses = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())
        self.losses.append(logs["loss"])


def assert_close(first, second, rtol=1e-9):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


# Micro-batches


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_micro_batches_add_up_to_the_whole_batch_without_batch_statistics(parts):
    def build():
        return tiny(norm="group", dtype="float64", classifier_activation=None)

    whole, parted = twins(build)
    one, other = EachStep(), EachStep()
    recipe = RECIPE.replace(momentum=0.875, weight_decay=0.25)
    fit(whole, recipe, callbacks=[one])
    fit(parted, recipe, callbacks=[other], accumulate=parts)
    assert other.losses == pytest.approx(one.losses, rel=1e-12)
    assert_close(parted.get_weights(), whole.get_weights())


def test_each_micro_batch_is_normalized_by_its_own_statistics():
    """As documented: with batch normalization, accumulating is not the same."""
    whole, parted = twins(lambda: tiny(dtype="float64", classifier_activation=None))
    fit(whole, RECIPE.replace(epochs=1))
    fit(parted, RECIPE.replace(epochs=1), accumulate=4)
    difference = whole.get_weights()[0] - parted.get_weights()[0]
    assert 1e-6 < np.abs(difference).max() < 0.1


def test_micro_batches_move_the_statistics_in_turn():
    model = tiny(dtype="float64", classifier_activation=None, norm_momentum=0.5)
    before = model.get_layer("stem_norm").moving_mean.numpy()
    parts = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            parts.append(self.model.get_layer("stem_norm").moving_mean.numpy())

    stem = keras.Model(model.inputs[0], model.get_layer("stem_conv").output)
    batches = data.batches(
        SOURCE.train, 48, (32, 32, 3), Preprocessing(), dtype="float64", shuffle=(0, 0)
    )
    images, _ = next(iter(batches))
    expected = before
    for part in np.split(stem(images).numpy(), 4):
        expected = 0.5 * expected + 0.5 * part.mean(axis=(0, 1, 2))
    fit(model, RECIPE.replace(epochs=1), accumulate=4, callbacks=[Look()])
    np.testing.assert_allclose(parts[0], expected, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [0, -1, 2.0, True, 5])
def test_a_number_of_micro_batches_that_cannot_be_is_refused(accumulate):
    with pytest.raises(ValueError, match="accumulate"):
        fit(linear(), accumulate=accumulate)


# The gradient


def test_class_weights_are_factors_on_the_loss():
    trained, by_hand = twins(linear)
    recipe = RECIPE.replace(epochs=1, momentum=0.0)
    fit(trained, recipe, class_weights={"green": 4.0, "blue": 0.5})
    moved = [
        w - 0.125 * g
        for w, g in zip(by_hand.get_weights(), gradients(by_hand, weights=[1, 4, 0.5]), strict=True)
    ]
    assert_close(trained.get_weights(), moved)


def test_balanced_class_weights_give_every_class_the_same_say():
    trained, by_hand = twins(linear)
    counts = np.bincount(SKEWED.train.labels)
    assert len(set(counts)) > 1
    fit(trained, RECIPE.replace(epochs=1, momentum=0.0), SKEWED, class_weights="balanced")
    balance = gradients(by_hand, SKEWED, weights=48 / (3 * counts))
    assert_close(
        trained.get_weights(),
        [w - 0.125 * g for w, g in zip(by_hand.get_weights(), balance, strict=True)],
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"pink": 2.0}, "'pink'"),
        ({"red": -1.0}, "0 or more"),
        ({"red": float("nan")}, "0 or more"),
        ("equal", "'balanced'"),
        ([1, 2, 3], "mapping"),
        ({"red": 0.0, "green": 0.0, "blue": 0.0}, "0 or more"),
    ],
)
def test_class_weights_that_cannot_be_are_refused(weights, message):
    with pytest.raises(ValueError, match=f"`class_weights`.*{message}"):
        fit(linear(), class_weights=weights)


def test_a_clipped_gradient_has_the_length_of_the_limit():
    trained, by_hand = twins(linear)
    start = by_hand.get_weights()
    gradient = gradients(by_hand)
    length = np.sqrt(sum((g**2).sum() for g in gradient))
    limit = length / 8
    fit(trained, RECIPE.replace(epochs=1, momentum=0.0, clip=float(limit)))
    assert_close(
        trained.get_weights(),
        [w - 0.125 * g / 8 for w, g in zip(start, gradient, strict=True)],
        rtol=1e-6,
    )
    unclipped, _ = twins(linear)
    unclipped.set_weights(start)
    fit(unclipped, RECIPE.replace(epochs=1, momentum=0.0, clip=float(2 * length)))
    assert_close(
        unclipped.get_weights(),
        [w - 0.125 * g for w, g in zip(start, gradient, strict=True)],
        rtol=1e-6,
    )


def test_decay_may_act_on_biases_and_normalizations_too():
    kernels, everything = twins(lambda: tiny(dtype="float64", classifier_activation=None))
    start = kernels.get_weights()
    recipe = RECIPE.replace(epochs=1, momentum=0.0, weight_decay=0.5)
    fit(kernels, recipe)
    fit(everything, recipe.replace(decay="all"))
    moving = {v.path for v in kernels.non_trainable_variables}
    for variable, before, a, b in zip(
        kernels.weights, start, kernels.get_weights(), everything.get_weights(), strict=True
    ):
        expected = a
        if before.ndim == 1 and variable.path not in moving:
            expected = a - 0.125 * 0.5 * before
        np.testing.assert_allclose(b, expected, rtol=1e-9)


# Averages of the weights


def test_the_average_is_what_is_measured_saved_and_returned(tmp_path):
    steps = EachStep()
    model = linear("float32")
    average = model.get_weights()
    recipe = RECIPE.replace(epochs=3, batch_size=16, ema=0.25)
    result = fit(model, recipe, callbacks=[steps], run_dir=tmp_path / "run")
    assert len(steps.weights) == 9
    for taken, weights in enumerate(steps.weights, start=1):
        decay = min(0.25, (1 + taken) / (10 + taken))  # the first steps count for more
        average = [a + (1 - decay) * (w - a) for a, w in zip(average, weights, strict=True)]
    assert_close(result.model.get_weights(), average, rtol=1e-5)
    assert not np.allclose(average[0], steps.weights[-1][0], rtol=1e-3)
    saved = training.load_run(tmp_path / "run").model
    assert_close(saved.get_weights(), result.model.get_weights(), rtol=0)
    measured = training.evaluate(result.model, SOURCE, preprocessing=Preprocessing())
    assert measured.loss == pytest.approx(result.history[-1]["val_loss"], rel=1e-6)
    assert measured == result.evaluation


def test_measuring_the_average_does_not_disturb_the_training():
    plain, averaged = twins(linear)
    one, other = EachStep(), EachStep()
    fit(plain, RECIPE.replace(epochs=3, batch_size=16), callbacks=[one])
    fit(averaged, RECIPE.replace(epochs=3, batch_size=16, ema=0.5), callbacks=[other])
    for a, b in zip(one.weights, other.weights, strict=True):
        assert_close(a, b, rtol=0)


# Stopping early


def test_the_best_epoch_is_kept_when_the_training_stops_early(tmp_path):
    spoiled = EachStep()
    at_epoch_end = []

    class Spoil(keras.callbacks.Callback):
        """From the second epoch on, the weights name the wrong classes."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights([-w for w in self.model.get_weights()])

        def on_epoch_end(self, epoch, logs=None):
            at_epoch_end.append(self.model.get_weights())

    recipe = RECIPE.replace(
        epochs=9, batch_size=16, early_stopping=3, learning_rate=0.001, momentum=0.0
    )
    model = linear("float32")
    model.set_weights([5 * np.eye(3), np.zeros(3)])
    result = fit(model, recipe, callbacks=[Spoil(), spoiled], run_dir=tmp_path / "run")
    accuracies = [row["val_accuracy"] for row in result.history]
    assert len(accuracies) == 4
    assert max(accuracies[1:]) <= accuracies[0]
    assert_close(result.model.get_weights(), at_epoch_end[0], rtol=0)
    assert result.evaluation.accuracy == accuracies[0]
    saved = training.load_run(tmp_path / "run")
    assert_close(saved.model.get_weights(), at_epoch_end[0], rtol=0)
    assert saved.info["test"]["accuracy"] == accuracies[0]


# Frozen stages


def test_frozen_stages_stay_as_they_are_and_then_all_trains():
    model = tiny()
    start = {v.path: v.numpy() for v in model.weights}
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            moved = {v.path for v in self.model.weights if (v.numpy() != start[v.path]).any()}
            seen.append({path.split("/")[0].split("_")[0] for path in moved})

    recipe = RECIPE.replace(epochs=3, batch_size=16, frozen="C3", frozen_epochs=2)
    fit(model, recipe, callbacks=[Look()])
    assert seen[0] == seen[1] == {"stage4", "logits"}
    assert seen[2] == {"stem", "stage2", "stage3", "stage4", "logits"}
    assert all(layer.trainable for layer in model.layers)


def test_what_was_frozen_to_the_end_is_free_in_the_result():
    recipe = RECIPE.replace(epochs=1, batch_size=16, frozen="C3", frozen_epochs=1)
    result = fit(tiny, recipe)
    assert all(layer.trainable for layer in result.model.layers)


# Precision


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_in_16_bits_and_keeps_head_loss_and_weights_in_32(precision):
    before = keras.config.dtype_policy().name
    result = fit(tiny, RECIPE.replace(epochs=4, batch_size=16), precision=precision)
    assert keras.config.dtype_policy().name == before
    model = result.model
    assert model.get_layer("stem_conv").compute_dtype == precision.removeprefix("mixed_")
    assert model.get_layer("logits").compute_dtype == "float32"
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert {v.dtype for v in model.weights} == {"float32"}
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]


def test_float16_gradients_too_small_for_it_are_not_lost():
    """Without loss scaling they would be zero."""
    keras.utils.set_random_seed(0)
    wide = tiny(classifier_activation=None)
    tiny_steps = 2.0**-22  # in float16 the smallest number is 2^-24
    weights = dict.fromkeys(COLORS, tiny_steps)
    fine = tiny(classifier_activation=None, dtype="mixed_float16")
    fine.set_weights(wide.get_weights())
    start = wide.get_weights()[0]
    recipe = RECIPE.replace(epochs=1, momentum=0.0, learning_rate=1 / tiny_steps)
    fit(wide, recipe, class_weights=weights)
    fit(fine, recipe, class_weights=weights)
    exact, rounded = wide.get_weights()[0] - start, fine.get_weights()[0] - start
    # Float16's own rounding makes 7 %; what is lost would make 100 %.
    assert np.linalg.norm(rounded - exact) < 0.2 * np.linalg.norm(exact)


def test_a_step_whose_float16_gradient_overflows_is_left_out_and_the_scale_halved():
    model = tiny(classifier_activation=None, dtype="mixed_float16")
    steps = EachStep()
    scales = []

    class Scale(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            scales.append(float(tf.convert_to_tensor(self.model.optimizer.dynamic_scale)))

    start = [v.numpy() for v in model.trainable_variables]
    recipe = RECIPE.replace(epochs=2, learning_rate=1e-6)
    fit(model, recipe, callbacks=[steps, Scale()], class_weights=dict.fromkeys(COLORS, 1e5))
    trainable = {v.path for v in model.trainable_variables}
    first = [w for v, w in zip(model.weights, steps.weights[0], strict=True) if v.path in trainable]
    assert_close(first, start, rtol=0)
    assert scales[1] == scales[0] / 2


def test_a_ready_model_has_its_precision():
    with pytest.raises(ValueError, match="ready model"):
        fit(tiny(), precision="mixed_bfloat16")
    with pytest.raises(ValueError, match=r"`precision`.*'mixed_bfloat16'.*'bfloat16'"):
        fit(tiny, precision="bfloat16")


# Statistics taken anew


def test_precise_statistics_are_those_of_the_training_data():
    model = tiny(classifier_activation=None)
    recipe = RECIPE.replace(epochs=1, batch_size=16)
    result = fit(model, recipe, precise_bn=True)
    images, _ = SOURCE.train.take(48, (32, 32, 3), Preprocessing())
    stem = keras.Model(model.inputs[0], model.get_layer("stem_conv").output)
    values = stem(Preprocessing()(images)).numpy().astype(np.float64)
    norm = model.get_layer("stem_norm")
    np.testing.assert_allclose(norm.moving_mean.numpy(), values.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.numpy(), values.var((0, 1, 2)), rtol=1e-4)
    assert norm.momentum == 0.5
    # What is reported is measured with them.
    again = training.evaluate(result.model, SOURCE)
    assert again == result.evaluation
    assert again.loss != result.history[-1]["val_loss"]


def test_precise_statistics_leave_the_weights_and_frozen_layers_alone():
    model = tiny(classifier_activation=None)
    model.get_layer("stem_norm").trainable = False
    kept = model.get_layer("stem_norm").get_weights()
    steps = EachStep()
    fit(model, RECIPE.replace(epochs=1), callbacks=[steps], precise_bn=True)
    assert_close(model.get_layer("stem_norm").get_weights(), kept, rtol=0)
    for variable, before in zip(model.weights, steps.weights[-1], strict=True):
        if variable.trainable:
            np.testing.assert_array_equal(variable.numpy(), before)

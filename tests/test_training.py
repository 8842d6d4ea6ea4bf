"""The training loop: what it computes, what it says, and what it leaves behind."""

import csv
import io
import json
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from toys import COLORS, TINY, linear, paint, tiny

import keras_resnet
from keras_resnet import Architecture, Preprocessing, data, training
from keras_resnet.training import Recipe

HISTORY = {
    "epoch",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "images_per_second",
}

QUICK = Recipe(name="quick", epochs=2, batch_size=16, learning_rate=0.05, schedule="constant")


TRAIN, TEST = paint(48, seed=0), paint(13, seed=1)
SOURCE = data.from_arrays(TRAIN, TEST, COLORS, name="colors")


def fit(model, recipe=QUICK, source=SOURCE, verbose=False, **options):
    return training.fit(model, source, recipe, verbose=verbose, **options)


def fit_linear(recipe=QUICK, source=SOURCE, verbose=False, **options):
    return fit(linear, recipe, source, verbose, preprocessing=Preprocessing(), **options)


def scores(model, images):
    return keras.ops.convert_to_numpy(model(Preprocessing()(images), training=False))


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_same_weights(first, second):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Record(keras.callbacks.Callback):
    """Notes which hooks were called, with what."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.batch_losses = []
        self.weights = []

    def on_train_begin(self, logs=None):
        self.calls.append("train begin")

    def on_train_end(self, logs=None):
        self.calls.append("train end")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(f"epoch {epoch} begin")

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(f"epoch {epoch} end")
        self.weights.append(self.model.get_weights())
        self.logs = logs

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(f"batch {batch} begin")

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(f"batch {batch} end")
        self.batch_losses.append(logs["loss"])


# A training, and the directory that it leaves behind


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "above" / "first"
    return fit(tiny, QUICK.replace(epochs=4), run_dir=run_dir, seed=7)


@pytest.fixture
def run_dir(result, tmp_path):
    """A copy of the finished run, to do things to."""
    return shutil.copytree(result.run_dir, tmp_path / "run")


def test_the_loss_falls_and_the_problem_is_learned(result):
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert result.history[-1]["accuracy"] == 1.0
    assert training.evaluate(result.model, SOURCE).accuracy > 0.9


def test_the_history_has_a_row_for_each_epoch(result):
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    for row in result.history:
        assert set(row) == HISTORY
        assert row["images_per_second"] > 0
        assert row["learning_rate"] == pytest.approx(0.05)


def test_the_last_validation_is_an_evaluation_of_the_model(result):
    evaluation = training.evaluate(result.model, SOURCE)
    assert evaluation.examples == 13
    assert result.history[-1]["val_loss"] == pytest.approx(evaluation.loss, rel=1e-6)
    assert result.history[-1]["val_accuracy"] == evaluation.accuracy == evaluation.correct / 13


def test_the_model_learns_the_names_of_the_classes(result):
    assert result.model.class_names == COLORS


def test_a_run_leaves_four_files_checkpoints_and_the_summaries_for_tensorboard(result):
    assert sorted(path.name for path in result.run_dir.iterdir()) == [
        "checkpoints",
        "curves.png",
        "history.csv",
        "model.keras",
        "run.json",
        "tensorboard",
    ]


def test_tensorboard_gets_the_figures_of_the_history(result):
    (events,) = (result.run_dir / "tensorboard").iterdir()
    curves = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            curves.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    for tag, name in (("loss/training", "loss"), ("accuracy/test", "val_accuracy")):
        expected = {3 * row["epoch"]: row[name] for row in result.history}
        assert curves[tag] == pytest.approx(expected, rel=1e-6)


def test_the_curves_are_a_picture(result):
    with Image.open(result.run_dir / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(set(picture.convert("L").getextrema())) == 2  # not one color


def test_the_table_holds_the_history(result):
    with (result.run_dir / "history.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == result.history


def test_run_json_says_how_the_model_came_about(result):
    info = json.loads((result.run_dir / "run.json").read_text())
    assert Architecture.from_dict(info["architecture"]) == TINY
    assert Recipe.from_dict(info["recipe"]) == QUICK.replace(epochs=4)
    assert Preprocessing.from_dict(info["preprocessing"]) == Preprocessing()
    assert info["last"] == result.history[-1]
    assert info["status"] == "finished"
    assert info["started"] <= info["saved"]
    assert info["versions"]["keras_resnet"] == keras_resnet.__version__
    assert info["versions"]["tensorflow"] == tf.__version__
    assert info["command"]
    expected = {
        "model": "tiny",
        "input_shape": [32, 32, 3],
        "class_names": list(COLORS),
        "data": "colors",
        "train_examples": 48,
        "test_examples": 13,
        "bad_images": 0,
        "seed": 7,
        "replicas": 1,
        "epochs": 4,
    }
    assert {name: info[name] for name in expected} == expected


def test_a_run_can_be_loaded_again(result):
    run = training.load_run(str(result.run_dir))
    np.testing.assert_array_equal(scores(run.model, TEST[0]), scores(result.model, TEST[0]))
    assert run.model.architecture == TINY
    assert run.model.class_names == run.class_names == COLORS
    assert run.recipe == QUICK.replace(epochs=4)
    assert run.preprocessing == Preprocessing()
    assert run.history == result.history
    assert run.info["data"] == "colors"
    assert run.path == result.run_dir


def saved_groups(path):
    with zipfile.ZipFile(path) as archive:
        weights = io.BytesIO(archive.read("model.weights.h5"))
        config = json.loads(archive.read("config.json"))
    with h5py.File(weights) as file:
        return set(file), config


def test_the_saved_model_holds_no_optimizer(result):
    groups, config = saved_groups(result.run_dir / "model.keras")
    assert "optimizer" not in groups
    assert not config.get("compile_config")
    assert len(training.load_run(result.run_dir).model.get_weights()) == len(tiny().get_weights())


def test_a_long_training_is_saved_after_every_epoch_without_its_optimizer(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.training.loop._SAVE_SECONDS", 0.0)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            assert self.model.optimizer is not None
            if epoch:
                groups, _ = saved_groups(tmp_path / "run" / "model.keras")
                seen.append((len(training.load_run(tmp_path / "run").history), groups))

    fit_linear(QUICK.replace(epochs=3), run_dir=tmp_path / "run", callbacks=[Look()])
    assert [epochs for epochs, _ in seen] == [1, 2]
    assert all("optimizer" not in groups for _, groups in seen)


def test_a_run_is_not_overwritten_unasked(result, run_dir):
    before = contents(run_dir)
    with pytest.raises(FileExistsError, match="force"):
        fit_linear(run_dir=run_dir)
    assert contents(run_dir) == before


def test_a_run_is_overwritten_with_force(run_dir):
    second = fit_linear(QUICK.replace(epochs=1), run_dir=run_dir, force=True, seed=8)
    run = training.load_run(run_dir)
    assert (run.info["model"], run.info["seed"]) == ("linear", 8)
    assert run.info["architecture"] is None
    assert run.history == second.history
    assert_same_weights(run.model, second.model)


def test_a_training_that_cannot_start_costs_no_finished_run(result, run_dir):
    with pytest.raises(ValueError, match="number of classes"):
        fit(lambda: tiny(classes=4), run_dir=run_dir, force=True)
    run = training.load_run(run_dir)
    assert run.history == result.history
    assert_same_weights(run.model, result.model)


def test_a_file_in_the_place_of_the_run_stays(tmp_path):
    path = tmp_path / "run"
    path.write_text("precious")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="run"):
            fit_linear(run_dir=path, force=force)
    assert path.read_text() == "precious"


def test_without_a_run_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit_linear(QUICK.replace(epochs=1)).run_dir is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["run.json", "model.keras"])
def test_a_directory_that_is_no_finished_run_is_refused(run_dir, missing):
    (run_dir / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {missing}") as raised:
        training.load_run(run_dir)
    assert str(run_dir) in str(raised.value)


def test_a_damaged_run_is_refused(run_dir):
    (run_dir / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        training.load_run(run_dir)


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_begin", "on_epoch_end"])
def test_an_interrupted_training_leaves_the_epochs_that_were_finished(tmp_path, hook):
    class Interrupt(keras.callbacks.Callback):
        epochs_begun = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs_begun += 1

    def interrupt(self, index, logs=None):
        if hook == "on_epoch_begin":
            self.epochs_begun += 1
        if self.epochs_begun == 2:
            raise KeyboardInterrupt

    setattr(Interrupt, hook, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_linear(QUICK.replace(epochs=3), run_dir=tmp_path / "run", callbacks=[Interrupt()])
    run = training.load_run(tmp_path / "run")
    assert [row["epoch"] for row in run.history] == [1]
    assert run.info["epochs"] == 1
    assert run.info["status"] == "interrupted"
    # The model is the one that the history describes, not that of half an epoch more.
    again = training.evaluate(run.model, SOURCE, preprocessing=Preprocessing())
    assert again.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-6)


def test_a_training_that_fails_at_once_costs_no_older_run(run_dir):
    before = contents(run_dir)
    with pytest.raises(training.TrainingError):
        fit_linear(QUICK.replace(learning_rate=1e30), run_dir=run_dir, force=True)
    assert contents(run_dir) == before


@pytest.mark.parametrize("name", ["model.keras", "history.csv", "curves.png"])
def test_files_of_others_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} already"):
        fit(tiny, QUICK.replace(epochs=1), run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


# What is trained


def test_a_ready_model_gets_the_weights_and_keeps_its_names():
    model = tiny(class_names=COLORS)
    before = [w.copy() for w in model.get_weights()]
    trained = fit(model, QUICK.replace(epochs=1)).model
    assert trained is model
    assert not any(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.class_names == COLORS


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="'r' where colors has 'red'"):
        fit(tiny(class_names=("r", "g", "b")), QUICK.replace(epochs=1))
    with pytest.raises(ValueError, match="'r' where colors has 'red'"):
        training.evaluate(tiny(class_names=("r", "g", "b")), SOURCE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_16_bits_are_refused(dtype):
    with pytest.raises(ValueError, match=r"16 bits"):
        fit(lambda: tiny(dtype=dtype), QUICK.replace(epochs=1))


def test_callbacks_may_change_a_constant_rate():
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = fit(tiny, QUICK.replace(epochs=3), callbacks=[halve]).history
    assert [row["learning_rate"] for row in history] == pytest.approx([0.025, 0.0125, 0.00625])


def test_the_history_tells_the_rate_of_the_last_step():
    recipe = QUICK.replace(epochs=2, schedule="cosine")
    rates = [row["learning_rate"] for row in fit(tiny, recipe).history]
    steps = 48 // QUICK.batch_size
    schedule = recipe.learning_rate_schedule(steps)
    assert rates == pytest.approx([float(schedule(steps - 1)), float(schedule(2 * steps - 1))])
    assert rates[-1] > 0


def test_a_function_is_asked_for_the_model():
    built = []

    def build():
        built.append(linear())
        return built[0]

    result = fit(build, QUICK.replace(epochs=1), preprocessing=Preprocessing())
    assert len(built) == 1
    assert_same_weights(result.model, built[0])


def test_a_model_that_was_compiled_stays_so():
    model = linear(activation="softmax")
    model.compile("adam", "sparse_categorical_crossentropy")
    optimizer = model.optimizer
    fit(model, QUICK.replace(epochs=1), preprocessing=Preprocessing())
    assert model.optimizer is optimizer


def test_a_data_source_can_be_given_by_its_name():
    recipe = Recipe(epochs=1, batch_size=512, learning_rate=0.01)
    model = linear(classes=10)
    result = fit(model, recipe, "digits", preprocessing=Preprocessing())
    assert result.history[0]["val_accuracy"] == pytest.approx(
        training.evaluate(model, "digits", preprocessing=Preprocessing()).accuracy
    )


def test_the_preprocessing_that_is_given_is_used(result):
    own = training.evaluate(result.model, SOURCE)
    other = Preprocessing(mean=(0,), std=(255,))
    assert training.evaluate(result.model, SOURCE, preprocessing=Preprocessing()) == own
    assert training.evaluate(result.model, SOURCE, preprocessing=other).loss != own.loss
    trained = fit(linear, QUICK.replace(epochs=1), preprocessing=other)
    after = training.evaluate(trained.model, SOURCE, preprocessing=other)
    assert trained.history[0]["val_loss"] == pytest.approx(after.loss, rel=1e-6)


def test_the_same_seed_gives_the_same_weights():
    recipe = QUICK.replace(epochs=1, augment=("shift", "flip"))
    first, again = (fit(tiny, recipe, seed=3).model for _ in range(2))
    assert_same_weights(first, again)


def test_another_seed_gives_another_start():
    tiny_rate = QUICK.replace(epochs=1, learning_rate=1e-9)
    first, other = (fit_linear(tiny_rate, seed=seed).model for seed in (3, 4))
    assert not np.allclose(first.get_weights()[0], other.get_weights()[0], atol=1e-3)


def test_the_seed_orders_the_examples_of_a_ready_model():
    def train(seed):
        model = linear()
        model.set_weights([np.zeros((3, 3)), np.zeros(3)])
        return fit(model, QUICK.replace(epochs=1), preprocessing=Preprocessing(), seed=seed).model

    first, again, other = (train(seed) for seed in (3, 3, 4))
    assert_same_weights(first, again)
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])


def test_mixed_precision_trains():
    result = fit(lambda: tiny(dtype="mixed_bfloat16"), QUICK.replace(epochs=3))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert {w.dtype for w in result.model.get_weights()} == {np.dtype(np.float32)}


def test_a_grey_network_is_fed_grey_images():
    grey = (TRAIN[0][..., :1], TRAIN[1])
    source = data.from_arrays(grey, grey, COLORS)
    model = linear(channels=1)
    result = fit(model, QUICK.replace(epochs=1), source, preprocessing=Preprocessing())
    expected = -log_softmax(scores(model, grey[0]))[np.arange(48), grey[1]].mean()
    assert result.history[0]["val_loss"] == pytest.approx(expected, rel=1e-6)


def head(kind):
    image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    x = keras.layers.Dense(3, activation="softmax" if kind == "dense" else None)(x)
    if kind == "activation":
        x = keras.layers.Activation("softmax")(x)
    if kind == "layer":
        x = keras.layers.Softmax()(x)
    return keras.Model(image, x)


def test_every_kind_of_head_trains_alike():
    start = head("logits").get_weights()
    losses, weights = {}, {}
    for kind in ("logits", "activation", "layer", "dense"):
        model = head(kind)
        model.set_weights(start)
        result = fit(model, preprocessing=Preprocessing())
        losses[kind] = [row[name] for row in result.history for name in ("loss", "val_loss")]
        weights[kind] = model.get_weights()
        assert losses[kind][2] < losses[kind][0]
    for kind in ("activation", "layer", "dense"):
        assert losses[kind] == pytest.approx(losses["logits"], rel=1e-5)
        for a, b in zip(weights[kind], weights["logits"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# What is computed. In float64, and with the whole training set as one batch, so that the order of
# the examples does not matter. The rates are sums of powers of two: schedules are float32.


def whole_batch(**fields):
    defaults = {"epochs": 1, "batch_size": 48, "learning_rate": 0.125, "schedule": "constant"}
    return Recipe(**(defaults | fields))


def descend(model, recipe):
    """Stochastic gradient descent as in Caffe and PyTorch, by hand."""
    images = tf.constant(Preprocessing()(TRAIN[0]), tf.float64)
    labels = tf.constant(TRAIN[1])
    rate, momentum = recipe.learning_rate, recipe.momentum
    velocities = [tf.zeros_like(w.value) for w in model.trainable_variables]
    for _ in range(recipe.epochs):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [w.value for w in model.trainable_variables])
        for i, (w, g) in enumerate(zip(model.trainable_variables, gradients, strict=True)):
            if w.name == "kernel":
                g = g + recipe.weight_decay * w.value
            velocities[i] = momentum * velocities[i] - rate * g
            w.assign_add(momentum * velocities[i] - rate * g if recipe.nesterov else velocities[i])


def whole(build):
    return build(dtype="float64", **({"classifier_activation": None} if build is tiny else {}))


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (linear, {"momentum": 0.0, "weight_decay": 0}),
        (tiny, {"momentum": 0.0, "weight_decay": 0.25}),
        (tiny, {"momentum": 0.875, "weight_decay": 0.25, "epochs": 2}),
        (linear, {"momentum": 0.875, "weight_decay": 0.25, "epochs": 3, "nesterov": True}),
    ],
    ids=["plain", "decay", "momentum", "nesterov"],
)
def test_a_step_is_that_of_the_paper_with_the_decay_of_the_kernels_inside_the_momentum(
    build, fields
):
    recipe = whole_batch(**fields)
    trained, by_hand = whole(build), whole(build)
    # Away from the initial zeros and ones, on which a decay of the others would not show.
    start = [w + 0.25 for w in trained.get_weights()]
    for model in (trained, by_hand):
        model.set_weights(start)
    fit(trained, recipe, preprocessing=Preprocessing())
    descend(by_hand, recipe)
    for before, after, expected in zip(
        start, trained.get_weights(), by_hand.get_weights(), strict=True
    ):
        assert after.dtype == np.float64
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(after, expected, rtol=1e-9, atol=1e-12)


def test_a_regularizer_of_ones_own_counts_like_the_decay():
    recipe = whole_batch(momentum=0.875, epochs=2)
    # Keras's L2(c) adds c times the square, whose gradient is 2 c w.
    regularized = linear("float64", regularizer=keras.regularizers.L2(0.125))
    decayed = linear("float64")
    decayed.set_weights(regularized.get_weights())
    fit(regularized, recipe.replace(weight_decay=0), preprocessing=Preprocessing())
    fit(decayed, recipe.replace(weight_decay=0.25), preprocessing=Preprocessing())
    for a, b in zip(regularized.get_weights(), decayed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("smoothing", [0.0, 0.125, 0.5])
def test_the_loss_is_the_smoothed_cross_entropy(smoothing, activation):
    model = linear("float64", activation)
    logits = linear("float64")
    logits.set_weights(model.get_weights())
    targets = (1 - smoothing) * np.eye(3)[TRAIN[1]] + smoothing / 3
    expected = -(targets * log_softmax(scores(logits, TRAIN[0]))).sum(axis=-1).mean()
    record = Record()
    recipe = whole_batch(label_smoothing=smoothing)
    fit(model, recipe, preprocessing=Preprocessing(), callbacks=[record])
    assert record.batch_losses == [pytest.approx(expected, rel=1e-6)]
    # Validation is not smoothed, so that losses can be compared between recipes.
    logits.set_weights(model.get_weights())
    expected = -log_softmax(scores(logits, TEST[0]))[np.arange(13), TEST[1]].mean()
    assert record.logs["val_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_rate_follows_the_schedule():
    recipe = whole_batch(epochs=4, schedule="step", milestones=(0.5,), momentum=0.0, weight_decay=0)
    record = Record()
    fit(linear("float64"), recipe, preprocessing=Preprocessing(), callbacks=[record])
    by_hand = linear("float64")
    for epoch, rate in ((0, 0.125), (1, 0.125), (2, 0.0125), (3, 0.0125)):
        if epoch:
            by_hand.set_weights(record.weights[epoch - 1])
            descend(by_hand, whole_batch(learning_rate=rate, momentum=0.0, weight_decay=0))
            for a, b in zip(record.weights[epoch], by_hand.get_weights(), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("change", ["momentum=0", "learning_rate=1", "label_smoothing=0"])
def test_a_whole_number_is_as_good_as_a_fraction(change):
    model = linear()
    start = model.get_weights()
    results = []
    for recipe in (QUICK.replace([change]), QUICK.replace([f"{change}.0"])):
        model.set_weights(start)
        results.append(fit(model, recipe, preprocessing=Preprocessing()).history[-1]["loss"])
    assert results[0] == results[1]


# Evaluation


@pytest.fixture(scope="module")
def many():
    images, labels = paint(100, seed=2)
    # Half of the labels are wrong, so that neither all answers are right nor all wrong.
    labels = np.where(np.arange(100) % 2, labels, (labels + 1) % 3)
    return data.from_arrays((images, labels), (images, labels), COLORS)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 256])
def test_evaluation_counts_every_example_once(result, many, batch_size):
    images, labels = many.test.take(100, (32, 32, 3), Preprocessing())
    logits = keras.Model(result.model.input, result.model.layers[-1].input)
    log_probabilities = log_softmax(scores(logits, images))
    evaluation = training.evaluate(result.model, many, batch_size=batch_size)
    assert evaluation.examples == 100
    assert evaluation.correct == (log_probabilities.argmax(axis=-1) == labels).sum()
    assert 0 < evaluation.correct < 100
    assert evaluation.accuracy == evaluation.correct / 100
    expected = -log_probabilities[np.arange(100), labels].mean()
    assert evaluation.loss == pytest.approx(expected, rel=1e-6)


def test_any_split_can_be_evaluated(result):
    assert training.evaluate(result.model, SOURCE.test) == training.evaluate(result.model, SOURCE)
    assert training.evaluate(result.model, SOURCE.train).examples == 48


def test_evaluation_leaves_the_model_as_it_was(result):
    before = [w.copy() for w in result.model.get_weights()]
    training.evaluate(result.model, SOURCE)
    for a, b in zip(before, result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_whose_softmax_underflows_is_exact():
    model = head("activation")
    # In favor of the first class by 1,000 nats.
    model.set_weights([np.zeros((3, 3)), np.array([1000.0, 0.0, 0.0])])
    images, labels = paint(4, seed=0)
    source = data.from_arrays((images, labels), (images, labels), COLORS)
    evaluation = training.evaluate(model, source, preprocessing=Preprocessing())
    assert evaluation.loss == 500.0  # labels 0, 1, 2, 0
    assert evaluation.correct == 2


# Callbacks


def test_keras_callbacks_hear_every_epoch_and_every_step():
    record = Record()
    result = fit_linear(callbacks=[record])
    steps = [f"batch {step} {when}" for step in range(3) for when in ("begin", "end")]
    assert record.calls == [
        "train begin",
        *("epoch 0 begin", *steps, "epoch 0 end"),
        *("epoch 1 begin", *steps, "epoch 1 end"),
        "train end",
    ]
    assert record.params["epochs"] == 2
    assert set(record.logs) == HISTORY - {"epoch"}
    assert record.logs == {k: v for k, v in result.history[-1].items() if k != "epoch"}
    # Batches are of one size, so the loss of an epoch is the mean of its batches'.
    assert all(isinstance(loss, float) for loss in record.batch_losses)
    for row, losses in zip(result.history, np.split(np.array(record.batch_losses), 2), strict=True):
        assert row["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_a_lambda_callback_hears_every_step_too():
    losses = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append((batch, logs["loss"]))
    )
    fit_linear(callbacks=[callback])
    assert [batch for batch, _ in losses] == [0, 1, 2, 0, 1, 2]
    assert np.isfinite([loss for _, loss in losses]).all()


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end"])
def test_a_callback_can_stop_the_training(hook):
    class Stop(keras.callbacks.Callback):
        pass

    def stop(self, index, logs=None):
        self.model.stop_training = True

    setattr(Stop, hook, stop)
    assert len(fit_linear(QUICK.replace(epochs=5), callbacks=[Stop()]).history) == 1


def test_a_stopped_model_can_be_trained_again():
    model = linear()
    model.stop_training = True
    result = fit(model, QUICK.replace(epochs=2), preprocessing=Preprocessing())
    assert len(result.history) == 2


def test_early_stopping_stops_and_brings_back_the_best_weights(tmp_path):
    record = Record()
    patience = keras.callbacks.EarlyStopping(
        "val_loss", min_delta=1e9, patience=2, restore_best_weights=True
    )
    result = fit_linear(
        QUICK.replace(epochs=9), callbacks=[record, patience], run_dir=tmp_path / "run"
    )
    # Nothing improves by 1e9: the first epoch stays the best, and two more are waited for.
    assert len(result.history) == 3
    saved = training.load_run(tmp_path / "run").model
    for model in (result.model, saved):
        for best, found in zip(record.weights[0], model.get_weights(), strict=True):
            np.testing.assert_array_equal(best, found)


def test_a_checkpoint_callback_writes_a_model_that_loads(tmp_path):
    path = tmp_path / "checkpoint.keras"
    result = fit_linear(callbacks=[keras.callbacks.ModelCheckpoint(path)])
    loaded = keras_resnet.load_model(path)
    np.testing.assert_array_equal(scores(loaded, TEST[0]), scores(result.model, TEST[0]))


# What is refused


def two_inputs():
    inputs = [keras.Input((32, 32, 3)), keras.Input((32, 32, 3))]
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(pooled))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: tiny(classes=4), {}, "a model with 4, and colors with 3"),
        (tiny, {"recipe": QUICK.replace(batch_size=49)}, "`batch_size`.*49 for 48 images of color"),
        (tiny, {"recipe": "quickest"}, "`recipe`.*'digits'.*Received: 'quickest'"),
        (tiny, {"strategy": "tpu"}, "`strategy`.*'mirrored'.*Received: 'tpu'"),
        (tiny, {"source": "cifar10"}, "`data`.*Received: 'cifar10'"),
        (linear, {}, "`preprocessing`.*a Functional named 'linear'"),
        ("resnet20", {}, "`model`.*Received: str"),
        (lambda: None, {}, "`model`.*Received: NoneType"),
        (two_inputs, {}, "one input"),
        (lambda: tiny(classifier_activation="sigmoid"), {}, "logits or in a softmax.*'sigmoid'"),
        (lambda: tiny(input_shape=(None, None, 3)), {}, "size|shape"),
        (lambda: tiny(input_shape=(32, 32, 4)), {}, "channels=4"),
    ],
    ids=[
        "classes",
        "batch_size",
        "recipe",
        "strategy",
        "data",
        "preprocessing",
        "name",
        "nothing",
        "two_inputs",
        "sigmoid",
        "open_size",
        "four_channels",
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, model, options, message):
    with pytest.raises(ValueError, match=message):
        fit(model, run_dir=tmp_path / "run", **options)


def test_what_is_refused_at_once_leaves_no_directory(tmp_path):
    with pytest.raises(ValueError, match="number of classes"):
        fit(lambda: tiny(classes=4), run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="`preprocessing`"):
        fit(linear, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: tiny(classes=4), {}, "a model with 4, and colors with 3"),
        (linear, {}, "`preprocessing`.*a Functional named 'linear'"),
        (tiny, {"strategy": "tpu"}, "`strategy`.*Received: 'tpu'"),
        (lambda: tiny(classifier_activation="sigmoid"), {}, "logits or in a softmax.*'sigmoid'"),
    ],
    ids=["classes", "preprocessing", "strategy", "sigmoid"],
)
def test_what_cannot_be_evaluated_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        training.evaluate(model(), SOURCE, **options)


def test_a_loss_that_explodes_ends_the_training():
    with pytest.raises(training.TrainingError, match=r"no finite number at step \d of epoch 1\b"):
        fit_linear(QUICK.replace(learning_rate=1e30))


def test_a_loss_that_is_no_number_is_found_at_its_step():
    broken = linear()
    broken.set_weights([np.full((3, 3), np.nan), np.zeros(3)])
    with pytest.raises(training.TrainingError, match=r"no finite number at step 1 of epoch 1\b"):
        fit(broken, preprocessing=Preprocessing(), callbacks=[Record()])


def test_a_training_that_breaks_down_leaves_no_broken_model(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights([np.full((3, 3), np.nan), np.zeros(3)])

    with pytest.raises(training.TrainingError, match=r"epoch 2\b"):
        fit_linear(run_dir=tmp_path / "run", callbacks=[Break()])
    path = tmp_path / "run" / "model.keras"
    if path.exists():
        assert np.isfinite(scores(keras_resnet.load_model(path), TEST[0])).all()


# Progress

FIGURES = r"loss \d+\.\d{4}  accuracy \d+\.\d\d%"


def test_without_a_terminal_every_epoch_is_a_plain_line(capsys):
    result = fit_linear(verbose=True)
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert len(lines) == 2
    for epoch, (line, row) in enumerate(zip(lines, result.history, strict=True), start=1):
        assert re.fullmatch(
            rf"epoch {epoch}/2  {FIGURES}  test {FIGURES}  \d+ images/s  \d+:\d\d left", line
        )
        for name in ("loss", "val_loss"):
            assert f"loss {row[name]:.4f}" in line
        for name in ("accuracy", "val_accuracy"):
            assert f"accuracy {row[name]:.2%}" in line
    assert lines[-1].endswith("  0:00 left")


def test_a_long_epoch_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr("keras_resnet.training.progress._PLAIN_SECONDS", 0.0)
    fit_linear(QUICK.replace(epochs=1), verbose=True)
    *steps, _ = capsys.readouterr().out.splitlines()
    assert len(steps) == 3
    for step, line in enumerate(steps, start=1):
        assert re.fullmatch(rf"epoch 1/1  step {step}/3  {FIGURES}  \d+:\d\d left", line)


def test_a_quiet_training_says_nothing(capsys):
    fit_linear(QUICK.replace(epochs=1), verbose=False)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")

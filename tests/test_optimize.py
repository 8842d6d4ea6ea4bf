"""Optimization in training: the twin in Keras 2, the three methods, and what they leave alone."""

import dataclasses

import keras
import numpy as np
import pytest
from processes import run_python
from toys import SMALL, linear

import keras_resnet
from keras_resnet import data, export, training
from keras_resnet.export import optimize
from keras_resnet.export.inspection import read_graph
from keras_resnet.export.optimize import quantization, twin
from keras_resnet.export.runtime import Runner
from keras_resnet.export.source import SourceNetwork, golden_images
from keras_resnet.preprocessing import Preprocessing

RECIPE = training.get_recipe("digits").replace(epochs=1, learning_rate=0.005, warmup_epochs=0)

VARIANTS = {
    "option-A": {},
    "bottleneck": {"block": "bottleneck", "shortcut": "B"},
    "D": {"block": "bottleneck", "shortcut": "B", "projection": "avg", "stem": "deep"},
    "pre-activation": {"pre_activation": True, "shortcut": "B"},
    "squeeze-and-excitation": {"attention": "se", "shortcut": "B"},
    "efficient-attention": {"attention": "eca", "shortcut": "B"},
    "blurred": {"antialias": True, "shortcut": "B"},
    "grouped": {"block": "bottleneck", "cardinality": 4, "base_width": 16, "shortcut": "B"},
}


def warmed(**changes):
    """A small network whose statistics look as if it had been trained."""
    keras.utils.set_random_seed(0)
    model = keras_resnet.create_model(dataclasses.replace(SMALL, name="small", **changes))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(0, 0.1, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, shape))
            layer.gamma.assign(rng.uniform(0.5, 1.2, shape))
    return model


def source_of(model, preprocessing=None):
    return SourceNetwork(model, preprocessing or Preprocessing.from_model(model))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    """A network that names nearly all digits after eight epochs."""
    recipe = training.get_recipe("digits").replace(epochs=8, warmup_epochs=1)
    return training.fit(
        lambda: keras_resnet.create_model(SMALL), digits, recipe, verbose=False
    ).model


@pytest.fixture(scope="module")
def pruned(trained, digits):
    return optimize.prune(trained, digits, RECIPE.replace(epochs=2), sparsity=0.6, verbose=False)


@pytest.fixture(scope="module")
def clustered(trained, digits):
    return optimize.cluster(trained, digits, RECIPE, clusters=32, verbose=False)


# The twin


def converted(model, preprocessing=None):
    """An int8 file by way of the fake-quantized twin, not trained."""
    pair = twin.Twin(source_of(model, preprocessing))  # which is compared with the model
    network = quantization.fake_quantized(pair)
    images = golden_images(None, None, pair.source.shape, pair.source.preprocessing)
    quantization.set_ranges(network, pair, [pair.source.preprocessing(images)])
    return pair, network, images, quantization.convert(network, pair)


def moved(probabilities, others):
    """The mean share of the probability that is with another class."""
    return np.abs(probabilities - others).sum(axis=1).mean() / 2


@pytest.mark.parametrize("name", VARIANTS)
def test_the_twin_of_every_family_is_rounded_as_its_int8_file_is(name):
    pair, network, images, content = converted(warmed(**VARIANTS[name]))
    logits = network(pair.source.preprocessing(images), training=False).numpy()
    rounded = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert read_graph(content).scheme == "int8"
    assert moved(Runner(content)(images), rounded) < 0.002


def test_pixels_of_another_preprocessing_are_prepared_inside_the_int8_file():
    other = Preprocessing(mean=(103.5, 116.3, 123.7), std=(57.4, 57.1, 58.4), channels="bgr")
    pair, _, images, content = converted(warmed(), other)
    graph = read_graph(content)
    pixels = graph.tensors[graph.inputs[0]]
    assert (pixels.dtype, pixels.scale, pixels.zero_point) == ("uint8", (1.0,), (0,))
    assert moved(Runner(content)(images), pair.source.predict(images)) < 0.01


def test_a_twin_that_differs_is_not_trained(monkeypatch):
    layer = twin.tf_keras.layers.BatchNormalization
    monkeypatch.setattr(
        twin.tf_keras.layers,
        "BatchNormalization",
        lambda **options: layer(**options | {"epsilon": 1.001e-3}),
    )
    with pytest.raises(RuntimeError, match="not the same network"):
        twin.Twin(source_of(warmed()))


def test_weights_come_back_into_the_model_that_they_left():
    model = warmed()
    pair = twin.Twin(source_of(model))
    weights = [weight + 0.01 for weight in pair.model.get_weights()]
    pair.model.set_weights(weights)
    returned = pair.give_back(pair.model)
    for before, after in zip(model.get_weights(), returned.get_weights(), strict=True):
        np.testing.assert_array_equal(before + np.float32(0.01), after)


# What is refused before training


def test_statistics_that_were_never_warmed_up_are_refused(digits):
    model = keras_resnet.create_model(SMALL)
    with pytest.raises(ValueError, match=r"never warmed up.*'stem_norm' has seen no data"):
        optimize.prune(model, digits, RECIPE)


def test_one_stale_normalization_is_found_among_warm_ones(digits, tmp_path):
    model = warmed()
    layer = model.get_layer("stage2_block1_norm1")
    layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
    layer.moving_variance.assign(np.ones(layer.moving_mean.shape))
    with pytest.raises(ValueError, match="'stage2_block1_norm1' has seen no data"):
        optimize.quantization_aware(model, digits, RECIPE, tmp_path / "out")


def test_group_normalization_is_refused_by_the_name_of_its_layer(digits, tmp_path):
    model = keras_resnet.create_model(SMALL, norm="group")
    with pytest.raises(optimize.UnsupportedLayerError, match="'stem_norm', a GroupNormalization"):
        optimize.quantization_aware(model, digits, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grouped_convolutions_are_refused_where_they_have_no_gradient(digits):
    with pytest.raises(optimize.UnsupportedLayerError, match=r"no gradient.*with 4 groups"):
        optimize.cluster(warmed(**VARIANTS["grouped"]), digits, RECIPE)


@keras.saving.register_keras_serializable(package="tests")
class Own(keras.layers.Dense):
    """A layer of somebody's own."""


def test_subclasses_of_layers_are_refused_by_name():
    model = linear()
    scores = Own(3, name="mine")(model.output)
    with pytest.raises(optimize.UnsupportedLayerError, match=r"'mine', a .*Own"):
        twin.Twin(source_of(keras.Model(model.input, scores), Preprocessing()))


def test_a_layer_that_is_used_twice_is_refused_by_name():
    image = keras.Input((32, 32, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    pooled = keras.layers.GlobalAveragePooling2D()(shared(shared(image)))
    model = keras.Model(image, keras.layers.Dense(3)(pooled))
    with pytest.raises(optimize.UnsupportedLayerError, match="'shared', which is called 2 times"):
        twin.Twin(source_of(model, Preprocessing()))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("ema", {"ema": 0.9}),
        ("early_stopping", {"early_stopping": 1}),
        ("frozen", {"frozen": "C3", "frozen_epochs": 1}),
    ],
)
def test_what_the_loop_does_not_do_is_refused(field, changes, digits):
    with pytest.raises(ValueError, match=f"Recipe field `{field}` has no meaning"):
        optimize.prune(warmed(), digits, RECIPE.replace(changes))


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, 1])
def test_sparsity_is_a_fraction(sparsity, digits):
    with pytest.raises(ValueError, match="`sparsity` must be a fraction"):
        optimize.prune(warmed(), digits, RECIPE, sparsity=sparsity)


@pytest.mark.parametrize("clusters", [1, 0, 16.0, True])
def test_clusters_are_two_or_more(clusters, digits):
    with pytest.raises(ValueError, match="`clusters` must be an integer of at least 2"):
        optimize.cluster(warmed(), digits, RECIPE, clusters=clusters)


# The methods


def test_pruning_leaves_the_asked_for_share_of_zeros_in_every_kernel(pruned):
    for layer in pruned.model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            kernel = layer.kernel.numpy()
            assert abs((kernel == 0).mean() - 0.6) < 1 / kernel.size + 1e-6, layer.name
    assert pruned.sparsity == pytest.approx(0.6, abs=0.001)
    assert pruned.correct > 0.8 * pruned.correct_before > 0


def test_clustering_leaves_that_many_values_in_every_kernel(clustered):
    for layer in clustered.model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            assert len(np.unique(layer.kernel.numpy())) <= 32, layer.name
    assert clustered.correct > 0.9 * clustered.correct_before > 0


def test_what_is_reported_is_what_the_returned_model_does(pruned, trained, digits):
    assert training.evaluate(pruned.model, digits).correct == pruned.correct
    assert training.evaluate(trained, digits).correct == pruned.correct_before
    assert pruned.history[-1]["val_accuracy"] == pytest.approx(pruned.correct / pruned.examples)


def test_a_pruned_run_is_read_and_exported_like_any_other(pruned, tmp_path):
    run = training.load_run(pruned.save(tmp_path / "run"))
    assert run.info["optimization"]["target_sparsity"] == 0.6
    np.testing.assert_array_equal(run.model.layers[1].kernel, pruned.model.layers[1].kernel)
    bundle = export.to_tflite(run.model, tmp_path / "bundle", "float32", labels=run.class_names)
    assert bundle.manifest["verification"]["passed"]
    with pytest.raises(FileExistsError):
        pruned.save(tmp_path / "run")


def test_quantization_aware_training_gives_a_bundle_that_is_held_against_the_float_model(
    trained, digits, tmp_path
):
    weights = [weight.copy() for weight in trained.get_weights()]
    bundle = optimize.quantization_aware(
        trained, digits, RECIPE, tmp_path / "qat", max_drop=0.05, verbose=False
    )
    assert export.verify(bundle.path).passed
    assert bundle.scheme == "int8"
    assert bundle.manifest["optimization"]["method"] == "qat"
    images, expected = bundle.golden()
    np.testing.assert_allclose(expected, source_of(trained).predict(images), atol=1e-6)
    for before, after in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_training_has_ruined_is_rejected(trained, digits, tmp_path):
    wild = RECIPE.replace(learning_rate=50.0, clip=1.0)
    with pytest.raises(export.ExportRejected, match="accuracy drops"):
        optimize.quantization_aware(trained, digits, wild, tmp_path / "qat", verbose=False)
    assert not (tmp_path / "qat").exists()
    assert (tmp_path / "qat.rejected.html").exists()


def test_a_fine_tuning_is_gentler_than_the_training_that_it_follows():
    modern = training.get_recipe("modern")
    gentle = optimize.fine_tuning(modern, "qat")
    assert gentle.epochs == 60
    assert gentle.learning_rate == pytest.approx(0.005)
    assert (gentle.ema, gentle.mixup, gentle.warmup_epochs) == (0.0, 0.0, 0.0)
    assert gentle.augment == modern.augment
    with pytest.raises(ValueError, match="`method` must be one of"):
        optimize.fine_tuning(modern, "distill")


# The user's process


def test_the_users_keras_and_environment_are_untouched():
    run_python(
        """
        import os, subprocess, sys
        import tensorflow as tf
        before = dict(os.environ)
        from keras_resnet.export import optimize
        optimize.prune
        import tf_keras
        assert "tensorflow_model_optimization" in sys.modules
        assert dict(os.environ) == before, set(os.environ) ^ set(before)
        import keras
        assert tf.keras.__version__ == keras.__version__ != tf_keras.__version__
        assert tf.keras.layers.Dense is keras.layers.Dense is not tf_keras.layers.Dense
        child = "import os; print(os.environ.get('TF_USE_LEGACY_KERAS'))"
        assert subprocess.check_output([sys.executable, "-c", child]).strip() == b"None"
        """
    )


def test_who_asked_for_keras_2_keeps_it():
    run_python(
        """
        import os
        import tensorflow as tf
        from keras_resnet.export import optimize
        optimize.prune
        import tf_keras
        assert os.environ["TF_USE_LEGACY_KERAS"] == "true"
        assert tf.keras.layers.Dense is tf_keras.layers.Dense
        """,
        TF_USE_LEGACY_KERAS="true",
    )


def test_two_replicas_prune_as_one():
    run_python(
        """
        import numpy as np, tensorflow as tf
        (cpu,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        import keras
        from keras_resnet import data, training
        from keras_resnet.export import optimize
        from keras_resnet.preprocessing import Preprocessing
        image = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(8, 3, strides=4, name="conv")(image)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
        model = keras.Model(image, keras.layers.Dense(10)(x))
        recipe = training.get_recipe("digits").replace(epochs=1, warmup_epochs=0, augment=())
        losses = []
        for strategy in ("default", "mirrored:2"):
            pruned = optimize.prune(
                model, "digits", recipe, strategy=strategy, preprocessing=Preprocessing(),
                verbose=False,
            )
            assert abs(pruned.sparsity - 0.5) < 0.01
            losses.append(pruned.history[0]["loss"])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        """
    )

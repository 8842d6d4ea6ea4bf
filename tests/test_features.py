"""The features that detectors build upon, and freezing for fine-tuning."""

import functools
import math

import keras
import numpy as np
import pytest
from keras import layers, ops
from toys import shapes_only

import keras_resnet
from keras_resnet import Preprocessing

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
on_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="training needs TensorFlow")

CAFFE = Preprocessing(mean=(103.939, 116.779, 123.68), std=1, channels="bgr")
CIFAR_LEVELS = ("C2", "C3", "C4")
LEVELS = (*CIFAR_LEVELS, "C5")


@pytest.fixture(autouse=True)
def _the_same_weights_on_every_run():
    keras.utils.set_random_seed(0)


def small(name, **changes):
    """The row of a network with one narrow block per stage, built at once."""
    row = keras_resnet.get_architecture(name)
    stages = len(row.blocks)
    row = row.replace(name=f"small_{name}", blocks=(1,) * stages, widths=(8, 16, 24, 32)[:stages])
    return row.replace(**changes)


def build(name="resnet20", **arguments):
    arguments = {"input_shape": (32, 32, 3), "classes": 3, **arguments}
    return keras_resnet.create_model(small(name), **arguments)


def random_images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def run(model, images, training=False):
    outputs = model(ops.convert_to_tensor(images), training=training)
    if isinstance(outputs, dict):
        return {level: ops.convert_to_numpy(value) for level, value in outputs.items()}
    return ops.convert_to_numpy(outputs)


def assert_same(first, second):
    assert list(first) == list(second)
    for level in first:
        np.testing.assert_array_equal(first[level], second[level])


def sizes(model):
    return {level: tuple(tensor.shape[1:]) for level, tensor in model.output.items()}


# Where features come from


def test_a_name_gives_the_features_of_a_network_of_any_size():
    model = keras_resnet.feature_model("resnet8", preprocessing=CAFFE)
    assert model.name == "resnet8_features"
    assert model.input_shape == (None, None, None, 3)
    assert sizes(model) == {
        "C2": (None, None, 16),
        "C3": (None, None, 32),
        "C4": (None, None, 64),
    }
    assert model.architecture == keras_resnet.get_architecture("resnet8")
    assert (model.preprocessing, model.class_names) == (CAFFE, None)
    assert not [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    found = run(model, random_images(2, 33, 46, 3))
    assert {level: value.shape for level, value in found.items()} == {
        "C2": (2, 33, 46, 16),
        "C3": (2, 17, 23, 32),
        "C4": (2, 9, 12, 64),
    }


def test_an_architecture_gives_the_features_of_its_network():
    row = small("resnet18")
    model = keras_resnet.feature_model(row, input_shape=(64, 96, 3))
    assert model.name == "small_resnet18_features"
    assert model.architecture == row
    assert sizes(model) == {
        "C2": (16, 24, 8),
        "C3": (8, 12, 16),
        "C4": (4, 6, 24),
        "C5": (2, 3, 32),
    }


@pytest.mark.parametrize("include_top", [True, False])
def test_a_ready_model_shares_its_layers(include_top):
    network = build(include_top=include_top, preprocessing=CAFFE)
    model = keras_resnet.feature_model(network)
    assert list(model.output) == list(CIFAR_LEVELS)
    theirs = {layer.name: layer for layer in network.layers}
    assert all(layer is theirs[layer.name] for layer in model.layers)
    assert (model.architecture, model.preprocessing) == (network.architecture, CAFFE)
    images = random_images(2, 32, 32, 3)
    before = run(model, images)
    network.set_weights([2 * weight for weight in network.get_weights()])
    after = run(model, images)
    assert all(not np.array_equal(before[level], after[level]) for level in CIFAR_LEVELS)


@pytest.mark.parametrize("name", ["resnet20", "resnet18_preact", "resnet50_v2", "seresnet50"])
def test_features_are_the_sums_at_the_ends_of_the_stages(name):
    row = small(name, blocks=(2, 1, 2, 1)[: len(keras_resnet.get_architecture(name).blocks)])
    network = keras_resnet.create_model(row, input_shape=(64, 64, 3))
    found = run(keras_resnet.feature_model(network), random_images(1, 64, 64, 3))
    ends = [
        network.get_layer(f"stage{stage + 2}_block{count}_out")
        for stage, count in enumerate(row.blocks)
    ]
    inside = keras.Model(network.input, [end.output for end in ends])
    expected = [ops.convert_to_numpy(value) for value in inside(random_images(1, 64, 64, 3))]
    for value, other in zip(found.values(), expected, strict=True):
        np.testing.assert_array_equal(value, other)
    # Behind a rectifier, except where the next block would start with one.
    if row.pre_activation:
        assert all(isinstance(end, layers.Add) for end in ends)
        assert min(value.min() for value in found.values()) < 0
    else:
        assert all(isinstance(end, layers.ReLU) for end in ends)
        assert min(value.min() for value in found.values()) == 0


def test_features_come_with_the_weights_of_a_file(tmp_path):
    network = build()
    network.set_weights([weight + 0.5 for weight in network.get_weights()])
    images = random_images(2, 32, 32, 3)
    expected = run(keras_resnet.feature_model(network), images)
    for name in ("network.keras", "network.weights.h5"):
        path = tmp_path / name
        (network.save if name.endswith(".keras") else network.save_weights)(path)
        model = keras_resnet.feature_model(small("resnet20"), weights=path)
        assert_same(run(model, images), expected)


# Which features


@pytest.mark.parametrize(
    "levels", [("C4",), ("C2", "C4"), ("C4", "C3", "C2"), ["C3", "C2"]], ids=str
)
def test_levels_are_those_asked_for_in_their_order(levels):
    network = build()
    everything = run(keras_resnet.feature_model(network), random_images(1, 32, 32, 3))
    model = keras_resnet.feature_model(network, levels)
    assert list(model.output) == list(levels)
    found = run(model, random_images(1, 32, 32, 3))
    assert_same(found, {level: everything[level] for level in levels})


def test_nothing_is_computed_behind_the_last_level():
    names = {layer.name for layer in keras_resnet.feature_model(build(), ("C2", "C3")).layers}
    assert "stage3_block1_out" in names
    assert not [name for name in names if name.startswith(("stage4", "avg_pool", "logits"))]


# Channels of a stage: four times its width in a bottleneck. Sizes: over 4, 8, 16 and 32; over 1, 2
# and 4 in a network for CIFAR; over 8, 16, 32 and 32 where a stage strides at its end.
BASIC, BOTTLENECK = (8, 16, 24, 32), (32, 64, 96, 128)
USUAL, LATE, CIFAR = (24, 12, 6, 3), (12, 6, 3, 3), (96, 48, 24)


@pytest.mark.parametrize(
    ("name", "heights", "channels"),
    [
        ("resnet18", USUAL, BASIC),
        ("plain34", USUAL, BASIC),
        ("resnet50", USUAL, BOTTLENECK),
        ("resnet50_v1_5", USUAL, BOTTLENECK),
        ("resnet50_v2", LATE, BOTTLENECK),
        ("resnet50_preact", USUAL, BOTTLENECK),
        ("resnet50d", USUAL, BOTTLENECK),
        ("resnext50_32x4d", USUAL, BOTTLENECK),
        ("wide_resnet50_2", USUAL, BOTTLENECK),
        ("seresnet34", USUAL, BASIC),
        ("seresnext50_32x4d", USUAL, BOTTLENECK),
        ("ecaresnet50d", USUAL, BOTTLENECK),
        ("resnetrs50", USUAL, BOTTLENECK),
        ("resnetblur50", USUAL, BOTTLENECK),
        ("resnet8", CIFAR, BASIC[:3]),
        ("resnet20", CIFAR, BASIC[:3]),
        ("resnet110_preact", CIFAR, BASIC[:3]),
        ("resnet164_preact", CIFAR, BOTTLENECK[:3]),
        ("wrn_16_8", CIFAR, BASIC[:3]),
        ("resnext29_8x64d", CIFAR, BOTTLENECK[:3]),
    ],
)
def test_every_kind_has_features_of_its_sizes_and_channels(name, heights, channels):
    groups = {"cardinality": 2, "base_width": 32} if "resnext" in name else {}
    model = shapes_only(keras_resnet.feature_model, small(name, **groups), input_shape=(96, 192, 3))
    expected = [(n, 2 * n, c) for n, c in zip(heights, channels, strict=True)]
    assert list(sizes(model).values()) == expected
    assert list(sizes(model)) == list(LEVELS[: len(heights)])


@pytest.mark.parametrize(
    ("name", "output_stride", "heights"),
    [
        ("resnet18", 16, (24, 12, 6, 6)),
        ("resnet50d", 8, (24, 12, 12, 12)),
        ("resnet50_v2", 8, (12, 12, 12, 12)),
        ("wrn_16_8", 2, (96, 48, 48)),
    ],
)
def test_features_may_be_dilated(name, output_stride, heights):
    options = {"input_shape": (96, 96, 3), "output_stride": output_stride}
    model = keras_resnet.feature_model(small(name), **options)
    assert tuple(height for height, _, _ in sizes(model).values()) == heights
    assert model.architecture.output_stride == output_stride


# Files and tools


def test_a_feature_model_survives_saving(tmp_path):
    model = keras_resnet.feature_model(build(preprocessing=CAFFE), ("C4", "C2"))
    model.set_weights([weight + 0.5 for weight in model.get_weights()])
    model.save(tmp_path / "features.keras")
    loaded = keras_resnet.load_model(tmp_path / "features.keras")
    assert type(loaded) is type(model)
    assert (loaded.name, loaded.architecture) == (model.name, model.architecture)
    assert loaded.preprocessing == CAFFE
    images = random_images(2, 32, 32, 3)
    expected = run(model, images)
    assert_same(run(loaded, images), expected)
    predicted = loaded.predict(images, verbose=0)
    assert set(predicted) == {"C4", "C2"}  # whose order `predict` does not keep on JAX
    for level, values in predicted.items():
        np.testing.assert_allclose(values, expected[level], rtol=1e-4, atol=1e-5)


def test_a_feature_model_has_features_itself():
    model = keras_resnet.feature_model(build(), ("C2", "C3"))
    again = keras_resnet.feature_model(model, ("C3",))
    assert list(again.output) == ["C3"]
    assert again.output["C3"] is model.output["C3"]


def test_a_detectors_head_stands_upon_features():
    features = keras_resnet.feature_model(build(), ("C3", "C4"))
    wide = layers.UpSampling2D(2)(layers.Conv2D(16, 1)(features.output["C4"]))
    head = layers.Add()([layers.Conv2D(16, 1)(features.output["C3"]), wide])
    model = keras.Model(features.inputs, head)
    assert run(model, random_images(2, 32, 32, 3)).shape == (2, 16, 16, 16)


# Errors


@pytest.mark.parametrize(
    "levels", ["C2", ("C1",), ("C2", "C5"), ("C3", "C3"), (), ("c2",)], ids=str
)
@pytest.mark.parametrize("ready", [True, False])
def test_levels_that_a_network_has_not_are_named(levels, ready):
    network = build() if ready else "resnet20"
    with pytest.raises(ValueError, match=r"`levels`.*'C2', 'C3', 'C4'\].*Received: levels="):
        keras_resnet.feature_model(network, levels)


def test_levels_that_a_shortened_model_has_not_are_named():
    short = keras_resnet.feature_model(build(), ("C2",))
    with pytest.raises(ValueError, match=r"ends before C4.*Received: levels="):
        keras_resnet.feature_model(short, ("C4",))


@pytest.mark.parametrize("argument", ["output_stride", "weights", "input_shape"])
def test_a_ready_model_takes_no_arguments(argument):
    with pytest.raises(ValueError, match=f"ready model.*Received: {argument}"):
        keras_resnet.feature_model(build(), **{argument: None})


@pytest.mark.parametrize("argument", ["include_top", "pooling", "classes", "class_names"])
def test_features_take_no_arguments_of_a_classifier(argument):
    with pytest.raises(ValueError, match=f"no classifier.*Received: {argument}"):
        keras_resnet.feature_model("resnet8", **{argument: None})


def test_another_model_is_refused():
    other = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten()], name="other")
    with pytest.raises(ValueError, match=r"`network`.*Received: a Sequential named 'other'"):
        keras_resnet.feature_model(other)
    with pytest.raises(ValueError, match=r"`model`.*Received: a Sequential named 'other'"):
        keras_resnet.freeze(other, "C2")


def test_an_unknown_network_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean resnet50.*Received: 'resnet50v'"):
        keras_resnet.feature_model("resnet50v")


# Freezing


def stage(layer):
    """`stem`, `C2`, ... or `head`, by the layer's name."""
    if layer.name.startswith("stage"):
        return f"C{layer.name[len('stage')]}"
    return "stem" if layer.name.startswith("stem") else "head"


def is_norm(layer):
    return isinstance(layer, layers.BatchNormalization)


def frozen(model):
    return {layer.name for layer in model.layers if layer.weights and not layer.trainable}


def trainable_count(model):
    return sum(math.prod(w.shape) for w in model.trainable_weights)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("up_to", [None, "stem", "C2", "C3", "C4", "C5"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50_v2", "seresnet50"])
def test_what_is_frozen_reaches_up_to_a_level(name, up_to, norm):
    model = build(name)
    keras_resnet.freeze(model, up_to, norm=norm)
    places = ("stem", *LEVELS)
    cold = places[: places.index(up_to) + 1] if up_to else ()
    layers_with_weights = [layer for layer in model.layers if layer.weights]
    expected = [x for x in layers_with_weights if stage(x) in cold or (norm and is_norm(x))]
    assert frozen(model) == {layer.name for layer in expected}
    weights = sum(math.prod(w.shape) for x in model.layers if x not in expected for w in x.weights)
    # Of the layers that are left, all but the statistics are trained.
    statistics = sum(2 * x.gamma.shape[0] for x in model.layers if is_norm(x) and x not in expected)
    assert trainable_count(model) == weights - statistics


def test_the_trainable_parameters_of_a_frozen_resnet20_are_known():
    # 269,722 in all. Of those, 2 x 688 are scales and offsets: statistics are as many.
    # The stem has 3 x 9 x 16 weights, stage 2 six convolutions of 9 x 16 x 16.
    expected = {
        (None, False): 269_722,
        (None, True): 269_722 - 1_376,
        ("stem", False): 269_722 - 432 - 32,
        ("C2", False): 269_722 - 432 - 32 - 6 * (2_304 + 32),
        ("C4", True): 64 * 10 + 10,
    }
    models = {key: shapes_only(keras_resnet.ResNet20) for key in expected}
    for (up_to, norm), model in models.items():
        keras_resnet.freeze(model, up_to, norm=norm)
    assert {key: trainable_count(model) for key, model in models.items()} == expected


def test_normalizations_are_frozen_unless_told_otherwise():
    model = build()
    keras_resnet.freeze(model)
    assert frozen(model) == {layer.name for layer in model.layers if is_norm(layer)}


def test_a_normalization_behind_the_last_stage_is_frozen_too():
    model = build("resnet18_preact")
    keras_resnet.freeze(model, "C5", norm=False)
    assert "post_norm" not in frozen(model)
    keras_resnet.freeze(model, "C5")
    assert "post_norm" in frozen(model)


def test_freezing_adds_to_what_is_frozen():
    model = build()
    keras_resnet.freeze(model, "C3", norm=False)
    keras_resnet.freeze(model, "stem", norm=False)
    assert "stage3_block1_conv1" in frozen(model)


def test_layers_in_front_of_the_stem_are_frozen_with_it():
    image = keras.Input((32, 32, 4))
    model = keras_resnet.ResNet8(input_tensor=layers.Conv2D(3, 1, name="colors")(image))
    keras_resnet.freeze(model, norm=False)
    assert frozen(model) == set()
    keras_resnet.freeze(model, "stem", norm=False)
    assert frozen(model) == {"colors", "stem_conv", "stem_norm"}


def test_freezing_features_freezes_the_network_that_shares_them():
    network = build()
    keras_resnet.freeze(keras_resnet.feature_model(network, ("C2",)), "C2", norm=False)
    assert frozen(network) == {
        layer.name for layer in network.layers if layer.weights and stage(layer) in ("stem", "C2")
    }


@pytest.mark.parametrize("up_to", ["C5", "head", "c2", "", 2])
def test_an_unknown_level_is_named(up_to):
    model = build()
    with pytest.raises(ValueError, match=rf"`up_to`.*'C4'\].*Received: up_to={up_to!r}"):
        keras_resnet.freeze(model, up_to)
    assert frozen(model) == set()


# What freezing does to a training step


def weights_of(model):
    return {
        f"{layer.name}/{weight.name}": ops.convert_to_numpy(weight).copy()
        for layer in model.layers
        for weight in layer.weights
    }


def changed(before, model):
    after = weights_of(model)
    return {name for name in before if not np.array_equal(before[name], after[name])}


def train(model, steps=2):
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    for _ in range(steps):
        model.train_on_batch(random_images(8, 32, 32, 3), np.arange(8) % 3)


def warm(model):
    """Names of the weights and statistics that a step changes."""
    return {
        f"{layer.name}/{weight.name}"
        for layer in model.layers
        for weight in layer.weights
        if layer.trainable
    }


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("up_to", [None, "stem", "C3", "C4"])
def test_a_step_changes_what_is_not_frozen_and_nothing_else(up_to, norm):
    model = build()
    keras_resnet.freeze(model, up_to, norm=norm)
    before = weights_of(model)
    train(model)
    assert changed(before, model) == warm(model)


def test_frozen_normalizations_do_in_training_what_they_do_in_inference():
    images = random_images(8, 32, 32, 3)
    for norm in (True, False):
        model = build()
        keras_resnet.freeze(model, norm=norm)
        inference, training = run(model, images), run(model, images, training=True)
        assert np.array_equal(inference, training) == norm


def test_the_normalizations_of_frozen_stages_alone_are_in_inference_mode():
    model = build()
    keras_resnet.freeze(model, "C2", norm=False)
    images = random_images(8, 32, 32, 3)
    features = keras_resnet.feature_model(model)
    inference, training = run(features, images), run(features, images, training=True)
    same = {level: np.array_equal(inference[level], training[level]) for level in CIFAR_LEVELS}
    assert same == {"C2": True, "C3": False, "C4": False}


def test_freezing_takes_effect_on_a_model_that_was_trained_already():
    model = build()
    train(model)
    keras_resnet.freeze(model, "C3")
    before = weights_of(model)
    if not ON_TENSORFLOW:  # whose optimizer alone takes fewer variables than it was built for
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.train_on_batch(random_images(8, 32, 32, 3), np.arange(8) % 3)
    assert changed(before, model) == warm(model)


@pytest.mark.parametrize("through", ["file", "configuration"])
def test_a_frozen_network_survives_saving(through, tmp_path):
    model = build()
    keras_resnet.freeze(model, "C3")
    if through == "file":
        model.save(tmp_path / "network.keras")
        copy = keras_resnet.load_model(tmp_path / "network.keras")
    else:
        copy = type(model).from_config(model.get_config())
        copy.set_weights(model.get_weights())
    assert frozen(copy) == frozen(model)
    assert trainable_count(copy) == trainable_count(model)
    assert changed(weights_of(model), copy) == set()
    before = weights_of(copy)
    train(copy)
    assert changed(before, copy) == warm(copy)


# Fine-tuning with the training loop


@functools.cache
def colors():
    """Noise, brightened in the channel that is the label: easy to learn."""
    from keras_resnet import data

    def paint(count, seed):
        labels = np.arange(count) % 3
        images = np.random.default_rng(seed).integers(0, 192, (count, 32, 32, 3))
        images[np.arange(count), :, :, labels] += 63
        return images.astype(np.uint8), labels

    return data.from_arrays(paint(48, 0), paint(12, 1), ("red", "green", "blue"), name="colors")


def fine_tune(model, strategy=None):
    from keras_resnet import training

    recipe = training.Recipe(
        name="quick", epochs=1, batch_size=16, learning_rate=0.05, weight_decay=1e-2
    )
    return training.fit(model, colors(), recipe, strategy, verbose=False)


def one_device():
    """A strategy with a scope, in which a ready model is rebuilt."""
    import tensorflow as tf

    return tf.distribute.OneDeviceStrategy("cpu:0")


@on_tensorflow
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("strategy", [lambda: None, one_device], ids=["default", "rebuilt"])
def test_fine_tuning_leaves_what_is_frozen_as_it_was_to_the_last_bit(strategy, norm):
    model = build(norm_momentum=0.5)
    keras_resnet.freeze(model, "C3", norm=norm)
    before, cold = weights_of(model), frozen(model)
    result = fine_tune(model, strategy())
    assert result.model is model
    assert frozen(model) == cold
    assert changed(before, model) == warm(model)
    assert np.isfinite(result.history[0]["loss"])


@on_tensorflow
def test_a_function_may_freeze_what_it_builds():
    built = {}

    def pretrained():
        model = build()
        keras_resnet.freeze(model, "C3")
        built.update(weights_of(model))
        return model

    model = fine_tune(pretrained).model
    assert changed(built, model) == warm(model)


@on_tensorflow
def test_a_frozen_network_learns_with_its_head_alone():
    from keras_resnet import training

    model = build()
    keras_resnet.freeze(model, "C4")
    recipe = training.Recipe(
        name="head", epochs=12, batch_size=16, learning_rate=0.5, schedule="constant"
    )
    history = training.fit(model, colors(), recipe, verbose=False).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]

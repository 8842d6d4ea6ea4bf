"""The six ResNets of keras.applications: the same function of their weights, from their files."""

import re

import keras
import numpy as np
import peers
import pytest
from foreign import published_form

import keras_resnet
from keras_resnet import WeightsError

SIZE = (75, 97, 3)  # odd sizes: every padding and every rounding shows

THEIRS = {
    "resnet50": keras.applications.ResNet50,
    "resnet101": keras.applications.ResNet101,
    "resnet152": keras.applications.ResNet152,
    "resnet50_v2": keras.applications.ResNet50V2,
    "resnet101_v2": keras.applications.ResNet101V2,
    "resnet152_v2": keras.applications.ResNet152V2,
}


def theirs(name, **options):
    keras.utils.set_random_seed(0)
    options = {"input_shape": SIZE, **options}
    network = THEIRS[name](weights=None, classifier_activation=None, **options)
    rng = np.random.default_rng(0)
    ranges = {"gamma": (0.3, 1), "moving_variance": (0.2, 3)}
    for layer in network.layers:
        for weight in layer.weights:
            if weight.name != "kernel":
                weight.assign(rng.uniform(*ranges.get(weight.name, (-0.5, 0.5)), weight.shape))
    return network


def values(network, pixels, levels):
    outputs = {
        level: network.get_layer(
            max(
                (x.name for x in network.layers if re.fullmatch(rf"conv{n}_block\d+_out", x.name)),
                key=lambda name: int(re.search(r"block(\d+)", name)[1]),
            )
        ).output
        for n, level in enumerate(levels, start=2)
    }
    model = keras.Model(network.inputs, {**outputs, "output": network.output})
    found = model(keras.ops.convert_to_tensor(pixels), training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}


@pytest.mark.parametrize("include_top", [True, False])
@pytest.mark.parametrize("name", [peers.sized(name, name) for name in THEIRS])
def test_outputs_and_features_are_those_of_keras_applications(
    name, include_top, tmp_path, assert_same
):
    network = theirs(name, include_top=include_top)
    builder = {v: k for k, v in keras_resnet.architecture.BUILDERS.items()}[name]
    ours = getattr(keras_resnet, builder)(
        include_top=include_top,
        weights=published_form(network, tmp_path),
        input_shape=SIZE,
        classifier_activation=None,
    )
    pixels = peers.images(*SIZE)
    levels = ours.architecture.levels
    assert_same(peers.outputs_of(ours, pixels), values(network, pixels, levels))


def test_both_count_the_same_parameters():
    for name in ("resnet50", "resnet50_v2"):
        ours, other = keras_resnet.create_model(name, input_shape=SIZE), theirs(name)
        biases = sum(
            int(np.prod(layer.bias.shape))
            for layer in other.layers
            if isinstance(layer, keras.layers.Conv2D) and layer.use_bias
        )
        # Theirs have a bias in front of every normalization of v1, which does nothing.
        idle = 0 if name.endswith("_v2") else biases
        assert ours.count_params() == other.count_params() - idle


def test_a_model_saved_whole_loads_as_well(tmp_path):
    network = theirs("resnet50")
    network.save(tmp_path / "whole.h5")
    network.save(tmp_path / "model.keras")
    pixels = peers.images(*SIZE)
    expected = network(pixels, training=False)
    for file in ("whole.h5", "model.keras"):
        ours = keras_resnet.ResNet50(
            weights=tmp_path / file, input_shape=SIZE, classifier_activation=None
        )
        found = keras.ops.convert_to_numpy(ours(pixels, training=False))
        expected_array = keras.ops.convert_to_numpy(expected)
        assert peers.difference(found, expected_array) <= peers.TOLERANCE


def test_another_variant_is_named(tmp_path):
    file = published_form(theirs("resnet50"), tmp_path)
    for name in ("resnet50_v1_5", "resnet50_v2", "resnet101"):
        with pytest.raises(WeightsError, match=f"is for resnet50, not for {name}"):
            keras_resnet.create_model(name, weights=file)

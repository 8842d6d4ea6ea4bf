"""The table of architectures: names, values, and what a user's own row may hold."""

import dataclasses
import json

import pytest

import keras_resnet
from keras_resnet import Architecture

DEPTHS = {
    "imagenet": (18, 34, 50, 101, 152),
    "cifar": (20, 32, 44, 56, 110, 1202),
}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("resnet*_v1_5", ["resnet50_v1_5", "resnet101_v1_5", "resnet152_v1_5"]),
        (
            "plain*",
            ["plain18", "plain34", "plain20", "plain32", "plain44", "plain56", "plain110"],
        ),
        ("resnet5?", ["resnet50", "resnet56"]),
        ("resnet[28]*", ["resnet20", "resnet8"]),
        ("resnet50", ["resnet50"]),
        ("ResNet50", []),
        ("nothing*", []),
        ("", []),
    ],
)
def test_list_models_matches_a_pattern_in_the_order_of_the_table(pattern, names):
    assert keras_resnet.list_models(pattern) == names


def test_list_models_names_every_network_once():
    names = keras_resnet.list_models()
    assert len(names) == len(set(names))
    assert {f"resnet{depth}" for depths in DEPTHS.values() for depth in depths} <= set(names)
    assert "resnet8" in names
    assert names == keras_resnet.list_models("*")


@pytest.mark.parametrize("name", keras_resnet.list_models())
def test_every_row_knows_its_name_and_its_source(name):
    architecture = keras_resnet.get_architecture(name)
    assert architecture.name == name
    assert architecture.source
    assert architecture.is_plain == name.startswith("plain")


@pytest.mark.parametrize(
    ("stem", "depth"), [(stem, depth) for stem, depths in DEPTHS.items() for depth in depths]
)
def test_the_blocks_add_up_to_the_depth_in_the_name(stem, depth):
    architecture = keras_resnet.get_architecture(f"resnet{depth}")
    layers_per_block = {"basic": 2, "bottleneck": 3}[architecture.block]
    assert architecture.stem == stem
    # The stem's convolution and the classifier are the other two layers.
    assert sum(architecture.blocks) * layers_per_block + 2 == depth


def test_a_bottleneck_widens_its_stage_fourfold():
    channels = [keras_resnet.get_architecture("resnet50").stage_channels(n) for n in range(4)]
    assert channels == [256, 512, 1024, 2048]
    channels = [keras_resnet.get_architecture("resnet34").stage_channels(n) for n in range(4)]
    assert channels == [64, 128, 256, 512]


def test_an_architecture_is_frozen_and_hashable():
    architecture = keras_resnet.get_architecture("resnet50")
    with pytest.raises(dataclasses.FrozenInstanceError):
        architecture.name = "resnet51"
    assert len({architecture, architecture.replace(), architecture.replace(classes=10)}) == 2


@pytest.mark.parametrize("name", keras_resnet.list_models())
def test_an_architecture_survives_json(name):
    architecture = keras_resnet.get_architecture(name)
    values = json.loads(json.dumps(architecture.to_dict()))
    assert Architecture.from_dict(values) == architecture
    assert set(values) == {field.name for field in dataclasses.fields(Architecture)}


def test_from_dict_refuses_unknown_and_missing_attributes():
    values = keras_resnet.get_architecture("resnet50").to_dict()
    with pytest.raises(ValueError, match="colour"):
        Architecture.from_dict(values | {"colour": "red"})
    del values["widths"]
    with pytest.raises(ValueError, match="widths"):
        Architecture.from_dict(values)


def test_replace_changes_a_copy():
    architecture = keras_resnet.get_architecture("resnet20")
    changed = architecture.replace(shortcut="B", blocks=[1, 2, 3])
    assert (changed.shortcut, changed.blocks) == ("B", (1, 2, 3))
    assert (architecture.shortcut, architecture.blocks) == ("A", (3, 3, 3))
    assert changed.replace(shortcut="A", blocks=(3, 3, 3)) == architecture


def test_replace_refuses_an_unknown_attribute():
    with pytest.raises(ValueError, match=r"colour.*Received: colour='red'"):
        keras_resnet.get_architecture("resnet50").replace(colour="red")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("block", "wide"),
        ("stem", "mnist"),
        ("shortcut", "D"),
        ("shortcut", None),
        ("stride_on", "5x5"),
        ("padding", "valid"),
        ("blocks", (3, 4)),
        ("blocks", (3, 0, 6, 3)),
        ("blocks", (3, 4.0, 6, 3)),
        ("widths", (64, 128, 256, -512)),
        ("widths", ()),
        ("norm_momentum", 1.5),
        ("norm_momentum", 1),
        ("norm_momentum", -0.1),
        ("norm_momentum", "0.9"),
        ("norm_momentum", float("nan")),
        ("norm_epsilon", 0),
        ("norm_epsilon", -1e-5),
        ("norm_epsilon", True),
        ("norm_epsilon", float("nan")),
    ],
)
def test_a_bad_attribute_is_named_with_what_was_received(attribute, value):
    with pytest.raises(ValueError, match=rf"`{attribute}`.*Received: .*{attribute}="):
        keras_resnet.get_architecture("resnet50").replace(**{attribute: value})


@pytest.mark.parametrize(
    ("name", "suggestions"),
    [
        ("resnet55", ("resnet56", "resnet50")),
        ("ResNet50", ("resnet50",)),
        ("resnet50v1.5", ("resnet50_v1_5",)),
        ("plain21", ("plain20",)),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, suggestions):
    with pytest.raises(ValueError, match="did you mean") as raised:
        keras_resnet.get_architecture(name)
    message = str(raised.value)
    assert all(suggestion in message for suggestion in suggestions)
    assert message.endswith(f"Received: {name!r}")


@pytest.mark.parametrize("name", ["inception", "", None, 50])
def test_a_name_like_no_other_points_to_the_list(name):
    with pytest.raises(ValueError, match=r"list_models\(\).*Received: ") as raised:
        keras_resnet.get_architecture(name)
    assert str(raised.value).endswith(f"Received: {name!r}")

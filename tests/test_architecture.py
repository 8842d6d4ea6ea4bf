"""The table of architectures: names, values, plans, and what a user's own row may hold."""

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_resnet
from keras_resnet import Architecture
from keras_resnet.architecture import BUILDERS

DEPTHS = {
    "imagenet": (18, 34, 50, 101, 152),
    "cifar": (20, 32, 44, 56, 110, 1202),
}
NAMES = keras_resnet.list_models()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("resnet*_v1_5", ["resnet50_v1_5", "resnet101_v1_5", "resnet152_v1_5"]),
        (
            "plain*",
            ["plain18", "plain34", "plain20", "plain32", "plain44", "plain56", "plain110"],
        ),
        ("resnet5?", ["resnet50", "resnet56"]),
        ("resnet[28]*", ["resnet20", "resnet8", "resnet200_preact", "resnet200d"]),
        ("*resne?t50*4d", ["resnext50_32x4d", "seresnext50_32x4d"]),
        ("wrn_*", ["wrn_16_8", "wrn_28_10", "wrn_40_2"]),
        ("resnetrs1*", ["resnetrs101", "resnetrs152"]),
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


@pytest.mark.parametrize("name", NAMES)
def test_every_row_knows_its_name_and_its_source(name):
    architecture = keras_resnet.get_architecture(name)
    assert architecture.name == name
    assert architecture.source
    assert architecture.is_plain == name.startswith("plain")


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_builder_has_the_words_of_its_row(builder):
    words = builder.replace("PlainNet", "Plain").replace("_", "").lower()
    assert words == BUILDERS[builder].replace("_", "")
    assert getattr(keras_resnet, builder).__name__ == builder


def test_builders_are_written_as_in_the_literature():
    assert {
        "ResNet50": "resnet50",
        "ResNet50V1_5": "resnet50_v1_5",
        "ResNet50V2": "resnet50_v2",
        "ResNet50PreAct": "resnet50_preact",
        "ResNet50D": "resnet50d",
        "PlainNet20": "plain20",
        "ResNeXt50_32x4d": "resnext50_32x4d",
        "WideResNet50_2": "wide_resnet50_2",
        "WRN28_10": "wrn_28_10",
        "SEResNet50": "seresnet50",
        "SEResNeXt50_32x4d": "seresnext50_32x4d",
        "ECAResNet50D": "ecaresnet50d",
        "ResNetRS50": "resnetrs50",
        "ResNetBlur50": "resnetblur50",
    }.items() <= BUILDERS.items()


def test_every_row_has_one_builder():
    assert sorted(BUILDERS.values()) == sorted(NAMES)
    assert len(NAMES) == 61


# What the depth in a name leaves out of two layers per block, or three in a bottleneck: the stem's
# convolution and the classifier. In a wide network it counts two projections of the three as well;
# 270 counts nothing but the blocks.
@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_add_up_to_the_depth_in_the_name(name):
    architecture = keras_resnet.get_architecture(name)
    depth = int(re.search(r"\d+", name)[0])
    others = 0 if name == "resnetrs270" else 4 if name.startswith("wrn") else 2
    layers = {"basic": 2, "bottleneck": 3}[architecture.block]
    assert sum(architecture.blocks) * layers + others == depth


@pytest.mark.parametrize("name", NAMES)
def test_networks_for_cifar_have_its_stem_its_size_and_its_classes(name):
    architecture = keras_resnet.get_architecture(name)
    is_cifar = architecture.stem == "cifar"
    assert len(architecture.blocks) == (3 if is_cifar else 4)
    assert architecture.classes == (10 if is_cifar else 1000)
    assert (architecture.input_size == 32) == is_cifar


def test_a_bottleneck_widens_its_stage_fourfold():
    channels = [keras_resnet.get_architecture("resnet50").stage_channels(n) for n in range(4)]
    assert channels == [256, 512, 1024, 2048]
    channels = [keras_resnet.get_architecture("resnet34").stage_channels(n) for n in range(4)]
    assert channels == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("name", "levels", "stem_stride", "native_stride"),
    [
        ("resnet50", ("C2", "C3", "C4", "C5"), 4, 32),
        ("resnet50_v2", ("C2", "C3", "C4", "C5"), 4, 32),
        ("resnetrs50", ("C2", "C3", "C4", "C5"), 4, 32),
        ("resnet20", ("C2", "C3", "C4"), 1, 4),
        ("wrn_28_10", ("C2", "C3", "C4"), 1, 4),
    ],
)
def test_levels_and_strides_are_those_of_the_stem_and_the_stages(
    name, levels, stem_stride, native_stride
):
    row = keras_resnet.get_architecture(name)
    assert row.levels == levels
    assert (row.stem_stride, row.native_stride) == (stem_stride, native_stride)
    short = row.replace(blocks=(1, 1), widths=(8, 16))
    assert short.levels == ("C2", "C3")
    assert short.native_stride == 2 * stem_stride


# Plans


@st.composite
def architectures(draw):
    """Rows of any number of stages, that stride wherever one can and by as much as one can."""
    stages = draw(st.integers(1, 5))
    stem = draw(st.sampled_from(["imagenet", "deep", "cifar"]))
    stem_stride = 1 if stem == "cifar" else 4
    strides = [None, *(stem_stride * 2**n for n in range(stages))]
    return Architecture(
        name="any",
        block=draw(st.sampled_from(["basic", "bottleneck"])),
        blocks=draw(st.lists(st.integers(1, 5), min_size=stages, max_size=stages)),
        widths=[8] * stages,
        stem=stem,
        stride_on="3x3",
        stride_at=draw(st.sampled_from(["first", "last"])),
        output_stride=draw(st.sampled_from(strides)),
        stochastic_depth=draw(st.floats(0, 0.9)),
        source="the tests of plans",
    )


@given(architecture=architectures())
def test_a_plan_holds_every_block_once_and_in_order(architecture):
    plans = architecture.plan()
    assert [(plan.stage, plan.index) for plan in plans] == [
        (stage, index) for stage, count in enumerate(architecture.blocks) for index in range(count)
    ]
    assert len({plan.name for plan in plans}) == len(plans) == sum(architecture.blocks)
    assert (plans[0].name, plans[-1].name) == (
        "stage2_block1",
        f"stage{len(architecture.blocks) + 1}_block{architecture.blocks[-1]}",
    )


@given(architecture=architectures())
def test_one_block_subsamples_between_two_stages(architecture):
    subsampling = [(p.stage, p.index) for p in architecture.plan() if p.subsamples]
    stages = range(len(architecture.blocks))
    if architecture.stride_at == "first":
        assert subsampling == [(stage, 0) for stage in stages[1:]]
    else:
        assert subsampling == [(stage, architecture.blocks[stage] - 1) for stage in stages[:-1]]


@given(architecture=architectures())
def test_strides_multiply_to_the_output_stride_and_dilations_make_up_for_the_rest(architecture):
    goal = architecture.output_stride or architecture.native_stride
    stride, native = architecture.stem_stride, architecture.stem_stride
    previous = 1
    for plan in architecture.plan():
        assert plan.stride in ((1, 2) if plan.subsamples else (1,))
        stride, native = stride * plan.stride, native * (2 if plan.subsamples else 1)
        # A kernel's samples lie as far apart, in pixels of the image, as without dilation. The
        # convolution that would have strided still sees what came before it.
        assert stride * plan.dilations[1] == native
        assert plan.dilations[0] == previous
        previous = plan.dilations[1]
        # First all that strides, then all that dilates.
        assert plan.dilations[1] == 1 or stride == goal
    assert stride == goal
    assert native == architecture.native_stride


@given(architecture=architectures())
def test_the_rate_of_stochastic_depth_grows_linearly_from_0(architecture):
    rates = [plan.drop_rate for plan in architecture.plan()]
    if len(rates) == 1:
        assert rates == [0]
        return
    expected = np.linspace(0, architecture.stochastic_depth, len(rates))
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert rates[0] == 0
    assert math.isclose(rates[-1], architecture.stochastic_depth)


def test_the_plan_of_a_dilated_resnet50_is_the_known_one():
    # Stages 2 to 5 at strides 4, 8, 8 and 8: stage 4 dilates by 2, stage 5 by 4, each from its
    # second block on.
    plans = keras_resnet.get_architecture("resnet50_v1_5").replace(output_stride=8).plan()
    assert [plan.stride for plan in plans] == [1, 1, 1, 2, 1, 1, 1, *[1] * 9]
    dilations = [plan.dilations[0] for plan in plans]
    assert dilations == [*[1] * 7, 1, 2, 2, 2, 2, 2, 2, 4, 4]


def test_the_plan_of_a_dilated_v2_counts_from_the_end_of_a_stage():
    # It strides in the last block of stages 2, 3 and 4; here the last of these dilates instead.
    plans = keras_resnet.get_architecture("resnet50_v2").replace(output_stride=16).plan()
    assert [plan.stride for plan in plans] == [1, 1, 2, 1, 1, 1, 2, *[1] * 9]
    assert [plan.dilations[0] for plan in plans] == [*[1] * 13, 2, 2, 2]
    assert [plan.name for plan in plans if plan.subsamples] == [
        "stage2_block3",
        "stage3_block4",
        "stage4_block6",
    ]


# Values


def test_an_architecture_is_frozen_and_hashable():
    architecture = keras_resnet.get_architecture("resnet50")
    with pytest.raises(dataclasses.FrozenInstanceError):
        architecture.name = "resnet51"
    assert len({architecture, architecture.replace(), architecture.replace(classes=10)}) == 2


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_survives_json(name):
    architecture = keras_resnet.get_architecture(name)
    values = json.loads(json.dumps(architecture.to_dict()))
    assert Architecture.from_dict(values) == architecture
    assert set(values) == {field.name for field in dataclasses.fields(Architecture)}


def test_a_record_from_before_an_attribute_existed_gets_its_default():
    """A record of ResNet-50 without what later networks brought."""
    record = {
        "name": "resnet50",
        "block": "bottleneck",
        "blocks": [3, 4, 6, 3],
        "widths": [64, 128, 256, 512],
        "stem": "imagenet",
        "source": keras_resnet.get_architecture("resnet50").source,
        "shortcut": "B",
        "stride_on": "1x1",
        "expansion": 4,
        "padding": "symmetric",
        "norm_on_projection": True,
        "norm_momentum": 0.9,
        "norm_epsilon": 1e-05,
        "zero_init_residual": False,
        "classes": 1000,
        "input_size": 224,
    }
    assert Architecture.from_dict(record) == keras_resnet.get_architecture("resnet50")


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
        ("stem_channels", 0),
        ("stem_channels", 64.0),
        ("stem_norm", 0),
        ("stem_pool", "avg"),
        ("shortcut", "D"),
        ("shortcut", None),
        ("projection", "max"),
        ("pre_activation", "yes"),
        ("stride_on", "5x5"),
        ("stride_at", "middle"),
        ("expansion", 0),
        ("base_width", 0),
        ("base_width", True),
        ("cardinality", -32),
        ("cardinality", 2.0),
        ("attention", "cbam"),
        ("attention", None),
        ("se_ratio", 0),
        ("se_ratio", 1.5),
        ("se_ratio", "1/16"),
        ("se_ratio", float("nan")),
        ("antialias", None),
        ("padding", "valid"),
        ("conv_bias", True),
        ("conv_bias", "some"),
        ("norm_on_projection", 1),
        ("norm", "layer"),
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
        ("zero_init_residual", 0),
        *itertools.product(
            ("block_dropout", "stochastic_depth", "dropout"),
            (1, -0.1, True, None, "0.1", float("nan")),
        ),
        ("output_stride", 2),
        ("output_stride", 12),
        ("output_stride", 64),
        ("output_stride", "8"),
        ("classes", 0),
        ("input_size", 224.0),
    ],
)
def test_a_bad_attribute_is_named_with_what_was_received(attribute, value):
    with pytest.raises(ValueError, match=rf"`{attribute}`.*Received: .*{attribute}="):
        keras_resnet.get_architecture("resnet50").replace(**{attribute: value})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("resnet18", {"cardinality": 32}, "block"),
        ("resnet18", {"base_width": 128}, "block"),
        ("resnet50", {"antialias": True}, "stride_on"),
        ("resnet50", {"output_stride": 16}, "stride_on"),
        ("resnet50", {"stem_norm": False}, "stem_norm"),
        ("resnet50d", {"stem_norm": False, "pre_activation": True}, "stem_norm"),
        ("resnet20", {"output_stride": 8}, "output_stride"),
    ],
    ids=str,
)
def test_attributes_that_do_not_go_together_are_named(name, changes, named):
    with pytest.raises(ValueError, match=rf"`{named}`.*Received: {named}="):
        keras_resnet.get_architecture(name).replace(**changes)


def test_a_v1_bottleneck_may_say_the_stride_that_it_has():
    row = keras_resnet.get_architecture("resnet50")
    assert row.replace(output_stride=32).plan() == row.plan()


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

"""Parameters and multiply-adds, stage by stage, against published tables."""

import math

import keras
import pytest

import keras_resnet
from keras_resnet.counting import count

# Billions of multiply-adds at 224 x 224 pixels.
IMAGENET_GMACS = {
    "resnet18": "1.814",
    "resnet34": "3.664",
    "resnet50": "3.858",
    "resnet50_v1_5": "4.089",
    "resnet101": "7.570",
    "resnet101_v1_5": "7.801",
    "resnet152": "11.282",
    "resnet152_v1_5": "11.514",
}

# Table 1 of He et al. 2015, which rounds some figures and cuts others short.
PAPER_GFLOPS = {
    "resnet18": 1.8,
    "resnet34": 3.6,
    "resnet50": 3.8,
    "resnet101": 7.6,
    "resnet152": 11.3,
}

# Millions of multiply-adds at 32 x 32 pixels.
CIFAR_MMACS = {
    "resnet20": "40.55",
    "resnet32": "68.86",
    "resnet44": "97.17",
    "resnet56": "125.49",
    "resnet110": "252.89",
}


def multiply_adds(model):
    return sum(stage.multiply_adds for stage in count(model))


def assert_counts_every_parameter(model):
    """Keras's own count, which knows no stages."""
    stages = count(model)
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    assert sum(stage.parameters for stage in stages) == trainable
    assert sum(stage.parameters + stage.statistics for stage in stages) == model.count_params()


@pytest.mark.parametrize("name", IMAGENET_GMACS)
def test_an_imagenet_network_does_the_published_work(name):
    model = keras_resnet.create_model(name)
    gmacs = multiply_adds(model) / 1e9
    assert f"{gmacs:.3f}" == IMAGENET_GMACS[name]
    assert [stage.stage for stage in count(model)] == ["stem", "C2", "C3", "C4", "C5", "head"]
    assert_counts_every_parameter(model)
    if name in PAPER_GFLOPS:
        assert PAPER_GFLOPS[name] in (round(gmacs, 1), math.floor(10 * gmacs) / 10)


@pytest.mark.parametrize("name", CIFAR_MMACS)
def test_a_cifar_network_does_the_published_work(name):
    model = keras_resnet.create_model(name)
    assert f"{multiply_adds(model) / 1e6:.2f}" == CIFAR_MMACS[name]
    assert [stage.stage for stage in count(model)] == ["stem", "C2", "C3", "C4", "head"]
    assert_counts_every_parameter(model)


def test_the_stages_of_resnet50_are_those_of_the_paper():
    stages = count(keras_resnet.ResNet50())
    assert {stage.stage: stage.output_shape for stage in stages} == {
        "stem": (56, 56, 64),
        "C2": (56, 56, 256),
        "C3": (28, 28, 512),
        "C4": (14, 14, 1024),
        "C5": (7, 7, 2048),
        "head": (1000,),
    }
    stem, *_, head = stages
    # 7 x 7 x 3 weights at 112 x 112 places for 64 channels; a scale and an offset for each channel.
    assert stem.multiply_adds == 112 * 112 * 7 * 7 * 3 * 64
    assert (stem.parameters, stem.statistics) == (7 * 7 * 3 * 64 + 2 * 64, 2 * 64)
    assert head.multiply_adds == 2048 * 1000
    assert (head.parameters, head.statistics) == (2048 * 1000 + 1000, 0)


def test_the_stages_of_resnet20_are_those_of_the_paper():
    stages = count(keras_resnet.ResNet20())
    assert {stage.stage: stage.output_shape for stage in stages} == {
        "stem": (32, 32, 16),
        "C2": (32, 32, 16),
        "C3": (16, 16, 32),
        "C4": (8, 8, 64),
        "head": (10,),
    }
    by_name = {stage.stage: stage for stage in stages}
    # Six 3 x 3 convolutions a stage, the first of them from half as many channels.
    assert by_name["C2"].multiply_adds == 32 * 32 * 9 * 6 * 16 * 16
    assert by_name["C3"].multiply_adds == 16 * 16 * 9 * (16 * 32 + 5 * 32 * 32)
    assert by_name["C4"].multiply_adds == 8 * 8 * 9 * (32 * 64 + 5 * 64 * 64)
    assert by_name["head"].multiply_adds == 64 * 10


def test_convolutions_work_by_the_pixel_and_the_classifier_does_not():
    small = count(keras_resnet.ResNet8(input_shape=(32, 32, 3)))
    wide = count(keras_resnet.ResNet8(input_shape=(64, 128, 3)))
    for few, many in zip(small, wide, strict=True):
        factor = 1 if few.stage == "head" else 8
        assert many.multiply_adds == factor * few.multiply_adds > 0
        assert (many.parameters, many.statistics) == (few.parameters, few.statistics)


def test_a_zero_padded_shortcut_is_free_and_a_projection_is_not():
    free, projected = (
        count(keras_resnet.ResNet20(shortcut=shortcut, name="resnet20")) for shortcut in "AB"
    )
    more = {
        a.stage: b.multiply_adds - a.multiply_adds for a, b in zip(free, projected, strict=True)
    }
    assert more == {
        "stem": 0,
        "C2": 0,
        "C3": 16 * 16 * 16 * 32,
        "C4": 8 * 8 * 32 * 64,
        "head": 0,
    }
    # 16 x 32 + 32 x 64 weights, and a scale and an offset for 32 + 64 channels.
    assert sum(s.parameters for s in projected) - sum(s.parameters for s in free) == 2_752


def test_a_grouped_convolution_costs_its_share():
    image = keras.Input((8, 8, 4))
    whole = keras.Model(image, keras.layers.Conv2D(6, 3, name="stem_conv")(image))
    grouped = keras.Model(image, keras.layers.Conv2D(6, 3, groups=2, name="stem_conv")(image))
    assert multiply_adds(whole) == 6 * 6 * 9 * 4 * 6
    assert multiply_adds(grouped) == multiply_adds(whole) // 2


def test_a_network_without_a_head_ends_in_its_last_stage():
    model = keras_resnet.ResNet20(include_top=False, input_shape=(32, 32, 3))
    assert [stage.stage for stage in count(model)] == ["stem", "C2", "C3", "C4"]
    assert_counts_every_parameter(model)


def test_an_open_input_size_is_refused():
    with pytest.raises(ValueError, match=r"`input_shape`.*Received: .*None, None, 3"):
        count(keras_resnet.ResNet20(include_top=False))

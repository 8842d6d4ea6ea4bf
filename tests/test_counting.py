"""Parameters and multiply-adds, stage by stage, against published tables."""

import math

import keras
import pytest
from toys import shapes_only

import keras_resnet
from keras_resnet.architecture import get_counts
from keras_resnet.counting import count
from keras_resnet.layers import BlurPool

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
    # pytorchcv's PreResNet, by PyTorch's FlopCounterMode, which sees convolutions and products.
    "resnet18_preact": "1.814",
    "resnet34_preact": "3.664",
    "resnet50_preact": "4.089",
    "resnet101_preact": "7.801",
    "resnet152_preact": "11.514",
    "resnet200_preact": "15.007",
    # keras.applications, by the shapes of its convolutions' kernels and outputs.
    "resnet50_v2": "3.482",
    "resnet101_v2": "7.194",
    "resnet152_v2": "10.907",
    # timm 1.0.31, by FlopCounterMode.
    "resnet18d": "2.054",
    "resnet34d": "3.903",
    "resnet50d": "4.329",
    "resnet101d": "8.041",
    "resnet152d": "11.753",
    "resnet200d": "15.247",
    "resnext50_32x4d": "4.230",
    "resnext101_32x8d": "16.414",
    "resnext101_64x4d": "15.460",
    "wide_resnet50_2": "11.398",
    "wide_resnet101_2": "22.753",
    "seresnet18": "1.814",
    "seresnet34": "3.664",
    "seresnet50": "4.092",
    "seresnet101": "7.806",
    "seresnet152": "11.520",
    "seresnext50_32x4d": "4.233",
    "ecaresnet50d": "4.329",
    "resnetblur50": "5.133",
    # The same, at the sizes of table 7 of Bello et al. 2021: 160, 192 and 256.
    "resnetrs50": "2.279",
    "resnetrs101": "6.012",
    "resnetrs152": "15.528",
    "resnetrs200": "20.093",
    "resnetrs270": "26.950",
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
    # As much work as behind the sum.
    "resnet110_preact": "252.89",
    # pytorchcv, by FlopCounterMode.
    "resnext29_8x64d": "5387.27",
    "wrn_16_8": "1548.15",
    "wrn_28_10": "5243.33",
    "wrn_40_2": "327.60",
}


def shapes_of(name, **arguments):
    """A network whose weights have shapes but no values, which is all that is counted."""
    return shapes_only(keras_resnet.create_model, name, **arguments)


def multiply_adds(model):
    return sum(stage.multiply_adds for stage in count(model))


# The figures of the table are those of the built networks: test_models.py builds each of them.


@pytest.mark.parametrize("name", IMAGENET_GMACS)
def test_an_imagenet_network_does_the_published_work(name):
    gmacs = get_counts(name).multiply_adds / 1e9
    assert f"{gmacs:.3f}" == IMAGENET_GMACS[name]
    if name in PAPER_GFLOPS:
        assert PAPER_GFLOPS[name] in (round(gmacs, 1), math.floor(10 * gmacs) / 10)


@pytest.mark.parametrize("name", CIFAR_MMACS)
def test_a_cifar_network_does_the_published_work(name):
    assert f"{get_counts(name).multiply_adds / 1e6:.2f}" == CIFAR_MMACS[name]


def test_the_stages_of_resnet50_are_those_of_the_paper():
    stages = count(shapes_of("resnet50"))
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
    stages = count(shapes_of("resnet20"))
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


def test_a_dilated_convolution_costs_as_much_as_another():
    image = keras.Input((8, 8, 4))
    options = {"padding": "same", "name": "stem_conv"}
    dense = keras.Model(image, keras.layers.Conv2D(6, 3, **options)(image))
    dilated = keras.Model(image, keras.layers.Conv2D(6, 3, dilation_rate=2, **options)(image))
    assert multiply_adds(dilated) == multiply_adds(dense) == 8 * 8 * 9 * 4 * 6


def test_a_blur_costs_nine_multiplications_a_value():
    image = keras.Input((9, 8, 4))
    model = keras.Model(image, BlurPool(2, name="stem_pool")(image))
    assert multiply_adds(model) == 5 * 4 * 4 * 9


def test_attention_costs_its_products():
    plain, squeezed, efficient = (
        {stage.stage: stage.multiply_adds for stage in count(shapes_of(row))}
        for row in (
            keras_resnet.get_architecture("resnet50_v1_5").replace(attention=kind)
            for kind in ("none", "se", "eca")
        )
    )
    # In 3, 4, 6 and 3 blocks. To a sixteenth of the channels and back; and 3 to 7 neighbors each.
    blocks = {"C2": (3, 256, 5), "C3": (4, 512, 5), "C4": (6, 1024, 5), "C5": (3, 2048, 7)}
    for stage, (number, channels, size) in blocks.items():
        assert squeezed[stage] - plain[stage] == number * 2 * channels * (channels // 16)
        assert efficient[stage] - plain[stage] == number * channels * size
    for stage in ("stem", "head"):
        assert plain[stage] == squeezed[stage] == efficient[stage]


def test_what_follows_the_last_stage_of_a_preactivated_network_belongs_to_its_head():
    stages = {stage.stage: stage for stage in count(shapes_of("resnet18_preact"))}
    # A normalization of 512 channels and the classifier.
    assert stages["head"].parameters == 2 * 512 + 512 * 1000 + 1000
    assert stages["head"].statistics == 2 * 512
    assert stages["C5"].output_shape == (7, 7, 512)


def test_states_of_random_generators_are_not_counted():
    dropping = count(shapes_of("resnet8", dropout=0.5, block_dropout=0.5, stochastic_depth=0.5))
    assert dropping == count(shapes_of("resnet8"))


def test_a_network_without_a_head_ends_in_its_last_stage():
    model = keras_resnet.ResNet20(include_top=False, input_shape=(32, 32, 3))
    stages = count(model)
    assert [stage.stage for stage in stages] == ["stem", "C2", "C3", "C4"]
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    assert sum(stage.parameters for stage in stages) == trainable
    assert sum(stage.parameters + stage.statistics for stage in stages) == model.count_params()


def test_an_open_input_size_is_refused():
    with pytest.raises(ValueError, match=r"`input_shape`.*Received: .*None, None, 3"):
        count(keras_resnet.ResNet20(include_top=False))

"""Every network of the table, and every argument of its builder."""

import copy
import functools
import inspect
import json
import math
import re
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops
from processes import run_python
from toys import shapes_only

import keras_resnet
from keras_resnet import Preprocessing, WeightsError, counting
from keras_resnet.architecture import BUILDERS, get_counts
from keras_resnet.models import split_head

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
# JAX computes in float64 only where it is configured to, and Keras synchronizes nothing there.
on_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="of TensorFlow, or slow on JAX")

# Trainable parameters and batch normalization statistics (two per channel), which are not trained.
IMAGENET_COUNTS = {
    "resnet18": (11_689_512, 9_600),
    "resnet34": (21_797_672, 17_024),
    "resnet50": (25_557_032, 53_120),
    "resnet50_v1_5": (25_557_032, 53_120),
    "resnet101": (44_549_160, 105_344),
    "resnet101_v1_5": (44_549_160, 105_344),
    "resnet152": (60_192_808, 151_424),
    "resnet152_v1_5": (60_192_808, 151_424),
    # Plain networks lack the projections: 64 x 128 + 128 x 256 + 256 x 512 = 172,032 weights, and
    # on 128 + 256 + 512 = 896 channels a scale, an offset and two statistics each.
    "plain18": (11_689_512 - 172_032 - 2 * 896, 9_600 - 2 * 896),
    "plain34": (21_797_672 - 172_032 - 2 * 896, 17_024 - 2 * 896),
}

CIFAR_TRAINABLE = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


def cifar_statistics(depth):
    """Of the stem's 16 channels and of two convolutions per block on 16, 32 and 64 channels."""
    blocks = (depth - 2) // 6
    return 2 * (16 + 2 * blocks * (16 + 32 + 64))


# pytorchcv's PreResNet, which normalizes the stem twice: less a scale and an offset, and less two
# statistics, on 64 channels. (Its count is of PyTorch's `parameters()` and running statistics.)
PREACT_COUNTS = {
    f"resnet{depth}_preact": (parameters - 128, statistics - 128)
    for depth, parameters, statistics in (
        (18, 11_687_848, 7_936),
        (34, 21_796_008, 15_360),
        (50, 25_549_480, 45_568),
        (101, 44_541_608, 97_792),
        (152, 60_185_256, 143_872),
        (200, 64_666_280, 168_448),
    )
}

# keras.applications: `count_params()`, which counts the statistics, and these alone.
V2_COUNTS = {
    "resnet50_v2": (25_613_800 - 45_440, 45_440),
    "resnet101_v2": (44_675_560 - 97_664, 97_664),
    "resnet152_v2": (60_380_648 - 143_744, 143_744),
}

# timm 1.0.31: `parameters()` and running statistics.
TIMM_COUNTS = {
    "resnet18d": (11_708_744, 9_728),
    "resnet34d": (21_816_904, 17_152),
    "resnet50d": (25_576_264, 53_248),
    "resnet101d": (44_568_392, 105_472),
    "resnet152d": (60_212_040, 151_552),
    "resnet200d": (64_693_064, 176_128),
    "resnext50_32x4d": (25_028_904, 68_224),
    "resnext101_32x8d": (88_791_336, 202_880),
    "resnext101_64x4d": (83_455_272, 202_880),
    "wide_resnet50_2": (68_883_240, 68_224),
    "wide_resnet101_2": (126_886_696, 137_856),
    "seresnet18": (11_779_624, 9_600),
    "seresnet34": (21_960_416, 17_024),
    "seresnet50": (28_088_024, 53_120),
    "seresnet101": (49_326_872, 105_344),
    "seresnet152": (66_821_848, 151_424),
    "seresnext50_32x4d": (27_559_896, 68_224),
    "ecaresnet50d": (25_576_350, 53_248),
    "resnetrs50": (35_691_912, 53_376),
    "resnetrs101": (63_618_696, 105_600),
    "resnetrs152": (86_621_576, 151_680),
    "resnetrs200": (93_209_992, 176_256),
    "resnetrs270": (129_861_448, 243_072),
    "resnetblur50": (25_557_032, 53_120),
}

# pytorchcv. The papers say, in millions: 1.7 for both pre-activation networks (He et al. 2016);
# 11.0, 36.5 and 2.2 (Zagoruyko and Komodakis 2016); 34.4 (Xie et al. 2017).
CIFAR_COUNTS = {
    # Theirs has option B, with 16 x 32 + 32 x 64 weights.
    "resnet110_preact": (1_730_522 - 2_560, 8_096),
    "resnet164_preact": (1_703_258, 24_224),
    "wrn_16_8": (10_961_370, 7_200),
    "wrn_28_10": (36_479_194, 17_952),
    "wrn_40_2": (2_243_546, 5_408),
    "resnext29_8x64d": (34_426_698, 57_472),
}

COUNTS = {
    **IMAGENET_COUNTS,
    **PREACT_COUNTS,
    **V2_COUNTS,
    **TIMM_COUNTS,
    **CIFAR_COUNTS,
    # Option A has no parameters, so a plain network has as many.
    **{
        f"{kind}{depth}": (trainable, cifar_statistics(depth))
        for kind in ("resnet", "plain")
        for depth, trainable in CIFAR_TRAINABLE.items()
    },
    # 78,666 in all; the statistics are of the stem's 16 channels and twice 16, 32 and 64.
    "resnet8": (78_666 - 2 * (16 + 2 * 112), 2 * (16 + 2 * 112)),
}

NAMES = ["Ann", "Bob", "Çem"]
CAFFE = Preprocessing(mean=(103.939, 116.779, 123.68), std=1, channels="bgr", crop=0.875)


@pytest.fixture(autouse=True)
def _the_same_weights_on_every_run():
    keras.utils.set_random_seed(0)


def counts(model):
    # Not `trainable_variables`, to which the states of random generators belong.
    weights = (model.trainable_weights, model.non_trainable_weights)
    return tuple(sum(math.prod(w.shape) for w in kind) for kind in weights)


def shapes_of(name, **arguments):
    """A network whose weights have shapes but no values: it is built in a fifth of the time."""
    return shapes_only(keras_resnet.create_model, name, **arguments)


def run(model, images):
    return ops.convert_to_numpy(model(ops.convert_to_tensor(images), training=False))


def random_images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def train(model, *, classes, steps=12):
    """The losses of some steps on eight images, which a network can learn by heart."""
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
    images, labels = random_images(8, *model.input_shape[1:]), np.arange(8) % classes
    return [float(model.train_on_batch(images, labels)) for _ in range(steps)]


def of_type(model, layer_type):
    return [layer for layer in model.layers if isinstance(layer, layer_type)]


def convolutions(model):
    # A subclass such as DepthwiseConv2D is no convolution of a branch.
    return [layer for layer in model.layers if type(layer) is layers.Conv2D]


def randomize_norms(model):
    """Fresh scales, offsets and statistics all equal those of their neighbors; these do not."""
    rng = np.random.default_rng(0)
    for norm in of_type(model, layers.BatchNormalization):
        gamma, beta, mean, variance = (rng.uniform(size=w.shape) for w in norm.weights)
        norm.set_weights([gamma, beta - 0.5, mean - 0.5, variance + 0.5])


def small(name, **changes):
    """The row of a network with one narrow block per stage, built at once."""
    row = keras_resnet.get_architecture(name)
    stages = len(row.blocks)
    row = row.replace(name=f"small_{name}", blocks=(1,) * stages, widths=(8, 16, 24, 32)[:stages])
    return row.replace(**changes)


# An ImageNet network: its stem and its strides.
tiny = functools.partial(keras_resnet.create_model, small("resnet18"))


# Every network. They are built one after the other, each once for all the tests of this section.


def test_every_network_is_counted_here():
    assert set(COUNTS) == set(keras_resnet.list_models()) - {"resnet1202"}


@pytest.fixture(scope="module", params=COUNTS)
def network(request):
    return shapes_of(request.param)


def test_parameters_are_those_of_the_source(network):
    assert counts(network) == COUNTS[network.name]
    assert network.count_params() == sum(COUNTS[network.name])
    known = get_counts(network.name)
    assert (known.parameters, known.statistics) == COUNTS[network.name]
    assert network.output_shape == (None, network.architecture.classes)


def test_the_table_of_counts_is_of_the_built_networks(network):
    stages = counting.count(network)
    assert [stage.stage for stage in stages] == ["stem", *network.architecture.levels, "head"]
    of_table = vars(get_counts(network.name))
    assert list(of_table) == ["parameters", "statistics", "multiply_adds"]
    found = {key: sum(getattr(stage, key) for stage in stages) for key in of_table}
    assert found == of_table, "not current: make generate"


def test_biases_are_where_the_source_has_them(network):
    convs = convolutions(network)
    assert len(convs) > 8
    biased = {conv.name for conv in convs if conv.use_bias}
    if network.name == "resnet8":
        expected = {conv.name for conv in convs}
    elif network.name.endswith("_v2"):  # those that no normalization follows
        ends = ("stem_conv", "_conv3", "_shortcut_conv")
        expected = {conv.name for conv in convs if conv.name.endswith(ends)}
    else:  # the fully connected layers of squeeze-and-excitation alone
        expected = {conv.name for conv in convs if "_se_" in conv.name}
    assert biased == expected


def test_batch_normalization_has_the_sources_constants(network):
    norms = of_type(network, layers.BatchNormalization)
    epsilon = {"resnet8": 1e-3}.get(network.name, 1e-5)
    if network.name.endswith("_v2"):
        epsilon = 1.001e-5
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, epsilon)}


# Bottlenecks that stride on their first 1x1 convolution; all the others stride on the 3x3.
V1 = {"resnet50", "resnet101", "resnet152", "resnet164_preact"}


def test_the_stride_sits_where_the_version_says(network):
    name, blocks = network.name, network.architecture.blocks
    is_basic = not any(conv.name.endswith("block1_conv3") for conv in convolutions(network))
    inside = "conv1" if is_basic or name in V1 else "conv2"
    # The projections of ResNet-D average: resnet50d, ecaresnet50d, resnetrs50, but not 32x4d.
    pools = re.fullmatch(r"(eca)?resnet\d+d|resnetrs\d+", name) is not None
    if name.endswith("_v2"):  # in the last block of a stage, with an identity beside it
        expected = {f"stage{n}_block{blocks[n - 2]}_{inside}" for n in (2, 3, 4)}
    elif name == "resnetblur50":  # behind a blur
        expected = {f"stage{n}_block1_shortcut_conv" for n in (3, 4, 5)}
    else:
        stages = range(3, 2 + len(blocks))
        expected = {f"stage{n}_block1_{inside}" for n in stages}
        if network.architecture.shortcut == "B" and not pools:
            expected |= {f"stage{n}_block1_shortcut_conv" for n in stages}
    if len(blocks) == 4:
        expected.add("stem_conv1" if pools else "stem_conv")
    if name.startswith("resnetrs"):
        expected.add("stem_pool_conv")
    assert {conv.name for conv in convolutions(network) if conv.strides == (2, 2)} == expected


def test_only_plain_networks_lack_shortcuts(network):
    adds = of_type(network, layers.Add)
    plain = network.name.startswith("plain")
    assert len(adds) == (0 if plain else sum(network.architecture.blocks))


def test_every_stage_ends_in_a_layer_of_its_name(network):
    row = network.architecture
    for stage, count in enumerate(row.blocks):
        shape = network.get_layer(f"stage{stage + 2}_block{count}_out").output.shape
        assert shape[-1] == row.stage_channels(stage)


# One network of every kind. They are built one after the other, each once for these tests.

KINDS = {
    name: small(name, **changes)
    for name, changes in {
        "plain20": {},
        "resnet8": {},
        "resnet18": {},
        "resnet20": {},
        "resnet50": {},
        "resnet50_preact": {},
        "resnet110_preact": {},
        "resnet164_preact": {},
        "resnet50_v2": {"blocks": (2, 1, 1, 1)},  # in the first stage, an identity that strides
        "resnet50d": {},
        "resnext50_32x4d": {"cardinality": 4, "base_width": 16},
        "wide_resnet50_2": {},
        "wrn_16_8": {},
        "seresnet50": {},
        "ecaresnet50d": {},
        "resnetrs50": {"input_size": 64},
        "resnetblur50": {},
    }.items()
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    keras.utils.set_random_seed(0)
    row = KINDS[request.param]
    model = keras_resnet.create_model(
        row,
        input_shape=(33, 46, 3),
        preprocessing=CAFFE,
        class_names=[f"class {n}" for n in range(row.classes)],
    )
    randomize_norms(model)
    return model


def test_probabilities_are_finite_and_sum_to_one(kind):
    probabilities = run(kind, random_images(2, *kind.input_shape[1:]))
    assert probabilities.shape == (2, kind.architecture.classes)
    assert probabilities.dtype == np.float32
    assert np.isfinite(probabilities).all()
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)
    assert not np.array_equal(*probabilities)  # they depend on the image


def test_a_network_of_every_kind_survives_saving(kind, tmp_path):
    kind.save(tmp_path / "network.keras")
    loaded = keras_resnet.load_model(tmp_path / "network.keras")
    assert type(loaded) is type(kind)
    assert loaded.name == kind.name
    assert loaded.architecture == kind.architecture
    assert loaded.preprocessing == kind.preprocessing == CAFFE
    assert loaded.class_names == kind.class_names
    images = random_images(2, *kind.input_shape[1:])
    np.testing.assert_array_equal(run(loaded, images), run(kind, images))


@on_tensorflow
def test_a_network_with_groups_learns():
    """TensorFlow has no gradient of a grouped convolution on a CPU, but one compiled by XLA."""
    row = small("resnext50_32x4d", cardinality=4, base_width=16, norm_momentum=0.5)
    model = keras_resnet.create_model(row, input_shape=(32, 32, 3), classes=4)
    grouped = [conv for conv in convolutions(model) if conv.groups == 4]
    assert len(grouped) == 4
    before = [conv.get_weights()[0].copy() for conv in grouped]
    losses = train(model, classes=4)
    assert losses[-1] < 0.7 * losses[0]
    for conv, kernel in zip(grouped, before, strict=True):
        assert np.isfinite(conv.get_weights()[0]).all()
        assert not np.array_equal(conv.get_weights()[0], kernel)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet8", (3, 4)), ("resnet50_preact", (2, 3, 4, 5)), ("wrn_16_8", (2, 3, 4))],
)
def test_some_networks_do_not_normalize_their_projections(name, stages):
    names = {layer.name for layer in shapes_of(name).layers}
    for stage in stages:
        assert f"stage{stage}_block1_shortcut_conv" in names
        assert f"stage{stage}_block1_shortcut_norm" not in names


def test_resnet50v2_strides_at_the_end_of_its_stages():
    model = shapes_of("resnet50_v2")
    ends = {"stem_pool": 56, "stage2_block3_out": 28, "stage3_block4_out": 14}
    ends |= {"stage4_block6_out": 7, "stage5_block3_out": 7}
    assert {name: model.get_layer(name).output.shape[1:3] for name in ends} == {
        name: (size, size) for name, size in ends.items()
    }


@on_tensorflow
def test_resnet1202_is_built_and_taken_apart():
    limit = sys.getrecursionlimit()
    model = shapes_of("resnet1202")
    assert counts(model) == (19_421_274, cifar_statistics(1202))
    assert model.input_shape == (None, 32, 32, 3)
    # What training, export and detection take from it.
    logits, are_logits = split_head(model)
    assert (logits.output_shape, are_logits) == ((None, 10), True)
    features = keras_resnet.feature_model(model, ("C2", "C4")).output
    assert {k: v.shape[1:] for k, v in features.items()} == {"C2": (32, 32, 16), "C4": (8, 8, 64)}
    assert sys.getrecursionlimit() == limit


@on_tensorflow
def test_a_network_deeper_than_pythons_stack_saves_and_loads(tmp_path):
    """With less room than usual: ResNet-1202, which exceeds that, takes a minute."""
    limit = sys.getrecursionlimit()
    row = keras_resnet.get_architecture("resnet20")
    row = row.replace(name="deep", blocks=(30, 30, 30), widths=(4, 4, 4))
    model = keras_resnet.create_model(row)
    path = tmp_path / "deep.keras"
    room = len(inspect.stack(0)) + 150  # Keras takes two frames per block
    try:
        sys.setrecursionlimit(room)
        with pytest.raises(RecursionError):
            keras.Model(model.inputs, model.outputs)
        model.save(path)
        loaded = keras_resnet.load_model(path)
        assert sys.getrecursionlimit() == room
    finally:
        sys.setrecursionlimit(limit)
    assert loaded.architecture == row
    images = random_images(2, 32, 32, 3)
    np.testing.assert_array_equal(run(loaded, images), run(model, images))


def test_a_saved_network_opens_in_a_process_that_imported_nothing_else(tmp_path):
    model = keras_resnet.ResNet20(classes=3, preprocessing=CAFFE, class_names=NAMES)
    randomize_norms(model)
    images = random_images(2, 32, 32, 3)
    model.save(tmp_path / "network.keras")
    np.save(tmp_path / "images.npy", images)
    code = """
import sys, json
import keras_resnet
model = keras_resnet.load_model("network.keras")
import numpy as np
np.save("outputs.npy", model(np.load("images.npy"), training=False))
facts = [model.architecture.to_dict(), model.preprocessing.to_dict(), model.class_names]
print(json.dumps(facts))
"""
    done = run_python(code, cwd=tmp_path)
    architecture, preprocessing, class_names = json.loads(done.stdout.splitlines()[-1])
    assert architecture == keras_resnet.get_architecture("resnet20").to_dict()
    assert Preprocessing.from_dict(preprocessing) == CAFFE
    assert class_names == NAMES
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), run(model, images))


# Shortcuts


# A projection from c to d channels has c x d weights and a scale and an offset on d channels.
# B has one in the first block of CIFAR stages 3 and 4: 16 x 32 + 64 + 32 x 64 + 128 = 2,752.
# C has one more in each block that keeps its shape, of c x c + 2c parameters: 288, 1,088 and 4,224
# for 16, 32 and 64 channels.
@pytest.mark.parametrize(
    ("name", "shortcut", "difference"),
    [
        ("resnet20", "A", 0),
        ("resnet20", "B", 2_752),
        # 3 x 288 + 2 x 1,088 + 2 x 4,224 = 11,488
        ("resnet20", "C", 2_752 + 11_488),
        ("resnet20", "none", 0),
        ("resnet32", "B", 2_752),
        # 9 x 288 + 8 x 1,088 + 8 x 4,224 = 45,088
        ("resnet56", "C", 2_752 + 45_088),
        # Less the projections of B: 172,032 weights and a scale and an offset on 896 channels.
        ("resnet18", "A", -172_032 - 2 * 896),
        # More than B, for 64, 128, 256 and 512 channels:
        # 2 x 4,224 + 1 x 16,640 + 1 x 66,048 + 1 x 263,168 = 354,304
        ("resnet18", "C", 354_304),
        # More than B, for 256, 512, 1024 and 2048 channels; B projects in stage 2 too here.
        # 2 x 66,048 + 3 x 263,168 + 5 x 1,050,624 + 2 x 4,198,400 = 14,571,520
        ("resnet50", "C", 14_571_520),
    ],
)
def test_each_shortcut_option_adds_its_parameters(name, shortcut, difference):
    model = shapes_of(name, shortcut=shortcut)
    trainable, statistics = counts(model)
    assert trainable == COUNTS[name][0] + difference
    # As many statistics as scales and offsets.
    norms = of_type(model, layers.BatchNormalization)
    assert statistics == 2 * sum(norm.gamma.shape[0] for norm in norms)
    assert model.architecture.shortcut == shortcut


@pytest.mark.parametrize(
    ("shortcut", "padded", "projected"),
    [("A", [3, 4], []), ("B", [], [3, 4]), ("C", [], [2, 2, 2, 3, 3, 3, 4, 4, 4])],
)
def test_each_shortcut_option_has_its_kind_in_its_places(shortcut, padded, projected):
    model = keras_resnet.ResNet20(shortcut=shortcut)
    names = [layer.name for layer in model.layers]

    def stages(ending):
        return sorted(int(name[len("stage")]) for name in names if name.endswith(ending))

    assert stages("_shortcut") == padded
    assert stages("_shortcut_conv") == stages("_shortcut_norm") == projected
    assert stages("_add") == [2, 2, 2, 3, 3, 3, 4, 4, 4]


# Options of the layers


@pytest.mark.parametrize("name", ["resnet20", "resnet8", "plain20", "resnet18_preact"])
def test_normalization_options_reach_every_layer(name):
    model = keras_resnet.create_model(
        small(name), norm_momentum=0.75, norm_epsilon=0.125, shortcut="C"
    )
    norms = of_type(model, layers.BatchNormalization)
    assert len(norms) >= 7
    assert {(n.momentum, n.epsilon) for n in norms} == {(0.75, 0.125)}
    assert (model.architecture.norm_momentum, model.architecture.norm_epsilon) == (0.75, 0.125)


@on_tensorflow
@pytest.mark.parametrize("sync_bn", [True, False])
def test_statistics_are_of_all_replicas_where_it_is_asked_for(sync_bn):
    norms = of_type(keras_resnet.ResNet8(sync_bn=sync_bn), layers.BatchNormalization)
    assert {norm.synchronized for norm in norms} == {sync_bn}


def test_statistics_are_per_replica_unless_asked_for():
    norms = of_type(keras_resnet.ResNet8(), layers.BatchNormalization)
    assert not any(norm.synchronized for norm in norms)


@pytest.mark.parametrize("name", ["resnet20", "resnet50d", "resnet50_preact", "resnetrs50"])
def test_group_normalization_takes_the_place_of_every_batch_normalization(name):
    batch, group = (
        keras_resnet.create_model(
            small(name), norm=norm, norm_epsilon=0.25, input_shape=(32, 32, 3)
        )
        for norm in ("batch", "group")
    )
    norms = of_type(group, layers.GroupNormalization)
    assert not of_type(group, layers.BatchNormalization)
    assert [norm.name for norm in norms] == [
        norm.name for norm in of_type(batch, layers.BatchNormalization)
    ]
    assert {norm.epsilon for norm in norms} == {0.25}
    assert counts(group) == (counts(batch)[0], 0)
    assert group.architecture.norm == "group"
    # Nothing is taken over the batch: an image's scores do not depend on its company.
    images = random_images(3, *group.input_shape[1:])
    together = run(group, images)
    assert np.ptp(together) > 0
    np.testing.assert_allclose(run(group, images[1:2]), together[1:2], rtol=1e-4)


@on_tensorflow
def test_a_network_with_group_normalization_learns():
    model = keras_resnet.create_model(small("resnet20"), norm="group", classes=4)
    losses = train(model, classes=4)
    assert losses[-1] < 0.7 * losses[0]


# Dropout, of branches, inside the blocks and in front of the classifier


def dropouts(model):
    return {layer.name: layer.rate for layer in of_type(model, layers.Dropout)}


def test_only_wide_networks_for_cifar_drop_anything_unless_asked_for(network):
    rate = 0.3 if network.name.startswith("wrn") else None
    blocks = [plan.name for plan in network.architecture.plan()]
    assert dropouts(network) == ({f"{name}_dropout": rate for name in blocks} if rate else {})


@pytest.mark.parametrize("name", ["resnet20", "resnet50_preact"])
def test_the_rate_of_stochastic_depth_grows_from_block_to_block(name):
    row = small(name, blocks=(2, 1, 2, 1)[: len(keras_resnet.get_architecture(name).blocks)])
    model = keras_resnet.create_model(row, stochastic_depth=0.5)
    names = [plan.name for plan in row.plan()]
    rates = np.linspace(0, 0.5, len(names))
    # The first block has a rate of 0 and nothing to drop.
    assert list(dropouts(model)) == [f"{name}_drop" for name in names[1:]]
    assert list(dropouts(model).values()) == pytest.approx(list(rates[1:]))
    assert model.architecture.stochastic_depth == 0.5


def test_a_block_whose_branch_is_dropped_hands_its_input_on(tmp_path):
    model = keras_resnet.create_model(small("resnet20", blocks=(2, 1, 1)), stochastic_depth=0.9)
    model.save(tmp_path / "network.keras")
    for network in (model, keras_resnet.load_model(tmp_path / "network.keras")):
        block = keras.Model(
            network.input,
            [network.get_layer(f"stage2_block{n}_out").output for n in (1, 2)],
        )
        before, after = (
            ops.convert_to_numpy(x) for x in block(random_images(64, 32, 32, 3), training=True)
        )
        skipped = np.all(before == after, axis=(1, 2, 3))
        # Its rate is 0.9 / 3: of 64 images, 19 with a standard deviation of 4.
        assert 5 < skipped.sum() < 35
        assert np.all(np.any(before != after, axis=(1, 2, 3)) == ~skipped)


def test_dropout_stands_in_front_of_the_classifier():
    model = keras_resnet.ResNet8(dropout=0.25)
    assert dropouts(model) == {"dropout": 0.25}
    assert [layer.name for layer in model.layers[-4:]] == [
        *("avg_pool", "dropout", "logits", "predictions")
    ]
    assert model.architecture.dropout == 0.25
    assert not dropouts(keras_resnet.ResNet8(dropout=0.25, include_top=False, pooling="avg"))


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_dropout_in_the_blocks_stands_in_front_of_the_last_3x3(name):
    model = keras_resnet.create_model(small(name), block_dropout=0.5)
    blocks = [plan.name for plan in model.architecture.plan()]
    assert dropouts(model) == {f"{block}_dropout": 0.5 for block in blocks}
    order = [layer.name for layer in model.layers]
    for block in blocks:
        here = order.index(f"{block}_dropout")
        assert order.index(f"{block}_act1") < here < order.index(f"{block}_conv2")


def test_a_wide_network_goes_without_dropout_where_it_is_told():
    assert not dropouts(keras_resnet.create_model(small("wrn_16_8"), block_dropout=0))


def test_nothing_is_dropped_in_inference():
    options = {"dropout": 0.9, "block_dropout": 0.9, "stochastic_depth": 0.9}
    dropping = keras_resnet.create_model(small("resnet20"), **options)
    still = keras_resnet.create_model(small("resnet20"))
    still.set_weights(dropping.get_weights())
    images = random_images(2, 32, 32, 3)
    np.testing.assert_array_equal(run(dropping, images), run(still, images))
    assert not np.array_equal(
        ops.convert_to_numpy(dropping(images, training=True)),
        ops.convert_to_numpy(still(images, training=True)),
    )


# Dilation


@pytest.mark.parametrize(
    ("name", "output_stride", "sizes"),
    [
        ("resnet50_v1_5", None, (24, 12, 6, 3)),
        ("resnet50_v1_5", 16, (24, 12, 6, 6)),
        ("resnet50_v1_5", 8, (24, 12, 12, 12)),
        ("resnet50_v1_5", 4, (24, 24, 24, 24)),
        ("resnet18", 8, (24, 12, 12, 12)),
        ("resnet50d", 8, (24, 12, 12, 12)),
        ("resnetblur50", 8, (24, 12, 12, 12)),
        ("resnetrs50", 16, (24, 12, 6, 6)),
        ("resnet50_v2", None, (12, 6, 3, 3)),
        ("resnet50_v2", 16, (12, 6, 6, 6)),
        ("resnet50_v2", 8, (12, 12, 12, 12)),
        ("resnet20", 2, (96, 48, 48)),
    ],
)
def test_the_output_stride_sets_the_sizes_of_the_stages(name, output_stride, sizes):
    row = small(name)
    options = {"input_shape": (96, 96, 3), "include_top": False}
    model = shapes_of(row, output_stride=output_stride, **options)
    ends = [f"stage{n}_block1_out" for n in range(2, 2 + len(sizes))]
    found = [model.get_layer(end).output.shape[1:3] for end in ends]
    assert found == [(size, size) for size in sizes]
    native = shapes_of(row, **options)
    assert [w.shape for w in model.weights] == [w.shape for w in native.weights]


# Where every kernel dilates in place of the stride in front of it, each pixel of the coarse map
# sees what it saw; the others lie between. (Not so for averages and blurs, which do not dilate.)
@pytest.mark.parametrize(
    ("name", "output_stride", "size"),
    [
        ("resnet18", 16, (64, 64)),
        ("resnet18", 8, (65, 90)),
        ("resnet50_v1_5", 8, (65, 90)),
        ("resnet18_preact", 8, (65, 90)),
        ("resnet50_v2", 16, (65, 90)),
        ("resnet50_v2", 8, (64, 64)),
    ],
)
def test_a_dilated_network_sees_at_every_old_pixel_what_it_saw(name, output_stride, size):
    row = small(name, blocks=(2, 1, 2, 2))
    options = {"input_shape": (*size, 3), "include_top": False}
    native = keras_resnet.create_model(row, **options)
    randomize_norms(native)
    dilated = keras_resnet.create_model(row, output_stride=output_stride, **options)
    dilated.set_weights(native.get_weights())
    images = random_images(1, *size, 3)
    coarse, fine = run(native, images), run(dilated, images)
    step = 32 // output_stride
    assert fine.shape[1] > coarse.shape[1]
    scale = np.abs(coarse).max()
    np.testing.assert_allclose(fine[:, ::step, ::step] / scale, coarse / scale, atol=1e-5)
    assert scale > 0


def test_the_networks_kernels_have_variance_2_over_the_fan_out():
    kernel = keras_resnet.ResNet18().get_layer("stage5_block2_conv2").get_weights()[0]
    assert kernel.shape == (3, 3, 512, 512)
    # 2,359,296 values: the estimate's own deviation is sqrt(2 / 2,359,296) = 0.09 %.
    assert kernel.astype(np.float64).var() == pytest.approx(2 / (9 * 512), rel=0.005)


# The layer of every branch whose scale, or whose kernel, starts at 0.
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet20", "_norm2"),
        ("resnet50", "_norm3"),
        ("seresnet50", "_norm3"),
        ("resnet50d", "_norm3"),
        ("resnet18_preact", "_conv2"),
        ("resnet50_preact", "_conv3"),
        ("resnet50_v2", "_conv3"),
        ("wrn_16_8", "_conv2"),
    ],
)
def test_zero_init_makes_every_block_start_as_its_shortcut(name, last):
    row = small(name, blocks=(2, 1, 2, 1)[: len(keras_resnet.get_architecture(name).blocks)])
    model = keras_resnet.create_model(row, zero_init_residual=True, input_shape=(64, 64, 3))
    adds = of_type(model, layers.Add)
    blocks = [plan.name for plan in row.plan()]
    assert len(adds) == len(blocks)
    ends = {
        block: [*add.input, model.get_layer(f"{block}_out").output]
        for block, add in zip(blocks, adds, strict=True)
    }
    outputs = keras.Model(model.input, ends)(random_images(2, 64, 64, 3), training=False)
    outputs = {k: [ops.convert_to_numpy(part) for part in v] for k, v in outputs.items()}
    for shortcut, branch, out in outputs.values():
        np.testing.assert_array_equal(branch, 0)
        expected = shortcut if row.pre_activation else np.maximum(shortcut, 0)
        np.testing.assert_array_equal(out, expected)
        assert out.any()
    if name != "resnet50_v2":  # where the second block strides
        np.testing.assert_array_equal(outputs["stage2_block2"][2], outputs["stage2_block1"][2])
    zeros = {x.name for x in model.layers if x.weights and not np.any(x.get_weights()[0])}
    assert zeros == {f"{block}{last}" for block in blocks}


def test_scales_start_at_1_unless_asked_for():
    for norm in of_type(keras_resnet.ResNet20(), layers.BatchNormalization):
        np.testing.assert_array_equal(norm.get_weights()[0], 1)


# The builders' signature

OPTIONS = {
    "shortcut",
    "norm",
    "norm_momentum",
    "norm_epsilon",
    "zero_init_residual",
    "block_dropout",
    "stochastic_depth",
    "dropout",
    "output_stride",
}


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_builder_has_the_signature_of_keras_applications(builder):
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    ours = inspect.signature(getattr(keras_resnet, builder)).parameters
    keyword_only = [p.name for p in ours.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert list(ours) == [*theirs, *keyword_only]
    assert {"sync_bn", "preprocessing", "class_names", "dtype", *OPTIONS} == set(keyword_only)
    # Ours starts from random values; the rest of the defaults are the row's or theirs.
    assert ours["weights"].default is None
    for name in ("include_top", "input_tensor", "input_shape", "pooling", "classifier_activation"):
        assert ours[name].default == theirs[name].default
    row = keras_resnet.get_architecture(ours["name"].default)
    assert row.name == BUILDERS[builder]
    for name in ("classes", *OPTIONS):
        assert ours[name].default == getattr(row, name)
    assert row.classes == (10 if row.stem == "cifar" else 1000)


def test_arguments_go_by_position_as_in_keras_applications():
    model = keras_resnet.ResNet20(True, None, None, (40, 48, 1), None, 7, None, "mine")
    assert model.name == "mine"
    assert model.input_shape == (None, 40, 48, 1)
    assert model.output_shape == (None, 7)
    assert model.layers[-1].name == "logits"


def test_create_model_builds_what_the_builder_builds():
    keras.utils.set_random_seed(1)
    ours = keras_resnet.ResNet8(classes=4)
    keras.utils.set_random_seed(1)
    named = keras_resnet.create_model("resnet8", classes=4)
    assert ours.get_config() == named.get_config()
    for a, b in zip(ours.get_weights(), named.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 224), ("resnetrs50", 160)])
def test_the_default_size_comes_from_the_table(name, size):
    model = shapes_of(name)
    assert model.input_shape == (None, size, size, 3)
    assert model.output_shape == (None, 1000)


def test_defaults_come_from_the_table():
    model = keras_resnet.ResNet20()
    assert (model.name, model.input_shape, model.output_shape) == (
        "resnet20",
        (None, 32, 32, 3),
        (None, 10),
    )
    assert model.preprocessing == Preprocessing()
    assert model.class_names is None


def test_a_row_of_ones_own_builds():
    row = keras_resnet.get_architecture("resnet20").replace(name="resnet14", blocks=(2, 2, 2))
    model = keras_resnet.create_model(row)
    assert model.name == "resnet14"
    # ResNet-20 less one block of two convolutions and two normalizations in each stage.
    block = sum(2 * (9 * c * c + 2 * c) for c in (16, 32, 64))
    assert counts(model)[0] == 269_722 - block


# The builders' arguments


def halved(size, times):
    for _ in range(times):
        size = -(-size // 2)
    return size


@pytest.mark.parametrize("shortcut", ["A", "B", "none"])
@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
def test_sizes_round_up_at_every_stride(kind, shortcut):
    build, channels, strides = {
        "cifar": (keras_resnet.ResNet8, 64, 2),
        "imagenet": (tiny, 32, 5),
    }[kind]
    arguments = {"include_top": False, "shortcut": shortcut}
    open_model = build(input_shape=(None, None, 3), **arguments)
    for height, width in ((32, 32), (33, 47)):
        model = build(input_shape=(height, width, 3), **arguments)
        expected = (halved(height, strides), halved(width, strides), channels)
        assert model.output_shape == (None, *expected)
        # An open size comes to the same features with the same weights.
        model.set_weights(open_model.get_weights())
        images = random_images(2, height, width, 3)
        features = run(model, images)
        assert features.shape == (2, *expected)
        np.testing.assert_array_equal(run(open_model, images), features)


@pytest.mark.parametrize(
    ("pooling", "shape"), [(None, (None, 8, 8, 64)), ("avg", (None, 64)), ("max", (None, 64))]
)
def test_without_its_top_a_network_gives_features(pooling, shape):
    model = keras_resnet.ResNet8(
        include_top=False, pooling=pooling, input_shape=(32, 32, 3), class_names=["x"] * 10
    )
    assert model.output_shape == shape
    assert model.class_names is None
    assert not of_type(model, layers.Dense)


def test_pooling_takes_the_mean_or_the_maximum_of_the_feature_map():
    shape = (32, 40, 3)
    feature_map = keras_resnet.ResNet8(include_top=False, input_shape=shape)
    images = random_images(2, *shape)
    features = run(feature_map, images)
    for pooling, expected in (("avg", features.mean((1, 2))), ("max", features.max((1, 2)))):
        pooled = keras_resnet.ResNet8(include_top=False, pooling=pooling, input_shape=shape)
        pooled.set_weights(feature_map.get_weights())
        np.testing.assert_allclose(run(pooled, images), expected, rtol=1e-5)


def test_without_its_top_the_default_size_is_open():
    assert tiny(include_top=False).input_shape == (None, None, None, 3)
    assert tiny(include_top=False).output_shape == (None, None, None, 32)


def test_a_classifier_takes_open_sizes_too():
    model = keras_resnet.ResNet20(input_shape=(None, 48, 3))
    assert model.input_shape == (None, None, 48, 3)
    for height in (32, 51):
        probabilities = run(model, random_images(2, height, 48, 3))
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("build", [keras_resnet.ResNet8, tiny], ids=["cifar", "imagenet"])
def test_images_may_have_any_number_of_channels(build, channels):
    model = build(input_shape=(32, 32, channels))
    assert model.get_layer("stem_conv").kernel.shape[2] == channels
    probabilities = run(model, random_images(1, 32, 32, channels))
    assert probabilities.shape == (1, model.architecture.classes)


@pytest.mark.parametrize("classes", [1, 2, 1001])
def test_the_head_has_one_output_per_class(classes):
    assert keras_resnet.ResNet8(classes=classes).output_shape == (None, classes)


def test_a_network_is_built_upon_a_tensor():
    image = keras.Input((40, 40, 3))
    model = keras_resnet.ResNet8(input_tensor=image)
    assert model.inputs[0] is image
    assert len(model.inputs) == 1
    assert model.input_shape == (None, 40, 40, 3)


def test_what_lies_behind_the_tensor_becomes_part_of_the_network(tmp_path):
    pixels = keras.Input((32, 32, 3), dtype="uint8")
    upon = keras_resnet.ResNet8(input_tensor=layers.Rescaling(1 / 128, offset=-1)(pixels))
    alone = keras_resnet.ResNet8()
    upon.set_weights(alone.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = run(alone, Preprocessing()(images))
    assert upon.inputs[0] is pixels
    np.testing.assert_array_equal(run(upon, images), expected)
    upon.save(tmp_path / "upon.keras")
    np.testing.assert_array_equal(
        run(keras_resnet.load_model(tmp_path / "upon.keras"), images), expected
    )


@pytest.mark.parametrize("build", [keras_resnet.ResNet8, tiny], ids=["cifar", "imagenet"])
def test_the_softmax_of_the_logits_is_the_probabilities(build):
    classifier = build(input_shape=(32, 32, 3))
    logits = build(input_shape=(32, 32, 3), classifier_activation=None)
    logits.set_weights(classifier.get_weights())
    images = random_images(2, 32, 32, 3)
    raw = run(logits, images).astype(np.float64)
    exponentials = np.exp(raw - raw.max(-1, keepdims=True))
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    np.testing.assert_allclose(run(classifier, images), expected, rtol=1e-6)
    assert logits.layers[-1].name == "logits"


def test_another_activation_may_follow_the_logits():
    model = keras_resnet.ResNet8(classifier_activation="sigmoid")
    assert model.layers[-1].activation is keras.activations.sigmoid


@on_tensorflow
def test_float64_reaches_every_layer():
    model = keras_resnet.ResNet20(dtype="float64")
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"float64"}
    assert model.input.dtype == "float64"
    assert {v.dtype for v in model.variables} == {"float64"}
    probabilities = run(model, random_images(2, 32, 32, 3).astype(np.float64))
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-14)


def test_under_mixed_precision_the_head_computes_in_float32():
    model = keras_resnet.ResNet20(dtype="mixed_bfloat16")
    head = {"logits", "predictions"}
    body = [layer for layer in model.layers if layer.name not in {*head, "image"}]
    assert {layer.compute_dtype for layer in body} == {"bfloat16"}
    assert {model.get_layer(name).compute_dtype for name in head} == {"float32"}
    assert {v.dtype for v in model.variables} == {"float32"}
    assert model.input.dtype == "float32"
    probabilities = run(model, random_images(2, 32, 32, 3))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=on_tensorflow), "mixed_bfloat16"])
def test_a_dtype_survives_saving(dtype, tmp_path):
    model = keras_resnet.ResNet8(dtype=dtype)
    model.save(tmp_path / "network.keras")
    loaded = keras_resnet.load_model(tmp_path / "network.keras")
    images = random_images(2, 32, 32, 3).astype(model.input.dtype)
    assert [a.dtype for a in loaded.variables] == [b.dtype for b in model.variables]
    np.testing.assert_array_equal(run(loaded, images), run(model, images))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("as_text", [False, True], ids=["path", "text"])
def test_weights_come_back_from_a_file(suffix, as_text, tmp_path):
    model = keras_resnet.ResNet8()
    randomize_norms(model)
    path = tmp_path / f"network{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    loaded = keras_resnet.ResNet8(weights=str(path) if as_text else path)
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_network_without_its_top_takes_the_weights_of_one_with_it(suffix, tmp_path):
    model = keras_resnet.ResNet8()
    randomize_norms(model)
    path = tmp_path / f"network{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    features = keras_resnet.ResNet8(weights=path, include_top=False)
    for ours, theirs in zip(features.get_weights(), model.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_of_another_head_are_refused(suffix, tmp_path):
    model = keras_resnet.ResNet8(classes=7)
    path = tmp_path / f"network{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    with pytest.raises(WeightsError, match="logits"):
        keras_resnet.ResNet8(weights=path)


# What a model remembers


def test_a_model_remembers_what_it_was_told():
    model = keras_resnet.ResNet8(classes=3, class_names=NAMES, preprocessing=CAFFE, shortcut="C")
    assert model.class_names == tuple(NAMES)
    assert model.preprocessing == CAFFE
    row = keras_resnet.get_architecture("resnet8")
    assert model.architecture == row.replace(shortcut="C")


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: type(model).from_config(model.get_config())],
    ids=["deepcopy", "from_config"],
)
def test_a_copy_remembers_it_too(duplicate):
    model = duplicate(keras_resnet.ResNet8(classes=3, class_names=NAMES, preprocessing=CAFFE))
    assert model.architecture == keras_resnet.get_architecture("resnet8")
    assert (model.class_names, model.preprocessing) == (tuple(NAMES), CAFFE)


def test_a_clone_never_claims_another_preprocessing():
    # Keras clones by calling the constructor, which must not fill in a default of its own.
    clone = keras.models.clone_model(keras_resnet.ResNet8(preprocessing=CAFFE))
    assert clone.preprocessing in (CAFFE, None)


def test_a_configuration_is_plain_json():
    config = keras_resnet.ResNet8(classes=3, class_names=NAMES).get_config()
    said = {key: config[key] for key in ("architecture", "preprocessing", "class_names")}
    assert json.loads(json.dumps(said)) == said


# Errors


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("input_shape", (31, 32, 3)),
        ("input_shape", (32, 31, 3)),
        ("input_shape", (32, 32)),
        ("input_shape", (1, 32, 32, 3)),
        ("input_shape", (32, 32, 0)),
        ("input_shape", (32, 32, None)),
        ("input_shape", (32.5, 32, 3)),
        ("input_shape", "32x32x3"),
        ("input_shape", 32),
        ("input_tensor", np.zeros((1, 32, 32, 3), np.float32)),
        ("input_tensor", keras.Input((32, 32))),
        ("input_tensor", keras.Input((16, 16, 3))),
        ("classes", 0),
        ("classes", -1),
        ("classes", True),
        ("classes", "10"),
        ("classes", 10.0),
        ("include_top", "yes"),
        ("include_top", None),
        ("pooling", "mean"),
        ("weights", 7),
        ("shortcut", "D"),
        ("norm_momentum", 1.5),
        ("norm_epsilon", 0),
        ("zero_init_residual", "no"),
        ("norm", "layer"),
        ("dropout", 1),
        ("block_dropout", -0.1),
        ("stochastic_depth", "0.2"),
        ("output_stride", 8),
        ("class_names", ["cat", "dog"]),
        ("preprocessing", "caffe"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_received(argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"`{argument}`.*Received: "):
        keras_resnet.ResNet8(**{argument: value})


def test_a_tensor_and_a_shape_must_agree():
    with pytest.raises(ValueError, match=r"`input_tensor` and `input_shape`.*Received: "):
        keras_resnet.ResNet8(input_tensor=keras.Input((32, 32, 3)), input_shape=(64, 64, 3))


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Received: .*nowhere\.keras"):
        keras_resnet.ResNet8(weights=tmp_path / "nowhere.keras")


def test_a_v1_network_cannot_dilate_and_says_what_would():
    with pytest.raises(ValueError, match=r"`stride_on` must be '3x3' to dilate"):
        keras_resnet.ResNet50(output_stride=16)


@pytest.mark.parametrize("name", ["text.keras", "text.weights.h5", "text.txt"])
def test_a_file_that_holds_no_weights_is_named(name, tmp_path):
    (tmp_path / name).write_text("no weights", encoding="utf-8")
    with pytest.raises(WeightsError, match=name):
        keras_resnet.ResNet8(weights=tmp_path / name)


@pytest.mark.parametrize("build", [keras_resnet.ResNet8, tiny], ids=["builder", "create_model"])
@pytest.mark.parametrize(
    ("argument", "value"),
    [("colour", "red"), ("cardinality", 32), ("stem_channels", 32), ("attention", "se")],
)
def test_an_unknown_argument_is_a_type_error(build, argument, value):
    received = f"Received: {argument}={value!r}"
    with pytest.raises(TypeError, match=rf"'{argument}'.*'output_stride'.*{received}"):
        build(**{argument: value})


@pytest.mark.parametrize(
    ("name", "suggestions"), [("resnet55", ["resnet56", "resnet50"]), ("ResNet50", ["resnet50"])]
)
def test_create_model_suggests_the_nearest_name(name, suggestions):
    with pytest.raises(ValueError, match="Received: ") as raised:
        keras_resnet.create_model(name)
    assert all(suggestion in str(raised.value) for suggestion in suggestions)


def test_load_model_misses_a_file_by_its_path(tmp_path):
    for path in (tmp_path / "nowhere.keras", str(tmp_path / "nowhere.keras"), tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            keras_resnet.load_model(path)


def test_load_model_refuses_what_is_no_model(tmp_path):
    text, archive, cut = (tmp_path / f"{name}.keras" for name in ("text", "archive", "cut"))
    text.write_text("no model", encoding="utf-8")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme", "no model")
    keras_resnet.ResNet8().save(cut)
    cut.write_bytes(cut.read_bytes()[:-1000])
    for path in (text, archive, cut):
        with pytest.raises(ValueError, match=path.name):
            keras_resnet.load_model(path)

"""Every network of the table, and every argument of its builder."""

import copy
import gc
import inspect
import json
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_resnet
from keras_resnet import Preprocessing, export

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


COUNTS = {
    **IMAGENET_COUNTS,
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
    return tuple(
        sum(int(np.prod(v.shape)) for v in variables)
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )


def run(model, images):
    return ops.convert_to_numpy(model(ops.convert_to_tensor(images), training=False))


def random_images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


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


def tiny(**arguments):
    """An ImageNet network of one small block per stage: its stem and its strides, built at once."""
    row = keras_resnet.get_architecture("resnet18")
    row = row.replace(name="resnet10", blocks=(1, 1, 1, 1), widths=(4, 8, 12, 16))
    return keras_resnet.create_model(row, **arguments)


# Every network. They are built one after the other, each once for all the tests of this section.


def test_every_network_is_counted_here():
    assert set(COUNTS) == set(keras_resnet.list_models()) - {"resnet1202"}


@pytest.fixture(scope="module", params=COUNTS)
def network(request):
    keras.utils.set_random_seed(0)
    size = 32 if keras_resnet.get_architecture(request.param).stem == "cifar" else 64
    model = keras_resnet.create_model(
        request.param,
        input_shape=(size, size, 3),
        preprocessing=CAFFE,
        class_names=[f"class {n}" for n in range(1000 if size == 64 else 10)],
    )
    randomize_norms(model)
    return model


def test_parameters_are_those_of_the_paper(network):
    assert counts(network) == COUNTS[network.name]
    assert network.count_params() == sum(COUNTS[network.name])


def test_probabilities_are_finite_and_sum_to_one_and_survive_saving(network, tmp_path):
    images = random_images(2, *network.input_shape[1:])
    probabilities = run(network, images)
    assert probabilities.shape == (2, network.architecture.classes)
    assert probabilities.dtype == np.float32
    assert np.isfinite(probabilities).all()
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)

    network.save(tmp_path / "network.keras")
    loaded = keras_resnet.load_model(tmp_path / "network.keras")
    assert type(loaded) is type(network)
    assert loaded.name == network.name
    assert loaded.architecture == network.architecture
    assert loaded.architecture == keras_resnet.get_architecture(network.name)
    assert loaded.preprocessing == network.preprocessing == CAFFE
    assert loaded.class_names == network.class_names
    np.testing.assert_array_equal(run(loaded, images), probabilities)


def test_only_resnet8_has_biases_on_its_convolutions(network):
    convs = convolutions(network)
    assert len(convs) > 8
    assert {conv.use_bias for conv in convs} == {network.name == "resnet8"}


def test_batch_normalization_has_the_papers_constants(network):
    norms = of_type(network, layers.BatchNormalization)
    epsilon = 1e-3 if network.name == "resnet8" else 1e-5
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, epsilon)}


def test_the_stride_sits_where_the_version_says(network):
    strided = {conv.name for conv in convolutions(network) if conv.strides == (2, 2)}
    imagenet = network.architecture.stem == "imagenet"
    inside = "conv2" if network.name.endswith("_v1_5") else "conv1"
    stages = (3, 4, 5) if imagenet else (3, 4)
    expected = {f"stage{n}_block1_{inside}" for n in stages}
    if imagenet:
        expected.add("stem_conv")
    if network.architecture.shortcut == "B":
        expected |= {f"stage{n}_block1_shortcut_conv" for n in stages}
    assert strided == expected


def test_only_plain_networks_lack_shortcuts(network):
    adds = of_type(network, layers.Add)
    plain = network.name.startswith("plain")
    assert len(adds) == (0 if plain else sum(network.architecture.blocks))


def test_resnet8_does_not_normalize_its_projections():
    names = {layer.name for layer in keras_resnet.ResNet8().layers}
    for stage in (3, 4):
        assert f"stage{stage}_block1_shortcut_conv" in names
        assert f"stage{stage}_block1_shortcut_norm" not in names


def test_resnet1202_builds_runs_saves_and_loads_and_says_why_it_is_not_exported(tmp_path, request):
    # Millions of small objects stay alive here; going through them takes a quarter of the time.
    gc.disable()
    request.addfinalizer(gc.enable)
    limit = sys.getrecursionlimit()
    model = keras_resnet.ResNet1202()
    assert counts(model) == (19_421_274, cifar_statistics(1202))
    model.save(tmp_path / "deep.keras")
    loaded = keras_resnet.load_model(tmp_path / "deep.keras")
    assert loaded.architecture == keras_resnet.get_architecture("resnet1202")
    assert loaded.input_shape == (None, 32, 32, 3)
    assert loaded.output_shape == (None, 10)
    for before, after in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    # Untrained, so deep a network overflows on any image but the grey one, which is all zeros.
    probabilities = keras.ops.convert_to_numpy(loaded(np.zeros((1, 32, 32, 3), np.float32)))
    np.testing.assert_allclose(probabilities, 0.1, atol=1e-6)
    assert sys.getrecursionlimit() == limit
    with pytest.raises(ValueError, match="not finite"):
        export.to_tflite(loaded, tmp_path / "bundle", "float32")
    assert not (tmp_path / "bundle").exists()


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
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
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
    model = keras_resnet.create_model(name, shortcut=shortcut)
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


@pytest.mark.parametrize("name", ["resnet20", "resnet8", "plain20"])
def test_normalization_options_reach_every_layer(name):
    model = keras_resnet.create_model(
        name, norm_momentum=0.75, norm_epsilon=0.125, sync_bn=True, shortcut="C"
    )
    norms = of_type(model, layers.BatchNormalization)
    assert len(norms) >= 7
    assert {(n.momentum, n.epsilon, n.synchronized) for n in norms} == {(0.75, 0.125, True)}
    assert (model.architecture.norm_momentum, model.architecture.norm_epsilon) == (0.75, 0.125)


def test_statistics_are_per_replica_unless_asked_for():
    norms = of_type(keras_resnet.ResNet20(), layers.BatchNormalization)
    assert not any(norm.synchronized for norm in norms)


def test_the_networks_kernels_have_variance_2_over_the_fan_out():
    kernel = keras_resnet.ResNet18().get_layer("stage5_block2_conv2").get_weights()[0]
    assert kernel.shape == (3, 3, 512, 512)
    # 2,359,296 values: the estimate's own deviation is sqrt(2 / 2,359,296) = 0.09 %.
    assert kernel.astype(np.float64).var() == pytest.approx(2 / (9 * 512), rel=0.005)


@pytest.mark.parametrize(
    ("name", "last", "size"), [("resnet20", "norm2", 32), ("resnet50", "norm3", 64)]
)
def test_zero_init_makes_every_block_start_as_its_shortcut(name, last, size):
    model = keras_resnet.create_model(name, zero_init_residual=True, input_shape=(size, size, 3))
    blocks = [add.name.removesuffix("_add") for add in of_type(model, layers.Add)]
    assert len(blocks) == sum(model.architecture.blocks)
    ends = keras.Model(
        model.input,
        {
            block: [*model.get_layer(f"{block}_add").input, model.get_layer(f"{block}_out").output]
            for block in blocks
        },
    )
    outputs = ends(random_images(2, size, size, 3), training=False)
    for block in blocks:
        shortcut, branch, out = (ops.convert_to_numpy(part) for part in outputs[block])
        np.testing.assert_array_equal(branch, 0)
        np.testing.assert_array_equal(out, np.maximum(shortcut, 0))
        assert out.any()
    for norm in of_type(model, layers.BatchNormalization):
        expected = 0 if norm.name.endswith(last) else 1
        np.testing.assert_array_equal(norm.get_weights()[0], expected)


def test_scales_start_at_1_unless_asked_for():
    for norm in of_type(keras_resnet.ResNet20(), layers.BatchNormalization):
        np.testing.assert_array_equal(norm.get_weights()[0], 1)


# The builders' signature

BUILDERS = [name for name in keras_resnet.__all__ if name.startswith(("ResNet", "PlainNet"))]


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_builder_has_the_signature_of_keras_applications(builder):
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    ours = inspect.signature(getattr(keras_resnet, builder)).parameters
    keyword_only = [p.name for p in ours.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert list(ours) == [*theirs, *keyword_only]
    assert {"sync_bn", "preprocessing", "class_names", "dtype", "shortcut"} <= set(keyword_only)
    assert {"norm_momentum", "norm_epsilon", "zero_init_residual"} <= set(keyword_only)
    # Ours starts from random values; the rest of the defaults are the row's or theirs.
    assert ours["weights"].default is None
    for name in ("include_top", "input_tensor", "input_shape", "pooling", "classifier_activation"):
        assert ours[name].default == theirs[name].default
    row = keras_resnet.get_architecture(ours["name"].default)
    for name in ("classes", "shortcut", "norm_momentum", "norm_epsilon", "zero_init_residual"):
        assert ours[name].default == getattr(row, name)
    assert row.classes == (10 if row.stem == "cifar" else 1000)


def test_arguments_go_by_position_as_in_keras_applications():
    model = keras_resnet.ResNet20(True, None, None, (40, 48, 1), None, 7, None, "mine")
    assert model.name == "mine"
    assert model.input_shape == (None, 40, 48, 1)
    assert model.output_shape == (None, 7)
    assert model.layers[-1].name == "logits"


def test_create_model_builds_what_the_builder_builds():
    ours, named = keras_resnet.ResNet8(classes=4), keras_resnet.create_model("resnet8", classes=4)
    assert ours.get_config() == named.get_config()


def test_defaults_come_from_the_table():
    assert keras_resnet.ResNet18().input_shape == (None, 224, 224, 3)
    assert keras_resnet.ResNet18().output_shape == (None, 1000)
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
        "imagenet": (tiny, 16, 5),
    }[kind]
    arguments = {"include_top": False, "shortcut": shortcut}
    open_model = build(input_shape=(None, None, 3), **arguments)
    for height, width in ((32, 32), (33, 33), (47, 47), (33, 47)):
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
    assert tiny(include_top=False).output_shape == (None, None, None, 16)


def test_a_classifier_takes_open_sizes_too():
    model = keras_resnet.ResNet20(input_shape=(None, 48, 3))
    assert model.input_shape == (None, None, 48, 3)
    for height in (32, 51):
        probabilities = run(model, random_images(2, height, 48, 3))
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 6])
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


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
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
    with pytest.raises(ValueError, match="logits"):
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
        ("weights", "imagenet"),
        ("weights", "missing.keras"),
        ("weights", 7),
        ("shortcut", "D"),
        ("norm_momentum", 1.5),
        ("norm_epsilon", 0),
        ("zero_init_residual", "no"),
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
    with pytest.raises(ValueError, match=r"`weights`.*Received: .*nowhere\.keras"):
        keras_resnet.ResNet8(weights=tmp_path / "nowhere.keras")


@pytest.mark.parametrize("name", ["text.keras", "text.weights.h5", "text.txt"])
def test_a_file_that_holds_no_weights_is_named(name, tmp_path):
    (tmp_path / name).write_text("no weights", encoding="utf-8")
    with pytest.raises(ValueError, match=name):
        keras_resnet.ResNet8(weights=tmp_path / name)


@pytest.mark.parametrize("build", [keras_resnet.ResNet8, tiny], ids=["builder", "create_model"])
def test_an_unknown_argument_is_a_type_error(build):
    with pytest.raises(TypeError, match=r"'colour'.*Received: colour='red'"):
        build(colour="red")


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

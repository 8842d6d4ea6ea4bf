"""Other people's files into our layers: recognized, checked, loaded whole or not at all."""

import json
import re
import shutil

import h5py
import keras
import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16
import numpy as np
import pytest
import safetensors.numpy
from foreign import published_form, state_dict
from pictures import PICTURES, write_pictures
from processes import run_python

import keras_resnet
from keras_resnet import Preprocessing, WeightsError, export, imagenet
from keras_resnet.weights import catalog, sources

IMAGENET = Preprocessing.named("imagenet")


# Files in other people's form, made from our own models.


def safetensors_file(path, arrays):
    safetensors.numpy.save_file(arrays, path)
    return path


def randomized(model):
    """Nothing at its start value, so that a weight in a wrong place shows."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        low = 0.5 if variable.name in ("gamma", "moving_variance") else -0.5
        variable.assign(rng.uniform(low, low + 1, variable.shape) * 0.3)
    return model


def outputs(model):
    height, width, channels = (n or 64 for n in model.input_shape[1:])
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    return keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(images), training=False))


def values(model):
    return [keras.ops.convert_to_numpy(v).copy() for v in model.weights]


def assert_untouched(model, before):
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.fixture(scope="module")
def resnet18():
    """A network for all tests, which do not change it, and its file in torchvision's form."""
    return randomized(keras_resnet.ResNet18(input_shape=(64, 64, 3)))


@pytest.fixture(scope="module")
def resnet18_file(resnet18, tmp_path_factory):
    directory = tmp_path_factory.mktemp("resnet18")
    return safetensors_file(directory / "model.safetensors", state_dict(resnet18))


@pytest.fixture(scope="module")
def resnet20():
    return randomized(keras_resnet.ResNet20())


# PyTorch's form.


def test_a_torchvision_file_loads(resnet18, resnet18_file):
    loaded = keras_resnet.ResNet18(input_shape=(64, 64, 3))
    keras_resnet.load_weights(loaded, resnet18_file)
    np.testing.assert_array_equal(outputs(loaded), outputs(resnet18))
    assert loaded.preprocessing == Preprocessing.named("imagenet", crop=0.875)
    assert loaded.class_names is None  # a thousand classes may be any thousand


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_file_of_another_precision_loads(dtype, resnet20, tmp_path):
    arrays = {k: v.astype(dtype) for k, v in state_dict(resnet20).items() if v.dtype != np.int64}
    loaded = keras_resnet.ResNet20(weights=safetensors_file(tmp_path / "m.safetensors", arrays))
    for variable, value in zip(loaded.weights, values(resnet20), strict=True):
        expected = value.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), expected)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("head", ["linear", "fc"])
def test_a_cifar_file_in_the_common_form_loads(prefix, head, resnet20, tmp_path):
    arrays = {
        prefix + key.replace("fc.", f"{head}."): value
        for key, value in state_dict(resnet20).items()
    }
    loaded = keras_resnet.ResNet20(weights=safetensors_file(tmp_path / "cifar.safetensors", arrays))
    np.testing.assert_array_equal(outputs(loaded), outputs(resnet20))
    assert loaded.preprocessing == IMAGENET


def test_a_cifar_file_with_projections_is_for_option_b(tmp_path):
    model = randomized(keras_resnet.ResNet20(shortcut="B"))
    arrays = {k.replace("downsample", "shortcut"): v for k, v in state_dict(model).items()}
    file = safetensors_file(tmp_path / "cifar.safetensors", arrays)
    loaded = keras_resnet.ResNet20(shortcut="B", weights=file)
    np.testing.assert_array_equal(outputs(loaded), outputs(model))
    with pytest.raises(WeightsError, match="shortcut='B' where the model has 'A'"):
        keras_resnet.ResNet20(weights=file)


def test_weights_serve_a_dilated_and_a_headless_network(resnet18, resnet18_file):
    options = {"input_shape": (64, 64, 3), "include_top": False, "weights": resnet18_file}
    whole = keras_resnet.feature_model(resnet18, ["C5"])
    np.testing.assert_array_equal(outputs(keras_resnet.ResNet18(**options)), whole_map(whole))
    dilated = keras_resnet.ResNet18(**options, output_stride=8)
    assert dilated.output_shape == (None, 8, 8, 512)
    for ours, theirs in zip(values(dilated), values(resnet18), strict=False):  # but the head
        np.testing.assert_array_equal(ours, theirs)


def whole_map(model):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    found = model(keras.ops.convert_to_tensor(images), training=False)
    return keras.ops.convert_to_numpy(found["C5"])


# What does not fit is named, and nothing of it is loaded.


def refused(model, file, match, **options):
    before, preprocessing = values(model), model.preprocessing
    with pytest.raises(WeightsError, match=match):
        keras_resnet.load_weights(model, file, **options)
    assert_untouched(model, before)
    assert model.preprocessing == preprocessing


@pytest.fixture(scope="module")
def bottleneck_file(tmp_path_factory):
    """A file in torchvision's form, which strides on the 3x3."""
    model = keras_resnet.ResNet50V1_5(input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("resnet50") / "model.safetensors"
    return safetensors_file(path, state_dict(model))


def test_a_file_for_v1_5_is_refused_by_v1(bottleneck_file):
    model = keras_resnet.ResNet50(input_shape=(32, 32, 3))
    match = r"is for resnet50_v1_5 .*not for resnet50\. Received: stride_on='3x3'.*'1x1'"
    refused(model, bottleneck_file, match)


@pytest.mark.parametrize(
    ("builder", "match"),
    [
        ("ResNet34", r"is for resnet18, not for resnet34\. Received: blocks=\(2, 2, 2, 2\)"),
        ("PlainNet18", r"is for resnet18, not for plain18\. Received: shortcut='B'"),
        ("ResNet18D", "is for resnet18, not for resnet18d"),
        ("SEResNet18", "is for resnet18, not for seresnet18"),
        ("ResNet18PreAct", "is for resnet18, not for resnet18_preact"),
        ("ResNet20", "is for resnet18, not for resnet20"),
    ],
)
def test_a_file_for_another_network_says_which(builder, match, resnet18_file):
    refused(getattr(keras_resnet, builder)(input_shape=(32, 32, 3)), resnet18_file, match)


def test_a_file_for_a_network_outside_the_table_says_so(resnet20, tmp_path):
    row = keras_resnet.get_architecture("resnet20").replace(name="thin", widths=(4, 8, 16))
    file = safetensors_file(
        tmp_path / "thin.safetensors", state_dict(keras_resnet.create_model(row))
    )
    refused(keras_resnet.ResNet20(), file, "is for a network that is not in the table")
    keras_resnet.create_model(row, weights=file)


def test_another_number_of_classes_needs_skip_head(resnet18, resnet18_file):
    model = keras_resnet.ResNet18(input_shape=(64, 64, 3), classes=7)
    refused(model, resnet18_file, "1000 classes, the model 7; skip_head=True")
    head = [keras.ops.convert_to_numpy(v) for v in model.get_layer("logits").weights]
    keras_resnet.load_weights(model, resnet18_file, skip_head=True)
    for now, then in zip(model.get_layer("logits").weights, head, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(now), then)
    np.testing.assert_array_equal(values(model)[0], values(resnet18)[0])
    assert model.class_names is None


def test_a_file_without_a_head_needs_skip_head(resnet20, tmp_path):
    arrays = {k: v for k, v in state_dict(resnet20).items() if not k.startswith("fc.")}
    file = safetensors_file(tmp_path / "headless.safetensors", arrays)
    model = keras_resnet.ResNet20()
    refused(model, file, r"lacks a part of resnet20: logits's kernel; skip_head=True")
    keras_resnet.load_weights(model, file, skip_head=True)
    features = keras_resnet.ResNet20(include_top=False, weights=file)
    np.testing.assert_array_equal(values(features)[-1], values(model)[-3])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a.pop("layer3.2.bn2.running_var"), "lacks .* stage4_block3_norm2's moving_var"),
        (lambda a: a.update({"layer3.2.bn2.weight": np.ones(63, "f")}), r"of shape \(63,\)"),
        (lambda a: a.update({"layer3.2.conv9.weight": np.ones((1, 1, 1, 1), "f")}), "has not"),
        (lambda a: a.update({"decoder.weight": np.ones(3, "f")}), "'decoder.weight'"),
        (lambda a: a.update({"fc.scale": np.ones(3, "f")}), "'fc.scale'"),
        (lambda a: a.pop("layer2.0.conv1.weight"), "lacks|missing"),
        (lambda a: a.pop("layer1.0.bn1.weight"), "lacks|missing"),
        (lambda a: a.pop("layer1.0.conv1.weight"), "must be named as"),
        (lambda a: a.pop("conv1.weight"), "missing"),
        (lambda a: a.pop("fc.bias"), "lacks a part of resnet20: logits's bias"),
        (lambda a: a.update({"linear.weight": a["fc.weight"]}), "more than one array"),
        (lambda a: a.update({"module.conv1.weight": a["conv1.weight"]}), "more than one array"),
        (lambda a: a.update({"fc.weight": np.full((), 3, "f")}), "2 to 4 axes"),
        (lambda a: a.update({"fc.weight": a["fc.weight"].astype(bool)}), "floating-point"),
        (lambda a: a.update({"bn1.bias": np.ones(16, np.int32)}), "floating-point"),
        (lambda a: a.update({"conv1.bias": np.ones(1, "f")}), r"bias of shape \(1,\)"),
        (lambda a: a.update({"layer20000000.0.conv1.weight": a["conv1.weight"]}), "layer2000000"),
        (lambda a: a.update({"layer5.0.conv1.weight": a["conv1.weight"]}), "missing"),
        (dict.clear, "must be named as"),
    ],
)
def test_a_file_that_is_a_little_off_is_refused_whole(change, match, resnet20, tmp_path):
    arrays = state_dict(resnet20)
    change(arrays)
    file = safetensors_file(tmp_path / "off.safetensors", arrays)
    refused(keras_resnet.ResNet20(), file, match)


def test_a_truncated_file_is_refused(resnet20, tmp_path):
    file = safetensors_file(tmp_path / "model.safetensors", state_dict(resnet20))
    file.write_bytes(file.read_bytes()[:-1000])
    refused(keras_resnet.ResNet20(), file, "Not a safetensors file")


@pytest.mark.parametrize("name", ["x.safetensors", "x.h5", "x.weights.h5", "x.keras"])
def test_a_file_that_is_something_else_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"This is no model at all." * 50)
    before = values(model := keras_resnet.ResNet8())
    with pytest.raises(WeightsError, match="Not a"):
        keras_resnet.load_weights(model, tmp_path / name)
    assert_untouched(model, before)


def test_a_file_of_an_unknown_kind_names_those_that_are_known(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"must be \.safetensors, \.pth, \.h5"):
        keras_resnet.ResNet8(weights=tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "source",
    [
        "nowhere.safetensors",
        "no/such/place",
        "weights/model.safetensors",
        "weights/model.bin",
        "resnet50",
        "",
    ],
)
def test_a_source_that_is_not_there_is_named(source):
    with pytest.raises(FileNotFoundError, match="'imagenet/resnet50' or 'timm/") as caught:
        keras_resnet.ResNet8(weights=source)
    assert repr(source) in str(caught.value)


def test_weights_go_into_models_of_this_package_alone(resnet18_file):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    with pytest.raises(WeightsError, match="that keras_resnet builds"):
        keras_resnet.load_weights(model, resnet18_file)


# Biases and another epsilon move into the statistics, exactly.


def test_a_bias_and_another_epsilon_move_into_the_statistics(resnet20, tmp_path):
    row = keras_resnet.get_architecture("resnet20")
    biased = randomized(
        keras_resnet.create_model(row.replace(conv_bias="all"), classifier_activation=None)
    )
    file = safetensors_file(tmp_path / "biased.safetensors", state_dict(biased))
    plain = keras_resnet.ResNet20(classifier_activation=None, norm_epsilon=1e-3)
    # The file is for an epsilon of 1e-5, as all of PyTorch's are; the model that made it as well.
    tiny = state_dict(biased) | {"bn1.running_var": np.zeros(16, "f")}
    tiny_file = safetensors_file(tmp_path / "tiny.safetensors", tiny)
    refused(plain, tiny_file, "too small.*norm_epsilon=0.001")
    keras_resnet.load_weights(plain, file)
    np.testing.assert_allclose(
        outputs(plain), outputs(biased), atol=1e-5 * np.abs(outputs(biased)).max()
    )


# Our own files.

OWN_FILES = ["model.keras", "model.weights.h5", "model.safetensors"]


def save(model, file):
    model.save(file) if file.name.endswith(".keras") else model.save_weights(file)


@pytest.mark.parametrize("name", OWN_FILES)
def test_our_own_files_load_and_know_their_architecture(name, resnet20, tmp_path):
    file = tmp_path / name
    save(resnet20, file)
    loaded = keras_resnet.ResNet20(weights=file)
    np.testing.assert_array_equal(outputs(loaded), outputs(resnet20))
    # A plain network has the same weights, by number and by shape.
    refused(keras_resnet.PlainNet20(), file, "is for resnet20, not for plain20")
    refused(keras_resnet.ResNet32(), file, "is for resnet20, not for resnet32")


@pytest.mark.parametrize("name", OWN_FILES)
def test_our_own_file_brings_preprocessing_and_names(name, tmp_path):
    names = [f"class {n}" for n in range(10)]
    model, file = keras_resnet.ResNet8(preprocessing=IMAGENET, class_names=names), tmp_path / name
    save(model, file)
    loaded = keras_resnet.ResNet8(weights=file)
    assert loaded.preprocessing == IMAGENET
    assert loaded.class_names == tuple(names)
    own = Preprocessing(mean=1.0, std=2.0)
    mine = keras_resnet.ResNet8(weights=file, preprocessing=own)
    assert mine.preprocessing == own
    keras_resnet.load_weights(loaded, file, preprocessing=own)
    assert loaded.preprocessing == own


@pytest.mark.parametrize("name", OWN_FILES)
def test_the_head_of_our_own_files_can_be_skipped(name, tmp_path):
    model, file = randomized(keras_resnet.ResNet8(classes=4)), tmp_path / name
    save(model, file)
    other = keras_resnet.ResNet8()
    refused(other, file, "it has 4 classes, the model 10; skip_head=True")
    head = values(other)[-2:]
    keras_resnet.load_weights(other, file, skip_head=True)
    for now, then in zip(values(other)[-2:], head, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(values(other)[0], values(model)[0])


@pytest.mark.parametrize("name", OWN_FILES)
@pytest.mark.parametrize(
    ("names", "is_kept"),
    [("abcd", True), ("dcba", False), ("wxyz", False), ("abcde", False), (None, False)],
)
def test_the_head_is_kept_where_the_same_classes_are_named(name, names, is_kept, tmp_path):
    model, file = keras_resnet.ResNet8(classes=4, class_names=list("abcd")), tmp_path / name
    save(randomized(model), file)
    other = keras_resnet.ResNet8(classes=len(names or "abcd"), class_names=names and list(names))
    head = values(model if is_kept else other)[-2:]
    keras_resnet.load_weights(other, file, skip_head=None)
    for now, then in zip(values(other)[-2:], head, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(values(other)[0], values(model)[0])
    assert other.class_names == (names and tuple(names))


def test_a_file_that_does_not_say_what_it_is_of_fits_or_not(resnet20, tmp_path):
    file = tmp_path / "model.weights.h5"
    keras.Model.save_weights(resnet20, file)
    loaded = keras_resnet.ResNet20()
    head = values(loaded)[-2:]
    keras_resnet.load_weights(loaded, file, skip_head=True)
    np.testing.assert_array_equal(values(loaded)[-2], head[0])
    keras_resnet.load_weights(loaded, file)
    np.testing.assert_array_equal(outputs(loaded), outputs(resnet20))
    refused(keras_resnet.ResNet20(classes=3), file, "Not weights of resnet20", skip_head=True)


def test_a_truncated_file_of_our_own_changes_nothing(resnet20, tmp_path):
    file = tmp_path / "model.weights.h5"
    resnet20.save_weights(file)
    with h5py.File(file, "r+") as content:  # the last layer that Keras reads is the head
        del content["layers/dense/vars/0"]
    refused(keras_resnet.ResNet20(), file, "Not weights of resnet20")


@pytest.mark.parametrize("skip_head", [False, True])
def test_a_damaged_file_of_our_own_is_refused_whole(skip_head, resnet20, tmp_path):
    file = tmp_path / "model.weights.h5"
    resnet20.save_weights(file)
    with h5py.File(file, "r+") as content:
        del content["layers/batch_normalization_3/vars/0"]
    refused(keras_resnet.ResNet20(), file, "Not weights of resnet20", skip_head=skip_head)


@pytest.mark.parametrize("name", OWN_FILES)
def test_our_own_files_serve_another_epsilon(name, tmp_path):
    model, file = randomized(keras_resnet.ResNet20(classifier_activation=None)), tmp_path / name
    save(model, file)
    other = keras_resnet.ResNet20(classifier_activation=None, norm_epsilon=1e-3, weights=file)
    expected = outputs(model)
    np.testing.assert_allclose(outputs(other), expected, atol=1e-5 * np.abs(expected).max())


def test_the_optimizer_is_left_alone(tmp_path):
    model = keras_resnet.ResNet8()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(np.zeros((4, 32, 32, 3), "f"), np.zeros(4), verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    model.fit(np.zeros((4, 32, 32, 3), "f"), np.zeros(4), verbose=0)
    before = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    keras_resnet.load_weights(model, tmp_path / "model.weights.h5")
    for now, then in zip(model.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(now), then)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "torch"])
def test_a_feature_model_takes_its_part_of_a_file(name, resnet20, tmp_path):
    file = tmp_path / name
    if name == "torch":
        file = safetensors_file(tmp_path / "model.safetensors", state_dict(resnet20))
    elif name.endswith(".keras"):
        resnet20.save(file)
    else:
        resnet20.save_weights(file)
    part = keras_resnet.feature_model("resnet20", ["C2", "C3"])
    keras_resnet.load_weights(part, file)
    for ours, theirs in zip(values(part), values(resnet20), strict=False):
        np.testing.assert_array_equal(ours, theirs)


def test_a_feature_model_of_a_pre_activation_network_does_too(tmp_path):
    row = keras_resnet.get_architecture("resnet110_preact").replace(blocks=(2, 2, 2))
    whole = randomized(keras_resnet.create_model(row))
    whole.save(tmp_path / "model.keras")
    part = keras_resnet.feature_model(row)
    keras_resnet.load_weights(part, tmp_path / "model.keras")
    for ours, theirs in zip(values(part), values(whole), strict=False):
        np.testing.assert_array_equal(ours, theirs)


def test_layers_in_front_of_the_network_are_left_alone(resnet20, tmp_path):
    file = safetensors_file(tmp_path / "model.safetensors", state_dict(resnet20))
    inputs = keras.Input((32, 32, 1))
    adapter = keras.layers.Conv2D(3, 1, name="adapter")
    model = keras_resnet.ResNet20(input_tensor=adapter(inputs), weights=file)
    np.testing.assert_array_equal(values(model)[2], values(resnet20)[0])


def test_one_block_per_stage_makes_option_b_the_same_as_c(tmp_path):
    row = keras_resnet.get_architecture("resnet50_v1_5").replace(
        name="small", blocks=(1, 1, 1, 1), widths=(4, 8, 8, 8)
    )
    model = randomized(keras_resnet.create_model(row, input_shape=(32, 32, 3)))
    file = safetensors_file(tmp_path / "model.safetensors", state_dict(model))
    loaded = keras_resnet.create_model(row, input_shape=(32, 32, 3), weights=file)
    np.testing.assert_array_equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("name", OWN_FILES[1:])
def test_saving_weights_replaces_a_file_whole_or_not_at_all(name, tmp_path):
    file, model = tmp_path / name, keras_resnet.ResNet8()
    model.save_weights(file)
    with pytest.raises(FileExistsError, match="exists already"):
        model.save_weights(file, overwrite=False)
    randomized(model).save_weights(file)
    np.testing.assert_array_equal(outputs(keras_resnet.ResNet8(weights=file)), outputs(model))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", OWN_FILES)
def test_our_own_file_says_which_network_to_build(name, tmp_path):
    model = randomized(keras_resnet.ResNet20(shortcut="B", class_names=list("abcdefghij")))
    save(model, tmp_path / name)
    built = keras_resnet.from_pretrained(tmp_path / name)
    assert (built.architecture, built.class_names) == (model.architecture, model.class_names)
    assert built.preprocessing == model.preprocessing
    np.testing.assert_array_equal(outputs(built), outputs(model))


def test_a_safetensors_file_may_be_half_as_large(resnet20, tmp_path):
    resnet20.save_weights(tmp_path / "whole.safetensors")
    resnet20.save_weights(tmp_path / "half.safetensors", dtype="float16")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.51 * sizes[0]
    loaded = keras_resnet.ResNet20(weights=tmp_path / "half.safetensors")
    for now, then in zip(values(loaded), values(resnet20), strict=True):
        np.testing.assert_array_equal(now, then.astype(np.float16).astype(np.float32))


def test_weights_that_a_type_cannot_hold_are_not_written(tmp_path):
    model, file = keras_resnet.ResNet8(), tmp_path / "model.safetensors"
    model.get_layer("stem_norm").moving_variance.assign(np.full(16, 1e5))
    with pytest.raises(ValueError, match="stem_norm/moving_variance with values up to 1e"):
        model.save_weights(file, dtype="float16")
    with pytest.raises(ValueError, match="Received: dtype='int8'"):
        model.save_weights(file, dtype="int8")
    assert not list(tmp_path.iterdir())
    model.save_weights(file)
    assert keras_resnet.from_pretrained(file).name == "resnet8"


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"architecture": {"name": "x"}}'])
def test_a_record_that_is_none_is_refused(record, tmp_path):
    file = tmp_path / "model.safetensors"
    arrays = {"stem_conv/kernel": np.zeros((3, 3, 3, 16), np.float32)}
    safetensors.numpy.save_file(arrays, file, metadata={"keras_resnet": record})
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        keras_resnet.from_pretrained(file)


# The files of keras.applications, from a server on this machine.


def published_resnet50(directory, **options):
    """keras.applications' ResNet-50, and its file in the published form."""
    network = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), **options)
    return network, published_form(network, directory)


@pytest.fixture
def keras_server(file_server, monkeypatch, tmp_path):
    """Serves what a test puts into it as the published file of resnet50."""
    import hashlib

    monkeypatch.setenv("KERAS_RESNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "KERAS_ADDRESS", f"{file_server.url}/")

    def publish(content):
        digest = hashlib.md5(content).hexdigest()
        for suffix in ("", "_notop"):
            file = f"resnet50_weights_tf_dim_ordering_tf_kernels{suffix}.h5"
            file_server.files[f"/{file}"] = content
        monkeypatch.setitem(catalog.KERAS_FILES, "resnet50", ("resnet50", digest, digest))
        return digest

    publish.server = file_server
    return publish


def test_imagenet_weights_come_from_keras_applications(keras_server, tmp_path):
    theirs, file = published_resnet50(tmp_path)
    keras_server(file.read_bytes())
    for loaded in (
        keras_resnet.ResNet50(weights="imagenet", input_shape=(64, 64, 3)),
        keras_resnet.from_pretrained("imagenet/resnet50", input_shape=(64, 64, 3)),
    ):
        np.testing.assert_allclose(outputs(loaded), outputs(theirs), atol=1e-5)
        assert loaded.preprocessing == Preprocessing.named("caffe", crop=0.875)
        assert loaded.class_names == imagenet.class_names()

    keras_server.server.stop()  # offline, from the cache
    kept = keras_resnet.from_pretrained(
        "imagenet/resnet50", input_shape=(64, 64, 3), classes=3, progress=False
    )
    assert kept.output_shape == (None, 3)
    assert kept.class_names is None
    assert kept.architecture == keras_resnet.get_architecture("resnet50")
    kept.save(tmp_path / "kept.keras")
    again = keras_resnet.load_model(tmp_path / "kept.keras")
    assert again.preprocessing == kept.preprocessing
    assert again.architecture == kept.architecture


def test_a_network_without_a_classifier_takes_the_file_without_one(keras_server, headless_resnet50):
    file, _ = headless_resnet50
    keras_server(file.read_bytes())
    keras_resnet.ResNet50(weights="imagenet", include_top=False)
    (asked,) = {log.path for log in keras_server.server.gets}
    assert asked.endswith("_notop.h5")


def test_another_name_than_the_models_own_is_another_network(keras_server, headless_resnet50):
    file, _ = headless_resnet50
    keras_server(file.read_bytes())
    model = keras_resnet.ResNet101(input_shape=(32, 32, 3), include_top=False)
    refused(model, "imagenet/resnet50", "is for resnet50, not for resnet101")


@pytest.fixture(scope="module")
def headless_resnet50(tmp_path_factory):
    """keras.applications' file of it, and a network of ours, which the tests do not change."""
    _, file = published_resnet50(tmp_path_factory.mktemp("published"), include_top=False)
    return file, keras_resnet.ResNet50(include_top=False)


@pytest.mark.parametrize("harm", ["external", "soft", "huge", "strings", "group"])
def test_a_file_that_is_made_to_harm_is_refused(harm, headless_resnet50, tmp_path):
    file, model = headless_resnet50
    published = shutil.copy(file, tmp_path / "published.h5")
    with h5py.File(published, "r+") as file:
        layer = file["conv1_conv"]
        (kernel, *_) = layer.attrs["weight_names"]
        group, name = layer[kernel].parent, layer[kernel].name.split("/")[-1]
        shape = layer[kernel].shape
        del group[name]
        if harm == "external":
            group[name] = h5py.ExternalLink("/etc/hostname", "/x")
        elif harm == "soft":
            group[name] = h5py.SoftLink("/conv1_bn")
        elif harm == "huge":
            group.create_dataset(name, (2**20, 2**24), "f")
        elif harm == "strings":
            group.create_dataset(name, data=np.full(shape, b"1"))
        else:
            group.create_group(name)
    refused(model, published, "refers to|no array|too small|floating-point")


def test_a_published_file_with_a_wrong_hash_is_not_loaded(keras_server, monkeypatch):
    keras_server(b"not what was published")
    monkeypatch.setitem(catalog.KERAS_FILES, "resnet50", ("resnet50", "0" * 32, "0" * 32))
    with pytest.raises(keras_resnet.DownloadError, match="0" * 32):
        keras_resnet.from_pretrained("imagenet/resnet50")


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1_5", "resnet20"])
def test_networks_that_keras_applications_has_not_say_so(name):
    with pytest.raises(WeightsError, match="has ImageNet weights for resnet50,"):
        keras_resnet.create_model(name, weights="imagenet")


# The Hugging Face hub, on this machine.

CONFIG = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "num_features": 512,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 64, 96],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "num_classes": 1000,
    },
}


def repository(directory, file=None, **changes):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    if file is not None:
        shutil.copy(file, directory / "model.safetensors")
    return directory


def test_a_checkpoint_of_the_hub_builds_its_network(fake_hub, resnet18, resnet18_file, tmp_path):
    repository(fake_hub.root / "timm" / "resnet18.a1_in1k", resnet18_file)
    model = keras_resnet.from_pretrained("timm/resnet18.a1_in1k")
    assert model.architecture == keras_resnet.get_architecture("resnet18")
    assert model.input_shape == (None, 64, 96, 3)
    assert model.class_names == imagenet.class_names()
    assert model.preprocessing == Preprocessing(
        mean=(127.5, 102.0, 76.5), std=(51.0, 63.75, 76.5), interpolation="bicubic", crop=0.95
    )
    for ours, theirs in zip(values(model), values(resnet18), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    fake_hub.stop()
    offline = keras_resnet.from_pretrained(
        "timm/resnet18.a1_in1k", classes=5, input_shape=(32, 32, 3), output_stride=16
    )
    assert offline.output_shape == (None, 5)
    assert offline.architecture.output_stride == 16
    assert offline.class_names is None
    offline.save(tmp_path / "model.keras")
    loaded = keras_resnet.load_model(tmp_path / "model.keras")
    assert loaded.preprocessing == model.preprocessing

    features = keras_resnet.from_pretrained("timm/resnet18.a1_in1k", include_top=False)
    assert features.output_shape == (None, None, None, 512)
    maps = keras_resnet.feature_model(features, ["C3", "C2"])
    assert {k: v.shape[-1] for k, v in maps.output.items()} == {"C3": 128, "C2": 64}


def test_a_hub_name_is_a_source_of_weights_too(fake_hub, resnet18, resnet18_file):
    repository(fake_hub.root / "me" / "mine", resnet18_file, label_names=None)
    model = keras_resnet.ResNet18(weights="me/mine", input_shape=(64, 64, 3))
    np.testing.assert_array_equal(outputs(model), outputs(resnet18))


def test_a_local_directory_has_the_same_form(resnet18, resnet18_file, tmp_path):
    names = [f"thing {n}" for n in range(1000)]
    directory = repository(tmp_path / "mine", resnet18_file, label_names=names)
    model = keras_resnet.from_pretrained(directory, input_shape=(64, 64, 3))
    np.testing.assert_array_equal(outputs(model), outputs(resnet18))
    assert model.class_names == tuple(names)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "vit_base_patch16_224"}, "cannot be loaded.*'vit_base_patch16_224'"),
        ({"architecture": None}, "cannot be loaded"),
        ({"architecture": ["resnet18"]}, "cannot be loaded"),
        ({"architecture": "resnet34"}, "is for resnet18, not for resnet34"),
        ({"model_args": {"act_layer": "silu"}}, "model_args.*silu"),
        ({"global_pool": "max"}, "global_pool.*'max'"),
        ({"label_names": [1] * 1000}, "label_names"),
        ({"pretrained_cfg": 3}, "pretrained_cfg"),
        ({"pretrained_cfg": {**CONFIG["pretrained_cfg"], "crop_mode": "squash"}}, "crop_mode"),
        ({"pretrained_cfg": {**CONFIG["pretrained_cfg"], "input_size": [3, "a"]}}, "input_size"),
    ],
)
def test_a_configuration_that_cannot_be_right_is_refused(changes, match, resnet18_file, tmp_path):
    directory = repository(tmp_path / "mine", resnet18_file, **changes)
    with pytest.raises(ValueError, match=match):
        keras_resnet.from_pretrained(directory)


def test_a_network_with_the_same_arrays_is_told_apart_by_its_configuration(tmp_path):
    model = keras_resnet.ResNet50V1_5(input_shape=(32, 32, 3))
    file = safetensors_file(tmp_path / "model.safetensors", state_dict(model))
    directory = repository(tmp_path / "mine", file, architecture="resnetblur50")
    refused(model, directory, "is for resnetblur50, not for resnet50_v1_5")
    blurred = keras_resnet.from_pretrained(directory, input_shape=(32, 32, 3))
    assert blurred.architecture.antialias


def test_a_thousand_classes_of_somebody_are_not_those_of_imagenet(fake_hub, resnet18_file):
    repository(fake_hub.root / "me" / "mine", resnet18_file)
    assert keras_resnet.from_pretrained("me/mine").class_names is None


def test_weights_without_a_classifier_start_a_new_one_or_none(resnet18, tmp_path):
    arrays = {k: v for k, v in state_dict(resnet18).items() if not k.startswith("fc.")}
    file = safetensors_file(tmp_path / "model.safetensors", arrays)
    directory = repository(tmp_path / "mine")
    shutil.move(file, directory / "model.safetensors")
    with pytest.raises(WeightsError, match="give `include_top=False`, or `classes`"):
        keras_resnet.from_pretrained(directory)
    assert keras_resnet.from_pretrained(directory, classes=3).output_shape == (None, 3)
    features = keras_resnet.from_pretrained(directory, include_top=False)
    assert features.input_shape == (None, None, None, 3)


def test_a_directory_that_lacks_a_file_says_which(resnet18_file, tmp_path):
    directory = repository(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors"):
        keras_resnet.from_pretrained(directory)
    shutil.copy(resnet18_file, directory / "model.safetensors")
    (directory / "config.json").write_text("[1, 2")
    with pytest.raises(WeightsError, match="Not a JSON file"):
        keras_resnet.from_pretrained(directory)
    (directory / "config.json").write_text("[1, 2]")
    with pytest.raises(WeightsError, match="must hold an object"):
        keras_resnet.from_pretrained(directory)
    (directory / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"without a config\.json"):
        keras_resnet.from_pretrained(directory)


def test_a_repository_without_weights_says_so(fake_hub):
    repository(fake_hub.root / "me" / "empty")
    with pytest.raises(keras_resnet.DownloadError, match="me/empty"):
        keras_resnet.from_pretrained("me/empty")


# The weights that come with the package.

SHIPPED = sources.SHIPPED


def test_shipped_weights_name_pictures_without_a_network(tmp_path):
    """In a fresh process, in which every connection fails."""
    script = f"""
        import json, socket
        def refuse(*arguments, **options):
            raise OSError("no network")
        socket.socket.connect = socket.getaddrinfo = refuse
        from keras_resnet import create_model
        from PIL import Image
        named = {{}}
        for name in {list(catalog.CIFAR10_FILES)}:
            model = create_model(name, weights="cifar10", classes=10, input_shape=(32, 32, 3))
            named[name] = []
            for shown in {[picture.__name__ for picture in PICTURES]}:
                pixels = model.preprocessing.fit(shown + ".png", (32, 32))[None]
                scores = model(model.preprocessing(pixels), training=False)[0]
                named[name].append(model.class_names[int(scores.numpy().argmax())])
        print(json.dumps(named))
    """
    shown = [path.stem for path in write_pictures(tmp_path)]
    named = json.loads(run_python(script, cwd=tmp_path).stdout.splitlines()[-1])
    right = {
        name: sum(one == other for one, other in zip(shown, theirs, strict=True))
        for name, theirs in named.items()
    }
    assert right.keys() == catalog.CIFAR10_FILES.keys()
    assert all(count >= (3 if name == "resnet8" else 4) for name, count in right.items()), right


def test_shipped_files_are_small_and_half_precision():
    files = {path.stem: path for path in SHIPPED.glob("*.safetensors")}
    assert set(files) == set(catalog.CIFAR10_FILES)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 3e6
    for path in files.values():
        arrays = safetensors.numpy.load_file(path)
        assert {array.dtype for array in arrays.values()} == {np.dtype("float16")}
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for name, path in files.items():
        assert re.search(rf"^\| `{name}` \|.* {path.stat().st_size:,} \|", card, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "most"), [("resnet8", 100_000), ("resnet20", 320_000), ("resnet56", 1_000_000)]
)
def test_shipped_networks_are_small_in_8_bits(name, most, tmp_path):
    """Calibrated on the images that come with them, and say much the same of those."""
    model = keras_resnet.from_pretrained(f"cifar10/{name}")
    calibration = keras_resnet.weights.calibration_images(f"cifar10/{name}")
    bundle = export.to_tflite(model, tmp_path / "int8", "int8", calibration=calibration)
    assert bundle.model_path.stat().st_size < most
    images = np.load(calibration)["images"]
    expected = np.asarray(model(model.preprocessing(images), training=False)).argmax(axis=1)
    given = export.Classifier(bundle).probabilities(images).argmax(axis=1)
    assert np.count_nonzero(given == expected) >= 60


def test_shipped_weights_are_a_start_for_other_classes():
    model = keras_resnet.from_pretrained("cifar10/resnet20", classes=3)
    assert (model.output_shape, model.class_names) == ((None, 3), None)
    whole = keras_resnet.ResNet20(weights="cifar10")
    np.testing.assert_array_equal(values(model)[0], values(whole)[0])
    features = keras_resnet.feature_model("resnet20", weights="cifar10")
    assert set(features.output) == {"C2", "C3", "C4"}
    # As many classes, but others.
    digits = keras_resnet.from_pretrained("cifar10/resnet20", class_names=tuple("0123456789"))
    assert digits.class_names == tuple("0123456789")
    assert not np.array_equal(digits.get_layer("logits").kernel, whole.get_layer("logits").kernel)
    named = keras_resnet.from_pretrained("cifar10/resnet20", class_names=whole.class_names)
    np.testing.assert_array_equal(values(named)[-2], values(whole)[-2])


def test_a_damaged_installation_is_noticed(monkeypatch, tmp_path):
    content = bytearray((SHIPPED / "resnet20.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "resnet20.safetensors").write_bytes(content)
    monkeypatch.setattr(sources, "SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match="Install it again"):
        keras_resnet.ResNet20(weights="cifar10")


def test_networks_without_shipped_weights_say_which_have_them():
    with pytest.raises(WeightsError, match=r"for .*resnet20.*Received: 'resnet32'"):
        keras_resnet.ResNet32(weights="cifar10")


def test_a_directory_of_the_same_name_is_not_meant(monkeypatch, tmp_path):
    (tmp_path / "cifar10").mkdir()
    monkeypatch.chdir(tmp_path)
    assert keras_resnet.ResNet20(weights="cifar10").class_names[0] == "airplane"
    with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors"):
        keras_resnet.ResNet20(weights="./cifar10")


# What the catalog promises.


def test_every_public_weight_is_of_a_network_of_the_table():
    found = [n for name in keras_resnet.list_models() for n in catalog.public_weights(name)]
    assert len(found) == len(set(found)) > 100
    assert {n.split("/")[0] for n in found} == {"cifar10", "imagenet", "timm"}
    assert catalog.public_weights("resnet50") == ["imagenet/resnet50"]
    assert "timm/resnet50.a1_in1k" in catalog.public_weights("resnet50_v1_5")
    for theirs in catalog.TIMM_TAGS:
        assert isinstance(catalog.from_timm(theirs), keras_resnet.Architecture)


def test_the_hashes_are_those_that_keras_checks():
    from keras.src.applications import resnet

    assert catalog.KERAS_ADDRESS == resnet.BASE_WEIGHTS_PATH
    for name, *digests in catalog.KERAS_FILES.values():
        assert tuple(digests) == resnet.WEIGHTS_HASHES[name]

"""The catalog beside timm's registry, and PyTorch's own files through PyTorch's own loader."""

import pickle

import keras
import numpy as np
import peers
import pytest
import timm
import torch

import keras_resnet
from keras_resnet import Preprocessing, WeightsError
from keras_resnet.preprocessing import timm_input_shape
from keras_resnet.weights import catalog, layouts


@pytest.mark.parametrize("name", catalog.TIMM)
def test_every_architecture_of_the_catalog_is_read_off_the_keys_of_timm(name):
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False)
    arrays = {  # as large as the real ones, but a single zero in memory
        key: np.broadcast_to(np.float32(0), tuple(value.shape))
        for key, value in network.state_dict().items()
    }
    checkpoint = layouts.recognize(arrays)
    architecture = catalog.from_timm(name)
    layouts.check_architecture(checkpoint, architecture)
    assert checkpoint.classes == 1000
    row, changes = catalog.TIMM[name]
    is_the_row = not layouts.differences(checkpoint.traits, keras_resnet.get_architecture(row))
    assert is_the_row == (not changes)
    trainable = sum(p.numel() for p in network.parameters())
    assert changes or trainable == keras_resnet.get_counts(row).parameters


def test_the_tags_are_those_that_timm_publishes():
    published = {
        name: tuple(
            tag.split(".", 1)[1]
            for tag in timm.list_pretrained(f"{name}.*")
            if timm.get_pretrained_cfg(tag).hf_hub_id
        )
        for name in catalog.TIMM
    }
    assert {name: tags for name, tags in published.items() if tags} == catalog.TIMM_TAGS


def test_the_configuration_of_every_public_checkpoint_is_understood():
    tags = [f"{name}.{tag}" for name, tags in catalog.TIMM_TAGS.items() for tag in tags]
    for tag in tags:
        published = timm.get_pretrained_cfg(tag)
        config = {"architecture": tag.split(".")[0], "pretrained_cfg": published.to_dict()}
        data = timm.data.resolve_data_config({}, pretrained_cfg=published.to_dict())
        preprocessing = Preprocessing.from_timm_config(config)
        np.testing.assert_allclose(preprocessing.mean, 255 * np.array(data["mean"]))
        assert preprocessing.interpolation == data["interpolation"]
        assert preprocessing.crop == data["crop_pct"]
        assert timm_input_shape(config) == (*data["input_size"][1:], 3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return peers.randomized(timm.create_model("resnet18", pretrained=False))


def logits(model, pixels):
    return keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(pixels), training=False))


@pytest.mark.parametrize(
    ("suffix", "wrapped", "legacy"),
    [
        (".pth", None, False),
        (".bin", "state_dict", False),
        (".pth", "model", True),
        (".bin", None, True),
    ],
)
def test_a_file_of_pytorch_loads(suffix, wrapped, legacy, network, tmp_path):
    content = network.state_dict()
    if wrapped is not None:
        content = {wrapped: content, "epoch": 90}
    file = tmp_path / f"model{suffix}"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    model = keras_resnet.ResNet18(weights=file, input_shape=(64, 64, 3), classifier_activation=None)
    pixels = peers.images(64, 64)
    with torch.no_grad():
        expected = network(peers.torch_input(pixels)).numpy()
    assert peers.difference(logits(model, pixels), expected) <= peers.TOLERANCE


class Harmful:
    """Unpickling it would touch a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_garbage_is_not_called_code_alone(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"no model at all" * 20)
    with pytest.raises(WeightsError, match="is damaged, or holds more than arrays"):
        keras_resnet.ResNet18(weights=tmp_path / "model.pth")


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_file_that_holds_code_is_refused_and_runs_nothing(by_torch, tmp_path):
    file, touched = tmp_path / "model.pth", tmp_path / "touched"
    content = {"conv1.weight": torch.zeros(1), "more": Harmful(touched)}
    if by_torch:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match="damaged, or holds more than arrays"):
        keras_resnet.ResNet18(weights=file)
    assert not touched.exists()


def test_a_truncated_file_of_pytorch_is_refused(network, tmp_path):
    file = tmp_path / "model.pth"
    torch.save(network.state_dict(), file)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="Not a PyTorch file"):
        keras_resnet.ResNet18(weights=file)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2)])
def test_a_file_of_pytorch_without_a_state_dict_is_refused(content, tmp_path):
    file = tmp_path / "model.pth"
    torch.save(content, file)
    with pytest.raises(WeightsError, match="must hold a state dict"):
        keras_resnet.ResNet18(weights=file)


def test_a_half_precision_file_loads(network, tmp_path):
    file = tmp_path / "model.pth"
    torch.save({k: v.half() if v.is_floating_point() else v
                for k, v in network.state_dict().items()}, file)  # fmt: skip
    model = keras_resnet.ResNet18(weights=file, input_shape=(64, 64, 3), classifier_activation=None)
    pixels = peers.images(64, 64)
    with torch.no_grad():
        expected = network(peers.torch_input(pixels)).numpy()
    assert 0 < peers.difference(logits(model, pixels), expected) <= 1e-2


def test_a_file_of_parameters_loads(network, tmp_path):
    file = tmp_path / "model.pth"
    torch.save(dict(network.named_parameters()) | dict(network.named_buffers()), file)
    assert keras_resnet.ResNet18(weights=file)

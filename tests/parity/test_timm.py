"""Every network that timm has too: the same function of its weights, loaded from its file.

On JAX, which compiles every operation anew for every shape, stages have two blocks and ResNet-50
alone is whole.
"""

import keras
import peers
import pytest
import safetensors.torch
import timm
import torch

import keras_resnet
from keras_resnet.weights import catalog

HEIGHT, WIDTH = 75, 97  # odd sizes: every padding and every rounding shows
BLOCKS = (2, 2, 2, 2)
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"

# All of timm's that are a row of our table, and a relative of each further kind.
NAMES = [name for name, (_, changes) in catalog.TIMM.items() if not changes] + [
    "resnet50_gn",
    "resnet50c",
    "resnet50s",
    "resnet26",
    "resnext50d_32x4d",
]
if not ON_TENSORFLOW:  # deeper ones of a kind would be the same again
    kinds = {
        catalog.from_timm(n).replace(name="", source="", blocks=BLOCKS): n for n in NAMES[::-1]
    }
    NAMES = list(kinds.values())[::-1]

ROWS = {name: row for name, (row, changes) in catalog.TIMM.items() if not changes}


def theirs(name, **options):
    torch.manual_seed(0)
    return peers.randomized(timm.create_model(name, pretrained=False, **options))


def values(network, pixels, levels):
    with torch.no_grad():
        x = peers.torch_input(pixels)
        last, features = network.forward_intermediates(x, indices=range(1, 5))
        logits = network.forward_head(last)
    maps = dict(zip(levels, map(peers.from_torch, features), strict=True))
    return maps | {"output": logits.numpy()}


def ours(architecture, network, tmp_path, **options):
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(network.state_dict(), file)
    return keras_resnet.create_model(
        architecture,
        weights=file,
        input_shape=(HEIGHT, WIDTH, 3),
        classifier_activation=None,
        **options,
    )


def both(name, tmp_path, **options):
    row = catalog.from_timm(name)
    if ON_TENSORFLOW or name == "resnet50":
        network = theirs(name, **options)
    else:
        row = row.replace(name="small", blocks=BLOCKS)
        network = theirs(name, layers=BLOCKS, **options)
    model = ours(row, network, tmp_path, **options)
    pixels = peers.images(HEIGHT, WIDTH)
    return peers.outputs_of(model, pixels), values(network, pixels, model.architecture.levels)


@pytest.mark.parametrize("name", [peers.sized(name, ROWS.get(name)) for name in NAMES])
def test_logits_and_features_are_those_of_timm(name, tmp_path, assert_same):
    assert_same(*both(name, tmp_path))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50d", "resnetblur50"])
def test_dilated_networks_are_those_of_timm(name, output_stride, tmp_path, assert_same):
    assert_same(*both(name, tmp_path, output_stride=output_stride))

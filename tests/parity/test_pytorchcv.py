"""Networks that timm has not, beside pytorchcv's: CIFAR, wide, and pre-activation networks."""

import re

import peers
import pytest
import torch
from pytorchcv.models import (
    preresnet,
    preresnet_cifar,
    resnet,
    resnet_cifar,
    resnext_cifar,
    wrn_cifar,
)

import keras_resnet

RENAMES = [
    (r"features\.init_block\.(conv\.)?conv", "stem_conv"),
    (r"features\.init_block", "stem_conv"),
    (r"features\.init_block\.(conv\.)?bn", "stem_norm"),
    (r"features\.post_activ\.bn", "post_norm"),
    (r"(\d+)_(\d+)\.body\.conv(\d)\.conv", r"stage\1_block\2_conv\3"),
    (r"(\d+)_(\d+)\.identity_conv(\.conv)?", r"stage\1_block\2_shortcut_conv"),
    (r"(\d+)_(\d+)\.identity_conv\.bn", r"stage\1_block\2_shortcut_norm"),
    (r"output", "logits"),
]


def our_name(path, pre_activation):
    """Their blocks keep each normalization beside its convolution, on whichever side it stands."""
    place = re.match(r"features\.stage(\d+)\.unit(\d+)\.", path)
    if place:
        path = f"{int(place[1]) + 1}_{place[2]}.{path[place.end() :]}"
    norm = re.fullmatch(r"(\d+)_(\d+)\.body\.conv(\d)\.bn", path)
    if norm:
        prefix, number = f"stage{norm[1]}_block{norm[2]}_", int(norm[3])
        if not pre_activation:
            return f"{prefix}norm{number}"
        return f"{prefix}pre_norm" if number == 1 else f"{prefix}norm{number - 1}"
    return next(m.expand(ours) for p, ours in RENAMES if (m := re.fullmatch(p, path)))


def transplanted(model, network):
    """Our model with their weights; each of theirs is used, each of ours is set."""
    pre_activation = model.architecture.pre_activation
    theirs = {}
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            axes = (2, 3, 1, 0) if module.weight.ndim == 4 else (1, 0)
            arrays = [module.weight.permute(axes)]
            arrays += [] if module.bias is None else [module.bias]
        elif isinstance(module, torch.nn.BatchNorm2d):
            arrays = [module.weight, module.bias, module.running_mean, module.running_var]
        else:
            continue
        theirs[our_name(path, pre_activation)] = [a.detach().numpy() for a in arrays]
    if pre_activation and model.architecture.stem_norm and "stem_norm" not in theirs:
        # Theirs normalizes the stem at the entrance of the first block, which projects.
        theirs["stem_norm"] = theirs.pop("stage2_block1_pre_norm")
    ours = {layer.name: layer for layer in model.layers if layer.weights}
    assert set(ours) == set(theirs)
    for name, layer in ours.items():
        layer.set_weights(theirs[name])
    return model


def features_of(network, pixels):
    """Their logits and their stages' outputs, under our names."""
    found = {}
    for number, stage in enumerate(
        (m for n, m in network.features.named_children() if n.startswith("stage")), start=2
    ):
        stage.register_forward_hook(
            lambda _, __, output, level=f"C{number}": found.update({level: output})
        )
    with torch.no_grad():
        found["output"] = network(peers.torch_input(pixels))
    # Their pre-activation units hand on a pair: the sum, and what the next one would make of it.
    return {k: peers.from_torch(v[0] if isinstance(v, tuple) else v) for k, v in found.items()}


def both(architecture, network, size):
    network = peers.randomized(network)
    model = keras_resnet.create_model(
        architecture, input_shape=(*size, 3), classifier_activation=None
    )
    transplanted(model, network)
    pixels = peers.images(*size)
    return peers.outputs_of(model, pixels), features_of(network, pixels)


def row(name, **changes):
    architecture = keras_resnet.get_architecture(name)
    return architecture.replace(**changes) if changes else architecture


CIFAR = {
    "resnet20 with projections": (
        row("resnet20", shortcut="B"),
        lambda: resnet_cifar.get_resnet_cifar(num_classes=10, blocks=20, bottleneck=False),
    ),
    "resnet56 with projections": (
        row("resnet56", shortcut="B"),
        lambda: resnet_cifar.get_resnet_cifar(num_classes=10, blocks=56, bottleneck=False),
    ),
    # Theirs do not normalize the stem in front of an identity, and project.
    "resnet110_preact with projections": (
        row("resnet110_preact", shortcut="B", stem_norm=False),
        lambda: preresnet_cifar.get_preresnet_cifar(num_classes=10, blocks=110, bottleneck=False),
    ),
    # The authors' code strides on the first 1x1, pytorchcv's on the 3x3.
    "resnet164_preact with its stride on the 3x3": (
        row("resnet164_preact", stride_on="3x3"),
        lambda: preresnet_cifar.get_preresnet_cifar(num_classes=10, blocks=164, bottleneck=True),
    ),
    **{
        f"wrn_{depth}_{factor}": (
            row(f"wrn_{depth}_{factor}"),
            lambda depth=depth, factor=factor: wrn_cifar.get_wrn_cifar(
                num_classes=10, blocks=depth, width_factor=factor
            ),
        )
        for depth, factor in ((16, 8), (28, 10), (40, 2))
    },
    "resnext29_8x64d": (
        row("resnext29_8x64d"),
        lambda: resnext_cifar.get_resnext_cifar(
            num_classes=10, blocks=29, cardinality=8, bottleneck_width=64
        ),
    ),
}


@pytest.mark.parametrize("name", CIFAR)
def test_networks_for_cifar_are_those_of_pytorchcv(name, assert_same):
    architecture, network = CIFAR[name]
    # Their head pools 8 x 8 pixels, so the size is the one that they are made for.
    assert_same(*both(architecture, network(), (32, 32)))


@pytest.mark.parametrize("depth", peers.by_depth("resnet{}", 50, 101, 152))
def test_v1_is_that_of_pytorchcv(depth, assert_same):
    network = resnet.get_resnet(blocks=depth, conv1_stride=True)
    network.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    assert_same(*both(row(f"resnet{depth}"), network, (75, 97)))


@pytest.mark.parametrize("depth", peers.by_depth("resnet{}_preact", 18, 34, 50, 101, 152, 200))
def test_pre_activation_is_that_of_pytorchcv(depth, assert_same):
    network = preresnet.get_preresnet(blocks=depth, conv1_stride=False)
    network.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    # Theirs normalizes twice, behind the stem and in front of the first block. The paper does it
    # once, "right after conv1", so the second is made to do nothing.
    first = network.features.stage1.unit1.body.conv1
    first.bn = torch.nn.Identity()
    assert_same(*both(row(f"resnet{depth}_preact"), network, (75, 97)))

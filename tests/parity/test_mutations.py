"""The comparisons can fail: one changed attribute, or one changed thought in the code, shows.

A mutant gets the weights of the right network, layer by layer, as if it had loaded the file.
"""

import sys
import types
from pathlib import Path

import keras
import peers
import pytest
import safetensors.torch
import timm
import torch

import keras_resnet
from keras_resnet import blocks, models
from keras_resnet.weights import catalog

SIZE = (75, 97, 3)
BLOCKS = (2, 2, 2, 2)
CLEARLY = 10 * peers.TOLERANCE


def build(architecture, **options):
    return keras_resnet.create_model(
        architecture, input_shape=SIZE, classifier_activation=None, **options
    )


def error_of(model, logits):
    pixels = keras.ops.convert_to_tensor(peers.images(*SIZE))
    found = keras.ops.convert_to_numpy(model(pixels, training=False))
    return peers.difference(found, logits)


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """By name: our network of few blocks with the weights of timm's, and timm's logits."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            network = timm.create_model(name, pretrained=False, layers=BLOCKS)
            peers.randomized(network)
            file = tmp_path_factory.mktemp(name) / "model.safetensors"
            safetensors.torch.save_file(network.state_dict(), file)
            with torch.no_grad():
                logits = network(peers.torch_input(peers.images(*SIZE))).numpy()
            row = catalog.from_timm(name).replace(name="small", blocks=BLOCKS)
            made[name] = build(row, weights=file), logits
            assert error_of(*made[name]) <= peers.TOLERANCE
        return made[name]

    return make


def error_of_mutant(model, logits, architecture):
    mutant = build(architecture)
    for layer in mutant.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return error_of(mutant, logits)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("resnet50", {"stride_on": "1x1"}),
        ("resnet50", {"padding": "same"}),
        ("resnet50", {"norm_epsilon": 1e-2}),
        ("resnet50", {"antialias": True}),
        ("resnet18", {"padding": "same"}),
        ("resnet50d", {"projection": "conv"}),
        ("resnetblur50", {"antialias": False}),
        ("resnet18", {"shortcut": "A"}),
    ],
    ids=str,
)
def test_a_changed_attribute_shows(name, change, right):
    model, logits = right(name)
    assert error_of_mutant(model, logits, model.architecture.replace(**change)) > CLEARLY


ADD = "y = keras.layers.Add(dtype=toolkit.dtype, name=_join(name, last))([x, y])\n"
LAST_NORM = 'return toolkit.norm(x, zero_scale=zero_start, name=_join(name, f"norm{number}"))\n'
MUTATIONS = {
    "the branch is activated in front of the sum": (
        "resnet18",
        [("    y = branch(x)\n", "    y = toolkit.act(branch(x))\n")],
    ),
    "the branch is normalized behind the sum": (
        "resnet18",
        [
            (LAST_NORM, "return x\n"),
            (ADD, ADD + '        y = toolkit.norm(y, name=_join(name, "norm2"))\n'),
        ],
    ),
    "the stride is on the other convolution": (
        "resnet50",
        [('if stride_on == "1x1" else', 'if stride_on == "3x3" else')],
    ),
    "the shortcut skips its normalization": (
        "resnet50",
        [
            (
                "            if norm_on_projection:\n",
                "            if norm_on_projection and False:\n",
            )
        ],
    ),
    "an average pooled projection strides by its convolution": (
        "resnet50d",
        [('if projection == "avg" and (stride > 1 or subsamples)', 'if projection == "no"')],
    ),
    "the excitation sums instead of scaling": (
        "seresnet18",
        [("keras.layers.Multiply(", "keras.layers.Add(")],
    ),
    "a rectifier leaks": (
        "resnet18",
        [("keras.layers.ReLU(dtype", "keras.layers.ReLU(negative_slope=0.01, dtype")],
    ),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_changed_line_shows(what, right, monkeypatch):
    name, changes = MUTATIONS[what]
    model, logits = right(name)
    source = Path(blocks.__file__).read_text(encoding="utf-8")
    for line, mutation in changes:
        assert line in source, "the line to change is gone; change another one"
        source = source.replace(line, mutation)
    mutant = types.ModuleType("mutant_blocks")
    monkeypatch.setitem(sys.modules, "mutant_blocks", mutant)
    exec(compile(source, "mutant_blocks", "exec"), mutant.__dict__)
    monkeypatch.setattr(models, "blocks", mutant)
    assert error_of_mutant(model, logits, model.architecture) > CLEARLY

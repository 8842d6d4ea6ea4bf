"""Other people's names for our layers, and what a file's arrays say of their network.

A layout is a table from a file's keys to our layer names. Everything after that - reading the
architecture off the shapes, comparing it with the model's, moving biases into statistics - is the
same for every layout.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_resnet.architecture import ARCHITECTURES, Architecture, Shortcut
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.weights.reading import Arrays, WeightsError

TORCH_NAME = "torchvision, timm or PyTorch for CIFAR"
KERAS_NAME = "keras.applications"

Layers = dict[str, dict[str, np.ndarray]]  # our layer name to Keras's weight name to values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a file of weights, under our names.

    Attributes:
        layout: whose names the file uses.
        layers: the arrays, by layer and weight, e.g. `["stem_conv"]["kernel"]`, shaped as Keras
            wants them.
        traits: what the file says of its architecture: attributes of an `Architecture`.
        epsilon: the addition to the variance of batch normalization that the weights are for.
        preprocessing: what the network expects of its input, or None if not known.
        class_names: names in the order of the outputs, or None if not known.
        architecture: the very one that the file is for, if it says so.
        candidates: registry names of the architectures that the file may be for.
    """

    layout: str
    layers: Layers
    traits: dict[str, Any]
    epsilon: float
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    architecture: Architecture | None = None
    candidates: tuple[str, ...] = ()

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier, or None if the file has none."""
        kernel = self.layers.get("logits", {}).get("kernel")
        return None if kernel is None or kernel.ndim != 2 else kernel.shape[-1]


def recognize(arrays: Arrays) -> Checkpoint:
    """Tells the layout from the keys and renames them.

    Raises:
        WeightsError: if no layout fits, or if there are keys that it does not know.
    """
    stripped = _unique((re.sub(r"^(module\.)+", "", key), value) for key, value in arrays.items())
    if "layer1.0.conv1.weight" in stripped:
        return _from_torch(stripped)
    if "conv1_conv/kernel" in stripped:
        return _from_keras(stripped)
    raise WeightsError(
        "The weights must be named as keras.applications, torchvision, timm or the common PyTorch "
        f"networks for CIFAR name a ResNet's. Received: {len(arrays)} arrays, {sorted(arrays)[:4]}"
    )


def our_layers(arrays: Arrays) -> Layers:
    """Of a file whose arrays are called `layer/weight` by our own names."""
    layers: Layers = {}
    for key, value in arrays.items():
        layer, _, weight = key.rpartition("/")
        _put(layers, layer, weight, value)
    return layers


Renames = list[tuple[str, str]]  # a pattern of theirs, and our name as a template


def _renamed(table: Renames, name: str) -> str | None:
    """Our name of somebody's layer, or None."""
    return next((m.expand(ours) for p, ours in table if (m := re.fullmatch(p, name))), None)


# Applied to torch's names after `layer1.0.` has become `stage2_block1.`.
_TORCH: Renames = [
    (r"maxpool\.0", "stem_pool_conv"),
    (r"maxpool\.1", "stem_pool_norm"),
    (r"(stage\d+_block\d+)\.conv(\d)", r"\1_conv\2"),
    (r"(stage\d+_block\d+)\.bn(\d)", r"\1_norm\2"),
    (r"(stage\d+_block\d+)\.se\.fc(\d)", r"\1_se_conv\2"),
    (r"(stage\d+_block\d+)\.se\.conv", r"\1_eca_conv"),
    (r"fc|linear", "logits"),
]
_PLAIN_STEM: Renames = [("conv1", "stem_conv"), ("bn1", "stem_norm")]
_DEEP_STEM: Renames = [  # conv1 holds convolution, normalization and rectifier in turns
    (r"conv1\.0", "stem_conv1"),
    (r"conv1\.1", "stem_norm1"),
    (r"conv1\.3", "stem_conv2"),
    (r"conv1\.4", "stem_norm2"),
    (r"conv1\.6", "stem_conv3"),
    (r"bn1", "stem_norm3"),
]
# A projection's members are counted; behind an average pooling the convolution is the second.
_PROJECTION = r"(stage\d+_block\d+)\.(?:downsample|shortcut)\."
_PROJECTIONS: dict[str, Renames] = {
    "conv": [(_PROJECTION + "0", r"\1_shortcut_conv"), (_PROJECTION + "1", r"\1_shortcut_norm")],
    "avg": [(_PROJECTION + "1", r"\1_shortcut_conv"), (_PROJECTION + "2", r"\1_shortcut_norm")],
}


def _unique(items: Iterable[tuple[str, np.ndarray]]) -> Arrays:
    """A dictionary, unless two arrays of a file have one name here."""
    arrays: Arrays = {}
    for key, value in items:
        if key in arrays:
            raise WeightsError(f"The file has more than one array for the same place: {key}")
        arrays[key] = value
    return arrays


def _put(layers: Layers, layer: str, weight: str, value: np.ndarray) -> None:
    if weight in layers.setdefault(layer, {}):
        raise WeightsError(
            f"The file has more than one array for the same place: {layer}'s {weight}"
        )
    layers[layer][weight] = value


def _torch_place(key: str) -> str:
    """`layer1.0.conv1.weight` to `stage2_block1.conv1.weight`."""
    match = re.match(r"layer([1-9])\.(0|[1-9]\d{0,2})\.", key)
    if match is None:
        return key
    return f"stage{int(match[1]) + 1}_block{int(match[2]) + 1}.{key[match.end() :]}"


def _from_torch(arrays: Arrays) -> Checkpoint:
    """torchvision, timm, and the usual CIFAR networks: v1.5, epsilon 1e-5, kernels OIHW."""
    arrays = _unique((_torch_place(key), value) for key, value in arrays.items())
    pooled = any(
        value.ndim == 4 and re.fullmatch(_PROJECTION + r"1\.weight", key)
        for key, value in arrays.items()
    )
    projection = "avg" if pooled else "conv"
    stem = _DEEP_STEM if "conv1.0.weight" in arrays else _PLAIN_STEM
    table = stem + _TORCH + _PROJECTIONS[projection]
    layers: Layers = {}
    for key, value in arrays.items():
        path, _, weight = key.rpartition(".")
        if weight == "num_batches_tracked":
            continue
        layer = _renamed(table, path)
        if layer is None:
            raise WeightsError(_unknown(TORCH_NAME, key))
        _put(layers, layer, *_torch_weight(layer, weight, value, key))
    traits = _traits(layers)
    if traits["block"] == "bottleneck":
        traits["stride_on"] = "3x3"
    if traits.get("shortcut") is not Shortcut.A:
        traits["projection"] = projection
    crop = 1.0 if traits["stem"] == "cifar" else 0.875
    return Checkpoint(
        layout=TORCH_NAME,
        layers=layers,
        traits=traits,
        epsilon=1e-5,
        preprocessing=Preprocessing.named("imagenet", crop=crop),
    )


def _torch_weight(layer: str, weight: str, value: np.ndarray, key: str) -> tuple[str, np.ndarray]:
    """One array under Keras's name and in Keras's shape."""
    if weight in ("running_mean", "running_var"):
        return "moving_mean" if weight == "running_mean" else "moving_variance", value
    if weight == "bias":
        return "beta" if "norm" in layer else "bias", value
    if weight != "weight":
        raise WeightsError(_unknown(TORCH_NAME, key))
    if "norm" in layer:
        return "gamma", value
    if layer == "logits" and value.ndim == 4 and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]
    axes = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}.get(value.ndim)
    if axes is None:
        raise WeightsError(f"A kernel must have 2 to 4 axes. Received: {key} of {value.shape}")
    return "kernel", value.transpose(axes)


_KERAS: Renames = [
    (r"conv1_conv", "stem_conv"),
    (r"conv1_bn", "stem_norm"),
    (r"conv(\d_block\d+)_0_conv", r"stage\1_shortcut_conv"),
    (r"conv(\d_block\d+)_0_bn", r"stage\1_shortcut_norm"),
    (r"conv(\d_block\d+)_(\d)_conv", r"stage\1_conv\2"),
    (r"conv(\d_block\d+)_(\d)_bn", r"stage\1_norm\2"),
    (r"conv(\d_block\d+)_preact_bn", r"stage\1_pre_norm"),
    (r"post_bn", "post_norm"),
    (r"predictions|probs|fc1000", "logits"),
]


def _from_keras(arrays: Arrays) -> Checkpoint:
    """keras.applications: v1 with biases everywhere, or its V2; epsilon 1.001e-5."""
    layers: Layers = {}
    for key, value in arrays.items():
        path, _, weight = key.rpartition("/")
        layer = _renamed(_KERAS, path)
        if layer is None:
            raise WeightsError(_unknown(KERAS_NAME, key))
        _put(layers, layer, weight, value)
    traits = _traits(layers)
    is_v2 = traits["pre_activation"]
    traits |= {
        "projection": "conv",
        "stride_on": "3x3" if is_v2 else "1x1",
        "stride_at": "last" if is_v2 else "first",
    }
    return Checkpoint(
        layout=KERAS_NAME,
        layers=layers,
        traits=traits,
        epsilon=1.001e-5,
        preprocessing=Preprocessing.named("tf" if is_v2 else "caffe", crop=0.875),
    )


def _unknown(layout: str, key: str) -> str:
    return (
        f"The file looks like a ResNet of {layout}, but a part of it belongs to no network of this "
        f"package. Received: {key!r}"
    )


def _traits(layers: Layers) -> dict[str, Any]:
    """Reads off names and shapes what they tell of the architecture."""
    try:
        return _stem_traits(layers) | _block_traits(layers)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(
            f"The file looks like a ResNet's, but parts of it are missing ({error!r})"
        ) from error


def _stem_traits(layers: Layers) -> dict[str, Any]:
    is_deep = "stem_conv1" in layers
    kernel = layers["stem_conv3" if is_deep else "stem_conv"]["kernel"]
    plain = "cifar" if kernel.shape[0] == 3 else "imagenet"
    return {
        "stem": "deep" if is_deep else plain,
        "stem_channels": kernel.shape[-1],
        "stem_norm": is_deep or "stem_norm" in layers,
        "stem_pool": "conv" if "stem_pool_conv" in layers else "max",
        "pre_activation": "post_norm" in layers,
    }


def _block_traits(layers: Layers) -> dict[str, Any]:
    places = {
        (int(m[1]), int(m[2])) for name in layers if (m := re.match(r"stage(\d+)_block(\d+)", name))
    }
    stages = sorted({stage for stage, _ in places})
    blocks = tuple(sum(stage == n for n, _ in places) for stage in stages)
    if stages != list(range(2, 2 + len(stages))):
        raise ValueError(f"stages {stages}")
    first = "stage2_block1_"
    is_bottleneck = f"{first}conv3" in layers
    last = "conv3" if is_bottleneck else "conv2"
    outputs = [
        layers[f"stage{n + 2}_block1_{last}"]["kernel"].shape[-1] for n in range(len(blocks))
    ]
    traits: dict[str, Any] = {
        "block": "bottleneck" if is_bottleneck else "basic",
        "blocks": blocks,
        "widths": tuple(n // 4 if is_bottleneck else n for n in outputs),
        "attention": "none",
        "norm": "batch" if "moving_mean" in layers[f"{first}norm1"] else "group",
    }
    if is_bottleneck:
        _, _, per_group, inner = layers[f"{first}conv2"]["kernel"].shape
        traits["cardinality"] = inner // per_group
        traits["base_width"] = per_group * 64 // traits["widths"][0]
    if f"{first}se_conv1" in layers:
        inner, outer = layers[f"stage{len(blocks) + 1}_block1_se_conv1"]["kernel"].shape[:1:-1]
        traits |= {"attention": "se", "se_ratio": inner / outer}
    elif f"{first}eca_conv" in layers:
        traits["attention"] = "eca"
    projections = {name for name in layers if name.endswith("shortcut_conv")}
    if not projections:
        traits["shortcut"] = Shortcut.A
    elif max(blocks) > 1:  # else every block is the first of its stage, and B is C
        elsewhere = any("_block1_" not in name for name in projections)
        traits["shortcut"] = Shortcut.C if elsewhere else Shortcut.B
    return traits


def differences(traits: dict[str, Any], architecture: Architecture) -> dict[str, tuple[Any, Any]]:
    """Attributes on which a file and an architecture disagree: `{name: (file's, ours)}`."""
    ours = {name: getattr(architecture, name) for name in traits}
    if "stem_channels" in ours:
        ours["stem_channels"] = architecture.stem_channels or architecture.widths[0]
    return {name: (traits[name], ours[name]) for name in traits if traits[name] != ours[name]}


def check_architecture(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Raises `WeightsError`, naming the variant that the file is for, unless it is this one."""
    found = differences(checkpoint.traits, architecture)
    if not found:
        return
    candidates = checkpoint.candidates or [
        name for name, row in ARCHITECTURES.items() if not differences(checkpoint.traits, row)
    ]
    what_for = " or ".join(candidates) or "a network that is not in the table"
    name, (theirs, ours) = next(iter(found.items()))
    others = f", and {len(found) - 1} more differences" if len(found) > 1 else ""
    raise WeightsError(
        f"The file ({checkpoint.layout}) is for {what_for}, not for {architecture.name}. "
        f"Received: {name}={_plain(theirs)!r} where the model has {_plain(ours)!r}{others}"
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Shortcut) else value


def is_our_name(layer: str) -> bool:
    """Whether a layer's name is one that the builders give."""
    return re.match(r"stem_|stage\d+_block\d+_|post_norm$|logits$", layer) is not None


# What an architecture may differ in without needing other weights.
_INDIFFERENT = {
    "name",
    "source",
    "norm_momentum",
    "norm_epsilon",
    "zero_init_residual",
    "block_dropout",
    "stochastic_depth",
    "dropout",
    "output_stride",
    "classes",
    "input_size",
}


def architecture_traits(architecture: Architecture) -> dict[str, Any]:
    """All that must be the same for weights to fit and to mean the same."""
    fields = {f.name for f in dataclasses.fields(architecture)} - _INDIFFERENT
    values = {name: getattr(architecture, name) for name in sorted(fields)}
    return values | {"stem_channels": architecture.stem_channels or architecture.widths[0]}

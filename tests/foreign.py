"""Files as other people write them, made from models."""

import h5py
import numpy as np

TORCH_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def torch_name(layer):
    """torchvision's name of our layer, for the networks that are used here."""
    if layer.startswith("stem_"):
        return {"conv": "conv1", "norm": "bn1"}[layer.removeprefix("stem_")]
    if layer == "logits":
        return "fc"
    stage, block, *rest = layer.split("_")
    place = f"layer{int(stage[5:]) - 1}.{int(block[5:]) - 1}"
    part = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}.get("_".join(rest))
    return f"{place}.{part or rest[0].replace('norm', 'bn')}"


def state_dict(model):
    """What torchvision would save of a model of ours; for networks of basic blocks and v1.5."""
    import keras

    arrays = {}
    for layer in model.layers:
        for weight in layer.weights:
            value = keras.ops.convert_to_numpy(weight)
            if weight.name == "kernel":
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            key = f"{torch_name(layer.name)}.{TORCH_WEIGHTS[weight.name]}"
            arrays[key] = np.ascontiguousarray(value)
            if weight.name == "moving_mean":
                count = np.array(3, np.int64)
                arrays[key.replace("running_mean", "num_batches_tracked")] = count
    return arrays


def published_form(network, directory):
    """A file like those of keras.applications: a network's weights alone, at the root."""
    network.save(directory / "whole.h5")
    file = directory / "published.h5"
    with h5py.File(directory / "whole.h5") as whole, h5py.File(file, "w") as alone:
        weights = whole["model_weights"]
        for name, value in weights.attrs.items():
            alone.attrs[name] = value
        for name in weights:
            whole.copy(weights[name], alone, name)
    return file

"""Arrays out of weight files, by name; nothing in a file is ever executed."""

from __future__ import annotations

import os
import pickle  # for the name of an error alone
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
H5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".safetensors", ".keras", *TORCH_SUFFIXES, *H5_SUFFIXES)

# Deflated weights are not much smaller than they are; a file that claims more is made to harm.
_LARGEST_EXPANSION = 100


class WeightsError(ValueError):
    """A file of weights that cannot be read, or that is for another network."""


def read_arrays(path: Path) -> Arrays:
    """Every array of a `.safetensors`, PyTorch or keras.applications `.h5` file.

    The names are the file's own; for an `.h5` file `layer/weight`, e.g. `conv1_conv/kernel`.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is of another kind, or damaged.
        ModuleNotFoundError: for a PyTorch file where torch is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No such file of weights: {os.fspath(path)}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    if path.suffix in H5_SUFFIXES:
        return _read_h5(path)
    raise WeightsError(
        "A file of weights must be .safetensors, .pth, .h5, .weights.h5 or .keras. "
        f"Received: {os.fspath(path)}"
    )


def _read_safetensors(path: Path) -> Arrays:
    import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16
    import safetensors
    import safetensors.numpy

    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
        raise WeightsError(f"Not a safetensors file: {os.fspath(path)} ({error})") from error
    for key, value in arrays.items():
        if value.dtype.kind in "fV":  # V: bfloat16 and its like
            arrays[key] = value.astype(np.float32, copy=False)
    return arrays


def _read_torch(path: Path) -> Arrays:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Reading {path.name} needs PyTorch's own loader: pip install torch, or convert the "
            "file to .safetensors",
            name="torch",
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"The file is damaged, or holds more than arrays, which is not loaded: {path}. A "
            ".safetensors file can hold nothing else"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"Not a PyTorch file: {os.fspath(path)} ({error})") from error
    for key in ("state_dict_ema", "state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(map(torch.is_tensor, content.values())):
        raise WeightsError(
            "A PyTorch file must hold a state dict, or one under `state_dict`, `model` or `net`. "
            f"Received: {os.fspath(path)} with a {type(content).__name__}"
        )
    return {
        str(key): (value.float() if value.is_floating_point() else value).detach().numpy()
        for key, value in content.items()
        if torch.is_tensor(value)
    }


def _read_h5(path: Path) -> Arrays:
    import h5py

    arrays: Arrays = {}
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise WeightsError(
                    "An .h5 file must be of keras.applications' kind, with `layer_names`; files "
                    "that Keras 3 writes are called .weights.h5. "
                    f"Received: {os.fspath(path)} with {sorted(file)[:5]}"
                )
            for layer in map(_text, root.attrs["layer_names"]):
                for name in map(_text, root[layer].attrs["weight_names"]):
                    key = f"{layer}/{name.split('/')[-1].split(':')[0]}"
                    if key in arrays:
                        raise WeightsError(f"The file has two arrays named {key}: {path}")
                    arrays[key] = _read_dataset(root, f"{layer}/{name}", path)
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"Not a readable HDF5 file: {os.fspath(path)} ({error})") from error
    return arrays


def _read_dataset(root: Any, name: str, path: Path) -> np.ndarray:
    """An array that lies in this very file, and is no larger than the file can hold."""
    import h5py

    dataset = root
    for part in name.split("/"):
        if not isinstance(dataset.get(part, getlink=True), h5py.HardLink):
            raise WeightsError(f"The file refers to another one, or to nothing: {path} at {name}")
        dataset = dataset[part]
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise WeightsError(f"The file holds no array of its own at {name}: {path}")
    if dataset.nbytes > _LARGEST_EXPANSION * path.stat().st_size:
        raise WeightsError(f"The file is too small for the array at {name}: {path}")
    return np.asarray(dataset)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

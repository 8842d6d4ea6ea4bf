"""Weights into models: all of a file, or nothing of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture import Architecture, get_architecture
from keras_resnet.models import RECORD, ResidualNetwork, create_model, load_model, stage_of
from keras_resnet.preprocessing import Preprocessing, timm_input_shape
from keras_resnet.weights import layouts, sources
from keras_resnet.weights.layouts import Checkpoint, Layers
from keras_resnet.weights.reading import Arrays, WeightsError, read_arrays

Source = str | os.PathLike[str]


def load_weights(
    model: keras.Model,
    source: Source,
    *,
    skip_head: bool | None = False,
    preprocessing: Preprocessing | None = None,
    progress: bool = True,
) -> None:
    """Loads a file in any layout that is known; the model then remembers its preprocessing.

    The layout is recognized from the names in the file, and the variant is checked: the file is
    loaded whole or, if anything does not fit, not at all. Biases in front of a normalization and
    another epsilon move into its statistics, exactly. A model without a classifier, or one that
    ends at an earlier stage, takes its part of the file. The optimizer is left alone.

    Args:
        model: a model of this package.
        source: a path: `.safetensors`, `.pth` (needs torch, which reads it without running code),
            keras.applications' `.h5`, our own `.keras`, `.weights.h5` and `.safetensors`, or a
            directory with `model.safetensors` and a `config.json` as timm writes it; or what
            `from_pretrained` takes.
        skip_head: leave the classifier as it is, whatever the file holds of it; None: unless both
            name the same classes, in the same order.
        preprocessing: what to remember; None takes the file's.
        progress: whether a download shows its progress.

    Raises:
        WeightsError: a `ValueError`: if the file is damaged, of no known layout, or for another
            network; the message says which.
        FileNotFoundError: if there is no such file.
    """
    architecture = _architecture_of(model)
    has_head = any(layer.name == "logits" for layer in model.layers)
    found = sources.locate(
        source, network=architecture.name, include_top=has_head, progress=progress
    )
    checkpoint = _read(found, model)
    if skip_head is None:
        skip_head = checkpoint.class_names is None or checkpoint.class_names != model.class_names
    _assign(model, architecture, checkpoint, skip_head)
    preprocessing = preprocessing or checkpoint.preprocessing
    if preprocessing is not None:
        model.preprocessing = preprocessing
    if has_head and not skip_head and checkpoint.class_names is not None:
        model.class_names = checkpoint.class_names


def from_pretrained(
    name: Source,
    *,
    include_top: bool = True,
    classes: int | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    revision: str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResidualNetwork:
    """Builds the network that public weights are for, and loads them.

    Args:
        name: `"cifar10/resnet20"`: the file that comes with this package, of a registry name;
            `"imagenet/resnet50"`: keras.applications' file of one;
            `"timm/resnet50.a1_in1k"`: a repository of the Hugging Face hub in timm's form;
            a local directory of that form (`config.json` and `model.safetensors`); or a file of
            our own, which says what it is of.
        include_top: whether to keep the classifier.
        classes: number of classes; another one than the file's starts a new classifier, and so do
            other `class_names`.
        input_shape: `(height, width, channels)`; None takes the configuration's.
        revision: branch, tag or commit of the hub's repository.
        progress: whether a download shows its progress.
        **options: the builder's other arguments, e.g. `output_stride=16`.

    Returns:
        A `ResidualNetwork` that carries the weights' preprocessing and, if known, class names.

    Raises:
        WeightsError: if the weights are of no network of this package, or damaged.
        DownloadError: an `OSError`: if they cannot be fetched, and are not in the cache.
    """
    text = os.fspath(name)
    found = sources.locate(text, include_top=include_top, revision=revision, progress=progress)
    checkpoint = _read(found, None)
    architecture = checkpoint.architecture
    if found.network is not None:
        architecture = get_architecture(found.network)
    if architecture is None:
        raise WeightsError(
            "To build a network from a file of weights alone, say which: "
            "keras_resnet.create_model(name, weights=file); a .keras file opens with "
            f"keras_resnet.load_model. Received: {text!r}, without a config.json that names its "
            "architecture"
        )
    names = options.get("class_names")
    fresh_head = (classes is not None and classes != checkpoint.classes) or (
        names is not None
        and checkpoint.class_names is not None
        and tuple(names) != tuple(checkpoint.class_names)
    )
    if include_top and checkpoint.classes is None and classes is None:
        raise WeightsError(
            "The weights have no classifier: give `include_top=False`, or `classes` to start one. "
            f"Received: {text!r}"
        )
    if input_shape is None and found.config is not None:
        height, width, channels = timm_input_shape(found.config)
        input_shape = (height, width, channels) if include_top else (None, None, channels)
    keeps_names = include_top and not fresh_head
    settings = {
        "preprocessing": checkpoint.preprocessing,
        "class_names": checkpoint.class_names if keeps_names else None,
        **options,
    }
    model = create_model(
        architecture,
        include_top=include_top,
        classes=classes or checkpoint.classes or architecture.classes,
        input_shape=input_shape,
        **settings,
    )
    _assign(model, _architecture_of(model), checkpoint, skip_head=fresh_head)
    return model


def _architecture_of(model: keras.Model) -> Architecture:
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, Architecture):
        raise WeightsError(
            "Weights can be loaded into the models that keras_resnet builds. "
            f"Received: a {type(model).__name__} named {getattr(model, 'name', None)!r}"
        )
    return architecture


# What a file holds.


def _read(found: sources.Found, model: keras.Model | None) -> Checkpoint:
    """The content of a file under our names; `model` is the one that asks, if there is one."""
    with _one_error(found.path):
        if found.path.name.endswith(".weights.h5"):
            return _read_own_weights(found.path, model)
        if found.path.suffix == ".keras":
            return _read_keras_model(found)
        arrays = read_arrays(found.path)
        record = _record_in(found.path) if found.path.suffix == ".safetensors" else None
        if record is not None:
            return _checkpoint_of(layouts.our_layers(arrays), *_described_in(record))
        return _described(layouts.recognize(arrays), found)


@contextlib.contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Whatever a parser raises on a damaged or hostile file becomes a `WeightsError`."""
    try:
        yield
    except (WeightsError, FileNotFoundError, PermissionError, ModuleNotFoundError):
        raise
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise WeightsError(f"Not a file of weights that can be read: {path} ({error})") from error


def _described(checkpoint: Checkpoint, found: sources.Found) -> Checkpoint:
    """With what a `config.json`, or the place where the file was found, says besides."""
    names = found.class_names(checkpoint.classes)
    if names is not None:
        checkpoint = dataclasses.replace(checkpoint, class_names=tuple(names))
    architecture = found.architecture
    if architecture is None:
        return checkpoint
    layouts.check_architecture(checkpoint, architecture)
    return dataclasses.replace(
        checkpoint,
        preprocessing=found.preprocessing,
        # Two networks may have the same arrays, as one that blurs and one that does not.
        traits=layouts.architecture_traits(architecture),
        architecture=architecture,
        candidates=(architecture.name,),
    )


def _read_keras_model(found: sources.Found) -> Checkpoint:
    saved = load_model(found.path)
    if getattr(saved, "architecture", None) is not None:
        return _checkpoint_of(
            _layers_of(saved), saved.architecture, saved.preprocessing, saved.class_names
        )
    # Of keras.applications, perhaps.
    arrays: Arrays = {
        f"{layer}/{weight}": value
        for layer, weights in _layers_of(saved).items()
        for weight, value in weights.items()
    }
    return _described(layouts.recognize(arrays), found)


def _read_own_weights(path: Path, model: keras.Model | None) -> Checkpoint:
    """A `.weights.h5` file: Keras reads it by the order of the layers, so into a twin.

    The twin is of the model that asks or, if that does not fit, of what the file says it is of.
    """
    record = _record_in(path)
    twins = []
    if model is not None:
        twins.append(lambda: type(model).from_config(model.get_config()))
    if record is not None:
        twins.append(lambda: _twin_of(record))
    reasons = []
    for make_twin in twins:
        twin = make_twin()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Keras warns of parts that it does not find
                twin.load_weights(path)
        except (
            ValueError,
            KeyError,
            TypeError,
            OSError,
            EOFError,
            RuntimeError,
            UserWarning,
        ) as error:
            reasons.append(error)
            continue
        said = (twin.architecture, None, None) if record is None else _described_in(record)
        return _checkpoint_of(_layers_of(twin), *said)
    if not reasons:
        raise WeightsError(f"The file does not say what it is of: {path}")
    raise WeightsError(
        f"Not weights of {getattr(model, 'name', 'a network of this package')}: {path} "
        f"({reasons[0]})"
    ) from reasons[0]


def _record_in(path: Path) -> dict[str, Any] | None:
    """What a file of ours says of its network; None of somebody else's file."""
    if path.suffix == ".safetensors":
        import safetensors

        with safetensors.safe_open(path, "numpy") as opened:
            text = (opened.metadata() or {}).get(RECORD)
    else:
        import h5py

        with h5py.File(path, "r") as file:
            stored = file.get(RECORD)
            text = stored.asstr()[()] if isinstance(stored, h5py.Dataset) else None
    record: dict[str, Any] | None = None if text is None else json.loads(text)
    return record


def _described_in(
    record: dict[str, Any],
) -> tuple[Architecture, Preprocessing | None, tuple[str, ...] | None]:
    preprocessing, names = record["preprocessing"], record["class_names"]
    return (
        Architecture.from_dict(record["architecture"]),
        preprocessing and Preprocessing.from_dict(preprocessing),
        names and tuple(names),
    )


def _twin_of(record: dict[str, Any]) -> ResidualNetwork:
    classes = record["classes"]
    return create_model(
        Architecture.from_dict(record["architecture"]),
        include_top=classes is not None,
        classes=classes,
        input_shape=(32, 32, record["channels"]),
    )


def _checkpoint_of(
    layers: Layers,
    architecture: Architecture,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> Checkpoint:
    return Checkpoint(
        layout="keras_resnet",
        layers=layers,
        architecture=architecture,
        traits=layouts.architecture_traits(architecture),
        epsilon=architecture.norm_epsilon,
        preprocessing=preprocessing,
        class_names=class_names,
        candidates=(architecture.name,),
    )


def _layers_of(model: keras.Model) -> Layers:
    def value_of(variable: Any) -> np.ndarray:
        value = keras.ops.convert_to_numpy(variable)
        return value if value.dtype == np.float64 else value.astype(np.float32)

    return {
        layer.name: {variable.name: value_of(variable) for variable in layer.weights}
        for layer in model.layers
        if layer.weights
    }


# Into the model.


def _assign(
    model: keras.Model, architecture: Architecture, checkpoint: Checkpoint, skip_head: bool
) -> None:
    """Gives every variable its value, after all of them are known to fit."""
    layouts.check_architecture(checkpoint, architecture)
    # A layer in front of the network, on which it was built (`input_tensor`), is not of the file.
    ours = {x.name: x for x in model.layers if x.weights and layouts.is_our_name(x.name)}
    there = {stage_of(name) for name in ours} | {"stem"}
    if unknown := [
        name
        for name in sorted(set(checkpoint.layers) - set(ours))
        if name not in ("logits", "post_norm") and stage_of(name) in there
    ]:
        raise WeightsError(
            f"The file has layers that {architecture.name} has not. Received: {unknown[:4]}"
        )
    if skip_head:
        ours.pop("logits", None)
    theirs = _fitted(checkpoint, ours, architecture)
    values = [
        (variable, _value_of(variable, name, theirs.get(name, {}), ours, architecture.name))
        for name, layer in ours.items()
        for variable in layer.weights
    ]
    for variable, value in values:
        variable.assign(value)


def _norm_behind(name: str) -> str:
    """The normalization that follows a convolution, if one does."""
    return re.sub(r"conv(\d*)$", r"norm\1", name)


def _fitted(checkpoint: Checkpoint, ours: dict[str, Any], architecture: Architecture) -> Layers:
    """The file's weights, with what the model has no place for moved into its statistics.

    Batch normalization computes (x - mean) / sqrt(variance + epsilon): a bias in front of it is the
    same as a mean that is smaller by it, another epsilon the same as another variance.
    """
    layers = {
        name: {weight: _checked(value, f"{name}'s {weight}") for weight, value in weights.items()}
        for name, weights in checkpoint.layers.items()
        if name in ours
    }
    for name, weights in layers.items():
        if "bias" in weights and all(v.name != "bias" for v in ours[name].weights):
            bias, norm = weights.pop("bias"), layers.get(_norm_behind(name), {})
            if "moving_mean" not in norm or norm["moving_mean"].shape != bias.shape:
                raise WeightsError(
                    f"The file has a bias of shape {bias.shape} in {name}, which "
                    f"{architecture.name} has no place for"
                )
            norm["moving_mean"] = norm["moving_mean"] - bias
    shift = checkpoint.epsilon - architecture.norm_epsilon
    if shift and architecture.norm == "group":
        raise WeightsError(
            f"The file is for a normalization epsilon of {checkpoint.epsilon}. "
            f"Received: norm_epsilon={architecture.norm_epsilon}"
        )
    for weights in layers.values():
        if shift and "moving_variance" in weights:
            variance = weights["moving_variance"].astype(np.float64) + shift
            if (variance < 0).any():
                raise WeightsError(
                    f"The file is for a normalization epsilon of {checkpoint.epsilon}, and some of "
                    "its variances are too small to make up for the difference. "
                    f"Received: norm_epsilon={architecture.norm_epsilon}"
                )
            weights["moving_variance"] = variance
    return layers


def _checked(value: np.ndarray, what: str) -> np.ndarray:
    if not np.issubdtype(value.dtype, np.floating):
        raise WeightsError(
            f"Weights must be floating-point numbers. Received: {what}, {value.dtype}"
        )
    return value


def _value_of(
    variable: Any, layer: str, theirs: dict[str, np.ndarray], ours: dict[str, Any], network: str
) -> np.ndarray:
    advice = "; skip_head=True leaves the classifier as it is" if layer == "logits" else ""
    value = theirs.get(variable.name)
    is_normalized = _norm_behind(layer) in set(ours) - {layer}
    if value is None and variable.name == "bias" and theirs and is_normalized:
        return np.zeros(variable.shape)  # no bias is a bias of zero
    if value is None:
        raise WeightsError(f"The file lacks a part of {network}: {layer}'s {variable.name}{advice}")
    if value.shape != tuple(variable.shape):
        if layer == "logits" and value.ndim == 2:
            advice = f": it has {value.shape[-1]} classes, the model {variable.shape[-1]}{advice}"
        raise WeightsError(
            f"The file does not fit {network}{advice}. Received: {layer}'s {variable.name} of "
            f"shape {value.shape}, for one of shape {tuple(variable.shape)}"
        )
    return value

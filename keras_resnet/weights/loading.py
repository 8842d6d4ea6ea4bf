"""Weights into models: all of a file, or nothing of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture import Architecture, get_architecture
from keras_resnet.models import ARCHITECTURE_KEY, ResidualNetwork, create_model, load_model
from keras_resnet.preprocessing import Preprocessing, timm_input_shape
from keras_resnet.weights import catalog, layouts
from keras_resnet.weights.layouts import Checkpoint, Layers
from keras_resnet.weights.reading import Arrays, WeightsError, read_arrays

Source = str | os.PathLike[str]


def load_weights(
    model: keras.Model,
    source: Source,
    *,
    skip_head: bool = False,
    preprocessing: Preprocessing | None = None,
    progress: bool = True,
) -> None:
    """Loads a file in any layout that is known; the model then remembers its preprocessing.

    The layout is recognized from the names in the file, and the variant is checked: the file is
    loaded whole or, if anything does not fit, not at all. Biases in front of a normalization and
    another epsilon move into its statistics, exactly.

    Args:
        model: a model of this package.
        source: a path: `.safetensors`, `.pth` (needs torch, which reads it without running code),
            keras.applications' `.h5`, our own `.keras` and `.weights.h5`, or a directory with
            `model.safetensors` and a `config.json` as timm writes it; or what `from_pretrained`
            takes.
        skip_head: leave the classifier as it is, whatever the file holds of it.
        preprocessing: what to remember; None takes the file's.
        progress: whether a download shows its progress.

    Raises:
        WeightsError: a `ValueError`: if the file is damaged, of no known layout, or for another
            network; the message says which.
        FileNotFoundError: if there is no such file.
    """
    architecture = _architecture_of(model)
    path, config = _locate(source, architecture, progress)
    if path.name.endswith(".weights.h5"):
        _load_own(model, architecture, path, skip_head)
        model.preprocessing = model.preprocessing if preprocessing is None else preprocessing
        return
    checkpoint, class_names = _read(path, config)
    _assign(model, architecture, checkpoint, skip_head)
    model.preprocessing = checkpoint.preprocessing if preprocessing is None else preprocessing
    has_head = any(layer.name == "logits" for layer in model.layers)
    if has_head and not skip_head and class_names is not None:
        model.class_names = tuple(class_names)


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
        name: `"imagenet/resnet50"`: keras.applications' file of a registry name;
            `"timm/resnet50.a1_in1k"`: a repository of the Hugging Face hub in timm's form;
            or a local directory of that form (`config.json` and `model.safetensors`).
        include_top: whether to keep the classifier.
        classes: number of classes; another one than the file's starts a new classifier.
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
    row = get_architecture(text.removeprefix("imagenet/")) if _is_imagenet(text) else None
    path, config = _locate(text, row, progress, revision=revision, include_top=include_top)
    checkpoint, class_names = _read(path, config)
    architecture = row or _architecture_in(config, text)
    preprocessing = options.pop("preprocessing", None) or checkpoint.preprocessing
    fresh_head = classes is not None and classes != checkpoint.classes
    if input_shape is None and config is not None and include_top:
        input_shape = timm_input_shape(config)
    if fresh_head or not include_top:
        class_names = None
    model = create_model(
        architecture,
        include_top=include_top,
        classes=classes or checkpoint.classes or architecture.classes,
        input_shape=input_shape,
        preprocessing=preprocessing,
        class_names=options.pop("class_names", class_names),
        **options,
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


# Where a source's file is.


def _is_imagenet(source: str) -> bool:
    return source.startswith("imagenet/") and not Path(source).exists()


def _locate(
    source: Source,
    architecture: Architecture | None,
    progress: bool,
    *,
    revision: str | None = None,
    include_top: bool = True,
) -> tuple[Path, dict[str, Any] | None]:
    """A local path of the weights, and the `config.json` beside them, if there is one."""
    text = os.fspath(source)
    path = Path(text)
    if text and path.is_dir():
        return _in_directory(path)
    if path.is_file():
        return path, None
    if architecture is not None and (text == "imagenet" or _is_imagenet(text)):
        return _keras_file(architecture.name, include_top, progress), None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and path.suffix not in (".h5", ".keras", ".pth"):
        return _on_hub(text, revision, progress)
    raise FileNotFoundError(
        "No such file or directory of weights, and not the name of public ones, which look like "
        f"'imagenet/resnet50' or 'timm/resnet50.a1_in1k'. Received: {text!r}"
    )


def _in_directory(directory: Path) -> tuple[Path, dict[str, Any] | None]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            config = directory / "config.json"
            return directory / name, _read_config(config) if config.is_file() else None
    raise FileNotFoundError(
        "A directory of weights must hold model.safetensors (or pytorch_model.bin) and "
        f"config.json. Received: {directory} with {sorted(p.name for p in directory.iterdir())[:9]}"
    )


def _on_hub(
    repository: str, revision: str | None, progress: bool
) -> tuple[Path, dict[str, Any] | None]:
    from keras_resnet.weights.download import EntryMissingError, hub_file

    config = _read_config(hub_file(repository, "config.json", revision=revision, progress=False))
    options: dict[str, Any] = {"revision": revision, "progress": progress}
    try:
        return hub_file(repository, "model.safetensors", **options), config
    except EntryMissingError:
        # The PyTorch file is read by torch alone, without running what it may contain.
        return hub_file(repository, "pytorch_model.bin", **options), config


def _keras_file(name: str, include_top: bool, progress: bool) -> Path:
    from keras_resnet.weights.download import cache_directory, download

    try:
        stem, *digests = catalog.KERAS_FILES[name]
    except KeyError:
        raise WeightsError(
            "keras.applications has ImageNet weights for "
            f"{', '.join(catalog.KERAS_FILES)}. Received: {name!r}"
        ) from None
    file = f"{stem}_weights_tf_dim_ordering_tf_kernels{'' if include_top else '_notop'}.h5"
    return download(
        catalog.KERAS_ADDRESS + file,
        cache_directory() / file,
        digest=f"md5:{digests[0 if include_top else 1]}",
        progress=progress,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"Not a JSON file: {path} ({error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"A config.json must hold an object. Received: {path}")
    return config


# What a file holds.


def _read(path: Path, config: dict[str, Any] | None) -> tuple[Checkpoint, Sequence[str] | None]:
    """The content of a file under our names, and its class names if they are known."""
    if path.suffix == ".keras":
        return _read_keras_model(path)
    checkpoint = layouts.recognize(read_arrays(path))
    return _configured(checkpoint, config), _names_of_classes(checkpoint, config)


def _read_keras_model(path: Path) -> tuple[Checkpoint, Sequence[str] | None]:
    saved = load_model(path)
    weights: Layers = {
        layer.name: {v.name: keras.ops.convert_to_numpy(v) for v in layer.weights}
        for layer in saved.layers
        if layer.weights
    }
    architecture = getattr(saved, "architecture", None)
    if architecture is None:  # of keras.applications, perhaps
        arrays: Arrays = {f"{a}/{b}": v for a, layer in weights.items() for b, v in layer.items()}
        checkpoint = layouts.recognize(arrays)
        return checkpoint, _names_of_classes(checkpoint, None)
    checkpoint = Checkpoint(
        layout="keras_resnet",
        layers=weights,
        traits=layouts.architecture_traits(architecture),
        epsilon=architecture.norm_epsilon,
        preprocessing=Preprocessing.from_model(saved),
    )
    return checkpoint, saved.class_names


def _configured(checkpoint: Checkpoint, config: dict[str, Any] | None) -> Checkpoint:
    if config is None:
        return checkpoint
    preprocessing = Preprocessing.from_timm_config(config)
    return dataclasses.replace(checkpoint, preprocessing=preprocessing)


def _names_of_classes(
    checkpoint: Checkpoint, config: dict[str, Any] | None
) -> Sequence[str] | None:
    names = (config or {}).get("label_names")
    if isinstance(names, list) and len(names) == checkpoint.classes:
        return [str(name) for name in names]
    is_imagenet = checkpoint.layout == layouts.KERAS_NAME or config is not None
    if is_imagenet and checkpoint.classes == 1000:
        from keras_resnet import imagenet

        return imagenet.class_names()
    return None


def _architecture_in(config: dict[str, Any] | None, source: str) -> Architecture:
    if config is None:
        raise WeightsError(
            "To build a network from a file of weights alone, say which: "
            "keras_resnet.create_model(name, weights=file). Received: "
            f"{source!r}, without a config.json that names its architecture"
        )
    return catalog.from_timm(config.get("architecture", ""))


# Into the model.


def _assign(
    model: keras.Model, architecture: Architecture, checkpoint: Checkpoint, skip_head: bool
) -> None:
    """Gives every variable its value, after all of them are known to fit."""
    layouts.check_architecture(checkpoint, architecture)
    ours = {layer.name: layer for layer in model.layers if layer.weights}
    if skip_head:
        ours.pop("logits", None)
    if unknown := sorted(set(checkpoint.layers) - set(ours) - {"logits"}):
        raise WeightsError(
            f"The file has layers that {architecture.name} has not. Received: {unknown[:4]}"
        )
    theirs = _fitted(checkpoint, ours, architecture)
    values = [
        (variable, _value_of(variable, name, theirs.get(name, {}), architecture.name))
        for name, layer in ours.items()
        for variable in layer.weights
    ]
    for variable, value in values:
        variable.assign(value)


def _fitted(checkpoint: Checkpoint, ours: dict[str, Any], architecture: Architecture) -> Layers:
    """The file's weights, with what the model has no place for moved into its statistics.

    Batch normalization computes (x - mean) / sqrt(variance + epsilon): a bias in front of it is the
    same as a mean that is smaller by it, another epsilon the same as another variance.
    """
    layers = {name: dict(weights) for name, weights in checkpoint.layers.items()}
    for name, weights in layers.items():
        takes_bias = name not in ours or any(v.name == "bias" for v in ours[name].weights)
        if "bias" in weights and not takes_bias:
            norm = layers.get(name.replace("conv", "norm"), {})
            if "moving_mean" not in norm:
                raise WeightsError(
                    f"The file has a bias in {name}, which {architecture.name} has no place for"
                )
            norm["moving_mean"] = norm["moving_mean"] - weights.pop("bias")
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


def _value_of(variable: Any, layer: str, theirs: dict[str, np.ndarray], network: str) -> np.ndarray:
    advice = "; skip_head=True leaves the classifier as it is" if layer == "logits" else ""
    value = theirs.get(variable.name)
    if value is None and variable.name == "bias" and theirs:
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


def _load_own(model: keras.Model, architecture: Architecture, path: Path, skip_head: bool) -> None:
    """A `.weights.h5` file, which Keras reads by the order of the layers alone."""
    theirs = _recorded_architecture(path)
    if theirs is not None:
        checkpoint = Checkpoint(
            layout="keras_resnet",
            layers={},
            traits=layouts.architecture_traits(theirs),
            epsilon=theirs.norm_epsilon,
            preprocessing=Preprocessing(),
        )
        layouts.check_architecture(checkpoint, architecture)
    elif skip_head:
        raise WeightsError(
            "The head of a .weights.h5 file can only be skipped if the file says what it is of, as "
            f"those that a keras_resnet model saves do. Received: {os.fspath(path)}"
        )
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]
    head = [v for layer in model.layers if layer.name == "logits" for v in layer.weights]
    kept = [np.array(keras.ops.convert_to_numpy(v)) for v in head]
    try:
        with warnings.catch_warnings():
            # The architecture is the same, so the head is all that can be skipped, and it is meant.
            warnings.simplefilter("ignore")
            keras.Model.load_weights(model, path, skip_mismatch=skip_head)
    except (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError) as error:
        for variable, value in zip(model.weights, before, strict=True):
            variable.assign(value)
        raise WeightsError(
            f"Not weights of {architecture.name}: {os.fspath(path)} ({error})"
        ) from error
    if skip_head:
        for variable, value in zip(head, kept, strict=True):
            variable.assign(value)


def _recorded_architecture(path: Path) -> Architecture | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            record = file.attrs.get(ARCHITECTURE_KEY)
        return None if record is None else Architecture.from_dict(json.loads(record))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"Not a file of weights: {os.fspath(path)} ({error})") from error

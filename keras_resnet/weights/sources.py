"""Where weights are: a file, a directory, the hub, this package, or keras.applications' files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_resnet.architecture import Architecture
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.weights import catalog
from keras_resnet.weights.reading import SUFFIXES, WeightsError

SHIPPED = Path(__file__).parent / "cifar10"
"""Weights of networks trained on CIFAR-10, their model card, and images to calibrate with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A local file of weights.

    Attributes:
        path: the file.
        config: the `config.json` beside it, in timm's form, if there is one.
        network: the registry name that its own name says.
        is_imagenet: whether its thousand classes are known to be those of ImageNet.
    """

    path: Path
    config: dict[str, Any] | None = None
    network: str | None = None
    is_imagenet: bool = False

    @property
    def architecture(self) -> Architecture | None:
        """What the configuration says that the weights are for, if there is one."""
        if self.config is None:
            return None
        for key, usual in (("model_args", None), ("global_pool", "avg")):
            value = self.config.get(key)
            if value and value != usual:
                raise WeightsError(
                    f"A network of another make than this package's: `{key}` in {self.path.parent}"
                    f"'s config.json. Received: {value!r}"
                )
        return catalog.from_timm(self.config.get("architecture", ""))

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the configuration says of the input, if there is one."""
        return None if self.config is None else Preprocessing.from_timm_config(self.config)

    def class_names(self, classes: int | None) -> Sequence[str] | None:
        """The names of so many classes, if they are known."""
        names = (self.config or {}).get("label_names")
        if isinstance(names, list) and len(names) == classes:
            if not all(isinstance(name, str) for name in names):
                raise WeightsError(f"`label_names` must be strings. Received: {names[:3]}, ...")
            return names
        if self.is_imagenet and classes == 1000:
            from keras_resnet import imagenet

            return imagenet.class_names()
        return None


def locate(
    source: str | os.PathLike[str],
    *,
    network: str | None = None,
    include_top: bool = True,
    revision: str | None = None,
    progress: bool = True,
) -> Found:
    """Finds weights, and downloads them if they are public.

    Args:
        source: a path; `"cifar10"`, `"imagenet"`, or either with `/NAME` behind; or a repository of
            the hub.
        network: the registry name that a bare `"cifar10"` or `"imagenet"` is about.
        include_top: which of keras.applications' two files.
        revision: of the hub's repository.
        progress: whether a download shows its progress.
    """
    text = os.fspath(source)
    # A name comes before a directory of that name, as one of images may be called: ./cifar10 is it.
    collection, _, name = text.partition("/")
    name = name or network or ""
    if collection == "cifar10" and name:
        return Found(path=shipped_file(name), network=name)
    if collection == "imagenet" and name:
        file = _keras_file(name, include_top, progress)
        return Found(path=file, network=name, is_imagenet=True)
    path = Path(text)
    if text and path.is_dir():
        return _in_directory(path)
    if path.is_file():
        return Found(path=path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and path.suffix not in SUFFIXES:
        return _on_hub(text, revision, progress)
    raise FileNotFoundError(
        "No such file or directory of weights, and not the name of public ones, which look like "
        "'cifar10/resnet20', 'imagenet/resnet50' or 'timm/resnet50.a1_in1k'. "
        f"Received: {text!r}"
    )


def shipped_file(name: str) -> Path:
    """The file that comes with this package, checked by its digest."""
    try:
        expected = catalog.CIFAR10_FILES[name]
    except KeyError:
        raise WeightsError(
            f"There are CIFAR-10 weights for {', '.join(catalog.CIFAR10_FILES)}. Received: {name!r}"
        ) from None
    path = SHIPPED / f"{name}.safetensors"
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise WeightsError(f"Not the file that this package comes with: {path}. Install it again")
    return path


def calibration_images(source: str | None) -> str | None:
    """The `.npz` file of calibration images that comes with weights of this name, if one does.

    They were made from the statistics of such a network, and show nothing
    (`examples/calibration_images.py`).
    """
    is_shipped = source is not None and source.partition("/")[0] == "cifar10"
    return str(SHIPPED / "calibration.npz") if is_shipped else None


def _in_directory(directory: Path) -> Found:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            config = directory / "config.json"
            return Found(
                path=directory / name, config=_read_config(config) if config.is_file() else None
            )
    raise FileNotFoundError(
        "A directory of weights must hold model.safetensors (or pytorch_model.bin) and "
        f"config.json. Received: {directory} with {sorted(p.name for p in directory.iterdir())[:9]}"
    )


def _on_hub(repository: str, revision: str | None, progress: bool) -> Found:
    from keras_resnet.weights.download import EntryMissingError, hub_file

    config = _read_config(hub_file(repository, "config.json", revision=revision, progress=False))
    options: dict[str, Any] = {"revision": revision, "progress": progress}
    try:
        path = hub_file(repository, "model.safetensors", **options)
    except EntryMissingError:
        # The PyTorch file is read by torch alone, without running what it may contain.
        path = hub_file(repository, "pytorch_model.bin", **options)
    is_imagenet = repository.startswith("timm/") and repository.endswith("in1k")
    return Found(path=path, config=config, is_imagenet=is_imagenet)


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
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"Not a JSON file: {path} ({error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"A config.json must hold an object. Received: {path}")
    return config

"""What is installed here, what is missing for which feature, and a report of an error."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keras_resnet import __version__
from keras_resnet.quiet import import_tensorflow

# A feature, and the distributions that it needs.
FEATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("classify, verify, inspect, benchmark", ("ai-edge-litert", "numpy", "Pillow")),
    ("build networks", ("keras", "numpy")),
    ("train, evaluate", ("keras", "tensorflow", "matplotlib", "Pillow", "rich")),
    ("export", ("keras", "tensorflow", "ai-edge-litert", "flatbuffers")),
    ("optimize", ("tensorflow-model-optimization", "tf-keras")),
    ("data tfds:NAME", ("tensorflow-datasets", "importlib_resources")),
    ("public weights", ("huggingface_hub", "safetensors", "h5py", "filelock", "ml-dtypes")),
    ("weights in .pth files", ("torch",)),
)


def environment() -> dict[str, Any]:
    """Versions, devices, and missing distributions by feature."""
    wanted = sorted({name for _, names in FEATURES for name in names}, key=str.lower)
    versions = {name: _version(name) for name in wanted}
    missing = {
        feature: [name for name in names if versions[name] is None] for feature, names in FEATURES
    }
    return {
        "keras_resnet": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "devices": _devices() if versions["tensorflow"] else [],
        "versions": versions,
        "missing": {feature: names for feature, names in missing.items() if names},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """TensorFlow's, each with its make if it says one."""
    import_tensorflow()
    import tensorflow as tf

    found = []
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        name = device.name.removeprefix("/physical_device:")
        found.append(f"{name} ({details['device_name']})" if "device_name" in details else name)
    return found


def table(found: dict[str, Any]) -> str:
    """What `environment` found, for a person."""
    lines = [
        f"keras_resnet {found['keras_resnet']}, Python {found['python']}, {found['platform']}, "
        f"{found['cpus']} CPUs",
        f"devices of TensorFlow: {', '.join(found['devices']) or 'none'}",
    ]
    lines += [
        f"  {name} {version or 'is not installed'}" for name, version in found["versions"].items()
    ]
    lines += [f"{feature}: needs {', '.join(names)}" for feature, names in found["missing"].items()]
    return "\n".join(lines)


def write_error_report(error: BaseException, arguments: Sequence[str]) -> Path:
    """Writes one new file with all that a report of an error should hold; returns where it is."""
    now = datetime.now(UTC)
    found = environment()
    parts = [
        f"keras-resnet {shlex.join(arguments)}",
        now.isoformat(timespec="seconds"),
        table(found),
        "".join(traceback.format_exception(error)),
    ]
    handle, name = tempfile.mkstemp(
        prefix=f"keras-resnet-{now:%Y%m%d-%H%M%S}-", suffix=".txt", dir=Path.cwd(), text=True
    )
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n\n".join(parts))
    return Path(name)

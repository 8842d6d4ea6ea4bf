"""Residual networks from the paper to the phone: build, train, quantize, verify, classify.

Names resolve when they are first used, so `import keras_resnet` costs next to nothing and the part
that runs on a device needs neither TensorFlow nor Keras.
"""

from __future__ import annotations

import importlib
from typing import Any

from keras_resnet.architecture import BUILDERS as _BUILDERS

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "architecture",
    "Counts": "architecture",
    "get_architecture": "architecture",
    "get_counts": "architecture",
    "list_models": "architecture",
    "BadImageError": "preprocessing",
    "Preprocessing": "preprocessing",
    "read_image": "preprocessing",
    "create_model": "models",
    "feature_model": "models",
    "freeze": "models",
    "load_model": "models",
    "decode_predictions": "imagenet",
    "DownloadError": "weights.download",
    "from_pretrained": "weights.loading",
    "load_weights": "weights.loading",
    "WeightsError": "weights.reading",
    **dict.fromkeys(_BUILDERS, "models"),
}
_SUBMODULES = ("blocks", "data", "export", "layers", "training", "weights")

__all__ = ["__version__", *_HOMES, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

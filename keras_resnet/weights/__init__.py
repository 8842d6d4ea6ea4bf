"""Other people's checkpoints into our layers: reading, recognizing, downloading, assigning.

Names resolve when they are first used: a download needs neither Keras nor TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DownloadError": "download",
    "WeightsError": "reading",
    "calibration_images": "sources",
    "from_pretrained": "loading",
    "load_weights": "loading",
    "public_weights": "catalog",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

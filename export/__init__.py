"""From a trained network to a file that a device can run, with the evidence that it is the same.

Names resolve when they are first used: on a device, `Classifier` and `verify` need neither
TensorFlow nor Keras.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Benchmark": "benchmarking",
    "Bundle": "bundle",
    "BundleError": "bundle",
    "CArray": "c_array",
    "CalibrationWarning": "calibration",
    "Classifier": "runtime",
    "ExportRejected": "verification",
    "SCHEMES": "schemes",
    "Verification": "verification",
    "benchmark": "benchmarking",
    "Inspection": "inspection",
    "RepairWarning": "repair",
    "Server": "serving",
    "TFLiteFileError": "inspection",
    "inspect": "inspection",
    "TargetError": "presets",
    "TargetWarning": "presets",
    "to_saved_model": "saved_model",
    "to_tflite": "tflite",
    "verify": "verification",
    "write_c_array": "c_array",
}

__all__ = [*_HOMES, "optimize"]


def __getattr__(name: str) -> Any:
    if name == "optimize":
        return importlib.import_module(f"{__name__}.optimize")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

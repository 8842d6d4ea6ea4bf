"""Optimization in training, by TensorFlow Model Optimization: quantization, pruning, clustering.

    recipe = optimize.fine_tuning(run.recipe, "prune")
    tuned = optimize.prune(run.model, "digits", recipe, sparsity=0.5)
    export.to_tflite(tuned.model, "digits-pruned", calibration="digits", evaluation="digits")

Names resolve when they are first used: TFMOT and the Keras 2 that it needs take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_resnet.export.optimize.methods import (
        Optimized,
        cluster,
        prune,
        quantization_aware,
    )
    from keras_resnet.export.optimize.training import fine_tuning
    from keras_resnet.export.optimize.twin import UnsupportedLayerError

__all__ = [
    "Optimized",
    "UnsupportedLayerError",
    "cluster",
    "fine_tuning",
    "prune",
    "quantization_aware",
]

_HOMES = {"fine_tuning": "training", "UnsupportedLayerError": "twin"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'methods')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

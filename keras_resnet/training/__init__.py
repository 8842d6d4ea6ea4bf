"""Training on `tf.distribute`: one loop for a laptop, several GPUs and several machines.

Names are resolved when they are first used: what starts the workers of a training needs none of
them, nor TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_resnet.training.checkpoints import CheckpointError
    from keras_resnet.training.comparison import Comparison, compare
    from keras_resnet.training.fitting import Result, evaluate, fit
    from keras_resnet.training.interruption import Interrupted
    from keras_resnet.training.loop import TrainingError
    from keras_resnet.training.metrics import Evaluation
    from keras_resnet.training.recipes import RECIPES, Recipe, get_recipe
    from keras_resnet.training.runs import Run, load_run
    from keras_resnet.training.strategies import resolve_strategy

__all__ = [
    "RECIPES",
    "CheckpointError",
    "Comparison",
    "Evaluation",
    "Interrupted",
    "Recipe",
    "Result",
    "Run",
    "TrainingError",
    "compare",
    "evaluate",
    "fit",
    "get_recipe",
    "load_run",
    "resolve_strategy",
]

_MODULES = {
    "checkpoints": ("CheckpointError",),
    "comparison": ("Comparison", "compare"),
    "fitting": ("Result", "evaluate", "fit"),
    "interruption": ("Interrupted",),
    "loop": ("TrainingError",),
    "metrics": ("Evaluation",),
    "recipes": ("RECIPES", "Recipe", "get_recipe"),
    "runs": ("Run", "load_run"),
    "strategies": ("resolve_strategy",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

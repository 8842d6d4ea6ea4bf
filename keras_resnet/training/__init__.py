"""Training on `tf.distribute`: one loop for a laptop, several GPUs and several machines."""

from keras_resnet.training.loop import Evaluation, Result, TrainingError, evaluate, fit
from keras_resnet.training.recipes import RECIPES, Recipe, get_recipe
from keras_resnet.training.runs import Run, load_run
from keras_resnet.training.strategies import resolve_strategy

__all__ = [
    "RECIPES",
    "Evaluation",
    "Recipe",
    "Result",
    "Run",
    "TrainingError",
    "evaluate",
    "fit",
    "get_recipe",
    "load_run",
    "resolve_strategy",
]

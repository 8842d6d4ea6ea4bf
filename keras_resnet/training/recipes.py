"""Recipes: everything about a training that is not the network, the data or the machine."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras

from keras_resnet.data.pipeline import AUGMENTATIONS


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _in(value: object, low: float, high: float | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low < value < (math.inf if high is None else high)


def _to_tuple(value: Any) -> tuple[Any, ...]:
    """What a person may write for several values: a list, one value, or text with commas."""
    if isinstance(value, str):
        return tuple(part for part in value.split(",") if part)
    return tuple(value) if isinstance(value, Sequence) else (value,)


_NUMBERS = (
    "learning_rate",
    "warmup_epochs",
    "momentum",
    "weight_decay",
    "label_smoothing",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The unit of everything is the global batch, over all replicas.

    Attributes:
        name: what it is called in the table.
        epochs: passes over the training data.
        batch_size: examples per step, over all replicas.
        learning_rate: the highest.
        schedule: `"constant"`, `"step"` (a tenth at every milestone) or `"cosine"` (to zero).
        milestones: of `"step"`, as fractions of the training.
        warmup_epochs: epochs over which the rate rises linearly from zero.
        momentum: of stochastic gradient descent.
        nesterov: whether the momentum looks ahead.
        weight_decay: added to the gradient times the weight, inside the momentum, as in Caffe and
            PyTorch (Keras's own `weight_decay` is decoupled: at the same number it decays ten times
            less). Kernels only, neither biases nor batch normalization.
        label_smoothing: share of the target that is spread over all classes.
        augment: names from `keras_resnet.data.AUGMENTATIONS`.
        source: where the recipe comes from.
        result: what it gave here or in its source.
    """

    name: str = "custom"
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ()
    source: str = ""
    result: str = ""

    def __post_init__(self) -> None:
        for field in ("milestones", "augment"):
            object.__setattr__(self, field, _to_tuple(getattr(self, field)))
        for field in _NUMBERS:
            value = getattr(self, field)
            if _is_int(value):  # Keras computes with the type that it is given: pi would be 3
                object.__setattr__(self, field, float(value))
        self._check("epochs", _is_int(self.epochs) and self.epochs >= 1, "a positive integer")
        self._check(
            "batch_size", _is_int(self.batch_size) and self.batch_size >= 1, "a positive integer"
        )
        self._check("learning_rate", _in(self.learning_rate, 0, None), "a positive number")
        self._check(
            "schedule",
            self.schedule in ("constant", "step", "cosine"),
            "'constant', 'step' or 'cosine'",
        )
        self._check(
            "milestones",
            all(_in(m, 0, 1) for m in self.milestones)
            and list(self.milestones) == sorted(self.milestones),
            "rising fractions between 0 and 1",
        )
        self._check(
            "warmup_epochs",
            self.warmup_epochs == 0 or _in(self.warmup_epochs, 0, self.epochs),
            "a number of epochs below `epochs`",
        )
        self._check(
            "momentum", self.momentum == 0 or _in(self.momentum, 0, 1), "a number in [0, 1)"
        )
        self._check("nesterov", isinstance(self.nesterov, bool), "True or False")
        self._check(
            "weight_decay",
            self.weight_decay == 0 or _in(self.weight_decay, 0, None),
            "zero or a positive number",
        )
        self._check(
            "label_smoothing",
            self.label_smoothing == 0 or _in(self.label_smoothing, 0, 1),
            "a number in [0, 1)",
        )
        self._check(
            "augment",
            all(name in AUGMENTATIONS for name in self.augment),
            f"names of {sorted(AUGMENTATIONS)}",
        )

    def _check(self, field: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(
                f"Recipe field `{field}` must be {wanted}. "
                f"Received: {field}={getattr(self, field)!r}"
            )

    def replace(self, changes: Mapping[str, Any] | Sequence[str] = (), **more: Any) -> Recipe:
        """A copy with some fields changed.

        Args:
            changes: a mapping, or strings `"field=value"` as on the command line.
            **more: further fields.

        Raises:
            ValueError: for a field that a recipe does not have, or a bad value.
        """
        values = dict(changes) if isinstance(changes, Mapping) else dict(map(_parse, changes))
        values |= more
        fields = [field.name for field in dataclasses.fields(self)]
        for name in values:
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {fields}."
                raise ValueError(f"A recipe has no field {name!r}; {hint}")
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`. What a recipe does not know raises `ValueError`."""
        return cls().replace(values)

    def learning_rate_schedule(self, steps_per_epoch: int) -> Any:
        """A Keras learning-rate schedule over `epochs * steps_per_epoch` steps.

        A constant rate without warm-up is a plain number, which callbacks may change.
        """
        if self.schedule == "constant" and not self.warmup_epochs:
            return self.learning_rate
        return _Schedule(
            self.schedule,
            self.learning_rate,
            self.epochs * steps_per_epoch,
            round(self.warmup_epochs * steps_per_epoch),
            self.milestones,
        )


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of step 0, 1, ... `total - 1`."""

    def __init__(
        self, kind: str, peak: float, total: int, warmup: int, milestones: Sequence[float]
    ):
        self._kind, self._peak, self._total, self._warmup = kind, peak, total, warmup
        self._boundaries = [float(round(milestone * total)) for milestone in milestones]

    def __call__(self, step: Any) -> Any:
        ops = keras.ops
        step = ops.cast(step, "float32")
        rate = ops.full_like(step, self._peak)
        if self._kind == "cosine":
            done = (step - self._warmup) / max(1, self._total - self._warmup)
            rate *= 0.5 + 0.5 * ops.cos(math.pi * ops.clip(done, 0.0, 1.0))
        elif self._kind == "step":
            for boundary in self._boundaries:
                rate *= ops.where(step >= boundary, 0.1, 1.0)
        # The first step already moves: it has one part of warmup + 1.
        return rate * ops.minimum((step + 1.0) / (self._warmup + 1.0), 1.0)

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("Schedules are made from recipes, which are saved instead.")


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits",
            epochs=15,
            batch_size=64,
            learning_rate=0.05,  # the paper's 0.1 for 128 examples, scaled to 64
            warmup_epochs=2,
            nesterov=True,
            weight_decay=5e-4,
            augment=("shift",),
            source="this package, for the 1,442 embedded digits",
        ),
        Recipe(
            name="small",
            epochs=30,
            batch_size=32,
            learning_rate=0.025,  # the paper's 0.1 for 128 examples, scaled to 32
            warmup_epochs=3,
            nesterov=True,
            weight_decay=5e-4,
            augment=("pad-crop", "flip"),
            source="this package, for some thousand images of one's own",
        ),
        Recipe(
            name="paper-cifar",
            epochs=164,
            batch_size=128,
            learning_rate=0.1,
            schedule="step",
            milestones=(0.5, 0.75),
            weight_decay=1e-4,
            augment=("pad-crop", "flip"),
            source="He et al. 2015, section 4.2: 64,000 steps, a tenth after 32,000 and 48,000",
            result="ResNet-20: 91.25 % on CIFAR-10 in the paper; not run here",
        ),
    )
}


def get_recipe(name: str | Recipe) -> Recipe:
    """The recipe of a name; a recipe passes as it is.

    Raises:
        ValueError: if there is none, with the names that there are.
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise ValueError(
            f"Argument `recipe` must be a Recipe or one of {list(RECIPES)}. Received: {name!r}"
        )
    return RECIPES[name]


def _parse(assignment: str) -> tuple[str, Any]:
    name, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(
            f"A change to a recipe is written field=value, e.g. epochs=5. Received: {assignment!r}"
        )
    try:
        return name.strip(), ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name.strip(), {"true": True, "false": False}.get(text.lower(), text)

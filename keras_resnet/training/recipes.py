"""Recipes: everything about a training that is not the network, the data or the machine."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras

from keras_resnet.data.augment import Augmentation

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine", "one-cycle", "polynomial", "exponential")
DECAYS = ("kernels", "all")

# Goyal et al. 2017, section 2.2; a short training cannot spend that long on it.
_GRADUAL_WARMUP_EPOCHS = 5.0
_GRADUAL_WARMUP_SHARE = 0.1

# PyTorch's OneCycleLR: it starts at the highest rate / 25, and ends at the start / 10,000.
_ONE_CYCLE_RISE, _ONE_CYCLE_START, _ONE_CYCLE_END = 0.3, 25.0, 1e4


class _UnfitError(Exception):
    """A value that a field cannot have."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a field may hold: a function that brings a value to its type or raises `_UnfitError`."""

    wanted: str
    read: Callable[[Any], Any]


def _fits(good: bool) -> None:
    if not good:
        raise _UnfitError


def _count(low: int) -> _Kind:
    def read(value: Any) -> int:
        _fits(isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**31)
        return int(value)

    return _Kind("a positive integer" if low else "0 or a positive integer", read)


def _number(
    wanted: str, low: float = 0.0, high: float = math.inf, *, zero: bool = True, top: bool = False
) -> _Kind:
    """A number in `(low, high)`: `zero` adds its lower end, `top` its upper one."""

    def read(value: Any) -> float:
        _fits(isinstance(value, int | float) and not isinstance(value, bool))
        _fits(low < value < high or (zero and value == low) or (top and value == high))
        try:
            return float(value)  # Keras computes with the type that it is given: pi would be 3
        except OverflowError:
            raise _UnfitError from None

    return _Kind(wanted, read)


def _word(*words: str) -> _Kind:
    def read(value: Any) -> str:
        _fits(isinstance(value, str) and value in words)
        return str(value)

    return _Kind(" or ".join([", ".join(map(repr, words[:-1])), repr(words[-1])]), read)


def _read_text(value: Any) -> str:
    _fits(isinstance(value, str))
    return str(value)


def _read_flag(value: Any) -> bool:
    _fits(isinstance(value, bool))
    return bool(value)


def _optional(kind: _Kind) -> _Kind:
    return _Kind(
        f"None or {kind.wanted}", lambda value: None if value is None else kind.read(value)
    )


def _several(wanted: str, kind: _Kind, length: int | None = None) -> _Kind:
    """A tuple, from a list, one value, or text with commas."""

    def read(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif not isinstance(value, list | tuple):
            value = [value]
        _fits(length is None or len(value) == length)
        return tuple(kind.read(part) for part in value)

    return _Kind(wanted, read)


_POSITIVE = _number("a positive number", zero=False)
_AMOUNT = _number("zero or a positive number")
_SHARE = _number("a number in [0, 1)", high=1.0)
_TEXT = _Kind("text", _read_text)

_KINDS: dict[str, _Kind] = {
    "name": _TEXT,
    "epochs": _count(1),
    "batch_size": _count(1),
    "learning_rate": _POSITIVE,
    "rate_batch": _optional(_count(1)),
    "schedule": _word(*SCHEDULES),
    "milestones": _several("rising fractions between 0 and 1", _number("", high=1.0, zero=False)),
    "gamma": _number("a number in (0, 1]", high=1.0, zero=False, top=True),
    "power": _POSITIVE,
    "warmup_epochs": _number("a number of epochs below `epochs`"),
    "optimizer": _word(*OPTIMIZERS),
    "momentum": _SHARE,
    "nesterov": _Kind("True or False", _read_flag),
    "betas": _several("two numbers in [0, 1)", _SHARE, 2),
    "weight_decay": _AMOUNT,
    "decay": _word(*DECAYS),
    "clip": _AMOUNT,
    "ema": _SHARE,
    "label_smoothing": _SHARE,
    "early_stopping": _count(0),
    "frozen": _TEXT,
    "frozen_epochs": _count(0),
    "augment": _several("names of augmentations", _TEXT),
    "crop_area": _several("two numbers", _AMOUNT, 2),
    "crop_ratio": _several("two numbers", _AMOUNT, 2),
    "randaugment": _several("two integers", _count(0), 2),
    "erase": _AMOUNT,
    "mixup": _AMOUNT,
    "cutmix": _AMOUNT,
    "eval_crop": _number("a number in (0, 1]", high=1.0, zero=False, top=True),
    "source": _TEXT,
    "result": _TEXT,
}

# The fields that an `Augmentation` takes; `augment` is its `steps`.
_AUGMENTATION = ("crop_area", "crop_ratio", "randaugment", "erase", "mixup", "cutmix")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The unit of everything is the global batch, over all replicas.

    Attributes:
        name: what it is called in the table.
        epochs: passes over the training data.
        batch_size: examples per step, over all replicas.
        learning_rate: the highest, at a batch of `rate_batch`.
        rate_batch: the global batch that `learning_rate` is for; at another `batch_size` the rate
            is scaled linearly (Goyal et al. 2017, section 2.1). None: at `batch_size` itself.
        schedule: `"constant"`, `"step"` (times `gamma` at every milestone), `"cosine"` (to zero),
            `"one-cycle"` (up to the highest and down, each half a cosine, as PyTorch's OneCycleLR
            without its cycle of the momentum), `"polynomial"` (to zero, by `power`) or
            `"exponential"` (times `gamma` after every epoch).
        milestones: of `"step"`, as fractions of the training.
        gamma: of `"step"` and `"exponential"`.
        power: of `"polynomial"`; 1 falls linearly.
        warmup_epochs: epochs over which the rate rises linearly from zero; of `"one-cycle"` the
            rising part, 0 for three tenths of the training.
        optimizer: `"sgd"`, `"adam"` or `"adamw"`.
        momentum: of `"sgd"`. The velocity holds the learning rate, as in Caffe and in the paper; in
            PyTorch it does not, which differs while the rate changes (Goyal et al. 2017, remark 2).
        nesterov: whether the momentum of `"sgd"` looks ahead.
        betas: of `"adam"` and `"adamw"`: the decay of the first and the second moment.
        weight_decay: with `"sgd"` and `"adam"` added to the gradient times the weight, inside the
            momentum, as in Caffe and PyTorch (Keras's own `weight_decay` is decoupled: at the same
            number and momentum 0.9 it decays ten times less); with `"adamw"` decoupled: a weight
            loses `rate * weight_decay` of itself in every step. A source that gives the factor of
            a sum of squares, e.g. Keras's `L2(c)`, means `2c` here.
        decay: what decays: `"kernels"` (no biases, no scale and offset of a normalization) or
            `"all"`.
        clip: the largest global norm of the gradient; 0 for any.
        ema: decay per step of the moving average of the weights, which is then what is evaluated
            and saved; 0 for none.
        label_smoothing: share of the target that is spread over all classes.
        early_stopping: epochs without a better test accuracy before the training stops; 0 for
            never.
        frozen: the last level that does not train at first, as in `keras_resnet.freeze`, e.g.
            `"C4"`; empty for none.
        frozen_epochs: for how many epochs; then everything trains.
        augment: names from `keras_resnet.data.AUGMENTATIONS`, in the order of their application.
        crop_area: of `"random-resized-crop"`: the part of the image's area.
        crop_ratio: of `"random-resized-crop"`: width over height.
        randaugment: of `"randaugment"`: operations per image, and their magnitude.
        erase: the probability of random erasing.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.
        eval_crop: the part of the resized test image that the network sees.
        source: where the recipe comes from.
        result: what it gave, here or in its source; says so if it was not run here.
    """

    name: str = "custom"
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    rate_batch: int | None = None
    schedule: Literal["constant", "step", "cosine", "one-cycle", "polynomial", "exponential"] = (
        "cosine"
    )
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    power: float = 1.0
    warmup_epochs: float = 0.0
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay: Literal["kernels", "all"] = "kernels"
    clip: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0
    early_stopping: int = 0
    frozen: str = ""
    frozen_epochs: int = 0
    augment: tuple[str, ...] = ()
    crop_area: tuple[float, float] = Augmentation.crop_area
    crop_ratio: tuple[float, float] = Augmentation.crop_ratio
    randaugment: tuple[int, int] = Augmentation.randaugment
    erase: float = Augmentation.erase
    mixup: float = Augmentation.mixup
    cutmix: float = Augmentation.cutmix
    eval_crop: float = 1.0
    source: str = ""
    result: str = ""

    def __post_init__(self) -> None:
        for field, kind in _KINDS.items():
            try:
                object.__setattr__(self, field, kind.read(getattr(self, field)))
            except _UnfitError:
                raise self._refusal(field, kind.wanted) from None
        if list(self.milestones) != sorted(self.milestones):
            raise self._refusal("milestones", _KINDS["milestones"].wanted)
        if self.warmup_epochs >= self.epochs:
            raise self._refusal("warmup_epochs", _KINDS["warmup_epochs"].wanted)
        if bool(self.frozen) != bool(self.frozen_epochs):
            raise self._refusal(
                "frozen_epochs", "a positive integer if and only if `frozen` names a level"
            )
        if self.frozen_epochs > self.epochs:
            raise self._refusal("frozen_epochs", "at most `epochs`")
        _ = self.augmentation  # which checks its fields

    def _refusal(self, field: str, wanted: str) -> ValueError:
        return ValueError(
            f"Recipe field `{field}` must be {wanted}. Received: {field}={getattr(self, field)!r}"
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
        for name in values:
            if name not in _KINDS:
                near = difflib.get_close_matches(str(name), _KINDS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {list(_KINDS)}."
                raise ValueError(f"A recipe has no field {name!r}; {hint}")
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; fields that are missing get their defaults.

        Raises:
            ValueError: for what a recipe does not know, or a bad value.
        """
        if not isinstance(values, Mapping):
            raise ValueError(
                "Argument `values` must be a mapping of the fields of a recipe. "
                f"Received: {values!r}"
            )
        return cls().replace(values)

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the training images."""
        options = {field: getattr(self, field) for field in _AUGMENTATION}
        try:
            return Augmentation(steps=self.augment, **options)
        except ValueError as error:  # which speaks of its own fields
            message = str(error).replace("`steps`", "`augment`").replace("steps=", "augment=")
            raise ValueError(message.replace("Augmentation field", "Recipe field")) from None

    @property
    def command(self) -> str:
        """The line that trains by this recipe; empty if it comes from no row of the table."""
        if self.name not in RECIPES:
            return ""
        row, fields = RECIPES[self.name].to_dict(), self.to_dict()
        words = ["keras-resnet", "train", *_TRAINED[self.name], "--recipe", self.name]
        for field, value in fields.items():
            if value != row[field]:
                words += ["--set", f"{field}={_written(field, value)}"]
        return shlex.join([*words, "--out", f"runs/{self.name}"])

    @property
    def peak_rate(self) -> float:
        """The highest learning rate at `batch_size`."""
        return self.learning_rate * self.batch_size / (self.rate_batch or self.batch_size)

    @property
    def warmup(self) -> float:
        """Epochs of warm-up: those of the recipe, or gradual warm-up where it has none.

        A recipe without a warm-up of its own that runs at a larger batch than its `rate_batch` gets
        the one of Goyal et al. 2017, section 2.2: from `learning_rate` to `peak_rate` over 5
        epochs, or over a tenth of the training if that is shorter. One-cycle starts low by itself.
        """
        if self.schedule == "one-cycle":
            return 0.0
        if self.warmup_epochs == 0 and self.peak_rate > self.learning_rate:
            return min(_GRADUAL_WARMUP_EPOCHS, _GRADUAL_WARMUP_SHARE * self.epochs)
        return self.warmup_epochs

    def learning_rate_schedule(self, steps_per_epoch: int) -> Any:
        """A Keras learning-rate schedule over `epochs * steps_per_epoch` steps.

        A constant rate without warm-up is a plain number, which callbacks may change.
        """
        if self.schedule == "constant" and not self.warmup:
            return self.peak_rate
        return _Schedule(self, steps_per_epoch)

    def decays(self, variable: Any) -> bool:
        """Whether `weight_decay` acts on a variable; kernels have two axes at least."""
        return self.weight_decay > 0 and (self.decay == "all" or len(variable.shape) > 1)

    def make_optimizer(self, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """A new optimizer. Coupled decay, clipping and the moving average are the loop's.

        Args:
            steps_per_epoch: of the schedule.

        Returns:
            A Keras `SGD`, `Adam`, or an Adam with decoupled decay of what `decays` names: the
            steps of PyTorch's AdamW, but for the epsilon, which is Keras's.
        """
        rate = self.learning_rate_schedule(steps_per_epoch)
        if self.optimizer == "sgd":
            return keras.optimizers.SGD(rate, momentum=self.momentum, nesterov=self.nesterov)
        betas = {"beta_1": self.betas[0], "beta_2": self.betas[1]}
        if self.optimizer == "adam":
            return keras.optimizers.Adam(rate, **betas)
        return _AdamW(self, rate, **betas)


class _AdamW(keras.optimizers.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Keras's own AdamW works out its schedule once more for every variable that decays, and must be
    told before it is built which ones do not.
    """

    def __init__(self, recipe: Recipe, learning_rate: Any, **options: Any):
        super().__init__(learning_rate, name="adamw", **options)
        self._recipe = recipe

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self._recipe.decays(variable):
            share = keras.ops.cast(learning_rate, variable.dtype) * self._recipe.weight_decay
            self.assign_sub(variable, keras.ops.multiply(variable, share))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("Optimizers are made from recipes, which are saved instead.")


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of step 0, 1, ... `total - 1`."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int):
        self._recipe, self._steps_per_epoch = recipe, steps_per_epoch
        self._total = recipe.epochs * steps_per_epoch
        self._warmup = round(recipe.warmup * steps_per_epoch)
        self._after_warmup = {
            "constant": self._constant,
            "step": self._step,
            "cosine": self._cosine,
            "one-cycle": self._one_cycle,
            "polynomial": self._polynomial,
            "exponential": self._exponential,
        }[recipe.schedule]

    def __call__(self, step: Any) -> Any:
        step = keras.ops.cast(step, "float32")
        share = self._after_warmup(step)
        if self._warmup:
            share *= self._rise(step)
        return share * self._recipe.peak_rate

    def _rise(self, step: Any) -> Any:
        """The share of the rate during the warm-up: a line that reaches 1 at its end."""
        # From zero, the first step already moves: it has one part of warmup + 1. Gradual warm-up
        # starts from the rate of the smaller batch.
        own = self._recipe.warmup_epochs > 0
        first = (
            1 / (self._warmup + 1) if own else self._recipe.learning_rate / self._recipe.peak_rate
        )
        return keras.ops.minimum(first + step * ((1 - first) / self._warmup), 1.0)

    def _done(self, step: Any) -> Any:
        """The share of the steps after the warm-up that lie behind."""
        done = (step - self._warmup) / max(1, self._total - self._warmup)
        return keras.ops.clip(done, 0.0, 1.0)

    def _constant(self, step: Any) -> Any:
        return keras.ops.ones_like(step)

    def _step(self, step: Any) -> Any:
        share = keras.ops.ones_like(step)
        for milestone in self._recipe.milestones:
            boundary = float(round(milestone * self._total))
            share *= keras.ops.where(step >= boundary, self._recipe.gamma, 1.0)
        return share

    def _cosine(self, step: Any) -> Any:
        return 0.5 + 0.5 * keras.ops.cos(math.pi * self._done(step))

    def _polynomial(self, step: Any) -> Any:
        return keras.ops.power(1.0 - self._done(step), self._recipe.power)

    def _exponential(self, step: Any) -> Any:
        epoch = keras.ops.floor(step / self._steps_per_epoch)
        # 0.99 in float32 would be 1e-4 off after some thousand epochs; its logarithm is not.
        return keras.ops.exp(epoch * math.log(self._recipe.gamma))

    def _one_cycle(self, step: Any) -> Any:
        rise = self._recipe.warmup_epochs / self._recipe.epochs or _ONE_CYCLE_RISE
        top = max(rise * self._total - 1.0, 0.0)  # the step of the highest rate, often a fraction
        low = 1 / _ONE_CYCLE_START
        end = low / _ONE_CYCLE_END
        up = keras.ops.clip(step / max(top, 1e-6), 0.0, 1.0)
        down = keras.ops.clip((step - top) / max(self._total - 1.0 - top, 1e-6), 0.0, 1.0)
        rising = 1.0 + 0.5 * (low - 1.0) * (1.0 + keras.ops.cos(math.pi * up))
        falling = end + 0.5 * (1.0 - end) * (1.0 + keras.ops.cos(math.pi * down))
        return keras.ops.where(step <= top, rising, falling)

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
            rate_batch=64,
            warmup_epochs=2,
            nesterov=True,
            weight_decay=5e-4,
            augment=("shift",),
            source="this package, for the 1,442 embedded digits",
            result="ResNet-20: 99.2 % of the 355 test images, seed 0, two CPU cores",
        ),
        Recipe(
            name="small",
            epochs=30,
            batch_size=32,
            learning_rate=0.025,  # the paper's 0.1 for 128 examples, scaled to 32
            rate_batch=32,
            warmup_epochs=3,
            nesterov=True,
            weight_decay=5e-4,
            augment=("pad-crop", "flip"),
            source="this package, for some thousand images of one's own",
            result="not run here",
        ),
        Recipe(
            name="finetune",
            epochs=20,
            batch_size=32,
            learning_rate=0.01,
            rate_batch=32,
            warmup_epochs=1,
            nesterov=True,
            weight_decay=1e-4,
            label_smoothing=0.1,
            frozen="C4",
            frozen_epochs=5,
            augment=("random-resized-crop", "flip"),
            crop_area=(0.35, 1.0),  # a small data set has no need of the tiny crops of ImageNet's
            eval_crop=0.875,
            source="this package, for some thousand images and a network that knows ImageNet: "
            "first the last stage and the head, then everything",
            result="not run here",
        ),
        Recipe(
            name="paper-cifar",
            epochs=164,  # of 390 steps on 50,000 images: 63,960
            batch_size=128,
            learning_rate=0.1,
            rate_batch=128,
            schedule="step",
            milestones=(0.5, 0.75),
            weight_decay=1e-4,
            decay="all",  # Caffe's default; the paper excludes nothing
            augment=("pad-crop", "flip"),
            source="He et al. 2015, section 4.2: 64,000 steps, a tenth after 32,000 and 48,000. "
            "For ResNet-110 the paper starts at a rate of 0.01 until the training error is below "
            "80 %, about 400 steps; set warmup_epochs=1 there",
            result="CIFAR-10 test accuracy in the paper: ResNet-20 91.25 %, 32 92.49, 44 92.83, "
            "56 93.03, 110 93.57 (the best of 5 runs; mean 93.39); not run here",
        ),
        Recipe(
            name="paper-imagenet",
            epochs=120,  # of 5,004 steps on 1,281,167 images: 600,480
            batch_size=256,
            learning_rate=0.1,
            rate_batch=256,
            schedule="step",
            milestones=(0.25, 0.5, 0.75),
            weight_decay=1e-4,
            decay="all",
            augment=("random-resized-crop", "flip"),
            eval_crop=0.875,
            source="He et al. 2015, section 3.4: batch 256, up to 600,000 steps. What differs: the "
            "paper divides the rate by 10 when the error stands still, here after 30, 60 and 90 "
            "epochs; it crops 224 pixels from an image whose shorter side is drawn from 256 to "
            "480, here random resized crops; it changes colours (Krizhevsky et al. 2012), here "
            "not; it subtracts the mean of every pixel, here the network's own preprocessing",
            result="ImageNet top-1 error: ResNet-50 22.85 % on 10 crops in the paper, 24.7 on one "
            "crop of the released network (101: 21.75 and 23.6, 152: 21.43 and 23.0); not run here",
        ),
        Recipe(
            name="mlperf-tiny",
            epochs=500,
            batch_size=32,
            learning_rate=1e-3,
            rate_batch=32,
            schedule="exponential",
            gamma=0.99,
            optimizer="adam",
            weight_decay=2e-4,  # the reference's l2(1e-4) adds 1e-4 * w**2, with gradient 2e-4 * w
            augment=("shift", "flip"),
            source="mlcommons/tiny, benchmark/training/image_classification: train.py and "
            "keras_model.py. What differs: the reference turns by up to 15 degrees, here not; it "
            "moves by up to 3.2 pixels, here 2; its dense layer does not decay, here it does",
            result="MLPerf Tiny asks for 85 % top-1; the reference's log says 90.0 % on the 200 "
            "test images of the benchmark; not run here",
        ),
        Recipe(
            name="torchvision-v1",
            epochs=90,
            batch_size=256,
            learning_rate=0.1,
            rate_batch=256,
            schedule="step",
            milestones=(1 / 3, 2 / 3),
            weight_decay=1e-4,
            decay="all",
            augment=("random-resized-crop", "flip"),
            eval_crop=0.875,
            source="pytorch/vision, references/classification/train.py with its defaults on 8 "
            "GPUs of 32 images each",
            result="ResNet50_Weights.IMAGENET1K_V1: 76.130 % top-1, 92.862 % top-5; not run here",
        ),
        Recipe(
            name="modern",
            epochs=600,
            batch_size=1024,
            learning_rate=0.5,
            rate_batch=1024,
            warmup_epochs=5,
            weight_decay=2e-5,
            ema=0.999966,  # 1 - 2e-5 * 1024 * 32 / 600 every 32 steps there, hence per step here
            label_smoothing=0.1,
            augment=("random-resized-crop", "flip", "trivialaugment"),
            erase=0.1,
            mixup=0.2,
            cutmix=1.0,
            eval_crop=224 / 232,
            source="pytorch/vision#3995, the recipe of the weights IMAGENET1K_V2. What differs: it "
            "trains at 176 pixels and tests at 224 (here one size, that of the network), sees "
            "every image four times per batch (repeated augmentation; here once), changes the "
            "rate once per epoch (here every step), and lets the bias of the head decay (here not)",
            result="ResNet50_Weights.IMAGENET1K_V2: 80.858 % top-1, 95.434 % top-5, and 80.674 % "
            "without repeated augmentation; not run here",
        ),
    )
}

# The network and the data of every row's command.
_TRAINED = {
    "digits": ("--model", "resnet20", "--data", "digits"),
    "small": ("--model", "resnet20", "--data", "folder:PATH"),
    "finetune": ("--model", "resnet50", "--data", "folder:PATH", "--weights", "imagenet"),
    "paper-cifar": ("--model", "resnet20", "--data", "tfds:cifar10"),
    "paper-imagenet": ("--model", "resnet50", "--data", "tfds:imagenet2012"),
    "mlperf-tiny": ("--model", "resnet8", "--data", "tfds:cifar10"),
    "torchvision-v1": ("--model", "resnet50_v1_5", "--data", "tfds:imagenet2012"),
    "modern": ("--model", "resnet50_v1_5", "--data", "tfds:imagenet2012"),
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
    """`field=value` as a person writes it: Python's numbers and tuples, or plain words."""
    name, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(
            f"A change to a recipe is written field=value, e.g. epochs=5. Received: {assignment!r}"
        )
    name, text = name.strip(), text.strip()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    is_not_text = _KINDS.get(name) is _TEXT and not isinstance(value, str)
    return name, text if is_not_text else value


def _written(field: str, value: Any) -> str:
    """What `_parse` reads back as the value."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    is_safe = not isinstance(value, str) or _parse(f"{field}={text}")[1] == value
    return text if is_safe else repr(value)

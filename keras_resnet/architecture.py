"""Architecture: a frozen dataclass that says all there is to say of one network; and their table.

Pure data: neither Keras nor numpy is imported here, so names can be listed at no cost.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import fnmatch
import functools
import importlib.resources
import json
import math
from typing import Any, Literal

BlockKind = Literal["basic", "bottleneck"]
StemKind = Literal["imagenet", "deep", "cifar"]


class Shortcut(enum.StrEnum):
    """The shortcut options of He et al. 2015, section 3.3.

    `A`: identity everywhere; where the shape changes, the input is subsampled and the new channels
    are zero (no parameters). `B`: projection where the shape changes, identity elsewhere.
    `C`: every shortcut is a projection. `NONE`: no shortcut, the paper's plain counterpart.
    """

    A = "A"
    B = "B"
    C = "C"
    NONE = "none"

    @classmethod
    def parse(cls, value: Shortcut | str) -> Shortcut:
        """The option of a name; `ValueError` if there is none."""
        try:
            return cls(value)
        except ValueError:
            raise ValueError(
                f"Argument `shortcut` must be one of {[str(s) for s in cls]}. "
                f"Received: shortcut={value!r}"
            ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """One block of a network.

    Attributes:
        stage: its stage, counted from 0.
        index: its place in the stage, counted from 0.
        stride: 2 if it halves the image, else 1.
        subsamples: whether it strides or, in a dilated network, dilates in place of striding.
        dilations: of its first 3x3 convolution (its only one, in a bottleneck) and of its second.
        drop_rate: rate of stochastic depth.
    """

    stage: int
    index: int
    stride: int
    subsamples: bool
    dilations: tuple[int, int]
    drop_rate: float

    @property
    def name(self) -> str:
        """Prefix of its layers: stages are counted from 2, like the paper's conv2_x."""
        return f"stage{self.stage + 2}_block{self.index + 1}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network of the residual family, as data.

    Attributes:
        name: registry name, e.g. `"resnet50"`.
        block: `"basic"` (two 3x3 convolutions) or `"bottleneck"` (1x1, 3x3, 1x1).
        blocks: number of blocks in each stage.
        widths: channels of each stage's 3x3 convolutions; in a bottleneck as `base_width` and
            `cardinality` scale them.
        stem: `"imagenet"` (7x7 convolution with stride 2, then pooling with stride 2), `"deep"`
            (three 3x3 convolutions in its place, He et al. 2018) or `"cifar"` (one 3x3).
        source: where the network is defined.
        stem_channels: channels that leave the stem; None: the first stage's width. The first two
            convolutions of a deep stem have half as many.
        stem_norm: whether the stem's convolution is normalized and activated. A pre-activation
            network whose stem is needs no pre-activation in its first block.
        stem_pool: how the stem pools: `"max"` (3x3) or `"conv"` (3x3 convolution with stride 2).
        shortcut: see `Shortcut`.
        projection: where a projection shortcut strides: `"conv"` (in its 1x1 convolution) or
            `"avg"` (2x2 average pooling in front of it, ResNet-D).
        pre_activation: normalize and activate in front of each convolution instead of behind it
            (He et al. 2016).
        stride_on: which convolution of a bottleneck carries the stride: `"1x1"` (v1, the paper) or
            `"3x3"` (v1.5, Goyal et al. 2017). Basic blocks stride on their first convolution.
        stride_at: which block of a stage strides: the `"first"`, from the second stage on, or the
            `"last"`, up to the last stage but one (keras.applications' V2).
        expansion: a bottleneck's output channels over its width.
        base_width: channels of each group of a bottleneck's 3x3 convolution where the width is 64.
        cardinality: groups of a bottleneck's 3x3 convolution (ResNeXt).
        attention: channel attention at the end of each branch: `"none"`, `"se"`
            (squeeze-and-excitation) or `"eca"` (efficient channel attention).
        se_ratio: channels inside squeeze-and-excitation over those outside.
        antialias: blur wherever the network subsamples, shortcuts excepted (Zhang 2019).
        padding: `"symmetric"`, as Caffe and PyTorch pad strided convolutions, or `"same"`, as
            TensorFlow does (all of the odd padding at the end).
        conv_bias: which convolutions carry a bias: `"none"`, `"all"`, or `"bare"`, those that no
            normalization follows.
        norm_on_projection: whether a projection shortcut is normalized.
        norm: `"batch"` or `"group"` normalization (32 groups, or the most that divide both).
        norm_momentum: batch normalization's decay of the moving statistics.
        norm_epsilon: a normalization's addition to the variance.
        zero_init_residual: start each branch at 0, by the scale of its last normalization or, in a
            pre-activation network, by its last kernel, so that every block starts as the identity
            (Goyal et al. 2017, section 5.1).
        block_dropout: rate of dropout in front of each block's last 3x3 convolution (wide ResNets).
        stochastic_depth: rate at which the last block's branch is dropped while training; it grows
            linearly from 0 at the first (Huang et al. 2016).
        dropout: rate of dropout in front of the classifier.
        output_stride: input size over the size of the last feature map; less than `native_stride`
            dilates convolutions instead of striding (for segmentation). None: `native_stride`.
        classes: default number of classes.
        input_size: default height and width, in pixels.
    """

    name: str
    block: BlockKind
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stem: StemKind
    source: str
    stem_channels: int | None = None
    stem_norm: bool = True
    stem_pool: Literal["max", "conv"] = "max"
    shortcut: Shortcut = Shortcut.B
    projection: Literal["conv", "avg"] = "conv"
    pre_activation: bool = False
    stride_on: Literal["1x1", "3x3"] = "1x1"
    stride_at: Literal["first", "last"] = "first"
    expansion: int = 4
    base_width: int = 64
    cardinality: int = 1
    attention: Literal["none", "se", "eca"] = "none"
    se_ratio: float = 1 / 16
    antialias: bool = False
    padding: Literal["symmetric", "same"] = "symmetric"
    conv_bias: Literal["none", "all", "bare"] = "none"
    norm_on_projection: bool = True
    norm: Literal["batch", "group"] = "batch"
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    zero_init_residual: bool = False
    block_dropout: float = 0.0
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    output_stride: int | None = None
    classes: int = 1000
    input_size: int = 224

    def __post_init__(self) -> None:
        # Also reached by `replace` and `from_dict`, so a user's override is checked here, once.
        object.__setattr__(self, "shortcut", Shortcut.parse(self.shortcut))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "widths", tuple(self.widths))
        for name, choices in _CHOICES.items():
            _check(self, name, getattr(self, name) in choices, f"be one of {list(choices)}")
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise ValueError(
                "Arguments `blocks` and `widths` must name the same number of stages, one or more. "
                f"Received: blocks={self.blocks}, widths={self.widths}"
            )
        for name in ("blocks", "widths"):
            values = getattr(self, name)
            _check(self, name, all(map(_is_count, values)), "hold positive integers")
        for name in ("expansion", "base_width", "cardinality", "classes", "input_size"):
            _check(self, name, _is_count(getattr(self, name)), "be a positive integer")
        is_good = self.stem_channels is None or _is_count(self.stem_channels)
        _check(self, "stem_channels", is_good, "be None or a positive integer")
        for name in _FLAGS:
            _check(self, name, isinstance(getattr(self, name), bool), "be True or False")
        for name in ("norm_momentum", "block_dropout", "stochastic_depth", "dropout"):
            rate = getattr(self, name)
            _check(self, name, _is_number(rate) and 0 <= rate < 1, "be a number in [0, 1)")
        epsilon = self.norm_epsilon
        in_range = _is_number(epsilon) and 0 < epsilon < math.inf
        _check(self, "norm_epsilon", in_range, "be a positive number, e.g. 1e-5")
        in_range = _is_number(self.se_ratio) and 0 < self.se_ratio <= 1
        _check(self, "se_ratio", in_range, "be a number in (0, 1], e.g. 0.0625")
        strides = [self.stem_stride * 2**n for n in range(len(self.blocks))]
        is_good = self.output_stride is None or self.output_stride in strides
        _check(self, "output_stride", is_good, f"be None or one of {strides}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.block == "basic":
            is_good = self.cardinality == 1 and self.base_width == 64
            _check(self, "block", is_good, "be 'bottleneck' for a `cardinality` or `base_width`")
        if self.antialias:
            is_good = self.block == "basic" or self.stride_on == "3x3"
            _check(self, "stride_on", is_good, "be '3x3' with `antialias`")
        if self.output_stride is not None and self.output_stride < self.native_stride:
            # Where nothing strides, nothing is subsampled: an option-A shortcut stays as it is.
            is_good = self.block == "basic" or self.stride_on == "3x3"
            _check(self, "stride_on", is_good, "be '3x3' to dilate (the 1x1 of v1 cannot)")
        if not self.stem_norm:
            is_good = self.pre_activation and self.stem != "deep"
            _check(self, "stem_norm", is_good, "be True without `pre_activation` or with 'deep'")

    @property
    def is_plain(self) -> bool:
        """Whether the network has no shortcuts."""
        return self.shortcut is Shortcut.NONE

    @property
    def stem_stride(self) -> int:
        """Input size over the size that leaves the stem."""
        return 1 if self.stem == "cifar" else 4

    @property
    def native_stride(self) -> int:
        """Input size over the size of the last feature map, where nothing is dilated."""
        return self.stem_stride * 2 ** (len(self.blocks) - 1)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the stages' outputs: `("C2", "C3", ...)`."""
        return tuple(f"C{stage + 2}" for stage in range(len(self.blocks)))

    def stage_channels(self, stage: int) -> int:
        """Output channels of stage `stage`, counted from 0."""
        expansion = self.expansion if self.block == "bottleneck" else 1
        return self.widths[stage] * expansion

    def plan(self) -> list[BlockPlan]:
        """Every block in order, with its stride, dilations and rate of stochastic depth."""
        goal = self.output_stride or self.native_stride
        plans: list[BlockPlan] = []
        stride_now, dilation = self.stem_stride, 1
        for stage, count in enumerate(self.blocks):
            strided = -1
            if self.stride_at == "first" and stage > 0:
                strided = 0
            elif self.stride_at == "last" and stage < len(self.blocks) - 1:
                strided = count - 1
            for index in range(count):
                subsamples = index == strided
                stride, entry_dilation = 1, dilation
                if subsamples and stride_now < goal:
                    stride, stride_now = 2, stride_now * 2
                elif subsamples:
                    dilation *= 2
                rate = self.stochastic_depth * len(plans) / max(1, sum(self.blocks) - 1)
                plans.append(
                    BlockPlan(
                        stage=stage,
                        index=index,
                        stride=stride,
                        subsamples=subsamples,
                        dilations=(entry_dilation, dilation),
                        drop_rate=rate,
                    )
                )
        return plans

    def replace(self, **changes: Any) -> Architecture:
        """A copy with some attributes changed; the values are checked like new ones."""
        unknown = sorted(set(changes) - {f.name for f in dataclasses.fields(self)})
        if unknown:
            raise ValueError(
                f"Architecture has no attribute {unknown[0]!r}; it has "
                f"{[f.name for f in dataclasses.fields(self)]}. Received: {unknown[0]}="
                f"{changes[unknown[0]]!r}"
            )
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} | {
            "shortcut": str(self.shortcut)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """The inverse of `to_dict`. Unknown or missing attributes raise `ValueError`."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"Not a description of an architecture: {error}") from None


_CHOICES = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "deep", "cifar"),
    "stem_pool": ("max", "conv"),
    "projection": ("conv", "avg"),
    "stride_on": ("1x1", "3x3"),
    "stride_at": ("first", "last"),
    "attention": ("none", "se", "eca"),
    "padding": ("symmetric", "same"),
    "conv_bias": ("none", "all", "bare"),
    "norm": ("batch", "group"),
}
_FLAGS = ("stem_norm", "pre_activation", "antialias", "norm_on_projection", "zero_init_residual")


def _check(architecture: Architecture, name: str, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise ValueError(
            f"Argument `{name}` must {wanted}. Received: {name}={getattr(architecture, name)!r}"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


ARCHITECTURES: dict[str, Architecture] = {}
"""Registry name to architecture; the one table that every builder and command reads."""

BUILDERS: dict[str, str] = {}
"""Name of the public builder to registry name."""


def _add(builder: str, **fields: Any) -> None:
    architecture = Architecture(**fields)
    ARCHITECTURES[architecture.name] = architecture
    BUILDERS[builder] = architecture.name


_PAPER = "He et al. 2015, arXiv:1512.03385"
_PREACT = "He et al. 2016, arXiv:1603.05027"

# ImageNet, table 1 of the paper: stages of 64, 128, 256 and 512 channels.
_IMAGENET: dict[int, dict[str, Any]] = {
    depth: {"block": block, "blocks": blocks, "widths": (64, 128, 256, 512), "stem": "imagenet"}
    for depth, block, blocks in (
        (18, "basic", (2, 2, 2, 2)),
        (34, "basic", (3, 4, 6, 3)),
        (50, "bottleneck", (3, 4, 6, 3)),
        (101, "bottleneck", (3, 4, 23, 3)),
        (152, "bottleneck", (3, 8, 36, 3)),
        (200, "bottleneck", (3, 24, 36, 3)),
        (270, "bottleneck", (4, 29, 53, 4)),
    )
}

for _depth in (18, 34, 50, 101, 152):
    _row = _IMAGENET[_depth]
    _add(f"ResNet{_depth}", name=f"resnet{_depth}", source=f"{_PAPER}, table 1", **_row)
    if _row["block"] == "bottleneck":
        _add(
            f"ResNet{_depth}V1_5",
            name=f"resnet{_depth}_v1_5",
            stride_on="3x3",
            source="Goyal et al. 2017, arXiv:1706.02677, section 5.1",
            **_row,
        )
    else:
        _add(
            f"PlainNet{_depth}",
            name=f"plain{_depth}",
            shortcut=Shortcut.NONE,
            source=f"{_PAPER}, section 3.3",
            **_row,
        )

# CIFAR, section 4.2 of the paper: 6n + 2 layers in stages of 16, 32 and 64 channels.
_CIFAR: dict[str, Any] = {"stem": "cifar", "classes": 10, "input_size": 32}
_CIFAR_WIDTHS = (16, 32, 64)

for _depth in (20, 32, 44, 56, 110, 1202):
    _row = {
        "block": "basic",
        "blocks": ((_depth - 2) // 6,) * 3,
        "widths": _CIFAR_WIDTHS,
        "source": f"{_PAPER}, section 4.2",
        **_CIFAR,
    }
    _add(f"ResNet{_depth}", name=f"resnet{_depth}", shortcut=Shortcut.A, **_row)
    if _depth != 1202:
        _add(f"PlainNet{_depth}", name=f"plain{_depth}", shortcut=Shortcut.NONE, **_row)

# The reference of MLPerf Tiny keeps Keras's padding, epsilon and convolution biases, and does not
# normalize its projections: 78,666 parameters with the BN statistics.
_add(
    "ResNet8",
    name="resnet8",
    block="basic",
    blocks=(1, 1, 1),
    widths=_CIFAR_WIDTHS,
    padding="same",
    conv_bias="all",
    norm_on_projection=False,
    norm_epsilon=1e-3,
    source="MLPerf Tiny v0.5, image classification, resnet_v1_eembc",
    **_CIFAR,
)

# Pre-activation. The released ImageNet networks stride on the 3x3, the CIFAR ones on the first 1x1.
for _depth in (18, 34, 50, 101, 152, 200):
    _add(
        f"ResNet{_depth}PreAct",
        name=f"resnet{_depth}_preact",
        pre_activation=True,
        stride_on="3x3",
        norm_on_projection=False,
        source=f"{_PREACT}, figure 4 (e)",
        **_IMAGENET[_depth],
    )
for _depth, _block, _layers, _shortcut in (
    (110, "basic", 2, Shortcut.A),
    (164, "bottleneck", 3, Shortcut.B),
):
    _add(
        f"ResNet{_depth}PreAct",
        name=f"resnet{_depth}_preact",
        block=_block,
        blocks=((_depth - 2) // (3 * _layers),) * 3,
        widths=_CIFAR_WIDTHS,
        shortcut=_shortcut,
        pre_activation=True,
        norm_on_projection=False,
        source=f"{_PREACT}, table 3",
        **_CIFAR,
    )
for _depth in (50, 101, 152):
    _add(
        f"ResNet{_depth}V2",
        name=f"resnet{_depth}_v2",
        pre_activation=True,
        stem_norm=False,
        stride_on="3x3",
        stride_at="last",
        conv_bias="bare",
        norm_on_projection=False,
        norm_epsilon=1.001e-5,
        source=f"{_PREACT}, as in keras.applications.resnet_v2",
        **_IMAGENET[_depth],
    )

# ResNet-D: a deep stem, and projections that pool instead of skipping three pixels of four.
_RESNET_D: dict[str, Any] = {"stem": "deep", "projection": "avg", "stride_on": "3x3"}
for _depth in (18, 34, 50, 101, 152, 200):
    _add(
        f"ResNet{_depth}D",
        name=f"resnet{_depth}d",
        source="He et al. 2018, arXiv:1812.01187, figure 2",
        **_IMAGENET[_depth] | _RESNET_D,
    )

# ResNeXt: the 3x3 of a bottleneck in groups; 32x4d is 32 groups of 4 channels in the first stage.
for _depth, _cardinality, _base_width in ((50, 32, 4), (101, 32, 8), (101, 64, 4)):
    _add(
        f"ResNeXt{_depth}_{_cardinality}x{_base_width}d",
        name=f"resnext{_depth}_{_cardinality}x{_base_width}d",
        stride_on="3x3",
        cardinality=_cardinality,
        base_width=_base_width,
        source="Xie et al. 2017, arXiv:1611.05431, table 1",
        **_IMAGENET[_depth],
    )
_add(
    "ResNeXt29_8x64d",
    name="resnext29_8x64d",
    block="bottleneck",
    blocks=(3, 3, 3),
    widths=(64, 128, 256),
    stride_on="3x3",
    cardinality=8,
    base_width=64,
    source="Xie et al. 2017, arXiv:1611.05431, section 5.3",
    **_CIFAR,
)

# Wide ResNets. ImageNet: bottlenecks twice as wide inside. CIFAR: WRN-depth-factor, 6n + 4 layers.
for _depth in (50, 101):
    _add(
        f"WideResNet{_depth}_2",
        name=f"wide_resnet{_depth}_2",
        stride_on="3x3",
        base_width=128,
        source="Zagoruyko and Komodakis 2016, arXiv:1605.07146, section 3.4",
        **_IMAGENET[_depth],
    )
for _depth, _factor in ((16, 8), (28, 10), (40, 2)):
    _add(
        f"WRN{_depth}_{_factor}",
        name=f"wrn_{_depth}_{_factor}",
        block="basic",
        blocks=((_depth - 4) // 6,) * 3,
        widths=tuple(width * _factor for width in _CIFAR_WIDTHS),
        stem_channels=16,
        pre_activation=True,
        norm_on_projection=False,
        block_dropout=0.3,
        source="Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1",
        **_CIFAR,
    )

# Channel attention.
for _depth in (18, 34, 50, 101, 152):
    _add(
        f"SEResNet{_depth}",
        name=f"seresnet{_depth}",
        stride_on="3x3",
        attention="se",
        source="Hu et al. 2018, arXiv:1709.01507, table 1",
        **_IMAGENET[_depth],
    )
_add(
    "SEResNeXt50_32x4d",
    name="seresnext50_32x4d",
    stride_on="3x3",
    cardinality=32,
    base_width=4,
    attention="se",
    source="Hu et al. 2018, arXiv:1709.01507, table 1",
    **_IMAGENET[50],
)
_add(
    "ECAResNet50D",
    name="ecaresnet50d",
    attention="eca",
    source="Wang et al. 2020, arXiv:1910.03151, figure 2, on ResNet-50-D",
    **_IMAGENET[50] | _RESNET_D,
)

# ResNet-RS: ResNet-D with squeeze-and-excitation and a strided convolution for the stem's pooling.
for _depth, _size in ((50, 160), (101, 192), (152, 256), (200, 256), (270, 256)):
    _add(
        f"ResNetRS{_depth}",
        name=f"resnetrs{_depth}",
        stem_pool="conv",
        attention="se",
        se_ratio=0.25,
        input_size=_size,
        source="Bello et al. 2021, arXiv:2103.07579, table 7",
        **_IMAGENET[_depth] | _RESNET_D,
    )

_add(
    "ResNetBlur50",
    name="resnetblur50",
    stride_on="3x3",
    antialias=True,
    source="Zhang 2019, arXiv:1904.11486, section 3.2",
    **_IMAGENET[50],
)


def list_models(pattern: str = "*") -> list[str]:
    """Registry names that match an `fnmatch` pattern, e.g. `"resnet*"`, in the table's order."""
    return fnmatch.filter(ARCHITECTURES, pattern)


def get_architecture(name: str) -> Architecture:
    """The architecture behind a registry name.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    try:
        return ARCHITECTURES[name]
    except (KeyError, TypeError):
        near = difflib.get_close_matches(str(name).lower(), ARCHITECTURES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see keras_resnet.list_models()."
        raise ValueError(f"No architecture of this name; {hint} Received: {name!r}") from None


@dataclasses.dataclass(frozen=True)
class Counts:
    """The size of a network, with its classifier and at its default input size.

    Attributes:
        parameters: trainable parameters.
        statistics: moving averages of batch normalization, which are not trained.
        multiply_adds: multiplications with additions in convolutions and matrix products for one
            image.
    """

    parameters: int
    statistics: int
    multiply_adds: int

    @property
    def gmacs(self) -> str:
        """Billions of multiply-adds, to four digits."""
        return f"{self.multiply_adds / 1e9:.4g}"


@functools.cache
def _all_counts() -> dict[str, list[int]]:
    text = importlib.resources.files("keras_resnet").joinpath("networks.json").read_text("utf-8")
    counts: dict[str, list[int]] = json.loads(text)
    return counts


def get_counts(name: str) -> Counts:
    """What was counted on the built network of a registry name, without building it.

    Raises:
        ValueError: if there is no such name.
    """
    return Counts(*_all_counts()[get_architecture(name).name])

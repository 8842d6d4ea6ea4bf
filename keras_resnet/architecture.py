"""Architecture: a frozen dataclass that says all there is to say of one network; and their table.

Pure data: neither Keras nor numpy is imported here, so names can be listed at no cost.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import fnmatch
import math
from typing import Any, Literal

BlockKind = Literal["basic", "bottleneck"]
StemKind = Literal["imagenet", "cifar"]


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
class Architecture:
    """One network of the residual family, as data.

    Attributes:
        name: registry name, e.g. `"resnet50"`.
        block: `"basic"` (two 3x3 convolutions) or `"bottleneck"` (1x1, 3x3, 1x1).
        blocks: number of blocks in each stage.
        widths: channels of each stage's 3x3 convolutions.
        stem: `"imagenet"` (7x7 convolution with stride 2, then 3x3 max pooling with stride 2) or
            `"cifar"` (one 3x3 convolution).
        shortcut: see `Shortcut`.
        stride_on: which convolution of a bottleneck carries the stride: `"1x1"` (v1, the paper) or
            `"3x3"` (v1.5, Goyal et al. 2017). Basic blocks stride on their first convolution.
        expansion: a bottleneck's output channels over its width.
        padding: `"symmetric"`, as Caffe and PyTorch pad strided convolutions, or `"same"`, as
            TensorFlow does (all of the odd padding at the end).
        conv_bias: whether the convolutions carry a bias in front of their normalization.
        norm_on_projection: whether a projection shortcut is normalized.
        norm_momentum: batch normalization's decay of the moving statistics.
        norm_epsilon: batch normalization's addition to the variance.
        zero_init_residual: start each block's last normalization scale at 0, so that every block
            starts as the identity (Goyal et al. 2017, section 5.1).
        classes: default number of classes.
        input_size: default height and width, in pixels.
        source: where the network is defined.
    """

    name: str
    block: BlockKind
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stem: StemKind
    source: str
    shortcut: Shortcut = Shortcut.B
    stride_on: Literal["1x1", "3x3"] = "1x1"
    expansion: int = 4
    padding: Literal["symmetric", "same"] = "symmetric"
    conv_bias: bool = False
    norm_on_projection: bool = True
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    zero_init_residual: bool = False
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
        for name in ("expansion", "classes", "input_size"):
            _check(self, name, _is_count(getattr(self, name)), "be a positive integer")
        for name in ("conv_bias", "norm_on_projection", "zero_init_residual"):
            _check(self, name, isinstance(getattr(self, name), bool), "be True or False")
        momentum, epsilon = self.norm_momentum, self.norm_epsilon
        in_range = _is_number(momentum) and 0 <= momentum < 1
        _check(self, "norm_momentum", in_range, "be a number in [0, 1), e.g. 0.9")
        in_range = _is_number(epsilon) and 0 < epsilon < math.inf
        _check(self, "norm_epsilon", in_range, "be a positive number, e.g. 1e-5")

    @property
    def is_plain(self) -> bool:
        """Whether the network has no shortcuts."""
        return self.shortcut is Shortcut.NONE

    def stage_channels(self, stage: int) -> int:
        """Output channels of stage `stage`, counted from 0."""
        expansion = self.expansion if self.block == "bottleneck" else 1
        return self.widths[stage] * expansion

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
    "stem": ("imagenet", "cifar"),
    "stride_on": ("1x1", "3x3"),
    "padding": ("symmetric", "same"),
}


def _check(architecture: Architecture, name: str, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise ValueError(
            f"Argument `{name}` must {wanted}. Received: {name}={getattr(architecture, name)!r}"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_PAPER = "He et al. 2015, arXiv:1512.03385"

ARCHITECTURES: dict[str, Architecture] = {}
"""Registry name to architecture; the one table that every builder and command reads."""

BUILDERS: dict[str, str] = {}
"""Name of the public builder to registry name."""


def _add(builder: str, **fields: Any) -> None:
    architecture = Architecture(**fields)
    ARCHITECTURES[architecture.name] = architecture
    BUILDERS[builder] = architecture.name


# ImageNet, table 1 of the paper: stages of 64, 128, 256 and 512 channels.
for _depth, _block, _blocks in (
    (18, "basic", (2, 2, 2, 2)),
    (34, "basic", (3, 4, 6, 3)),
    (50, "bottleneck", (3, 4, 6, 3)),
    (101, "bottleneck", (3, 4, 23, 3)),
    (152, "bottleneck", (3, 8, 36, 3)),
):
    _common: dict[str, Any] = {
        "block": _block,
        "blocks": _blocks,
        "widths": (64, 128, 256, 512),
        "stem": "imagenet",
    }
    _add(f"ResNet{_depth}", name=f"resnet{_depth}", source=f"{_PAPER}, table 1", **_common)
    if _block == "bottleneck":
        _add(
            f"ResNet{_depth}V1_5",
            name=f"resnet{_depth}_v1_5",
            stride_on="3x3",
            source="Goyal et al. 2017, arXiv:1706.02677, section 5.1",
            **_common,
        )
    else:
        _add(
            f"PlainNet{_depth}",
            name=f"plain{_depth}",
            shortcut=Shortcut.NONE,
            source=f"{_PAPER}, section 3.3",
            **_common,
        )

# CIFAR, section 4.2 of the paper: 6n + 2 layers in stages of 16, 32 and 64 channels.
for _depth in (20, 32, 44, 56, 110, 1202):
    _common = {
        "block": "basic",
        "blocks": ((_depth - 2) // 6,) * 3,
        "widths": (16, 32, 64),
        "stem": "cifar",
        "source": f"{_PAPER}, section 4.2",
        "classes": 10,
        "input_size": 32,
    }
    _add(f"ResNet{_depth}", name=f"resnet{_depth}", shortcut=Shortcut.A, **_common)
    if _depth != 1202:
        _add(f"PlainNet{_depth}", name=f"plain{_depth}", shortcut=Shortcut.NONE, **_common)

# The reference of MLPerf Tiny keeps Keras's padding, epsilon and convolution biases, and does not
# normalize its projections: 78,666 parameters with the BN statistics.
_add(
    "ResNet8",
    name="resnet8",
    block="basic",
    blocks=(1, 1, 1),
    widths=(16, 32, 64),
    stem="cifar",
    padding="same",
    conv_bias=True,
    norm_on_projection=False,
    norm_epsilon=1e-3,
    classes=10,
    input_size=32,
    source="MLPerf Tiny v0.5, image classification, resnet_v1_eembc",
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

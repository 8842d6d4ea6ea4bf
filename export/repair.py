"""Leaving the fewest layers in float that make a quantized network pass."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.export.layers import CEILING_DB, LayerError

if TYPE_CHECKING:
    from keras_resnet.export.verification import Verification

_TIMED_RUNS = 15

# Names of the tensors whose operators stay in float, to the bytes of a file.
Requantize = Callable[[tuple[str, ...]], bytes]
# A file, and the names of the tensors whose operators were left in float, to the verdict.
Check = Callable[[bytes, tuple[str, ...]], "Verification"]


class RepairWarning(UserWarning):
    """An export that passes because layers of it stay in float, at a price."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repair:
    """What it took to make a quantized file pass.

    Attributes:
        layers: the Keras layers that stay in float32.
        tensors: the tensors of the file whose operators these are.
        drop_before: accuracy lost with every layer quantized, as a fraction of the evaluation
            images; None where there were none.
        drop_after: the same with the repair.
        bytes_before: size of the file with every layer quantized.
        bytes_after: the same with the repair.
        tried: how many files were made to find it.
        slowdown: time of the repaired file over that of the quantized one, the median of runs side
            by side on this machine; None if it was read back. It is not part of `to_dict`: the same
            export has to give the same bundle.
    """

    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    drop_before: float | None
    drop_after: float | None
    bytes_before: int
    bytes_after: int
    tried: int
    slowdown: float | None = dataclasses.field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        values = dataclasses.asdict(self)
        del values["slowdown"]
        return values | {"layers": list(self.layers), "tensors": list(self.tensors)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Repair:
        """The inverse of `to_dict`."""
        return cls(
            **{**values, "layers": tuple(values["layers"]), "tensors": tuple(values["tensors"])}
        )

    def __str__(self) -> str:
        subject = "layer stays" if len(self.layers) == 1 else "layers stay"
        parts = [f"repaired: {len(self.layers)} {subject} in float32: {', '.join(self.layers)}"]
        if self.drop_before is not None and self.drop_after is not None:
            parts.append(f"drop {self.drop_before:.2%} -> {self.drop_after:.2%}")
        parts.append(f"{self.bytes_before:,} -> {self.bytes_after:,} bytes")
        if self.slowdown is not None:
            parts.append(f"time x {self.slowdown:.2f}")
        return "; ".join([*parts, f"files tried: {self.tried}"])


def repair(
    content: bytes,
    before: Verification,
    ranking: Sequence[LayerError],
    requantize: Requantize,
    check: Check,
) -> tuple[bytes, Verification]:
    """Finds layers that have to stay in float, so that none of them could be quantized as well.

    The shortest beginning of the ranking that passes is found by doubling and bisection; then every
    layer of it is tried in 8 bits again, the least bad first. The last file to be checked is the
    one that is handed out (or the rejected one, if nothing helps).

    Args:
        content: the file that was rejected, with every layer quantized.
        before: its verdict.
        ranking: of `compare_layers`, the worst first.
        requantize: makes a file in which the operators of these tensors stay in float.
        check: gives the verdict on such a file.

    Returns:
        The file and its verdict, on which `repair` says what was done; or, if the file fails with
        all of these layers in float, the rejected one and its verdict with that said.
    """
    tensors: dict[str, list[str]] = {}
    for error in ranking:
        if error.own_sqnr_db < CEILING_DB:
            tensors.setdefault(error.layer, []).extend(error.tensors)
    tried: dict[frozenset[str], tuple[bytes, Verification]] = {}

    def attempt(layers: Sequence[str]) -> Verification:
        key = frozenset(layers)
        if key not in tried:
            names = _tensors_of(layers, tensors)
            file = requantize(names)
            tried[key] = file, check(file, names)
        return tried[key][1]

    layers = _shortest_beginning(list(tensors), lambda chosen: attempt(chosen).passed)
    if layers is None:
        rejected = check(content, ())
        problem = (
            "with every layer that loses precision in float32 it is rejected as well, so the fault "
            "is not in the rounding of these layers"
        )
        return content, dataclasses.replace(rejected, problems=(*rejected.problems, problem))
    for layer in reversed(layers):
        fewer = [other for other in layers if other != layer]
        if fewer and attempt(fewer).passed:
            layers = fewer
    names = _tensors_of(layers, tensors)
    repaired, _ = tried[frozenset(layers)]
    after = check(repaired, names)
    record = Repair(
        layers=tuple(layers),
        tensors=names,
        drop_before=_drop(before),
        drop_after=_drop(after),
        bytes_before=len(content),
        bytes_after=len(repaired),
        tried=len(tried),
        slowdown=_slowdown(content, repaired),
    )
    warning = (
        f"{len(layers)} of {len(tensors)} layers compute in float32; targets that know integers "
        "only will refuse the file"
    )
    return repaired, dataclasses.replace(after, repair=record, warnings=(*after.warnings, warning))


def _drop(verification: Verification) -> float | None:
    return None if verification.accuracy is None else verification.accuracy.drop


def _tensors_of(layers: Sequence[str], tensors: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(name for layer in layers for name in tensors[layer])


def _shortest_beginning(order: list[str], passes: Callable[[list[str]], bool]) -> list[str] | None:
    """The shortest beginning of a list that passes, supposing that all longer ones do, or None."""
    high = 1
    while not passes(order[:high]):
        if high >= len(order):
            return None
        high = min(2 * high, len(order))
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(order[:middle]) else (middle, high)
    return order[:high]


def _slowdown(before: bytes, after: bytes) -> float:
    """Median of the time of one file over that of another, run in alternation."""
    from ai_edge_litert.interpreter import Interpreter

    interpreters = []
    for content in (before, after):
        interpreter = Interpreter(model_content=content, num_threads=os.cpu_count())
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
        interpreter.invoke()
        interpreters.append(interpreter)
    ratios = []
    for _ in range(_TIMED_RUNS):
        seconds = []
        for interpreter in interpreters:
            start = time.perf_counter()
            interpreter.invoke()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)

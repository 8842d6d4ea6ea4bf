"""What a kind of device is given where nobody said otherwise, and whether it takes a file.

What a device refuses is told by the rules of `targets.py`, from the file itself; here is only which
of its runtimes a device has, and what is worth choosing for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.export.graph import read_graph
from keras_resnet.export.targets import Finding, check

_SMALL = "a quarter of float32's bytes, and a third of its time in XNNPACK's kernels"
_ENDS = "uint8 pixels, as cameras give them; float32 probabilities, for 8-bit ones tie"


class TargetError(ValueError):
    """A file that a device does not take.

    Attributes:
        findings: what the device has against it.
    """

    def __init__(self, target: str, findings: tuple[Finding, ...]):
        super().__init__(
            f"Target {target!r} does not take the file:\n" + "\n".join(map(str, findings))
        )
        self.findings = findings


class TargetWarning(UserWarning):
    """A device takes a file, but runs it slowly."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a kind of device is given.

    Attributes:
        name: of the kind of device.
        runtimes: what runs files there, names from `targets.TARGETS`; all of them must take it.
        choices: for `scheme`, `io` and `batch` of `to_tflite`, the value and the reason for it.
        c_array: whether the device has no files, and gets the network as C++ source.
    """

    name: str
    runtimes: tuple[str, ...]
    choices: Mapping[str, tuple[Any, str]]
    c_array: bool = False

    def io(self, scheme: str, io: str) -> str:
        """The `io` of a file: what was asked for, or this device's instead of `"auto"`."""
        return str(self.choices["io"][0]) if (scheme, io) == ("int8", "auto") else io

    def slow(self, content: bytes) -> tuple[Finding, ...]:
        """What a device of this kind runs slowly.

        Raises:
            TargetError: if it does not take the file.
        """
        graph = read_graph(content)
        found = [finding for runtime in self.runtimes for finding in check(graph, runtime)]
        # Runtimes that share a rule find the same.
        distinct = tuple({(finding.rule, finding.text): finding for finding in found}.values())
        refused = tuple(finding for finding in distinct if finding.severity == "refused")
        if refused:
            raise TargetError(self.name, refused)
        return tuple(finding for finding in distinct if finding.severity == "slow")

    def explain(self, **chosen: Any) -> str:
        """One line for each of this device's choices that was taken.

        Args:
            chosen: the arguments `scheme`, `io` and `batch` as `to_tflite` got them.
        """
        return "\n".join(
            f"{self.name}: {name} {value}: {reason}"
            for name, (value, reason) in self.choices.items()
            if chosen[name] in (value, "auto") and (name != "io" or chosen["scheme"] == "int8")
        )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "pi",
            ("xnnpack",),
            {
                "scheme": ("int8", _SMALL),
                "io": ("auto", _ENDS),
                "batch": (1, "a camera gives one image at a time"),
            },
        ),
        Preset(
            "android",
            ("mediapipe", "xnnpack"),
            {
                "scheme": ("int8", _SMALL),
                "io": ("auto", _ENDS + "; MediaPipe takes no int8"),
                "batch": (1, "MediaPipe's ImageClassifier takes one image at a time"),
            },
        ),
        Preset(
            "web",
            ("web",),
            {
                "scheme": ("int8", _SMALL + "; the page loads as much sooner"),
                "io": ("auto", _ENDS + "; LiteRT.js takes no int8"),
                "batch": (1, "LiteRT.js takes no open batch, and a page shows one image"),
            },
        ),
        Preset(
            "tflm",
            ("tflm",),
            {
                "scheme": ("int8", "what microcontrollers' fast kernels (CMSIS-NN, ESP-NN) are of"),
                "io": ("int8", "TFLite Micro's own type: no operator converts at either end"),
                "batch": (1, "TFLite Micro cannot resize, and every image more takes memory"),
            },
            c_array=True,
        ),
    )
}


def get_preset(name: str) -> Preset:
    """What a kind of device is given.

    Raises:
        ValueError: if there is none of this name, with the names that there are.
    """
    if name not in PRESETS:
        raise ValueError(f"Argument `target` must be one of {list(PRESETS)}. Received: {name!r}")
    return PRESETS[name]

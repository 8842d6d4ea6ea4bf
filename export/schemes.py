"""The number formats that a network can be exported in, and how close each must come."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A number format.

    Attributes:
        name: as it is written into a bundle.
        weights: type of the weights.
        activations: type of what flows between the layers.
        input_dtype: type of the raw pixels 0..255 that the file takes.
        max_difference: largest difference of a probability from the source model's on the golden
            images, or None where rounding alone may change single probabilities a lot.
        max_total_variation: largest mean, over the golden images, of the share of probability that
            moved to another class (half the sum of absolute differences). Rounding to 8 bits moves
            a few thousandths; feeding wrong pixels moves tenths.
    """

    name: str
    weights: str
    activations: str
    input_dtype: str
    max_difference: float | None
    max_total_variation: float

    @property
    def is_calibrated(self) -> bool:
        """Whether ranges of the activations have to be read from images."""
        return self.activations != "float32"


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("float32", "float32", "float32", "float32", 1e-4, 1e-4),
        Scheme("float16", "float16", "float32", "float32", 2e-2, 5e-3),
        Scheme("dynamic_int8", "int8", "float32", "float32", None, 0.05),
        Scheme("int8", "int8", "int8", "uint8", None, 0.10),
        Scheme("int16x8", "int8", "int16", "float32", None, 0.05),
    )
}


def get_scheme(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        ValueError: if there is none, with the names that there are.
    """
    if name not in SCHEMES:
        raise ValueError(f"Argument `scheme` must be one of {list(SCHEMES)}. Received: {name!r}")
    return SCHEMES[name]

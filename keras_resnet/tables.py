"""Tables for people, in plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import Any


def columns(rows: Sequence[Sequence[Any]], left: Collection[int] = (0,)) -> list[str]:
    """Lines of a table whose columns line up: those of `left` to the left, others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        blanks = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        padded = [
            cell + blank if i in left else blank + cell
            for i, (cell, blank) in enumerate(zip(row, blanks, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _width(text: str) -> int:
    """How many cells of a terminal a text takes: letters of East Asia two, combining marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "FW")
        for letter in text
    )

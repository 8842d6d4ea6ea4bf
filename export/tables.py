"""Reading flatbuffers from files that nobody vouches for.

The classes that flatc generates trust every offset of a file: on a damaged one they raise
`struct.error`, `IndexError`, `MemoryError` and others, loop for hours over a length that was a
weight, or return numbers from the wrong place. Here every number is checked against the file's
end before it is read, so that whatever is wrong with a file comes out as one error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

# A file of some kilobytes can name the same table thousands of times in thousands of places. Read
# once, a table takes 8 bytes with the offset that leads to it; the limit leaves room for sharing.
_BYTES_PER_TABLE = 4
_NUMBERS_PER_BYTE = 2
_ALWAYS = 1000


class TFLiteFileError(ValueError):
    """A file that is no TFLite file, or a damaged one."""


class Content:
    """The bytes of a flatbuffer, and how much of them was asked for."""

    def __init__(self, content: bytes) -> None:
        self.bytes = content
        self._tables = 0
        self._numbers = 0

    def root(self) -> Table:
        """The table that the file starts with."""
        return Table(self, int(self.number("<I", 0)))

    def number(self, kind: str, at: int) -> int | float:
        """The number of a `struct` format at an offset.

        Raises:
            TFLiteFileError: if it would lie outside the file.
        """
        self.check(at, struct.calcsize(kind))
        return struct.unpack_from(kind, self.bytes, at)[0]

    def check(self, at: int, size: int) -> None:
        """Raises unless these bytes are in the file."""
        if at < 0 or at + size > len(self.bytes):
            raise TFLiteFileError(
                "The file is damaged or cut off: it refers to "
                f"bytes {at} to {at + size} of {len(self.bytes)}"
            )

    def count(self, *, tables: int = 0, numbers: int = 0) -> None:
        """Raises when more was asked for than a file of this size can hold."""
        self._tables += tables
        self._numbers += numbers
        size = len(self.bytes)
        too_many_tables = self._tables > _ALWAYS + size // _BYTES_PER_TABLE
        if too_many_tables or self._numbers > _ALWAYS + size * _NUMBERS_PER_BYTE:
            raise TFLiteFileError(
                f"The file is damaged: its {size} bytes refer to the same places again and again"
            )


class Table:
    """A table of a flatbuffer; fields are named by their position in the schema.

    Every method raises `TFLiteFileError` where the file is damaged, and returns what the schema
    gives as default where the field is missing.
    """

    def __init__(self, content: Content, at: int) -> None:
        content.count(tables=1)
        self._content = content
        self._at = at
        self._fields = at - int(content.number("<i", at))
        self._fields_size = int(content.number("<H", self._fields))
        content.check(self._fields, self._fields_size)
        content.check(at, int(content.number("<H", self._fields + 2)))

    def number(self, field: int, kind: str, default: float = 0) -> int | float:
        """A number, of a `struct` format such as `"<i"`."""
        at = self._find(field)
        return default if at is None else self._content.number(kind, at)

    def integer(self, field: int, kind: str = "<i", default: int = 0) -> int:
        """A whole number."""
        return int(self.number(field, kind, default))

    def table(self, field: int) -> Table | None:
        """A table, or None."""
        at = self._follow(field)
        return None if at is None else Table(self._content, at)

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a vector."""
        at, length = self._vector(field, 4)
        for entry in range(at, at + 4 * length, 4):
            yield Table(self._content, entry + int(self._content.number("<I", entry)))

    def numbers(self, field: int, dtype: str) -> np.ndarray | None:
        """The numbers of a vector, of a numpy type such as `"<i4"`; None if it is missing."""
        if self._follow(field) is None:
            return None
        at, length = self._vector(field, np.dtype(dtype).itemsize)
        self._content.count(numbers=length)
        return np.frombuffer(self._content.bytes, dtype, length, at)

    def text(self, field: int) -> str:
        """A string; bytes that are no UTF-8 come out as U+FFFD."""
        at, length = self._vector(field, 1)
        self._content.count(numbers=length)
        return self._content.bytes[at : at + length].decode("utf-8", "replace")

    def span(self, field: int) -> tuple[int, int]:
        """Where the bytes of a vector lie in the file, and how many they are."""
        return self._vector(field, 1)

    def _find(self, field: int) -> int | None:
        """Where a field lies, or None if the file leaves it out."""
        entry = 4 + 2 * field
        if entry + 2 > self._fields_size:
            return None
        offset = int(self._content.number("<H", self._fields + entry))
        return self._at + offset if offset else None

    def _follow(self, field: int) -> int | None:
        """Where what a field refers to lies."""
        at = self._find(field)
        return None if at is None else at + int(self._content.number("<I", at))

    def _vector(self, field: int, item_size: int) -> tuple[int, int]:
        """Where the items of a vector lie, and how many they are."""
        at = self._follow(field)
        if at is None:
            return 0, 0
        length = int(self._content.number("<I", at))
        self._content.check(at + 4, length * item_size)
        return at + 4, length

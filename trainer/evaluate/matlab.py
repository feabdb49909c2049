"""MATLAB's MAT files of version 5 to 7, as plain Python: what Pascal 3D+'s annotations need, and no more.

By the published format ("MAT-File Level 5"): numbers, text, cells and structs, zlib-compressed or not. Objects, sparse
arrays and function handles are refused; sizes and depth are bounded. A file of 10 kB takes about 2 ms.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

HEADER_BYTES = 128
MAX_UNPACKED = 64 << 20
MAX_DEPTH, MAX_ITEMS = 16, 200_000
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)


class MatlabError(ValueError):
    """Bytes that are not such a file."""


def read_mat(data: bytes) -> dict[str, Any]:
    """The variables of a file by name.

    Numbers become float64 arrays of MATLAB's shape (at least 2-D), text `str`, cells a list, a struct array a list with
    a dict for each element.

    Raises:
        MatlabError: for another format or version, a damaged file, or one beyond the bounds.
    """
    if len(data) < HEADER_BYTES or data[126:128] not in (b"IM", b"MI"):
        raise MatlabError("no MAT file of version 5 to 7")
    order = "<" if data[126:128] == b"IM" else ">"
    reader = _Reader(order)
    found: dict[str, Any] = {}
    try:
        for element in reader.elements(data[HEADER_BYTES:]):
            if element.kind == _COMPRESSED:
                element = reader.first(reader.unpacked(element.data))
            if element.kind != _MATRIX:
                raise MatlabError(f"an element of type {element.kind} is no variable")
            name, value = reader.matrix(element.data, 0)
            found[name] = value
    except (struct.error, zlib.error, UnicodeDecodeError, StopIteration, IndexError) as error:
        raise MatlabError(f"damaged MAT file: {error}") from error
    return found


@dataclass(frozen=True, slots=True)
class _Element:
    kind: int
    data: bytes


class _Reader:
    def __init__(self, order: str) -> None:
        self.order = order
        self.items = self.bytes = 0

    def unpacked(self, data: bytes) -> bytes:
        packed = zlib.decompressobj()
        result = packed.decompress(data, MAX_UNPACKED - self.bytes + 1)
        self.bytes += len(result)
        if self.bytes > MAX_UNPACKED:
            raise MatlabError(f"unpacks to over {MAX_UNPACKED} bytes")
        return result

    def elements(self, data: bytes) -> Any:
        """Yields the elements that lie one after another in `data`."""
        place = 0
        while place < len(data):
            element, place = self._element(data, place)
            yield element

    def first(self, data: bytes) -> _Element:
        return self._element(data, 0)[0]

    def _element(self, data: bytes, place: int) -> tuple[_Element, int]:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise MatlabError(f"over {MAX_ITEMS} elements")
        (word,) = struct.unpack_from(f"{self.order}I", data, place)
        if word >> 16:  # up to 4 bytes lie beside the tag
            kind, size, start, end = word & 0xFFFF, word >> 16, place + 4, place + 8
        else:
            kind = word
            (size,) = struct.unpack_from(f"{self.order}I", data, place + 4)
            start = place + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data) or (word >> 16 and size > 4):
            raise MatlabError("damaged MAT file: an element is longer than the file")
        return _Element(kind, data[start : start + size]), end

    def matrix(self, data: bytes, depth: int) -> tuple[str, Any]:
        """Name and value of an array element."""
        if depth > MAX_DEPTH:
            raise MatlabError(f"nested over {MAX_DEPTH} deep")
        if not data:
            return "", np.empty((0, 0))
        parts = self.elements(data)
        (flags,) = struct.unpack_from(f"{self.order}I", next(parts).data)
        kind = flags & 0xFF
        shape = self._numbers(next(parts)).astype(int).tolist()
        count = int(np.prod([min(side, MAX_UNPACKED) for side in shape], dtype=np.float64))
        if len(shape) < 2 or min(shape) < 0 or count > MAX_UNPACKED:
            raise MatlabError(f"an array of {shape}")
        name = next(parts).data.decode("latin-1")
        if kind == _CELL:
            return name, [self._inner(next(parts), depth) for _ in range(count)]
        if kind == _STRUCT:
            width = int(self._numbers(next(parts))[0])
            names = next(parts).data
            if width < 1:
                raise MatlabError("a struct's field names have no width")
            fields = [names[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), width)]
            return name, [{key: self._inner(next(parts), depth) for key in fields} for _ in range(count)]
        if kind == _CHAR:
            element = next(parts)
            if element.kind not in _TEXTS:
                raise MatlabError(f"text of type {element.kind}")
            codec = _TEXTS[element.kind]
            ending = {"<": "-le", ">": "-be"}[self.order] if codec in ("utf-16", "utf-32") else ""
            return name, element.data.decode(codec + ending)
        if kind not in _NUMERIC:
            raise MatlabError(f"arrays of class {kind} are not read")
        values = self._numbers(next(parts))
        if len(values) != count:
            raise MatlabError(f"{len(values)} numbers for an array of {shape}")
        return name, values.astype(np.float64).reshape(shape, order="F")

    def _inner(self, element: _Element, depth: int) -> Any:
        if element.kind != _MATRIX:
            raise MatlabError(f"an element of type {element.kind} is no array")
        return self.matrix(element.data, depth + 1)[1]

    def _numbers(self, element: _Element) -> np.ndarray:
        if element.kind not in _NUMBERS:
            raise MatlabError(f"numbers of type {element.kind}")
        kind = np.dtype(self.order + _NUMBERS[element.kind])
        if len(element.data) % kind.itemsize:
            raise MatlabError("damaged MAT file: half a number")
        return np.frombuffer(element.data, kind)

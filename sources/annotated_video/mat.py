"""One numeric variable of a MATLAB file of version 5 (`save -v6` and `-v7`), read by our own code.

By MathWorks' "MAT-File Format", level 5: data elements of a type, a length and content, at the top level arrays, each
perhaps deflated. SciPy's reader cannot be given files that nobody trusts: a few flipped bytes in one make it read
outside of its memory (at least 3 of 800 killed the process). Here each length is checked against what is there, and
nothing is inflated beyond what the wanted array needs. 0.1 ms for joints, 12 ms for masks of 320x240x40.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uvd.sequences.reject import Reason, RejectedInput

HEADER_BYTES = 128
MAX_ARRAY_BYTES = 128 << 20
"""Of the wanted variable; the largest puppet masks of JHMDB have 3 MB."""
MAX_VARIABLES = 1000
MAX_DIMENSIONS = 32
HEAD_BYTES = 4096
"""Inflated of each array to learn its name and shape."""
TAG_BYTES = 8
MATRIX, COMPRESSED, INT8, INT32, UINT32 = 14, 15, 1, 5, 6
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of stored numbers; an array may be stored in a smaller one than its class."""
CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "text", 5: "sparse array", **dict.fromkeys(range(6, 16), "numbers")}
COMPLEX = 0x0800

ByteOrder = Literal["<", ">"]


def read_variable(data: bytes, name: str) -> NDArray[np.generic]:
    """The array of a variable, in its stored type and with its shape in MATLAB.

    Args:
        data: content of the file.

    Raises:
        RejectedInput: no MATLAB file of version 5, damaged, no such variable, not real numbers, or too large.
    """
    order = _byte_order(data)
    for number, array in enumerate(_arrays(memoryview(data), order)):
        if number >= MAX_VARIABLES:
            raise _damaged(f"over {MAX_VARIABLES} variables")
        if array.name == name.encode():
            return _numbers(array, order, name)
    raise RejectedInput(Reason.BAD_ANNOTATION, f"no variable {name}")


def _byte_order(data: bytes) -> ByteOrder:
    """The header: 124 bytes of text, the version 0x0100, and `MI` in the file's byte order."""
    mark = data[HEADER_BYTES - 4 : HEADER_BYTES]
    if data[:8] == b"\x89HDF\r\n\x1a\n" or mark in (b"\x00\x02IM", b"\x02\x00MI"):
        raise RejectedInput(Reason.BAD_ANNOTATION, "MATLAB file of version 7.3 (HDF5): save it with -v7")
    if mark == b"\x00\x01IM":
        return "<"
    if mark == b"\x01\x00MI":
        return ">"
    raise RejectedInput(Reason.BAD_ANNOTATION, "not a MATLAB file of version 5")


@dataclass(frozen=True, slots=True)
class _Array:
    """A top-level array whose head has been read."""

    name: bytes
    kind: str
    is_complex: bool
    shape: tuple[int, ...]
    head: int
    """Bytes of the element before its numbers."""
    total: int
    """Bytes of the whole element, its tag included."""
    packed: bool
    content: memoryview
    """The element, or the deflated bytes of it."""


def _arrays(data: memoryview, order: ByteOrder) -> Iterator[_Array]:
    at = HEADER_BYTES
    while at < len(data):
        kind, content, after = _element(data, at, order)
        if kind == COMPRESSED:
            yield _read_head(memoryview(_inflate(content, HEAD_BYTES)), order, content, packed=True)
            at += TAG_BYTES + len(content)  # the only type that is not padded
        elif kind == MATRIX:
            yield _read_head(data[at:after], order, data[at:after], packed=False)
            at = after
        else:
            raise _damaged(f"an element of type {kind} where an array was expected")


def _read_head(start: memoryview, order: ByteOrder, content: memoryview, *, packed: bool) -> _Array:
    """Reads flags, shape and name from the first bytes of an array."""
    kind, length = struct.unpack_from(f"{order}II", _cut(start, 0, TAG_BYTES))
    if kind != MATRIX:
        raise _damaged(f"an element of type {kind} where an array was expected")
    flags_type, flags, at = _element(start, TAG_BYTES, order)
    shape_type, shape, at = _element(start, at, order)
    name_type, name, at = _element(start, at, order)
    if (flags_type, shape_type, name_type) != (UINT32, INT32, INT8) or len(flags) != 8:
        raise _damaged("an array without flags, shape or name")
    if len(shape) % 4 or not 8 <= len(shape) <= 4 * MAX_DIMENSIONS:
        raise _damaged(f"a shape of {len(shape)} bytes")
    sides = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if min(sides) < 0:
        raise _damaged(f"shape {sides}")
    (word,) = struct.unpack_from(f"{order}I", flags)
    described = CLASSES.get(word & 0xFF, f"class {word & 0xFF}")
    return _Array(bytes(name), described, bool(word & COMPLEX), sides, at, TAG_BYTES + length, packed, content)


def _numbers(array: _Array, order: ByteOrder, name: str) -> NDArray[np.generic]:
    if array.kind != "numbers" or array.is_complex:
        found = "of complex numbers" if array.is_complex else f"a {array.kind}"
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{name} is {found}, not real numbers")
    if max(array.total, prod(array.shape)) > MAX_ARRAY_BYTES:
        raise RejectedInput(Reason.BOMB, f"{name} has shape {array.shape} in {array.total} bytes, over the limit")
    whole = memoryview(_inflate(array.content, array.total)) if array.packed else array.content
    if len(whole) < array.total:
        raise _damaged(f"{name} ends early")
    stored, numbers, _ = _element(whole, array.head, order)
    if stored not in DTYPES:
        raise _damaged(f"{name} is stored as type {stored}")
    dtype = np.dtype(order + DTYPES[stored])
    if len(numbers) != prod(array.shape) * dtype.itemsize:
        raise _damaged(f"{name} of shape {array.shape} has {len(numbers)} bytes of numbers")
    return np.frombuffer(numbers, dtype).reshape(array.shape, order="F")


def _element(data: memoryview, at: int, order: ByteOrder) -> tuple[int, memoryview, int]:
    """Type and content of the element at a place, and the place after it and its padding to 8 bytes."""
    kind, length = struct.unpack(f"{order}II", _cut(data, at, TAG_BYTES))
    if kind >> 16:  # up to 4 bytes, in the place of the length
        kind, length = kind & 0xFFFF, kind >> 16
        if length > 4:
            raise _damaged(f"a small element of {length} bytes")
        return kind, _cut(data, at + 4, length), at + TAG_BYTES
    return kind, _cut(data, at + TAG_BYTES, length), at + TAG_BYTES + -(-length // 8) * 8


def _cut(data: memoryview, at: int, length: int) -> memoryview:
    if at + length > len(data):
        raise _damaged("an element reaches beyond the end")
    return data[at : at + length]


def _inflate(packed: memoryview, most: int) -> bytes:
    """Up to `most` bytes of a deflated element."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error as error:
        raise _damaged(str(error)) from error


def _damaged(what: str) -> RejectedInput:
    return RejectedInput(Reason.BAD_ANNOTATION, f"damaged MATLAB file: {what}")

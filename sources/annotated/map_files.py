"""Map files → arrays: numbers of depth, disparity and normals, label ids, exact colours. Every file is hostile.

Formats are told by content: images, NumPy's `.npy` (format 1 and 2), `.pfm` (as in Middlebury stereo) and, through a
child process, `.exr`. Sizes are checked before anything is decoded, nothing is unpickled, and label colours pass no
colour profile. A 16-bit PNG of 2 million pixels takes 30 ms, a `.npy` or `.pfm` 1 ms.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from dataclasses import dataclass
from math import prod

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.decode import MAX_PIXELS, decode_labels
from uvd.sources.image_headers import Header, read_header

NPY_MAGIC, EXR_MAGIC, JPEG_MAGIC = b"\x93NUMPY", b"\x76\x2f\x31\x01", b"\xff\xd8\xff"
MAX_NPY_HEADER = 4096
MAX_CHANNELS = 4
_NPY_HEADER = re.compile(
    r"\{'descr': '([<>|=][fiub][1248])', 'fortran_order': (True|False), 'shape': \(([0-9L, ]{0,99})\),? ?\}\s*"
)
_PFM_HEADER = re.compile(rb"P([Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[0-9.]{1,20}(?:[eE][-+]?\d{1,2})?)\s")
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_DEEP_PNG, _COLOUR_TYPES = 16, (2, 6)
"""IHDR: bits of a channel, and types with three colours."""


@dataclass(frozen=True, slots=True)
class Values:
    """
    Attributes:
        array: `(H, W)`, or `(H, W, C)` with up to 4 channels, as stored.
        peak: largest number that the file can hold, if it holds integers; None for floats.
    """

    array: NDArray[np.generic]
    peak: int | None


def decode_values(data: bytes, max_pixels: int = MAX_PIXELS) -> Values:
    """The numbers of a map file that is an image, `.npy` or `.pfm`.

    Raises:
        RejectedInput: none of these, too many pixels, cut off, or not a map of numbers.
    """
    if data.startswith(NPY_MAGIC):
        return values_of(_npy(data, max_pixels))
    if _PFM_HEADER.match(data):
        return values_of(_pfm(data, max_pixels))
    return values_of(_image(_header(data, max_pixels)))


def values_of(array: NDArray[np.generic]) -> Values:
    """Numbers with what their type says.

    Raises:
        RejectedInput: not a map of numbers.
    """
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    maps = array.ndim == 2 or (array.ndim == 3 and array.shape[2] <= MAX_CHANNELS)
    if not maps or not array.size:
        raise _bad(f"holds {array.dtype} of shape {array.shape}, expected (H, W) or (H, W, 3)")
    return Values(array, None if array.dtype.kind == "f" else int(np.iinfo(array.dtype.str).max))


def one_channel(values: Values) -> NDArray[np.generic]:
    """`(H, W)`; three colours will do if they are equal everywhere.

    Raises:
        RejectedInput: for colours.
    """
    array = values.array
    if array.ndim == 2:
        return array
    first = array[..., 0]
    for channel in range(1, min(3, array.shape[2])):
        if not np.array_equal(first, array[..., channel], equal_nan=array.dtype.kind == "f"):
            raise _bad("has colours, expected one channel")
    return first


def decode_ids(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """`(H, W)` int32 label ids of an image with one channel, or a `.npy` of integers.

    Raises:
        RejectedInput: not an image, too many pixels, cut off, colours, floats, or a JPEG.
    """
    if not data.startswith(NPY_MAGIC):
        if data.startswith(JPEG_MAGIC):
            raise _bad("is a JPEG, in which label ids are not exact")
        return decode_labels(data, max_pixels=max_pixels)
    values = decode_values(data, max_pixels)
    if values.peak is None:
        raise _bad("holds floats, expected label ids")
    ids = one_channel(values)
    low, high = int(ids.min()), int(ids.max())
    if low < -(1 << 31) or high >= 1 << 31:
        raise _bad(f"holds the id {low if low < 0 else high}")
    return ids.astype(np.int32)


def decode_exact_colours(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8: an image's RGB as stored; no colour profile is applied, and alpha is left out.

    Raises:
        RejectedInput: not an image, too many pixels, cut off, or more than 8 bits.
    """
    image = _open(_header(data, max_pixels))
    if image.mode not in ("RGB", "RGBA", "P", "L", "1"):
        raise _bad(f"is an image of mode {image.mode}, expected RGB of 8 bits")
    return np.asarray(image.convert("RGB"))


def _npy(data: bytes, max_pixels: int) -> NDArray[np.generic]:
    """By NumPy Enhancement Proposal 1: magic, version, header, numbers."""
    if data[6:7] not in (b"\1", b"\2"):
        raise _bad("is a .npy of a version that is not read")
    length_type = "<H" if data[6:7] == b"\1" else "<I"
    start = 8 + struct.calcsize(length_type)
    if len(data) < start:
        raise _cut_off()
    (length,) = struct.unpack_from(length_type, data, 8)
    header = _NPY_HEADER.fullmatch(data[start : start + min(length, MAX_NPY_HEADER)].decode("latin-1"))
    if header is None:
        raise _bad("is a .npy of something else than an array of plain numbers")
    descr, fortran, sides = header.groups()
    if descr[1:] not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise _bad(f"is a .npy of type {descr}")
    digits = [side.strip(" L") for side in sides.split(",") if side.strip(" L")]
    if not 2 <= len(digits) <= 3 or any(not side.isdigit() or len(side) > 9 for side in digits):
        raise _bad(f"is a .npy of shape ({sides}), expected (H, W) or (H, W, 3)")
    shape = tuple(int(side) for side in digits)
    _check_pixels(prod(shape) // (min(shape) if len(shape) == 3 and 0 < min(shape) <= MAX_CHANNELS else 1), max_pixels)
    dtype = np.dtype(descr)
    array = np.frombuffer(_body(data, start + length, prod(shape) * dtype.itemsize), dtype)
    array = array.reshape(shape, order="F" if fortran == "True" else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _pfm(data: bytes, max_pixels: int) -> NDArray[np.generic]:
    """Rows from bottom to top; a negative scale says little-endian. Its size is not used, as in Middlebury's tools."""
    match = _PFM_HEADER.match(data)
    assert match is not None
    kind, width, height = match[1], int(match[2]), int(match[3])
    channels = 3 if kind == b"F" else 1
    _check_pixels(width * height, max_pixels)
    try:
        little = float(match[4]) < 0
    except ValueError as error:
        raise _bad(f"is a PFM of the scale {match[4].decode()}") from error
    body = _body(data, match.end(), 4 * channels * width * height)
    rows = np.frombuffer(body, "<f4" if little else ">f4").reshape(height, width, channels)
    return np.ascontiguousarray(rows[::-1].astype(np.float32))


def _image(header: Header) -> NDArray[np.generic]:
    if header.format == "PNG" and header.data[24] == _DEEP_PNG and header.data[25] in _COLOUR_TYPES:
        # Pillow keeps 8 of the 16 bits.
        pixels = cv2.imdecode(np.frombuffer(header.data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
            raise RejectedInput(Reason.TRUNCATED, "is a PNG that cannot be decoded")
        return np.ascontiguousarray(pixels[..., 2::-1])
    image = _open(header)
    if image.mode in ("L", "F", "I", "RGB"):
        return np.asarray(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("P", "RGBA", "LA", "1"):
        return np.asarray(image.convert("RGB"))
    raise _bad(f"is an image of mode {image.mode}")


def _header(data: bytes, max_pixels: int) -> Header:
    header = read_header(data)
    _check_pixels(header.width * header.height, max_pixels)
    return header


def _open(header: Header) -> Image.Image:
    """Decoded."""
    try:
        with warnings.catch_warnings():
            # The cap is ours; Pillow's own warns first.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(header.data), formats=(header.format,))
        if sorted(image.size) != sorted((header.width, header.height)):
            raise RejectedInput(Reason.NOT_IMAGE, f"{image.size} pixels where {header.width}x{header.height} were said")
        image.load()
    except _DECODING_ERRORS as error:
        raise RejectedInput(Reason.TRUNCATED, str(error).partition("\n")[0][:200]) from error
    return image


def _check_pixels(pixels: int, most: int) -> None:
    if pixels < 1:
        raise _bad("has no pixels")
    if pixels > most:
        raise RejectedInput(Reason.BOMB, f"{pixels} pixels, over {most}")


def _body(data: bytes, start: int, length: int) -> memoryview:
    if start + length > len(data):
        raise _cut_off()
    return memoryview(data)[start : start + length]


def _cut_off() -> RejectedInput:
    return RejectedInput(Reason.TRUNCATED, "is shorter than it says")


def _bad(detail: str) -> RejectedInput:
    return RejectedInput(Reason.BAD_ANNOTATION, detail)

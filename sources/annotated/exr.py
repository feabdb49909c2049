"""OpenEXR files through OpenCV, in a child process.

OpenCV's decoder is an old OpenEXR that it leaves off by default because hostile files can break it; here it is turned
on in a child with limits only, so a file that does break it is one reject. The header is read first, by our own code
(OpenEXR File Layout, version 2). A call costs 1 ms and the copy of the pixels; the child's start 0.5 s, once a shard.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.decode import read_bytes
from uvd.sources.isolation import MAX_REPLY_BYTES, IsolatedProcess

HANDLER = "uvd.sources.annotated.exr:decode_exr"
ENVIRONMENT = {"OPENCV_IO_ENABLE_OPENEXR": "1", "OPENCV_LOG_LEVEL": "SILENT"}
TIMEOUT_S, MEMORY_BYTES = 60.0, 2 << 30
MAX_ATTRIBUTES = 256
DEEP, MULTIPART = 0x800, 0x1000
"""Bits of the version field."""
READABLE = ({"Y"}, {"R"}, {"R", "G", "B"}, {"R", "G", "B", "A"})
"""Sets of channels that OpenCV reads as they are. A Z, the standard's name for depth, comes out as zeros."""
_ATTRIBUTE = re.compile(rb"([^\0]{1,255})\0([^\0]{1,255})\0", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ExrHeader:
    """Size in pixels, and names of the channels."""

    width: int
    height: int
    channels: frozenset[str]


def read_exr_header(data: bytes) -> ExrHeader:
    """
    Args:
        data: a file that starts with the magic number.

    Raises:
        RejectedInput: damaged, deep, or of several parts.
    """
    try:
        (version,) = struct.unpack_from("<I", data, 4)
        if version & 0xFF != 2 or version & (DEEP | MULTIPART):
            raise _bad("is an EXR of a version, deep or of several parts, which is not read")
        attributes = _attributes(data)
        left, top, right, bottom = struct.unpack("<4i", attributes[b"dataWindow"])
        names = _channels(attributes[b"channels"])
    except (struct.error, KeyError) as error:
        raise _bad("is an EXR with a damaged header") from error
    if right < left or bottom < top:
        raise _bad("is an EXR without pixels")
    return ExrHeader(right - left + 1, bottom - top + 1, names)


def _attributes(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    position = 8
    for _ in range(MAX_ATTRIBUTES):
        if data[position : position + 1] == b"\0":
            return found
        match = _ATTRIBUTE.match(data, position)
        if match is None:
            break
        (length,) = struct.unpack_from("<i", data, match.end())
        position = match.end() + 4 + length
        if length < 0 or position > len(data):
            break
        found.setdefault(match[1], data[position - length : position])
    raise _bad("is an EXR with a damaged header")


def _channels(listed: bytes) -> frozenset[str]:
    """Of a `chlist`: a name, 0, and 16 bytes each; 0 at the end."""
    names: set[str] = set()
    position = 0
    while listed[position : position + 1] != b"\0":
        end = listed.find(b"\0", position)
        if end < 0 or len(names) > MAX_ATTRIBUTES:
            raise _bad("is an EXR with a damaged list of channels")
        names.add(listed[position:end].decode("latin-1"))
        position = end + 17
    return frozenset(names)


class ExrReader:
    """Opens EXR files; its child starts with the first one."""

    def __init__(self) -> None:
        self._child: IsolatedProcess | None = None

    def read(self, path: Path, data: bytes, max_bytes: int, max_pixels: int) -> NDArray[np.generic]:
        """`(H, W)` or `(H, W, C)` float32, or int32 if the file holds integers.

        Args:
            data: the file's content, of which the header is read.

        Raises:
            RejectedInput: damaged, too many pixels, or nothing that OpenCV reads.
        """
        header = read_exr_header(data)
        pixels = header.width * header.height
        if pixels > max_pixels or pixels * 4 * len(header.channels) > MAX_REPLY_BYTES:
            raise RejectedInput(Reason.BOMB, f"{header.width}x{header.height} pixels, over {max_pixels}")
        if header.channels not in READABLE:
            names = ", ".join(sorted(header.channels))[:100]
            raise _bad(f"is an EXR of the channels {names!r}, which OpenCV does not read")
        if self._child is None:
            self._child = IsolatedProcess(
                HANDLER, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES, environment=ENVIRONMENT
            )
        _, arrays = self._child.call({"path": str(path), "max_bytes": max_bytes})
        if len(arrays) != 1 or arrays[0].shape[:2] != (header.height, header.width):
            raise RejectedInput(Reason.CRASHED, f"the decoder gave {[array.shape for array in arrays]}")
        return arrays[0][..., 0] if header.channels == {"R"} and arrays[0].ndim == 3 else arrays[0]

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def decode_exr(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The child's side: pixels of the regular file at `path`, RGB if it has colours, without alpha."""
    read_bytes(Path(request["path"]), request["max_bytes"])
    try:
        # From the file: from memory OpenCV goes by a temporary file, which a child cannot write.
        pixels = cv2.imread(request["path"], cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _bad(f"is an EXR that OpenCV does not read: {error.err}"[:300]) from error
    if pixels is None:
        raise _bad("is an EXR that OpenCV does not read")
    return {}, [pixels[..., 2::-1] if pixels.ndim == 3 else pixels]


def _bad(detail: str) -> RejectedInput:
    return RejectedInput(Reason.BAD_ANNOTATION, detail)

"""PNG and GIF files reduced to what their first picture needs, so that no decoder sees the rest.

Both formats hold blocks whose cost to a decoder has little to do with pixels: compressed text, comments of any length,
thousands of empty blocks, further frames. They are left out here; the number of blocks is capped.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 1 << 16
"""Of a PNG; 64 MB in chunks of 8 kB, the usual size, are 8192."""
MAX_BLOCKS = 1 << 18
"""Sub-blocks of a GIF up to the end of its first frame: 64 MB of full ones."""
_KEPT = (b"IHDR", b"PLTE", b"tRNS")


@dataclass(frozen=True, slots=True)
class PlainPng:
    """A PNG without metadata and animation, and the two pieces of metadata that change its look."""

    data: bytes
    exif: bytes
    profile: bytes


@dataclass(frozen=True, slots=True)
class GifFrame:
    """A GIF of one frame; the size covers canvas and frame, as decoders enlarge the one to hold the other."""

    data: bytes
    width: int
    height: int


def plain_png(data: bytes, max_profile: int) -> PlainPng:
    """Keeps header, palette, transparency and pixels of a PNG; an APNG keeps its default picture.

    Args:
        data: a file that starts with the signature.
        max_profile: unpacked bytes of a colour profile; a larger or damaged one is left out.

    Raises:
        RejectedInput: no header, too many chunks, or cut off within its pixels.
        struct.error: cut off within the header.
    """
    kept: list[bytes] = [PNG_SIGNATURE]
    pixels: list[bytes] = []
    exif = profile = b""
    position = len(PNG_SIGNATURE)
    for number in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if number == 0 and (kind != b"IHDR" or length != 13):
            raise RejectedInput(Reason.NOT_IMAGE, "PNG without a header")
        if end > len(data):
            raise RejectedInput(Reason.TRUNCATED, "PNG ends within a chunk")
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            pixels.append(data[position + 8 : end])
        elif kind in _KEPT and (number == 0 or kind != b"IHDR"):
            kept.append(data[position : end + 4])
        elif kind == b"eXIf":
            exif = exif or data[position + 8 : end]
        elif kind == b"iCCP":
            profile = profile or _unpack_profile(data[position + 8 : end], max_profile)
        position = end + 4
    else:
        raise RejectedInput(Reason.BOMB, f"PNG with over {MAX_CHUNKS} chunks")
    if data[25] == 3 and not any(chunk[4:8] == b"PLTE" for chunk in kept):
        raise RejectedInput(Reason.NOT_IMAGE, "PNG without the palette that it needs")
    kept += [_png_chunk(b"IDAT", b"".join(pixels)), _png_chunk(b"IEND", b"")]
    return PlainPng(b"".join(kept), exif, profile)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def _unpack_profile(body: bytes, limit: int) -> bytes:
    """The profile in an iCCP chunk: name, 0, method 0, zlib stream."""
    packed = body[body.find(b"\0", 0, 80) + 2 :]
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, limit)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""


def first_gif_frame(data: bytes) -> GifFrame:
    """A GIF's screen, palette, transparency and first frame.

    Raises:
        RejectedInput: no frame, or too many blocks before its end.
        IndexError, struct.error: cut off before the frame's pixels.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _palette_bytes(flags)
    screen, control, left = data[:position], b"", MAX_BLOCKS
    while data[position] == 0x21:
        start, position = position, position + 2
        position, left = _skip_blocks(data, position, left - 1)
        if data[start + 1] == 0xF9:
            control = data[start : start + 8]
    if data[position] != 0x2C:
        raise RejectedInput(Reason.NOT_IMAGE, "GIF without a frame")
    x, y, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
    end, _ = _skip_blocks(data, position + 11 + _palette_bytes(flags), left)
    frame = b"".join((screen, control, data[position:end], b";"))
    return GifFrame(frame, max(width, x + frame_width), max(height, y + frame_height))


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(data: bytes, position: int, left: int) -> tuple[int, int]:
    """The place after a run of sub-blocks, or the end of the data if it is cut off there; and how many may follow."""
    size = len(data)
    if left <= 0:
        raise _too_many_blocks()
    while position < size and data[position]:
        position += data[position] + 1
        left -= 1
        if left <= 0:
            raise _too_many_blocks()
    return min(position + 1, size), left


def _too_many_blocks() -> RejectedInput:
    return RejectedInput(Reason.BOMB, f"GIF with over {MAX_BLOCKS} blocks before the end of its first frame")

"""What an image file says of itself, read before any decoder sees it: format, size, orientation, colour profile.

A hostile file can keep a decoder busy with everything but pixels: scans, text chunks, comments, tiles. So each format
is walked here by its own specification (JPEG T.81, PNG 3, GIF 89a, WebP RIFF container, BMP, TIFF 6, netpbm), with
caps, and what may be costly is refused or left out of the bytes for the decoder. 0.02 ms a JPEG, 0.2 if progressive.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.image_chunks import first_gif_frame, plain_png

MAX_SEGMENTS = 4096
"""Of a JPEG or WebP. Photos have under a hundred; large metadata blocks come as 64 kB segments."""
MAX_SCANS = 100
"""Of a JPEG. Progressive encoders write about 10; each scan visits every block, however few bytes it has."""
MAX_SCAN_PIXELS = 2_000_000_000
"""Scans times pixels of a JPEG: about 4 s if they are empty; beyond that, bytes cost time and are capped elsewhere."""
MAX_TILE_SIDE = 4096
"""Of a TIFF, in pixels: the decoder allocates a whole tile, however small the image is."""
MAX_PROFILE_BYTES = 4 << 20
"""Larger colour profiles are ignored; those of printing presses take 0.5 to 2.7 MB."""
TIFF_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate"}
_JPEG_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_JPEG_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
"""Lossless, hierarchical and arithmetic: no browser shows them."""
MAX_STRAY_BYTES = 1 << 20
"""Between two segments of a JPEG, fill bytes included."""
_JPEG_FILL = re.compile(rb"\xff+")
_JPEG_METADATA = frozenset({0xE1, 0xE2, *range(0xE4, 0xEE), 0xEF, 0xFE})
"""APP segments but those of JFIF and Adobe, which say how colours are coded; and comments."""
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""The next marker in entropy-coded data, in which FF is followed by 00 or a restart marker."""
_NETPBM = re.compile(
    rb"P([56])(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,5})\s", re.DOTALL
)
_TIFF_INTEGERS = {3: "H", 4: "I"}
_ORIENTATION = 0x0112
_NAMES = (
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.I | re.S), "SVG"),
    (re.compile(rb"\s*<(!doctype html|html|head|body|script)", re.I), "HTML"),
    (re.compile(rb"....ftypavi[fs]", re.S), "AVIF"),
    (re.compile(rb"....ftyp(hei|mif|msf)", re.S), "HEIF"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ", re.S), "JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", re.S), "JPEG 2000"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"\x1f\x8b"), "gzip"),
)
"""Common bodies that are refused, for the reject's detail."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the decoder needs to know of a file.

    Attributes:
        format: Pillow's name of the format.
        width, height: as stored, in pixels, before orientation.
        data: the bytes to decode: the file, or what of it matters.
        orientation: EXIF's, 1 to 8.
        profile: ICC colour profile, or empty.
        components: of a JPEG: 1 grey, 3 colour, 4 CMYK or YCCK; else 0.
    """

    format: str
    width: int
    height: int
    data: bytes
    orientation: int = 1
    profile: bytes = b""
    components: int = 0


def read_header(data: bytes) -> Header:
    """Recognises an image by its content and reads its header.

    Raises:
        RejectedInput: `not_image` for other formats, variants that are not read, and damaged headers; `bomb` for more
            scans, chunks or blocks than any photo has; `truncated` if the file ends within its header.
    """
    for signature, reader in _READERS:
        if signature.match(data):
            try:
                header = reader(data)
            except (AttributeError, IndexError, struct.error) as error:
                raise not_image("the header is cut off or damaged") from error
            if header.width < 1 or header.height < 1:
                raise not_image(f"{header.format} of {header.width}x{header.height}")
            return header
    for pattern, name in _NAMES:
        if pattern.match(data[:4096]):
            raise not_image(f"{name} is not read")
    raise not_image("no image format that uvd reads")


def not_image(detail: str) -> RejectedInput:
    return RejectedInput(Reason.NOT_IMAGE, detail)


def exif_orientation(block: bytes) -> int:
    """Orientation in an EXIF block (a TIFF header and its first directory); 1 if there is none that can be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        for tag, kind, _, value in _tiff_entries(block, order):
            if tag == _ORIENTATION:
                orientation = value if kind in _TIFF_INTEGERS else 1
                return orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        return 1
    return 1


def _tiff_entries(data: bytes, order: str) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, first value if it is a single integer, else 0) of the first directory."""
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, offset)
    for index in range(entries):
        at = offset + 2 + 12 * index
        tag, kind, count = struct.unpack_from(order + "HHI", data, at)
        letter = _TIFF_INTEGERS.get(kind) if count == 1 else None
        yield tag, kind, count, struct.unpack_from(order + letter, data, at + 8)[0] if letter else 0


def _jpeg(data: bytes) -> Header:
    """Walks the segments up to the first scan, and counts the scans."""
    position, size, exif = 2, (0, 0, 0), b""
    profile: dict[int, bytes] = {}
    progressive = False
    # Views, so that the pixels are copied once, and only if there is something to leave out.
    view = memoryview(data)
    kept: list[bytes | memoryview] = [view[:2]]
    whole = True
    for _ in range(MAX_SEGMENTS):
        position = _JPEG_FILL.search(data, position, position + MAX_STRAY_BYTES).end()  # type: ignore[union-attr]
        marker = data[position]
        position += 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:
            continue
        if marker in (0xD8, 0xD9):
            raise not_image("JPEG without an image")
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2 or marker in _JPEG_OTHER_FRAMES:
            raise not_image(f"JPEG with the marker FF{marker:02X}, which is not read")
        if marker == 0xDA:
            break
        body = data[position + 2 : position + length]
        if marker not in _JPEG_METADATA:
            kept += [bytes((0xFF, marker)), view[position : position + length]]
        else:
            whole = False
        position += length
        if marker in _JPEG_FRAMES:
            size, progressive = _jpeg_frame(body), marker == 0xC2
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile.setdefault(body[12], body[14:])
    else:
        raise RejectedInput(Reason.BOMB, f"JPEG with over {MAX_SEGMENTS} segments")
    width, height, components = size
    if progressive or data[position + 2] < components:
        # Else the first scan holds all there is, and decoders read no other.
        _check_scans(data, position, width * height)
    icc = b"".join(profile[number] for number in sorted(profile))
    kept += [b"\xff\xda", view[position:]]
    return Header("JPEG", width, height, data if whole else b"".join(kept), exif_orientation(exif), icc, components)


def _jpeg_frame(body: bytes) -> tuple[int, int, int]:
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    if precision != 8 or components not in (1, 3, 4):
        raise not_image(f"JPEG of {components} components of {precision} bits")
    return width, height, components


def _check_scans(data: bytes, first: int, pixels: int) -> None:
    """A cheap upper bound first: in well-formed data FF DA is nothing but a scan."""
    most = min(MAX_SCANS, max(1, MAX_SCAN_PIXELS // max(1, pixels)))
    if data.count(b"\xff\xda", first) < most or _count_scans(data, first, most) <= most:
        return
    raise RejectedInput(Reason.BOMB, f"JPEG with over {most} scans")


def _count_scans(data: bytes, position: int, most: int) -> int:
    """Scans up to the end of the image, `position` being the first one's length; stops soon after `most`."""
    scans = 1
    for _ in range(MAX_SEGMENTS):
        if position + 2 > len(data):
            return scans
        position += struct.unpack_from(">H", data, position)[0]
        found = _JPEG_MARKER.search(data, position)
        if found is None or found[1] == b"\xd9" or scans > most:
            return scans
        scans += found[1] == b"\xda"
        position = found.end()
    return most + 1


def _png(data: bytes) -> Header:
    png = plain_png(data, MAX_PROFILE_BYTES)
    width, height = struct.unpack_from(">II", data, 16)
    return Header("PNG", width, height, png.data, exif_orientation(png.exif), png.profile)


def _gif(data: bytes) -> Header:
    frame = first_gif_frame(data)
    return Header("GIF", frame.width, frame.height, frame.data)


def _webp(data: bytes) -> Header:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise RejectedInput(Reason.TRUNCATED, "WebP is shorter than it says")
    kind, body = data[12:16], data[20:34]
    if kind == b"VP8X":
        width, height = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
    elif kind == b"VP8L" and body[0] == 0x2F:
        (bits,) = struct.unpack_from("<I", body, 1)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        raise not_image("WebP without an image")
    metadata = dict(_riff_chunks(data))
    exif = metadata.get(b"EXIF", b"").removeprefix(b"Exif\0\0")
    return Header("WEBP", width, height, data, exif_orientation(exif), metadata.get(b"ICCP", b""))


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The small chunks of metadata."""
    position = 12
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind in (b"EXIF", b"ICCP") and length <= MAX_PROFILE_BYTES:
            yield kind, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    raise RejectedInput(Reason.BOMB, f"WebP with over {MAX_SEGMENTS} chunks")


def _bmp(data: bytes) -> Header:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height, data)
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in (0, 3):
        # Run-length coded ones are decoded by a loop in Python; embedded JPEG and PNG are for printers.
        raise not_image(f"BMP of compression {compression}")
    return Header("BMP", width, abs(height), data)


def _tiff(data: bytes) -> Header:
    """The first directory; JPEG, fax and other decoders within TIFF stay unused."""
    order = "<" if data[:1] == b"I" else ">"
    values: dict[int, int] = {259: 1, 322: 0, 323: 0}
    seen: set[int] = set()
    for tag, _, _, value in _tiff_entries(data, order):
        if tag in seen:
            raise not_image(f"TIFF with the tag {tag} twice")
        seen.add(tag)
        values[tag] = value
    if values[259] not in TIFF_COMPRESSIONS:
        raise not_image(f"TIFF of compression {values[259]}")
    if max(values[322], values[323]) > MAX_TILE_SIDE:
        raise RejectedInput(Reason.BOMB, f"TIFF with tiles of {values[322]}x{values[323]}, over {MAX_TILE_SIDE}")
    # Pillow turns TIFFs upright itself.
    return Header("TIFF", values.get(256, 0), values.get(257, 0), data)


def _netpbm(data: bytes) -> Header:
    match = _NETPBM.match(data[:4096])
    if match is None:
        raise not_image("damaged netpbm header")
    kind, width, height, peak = (int(group) for group in match.groups())
    if peak != 255 and (kind, peak) != (5, 65535):
        # Values of other ranges are scaled by a loop in Python.
        raise not_image(f"netpbm with values up to {peak}")
    return Header("PPM", width, height, data)


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], Header]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"RIFF....WEBP", re.S), _webp),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"II\*\0|MM\0\*", re.S), _tiff),
    (re.compile(rb"P[56]\s"), _netpbm),
)

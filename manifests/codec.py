"""Pictures as bytes: JPEG q95 4:4:4 for photos, PNG for rendered annotations, and the way back.

Both encoders are deterministic for one version of their library. simplejpeg (libjpeg-turbo) decodes 256x256 in about
1 ms; decoding checks the size in the header before any pixel is decoded.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from uvd.sequences import IMAGE_SIZE

JPEG_QUALITY = 95
PNG_LEVEL = 3
"""zlib level: on rendered annotations level 3 is within a few percent of 9 at a fraction of its time."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class CodecError(ValueError):
    """Bytes that are not a 256x256 RGB JPEG or PNG."""


def digest(data: bytes) -> int:
    """BLAKE2b of a stored picture's bytes, its first 64 bits, little-endian. Equal pixels encode to equal bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """`(H, W, 3)` uint8 RGB → JPEG, quality 95, no chroma subsampling."""
    pixels = np.ascontiguousarray(pixels)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """`(H, W, 3)` uint8 RGB → PNG."""
    ok, data = cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    if not ok:
        raise CodecError(f"OpenCV could not encode {pixels.shape} {pixels.dtype} as PNG")
    return data.tobytes()


def decode(data: bytes, extension: str) -> NDArray[np.uint8]:
    """Decodes one picture of a shard to `(256, 256, 3)` uint8 RGB.

    Args:
        data: content of the member.
        extension: `jpg` or `png`, as the member is named.

    Raises:
        CodecError: if it is not that format, not 256x256, or damaged.
    """
    if extension == "jpg":
        return _decode_jpeg(data)
    if extension == "png":
        return _decode_png(data)
    raise CodecError(f"extension {extension!r} is not a picture")


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise CodecError(f"damaged JPEG: {error}") from error


def _decode_png(data: bytes) -> NDArray[np.uint8]:
    if len(data) < 33 or not data.startswith(_PNG_MAGIC) or data[12:16] != b"IHDR":
        raise CodecError("damaged PNG: no header")
    _check_size(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None or not data.rstrip(b"\0").endswith(b"IEND\xaeB`\x82"):
        raise CodecError("damaged PNG: truncated or undecodable")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _check_size(width: int, height: int) -> None:
    if (width, height) != (IMAGE_SIZE, IMAGE_SIZE):
        raise CodecError(f"picture is {width}x{height}, not {IMAGE_SIZE}x{IMAGE_SIZE}")

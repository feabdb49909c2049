"""Image files → RGB arrays, treating every file as hostile.

The header is read first, by our own code: format allow-listed, pixels, scans and chunks capped, before anything is
decoded. EXIF orientation is applied, colour profiles lead to sRGB, alpha is laid over white, palettes and CMYK become
RGB, 16-bit grey is scaled, animations give their first frame. Bounds for one file at the default of 64 million pixels:
about 16 bytes of memory a pixel (WebP; others up to 12) and 4 seconds of processor time, so no child process is needed.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import SourceError
from uvd.sources.colour import apply_profile, to_rgb
from uvd.sources.image_headers import Header, read_header

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 64_000_000
"""About 192 MB as RGB."""
MAX_BYTES = 64 << 20
MIN_SIDE = 16
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow and simplejpeg raise on damaged pixels."""
_QUARTER_TURNS = (5, 6, 7, 8)
"""Orientations that swap width and height."""


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads a local file.

    Raises:
        RejectedInput: missing, not a regular file, unreadable, or larger than `max_bytes`.
    """
    try:
        if not path.is_file():
            raise RejectedInput(Reason.MISSING, "no such file")
        size = path.stat().st_size
        if size > max_bytes:
            raise RejectedInput(Reason.TOO_LARGE, f"{size} bytes, over {max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise RejectedInput(Reason.UNREADABLE, error.strerror or str(error)) from error


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    scale_to: int | None = None,
    upright: bool = True,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decodes an image file.

    Args:
        data: content of the file.
        max_pixels: more are refused before decoding.
        min_side: images with a shorter side are refused.
        scale_to: JPEGs may be decoded at 1/2, 1/4 or 1/8 as long as the short side stays at least this long.
        upright: turned as EXIF says; otherwise as stored, for annotations in the file's own coordinates.

    Returns:
        `(H, W, 3)` uint8 RGB, and the full (width, height), both `upright` or both not.

    Raises:
        RejectedInput: not an image, a bomb, too small, or truncated.
    """
    header = _checked_header(data, max_pixels)
    if min(header.width, header.height) < min_side:
        raise RejectedInput(Reason.TOO_SMALL, f"{header.width}x{header.height}, shortest side under {min_side}")
    try:
        if header.format == "JPEG":
            reduction = _reduction(header, scale_to)
            pixels = _decode_jpeg(header, reduction)
        else:
            reduction = 1
            image = _open(header)
            pixels = to_rgb(image, header.profile or image.info.get("icc_profile", b""))
    except _DECODING_ERRORS as error:
        raise RejectedInput(Reason.TRUNCATED, _short(error)) from error
    orientation = header.orientation if upright else 1
    pixels = _upright(pixels, orientation)
    if reduction == 1:
        return pixels, (pixels.shape[1], pixels.shape[0])
    turned = orientation in _QUARTER_TURNS
    return pixels, (header.height, header.width) if turned else (header.width, header.height)


def _checked_header(data: bytes, max_pixels: int) -> Header:
    header = read_header(data)
    if header.width * header.height > max_pixels:
        raise RejectedInput(Reason.BOMB, f"{header.width}x{header.height} pixels, over {max_pixels}")
    return header


def _reduction(header: Header, scale_to: int | None) -> int:
    """1, 2, 4 or 8: how much smaller a JPEG may be decoded. Other eighths have no SIMD code and gain nothing."""
    side = min(header.width, header.height)
    return next((factor for factor in (8, 4, 2) if scale_to is not None and side // factor >= scale_to), 1)


def _decode_jpeg(header: Header, reduction: int) -> NDArray[np.uint8]:
    """RGB in the stored orientation, without the rows and columns that a reduction cuts through."""
    height, width = header.height // reduction, header.width // reduction
    if header.components != 4:
        least = (-(-header.height // reduction), -(-header.width // reduction))
        try:
            pixels = simplejpeg.decode_jpeg(header.data, "RGB", min_height=least[0], min_width=least[1])
        except ValueError:
            # It refuses everything that libjpeg warns of. Pillow, as browsers, bears with stray bytes.
            pixels = None
        if pixels is not None and header.components == 1 and header.profile:
            return to_rgb(Image.fromarray(np.ascontiguousarray(pixels[:height, :width, 0])), header.profile)
        if pixels is not None:
            return apply_profile(pixels[:height, :width], header.profile)
    image = _open(header)
    image.draft(image.mode, (width, height))
    return to_rgb(image, header.profile)[:height, :width]


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What makes an image upright, by its EXIF orientation (EXIF 2.32, tag 0x0112)."""
    if orientation in _QUARTER_TURNS:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _open(header: Header) -> Image.Image:
    """Pillow's image of a file whose header has passed; nothing is decoded yet.

    Raises:
        RejectedInput: Pillow finds more pixels than the header says, or none.
    """
    try:
        with warnings.catch_warnings():
            # The cap is ours, and a refusal; Pillow's own warns first and raises only at twice its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(header.data), formats=(header.format,))
    except _DECODING_ERRORS as error:
        raise RejectedInput(Reason.NOT_IMAGE, _short(error)) from error
    if sorted(image.size) != sorted((header.width, header.height)):
        raise RejectedInput(Reason.NOT_IMAGE, f"{image.size} pixels where {header.width}x{header.height} were said")
    return image


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def input_files(root: Path, suffixes: frozenset[str], what: str) -> list[tuple[str, int]]:
    """The files of a source's input folder, as `list_files` gives them.

    Raises:
        SourceError: if there is no such folder, or no file of these kinds in it; `what` names them.
    """
    if not root.is_dir():
        raise SourceError(f"input {root} is not a folder")
    files = list_files(root, suffixes)
    if not files:
        raise SourceError(f"no {what} ({', '.join(sorted(suffixes))}) below {root}")
    return files


def list_files(root: Path, suffixes: frozenset[str]) -> list[tuple[str, int]]:
    """(relative path, bytes) of all files below `root` with one of `suffixes`, sorted; links out of it are left out."""
    resolved = root.resolve()
    return sorted(
        (path.relative_to(root).as_posix(), path.stat().st_size)
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file() and path.resolve().is_relative_to(resolved)
    )


def decode_labels(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Decodes a label image: the ids of a greyscale, 16-bit or palette PNG, never its colours.

    Returns:
        `(H, W)` int32.

    Raises:
        RejectedInput: not an image, too many pixels, truncated, a JPEG, or a colour image (ids are not defined then).
    """
    header = _checked_header(data, max_pixels)
    if header.format == "JPEG":
        raise RejectedInput(Reason.BAD_ANNOTATION, "a JPEG: its ids are not those that were written")
    image = _open(header)
    try:
        image.load()
    except _DECODING_ERRORS as error:
        raise RejectedInput(Reason.TRUNCATED, _short(error)) from error
    if image.mode == "1":
        image = image.convert("L").point(lambda value: value // 255)
    if image.mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"):
        raise RejectedInput(Reason.BAD_ANNOTATION, f"a label image has one channel, this one is {image.mode}")
    return np.asarray(image).astype(np.int32)

"""Image files → RGB arrays, treating every file as hostile.

The header is read first: format allow-listed, pixels capped, before anything is decoded. EXIF orientation is applied,
alpha is laid over white, palettes and CMYK become RGB, 16-bit grey is scaled, animations give their first frame.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import SourceError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 64_000_000
"""About 192 MB as RGB."""
MAX_BYTES = 64 << 20
MIN_SIDE = 16
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation (EXIF 2.3, tag 0x0112)."""
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
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE, scale_to: int | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decodes an image file.

    Args:
        data: content of the file.
        max_pixels: more are refused before decoding.
        min_side: images with a shorter side are refused.
        scale_to: JPEGs may be decoded at 1/2, 1/4 or 1/8 as long as the short side stays at least this long.

    Returns:
        `(H, W, 3)` uint8 RGB, upright, and the full (width, height), upright too.

    Raises:
        RejectedInput: not an image, a bomb, too small, or truncated.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    if min(width, height) < min_side:
        raise RejectedInput(Reason.TOO_SMALL, f"{width}x{height}, shortest side under {min_side}")
    try:
        if scale_to is not None and image.format == "JPEG":
            image.draft("RGB", (_draft_side(width, height, scale_to), _draft_side(height, width, scale_to)))
        orientation = _orientation(image)
        image = _to_rgb(image)
        if orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[orientation])
        pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise RejectedInput(Reason.TRUNCATED, _short(error)) from error
    return pixels, (height, width) if orientation in _QUARTER_TURNS else (width, height)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Reads the header only; formats are allow-listed and pixels capped here."""
    try:
        with warnings.catch_warnings():
            # The cap below is ours and a refusal; Pillow's own warns first and raises only at twice its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RejectedInput(Reason.BOMB, _short(error)) from error
    except UnidentifiedImageError as error:
        raise RejectedInput(Reason.NOT_IMAGE, "no image format that uvd reads") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise RejectedInput(Reason.NOT_IMAGE, _short(error)) from error
    width, height = image.size
    if width * height > max_pixels:
        raise RejectedInput(Reason.BOMB, f"{width}x{height} pixels, over {max_pixels}")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none, or the block is damaged: then the pixels are still good."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - Pillow's EXIF parser raises many kinds of errors on damaged blocks
        return 1


def _draft_side(side: int, other: int, scale_to: int) -> int:
    """The length that `side` may shrink to while the shorter of both stays at least `scale_to`."""
    return max(1, -(-side * scale_to // min(side, other)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values / 257.0).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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
        RejectedInput: not an image, too many pixels, truncated, or a colour image (ids are not defined then).
    """
    image = _open(data, max_pixels)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise RejectedInput(Reason.TRUNCATED, _short(error)) from error
    if image.mode == "1":
        image = image.convert("L").point(lambda value: value // 255)
    if image.mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"):
        raise RejectedInput(Reason.BAD_ANNOTATION, f"a label image has one channel, this one is {image.mode}")
    return np.asarray(image).astype(np.int32)

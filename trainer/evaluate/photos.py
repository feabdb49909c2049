"""Image files of published evaluation sets, as arrays: size checked before decoding, links out of the folder refused.

Formats: JPEG and PNG only, of up to 64 MB and 64 million pixels. A photo of 500x375 takes about 5 ms.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uvd.trainer.evaluate.prompting import EvaluationError

MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def read_file(root: Path, name: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of `root/name`.

    Raises:
        EvaluationError: if it is not there, is no regular file, leads out of `root`, or is too large.
    """
    path = root / name
    if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
        raise EvaluationError(f"no file {name} in {root}")
    if path.stat().st_size > max_bytes:
        raise EvaluationError(f"{path}: {path.stat().st_size} bytes, over {max_bytes}")
    return path.read_bytes()


def read_lines(root: Path, name: str, max_bytes: int = 16 << 20) -> list[str]:
    """Lines of a text file that are not empty, without white space around them.

    Raises:
        EvaluationError: as `read_file`, or if it is not UTF-8.
    """
    try:
        text = read_file(root, name, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{root / name} is no text file: {error.reason}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_photo(root: Path, name: str) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB of `root/name`, as stored: its annotations count pixels of the file.

    Raises:
        EvaluationError: as `read_file`, or if it is no JPEG or PNG, too large, or damaged.
    """
    return np.asarray(_open(root, name).convert("RGB"))


def read_label_map(root: Path, name: str) -> NDArray[np.uint8]:
    """`(H, W)` uint8 class ids of a PNG with a palette or in 8-bit grey.

    Raises:
        EvaluationError: as `read_photo`, or for another kind of PNG.
    """
    image = _open(root, name)
    if image.mode not in ("P", "L"):
        raise EvaluationError(f"{root / name} is {image.mode}: class ids need a palette or 8-bit grey")
    return np.asarray(image)


def image_files(root: Path) -> list[str]:
    """Paths of all JPEG and PNG files below a folder, relative to it, sorted; names that begin with a dot left out.

    Raises:
        EvaluationError: if there is none.
    """
    found = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise EvaluationError(f"no images ({', '.join(sorted(SUFFIXES))}) below {root}")
    return found


def _open(root: Path, name: str) -> Image.Image:
    data = read_file(root, name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise EvaluationError(f"{root / name}: {image.width}x{image.height}, over {MAX_PIXELS} pixels")
            image.load()
            return image
    except _DECODING_ERRORS as error:
        raise EvaluationError(f"{root / name} cannot be decoded: {error}") from error

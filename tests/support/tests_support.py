"""What tests of several packages use: photo-like pictures, files of them, and the bytes of a dataset."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def smooth_photo(seed: int, height: int = 300, width: int = 400) -> NDArray[np.uint8]:
    """A photo-like picture: coloured blobs and some texture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    photo = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    photo += rng.integers(-12, 13, (height, width, 1)).astype(np.int16)
    return photo.clip(0, 255).astype(np.uint8)


def write_photo(path: Path, seed: int, height: int = 300, width: int = 400) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), smooth_photo(seed, height, width))


def dataset_bytes(root: Path) -> dict[str, bytes]:
    """Every file of a dataset that must be deterministic (run logs and the index of statistics are not)."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in ("runs", "index")
    }

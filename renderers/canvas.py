"""What annotations are drawn on: a black picture, or a copy of the photo. The caller's photo is never changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 16_384
"""Largest side of a picture in pixels: OpenCV's drawing counts in 16.16 fixed point."""


def canvas(size: int, background: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """`(size, size, 3)` uint8 black, or a contiguous copy of the `(H, W, 3)` uint8 RGB background.

    Raises:
        ValueError: for a background of another shape or type, or sides outside 1 to 16384.
    """
    if background is None:
        if not 1 <= size <= MAX_SIDE:
            raise ValueError(f"a picture of side {size} cannot be drawn: 1 to {MAX_SIDE} pixels")
        return np.zeros((size, size, 3), dtype=np.uint8)
    check_rgb(background)
    return np.array(background, order="C")


def check_rgb(image: NDArray) -> None:
    """Raises ValueError unless `image` is `(H, W, 3)` uint8 with sides from 1 to 16384."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    if not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= MAX_SIDE:
        raise ValueError(f"image of {image.shape[1]}x{image.shape[0]} has a side outside 1 to {MAX_SIDE}")

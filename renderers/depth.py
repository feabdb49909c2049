"""Depth as an image: grey, near is bright, each picture from its own nearest to its own farthest point.

The picture that DPT and MiDaS show (arXiv 2103.13413): inverse depth, min-max scaled to 8 bits. Distances are turned
into inverse depth first; disparity and the output of such networks are inverse depth up to scale and shift, which the
scaling takes away. Levels 1 to 255 are distances, 0 is "not known". 0.4 ms at 256x256.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Predicts = Literal["metric", "inverse"]
"""What grows in a map: the distance, or its inverse (inverse depth, disparity)."""

FARTHEST, NEAREST = 1, 255
"""Levels of the farthest and nearest point that is known."""
FLAT = 128
"""Level of a picture in which everything is at one distance: neither near nor far."""


def render_depth(
    depth: NDArray[np.floating], valid: NDArray[np.bool_] | None = None, predicts: Predicts = "metric"
) -> NDArray[np.uint8]:
    """Draws a map of distances or inverse distances.

    Args:
        depth: `(H, W)` float; the unit does not matter.
        valid: `(H, W)` bool, where the map says something; everywhere by default. Values that are not finite never
            count, nor do distances of 0 or less.
        predicts: whether `depth` is distance (`metric`) or inverse depth or disparity (`inverse`).

    Returns:
        `(H, W, 3)` uint8, three equal channels; black everywhere if nothing is known.

    Raises:
        ValueError: for arrays of another shape or type.
    """
    check_map(depth, valid)
    values = depth.astype(np.float64)
    known = np.isfinite(values) if valid is None else valid & np.isfinite(values)
    if predicts == "metric":
        known &= values > 0
        values = 1.0 / np.where(known, values, 1.0)
        # The inverse of a denormal number is infinite.
        known &= np.isfinite(values)
    grey = np.zeros(values.shape, np.uint8)
    shown = values[known]
    if shown.size:
        low, high = shown.min(), shown.max()
        # Halves, because the difference of two large numbers may be infinite.
        share = (shown / 2 - low / 2) / (high / 2 - low / 2) if high > low else None
        grey[known] = FLAT if share is None else np.rint(FARTHEST + share * (NEAREST - FARTHEST))
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def check_map(depth: NDArray, valid: NDArray | None) -> None:
    """Raises ValueError unless `depth` is `(H, W)` float, not empty, and `valid` bool of the same shape, or None."""
    if depth.ndim != 2 or depth.dtype.kind != "f" or not depth.size:
        raise ValueError(f"depth is {depth.dtype} {depth.shape}, expected float (H, W)")
    if valid is not None and (valid.shape != depth.shape or valid.dtype != np.bool_):
        raise ValueError(f"valid is {valid.dtype} {valid.shape}, expected bool {depth.shape}")

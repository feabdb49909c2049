"""The one geometric transform of an example, shared by its photo and all its annotations.

A `Transform` maps a raw W x H image to 256 x 256 by an axis-aligned crop and a resize, and maps points and boxes the
same way, so that labels are drawn *after* the transform and never blended. `center_crop` is uvd's default (short side
to 256, as open-muse and DeLVM), `stretch` is what LVM's release does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.sequences.example import IMAGE_SIZE

Resize = Literal["center_crop", "stretch", "random_crop"]

MIN_RANDOM_CROP = 0.7
"""Smallest side of a random crop as a share of the short side of the image."""


@dataclass(frozen=True, slots=True)
class Transform:
    """Crop `(x, y, width, height)` in raw pixels, then resize to `size` x `size`.

    Coordinates are continuous with the pixel (0, 0) covering [0, 1) x [0, 1), as in COCO.
    """

    x: float
    y: float
    width: float
    height: float
    size: int = IMAGE_SIZE

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels per raw pixel, (horizontal, vertical)."""
        return self.size / self.width, self.size / self.height

    def image(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resizes `(H, W, 3)` uint8 to `(size, size, 3)`: area averaging when shrinking, bicubic when enlarging.

        The crop is cut first, so only pixels that are used are filtered.
        """
        crop = self._crop(pixels)
        shrinks = crop.shape[0] >= self.size and crop.shape[1] >= self.size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        out = cv2.resize(crop, (self.size, self.size), interpolation=method)
        return np.ascontiguousarray(out)

    def labels(self, ids: NDArray[np.generic]) -> NDArray[np.generic]:
        """Resizes a `(H, W)` or `(H, W, 3)` map of labels by nearest neighbour: no new value can appear."""
        crop = self._crop(ids)
        rows = (np.arange(self.size) + 0.5) * (crop.shape[0] / self.size)
        columns = (np.arange(self.size) + 0.5) * (crop.shape[1] / self.size)
        return np.ascontiguousarray(crop[rows.astype(np.int64)[:, None], columns.astype(np.int64)[None, :]])

    def points(self, xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Maps `(..., 2)` raw coordinates to output coordinates; points outside the crop land outside [0, size)."""
        scale = np.asarray(self.scale)
        return (np.asarray(xy, dtype=np.float64) - (self.x, self.y)) * scale

    def boxes(self, xywh: NDArray[np.floating]) -> NDArray[np.float64]:
        """Maps `(N, 4)` boxes from raw x, y, width, height to output x0, y0, x1, y1, not clipped."""
        boxes = np.asarray(xywh, dtype=np.float64).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        return self.points(corners.reshape(-1, 2, 2)).reshape(-1, 4)

    def _crop(self, pixels: NDArray) -> NDArray:
        left, top = round(self.x), round(self.y)
        right, bottom = max(left + 1, round(self.x + self.width)), max(top + 1, round(self.y + self.height))
        return pixels[top:bottom, left:right]


def fit(width: int, height: int, resize: Resize = "center_crop", rng: np.random.Generator | None = None) -> Transform:
    """The transform for a raw image of `width` x `height`.

    Args:
        resize: `center_crop` (largest centred square), `stretch` (whole image, aspect ratio lost), or `random_crop`
            (a square of 70 to 100 % of the short side, placed by `rng`).
        rng: needed by `random_crop` only.

    Raises:
        ValueError: for an empty image, or `random_crop` without a generator.
    """
    if width < 1 or height < 1:
        raise ValueError(f"cannot fit an image of {width}x{height}")
    if resize == "stretch":
        return Transform(0, 0, width, height)
    side = min(width, height)
    if resize == "center_crop":
        return Transform((width - side) // 2, (height - side) // 2, side, side)
    if rng is None:
        raise ValueError("random_crop needs a generator")
    side = max(1, round(side * rng.uniform(MIN_RANDOM_CROP, 1.0)))
    return Transform(int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side, side)

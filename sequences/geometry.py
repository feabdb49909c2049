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
from PIL import Image

from uvd.sequences.example import IMAGE_SIZE

Resize = Literal["center_crop", "stretch", "random_crop"]

Resample = Literal["area", "fast", "lanczos"]
"""How photos become smaller: `area` averages pixels, in 1 to 5 ms; `fast` takes the cheapest filter for the ratio, in
0.2 to 0.6 ms; `lanczos` is Pillow's, in 4 to 14 ms. SSIM against Lanczos on the full image, over 19 to 60 real photos
at each of four sizes from 640x480 to 1920x1080: `area` 0.990 to 0.993 in the mean and 0.964 for the worst photo; `fast`
with its scaled decoding 0.985 to 0.992 in the mean, 0.947 for the worst, and up to 28 % of the photos under 0.98."""

MAX_CUBIC, MAX_LINEAR, MAX_HALVED = 1.25, 1.5, 2.5
"""Ratios up to which `fast` interpolates between 4x4 or 2x2 pixels, or between 2x2 at double size and halves."""
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
    resample: Resample = "area"

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels per raw pixel, (horizontal, vertical)."""
        return self.size / self.width, self.size / self.height

    def image(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resizes `(H, W, 3)` uint8 to `(size, size, 3)` by `resample`; bicubic when enlarging, unless Lanczos.

        The crop is cut first, so only pixels that are used are filtered.
        """
        crop = self._crop(pixels)
        if self.resample == "lanczos":
            image = Image.fromarray(np.ascontiguousarray(crop))
            return np.array(image.resize((self.size, self.size), Image.Resampling.LANCZOS))
        if min(crop.shape[:2]) < self.size:
            return self._resize(crop, cv2.INTER_CUBIC)
        ratio = max(crop.shape[:2]) / self.size if self.resample == "fast" else np.inf
        if ratio <= MAX_CUBIC:
            return self._resize(crop, cv2.INTER_CUBIC)
        if ratio <= MAX_LINEAR:
            return self._resize(crop, cv2.INTER_LINEAR)
        if ratio <= MAX_HALVED:
            # Averages of 2x2 have SIMD code in OpenCV, those of other areas do not: 0.5 ms in place of 1.3.
            crop = cv2.resize(crop, (2 * self.size, 2 * self.size), interpolation=cv2.INTER_LINEAR)
        return self._resize(crop, cv2.INTER_AREA)

    def _resize(self, crop: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(cv2.resize(crop, (self.size, self.size), interpolation=interpolation))

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


def fit(
    width: int,
    height: int,
    resize: Resize = "center_crop",
    rng: np.random.Generator | None = None,
    resample: Resample = "area",
) -> Transform:
    """The transform for a raw image of `width` x `height`.

    Args:
        resize: `center_crop` (largest centred square), `stretch` (whole image, aspect ratio lost), or `random_crop`
            (a square of 70 to 100 % of the short side, placed by `rng`).
        rng: needed by `random_crop` only.
        resample: how photos are filtered.

    Raises:
        ValueError: for an empty image, or `random_crop` without a generator.
    """
    if width < 1 or height < 1:
        raise ValueError(f"cannot fit an image of {width}x{height}")
    if resize == "stretch":
        return Transform(0, 0, width, height, resample=resample)
    side = min(width, height)
    if resize == "center_crop":
        return Transform((width - side) // 2, (height - side) // 2, side, side, resample=resample)
    if rng is None:
        raise ValueError("random_crop needs a generator")
    side = max(1, round(side * rng.uniform(MIN_RANDOM_CROP, 1.0)))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return Transform(left, top, side, side, resample=resample)

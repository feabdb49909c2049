"""Keypoints as a picture and back: one dot a keypoint, told apart by colour, on black.

Colours have a full channel each, and dots are read by the ratios of their channels, so that the dark rim that a
tokenizer blurs around a dot is not taken for another keypoint. Drawing and reading cost about 2 ms.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.sequences import IMAGE_SIZE

RADIUS = 12.0
"""Of a dot, pixels. A token covers 16x16: of 12 dots at random, `uvd-small` brings back 91 % within 21 pixels, and 63 %
of dots of radius 8."""
MIN_BRIGHTNESS = 64
"""Largest channel from which on a pixel belongs to a dot."""
MIN_PIXELS = 12
"""Smallest spot that is taken for a dot, of the about 450 pixels of a whole one."""


COLOURS = np.array(
    [
        *((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (255, 255, 255)),
        *((255, 128, 0), (128, 0, 255), (0, 255, 128), (255, 0, 128), (128, 255, 0), (0, 128, 255)),
        *((255, 128, 128), (128, 255, 128), (128, 128, 255), (255, 255, 128), (128, 255, 255), (255, 128, 255)),
    ],
    np.uint8,
)
"""`(19, 3)` uint8 RGB, keypoint k has the k-th: full hues first, those between them, and pale ones, which a tokenizer
confuses most, last."""


def draw_keypoints(keypoints: NDArray[np.float64], size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Draws dots; where dots overlap, a pixel belongs to the nearest keypoint.

    Args:
        keypoints: `(K, 2)` x, y in pixels, the pixel (0, 0) covering [0, 1) x [0, 1); NaN for none. K up to 19.

    Returns:
        `(size, size, 3)` uint8 RGB.

    Raises:
        ValueError: for more keypoints than there are colours.
    """
    if keypoints.ndim != 2 or keypoints.shape[1] != 2 or len(keypoints) > len(COLOURS):
        raise ValueError(f"keypoints are {keypoints.shape}, expected (K, 2) with K up to {len(COLOURS)}")
    picture = np.zeros((size, size, 3), np.uint8)
    places = np.flatnonzero(np.isfinite(keypoints).all(axis=1))
    if not len(places):
        return picture
    rows, columns = np.mgrid[:size, :size] + 0.5
    x, y = keypoints[places].T
    distances = np.hypot(columns[None] - x[:, None, None], rows[None] - y[:, None, None])
    nearest = distances.argmin(axis=0)
    inside = distances.min(axis=0) <= RADIUS
    picture[inside] = COLOURS[places[nearest[inside]]]
    return picture


def read_keypoints(picture: NDArray[np.uint8], count: int) -> NDArray[np.float64]:
    """Reads dots: for each colour the centre of its largest spot.

    Args:
        picture: `(H, W, 3)` uint8 RGB.
        count: how many keypoints there are; colours beyond them are not looked for.

    Returns:
        `(count, 2)` x, y; NaN where there is no spot of at least 12 pixels.

    Raises:
        ValueError: for more keypoints than there are colours.
    """
    if not 0 <= count <= len(COLOURS):
        raise ValueError(f"{count} keypoints: there are {len(COLOURS)} colours")
    found = np.full((count, 2), np.nan)
    brightness = picture.max(axis=2)
    lit = brightness >= MIN_BRIGHTNESS
    if not count or not lit.any():
        return found
    scaled = picture[lit].astype(np.float64) * (255 / brightness[lit][:, None])
    nearest = np.full(picture.shape[:2], -1)
    nearest[lit] = np.linalg.norm(scaled[:, None] - COLOURS[None, :count], axis=2).argmin(axis=1)
    for keypoint in range(count):
        mask = (nearest == keypoint).astype(np.uint8)
        spots, _, stats, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if spots > 1:
            largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            if stats[largest, cv2.CC_STAT_AREA] >= MIN_PIXELS:
                found[keypoint] = centres[largest] + 0.5
    return found

"""Colourisation's input: the photo in grey, 0.2989 R + 0.5870 G + 0.1140 B, as three equal channels.

The weights are those of ITU-R BT.601 as LVM uses them. Whole-number arithmetic, rounded half up, so the result is the
same on every machine (white stays 255 although the weights sum to 0.9999).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.renderers.canvas import check_rgb

WEIGHTS = (2989, 5870, 1140)
"""Red, green, blue in ten-thousandths."""


def render_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB → `(H, W, 3)` uint8 with three equal channels.

    Raises:
        ValueError: for an array of another shape or type.
    """
    check_rgb(image)
    red, green, blue = (image[..., channel].astype(np.uint32) for channel in range(3))
    grey = (red * WEIGHTS[0] + green * WEIGHTS[1] + blue * WEIGHTS[2] + 5000) // 10_000
    return cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2RGB)

"""Annotations that need no label: pictures made from the photo alone, by name.

Each function takes the photo, `(H, W, 3)` uint8 RGB, and a seeded generator, and returns a picture of the same size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.grey import render_grey
from uvd.renderers.inpainting import render_masked

Derive = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]

DERIVED: dict[str, Derive] = {
    "grey": lambda photo, _rng: render_grey(photo),  # colourisation
    "masked": render_masked,  # inpainting
}

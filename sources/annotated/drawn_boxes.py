"""Boxes that wait for the transform of their photo: outlines in colours of classes, or solid white for prompting.

Boxes without area, outside the crop or not finite are not drawn (`renderers.boxes`); where none is left, there is
nothing to see. Costs what `render_boxes` does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.boxes import render_boxes, visible_boxes
from uvd.renderers.palette import PALETTE_SIZE
from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.drawing import Draw


def draw_boxes(
    xywh: NDArray[np.floating], classes: NDArray[np.integer], over_image: bool, filled: bool = False
) -> Draw:
    """
    Args:
        xywh: `(N, 4)` left, top, width, height in pixels of the photo that the transform is fitted to.
        classes: `(N,)` places in the palette, from 1.
        over_image: over the photo; otherwise on black. Filled boxes are always on black.
        filled: solid white boxes without classes.

    Raises:
        RejectedInput: for a class outside the palette, whether its box is visible or not.
    """
    check_classes(classes)

    def draw(transform: Transform, photo: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        corners = transform.boxes(xywh)
        visible = visible_boxes(corners, transform.size, transform.size)
        background = photo if over_image and not filled else None
        pixels = render_boxes(corners[visible], classes[visible], transform.size, background, filled)
        return pixels, bool(visible.any())

    return draw


def check_classes(classes: NDArray[np.integer]) -> None:
    """
    Raises:
        RejectedInput: for a class that has no colour in the palette.
    """
    for place in classes.tolist():
        if not 1 <= place < PALETTE_SIZE:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"class {place} is beyond the palette's {PALETTE_SIZE}")

"""Object detection as an image: boxes coloured by class, over the photo (the paper's "overlay") or on black.

Rules: larger boxes first, so that small ones stay visible; a box that leaves the picture is clipped and stays closed;
one that lies outside it, has no area or is not finite is not drawn; any other box gets at least one pixel. Outlines
grow inwards, so the drawn extent is the box. Boxes around crowds (COCO's `iscrowd`) are no objects: readers leave them
out. 10 boxes over a photo of 256x256 cost about 0.08 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf

import numpy as np
from cv2 import FILLED, rectangle
from numpy.typing import ArrayLike, NDArray

from uvd.renderers.canvas import canvas
from uvd.renderers.palette import PALETTE_SIZE, VOID, colour
from uvd.sequences import IMAGE_SIZE

_colour = lru_cache(maxsize=PALETTE_SIZE)(colour)

THICKNESS = 2
"""Width of an outline in pixels at 256x256: the thinnest that survives a 16x16 token."""


def render_boxes(
    boxes_xyxy: ArrayLike,
    classes: ArrayLike,
    size: int = IMAGE_SIZE,
    background: NDArray[np.uint8] | None = None,
    filled: bool = False,
    thickness: int = THICKNESS,
) -> NDArray[np.uint8]:
    """Draws boxes by the rules above.

    Args:
        boxes_xyxy: `(N, 4)` left, top, right, bottom in output pixels, pixel (0, 0) covering [0, 1) x [0, 1).
        classes: `(N,)` class ids, which are palette indices from 1; 0 would be void. Ids that count from 0 get 1 added
            by the reader, the same everywhere in a dataset. Not used when `filled`.
        size: side of the picture in pixels; the background's own size wins.
        background: `(H, W, 3)` uint8 RGB photo to draw over, left as it is; None draws on black.
        filled: solid white boxes, the form used for prompting.
        thickness: width of the outlines in pixels.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: for arrays of other shapes, class ids outside the palette or void, `thickness` below 1.

    >>> render_boxes([[10, 20, 60, 80]], [3]).shape
    (256, 256, 3)
    """
    if thickness < 1:
        raise ValueError(f"thickness must be at least 1 pixel, not {thickness}")
    boxes = _as_boxes(boxes_xyxy)
    picture = canvas(size, background)
    fills = _class_colours(classes, len(boxes), filled)
    for index, (left, top, right, bottom) in _drawing_order(boxes, picture.shape[1], picture.shape[0]):
        fill = fills[index]
        if filled:
            rectangle(picture, (left, top), (right, bottom), fill, FILLED)
            continue
        # Nested one-pixel outlines grow inwards; OpenCV's own thickness would spread to both sides of the edge.
        for _ in range(thickness):
            if left > right or top > bottom:
                break
            rectangle(picture, (left, top), (right, bottom), fill)
            left, top, right, bottom = left + 1, top + 1, right - 1, bottom - 1
    return picture


def visible_boxes(boxes_xyxy: ArrayLike, width: int = IMAGE_SIZE, height: int = IMAGE_SIZE) -> NDArray[np.bool_]:
    """`(N,)` bool: which of the `(N, 4)` boxes leave a mark in a picture of that size.

    Raises:
        ValueError: for boxes of another shape.
    """
    boxes = _as_boxes(boxes_xyxy).tolist()
    return np.array([pixel_box(box, width, height) is not None for box in boxes], dtype=np.bool_)


PixelBox = tuple[int, int, int, int]


def pixel_box(box: Sequence[float], width: int, height: int) -> PixelBox | None:
    """First and last pixel, left, top, right, bottom, of a box clipped to the picture; None if it is not drawn."""
    x0, y0, x1, y1 = box
    # An infinite or NaN edge fails the first two comparisons.
    if not (0 < x1 - x0 < inf and 0 < y1 - y0 < inf and x0 < width and y0 < height and x1 > 0 and y1 > 0):
        return None
    left, right = int(x0 + 0.5) if x0 > 0 else 0, int(x1 + 0.5) - 1 if x1 < width else width - 1
    top, bottom = int(y0 + 0.5) if y0 > 0 else 0, int(y1 + 0.5) - 1 if y1 < height else height - 1
    # What is rounded away gets its nearest pixel. Conditions, for calls of min and max would be a tenth of the time.
    if left >= width:
        left = width - 1
    if top >= height:
        top = height - 1
    return left, top, right if right > left else left, bottom if bottom > top else top


def _drawing_order(boxes: NDArray[np.float64], width: int, height: int) -> list[tuple[int, PixelBox]]:
    """The boxes to draw with their indices, largest drawn area first, ties in the given order."""
    drawn = []
    for index, edges in enumerate(boxes.tolist()):
        box = pixel_box(edges, width, height)
        if box is not None:
            left, top, right, bottom = box
            drawn.append(((left - right - 1) * (bottom - top + 1), index, box))
    drawn.sort()
    return [(index, box) for _, index, box in drawn]


def _as_boxes(boxes_xyxy: ArrayLike) -> NDArray[np.float64]:
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have shape {boxes.shape}, expected (N, 4)")
    return boxes


def _class_colours(classes: ArrayLike, count: int, filled: bool) -> list[tuple[int, int, int]]:
    if filled:
        return [(255, 255, 255)] * count
    ids = np.asarray(classes)
    if ids.shape != (count,):
        raise ValueError(f"{count} boxes need as many classes, not an array of shape {ids.shape}")
    if count and ids.dtype.kind not in "iu":
        raise ValueError(f"class ids must be integers, not {ids.dtype}")
    listed = ids.tolist()
    if VOID in listed:
        raise ValueError("class id 0 is void, which is black: ids of classes count from 1")
    return [_colour(index) for index in listed]

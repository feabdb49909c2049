"""Skeletons as an image, in OpenPose's picture language: bodies, hands, faces, animals, all drawn by one function.

Rules: a limb is drawn when both of its joints are visible and inside the picture, a joint when it is visible; limbs of
bodies are filled ellipses at opacity 0.6, those of hands opaque lines, joints filled circles on top; skeletons in the
given order. Pixels of bodies, and areas of hands and faces, are those of MMPose 1.3.2's "openpose" style; colours and
limbs are the facts of its data set files. 5 people at 256x256 cost about 0.8 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import atan2, degrees, hypot
from typing import Any

import numpy as np
from cv2 import FILLED, addWeighted, boundingRect, circle, copyTo, ellipse2Poly, fillConvexPoly, line
from numpy.typing import ArrayLike, NDArray

from uvd.renderers.canvas import canvas
from uvd.sequences import IMAGE_SIZE

LIMB_OPACITY = 0.6
"""Of tapered limbs."""

THRESHOLD = 0.3
"""Keypoints below this score are not drawn; COCO's visibility 1 (occluded) and 2 (visible) both lie above it."""

MAX_OFFSET = 1 << 15
"""Joints farther out, in pixels, are not drawn: OpenCV's fixed point would wrap around."""

MAX_REMEMBERED = 127
"""Limbs that reach no farther than this, in pixels along x and y, have their shapes remembered: 8192 of them, at 5 MB
for people in 256x256 and never above 200 MB."""

Colour = tuple[int, int, int]
Limb = tuple[int, int, Colour]
"""Joint, joint, RGB."""


@dataclass(frozen=True)
class Skeleton:
    """What one kind of skeleton looks like.

    Attributes:
        name: of the kind.
        limbs: in drawing order.
        joint_colours: RGB of each of the K joints.
        keypoints: for each joint the keypoints of the usual annotation whose mean it is, visible only when all of them
            are; empty where joints are annotated as they are drawn.
        tapered: limbs are ellipses, at opacity 0.6, or else lines.
        width: of a limb in pixels: twice the small half axis of an ellipse, or the thickness of a line.
        radius: of a joint in pixels.
    """

    name: str
    limbs: tuple[Limb, ...]
    joint_colours: tuple[Colour, ...]
    keypoints: tuple[tuple[int, ...], ...] = ()
    tapered: bool = True
    width: int = 4
    radius: int = 3

    def __post_init__(self) -> None:
        if self.width < 1 or self.radius < 0:
            raise ValueError(f"{self.name}: width {self.width} is below 1 or radius {self.radius} below 0")

    @property
    def joints(self) -> int:
        return len(self.joint_colours)

    @cached_property
    def _annotated(self) -> int:
        """Number of the usual annotation's keypoints."""
        return 1 + max((max(mean) for mean in self.keypoints), default=-1)

    @cached_property
    def _first_keypoints(self) -> NDArray[np.intp]:
        return np.array([mean[0] for mean in self.keypoints])

    @cached_property
    def ends(self) -> NDArray[np.intp]:
        """`(limbs, 2)`: the joints of each limb."""
        return np.array([limb[:2] for limb in self.limbs], dtype=np.intp).reshape(-1, 2)

    def place(self, points: ArrayLike, threshold: float = THRESHOLD) -> NDArray[np.float64]:
        """Joints of N skeletons from the usual annotation's keypoints, or from joints.

        Args:
            points: `(N, K, 3)` joints, or keypoints of the number that `keypoints` counts: x, y, visibility or score.
            threshold: least score of a visible keypoint, for joints that are a mean of several.

        Returns:
            `(N, K, 3)` float64. A mean has score 1 if all of its keypoints lie above the threshold and 0 otherwise.
            Points that are not finite come out as (0, 0) with score 0.

        Raises:
            ValueError: for points of another shape.
        """
        given = np.array(points, dtype=np.float64)
        if given.size == 0:
            return np.zeros((0, self.joints, 3))
        counts = {self.joints, self._annotated or self.joints}
        if given.ndim != 3 or given.shape[2] != 3 or given.shape[1] not in counts:
            wanted = " or ".join(f"(N, {count}, 3)" for count in sorted(counts))
            raise ValueError(f"keypoints of a {self.name} have shape {given.shape}, expected {wanted}")
        finite = np.isfinite(given)
        if not finite.all():
            given[~finite.all(axis=2)] = 0
        if given.shape[1] == self.joints:
            return given
        joints = given[:, self._first_keypoints]
        for joint, mean in enumerate(self.keypoints):
            if len(mean) > 1:
                joints[:, joint] = given[:, mean].mean(axis=1)
                joints[:, joint, 2] = (given[:, mean, 2] > threshold).all(axis=1)
        return joints


Part = tuple[Skeleton, ArrayLike]
"""A kind of skeleton, and `(N, K, 3)` points of N of them: x, y in output pixels, visibility (0, 1, 2) or score."""


def render_skeletons(
    parts: Sequence[Part],
    size: int = IMAGE_SIZE,
    background: NDArray[np.uint8] | None = None,
    threshold: float = THRESHOLD,
) -> NDArray[np.uint8]:
    """Draws skeletons, later parts over earlier ones.

    Args:
        parts: see `Part`; what `Skeleton.place` takes.
        size: side of the picture in pixels; the background's own size wins.
        background: `(H, W, 3)` uint8 RGB photo to draw over, left as it is; None draws on black.
        threshold: least score of a visible keypoint.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: for points of another shape.

    >>> render_skeletons([(HAND, np.zeros((2, 21, 3)))]).max()
    np.uint8(0)
    """
    picture = canvas(size, background)
    for skeleton, points in parts:
        _draw(picture, skeleton, skeleton.place(points, threshold), threshold)
    return picture


def visible_skeletons(
    skeleton: Skeleton,
    points: ArrayLike,
    width: int = IMAGE_SIZE,
    height: int = IMAGE_SIZE,
    threshold: float = THRESHOLD,
) -> NDArray[np.bool_]:
    """`(N,)` bool: which skeletons have at least two visible joints inside a picture of that size."""
    x, y, score = np.moveaxis(skeleton.place(points, threshold), 2, 0)
    return ((x > 0) & (x < width) & (y > 0) & (y < height) & (score >= threshold)).sum(axis=1) >= 2


Pixel = tuple[int, int]


def _draw(picture: NDArray[np.uint8], skeleton: Skeleton, joints: NDArray[np.float64], threshold: float) -> None:
    """Draws `(N, K, 3)` joints, one skeleton after the other, limbs first."""
    height, width = picture.shape[:2]
    visible = (joints[:, :, 2] >= threshold) & (np.abs(joints[:, :, :2]) < MAX_OFFSET).all(axis=2)
    # Truncated toward zero, as MMPose does.
    pixels = np.where(visible[:, :, None], joints[:, :, :2], 0).astype(np.int64)
    inside = visible & ((pixels > 0) & (pixels < (width, height))).all(axis=2)
    limbs: list[list[tuple[Pixel, Pixel]]] = pixels[:, skeleton.ends].tolist()
    drawn: list[list[bool]] = (inside[:, skeleton.ends[:, 0]] & inside[:, skeleton.ends[:, 1]]).tolist()
    for index, (seen, places) in enumerate(zip(visible.tolist(), pixels.tolist(), strict=True)):
        for (_, _, fill), (start, end), both in zip(skeleton.limbs, limbs[index], drawn[index], strict=True):
            if both and skeleton.tapered:
                _blend_limb(picture, start, end, fill, skeleton.width // 2)
            elif both:
                line(picture, start, end, fill, skeleton.width)
        for place, shown, fill in zip(places, seen, skeleton.joint_colours, strict=True):
            if shown:
                circle(picture, place, skeleton.radius, fill, FILLED)


def _blend_limb(picture: NDArray[np.uint8], start: Pixel, end: Pixel, fill: Colour, half_width: int) -> None:
    """Blends one filled ellipse between two joints into the rectangle of the picture that it covers."""
    (ax, ay), (bx, by) = start, end
    dx, dy = ax - bx, ay - by
    if -MAX_REMEMBERED <= dx <= MAX_REMEMBERED and -MAX_REMEMBERED <= dy <= MAX_REMEMBERED:
        x, y = (ax + bx) // 2, (ay + by) // 2
        mask, left, top, width, height, uneven = _limb_mask(dx, dy, half_width, 0, 0)
        if uneven and (x & 1 or y & 1):
            mask, left, top, width, height, _ = _limb_mask(dx, dy, half_width, x & 1, y & 1)
        left, top = left + x, top + y
        right, bottom = left + width, top + height
        if left >= 0 and top >= 0 and right <= picture.shape[1] and bottom <= picture.shape[0]:
            part = picture[top:bottom, left:right]
            solid = _solid(fill, half_width)[:height, :width]
            copyTo(addWeighted(part, 1 - LIMB_OPACITY, solid, LIMB_OPACITY, 0), mask, part)
            return
    _blend_any_limb(picture, start, end, fill, half_width)


def _blend_any_limb(picture: NDArray[np.uint8], start: Pixel, end: Pixel, fill: Colour, half_width: int) -> None:
    """As `_blend_limb`, for long limbs and for those that the edge of the picture cuts."""
    (ax, ay), (bx, by) = start, end
    # The angle is cut to whole degrees, which moves the ends of a long limb sideways by up to a 57th of its half.
    margin = half_width + 2 + max(abs(ax - bx), abs(ay - by)) // 50
    # Even offsets keep OpenCV's rounding of half pixels to even the same as in the whole picture.
    left, top = max(0, min(ax, bx) - margin) & ~1, max(0, min(ay, by) - margin) & ~1
    part = picture[top : max(ay, by) + margin + 1, left : max(ax, bx) + margin + 1]
    centre = ((ax + bx) // 2 - left, (ay + by) // 2 - top)
    outline = _ellipse(centre, ax - bx, ay - by, half_width)[0]
    addWeighted(part, 1 - LIMB_OPACITY, fillConvexPoly(part.copy(), outline, fill), LIMB_OPACITY, 0, part)


def _ellipse(centre: Pixel, dx: int, dy: int, half_width: int) -> tuple[NDArray[np.int32], int]:
    """Outline of a limb between joints that are (dx, dy) apart, and its angle in whole degrees."""
    angle = int(degrees(atan2(dy, dx)))
    outline: Any = ellipse2Poly(centre, (int(hypot(dx, dy) / 2), half_width), angle, 0, 360, 1)
    return outline, angle


LimbMask = tuple[NDArray[np.uint8], int, int, int, int, bool]
"""Mask, its left and top from the middle of the limb, its width and height, and whether a limb with its middle at odd
x or y has another mask."""


@lru_cache(maxsize=8192)
def _limb_mask(dx: int, dy: int, half_width: int, odd_x: int, odd_y: int) -> LimbMask:
    """The pixels of a limb that has its middle at even or odd x and y.

    OpenCV rounds half pixels to even, so the outline depends on where the middle lies; but corners fall on half pixels
    only at multiples of 30 degrees (tested for all lengths that are remembered).
    """
    reach = max(abs(dx), abs(dy)) // 100 + half_width + 4
    x, y = ((abs(dx) // 2 + reach) & ~1) + odd_x, ((abs(dy) // 2 + reach) & ~1) + odd_y
    outline, angle = _ellipse((x, y), dx, dy, half_width)
    left, top, width, height = boundingRect(outline)
    filled = fillConvexPoly(np.zeros((top + height, left + width), dtype=np.uint8), outline, (255,))
    return filled[top:, left:], left - x, top - y, width, height, angle % 30 == 0


@lru_cache(maxsize=64)
def _solid(fill: Colour, half_width: int) -> NDArray[np.uint8]:
    """A picture of one colour, as large as any mask that is remembered."""
    side = MAX_REMEMBERED + 2 * half_width + 8
    return np.full((side, side, 3), fill, dtype=np.uint8)


OPENPOSE_BODY = Skeleton(
    "body",
    limbs=(
        (1, 2, (255, 0, 0)),
        (1, 5, (255, 85, 0)),
        (2, 3, (255, 170, 0)),
        (3, 4, (255, 255, 0)),
        (5, 6, (170, 255, 0)),
        (6, 7, (85, 255, 0)),
        (1, 8, (0, 255, 0)),
        (8, 9, (0, 255, 85)),
        (9, 10, (0, 255, 170)),
        (1, 11, (0, 255, 225)),
        (11, 12, (0, 170, 255)),
        (12, 13, (0, 85, 255)),
        (1, 0, (0, 0, 255)),
        (0, 14, (255, 0, 170)),
        (14, 16, (170, 0, 255)),
        (0, 15, (255, 0, 255)),
        (15, 17, (255, 0, 170)),
    ),
    joint_colours=(
        (255, 0, 0),
        (255, 85, 0),
        (255, 170, 0),
        (255, 255, 0),
        (170, 255, 0),
        (85, 255, 0),
        (0, 255, 0),
        (0, 255, 85),
        (0, 255, 170),
        (0, 255, 255),
        (0, 170, 255),
        (0, 85, 255),
        (0, 0, 255),
        (85, 0, 255),
        (170, 0, 255),
        (255, 0, 255),
        (255, 0, 170),
        (255, 0, 85),
    ),
    # Nose, neck (the mean of COCO's shoulders), right arm, left arm, right leg, left leg, eyes, ears.
    keypoints=((0,), (5, 6), *((k,) for k in (6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3))),
)
"""OpenPose's 18 joints and rainbow, with 17 limbs in the colours of MMPose's `coco_openpose`; takes COCO's 17 keypoints
too, Human-Art's among them."""

HAND = Skeleton(
    "hand",
    limbs=(
        (0, 1, (255, 0, 0)),
        (1, 2, (255, 76, 0)),
        (2, 3, (255, 153, 0)),
        (3, 4, (255, 230, 0)),
        (0, 5, (204, 255, 0)),
        (5, 6, (128, 255, 0)),
        (6, 7, (51, 255, 0)),
        (7, 8, (0, 255, 26)),
        (0, 9, (0, 255, 102)),
        (9, 10, (0, 255, 178)),
        (10, 11, (0, 255, 255)),
        (11, 12, (0, 178, 255)),
        (0, 13, (0, 102, 255)),
        (13, 14, (0, 26, 255)),
        (14, 15, (51, 0, 255)),
        (15, 16, (128, 0, 255)),
        (0, 17, (204, 0, 255)),
        (17, 18, (255, 0, 230)),
        (18, 19, (255, 0, 153)),
        (19, 20, (255, 0, 76)),
    ),
    joint_colours=((0, 0, 255),) * 21,
    tapered=False,
    width=2,
    radius=1,
)
"""Wrist, then thumb to little finger from the palm outwards, 4 points each; a hue for each of the 20 limbs."""

FACE = Skeleton("face", limbs=(), joint_colours=((255, 255, 255),) * 68, radius=1)
"""The 68 points of COCO-WholeBody and 300-W, white dots."""

AP10K = Skeleton(
    "animal",
    limbs=(
        (0, 1, (0, 0, 255)),
        (0, 2, (0, 0, 255)),
        (1, 2, (0, 0, 255)),
        (2, 3, (0, 255, 0)),
        (3, 4, (0, 255, 0)),
        (3, 5, (0, 255, 255)),
        (5, 6, (0, 255, 255)),
        (6, 7, (0, 255, 255)),
        (3, 8, (6, 156, 250)),
        (8, 9, (6, 156, 250)),
        (9, 10, (6, 156, 250)),
        (4, 11, (0, 255, 255)),
        (11, 12, (0, 255, 255)),
        (12, 13, (0, 255, 255)),
        (4, 14, (6, 156, 250)),
        (14, 15, (6, 156, 250)),
        (15, 16, (6, 156, 250)),
    ),
    joint_colours=(
        (0, 255, 0),
        (255, 128, 0),
        (51, 153, 255),
        (51, 153, 255),
        (51, 153, 255),
        (51, 153, 255),
        (51, 153, 255),
        (0, 255, 0),
        (0, 255, 0),
        (255, 128, 0),
        (0, 255, 0),
        (255, 128, 0),
        (255, 128, 0),
        (0, 255, 0),
        (0, 255, 0),
        (0, 255, 0),
        (0, 255, 0),
    ),
)
"""AP-10K's animals: eyes, nose, neck, tail, then left front, right front, left back and right back leg; the colours of
MMPose's `ap10k`."""

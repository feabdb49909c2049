"""Human pose in OpenPose's picture language: 18 joints, 17 limbs, its colours, drawn as MMPose's "openpose" style.

COCO's 17 keypoints gain a neck, the mean of the shoulders, only when both are visible. Limbs are filled ellipses at
opacity 0.6 in the order of OpenPose's list, joints filled circles on top; people in the given order. Blending touches
only the rectangle around each limb: 5 people at 256x256 cost about 1 ms.
"""

from __future__ import annotations

from math import atan2, degrees, hypot

import numpy as np
from cv2 import FILLED, addWeighted, circle, ellipse2Poly, fillConvexPoly
from numpy.typing import ArrayLike, NDArray

from uvd.renderers.canvas import canvas
from uvd.sequences import IMAGE_SIZE

RIGHT_SHOULDER, LEFT_SHOULDER = 6, 5
"""Indices among COCO's 17 keypoints (nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; left first)."""

NECK = 1
"""Index of the neck among OpenPose's 18 joints."""

COCO_OF_OPENPOSE = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""For each OpenPose joint its COCO keypoint: nose, (neck), right arm, left arm, right leg, left leg, eyes, ears."""

JOINT_COLOURS = (
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
)
"""OpenPose's rainbow, one RGB colour for each of the 18 joints."""

LIMBS = (
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
)
"""Joint, joint, RGB colour, in drawing order; the colours are those of MMPose's `coco_openpose` data set."""

LIMB_OPACITY = 0.6
THRESHOLD = 0.3
"""Keypoints below this score are not drawn; COCO's visibility 1 (occluded) and 2 (visible) both lie above it."""

HALF_WIDTH = 2
"""Half the width of a limb in pixels at 256x256; OpenPose's look is 4 at 512."""

RADIUS = 3
"""Radius of a joint in pixels: MMPose's default."""


def render_pose(
    keypoints: ArrayLike,
    size: int = IMAGE_SIZE,
    background: NDArray[np.uint8] | None = None,
    threshold: float = THRESHOLD,
    half_width: int = HALF_WIDTH,
    radius: int = RADIUS,
) -> NDArray[np.uint8]:
    """Draws skeletons.

    A limb is drawn when both of its joints are visible and inside the picture, as MMPose does; a joint that is not
    finite counts as not visible.

    Args:
        keypoints: `(N, 17, 3)` COCO keypoints: x, y in output pixels, visibility (0, 1, 2) or score.
        size: side of the picture in pixels; the background's own size wins.
        background: `(H, W, 3)` uint8 RGB photo to draw over, left as it is; None draws on black.
        threshold: least score of a visible keypoint.
        half_width: half the width of a limb in pixels.
        radius: radius of a joint in pixels.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: for keypoints of another shape, or a negative width or radius.

    >>> render_pose(np.zeros((2, 17, 3))).max()
    np.uint8(0)
    """
    return render_openpose(openpose_joints(keypoints, threshold), size, background, threshold, half_width, radius)


def render_openpose(
    joints: ArrayLike,
    size: int = IMAGE_SIZE,
    background: NDArray[np.uint8] | None = None,
    threshold: float = THRESHOLD,
    half_width: int = HALF_WIDTH,
    radius: int = RADIUS,
) -> NDArray[np.uint8]:
    """As `render_pose`, for data with a neck of its own: `(N, 18, 3)` OpenPose joints, x, y, score.

    Raises:
        ValueError: for joints of another shape, or a negative width or radius.
    """
    if half_width < 0 or radius < 0:
        raise ValueError(f"half width {half_width} and radius {radius} must not be negative")
    picture = canvas(size, background)
    for person in _as_joints(joints):
        pixels = _pixel_joints(person, threshold)
        _draw_limbs(picture, pixels, half_width)
        _draw_joints(picture, pixels, radius)
    return picture


def openpose_joints(keypoints: ArrayLike, threshold: float = THRESHOLD) -> NDArray[np.float64]:
    """COCO `(N, 17, 3)` → OpenPose `(N, 18, 3)` float64, the neck with score 1 when both shoulders lie above
    `threshold` and 0 otherwise. Points that are not finite come out as (0, 0) with score 0.

    Raises:
        ValueError: for keypoints of another shape.
    """
    coco = np.array(keypoints, dtype=np.float64)
    if coco.size == 0:
        return np.zeros((0, 18, 3))
    if coco.ndim != 3 or coco.shape[1:] != (17, 3):
        raise ValueError(f"keypoints have shape {coco.shape}, expected (N, 17, 3)")
    coco[~np.isfinite(coco).all(axis=2)] = 0
    joints = coco[:, COCO_OF_OPENPOSE, :]
    shoulders = coco[:, (LEFT_SHOULDER, RIGHT_SHOULDER)]
    joints[:, NECK] = shoulders.mean(axis=1)
    joints[:, NECK, 2] = (shoulders[:, :, 2] > threshold).all(axis=1)
    return joints


def visible_people(
    keypoints: ArrayLike, width: int = IMAGE_SIZE, height: int = IMAGE_SIZE, threshold: float = THRESHOLD
) -> NDArray[np.bool_]:
    """`(N,)` bool: which people have at least one limb's worth, two visible joints, inside a picture of that size."""
    return visible_skeletons(openpose_joints(keypoints, threshold), width, height, threshold)


def visible_skeletons(
    joints: ArrayLike, width: int = IMAGE_SIZE, height: int = IMAGE_SIZE, threshold: float = THRESHOLD
) -> NDArray[np.bool_]:
    """As `visible_people`, for `(N, 18, 3)` OpenPose joints."""
    x, y, score = np.moveaxis(_as_joints(joints), 2, 0)
    return ((x > 0) & (x < width) & (y > 0) & (y < height) & (score >= threshold)).sum(axis=1) >= 2


def _as_joints(joints: ArrayLike) -> NDArray[np.float64]:
    """`(N, 18, 3)`; joints that are not finite become (0, 0) with score 0."""
    people = np.array(joints, dtype=np.float64)
    if people.size == 0:
        return np.zeros((0, 18, 3))
    if people.ndim != 3 or people.shape[1:] != (18, 3):
        raise ValueError(f"joints have shape {people.shape}, expected (N, 18, 3)")
    people[~np.isfinite(people).all(axis=2)] = 0
    return people


Joint = tuple[int, int] | None


def _pixel_joints(person: NDArray[np.float64], threshold: float) -> list[Joint]:
    """Whole pixels of the visible joints, None for the others. Truncated toward zero, as MMPose does."""
    # Farther out nothing is drawn, and OpenCV's fixed point would wrap around.
    limit = 1 << 15
    return [
        (int(x), int(y)) if score >= threshold and -limit < x < limit and -limit < y < limit else None
        for x, y, score in person.tolist()
    ]


def _draw_limbs(picture: NDArray[np.uint8], joints: list[Joint], half_width: int) -> None:
    height, width = picture.shape[:2]
    inside = [j if j is not None and 0 < j[0] < width and 0 < j[1] < height else None for j in joints]
    for start, end, fill in LIMBS:
        a, b = inside[start], inside[end]
        if a is not None and b is not None:
            _blend_limb(picture, a, b, fill, half_width)


def _blend_limb(
    picture: NDArray[np.uint8],
    a: tuple[int, int],
    b: tuple[int, int],
    fill: tuple[int, int, int],
    half_width: int,
) -> None:
    """Blends one filled ellipse between two joints into the rectangle of the picture that it can touch."""
    (ax, ay), (bx, by) = a, b
    angle = int(degrees(atan2(ay - by, ax - bx)))
    half_length = int(hypot(ax - bx, ay - by) / 2)
    # The angle is cut to whole degrees, which moves the ends of a long limb sideways by up to a 57th of its half.
    margin = half_width + 2 + half_length // 50
    # Even offsets keep OpenCV's rounding of half pixels to even the same as in the whole picture.
    left, top = max(0, min(ax, bx) - margin) & ~1, max(0, min(ay, by) - margin) & ~1
    part = picture[top : max(ay, by) + margin + 1, left : max(ax, bx) + margin + 1]
    centre = ((ax + bx) // 2 - left, (ay + by) // 2 - top)
    outline = ellipse2Poly(centre, (half_length, half_width), angle, 0, 360, 1)
    addWeighted(part, 1 - LIMB_OPACITY, fillConvexPoly(part.copy(), outline, fill), LIMB_OPACITY, 0, part)


def _draw_joints(picture: NDArray[np.uint8], joints: list[Joint], radius: int) -> None:
    for joint, fill in zip(joints, JOINT_COLOURS, strict=True):
        if joint is not None:
            circle(picture, joint, radius, fill, FILLED)

"""People's keypoints in COCO's and COCO-WholeBody's order, as the skeletons of `renderers/skeletons.py`.

COCO's 17 keypoints gain a neck, the mean of the shoulders, only when both are visible. COCO-WholeBody's 133 are body,
feet, face, left and right hand; feet are not drawn, as in MMPose's "openpose" style.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uvd.renderers import skeletons
from uvd.renderers.skeletons import FACE, HAND, OPENPOSE_BODY, THRESHOLD, Part, render_skeletons
from uvd.sequences import IMAGE_SIZE

KEYPOINTS = 17
"""Nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; left first."""

WHOLE_BODY_KEYPOINTS = 133
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)


def render_pose(
    keypoints: ArrayLike,
    size: int = IMAGE_SIZE,
    background: NDArray[np.uint8] | None = None,
    threshold: float = THRESHOLD,
) -> NDArray[np.uint8]:
    """Draws bodies: `render_skeletons` of `OPENPOSE_BODY`.

    Args:
        keypoints: `(N, 17, 3)` COCO keypoints, or `(N, 18, 3)` OpenPose joints: x, y in output pixels, visibility
            (0, 1, 2) or score.
        size, background, threshold: as in `render_skeletons`.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: for keypoints of another shape.

    >>> render_pose(np.zeros((2, 17, 3))).max()
    np.uint8(0)
    """
    return render_skeletons([(OPENPOSE_BODY, keypoints)], size, background, threshold)


def visible_people(
    keypoints: ArrayLike, width: int = IMAGE_SIZE, height: int = IMAGE_SIZE, threshold: float = THRESHOLD
) -> NDArray[np.bool_]:
    """`(N,)` bool: which people have at least one limb's worth, two visible joints, inside a picture of that size."""
    return skeletons.visible_skeletons(OPENPOSE_BODY, keypoints, width, height, threshold)


def whole_body(keypoints: ArrayLike) -> tuple[Part, ...]:
    """Parts for `render_skeletons` from `(N, 133, 3)` COCO-WholeBody keypoints: bodies, hands, faces.

    Raises:
        ValueError: for keypoints of another shape.
    """
    people = np.asarray(keypoints, dtype=np.float64)
    if people.size == 0:
        return ()
    if people.ndim != 3 or people.shape[1:] != (WHOLE_BODY_KEYPOINTS, 3):
        raise ValueError(f"keypoints have shape {people.shape}, expected (N, {WHOLE_BODY_KEYPOINTS}, 3)")
    hands = np.concatenate([people[:, _LEFT_HAND], people[:, _RIGHT_HAND]])
    return (OPENPOSE_BODY, people[:, :KEYPOINTS]), (HAND, hands), (FACE, people[:, _FACE])

"""Skeletons that wait for the transform of their photo: bodies, animals, hands and faces in one picture, on black."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.skeletons import Skeleton, render_skeletons, visible_skeletons
from uvd.sequences import Transform
from uvd.sources.drawing import Draw


def draw_poses(parts: Sequence[tuple[Skeleton, NDArray[np.float64]]]) -> Draw:
    """
    Args:
        parts: kinds of skeletons, each with `(N, K, 3)` points of N of them: x, y in pixels of the photo that the
            transform is fitted to, visibility or score. Later parts are drawn over earlier ones.
    """

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        size = transform.size
        placed = [
            (skeleton, np.concatenate([transform.points(points[:, :, :2]), points[:, :, 2:]], axis=2))
            for skeleton, points in parts
        ]
        seen = any(visible_skeletons(skeleton, points, size, size).any() for skeleton, points in placed)
        return render_skeletons(placed, size), seen

    return draw

"""Surface normals as an image: (n + 1) / 2 * 255, with x to the right, y up and z towards the viewer.

These are OpenGL's axes, in which a wall that faces the camera is (128, 128, 255), as in Omnidata (arXiv 2110.04994) and
most normal maps. Vectors are brought to length 1; where there is none the picture is black, which no unit vector is.
4 ms at 256x256. Normals from depth are geometry: a pinhole camera and central differences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.depth import check_map

MIN_LENGTH = 1e-6
"""Shorter vectors point nowhere."""
TIE = 1e-6
"""Levels below a half that are rounded up: components of 0, the commonest, lie at 127.5, and the last bit of their
computation must not make a wall speckled."""


def render_normals(normals: NDArray[np.floating], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Draws a map of normals.

    Args:
        normals: `(H, W, 3)` float: x right, y up, z towards the viewer, of any length.
        valid: `(H, W)` bool, where the map says something; everywhere by default. Vectors that are not finite or have
            no length never count.

    Returns:
        `(H, W, 3)` uint8, rounded; black where nothing is known.

    Raises:
        ValueError: for arrays of another shape or type.
    """
    if normals.ndim != 3 or normals.shape[2] != 3 or normals.dtype.kind != "f" or not normals.size:
        raise ValueError(f"normals are {normals.dtype} {normals.shape}, expected float (H, W, 3)")
    if valid is not None and (valid.shape != normals.shape[:2] or valid.dtype != np.bool_):
        raise ValueError(f"valid is {valid.dtype} {valid.shape}, expected bool {normals.shape[:2]}")
    unit = unit_vectors(normals)
    known = np.any(unit, axis=2, keepdims=True)
    if valid is not None:
        known &= valid[..., None]
    levels = np.floor((unit + 1) * 127.5 + 0.5 + TIE)
    return np.where(known, levels, 0).astype(np.uint8)


def unit_vectors(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """`(..., 3)` vectors at length 1, float64; (0, 0, 0) where they are not finite or shorter than 1e-6."""
    x, y, z = (vectors[..., axis].astype(np.float64) for axis in range(3))
    largest = np.maximum(np.maximum(np.abs(x), np.abs(y)), np.abs(z))
    pointing = np.isfinite(largest) & (largest >= MIN_LENGTH)
    # Divided by the largest component first, so that no square leaves the numbers' range.
    factor = np.divide(1.0, largest, out=np.zeros_like(largest), where=pointing)
    planes = np.stack([np.multiply(plane, factor, out=np.zeros_like(x), where=pointing) for plane in (x, y, z)])
    length = np.sqrt(planes[0] * planes[0] + planes[1] * planes[1] + planes[2] * planes[2])
    planes /= np.where(pointing, length, 1)
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def normals_from_depth(
    depth: NDArray[np.floating], fov_degrees: float, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Normals of the surface that a pinhole camera sees.

    Each pixel is placed in space; its normal stands on the lines through its left and right, and its upper and lower
    neighbours. At the border, and beside pixels without depth, the pixel itself takes the neighbour's place.

    Args:
        depth: `(H, W)` float: distance along the optical axis, in any unit; unknown where not finite or 0 or
            less.
        fov_degrees: horizontal field of view of the picture; pixels are square, the axis goes through the centre.
        valid: `(H, W)` bool, where depth is known; everywhere by default.

    Returns:
        `(H, W, 3)` float64 unit vectors, x right, y up, z towards the viewer; (0, 0, 0) where unknown.

    Raises:
        ValueError: for arrays of another shape or type, or an angle outside 0 to 180 degrees.
    """
    check_map(depth, valid)
    if not 0 < fov_degrees < 180:
        raise ValueError(f"a field of view of {fov_degrees} degrees; expected one between 0 and 180")
    known = np.isfinite(depth) & (depth > 0)
    if valid is not None:
        known &= valid
    z = np.where(known, depth, 0).astype(np.float64)
    # One unit for all, so that neither large nor small ones leave the numbers' range.
    z /= float(z.max()) or 1.0
    height, width = z.shape
    tangent = 2 * np.tan(np.radians(fov_degrees) / 2) / width
    x = (np.arange(width) + 0.5 - width / 2) * tangent
    y = (height / 2 - 0.5 - np.arange(height)) * tangent
    points = np.stack([x * z, y[:, None] * z, -z], axis=2)
    right = _difference(points, known)
    down = _difference(points.transpose(1, 0, 2), known.T).transpose(1, 0, 2)
    across = [down[..., i - 2] * right[..., i - 1] - down[..., i - 1] * right[..., i - 2] for i in range(3)]
    # Differences are as small as a pixel is; a normal's length says nothing.
    return unit_vectors(np.where(known[..., None], np.stack(across, axis=-1) / tangent**2, 0))


def _difference(points: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Along the second axis: the next point less the one before, of those that are known."""
    following, before = points.copy(), points.copy()
    following[:, :-1] = np.where(known[:, 1:, None], points[:, 1:], points[:, :-1])
    before[:, 1:] = np.where(known[:, :-1, None], points[:, :-1], points[:, 1:])
    return following - before

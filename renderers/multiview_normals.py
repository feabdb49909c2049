"""Smooth normals with sharp creases, for meshes that come without normals: a corner takes the mean of its like.

At a point where all faces are within 45 degrees of their mean, that mean is the normal of all of them. Elsewhere each
corner has the mean over those faces around the point that are within 45 degrees of its own, so that the sides of a box
stay flat to the edge. Faces weigh by area. 1 s for a million triangles, 4 s if all is rough.
"""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.typing import NDArray

from uvd.renderers.multiview_material import Appearance

CREASE_COSINE = 0.7
"""Of about 45 degrees."""
MAX_FAN = 64
"""Faces around a point of sharp edges; where there are more, each keeps its own normal."""
PAIRS_AT_ONCE = 1 << 20


def creased_normals(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], look: Appearance
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Vertices are joined or split as their normals want it; coloured faces get vertices of their own.

    Returns:
        For k vertices: `(k,)` the vertex that each one copies, `(k, 3)` normals, and the `(m, 3)` faces.
    """
    points = np.nan_to_num(vertices / (float(np.abs(vertices[faces.reshape(-1)]).max()) or 1.0))
    a, b, c = (points[faces[:, i]] for i in range(3))
    weighted = np.cross(b - a, c - a)  # its length is twice the face's area
    first, place = trimesh.grouping.unique_rows(points, digits=6)
    corners = place[faces.reshape(-1)]
    per_corner = np.repeat(weighted, 3, axis=0)
    sums = [np.bincount(corners, weights=per_corner[:, i], minlength=len(first)) for i in range(3)]
    smooth = unit_vectors(np.stack(sums, axis=1))
    own = np.repeat(unit_vectors(weighted), 3, axis=0)
    creased = np.zeros(len(first), dtype=bool)
    creased[corners[(smooth[corners] * own).sum(axis=1) < CREASE_COSINE]] = True
    sharp = np.flatnonzero(creased[corners])
    mean = _mean_of_like(corners[sharp], per_corner[sharp], own[sharp])
    if look.face_colors is not None:
        of_corners = smooth[corners]
        of_corners[sharp] = mean
        return faces.reshape(-1), of_corners, np.arange(len(corners)).reshape(-1, 3)
    if look.uv is None and look.vertex_colors is None:  # vertices differ by their place alone: join them
        source, normals, indices = first, smooth, corners.copy()
    else:
        source, normals, indices = np.arange(len(vertices)), smooth[place], faces.reshape(-1).copy()
    copied = source[indices[sharp]]
    indices[sharp] = len(source) + np.arange(len(copied))
    return np.concatenate([source, copied]), np.concatenate([normals, mean]), indices.reshape(-1, 3)


def _mean_of_like(
    points: NDArray[np.int64], weighted: NDArray[np.float64], own: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For `(n,)` corners at `points`: `(n, 3)` unit means over the corners of the same point that face as they do."""
    order = np.argsort(points, kind="stable")
    _, starts, counts = np.unique(points[order], return_index=True, return_counts=True)
    fan, begin = np.repeat(counts, counts), np.repeat(starts, counts)  # of each corner, in order
    result = own[order]
    many = np.flatnonzero(fan <= MAX_FAN)
    ends = np.cumsum(fan[many])
    while len(many):
        taken = max(1, int(np.searchsorted(ends, PAIRS_AT_ONCE, side="right")))
        some, many, ends = many[:taken], many[taken:], ends[taken:] - ends[taken - 1]
        mine = np.repeat(np.arange(taken), fan[some])
        step = np.arange(len(mine)) - np.repeat(np.cumsum(fan[some]) - fan[some], fan[some])
        other = order[begin[some][mine] + step]
        like = (own[order[some]][mine] * own[other]).sum(axis=1) >= CREASE_COSINE
        sums = [np.bincount(mine[like], weights=weighted[other[like], i], minlength=taken) for i in range(3)]
        result[some] = unit_vectors(np.stack(sums, axis=1))
    means = np.empty_like(result)
    means[order] = result
    return means


def unit_vectors(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Vectors of length 1; zero stays zero."""
    array = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(array, axis=1, keepdims=True)
    return np.divide(array, length, out=np.zeros_like(array), where=length > 0)

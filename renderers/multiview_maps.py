"""Depth, normals and mask of an object's views as pictures; each shows what lies behind the middle of a pixel, unmixed.

The conventions are those of `uvd.renderers.depth` and `uvd.renderers.normals`: near is bright, each view from its own
nearest to its own farthest point; normals in the camera's axes. The background is black in all of them. The three agree
pixel by pixel; translucent surfaces count as solid. 5 ms a view.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.depth import render_depth
from uvd.renderers.multiview_gl import ObjectViews
from uvd.renderers.normals import render_normals

ViewRole = Literal["view", "depth", "normals", "mask"]
VIEW_ROLES: tuple[ViewRole, ...] = get_args(ViewRole)


def role_pictures(views: ObjectViews, role: ViewRole) -> NDArray[np.uint8]:
    """`(N, size, size, 3)` uint8 RGB of one role.

    Raises:
        ValueError: for an unknown role, or one that needs the geometry when the views were drawn without.
    """
    if role not in VIEW_ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(VIEW_ROLES)}")
    if role == "view":
        return views.pixels
    if views.depth is None or views.normals is None:
        raise ValueError(f"{role}: the views were drawn without their geometry")
    hit = views.depth > 0
    if role == "mask":
        return np.repeat(np.where(hit, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)
    if role == "normals":
        return np.stack([render_normals(normals, seen) for normals, seen in zip(views.normals, hit, strict=True)])
    return np.stack([render_depth(depth, seen, "metric") for depth, seen in zip(views.depth, hit, strict=True)])

"""Views of a 3D object from cameras around it, without a display: what `uvd.renderers.multiview` offers to others.

`render_views` goes from a `trimesh.Scene` to pictures in this process; untrusted files belong in a child process, see
`uvd.renderers.multiview_worker`. About 0.6 s for 24 views of 20,000 triangles on one CPU core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trimesh
from numpy.typing import NDArray

from uvd.renderers.multiview_camera import ELEVATION, FIELD_OF_VIEW, RADIUS, VIEWS, Camera, orbit
from uvd.renderers.multiview_gl import ObjectViews, view_renderer
from uvd.renderers.multiview_scene import MAX_FACES, OBJECT_RADIUS, TooManyFaces, UpAxis, object_parts
from uvd.sequences import IMAGE_SIZE

__all__ = [
    "ELEVATION",
    "FIELD_OF_VIEW",
    "OBJECT_RADIUS",
    "RADIUS",
    "VIEWS",
    "WHITE",
    "Camera",
    "ObjectViews",
    "orbit",
    "render_object",
    "render_views",
]

WHITE = (255, 255, 255)


def render_views(
    scene: trimesh.Scene,
    cameras: Sequence[Camera],
    size: int = IMAGE_SIZE,
    background: tuple[int, int, int] = WHITE,
) -> NDArray[np.uint8]:
    """`(N, size, size, 3)` uint8 RGB, one picture a camera.

    Example:
        >>> import numpy as np, trimesh
        >>> views = render_views(trimesh.Scene(trimesh.creation.box()), orbit(np.random.default_rng(0), views=4))
        >>> views.shape
        (4, 256, 256, 3)

    Raises:
        RejectedInput: for a scene without triangles, too many of them, or a broken geometry.
        GLUnavailable: when the machine cannot draw.
    """
    return render_object(scene, cameras, size, background).pixels


def render_object(
    scene: trimesh.Scene,
    cameras: Sequence[Camera],
    size: int = IMAGE_SIZE,
    background: tuple[int, int, int] = WHITE,
    up: UpAxis = "y",
    linear_colors: bool = False,
    max_faces: int = MAX_FACES,
    too_many_faces: TooManyFaces = "reject",
    geometry: bool = False,
) -> ObjectViews:
    """As `render_views`, with coverage, and with depth and normals if `geometry`; the rest is as for `object_parts`."""
    parts = object_parts(scene, up, linear_colors, max_faces, too_many_faces)
    return view_renderer(size).draw(parts, cameras, background, geometry)

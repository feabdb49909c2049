"""From a 3D file to its views: the function that runs in the child process of a source of objects.

Called by name (`uvd.renderers.multiview_worker:render_file`) with JSON, it answers with JSON and plain arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uvd.renderers.multiview import Camera, ObjectViews, render_object
from uvd.renderers.multiview_files import open_object, parse_object
from uvd.renderers.multiview_maps import role_pictures
from uvd.sequences.reject import Reason, RejectedInput

# Texture sizes are checked where textures are decoded, with a reject; Pillow's own limit would drop them in silence.
Image.MAX_IMAGE_PIXELS = None

MIN_COVERAGE = 0.001
"""Share of a view that the object must cover."""

MAX_COVERAGE = 0.99
"""Above it the camera stands in the object, or so near that there is no outline to see."""

MIN_CONTRAST = 8
"""Grey levels between a view's darkest and brightest value."""


def render_file(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Renders one file.

    Args:
        request: `path`, `max_bytes`, `max_faces`, `size`, `background` (three of 0..255), `up` (`auto`, `y`, `z`) and
            `cameras` (a list of [azimuth, elevation, radius, field of view]). Optional: `roles`, of `view`, `depth`,
            `normals` and `mask` (default `["view"]`); `too_many_faces`, `reject` (default) or `simplify`;
            `sha256` of the file, in hex.

    Returns:
        `{"coverage": mean share of the views that is covered}` and one `(N, size, size, 3)` uint8 for each role, in the
        order asked for.

    Raises:
        RejectedInput: with the reason why there are no views.
    """
    file = open_object(Path(request["path"]), request["max_bytes"], request.get("sha256"))
    up = request["up"]
    if up == "auto":  # STL comes from CAD and printing, where +Z is up; glTF says +Y, OBJ and PLY mostly follow
        up = "z" if file.format == ".stl" else "y"
    red, green, blue = request["background"]
    roles = request.get("roles", ["view"])
    views = render_object(
        parse_object(file),
        [Camera(*numbers) for numbers in request["cameras"]],
        size=request["size"],
        background=(red, green, blue),
        up=up,
        linear_colors=file.format in (".glb", ".gltf"),
        max_faces=request["max_faces"],
        too_many_faces=request.get("too_many_faces", "reject"),
        geometry=any(role != "view" for role in roles),
    )
    check_views(views)
    return {"coverage": round(float(views.coverage.mean() / 255), 4)}, [role_pictures(views, role) for role in roles]


def check_views(views: ObjectViews) -> None:
    """Refuses views on which nothing can be made out: empty, filled to the edges, or of one colour.

    Raises:
        RejectedInput: `BLANK_VIEW`, naming the view.
    """
    for number, (pixels, coverage) in enumerate(zip(views.pixels, views.coverage, strict=True)):
        share = float(np.mean(coverage)) / 255
        contrast = int(pixels.max()) - int(pixels.min())
        if not MIN_COVERAGE <= share <= MAX_COVERAGE or contrast < MIN_CONTRAST:
            detail = f"view {number}: {100 * share:.2f} % covered, {contrast} grey levels"
            raise RejectedInput(Reason.BLANK_VIEW, detail)

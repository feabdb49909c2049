"""From a `trimesh.Scene` to what is drawn: triangles in one frame with one material each, centred and of unit size.

All nodes of the scene graph are baked, instances and mirrored ones too; the object's bounding sphere (about the middle
of its bounding box) gets radius 0.5, so that its diameter is 1. Untextured parts are neutral grey, parts without
normals get smooth ones with sharp creases. Costs about 60 bytes a triangle corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import trimesh
from numpy.typing import NDArray

from uvd.renderers.multiview_material import Surface, SurfaceReader, to_linear
from uvd.renderers.multiview_normals import creased_normals, unit_vectors
from uvd.renderers.multiview_simplify import GRIDS, cluster
from uvd.sequences.reject import Reason, RejectedInput

OBJECT_RADIUS = 0.5
"""Radius of the object's bounding sphere; the paper's camera radii of 1.5 to 2.2 are in these units."""

MAX_FACES = 2_000_000
MAX_INSTANCES = 20_000

MAX_SIMPLIFIED = 10
"""Times `max_faces`: objects of more are refused, for they would have to be laid out in full first."""

UpAxis = Literal["y", "z"]
TooManyFaces = Literal["reject", "simplify"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """Triangles of one surface.

    Attributes:
        positions, normals: `(n, 3)` float32, in the object's frame, +Y up; a zero normal stands for the face's own.
        uv: `(n, 2)` float32 texture coordinates, or None.
        colors: `(n, 4)` float32 linear RGBA vertex colours, or None.
        indices: `(m, 3)` uint32 triangles.
    """

    positions: Floats
    normals: Floats
    uv: Floats | None
    colors: Floats | None
    indices: NDArray[np.uint32]
    surface: Surface

    @property
    def center(self) -> Floats:
        return (self.positions.min(axis=0) + self.positions.max(axis=0)) / 2


@dataclass(slots=True)
class _Placed:
    """One instance of a mesh in the world frame, before centring."""

    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    uv: Floats | None
    colors: Floats | None
    faces: NDArray[np.int64]
    surface: Surface


def object_parts(
    scene: trimesh.Scene,
    up: UpAxis = "y",
    linear_colors: bool = False,
    max_faces: int = MAX_FACES,
    too_many_faces: TooManyFaces = "reject",
) -> list[Part]:
    """The scene as few large parts, opaque ones first.

    Args:
        up: the file's upward axis.
        linear_colors: vertex colours are linear (glTF) and not as displayed (PLY, OBJ).
        max_faces: limit over all instances.
        too_many_faces: what becomes of an object over the limit; up to 10 times as many faces can be simplified.

    Raises:
        RejectedInput: `NO_FACES`, `TOO_COMPLEX` or `BAD_GEOMETRY` (not finite, no extent, indices out of range).
    """
    instances = _instances(scene)
    count = sum(len(mesh.faces) for _, mesh in instances)
    if count == 0:
        raise RejectedInput(Reason.NO_FACES, f"{len(scene.geometry)} geometries without a triangle")
    limit = max_faces if too_many_faces == "reject" else MAX_SIMPLIFIED * max_faces
    if count > limit or len(instances) > MAX_INSTANCES:
        raise RejectedInput(Reason.TOO_COMPLEX, f"{count} faces in {len(instances)} instances, limit {limit}")
    reader = SurfaceReader()
    shapes: dict[int, _Placed] = {}
    placed = []
    for transform, mesh in instances:
        shape = shapes.get(id(mesh))
        if shape is None:
            shape = shapes[id(mesh)] = _shape(mesh, reader, linear_colors)
        placed.append(_place(shape, transform, up))
    _normalise(placed)
    if count > max_faces:
        _simplify(placed, max_faces)
    return _merge(placed)


def _instances(scene: trimesh.Scene) -> list[tuple[NDArray[np.float64], trimesh.Trimesh]]:
    """(transform, mesh) of all nodes that carry triangles.

    trimesh names some nodes at random; sorting by content keeps the order of drawing the same in every run.
    """
    order = {name: i for i, name in enumerate(scene.geometry)}
    found = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        mesh = scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            found.append((order[name], np.asarray(transform, dtype=np.float64), mesh))
    found.sort(key=lambda entry: (entry[0], entry[1].tobytes()))
    return [(transform, mesh) for _, transform, mesh in found]


def _shape(mesh: trimesh.Trimesh, reader: SurfaceReader, linear_colors: bool) -> _Placed:
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    faces = np.asarray(mesh.faces, dtype=np.int64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise RejectedInput(Reason.BAD_GEOMETRY, f"face indices outside 0..{len(vertices) - 1}")
    if not np.isfinite(vertices[faces.reshape(-1)]).all():
        raise RejectedInput(Reason.BAD_GEOMETRY, "vertices that are not finite")
    look = reader.read(mesh)
    colors = look.vertex_colors if look.face_colors is None else look.face_colors
    if colors is not None and not linear_colors:
        colors[:, :3] = to_linear(colors[:, :3])
    if "vertex_normals" in mesh._cache and look.face_colors is None:  # the file gave them
        normals = np.nan_to_num(np.asarray(mesh.vertex_normals, dtype=np.float64), posinf=0, neginf=0)
        return _Placed(vertices, normals, look.uv, colors, faces, look.surface)
    source, normals, indices = creased_normals(vertices, faces, look)
    if colors is not None:
        colors = colors[source] if look.face_colors is None else np.repeat(colors, 3, axis=0)
    uv = None if look.uv is None else look.uv[source]
    return _Placed(vertices[source], normals, uv, colors, indices, look.surface)


def _place(shape: _Placed, transform: NDArray[np.float64], up: UpAxis) -> _Placed:
    rotation, offset = transform[:3, :3], transform[:3, 3]
    if up == "z":  # +Z up becomes +Y up, and what faced -Y faces +Z
        turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
        rotation, offset = turn @ rotation, turn @ offset
    x, y, z = rotation
    # The cofactor matrix carries normals as the inverse transpose does, and exists for flattened nodes too.
    cofactor = np.stack([np.cross(y, z), np.cross(z, x), np.cross(x, y)])
    with np.errstate(over="ignore", invalid="ignore"):
        vertices = shape.vertices @ rotation.T + offset
        normals = shape.normals @ cofactor.T
    return _Placed(vertices, normals, shape.uv, shape.colors, shape.faces, shape.surface)


def _normalise(placed: list[_Placed]) -> None:
    """Centres and scales in place, over the vertices that faces use."""
    used = [part.vertices[np.unique(part.faces)] for part in placed]
    with np.errstate(over="ignore", invalid="ignore"):
        low = np.min([points.min(axis=0) for points in used], axis=0)
        high = np.max([points.max(axis=0) for points in used], axis=0)
        center = low + (high - low) / 2
        radius = max(float(np.linalg.norm(points - center, axis=1).max()) for points in used)
    if not np.isfinite(radius) or not np.isfinite(center).all():
        raise RejectedInput(Reason.BAD_GEOMETRY, "bounds that are not finite")
    if radius <= 1e-9 * max(1.0, float(np.abs(center).max())):
        raise RejectedInput(Reason.BAD_GEOMETRY, f"no extent (radius {radius:g})")
    for part in placed:
        part.vertices = (part.vertices - center) * (OBJECT_RADIUS / radius)


def _simplify(placed: list[_Placed], max_faces: int) -> None:
    """In place, on the finest grid that leaves few enough faces."""
    for cells in GRIDS:
        for part in placed:
            source, place, part.faces = cluster(part.vertices, part.uv, part.faces, cells)
            part.vertices, part.normals = part.vertices[place], part.normals[source]
            part.uv = None if part.uv is None else part.uv[source]
            part.colors = None if part.colors is None else part.colors[source]
        count = sum(len(part.faces) for part in placed)
        if 0 < count <= max_faces:
            placed[:] = [part for part in placed if len(part.faces)]
            return
    raise RejectedInput(Reason.TOO_COMPLEX, f"{count} faces on the coarsest grid, limit {max_faces}")


def _merge(placed: list[_Placed]) -> list[Part]:
    """Joins parts of one surface; blended ones stay apart, since they are drawn from far to near."""
    groups: dict[Any, list[_Placed]] = {}
    for i, part in enumerate(placed):
        key = (id(part.surface), part.uv is None, part.colors is None, i if part.surface.blend else -1)
        groups.setdefault(key, []).append(part)
    parts = [_join(group) for group in groups.values()]
    return sorted(parts, key=lambda part: part.surface.blend)


def _join(group: list[_Placed]) -> Part:
    starts = np.cumsum([0, *(len(part.vertices) for part in group[:-1])])
    faces = np.concatenate([part.faces + start for part, start in zip(group, starts, strict=True)])
    normals = np.concatenate([part.normals for part in group])
    uv = [part.uv for part in group if part.uv is not None]
    colors = [part.colors for part in group if part.colors is not None]
    return Part(
        positions=np.concatenate([part.vertices for part in group]).astype(np.float32),
        normals=unit_vectors(normals).astype(np.float32),
        uv=np.concatenate(uv) if uv else None,
        colors=np.concatenate(colors) if colors else None,
        indices=faces.astype(np.uint32),
        surface=group[0].surface,
    )

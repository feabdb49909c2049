"""What trimesh leaves out of glTF 2.0, put back around its parser: textures, unlit materials, and skins at rest.

Before parsing, the JSON is rewritten where it must be: the set of texture coordinates that a material uses becomes the
first one, and skinned meshes leave the scene graph (specification, section 3.7.3.3: their node's transform is ignored).
Afterwards coordinates are scaled (normalised integers) and moved (KHR_texture_transform), meshes of unlit materials are
marked, and skins are applied in the pose that the file's nodes give, which is that of an animation at rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from uvd.renderers.multiview_material import UNLIT

DRAWN_MODES = (0, 1, 4, 5)
"""Primitives that trimesh makes geometries of: points, lines, triangles, strips."""
INTEGER_RANGE = {5121: 255.0, 5123: 65535.0}
TEXTURES = ("baseColorTexture", "emissiveTexture", "metallicRoughnessTexture", "normalTexture", "occlusionTexture")
"""The first of these that a material has says how the coordinates of all of them are meant."""
COORDINATES, JOINTS, WEIGHTS, BINDS = "_UVD_COORDINATES", "_UVD_JOINTS", "_UVD_WEIGHTS", "_UVD_BINDS"
"""Names under which trimesh hands these arrays through."""


@dataclass(slots=True)
class Addition:
    """What one primitive needs after parsing.

    Attributes:
        unlit: its material has KHR_materials_unlit.
        uv_range: what its texture coordinates are to be divided by.
        uv_matrix: `(2, 3)` affine map of glTF's coordinates (v down), or None.
        joints: `(j, 4, 4)` world transforms of its skin's joints, or None.
    """

    unlit: bool = False
    uv_range: float = 1.0
    uv_matrix: NDArray[np.float64] | None = None
    joints: NDArray[np.float64] | None = None

    @property
    def is_needed(self) -> bool:
        return self.unlit or self.uv_range != 1 or self.uv_matrix is not None or self.joints is not None


def prepare(tree: dict[str, Any]) -> list[list[Addition]] | None:
    """Rewrites the JSON in place; the additions of each mesh's drawn primitives, or None if nothing was to be done.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError: for a tree that is not as specified.
    """
    skins = _skinned(tree)
    moved = False
    additions = []
    for index, mesh in enumerate(tree.get("meshes", [])):
        drawn = [one for one in mesh["primitives"] if one.get("mode", 4) in DRAWN_MODES]
        found = []
        for primitive in drawn:
            addition, other_set = _appearance(tree, primitive)
            moved |= other_set
            if index in skins and {"JOINTS_0", "WEIGHTS_0"} <= primitive["attributes"].keys():
                addition.joints = _skin(tree, primitive["attributes"], skins[index])
            found.append(addition)
        if not all(one.joints is not None for one in found):
            for one in found:
                one.joints = None
        additions.append(found)
    if not moved and not any(one.is_needed for found in additions for one in found):
        return None
    for index, mesh in enumerate(tree.get("meshes", [])):
        mesh["name"] = f"{index}."
    for index in skins:
        if any(one.joints is not None for one in additions[index]):
            _detach(tree, index)
    return additions


def apply(scene: trimesh.Scene, additions: list[list[Addition]]) -> None:
    """Completes a scene that was parsed from a tree that `prepare` has rewritten.

    Raises:
        ValueError: if its geometries are not those of the tree, or a skin's arrays do not fit each other.
    """
    waiting = [iter(found) for found in additions]
    for name, geometry in scene.geometry.items():
        addition = next(waiting[int(name.partition(".")[0])], None)
        if addition is None:
            raise ValueError(f"geometry {name!r} is none of the file's primitives")
        if not isinstance(geometry, trimesh.Trimesh):
            continue
        geometry.metadata[UNLIT] = addition.unlit
        if addition.uv_range != 1 or addition.uv_matrix is not None:
            _move_texture(geometry, addition)
        if addition.joints is not None:
            _pose(geometry, addition.joints)


def _appearance(tree: dict[str, Any], primitive: dict[str, Any]) -> tuple[Addition, bool]:
    """The addition for a primitive's material, and whether other texture coordinates took the first ones' place."""
    if "material" not in primitive:
        return Addition(), False
    material = tree["materials"][primitive["material"]]
    addition = Addition(unlit="KHR_materials_unlit" in material.get("extensions", {}))
    slots = {**material, **material.get("pbrMetallicRoughness", {})}
    gloss = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {}).get("diffuseTexture")
    texture = next((slots[name] for name in TEXTURES if name in slots), gloss)
    if texture is None:
        return addition, False
    transform = texture.get("extensions", {}).get("KHR_texture_transform", {})
    number = transform.get("texCoord", texture.get("texCoord", 0))
    attributes = primitive["attributes"]
    moved = number != 0 and f"TEXCOORD_{number}" in attributes
    if moved:
        attributes["TEXCOORD_0"] = attributes[f"TEXCOORD_{number}"]
    if "TEXCOORD_0" in attributes:
        addition.uv_range = INTEGER_RANGE.get(tree["accessors"][attributes["TEXCOORD_0"]]["componentType"], 1.0)
        if addition.uv_range != 1:  # trimesh turns v around within the integers
            attributes[COORDINATES] = attributes["TEXCOORD_0"]
    if transform.keys() & {"offset", "rotation", "scale"}:
        addition.uv_matrix = uv_matrix(
            transform.get("offset", (0, 0)), transform.get("rotation", 0), transform.get("scale", (1, 1))
        )
    return addition, moved


def uv_matrix(offset: Sequence[float], rotation: float, scale: Sequence[float]) -> NDArray[np.float64]:
    """`(2, 3)`: KHR_texture_transform in glTF's coordinates, whose v points down.

    "Counter-clockwise" is as one sees it. The extension's own example (offset 0, 1; rotation 90 degrees; scale 0.5)
    then shows the lower left quarter, as it says.
    """
    cosine, sine = np.cos(float(rotation)), np.sin(float(rotation))
    (x, y), (u, v) = offset, scale
    return np.array([[cosine * u, sine * v, x], [-sine * u, cosine * v, y]], dtype=np.float64)


def _move_texture(mesh: trimesh.Trimesh, addition: Addition) -> None:
    """Gives a mesh the texture coordinates that the file means, v up as trimesh has them."""
    if mesh.visual.kind != "texture" or mesh.visual.uv is None:
        return
    if addition.uv_range != 1:
        points = np.asarray(mesh.vertex_attributes.pop(COORDINATES), dtype=np.float64) / addition.uv_range
    else:
        points = np.asarray(mesh.visual.uv, dtype=np.float64) * (1, -1) + (0, 1)
    if addition.uv_matrix is not None:
        points = points @ addition.uv_matrix[:, :2].T + addition.uv_matrix[:, 2]
    mesh.visual.uv = points * (1, -1) + (0, 1)


def _scene_nodes(tree: dict[str, Any]) -> list[int]:
    """The nodes of the scene that is shown; they form a forest, which was checked."""
    scenes = tree.get("scenes", [])
    if not scenes:
        return []
    found, waiting = [], list(scenes[tree.get("scene", 0)].get("nodes", []))
    while waiting:
        found.append(waiting.pop())
        waiting.extend(tree["nodes"][found[-1]].get("children", []))
    return found


def _skinned(tree: dict[str, Any]) -> dict[int, int]:
    """The skin of each mesh that has one, as its first node in the scene says."""
    if not tree.get("skins"):
        return {}
    skins: dict[int, int] = {}
    for number in sorted(_scene_nodes(tree)):
        node = tree["nodes"][number]
        if "mesh" in node and "skin" in node:
            skins.setdefault(node["mesh"], node["skin"])
    return skins


def _skin(tree: dict[str, Any], attributes: dict[str, Any], skin: int) -> NDArray[np.float64]:
    """Asks trimesh for the arrays of a skin; the joints' world transforms."""
    found = tree["skins"][skin]
    attributes[JOINTS], attributes[WEIGHTS] = attributes["JOINTS_0"], attributes["WEIGHTS_0"]
    if "inverseBindMatrices" in found:
        attributes[BINDS] = found["inverseBindMatrices"]
    parents = {child: number for number, node in enumerate(tree["nodes"]) for child in node.get("children", [])}
    world: dict[int, NDArray[np.float64]] = {}
    return np.stack([_world(tree["nodes"], joint, parents, world) for joint in found["joints"]])


def _world(
    nodes: list[dict[str, Any]], number: int, parents: dict[int, int], world: dict[int, NDArray[np.float64]]
) -> NDArray[np.float64]:
    trail = [number]
    while trail[-1] not in world and trail[-1] in parents:
        trail.append(parents[trail[-1]])
    for one in reversed(trail):
        if one not in world:
            above = world[parents[one]] if one in parents else np.eye(4)
            world[one] = above @ local_transform(nodes[one])
    return world[number]


def local_transform(node: dict[str, Any]) -> NDArray[np.float64]:
    """`(4, 4)`: a node's transform to its parent (specification, section 3.5.3)."""
    if "matrix" in node:
        return np.reshape(np.asarray(node["matrix"], dtype=np.float64), (4, 4)).T
    x, y, z, w = node.get("rotation", (0.0, 0.0, 0.0, 1.0))
    matrix = trimesh.transformations.quaternion_matrix((w, x, y, z))
    matrix[:3, :3] *= np.asarray(node.get("scale", (1.0, 1.0, 1.0)), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return matrix


def _detach(tree: dict[str, Any], mesh: int) -> None:
    """Puts a skinned mesh at the scene's root, once."""
    for number in _scene_nodes(tree):
        node = tree["nodes"][number]
        if node.get("mesh") == mesh and "skin" in node:
            del node["mesh"]
    tree["nodes"].append({"mesh": mesh})
    tree["scenes"][tree.get("scene", 0)]["nodes"].append(len(tree["nodes"]) - 1)


def _pose(mesh: trimesh.Trimesh, joints: NDArray[np.float64]) -> None:
    """Moves a mesh's vertices and normals to where its joints take them."""
    arrays = [mesh.vertex_attributes.pop(name, None) for name in (JOINTS, WEIGHTS, BINDS)]
    numbers, weights, binds = (None if array is None else np.asarray(array) for array in arrays)
    count = len(mesh.vertices)
    if numbers is None or weights is None or numbers.shape != (count, 4) or weights.shape != (count, 4):
        raise ValueError("joints and weights that do not fit the vertices")
    if numbers.max(initial=0) >= len(joints) or (binds is not None and binds.shape != (len(joints), 4, 4)):
        raise ValueError(f"joints or bind matrices that do not fit a skin of {len(joints)} joints")
    moves = joints if binds is None else joints @ binds.transpose(0, 2, 1).astype(np.float64)
    shares = weights.astype(np.float64)
    total = shares.sum(axis=1, keepdims=True)
    shares = np.divide(shares, total, out=np.tile([1.0, 0, 0, 0], (count, 1)), where=total > 0)
    blended = np.zeros((count, 3, 4))
    for influence in range(4):
        blended += shares[:, influence, None, None] * moves[numbers[:, influence], :3]
    normals = np.asarray(mesh.vertex_normals) if "vertex_normals" in mesh._cache else None
    mesh.vertices = np.einsum("nij,nj->ni", blended[..., :3], mesh.vertices) + blended[..., 3]
    if normals is not None:
        turned = np.einsum("nij,nj->ni", blended[..., :3], normals)
        length = np.linalg.norm(turned, axis=1, keepdims=True)
        mesh.vertex_normals = np.divide(turned, length, out=np.zeros_like(turned), where=length > 0)

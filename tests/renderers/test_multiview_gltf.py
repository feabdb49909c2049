"""What glTF files say beyond what trimesh reads: texture transforms, other coordinates, unlit materials, skins."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image

from uvd.renderers.multiview import Camera, render_object
from uvd.renderers.multiview_files import load_object
from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

SIZE = 128
FRONT = [Camera(0, 0, 1.6)]
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)
CORNERS = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
UPRIGHT = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
"""Texture coordinates of the corners, as glTF has them: v down."""
KINDS = {"float32": 5126, "uint8": 5121, "uint16": 5123, "uint32": 5125}


def quarters() -> str:
    """A picture of four colours, red and green above blue and yellow, as a data URI."""
    pixels = np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Builder:
    """A glTF file with one buffer, made array by array."""

    def __init__(self) -> None:
        self.data = b""
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "accessors": [], "bufferViews": []}

    def add(self, array: NDArray[Any], kind: str, normalized: bool = False) -> int:
        number = len(self.tree["accessors"])
        self.tree["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes})
        accessor = {"bufferView": number, "componentType": KINDS[str(array.dtype)], "count": len(array), "type": kind}
        self.tree["accessors"].append(accessor | ({"normalized": True} if normalized else {}))
        self.data += array.tobytes() + b"\0" * (-array.nbytes % 4)
        return number

    def write(self, path: Path) -> Path:
        if path.suffix == ".gltf":
            uri = "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()
            self.tree["buffers"] = [{"uri": uri, "byteLength": len(self.data)}]
            path.write_text(json.dumps(self.tree))
            return path
        self.tree["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        chunk = struct.pack("<II", len(self.data), 0x004E4942) + self.data
        header = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(chunk), len(text), 0x4E4F534A)
        path.write_bytes(header + text + chunk)
        return path


def board(path: Path, texture: dict[str, Any] | None = None, uv: NDArray[Any] = UPRIGHT, **material: Any) -> Path:
    """A square with the four colours on it, facing +Z."""
    builder = Builder()
    attributes = {
        "POSITION": builder.add(CORNERS, "VEC3"),
        "TEXCOORD_0": builder.add(uv, "VEC2", normalized=uv.dtype != np.float32),
        "TEXCOORD_1": builder.add(np.tile(np.float32((0.75, 0.25)), (4, 1)), "VEC2"),
    }
    indices = builder.add(np.array([0, 1, 2, 0, 2, 3], np.uint32), "SCALAR")
    look = {"baseColorTexture": {"index": 0, **(texture or {})}, "metallicFactor": 0.0}
    builder.tree |= {
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": look, **material}],
        "textures": [{"source": 0}],
        "images": [{"uri": quarters()}],
    }
    return builder.write(path)


def quarter_colors(path: Path, camera: Camera = FRONT[0]) -> list[tuple[int, ...]]:
    """The nearest of the four colours in the middle of each quarter of the square, row by row."""
    pixels = render_object(load_object(path, 1 << 20), [camera], SIZE).pixels[0].astype(int)
    step = 20
    seen = [pixels[SIZE // 2 + y * step, SIZE // 2 + x * step] for y in (-1, 1) for x in (-1, 1)]
    palette = np.array([RED, GREEN, BLUE, YELLOW])
    return [tuple(palette[np.argmax((palette - 125) @ (pixel - 125))]) for pixel in seen]


def transform(**values: Any) -> dict[str, Any]:
    return {"extensions": {"KHR_texture_transform": values}}


@pytest.mark.parametrize(
    ("texture", "colors"),
    [
        ({}, [RED, GREEN, BLUE, YELLOW]),
        (transform(scale=[0.5, 0.5]), [RED] * 4),
        (transform(scale=[0.5, 0.5], offset=[0.5, 0]), [GREEN] * 4),
        (transform(scale=[0.5, 0.5], offset=[0, 1], rotation=np.pi / 2), [BLUE] * 4),  # the extension's own example
        (transform(rotation=np.pi / 2, offset=[0, 1]), [BLUE, RED, YELLOW, GREEN]),
        (transform(scale=[1, -1], offset=[0, 1]), [BLUE, YELLOW, RED, GREEN]),
        ({"texCoord": 1}, [GREEN] * 4),
        (transform(texCoord=1), [GREEN] * 4),
        (transform(texCoord=7), [RED, GREEN, BLUE, YELLOW]),
    ],
)
@pytest.mark.parametrize("suffix", [".gltf", ".glb"])
def test_texture_transforms(tmp_path: Path, texture: dict[str, Any], colors: list[Any], suffix: str) -> None:
    assert quarter_colors(board(tmp_path / f"a{suffix}", texture)) == colors


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_texture_coordinates_as_integers(tmp_path: Path, kind: type[np.unsignedinteger[Any]]) -> None:
    uv = (UPRIGHT * np.iinfo(kind).max).astype(kind)
    colors = [RED, GREEN, BLUE, YELLOW]
    if kind is np.uint8:  # rows of two bytes would have to be padded
        uv = np.ascontiguousarray(uv)
    assert quarter_colors(board(tmp_path / "a.glb", uv=uv)) == colors


def test_unlit_materials_show_their_colour_as_it_is(tmp_path: Path) -> None:
    lit = render_object(load_object(board(tmp_path / "a.glb"), 1 << 20), FRONT, SIZE).pixels[0]
    path = board(tmp_path / "b.glb", extensions={"KHR_materials_unlit": {}})
    unlit = render_object(load_object(path, 1 << 20), FRONT, SIZE).pixels[0]
    place = SIZE // 2 - 20
    assert np.abs(unlit[place, place].astype(int) - RED).max() <= 1
    assert np.abs(lit[place, place].astype(int) - RED).max() > 5


def test_both_sides_are_drawn(tmp_path: Path) -> None:
    for double_sided in (False, True):
        path = board(tmp_path / "a.glb", doubleSided=double_sided)
        assert quarter_colors(path, Camera(180, 0, 1.6)) == [GREEN, RED, YELLOW, BLUE]


def chain(path: Path, **changes: Any) -> tuple[Path, NDArray[np.float64]]:
    """Two boxes as one mesh, the second bound to a joint that stands elsewhere than when it was bound.

    Returns:
        The file and the `(16, 3)` vertices at rest.
    """
    box = trimesh.creation.box(extents=(1, 1, 0.5))
    second = box.vertices + np.array((3, 0, 0))
    binds = np.stack([np.eye(4), trimesh.transformations.translation_matrix((-3, 0, 0))])
    angle = np.pi / 3
    rest = trimesh.transformations.rotation_matrix(angle, (0, 0, 1))
    rest[:3, 3] = (0, 2, 0)
    builder = Builder()
    attributes = {
        "POSITION": builder.add(np.concatenate([box.vertices, second]).astype(np.float32), "VEC3"),
        "JOINTS_0": builder.add(np.repeat([[0, 0, 0, 0], [1, 0, 0, 0]], 8, axis=0).astype(np.uint16), "VEC4"),
        "WEIGHTS_0": builder.add(np.tile(np.uint8((255, 0, 0, 0)), (16, 1)), "VEC4", normalized=True),
    }
    indices = builder.add(np.concatenate([box.faces, box.faces + 8]).astype(np.uint32).reshape(-1), "SCALAR")
    inverse = builder.add(binds.transpose(0, 2, 1).astype(np.float32), "MAT4")
    builder.tree |= {
        "scenes": [{"nodes": [0]}],
        "nodes": [
            {"children": [1, 2], "scale": [0.1, 0.1, 0.1]},
            {"mesh": 0, "skin": 0, "rotation": [0.7071068, 0, 0, 0.7071068], "translation": [100, 0, 0]},
            {"children": [3], "scale": [10, 10, 10]},
            {"translation": [0, 2, 0], "rotation": [0, 0, np.sin(angle / 2), np.cos(angle / 2)]},
        ],
        "meshes": [{"name": "chain", "primitives": [{"attributes": attributes, "indices": indices}]}],
        "skins": [{"joints": [2, 3], "inverseBindMatrices": inverse}],
        "animations": [{"channels": [], "samplers": []}],
        **changes,
    }
    builder.write(path)
    return path, np.concatenate([box.vertices, trimesh.transform_points(box.vertices, rest)])


def test_skins_stand_as_their_joints_do_whatever_their_node_says(tmp_path: Path) -> None:
    path, expected = chain(tmp_path / "a.glb")
    scene = load_object(path, 1 << 20)
    (node,) = scene.graph.nodes_geometry
    matrix, name = scene.graph[node]
    assert np.allclose(trimesh.transform_points(scene.geometry[name].vertices, matrix), expected, atol=1e-5)
    assert (render_object(scene, FRONT, SIZE).coverage > 0).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"skins": [{"joints": [2]}]},
        {"skins": [{"joints": [2, 99]}]},
        {"skins": [{"joints": [2, 3], "inverseBindMatrices": 0}]},
        {"skins": [{}]},
    ],
)
def test_skins_that_do_not_fit_are_rejected(tmp_path: Path, changes: dict[str, Any]) -> None:
    path, _ = chain(tmp_path / "a.glb", **changes)
    with pytest.raises(RejectedInput) as refused:
        load_object(path, 1 << 20)
    assert refused.value.reason is Reason.NOT_3D


def test_plain_files_are_handed_on_as_they_are(tmp_path: Path) -> None:
    path = board(tmp_path / "a.glb")
    names = list(load_object(path, 1 << 20).geometry)
    assert names == ["GLTF"]

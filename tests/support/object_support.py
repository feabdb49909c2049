"""3D objects written as files: textured primitives, a triangle as glTF of any shape, and zips of objects."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from uvd.renderers.multiview_worker import render_file


class InThisProcess:
    """In place of a source's child process, whose start takes seconds."""

    call = staticmethod(render_file)


OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
TRIANGLE = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)


def textured_glb(seed: int = 0) -> bytes:
    """A box, ball or cylinder with a texture of noise."""
    rng = np.random.default_rng(seed)
    shapes = (trimesh.creation.box, trimesh.creation.icosphere, trimesh.creation.cylinder)
    mesh = shapes[2](1, 2) if seed % 3 == 2 else shapes[seed % 3]()
    image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    material = PBRMaterial(baseColorTexture=image, metallicFactor=0.0)
    mesh.visual = TextureVisuals(uv=rng.random((len(mesh.vertices), 2)), material=material)
    data = mesh.export(file_type="glb")
    assert isinstance(data, bytes)
    return data


def gltf(**changes: Any) -> dict[str, Any]:
    """A triangle as glTF with its buffer in a file, `data.bin`."""
    tree: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "buffers": [{"uri": "data.bin", "byteLength": 36}],
    }
    return tree | changes


def glb(tree: Mapping[str, Any], claimed: int | None = None, binary: bytes = TRIANGLE) -> bytes:
    """A GLB file; `claimed` is the length that its header says."""
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunk = struct.pack("<II", len(binary), 0x004E4942) + binary
    length = 20 + len(text) + len(chunk) if claimed is None else claimed
    return struct.pack("<4sIIII", b"glTF", 2, length, len(text), 0x4E4F534A) + text + chunk


def packed_glb(**changes: Any) -> bytes:
    """The triangle of `gltf` with its buffer in the file."""
    return glb(gltf(buffers=[{"byteLength": 36}], **changes))


def png(size: int = 8, color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def png_bomb(side: int = 30_000) -> bytes:
    """A small PNG of `side` x `side` black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zipped(members: Mapping[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip whose members have exactly these names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path

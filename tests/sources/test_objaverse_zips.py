"""Objects in zips: all that belongs to them is found, and nothing hostile gets further than the archive."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from object_support import OBJ, TRIANGLE, gltf, png, textured_glb, write, zipped

from uvd.renderers import multiview_archives
from uvd.renderers.multiview_files import load_object, open_object
from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

LIMIT = 1 << 20
MTL = "newmtl m\nmap_Kd textures/wood.png\n"


def texture_of(path: Path) -> tuple[int, ...]:
    (mesh,) = load_object(path, LIMIT).geometry.values()
    image = getattr(mesh.visual.material, "image", None) or mesh.visual.material.baseColorTexture
    return image.convert("RGB").getpixel((0, 0))


def refusal(path: Path, data: bytes, max_bytes: int = LIMIT) -> RejectedInput:
    write(path, data)
    with pytest.raises(RejectedInput) as refused:
        load_object(path, max_bytes)
    return refused.value


@pytest.mark.parametrize("folder", ["", "model/", "deep/er/", "./"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_obj_with_material_and_texture(tmp_path: Path, folder: str, method: int) -> None:
    members = {"a.obj": f"mtllib a.mtl\n{OBJ}", "a.mtl": MTL, "textures/wood.png": png(color=(1, 2, 3))}
    data = zipped({folder + name: content for name, content in members.items()}, method)
    assert texture_of(write(tmp_path / "a.zip", data)) == (1, 2, 3)


def test_names_with_backslashes_as_windows_writes_them(tmp_path: Path) -> None:
    members = {"m\\a.obj": f"mtllib a.mtl\n{OBJ}", "m\\a.mtl": MTL, "m\\textures\\wood.png": png(color=(1, 2, 3))}
    assert texture_of(write(tmp_path / "a.zip", zipped(members))) == (1, 2, 3)


def sketchfab(**changes: Any) -> dict[str, bytes | str]:
    """A download of Sketchfab: `scene.gltf` with its buffer and a texture."""
    buffer = TRIANGLE + struct.pack("<6f", 0, 0, 1, 0, 0, 1)
    tree = gltf(
        buffers=[{"uri": "scene.bin", "byteLength": 60}],
        bufferViews=[{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 24}],
        meshes=[{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
        materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        textures=[{"source": 0}],
        images=[{"uri": "textures/base%20color.png"}],
    )
    tree["accessors"].append({"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC2"})
    members = {"license.txt": "", "scene.gltf": json.dumps(tree), "scene.bin": buffer}
    return {**members, "textures/base color.png": png(color=(9, 8, 7)), **changes}


def test_gltf_with_buffer_and_texture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", zipped(sketchfab()))
    assert open_object(path, LIMIT).format == ".gltf"
    assert texture_of(path) == (9, 8, 7)


def test_which_member_is_the_object(tmp_path: Path) -> None:
    path, box, ball = tmp_path / "a.zip", textured_glb(0), textured_glb(1)
    extra = {"__MACOSX/._a.glb": b"junk", ".hidden/b.glb": b"junk", "readme.txt": b"", "textures/": b""}
    assert open_object(write(path, zipped({"a.glb": box, **extra})), LIMIT).data == box
    assert open_object(write(path, zipped({"part.obj": OBJ, "x/Scene.GLB": ball})), LIMIT).data == ball
    several = refusal(path, zipped({"b.glb": box, "a.stl": b"solid", "c.txt": b""}))
    assert (several.reason, several.detail) == (Reason.NOT_3D, "2 objects in one zip: a.stl, b.glb")
    assert "2 objects" in refusal(path, zipped({"scene.glb": box, "scene.gltf": b"{}"})).detail
    nothing = refusal(path, zipped({"source/model.zip": zipped({"a.glb": box})}))
    assert (nothing.reason, nothing.detail) == (Reason.NOT_3D, "no object among 1 members")


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", "C:/b", "x/%2e%2e/%2e%2e/b"]
)
def test_zip_slip(tmp_path: Path, name: str) -> None:
    refused = refusal(tmp_path / "in" / "a.zip", zipped({"a.glb": textured_glb(), name: b"x"}))
    assert refused.reason is Reason.EXTERNAL_REFERENCE
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "in"]


@pytest.mark.parametrize("uri", ["http://a.example/x.bin", "file:///etc/passwd", "/etc/passwd", "../x.bin", "..%2fx"])
def test_references_out_of_a_zip(tmp_path: Path, uri: str) -> None:
    tree = json.dumps(gltf(buffers=[{"uri": uri, "byteLength": 36}]))
    write(tmp_path / "x.bin", TRIANGLE)
    assert refusal(tmp_path / "a.zip", zipped({"scene.gltf": tree})).reason is Reason.EXTERNAL_REFERENCE
    obj = f"mtllib m.mtl\n{OBJ}"
    refused = refusal(tmp_path / "b.zip", zipped({"a.obj": obj, "m.mtl": f"newmtl m\nmap_Kd {uri}\n"}))
    assert refused.reason is Reason.EXTERNAL_REFERENCE


def test_files_beside_a_zip_do_not_belong_to_it(tmp_path: Path) -> None:
    write(tmp_path / "data.bin", TRIANGLE)
    assert refusal(tmp_path / "a.zip", zipped({"a.gltf": json.dumps(gltf())})).reason is Reason.MISSING


def test_a_missing_material_costs_its_colour_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", zipped({"a.obj": f"mtllib gone.mtl\n{OBJ}"}))
    assert load_object(path, LIMIT).geometry


def test_members_may_not_have_more_bytes_than_an_object(tmp_path: Path) -> None:
    zeros = bytes(64 << 20)
    tracemalloc.start()
    assert refusal(tmp_path / "a.zip", zipped({"a.stl": zeros})).reason is Reason.TOO_LARGE
    members = sketchfab()
    members["scene.bin"] = zeros
    assert refusal(tmp_path / "b.zip", zipped(members)).reason is Reason.TOO_LARGE
    many = {f"textures/{number}.png": bytes(1 << 18) for number in range(8)}
    mtl = "".join(f"newmtl m{number}\nmap_Kd {name}\n" for number, name in enumerate(many))
    obj = "mtllib m.mtl\n" + OBJ + "".join(f"usemtl m{number}\nf 1/1 2/1 3/1\n" for number in range(8))
    assert refusal(tmp_path / "c.zip", zipped({"a.obj": obj, "m.mtl": mtl, **many})).reason is Reason.TOO_LARGE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def lie(data: bytes, size: int) -> bytes:
    """Changes the unpacked size of the last member, in the directory and in front of the member."""
    changed = bytearray(data)
    struct.pack_into("<I", changed, data.rindex(b"PK\x01\x02") + 24, size)
    struct.pack_into("<I", changed, data.rindex(b"PK\x03\x04") + 22, size)
    return bytes(changed)


def test_sizes_that_lie_are_found_without_unpacking_the_rest(tmp_path: Path) -> None:
    bomb = lie(zipped({"a.stl": bytes(64 << 20)}), 1000)
    tracemalloc.start()
    refused = refusal(tmp_path / "a.zip", bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (refused.reason, peak < 8 << 20) == (Reason.UNREADABLE, True)
    assert refusal(tmp_path / "a.zip", lie(zipped({"a.stl": b"solid a"}), 1000)).reason is Reason.UNREADABLE


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiview_archives, "MAX_MEMBERS", 50)
    data = bytearray(zipped({"a.obj": OBJ, **{f"{number}.txt": b"" for number in range(60)}}))
    assert refusal(tmp_path / "a.zip", data).reason is Reason.TOO_COMPLEX
    struct.pack_into("<HH", data, data.rindex(b"PK\x05\x06") + 8, 1, 1)  # the count is not what is read
    assert refusal(tmp_path / "a.zip", data).reason is Reason.TOO_COMPLEX
    monkeypatch.setattr(multiview_archives, "MAX_DIRECTORY_BYTES", 1000)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # is not reached
    assert refusal(tmp_path / "a.zip", data).reason is Reason.TOO_COMPLEX
    end = data.rindex(b"PK\x05\x06")
    zip64 = data[:end] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1) + data[end:]
    struct.pack_into("<L", zip64, len(zip64) - 10, 10)
    assert "ZIP64" in refusal(tmp_path / "a.zip", zip64).detail


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_deflate(tmp_path: Path, method: int) -> None:
    assert refusal(tmp_path / "a.zip", zipped({"a.obj": OBJ}, method)).reason is Reason.UNREADABLE


def test_damaged_archives(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.zip", zipped({"a.glb": textured_glb()}, zipfile.ZIP_STORED)
    assert refusal(path, whole[: len(whole) // 2]).reason is Reason.TRUNCATED
    assert refusal(path, whole[:-10]).reason is Reason.TRUNCATED
    assert refusal(path, textured_glb()).reason is Reason.NOT_3D
    assert refusal(path, b"").reason is Reason.NOT_3D
    for place in (60, whole.rindex(b"PK\x01\x02"), whole.rindex(b"PK\x05\x06") + 16):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        assert refusal(path, bytes(changed)).reason is Reason.UNREADABLE, place
    encrypted = bytearray(whole)
    encrypted[whole.rindex(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(path, bytes(encrypted)).detail
    texture = bytearray(zipped({"a.obj": f"mtllib a.mtl\n{OBJ}", "a.mtl": MTL, "textures/wood.png": png()}))
    texture[texture.rindex(b"PK\x03\x04") + 60] ^= 0xFF
    assert refusal(path, bytes(texture)).reason is Reason.UNREADABLE


def test_random_damage_is_always_a_verdict(tmp_path: Path) -> None:
    whole = zipped({"a.obj": f"mtllib a.mtl\n{OBJ}", "a.mtl": MTL, "textures/wood.png": png()})
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        try:
            assert load_object(write(tmp_path / "a.zip", bytes(changed)), LIMIT).geometry
        except RejectedInput:
            continue


def test_the_hash_is_checked_before_anything_is_parsed(tmp_path: Path) -> None:
    for name in ("a.zip", "a.glb"):
        with pytest.raises(RejectedInput) as refused:
            open_object(write(tmp_path / name, b"neither"), LIMIT, "0" * 64)
        assert refused.value.reason is Reason.HASH_MISMATCH

"""Objects that are fine, objects that are not, and files that kill what reads them."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from object_support import OBJ, TRIANGLE, glb, gltf, packed_glb, png_bomb, textured_glb, zipped
from PIL import Image

from uvd.renderers.multiview_files import ConfinedResolver, is_external, load_object
from uvd.sequences import Example, Reason, Reject, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources import objaverse
from uvd.sources.base import SourceError
from uvd.sources.isolation import IsolatedProcess, IsolationError
from uvd.sources.objaverse import ObjaverseConfig, ObjaverseSource

HANDLERS = Path(__file__).parent / "isolated_handlers.py"
LIMIT = 1 << 30


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Makes `isolated_handlers` importable in children, and there alone; gives the PYTHONPATH."""
    return str(HANDLERS.parent)


@pytest.fixture(scope="module")
def child(handlers: str) -> Iterator[IsolatedProcess]:
    with IsolatedProcess(
        "isolated_handlers:misbehave", timeout_s=60, memory_bytes=1 << 29, environment={"PYTHONPATH": handlers}
    ) as process:
        yield process


@pytest.fixture(scope="module")
def hasty(handlers: str) -> Iterator[IsolatedProcess]:
    """Does not wait long; long enough for an answer on a busy machine."""
    with IsolatedProcess(
        "isolated_handlers:misbehave", timeout_s=4, memory_bytes=1 << 29, environment={"PYTHONPATH": handlers}
    ) as process:
        yield process


def echo(child: IsolatedProcess, value: int = 1) -> int:
    result, arrays = child.call({"do": "echo", "value": value})
    assert result["value"] == value
    assert arrays[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    return int(result["pid"])


def refusal(child: IsolatedProcess, **request: Any) -> RejectedInput:
    with pytest.raises(RejectedInput) as refused:
        child.call(request)
    return refused.value


# --- the child process -------------------------------------------------------------------------------------------


def test_one_child_serves_many_requests(child: IsolatedProcess) -> None:
    assert len({echo(child, value) for value in range(5)}) == 1
    assert refusal(child, do="reject").reason is Reason.NO_FACES
    assert refusal(child, do="reject").detail == "nothing there"
    assert child.call({"do": "flood"}) == ({}, [])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("abort", "SIGABRT"),
        ("segfault", "SIGSEGV"),
        ("raise", "a fault of the library"),
        ("allocate", "emory"),
        ("pickle", "dtype"),
        ("lie", "malformed"),
    ],
)
def test_a_child_that_dies_costs_one_input(child: IsolatedProcess, what: str, words: str) -> None:
    refused = refusal(child, do=what)
    assert refused.reason is Reason.CRASHED
    assert words in refused.detail
    echo(child)


def test_stderr_is_part_of_the_verdict(child: IsolatedProcess) -> None:
    assert "corrupted size vs. prev_size" in refusal(child, do="abort").detail


@pytest.mark.parametrize("what", ["hang", "spin"])
def test_a_hang_is_a_timeout(hasty: IsolatedProcess, what: str) -> None:
    assert refusal(hasty, do=what).reason is Reason.TIMEOUT
    echo(hasty)


def test_the_child_writes_no_files(child: IsolatedProcess, tmp_path: Path) -> None:
    refusal(child, do="write", path=str(tmp_path / "file"))
    assert not (tmp_path / "file").exists() or (tmp_path / "file").stat().st_size == 0


def test_a_child_killed_while_idle_is_replaced_in_silence(child: IsolatedProcess) -> None:
    first = echo(child)
    os.kill(first, signal.SIGKILL)
    assert echo(child) != first


def test_a_handler_that_does_not_exist_is_no_verdict_on_an_input() -> None:
    with pytest.raises(IsolationError, match="ModuleNotFoundError"):
        IsolatedProcess("uvd.no_such_module:f", timeout_s=1, memory_bytes=1 << 29).call({})


def test_the_child_dies_with_its_parent(handlers: str) -> None:
    script = (
        "import os, signal, sys\n"
        "from uvd.sources.isolation import IsolatedProcess\n"
        "p = IsolatedProcess('isolated_handlers:misbehave', timeout_s=600, memory_bytes=1 << 29)\n"
        "print(p.call({'do': 'echo', 'value': 1})[0]['pid'], flush=True)\n"
        "p.call({'do': 'spin'})\n"
    )
    environment = {**os.environ, "PYTHONPATH": handlers}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        assert not _is_gone(orphan)
        parent.kill()
        parent.wait()
    for _ in range(100):
        if _is_gone(orphan):
            return
        time.sleep(0.1)
    os.kill(orphan, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# --- files -------------------------------------------------------------------------------------------------------


def reason_of(path: Path, data: bytes | str | dict[str, Any], max_bytes: int = LIMIT) -> Reason:
    text = json.dumps(data) if isinstance(data, dict) else data
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RejectedInput) as refused:
        load_object(path, max_bytes)
    return refused.value.reason


def test_a_gltf_with_its_buffer_beside_it_loads(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(TRIANGLE)
    (tmp_path / "ok.gltf").write_text(json.dumps(gltf()))
    assert len(next(iter(load_object(tmp_path / "ok.gltf", LIMIT).geometry.values())).faces) == 1


@pytest.mark.parametrize(
    "uri", ["http://a.example/x.bin", "file:///etc/passwd", "/etc/passwd", "../x.bin", "a/../../x", "..%2fx", "C:\\x"]
)
def test_gltf_external_references(tmp_path: Path, uri: str) -> None:
    buffers = [{"uri": uri, "byteLength": 36}]
    assert reason_of(tmp_path / "a.gltf", gltf(buffers=buffers)) is Reason.EXTERNAL_REFERENCE
    assert reason_of(tmp_path / "a.glb", glb(gltf(images=[{"uri": uri}]))) is Reason.EXTERNAL_REFERENCE


def test_references_inside_the_folder_are_not_external() -> None:
    assert not any(is_external(uri) for uri in ("data.bin", "textures/wood 1.png", "./a.png", "a%20b.png", "[x].png"))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(TRIANGLE)
    folder = tmp_path / "object"
    folder.mkdir()
    (folder / "data.bin").symlink_to(secret)
    assert reason_of(folder / "a.gltf", gltf()) is Reason.EXTERNAL_REFERENCE


@pytest.mark.parametrize("library", ["../m.mtl", "/etc/m.mtl", "http://a.example/m.mtl"])
def test_obj_material_library_outside(tmp_path: Path, library: str) -> None:
    assert reason_of(tmp_path / "a.obj", f"mtllib {library}\n{OBJ}") is Reason.EXTERNAL_REFERENCE


def test_obj_texture_outside(tmp_path: Path) -> None:
    (tmp_path / "m.mtl").write_text("newmtl m\nmap_Kd ../../wood.png\n")
    assert reason_of(tmp_path / "a.obj", f"mtllib m.mtl\n{OBJ}") is Reason.EXTERNAL_REFERENCE


def test_obj_texture_options_and_missing_library(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "wood.png")
    assert ConfinedResolver(tmp_path, LIMIT).get("-s 1 1 1 wood.png")[:4] == b"\x89PNG"
    (tmp_path / "a.obj").write_text(f"mtllib gone.mtl\n{OBJ}")
    assert load_object(tmp_path / "a.obj", LIMIT).geometry


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.glb", glb(gltf(buffers=[{"byteLength": 36}]))[:-20], Reason.TRUNCATED),
        ("a.glb", glb(gltf(), claimed=1 << 30), Reason.TRUNCATED),
        ("a.glb", struct.pack("<4sIIII", b"glTF", 2, 20, 1 << 31, 0x4E4F534A), Reason.NOT_3D),
        ("a.glb", b"PK\x03\x04 not a model", Reason.NOT_3D),
        ("a.glb", b"", Reason.NOT_3D),
        ("a.gltf", "[" * 100_000, Reason.NOT_3D),
        ("a.gltf", "[]", Reason.NOT_3D),
        ("a.gltf", gltf(), Reason.MISSING),
        ("a.gltf", gltf(nodes=[{"children": [1]}, {"children": [0], "mesh": 0}]), Reason.NOT_3D),
        ("a.gltf", gltf(nodes=[{"children": [1, 1]}, {"mesh": 0}]), Reason.NOT_3D),
        ("a.gltf", gltf(nodes=7), Reason.NOT_3D),
        ("a.gltf", gltf(accessors=[{"componentType": 5126, "count": 1 << 40, "type": "VEC3"}]), Reason.TOO_COMPLEX),
        ("a.gltf", gltf(accessors=[{"componentType": 5126, "count": -1, "type": "VEC3"}]), Reason.NOT_3D),
        ("a.gltf", gltf(extensionsRequired=["KHR_draco_mesh_compression"]), Reason.NOT_3D),
        ("a.stl", "solid nothing", Reason.NO_FACES),
        ("a.obj", "v 0 0 0\nf 1 2 3\n", Reason.NOT_3D),
        ("a.ply", "ply\nformat ascii 1.0\n", Reason.NOT_3D),
        ("a.txt", "v 0 0 0", Reason.NOT_3D),
    ],
)
def test_files_that_are_broken(tmp_path: Path, name: str, data: bytes | str | dict[str, Any], reason: Reason) -> None:
    assert reason_of(tmp_path / name, data) is reason


def test_size_limits(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.obj", OBJ, max_bytes=10) is Reason.TOO_LARGE
    (tmp_path / "data.bin").write_bytes(TRIANGLE)
    size = len(json.dumps(gltf()))
    assert reason_of(tmp_path / "a.gltf", gltf(), max_bytes=size + 35) is Reason.TOO_LARGE


def test_a_json_bomb_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvd.renderers.multiview_files.MAX_JSON_BYTES", 1000)
    assert reason_of(tmp_path / "a.glb", glb(gltf(extras=[0] * 1000))) is Reason.TOO_LARGE


# --- the source --------------------------------------------------------------------------------------------------


def textured(uri: str) -> bytes:
    """A triangle with a texture."""
    tree = gltf(
        meshes=[{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
        materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        textures=[{"source": 0}],
        images=[{"uri": uri}],
        buffers=[{"byteLength": 60}],
    )
    tree["bufferViews"].append({"buffer": 0, "byteOffset": 36, "byteLength": 24})
    tree["accessors"].append({"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC2"})
    return glb(tree, binary=TRIANGLE + bytes(24))


def write_objects(root: Path) -> None:
    """Five good objects, and one for every kind of trouble between them."""
    (root / "b").mkdir(parents=True)
    whole = textured_glb()
    (root / "a_textured.glb").write_bytes(whole)
    (root / "b" / "truncated.glb").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "external.gltf").write_text(
        json.dumps(gltf(buffers=[{"uri": "http://a.example/b", "byteLength": 36}]))
    )
    (root / "b" / "empty.obj").write_text("# nothing\n")
    (root / "b" / "points.ply").write_bytes(trimesh.PointCloud(np.eye(3)).export(file_type="ply"))
    (root / "b" / "nan.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 nan 0\nf 1 2 3\n")
    (root / "b" / "flat.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (root / "b" / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (root / "b" / "many.stl").write_bytes(trimesh.creation.icosphere(subdivisions=4).export(file_type="stl"))
    (root / "b" / "abort.obj").write_text(OBJ)
    (root / "b" / "notes.txt").write_text("not an object")
    cycle = [{"children": [1]}, {"children": [0], "mesh": 0}]
    bomb = "data:image/png;base64," + base64.b64encode(png_bomb()).decode()
    hostile = {
        "bomb.zip": zipped({"a.obj": bytes(64 << 20)}),
        "cycle.glb": packed_glb(nodes=cycle),
        "json.glb": packed_glb(extras=[0] * 12_000_000),
        "lines.gltf": json.dumps(gltf(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 1}]}])),
        "lines.obj": "v 0 0 0\nv 1 0 0\nl 1 2\n",
        "points.glb": packed_glb(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 0}]}]),
        "slip.zip": zipped({"a.glb": whole, "../../a.png": b"x"}),
        "texture.glb": textured(bomb),
        "unused.glb": packed_glb(nodes=[{}]),
    }
    for name, data in hostile.items():
        (root / "b" / name).write_bytes(data.encode() if isinstance(data, str) else data)
    (root / "b" / "data.bin").write_bytes(TRIANGLE)
    (root / "mirrored.glb").write_bytes(packed_glb(nodes=[{"mesh": 0, "scale": [-1, 2, 3]}]))
    (root / "zipped.zip").write_bytes(zipped({"model/a.glb": whole}))
    trimesh.creation.icosphere(subdivisions=2).export(root / "c.PLY", file_type="ply")
    trimesh.creation.cylinder(1, 2).export(root / "z.stl")


def config(root: Path, **changes: Any) -> ObjaverseConfig:
    return ObjaverseConfig(input=root, **{"views": 3, "max_faces": 2000, "timeout_s": 60} | changes)


def produce(source: ObjaverseSource) -> list[Example | Reject]:
    return [one for unit in source.plan() for one in source.read(unit, Seeds(5).child(unit.shard))]


def test_every_object_is_an_example_or_a_reject(tmp_path: Path, handlers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_objects(tmp_path)
    monkeypatch.setattr(objaverse, "HANDLER", "isolated_handlers:render_or_die")
    monkeypatch.setenv("PYTHONPATH", handlers)
    source = ObjaverseSource(config(tmp_path, max_bytes=50 << 20))
    results = produce(source)
    names = [item["origin"] for unit in source.plan() for item in unit.payload["items"]]
    assert names == sorted(names)
    outcome = {
        names[one.input if isinstance(one, Reject) else one.inputs[0]]: one.reason
        if isinstance(one, Reject)
        else len(one.pictures)
        for one in results
    }
    assert outcome == {
        "a_textured.glb": 3,
        "b/abort.obj": Reason.CRASHED,
        "b/bomb.zip": Reason.TOO_LARGE,
        "b/cycle.glb": Reason.NOT_3D,
        "b/empty.obj": Reason.NO_FACES,
        "b/external.gltf": Reason.EXTERNAL_REFERENCE,
        "b/flat.obj": Reason.BAD_GEOMETRY,
        "b/json.glb": Reason.TOO_LARGE,
        "b/line.obj": Reason.BLANK_VIEW,
        "b/lines.gltf": Reason.NO_FACES,
        "b/lines.obj": Reason.NO_FACES,
        "b/many.stl": Reason.TOO_COMPLEX,
        "b/nan.obj": Reason.BAD_GEOMETRY,
        "b/points.glb": Reason.NO_FACES,
        "b/points.ply": Reason.NO_FACES,
        "b/slip.zip": Reason.EXTERNAL_REFERENCE,
        "b/texture.glb": Reason.TOO_COMPLEX,
        "b/truncated.glb": Reason.TRUNCATED,
        "b/unused.glb": Reason.NO_FACES,
        "c.PLY": 3,
        "mirrored.glb": 3,
        "z.stl": 3,
        "zipped.zip": 3,
    }
    assert len(results) == len(names)
    example = results[0]
    assert isinstance(example, Example)
    assert (example.inputs, example.dataset, example.group) == ((0,), "objaverse", "a_textured.glb")
    assert [picture.index for picture in example.pictures] == [0, 1, 2]
    assert {(p.role, p.origin, p.size, p.drawn) for p in example.pictures} == {
        ("view", "a_textured.glb", (256, 256), False)
    }
    assert not (example.pictures[0].pixels == example.pictures[1].pixels).all()
    assert source._process is None  # nothing is left running


def test_an_object_that_hangs_is_a_timeout_and_the_next_one_works(
    tmp_path: Path, handlers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.obj", "hang.obj", "z.obj"):
        (tmp_path / name).write_text(OBJ)
    monkeypatch.setattr(objaverse, "HANDLER", "isolated_handlers:hang_or_answer")
    monkeypatch.setenv("PYTHONPATH", handlers)
    first, second, third = produce(ObjaverseSource(config(tmp_path, timeout_s=1.5)))
    assert isinstance(first, Example)
    assert isinstance(second, Reject)
    assert second.reason is Reason.TIMEOUT
    assert isinstance(third, Example)


def test_the_split_follows_the_path_and_the_papers_share() -> None:
    source = ObjaverseSource(ObjaverseConfig(input=Path("."), dataset="objaverse"))
    splits = [source.split(f"glbs/{i:06d}.glb") for i in range(5000)]
    assert 0.14 < splits.count("test") / 5000 < 0.18
    assert splits.count("val") == 0


def test_patterns_and_limits_of_the_plan(tmp_path: Path) -> None:
    for name in ("a.glb", "b.obj", "b.mtl"):
        (tmp_path / name).write_bytes(b"x")
    (unit,) = ObjaverseSource(config(tmp_path, patterns=("*.obj",))).plan()
    assert unit.payload == {"items": [{"origin": "b.obj", "bytes": 1}]}
    with pytest.raises(SourceError, match="no file"):
        list(ObjaverseSource(config(tmp_path, patterns=("*.stl",))).plan())
    with pytest.raises(SourceError, match="no file or folder"):
        list(ObjaverseSource(config(tmp_path / "gone")).plan())
    with pytest.raises(ValueError, match="radius"):
        config(tmp_path, radius=(0.2, 1.0))

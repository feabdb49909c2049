"""Objects that are too large, too near or too far, and a thousand objects in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from uvd.renderers.multiview import Camera, render_object
from uvd.renderers.multiview_scene import object_parts
from uvd.renderers.multiview_simplify import GRIDS, cluster
from uvd.renderers.multiview_worker import render_file
from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

CAMERAS = [Camera(20, 15, 1.6), Camera(140, -20, 2.0)]
MIB = 1 << 20


def request(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "path": str(path),
        "max_bytes": 1 << 26,
        "max_faces": 100_000,
        "size": 128,
        "background": [255, 255, 255],
        "up": "auto",
        "cameras": [[camera.azimuth, camera.elevation, camera.radius, camera.field_of_view] for camera in CAMERAS],
        **changes,
    }


def refusal(request: dict[str, Any]) -> RejectedInput:
    with pytest.raises(RejectedInput) as refused:
        render_file(request)
    return refused.value


def test_a_view_that_the_object_fills_is_refused(tmp_path: Path) -> None:
    trimesh.creation.icosphere(subdivisions=3).export(tmp_path / "ball.ply")
    refused = refusal(request(tmp_path / "ball.ply", cameras=[[0.0, 0.0, 1.5, 42.0], [0.0, 0.0, 0.6, 20.0]]))
    assert refused.reason is Reason.BLANK_VIEW
    assert refused.detail.startswith("view 1: 100.00 % covered")
    # Inside, where both sides of the shell are drawn.
    assert refusal(request(tmp_path / "ball.ply", cameras=[[0.0, 0.0, 0.2, 42.0]])).reason is Reason.BLANK_VIEW


def test_an_object_lost_in_its_bounds_is_refused(tmp_path: Path) -> None:
    dots = [trimesh.creation.box(extents=[1e-4] * 3).apply_translation(place) for place in ((0, 0, 0), (9, 9, 9))]
    trimesh.util.concatenate(dots).export(tmp_path / "dots.ply")
    assert refusal(request(tmp_path / "dots.ply")).reason is Reason.BLANK_VIEW


def test_too_many_faces_are_refused_or_simplified(tmp_path: Path) -> None:
    trimesh.creation.icosphere(subdivisions=5).export(tmp_path / "ball.ply")  # 20,480 faces
    path = tmp_path / "ball.ply"
    assert refusal(request(path, max_faces=20_000)).reason is Reason.TOO_COMPLEX
    for limit, words in ((2000, "limit 20000"), (5000, "coarsest grid")):
        refused = refusal(request(path, max_faces=limit, too_many_faces="simplify"))
        assert refused.reason is Reason.TOO_COMPLEX
        assert words in refused.detail


def test_a_simplified_object_looks_the_same() -> None:
    scene = trimesh.Scene(trimesh.creation.icosphere(subdivisions=7))  # 327,680 faces
    (part,) = object_parts(scene, max_faces=200_000, too_many_faces="simplify")
    assert len(part.indices) <= 200_000
    whole = render_object(scene, CAMERAS, 128, geometry=True)
    fewer = render_object(scene, CAMERAS, 128, geometry=True, max_faces=200_000, too_many_faces="simplify")
    assert np.abs(whole.pixels.astype(int) - fewer.pixels).mean() < 3
    assert whole.depth is not None
    assert fewer.depth is not None
    both = (whole.depth > 0) & (fewer.depth > 0)
    assert both.sum() > 0.98 * (whole.depth > 0).sum()
    assert np.median(np.abs(whole.depth - fewer.depth)[both]) < 0.005


def board() -> trimesh.Scene:
    """A square of 80,000 triangles with four colours on it."""
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    image = Image.fromarray(pixels.repeat(32, axis=0).repeat(32, axis=1))
    material = PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
    row, column = np.indices((201, 201)).reshape(2, -1) / 200
    corner = (np.arange(200)[:, None] * 201 + np.arange(200)).reshape(-1)
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + 202], 1), np.stack([corner, corner + 202, corner + 201], 1)]
    )
    vertices = np.stack([column - 0.5, row - 0.5, np.zeros_like(row)], axis=1)
    visual = TextureVisuals(uv=np.stack([column, row], axis=1), material=material)
    return trimesh.Scene(trimesh.Trimesh(vertices, faces, visual=visual, process=False))


def test_simplifying_keeps_outline_and_texture_and_repeats_itself() -> None:
    front = [Camera(0, 0, 1.6)]
    (part,) = object_parts(board(), max_faces=50_000, too_many_faces="simplify")
    (again,) = object_parts(board(), max_faces=50_000, too_many_faces="simplify")
    assert 5_000 < len(part.indices) <= 50_000
    assert all(
        (getattr(part, name) == getattr(again, name)).all() for name in ("positions", "uv", "normals", "indices")
    )
    whole = render_object(board(), front, 128)
    fewer = render_object(board(), front, 128, max_faces=50_000, too_many_faces="simplify")
    both = [views.coverage[0] >= 128 for views in (whole, fewer)]
    assert (both[0] & both[1]).sum() / (both[0] | both[1]).sum() > 0.97
    assert (np.abs(whole.pixels.astype(int) - fewer.pixels).max(axis=-1) > 40).mean() < 0.03


def test_clustering_keeps_seams_and_drops_what_shrank() -> None:
    positions = np.array([[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0], [0.001, 0, 0], [0.4, 0.001, 0], [0, 0.401, 0]])
    faces = np.array([[0, 1, 2], [0, 3, 1], [3, 4, 5]])
    source, place, left = cluster(positions, None, faces, 16)
    assert sorted(source.tolist()) == sorted(place.tolist()) == [0, 1, 2]
    assert source[left].tolist() == [[0, 1, 2]]
    uv = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.5], [1, 0], [0, 1]])
    source, place, _ = cluster(positions, uv, faces, 16)
    assert sorted(source.tolist()) == [0, 1, 2, 3]  # vertex 3 lies with vertex 0, elsewhere in the texture
    assert place[source == 3].tolist() == [0]
    assert GRIDS[0] ** 3 * (1 << 30) <= 1 << 63


def test_dust_is_not_simplified_away() -> None:
    rng = np.random.default_rng(0)
    vertices = np.repeat(rng.random((600, 3)), 3, axis=0) + rng.random((1800, 3)) * 1e-9
    scene = trimesh.Scene(trimesh.Trimesh(vertices, np.arange(1800).reshape(-1, 3), process=False))
    with pytest.raises(RejectedInput) as refused:
        object_parts(scene, max_faces=100, too_many_faces="simplify")
    assert refused.value.reason is Reason.TOO_COMPLEX


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_objects(tmp_path: Path) -> None:
    """A leak of one 256x256 texture or one of these meshes an object would show as 75 MiB or more."""
    rng = np.random.default_rng(0)
    for number in range(10):
        mesh = trimesh.creation.icosphere(subdivisions=4)
        image = Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))
        material = PBRMaterial(baseColorTexture=image, normalTexture=image if number % 2 else None)
        mesh.visual = TextureVisuals(uv=rng.random((len(mesh.vertices), 2)), material=material)
        mesh.export(tmp_path / f"{number}.glb")
    process, first = psutil.Process(), 0
    for number in range(1100):
        render_file(
            request(tmp_path / f"{number % 10}.glb", cameras=[[7.0 * number, 10.0, 1.7, 42.0]], roles=["view", "depth"])
        )
        if number == 99:
            first = process.memory_info().rss
    assert process.memory_info().rss - first < 50 * MIB

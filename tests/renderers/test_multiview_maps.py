"""Depth, normals and masks of views against shapes whose answer is known, and a golden sheet of eight views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from uvd.renderers.multiview import OBJECT_RADIUS, Camera, ObjectViews, render_object
from uvd.renderers.multiview_maps import VIEW_ROLES, role_pictures
from uvd.renderers.multiview_worker import render_file

SIZE = 256
CAMERAS = [Camera(0, 0, 1.5), Camera(37, 28, 2.2), Camera(200, -45, 1.7)]
GOLDEN = Path(__file__).parent / "golden" / "multiview.png"


def draw(mesh: trimesh.Trimesh | list[trimesh.Trimesh], cameras: list[Camera] = CAMERAS) -> ObjectViews:
    return render_object(trimesh.Scene(mesh), cameras, SIZE, geometry=True)


def maps(views: ObjectViews) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    assert views.depth is not None
    assert views.normals is not None
    return views.depth, views.normals


def cast_at_sphere(camera: Camera) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance along the axis (0 beside the sphere) and normal, for the ray through the middle of each pixel."""
    focal = SIZE / 2 / np.tan(np.radians(camera.field_of_view) / 2)
    middle = (np.arange(SIZE) + 0.5 - SIZE / 2) / focal
    rays = np.stack([*np.meshgrid(middle, -middle), -np.ones((SIZE, SIZE))], axis=-1)
    # |t * ray - (0, 0, -radius)| = r, whose smaller root is the nearer hit.
    a, half_b = (rays**2).sum(axis=-1), -camera.radius
    root = half_b**2 - a * (camera.radius**2 - OBJECT_RADIUS**2)
    hit = root >= 0
    depth = np.where(hit, (-half_b - np.sqrt(np.where(hit, root, 0))) / a, 0)
    normals = (depth[..., None] * rays + (0, 0, camera.radius)) / OBJECT_RADIUS
    return depth, np.where(hit[..., None], normals, 0)


def test_a_sphere_has_the_depth_and_normals_of_ray_casting() -> None:
    depths, normals = maps(draw(trimesh.creation.icosphere(subdivisions=5).apply_translation((3, 2, 1))))
    for camera, depth, normal in zip(CAMERAS, depths, normals, strict=True):
        exact_depth, exact_normal = cast_at_sphere(camera)
        assert (depth > 0).sum() == pytest.approx((exact_depth > 0).sum(), rel=0.005)
        inner = (exact_normal[..., 2] > 0.6) & (depth > 0)  # the ball has facets, which show at its rim
        assert inner.sum() > 5000
        assert np.abs(depth - exact_depth)[inner].max() < 5e-4
        cosine = (normal * exact_normal).sum(axis=-1)[inner]
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1.0
        lengths = np.linalg.norm(normal, axis=-1)
        assert np.allclose(lengths[depth > 0], 1, atol=1e-4)
        assert not lengths[depth == 0].any()


def test_no_value_mixes_two_surfaces() -> None:
    near = trimesh.creation.box(extents=(0.6, 0.6, 0.01)).apply_translation((0.2, 0.1, 0.5))
    far = trimesh.creation.box(extents=(2, 2, 0.01)).apply_translation((0, 0, -0.5))
    depths, normals = maps(draw([near, far], [Camera(0, 0, 2.0)]))
    assert len(np.unique(depths[0].round(4))) == 3  # nothing, the far box, the near box
    pictures = role_pictures(draw([near, far], [Camera(0, 0, 2.0)]), "normals")[0]
    assert {tuple(color) for color in pictures.reshape(-1, 3)} == {(0, 0, 0), (128, 128, 255)}
    assert (normals[depths > 0][:, 2] > 0.9999).all()


def test_maps_agree_and_follow_the_conventions() -> None:
    views = draw(trimesh.creation.box(extents=(1, 2, 3)))
    depth, normals, mask = (role_pictures(views, role) for role in ("depth", "normals", "mask"))  # type: ignore[arg-type]
    covered = views.coverage >= 128
    seen = mask[..., 0] == 255
    assert set(np.unique(mask)) == {0, 255}
    assert ((depth > 0).all(axis=-1) == seen).all()
    assert ((normals > 0).any(axis=-1) == seen).all()
    assert (covered & seen).sum() / (covered | seen).sum() > 0.98
    for number in (1, 2):  # in the first view one face is seen, all of it at one distance
        distances = maps(views)[0][number]
        nearest = np.unravel_index(np.where(distances > 0, distances, np.inf).argmin(), distances.shape)
        assert (depth[number][nearest] == 255).all()
        assert depth[number][seen[number]].min() == 1


def test_normals_turn_with_the_camera() -> None:
    flat = trimesh.creation.box(extents=(1, 1, 1))
    _, normals = maps(draw(flat, [Camera(30, 0, 1.8), Camera(0, 40, 1.8)]))
    faces = {tuple(value) for value in normals[0].reshape(-1, 3).astype(float).round(3)} - {(0.0, 0.0, 0.0)}
    sine, cosine = float(np.sin(np.radians(30))), float(np.cos(np.radians(30)))
    assert faces == {(round(-sine, 3), 0.0, round(cosine, 3)), (round(cosine, 3), 0.0, round(sine, 3))}
    upper = normals[1][normals[1][..., 1] > 0]
    assert upper[:, 1].max() == pytest.approx(np.cos(np.radians(40)), abs=1e-3)


def test_cut_out_texels_have_no_depth_and_colours_do_not_change() -> None:
    texels = np.full((8, 8, 4), 60, np.uint8)
    texels[:4, :, 3], texels[4:, :, 3] = 255, 20
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    covers = {}
    for mode in ("MASK", "BLEND"):
        material = PBRMaterial(baseColorTexture=Image.fromarray(texels), alphaMode=mode, alphaCutoff=0.5)
        visual = TextureVisuals(uv=corners[:, :2] + 0.5, material=material)
        scene = trimesh.Scene(trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False))
        views = render_object(scene, CAMERAS[:1], SIZE, geometry=True)
        assert (views.pixels == render_object(scene, CAMERAS[:1], SIZE).pixels).all()
        covers[mode] = maps(views)[0][0] > 0
    assert covers["MASK"][SIZE // 2 - 40, SIZE // 2]
    assert not covers["MASK"][SIZE // 2 + 40, SIZE // 2]
    assert covers["BLEND"][SIZE // 2 + 40, SIZE // 2]


def test_the_worker_gives_the_roles_in_the_order_asked_for(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "box.obj")
    request: dict[str, Any] = {
        "path": str(tmp_path / "box.obj"),
        "max_bytes": 1 << 20,
        "max_faces": 100,
        "size": 64,
        "background": [255, 255, 255],
        "up": "auto",
        "cameras": [[20.0, 10.0, 1.6, 42.0], [80.0, 10.0, 1.6, 42.0]],
    }
    _, (alone,) = render_file(request)
    _, arrays = render_file({**request, "roles": ["mask", "view", "normals", "depth"]})
    assert [array.shape for array in arrays] == [(2, 64, 64, 3)] * 4
    assert all(array.dtype == np.uint8 for array in arrays)
    assert (arrays[1] == alone).all()
    assert set(np.unique(arrays[0])) == {0, 255}
    with pytest.raises(ValueError, match="colour"):
        render_file({**request, "roles": ["colour"]})
    with pytest.raises(ValueError, match="without their geometry"):
        role_pictures(ObjectViews(alone, alone[..., 0]), "depth")


def toy() -> trimesh.Scene:
    """A chequered drum with a ball of vertex colours on it, off its middle, and a pane of glass beside."""
    drum = trimesh.creation.cylinder(radius=0.6, height=0.8, sections=48)
    drum.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, (1, 0, 0)))
    angle = np.arctan2(drum.vertices[:, 0], drum.vertices[:, 2]) / (2 * np.pi)
    squares = (np.indices((8, 16)).sum(axis=0) % 2).astype(np.uint8)
    colors = np.where(squares[..., None] == 0, np.uint8((200, 60, 40)), np.uint8((240, 220, 160)))
    image = Image.fromarray(colors).resize((128, 64), Image.Resampling.NEAREST)
    uv = np.stack([2 * np.abs(angle), drum.vertices[:, 1]], axis=1)
    material = PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=0.6)
    drum.visual = TextureVisuals(uv=uv, material=material)
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.35).apply_translation((0.2, 0.75, 0.1))
    tint = ((ball.vertices - ball.bounds[0]) / ball.extents * 255).astype(np.uint8)
    ball.visual = trimesh.visual.ColorVisuals(ball, vertex_colors=np.column_stack([tint, np.full(len(tint), 255)]))
    pane = trimesh.creation.box(extents=(0.03, 1.1, 0.9)).apply_translation((-0.85, 0.1, 0))
    glass = PBRMaterial(baseColorFactor=(120, 180, 255, 90), alphaMode="BLEND", metallicFactor=0.0)
    pane.visual = TextureVisuals(uv=np.zeros((len(pane.vertices), 2)), material=glass)
    return trimesh.Scene([drum, ball, pane])


def test_golden_sheet_of_eight_views(request: pytest.FixtureRequest) -> None:
    """Rows: view, depth, normals, mask. With a tolerance, for drivers differ in the last bit of a colour."""
    cameras = [Camera(45.0 * number, 25, 1.7) for number in range(8)]
    views = render_object(toy(), cameras, 96, geometry=True)
    sheet = np.vstack([np.hstack(list(role_pictures(views, role))) for role in VIEW_ROLES])
    if request.config.getoption("--regenerate-golden", default=False):
        Image.fromarray(sheet).save(GOLDEN, optimize=True)
    wanted = np.asarray(Image.open(GOLDEN))
    assert sheet.shape == wanted.shape
    error = np.abs(sheet.astype(int) - wanted)
    assert error.mean() < 0.5
    assert (error.max(axis=-1) > 8).mean() < 0.005

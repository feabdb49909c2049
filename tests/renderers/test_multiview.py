"""Camera maths against exact projections, looks that must come out right, and the same bytes in two processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual.material import PBRMaterial, SimpleMaterial
from trimesh.visual.texture import TextureVisuals

from uvd.renderers.gl import GLPlatform, GLUnavailable, choose_platform
from uvd.renderers.multiview import OBJECT_RADIUS, Camera, orbit, render_object, render_views
from uvd.renderers.multiview_material import SurfaceReader
from uvd.renderers.multiview_scene import object_parts
from uvd.sequences import Reason, Seeds
from uvd.sequences.reject import RejectedInput

SIZE = 256
FINE = 8
CAMERAS = [Camera(0, 0, 1.5), Camera(37, 28, 2.2), Camera(200, -45, 1.7), Camera(285, 45, 2.0)]


def hull_mask(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Exact silhouette of a convex body, from `(n, 2)` pixel coordinates of its corners, drawn at 8 times the size."""
    hull = cv2.convexHull((points * FINE - 0.5).astype(np.float32)).round().astype(np.int32)
    big = cv2.fillConvexPoly(np.zeros((SIZE * FINE, SIZE * FINE), np.uint8), hull, 255)
    return cv2.resize(big, (SIZE, SIZE), interpolation=cv2.INTER_AREA) >= 128


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def silhouettes(scene: trimesh.Scene, **options: object) -> list[NDArray[np.bool_]]:
    return list(render_object(scene, CAMERAS, SIZE, **options).coverage >= 128)  # type: ignore[arg-type]


def textured_plane(image: Image.Image, **material: object) -> trimesh.Scene:
    """A unit square in the plane z = 0, facing +Z, with the whole image on it."""
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    surface = PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0, **material)
    visual = TextureVisuals(uv=corners[:, :2] + 0.5, material=surface)
    return trimesh.Scene(trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False))


def test_cube_silhouette_is_exact() -> None:
    box = trimesh.creation.box(extents=(2.0, 3.0, 1.0))
    scale = OBJECT_RADIUS / np.linalg.norm((1.0, 1.5, 0.5))
    moved = box.copy().apply_translation((5, -7, 100))
    for camera, mask in zip(CAMERAS, silhouettes(trimesh.Scene(moved)), strict=True):
        assert iou(mask, hull_mask(camera.project(box.vertices * scale, SIZE))) >= 0.98


def test_sphere_silhouette_is_exact_and_never_cut() -> None:
    ball = trimesh.creation.icosphere(subdivisions=5)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    for camera, mask in zip(CAMERAS, silhouettes(trimesh.Scene(ball)), strict=True):
        focal = SIZE / 2 / np.tan(np.radians(camera.field_of_view) / 2)
        radius = focal * OBJECT_RADIUS / np.sqrt(camera.radius**2 - OBJECT_RADIUS**2)
        assert iou(mask, (x - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2 <= radius**2) >= 0.98
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()
        assert mask.any(axis=0).sum() > SIZE / 2


def test_plane_silhouette_is_exact_and_its_texture_upright() -> None:
    quarters = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    image = Image.fromarray(quarters.repeat(32, axis=0).repeat(32, axis=1))
    scene = textured_plane(image)
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * OBJECT_RADIUS / np.sqrt(2)
    views = render_object(scene, CAMERAS, SIZE)
    for camera, coverage in zip(CAMERAS, views.coverage, strict=True):
        assert iou(coverage >= 128, hull_mask(camera.project(corners, SIZE))) >= 0.98
    for (x, y), colour in zip([(-1, 1), (1, 1), (-1, -1), (1, -1)], quarters.reshape(-1, 3), strict=True):
        column, row = CAMERAS[0].project(np.array([x, y, 0]) * OBJECT_RADIUS / np.sqrt(2) / 2, SIZE).astype(int)
        pixel = views.pixels[0, row, column].astype(int)
        assert ((pixel > 120) == (colour > 0)).all(), (x, y, pixel)


def test_node_transforms_instances_and_mirrors_are_baked() -> None:
    box = trimesh.creation.box()
    scene = trimesh.Scene()
    scene.add_geometry(box, geom_name="box", transform=trimesh.transformations.translation_matrix((0.7, 0, 0)))
    mirror = np.diag([-1.0, 2.0, 1.0, 1.0])
    mirror[:3, 3] = (-0.7, 0, 1)
    scene.graph.update(frame_to="mirrored", matrix=mirror, geometry="box")
    corners = [trimesh.transform_points(box.vertices, scene.graph[node][0]) for node in scene.graph.nodes_geometry]
    both = np.concatenate(corners)
    center = (both.min(axis=0) + both.max(axis=0)) / 2
    scale = OBJECT_RADIUS / np.linalg.norm(both - center, axis=1).max()
    views = render_object(scene, CAMERAS, SIZE)
    for camera, coverage in zip(CAMERAS, views.coverage, strict=True):
        masks = [hull_mask(camera.project((points - center) * scale, SIZE)) for points in corners]
        assert iou(coverage >= 128, masks[0] | masks[1]) >= 0.98


def test_z_up_files_stand_upright() -> None:
    cone = trimesh.creation.cone(radius=0.5, height=2.0)  # its tip points to +Z
    mask = render_object(trimesh.Scene(cone), CAMERAS[:1], SIZE, up="z").coverage[0] > 0
    widths = mask.sum(axis=1)
    rows = np.flatnonzero(widths)
    assert widths[rows[5]] < widths[rows[-5]] / 4


def test_objects_turn_one_way_by_equal_steps() -> None:
    marker = trimesh.creation.icosphere(subdivisions=2, radius=0.1).apply_translation((0, 0, 1))
    body = trimesh.creation.icosphere(subdivisions=3, radius=0.9)
    body.visual.face_colors = (0, 0, 255, 255)
    marker.visual.face_colors = (255, 0, 0, 255)
    cameras = orbit(np.random.default_rng(0), views=24, elevation=(0, 0))
    assert [camera.azimuth for camera in cameras] == [15.0 * i for i in range(24)]
    views = render_views(trimesh.Scene([marker, body]), cameras, SIZE).astype(int)
    places = []
    for view in views[[23, 0, 1, 2]]:
        red = (view[..., 0] - view[..., 2]) > 60
        places.append(np.flatnonzero(red.any(axis=0)).mean())
    assert places == sorted(places, reverse=True)  # the camera moves to the right, what is in front to the left
    assert abs(places[1] - SIZE / 2) < 2


def test_orbit_keeps_the_papers_ranges() -> None:
    seen = [orbit(Seeds(0).generator("object", i)) for i in range(200)]
    elevations = [cameras[0].elevation for cameras in seen]
    radii = [cameras[0].radius for cameras in seen]
    assert -45 <= min(elevations) < -40 < 40 < max(elevations) <= 45
    assert 1.5 <= min(radii) < 1.55 < 2.15 < max(radii) <= 2.2
    assert all(len({(c.elevation, c.radius) for c in cameras}) == 1 and len(cameras) == 24 for cameras in seen)


def test_lit_from_every_side_inside_and_out() -> None:
    shell = trimesh.creation.icosphere(subdivisions=4)
    inverted = shell.copy()
    inverted.invert()
    cameras = [Camera(azimuth, elevation, 1.8) for azimuth in range(0, 360, 45) for elevation in (-40, 40)]
    for mesh in (shell, inverted):
        views = render_object(trimesh.Scene(mesh), cameras, SIZE)
        brightness = [pixels[mask == 255].mean() for pixels, mask in zip(views.pixels, views.coverage, strict=True)]
        assert 90 < min(brightness) < max(brightness) < 220
        assert (views.pixels[:, 0, 0] == 255).all()  # the background is white


def test_background_colour() -> None:
    views = render_views(trimesh.Scene(trimesh.creation.box()), CAMERAS[:1], SIZE, background=(10, 200, 30))
    assert views[0, 0, 0].tolist() == [10, 200, 30]


def test_vertex_colours_and_face_colours() -> None:
    for kind in ("vertex_colors", "face_colors"):
        box = trimesh.creation.box()
        setattr(box.visual, kind, (20, 200, 20, 255))
        pixel = render_views(trimesh.Scene(box), CAMERAS[:1], SIZE)[0, SIZE // 2, SIZE // 2].astype(int)
        assert pixel[1] > 2 * max(pixel[0], pixel[2])


@pytest.mark.parametrize("textures", [("baseColorTexture",), ("normalTexture", "metallicRoughnessTexture")])
def test_textured_parts_without_coordinates_are_drawn(textures: tuple[str, ...]) -> None:
    image = Image.new("RGB", (6, 5), (200, 40, 40))
    box = trimesh.creation.box()
    box.visual = TextureVisuals(uv=None, material=PBRMaterial(**dict.fromkeys(textures, image)))
    assert (render_object(trimesh.Scene(box), CAMERAS[:1], SIZE).coverage > 0).any()


def test_all_textures_at_once_in_odd_sizes_and_modes() -> None:
    scene = textured_plane(
        Image.new("P", (7, 3)),
        normalTexture=Image.new("RGB", (5, 9), (128, 128, 255)),
        metallicRoughnessTexture=Image.new("RGB", (3, 3), (0, 200, 0)),
        occlusionTexture=Image.new("L", (1, 1), 255),
        emissiveTexture=Image.new("RGBA", (2, 3), (0, 255, 0, 0)),
        emissiveFactor=(0.0, 1.0, 0.0),
    )
    pixel = render_views(scene, CAMERAS[:1], SIZE)[0, SIZE // 2, SIZE // 2]
    assert pixel[1] > 200 > pixel[0]


def test_alpha_modes() -> None:
    texels = np.full((8, 8, 4), 60, np.uint8)
    texels[..., 3] = [255] * 4 + [100] * 4
    image = Image.fromarray(texels)
    halves = {}
    for mode in ("OPAQUE", "MASK", "BLEND"):
        view = render_views(textured_plane(image, alphaMode=mode, alphaCutoff=0.5), CAMERAS[:1], SIZE)[0]
        halves[mode] = int(view[SIZE // 2, SIZE // 2 - 40, 0]), int(view[SIZE // 2, SIZE // 2 + 40, 0])
    assert halves["OPAQUE"][0] == halves["OPAQUE"][1] == halves["MASK"][0] < 120
    assert halves["MASK"][1] == 255
    assert halves["BLEND"][0] + 30 < halves["BLEND"][1] < 250


def test_material_without_image_is_grey_and_mtl_colour_is_kept() -> None:
    box = trimesh.creation.box()
    reader = SurfaceReader()
    assert reader.read(box).surface.base_color[0] == pytest.approx(0.42)
    box.visual = TextureVisuals(material=SimpleMaterial(diffuse=[1.0, 0.0, 0.0], kd=[1, 0, 0], d=["0.5"]))
    surface = reader.read(box).surface
    assert surface.base_color == (1.0, 0.0, 0.0, 0.5)
    assert surface.blend


def test_a_huge_texture_is_refused_before_it_is_decoded() -> None:
    image = Image.new("1", (1, 1))
    image._size = (100_000, 100_000)  # what the header of a bomb claims
    with pytest.raises(RejectedInput) as refused:
        render_views(textured_plane(image), CAMERAS[:1])
    assert refused.value.reason is Reason.TOO_COMPLEX


@pytest.mark.parametrize(
    ("vertices", "faces", "reason"),
    [
        ([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], Reason.BAD_GEOMETRY),
        ([[0, 0, 0], [1, 0, 0], [0, np.inf, 0]], [[0, 1, 2]], Reason.BAD_GEOMETRY),
        ([[0, 0, 0], [1e300, 0, 0], [0, -1e308, 1e308]], [[0, 1, 2]], Reason.BAD_GEOMETRY),
        ([[2, 2, 2], [2, 2, 2], [2, 2, 2]], [[0, 1, 2]], Reason.BAD_GEOMETRY),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 7]], Reason.BAD_GEOMETRY),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.zeros((0, 3), int), Reason.NO_FACES),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]] * 11, Reason.TOO_COMPLEX),
    ],
)
def test_broken_geometry_has_its_reason(vertices: list[list[float]], faces: list[list[int]], reason: Reason) -> None:
    scene = trimesh.Scene()
    scene.geometry["mesh"] = trimesh.Trimesh(np.array(vertices, float), faces, process=False)
    scene.graph.update(frame_to="node", geometry="mesh")
    with pytest.raises(RejectedInput) as refused:
        object_parts(scene, max_faces=10)
    assert refused.value.reason is reason


def test_many_objects_leave_nothing_behind_in_the_context() -> None:
    from uvd.renderers.multiview_gl import view_renderer

    scene = textured_plane(Image.new("RGB", (16, 16), (90, 90, 200)))
    first = render_views(scene, CAMERAS[:1], SIZE)
    for _ in range(3):
        assert (render_views(scene, CAMERAS[:1], SIZE) == first).all()
    drawer = view_renderer(SIZE)._renderer
    assert not drawer._meshes
    assert not drawer._mesh_textures


SCRIPT = """
import hashlib, numpy as np, trimesh
from uvd.renderers.multiview import Camera, render_views
parts = [trimesh.creation.icosphere(subdivisions=3).apply_translation((i, i % 2, 0)) for i in range(4)]
for i, part in enumerate(parts):
    part.visual.vertex_colors = (60 * i, 200, 255 - 60 * i, 255 if i % 2 else 120)
parts += [trimesh.creation.box(), trimesh.creation.box().apply_scale((1, 1, -1))]  # coplanar faces
parts[-1].visual.face_colors = (255, 0, 0, 255)
views = render_views(trimesh.Scene(parts), [Camera(33, 20, 1.6), Camera(120, -30, 2.1)])
print(hashlib.sha256(views.tobytes()).hexdigest())
"""


def test_two_processes_draw_the_same_bytes() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT], check=True, capture_output=True, text=True, timeout=120
        ).stdout.strip()
        for _ in range(2)
    }
    assert len(digests) == 1
    assert len(digests.pop()) == hashlib.sha256().digest_size * 2


def test_platform_choice() -> None:
    def answers(**renderers: str) -> object:
        def attempt(name: str) -> str:
            if name not in renderers:
                raise GLUnavailable("no driver")
            return renderers[name]

        return attempt

    gpu = answers(egl="NVIDIA H100", osmesa="llvmpipe")
    assert choose_platform(None, gpu) == GLPlatform("egl", "NVIDIA H100", "EGL reaches a GPU")  # type: ignore[arg-type]
    assert choose_platform(None, answers(egl="llvmpipe", osmesa="llvmpipe")).name == "osmesa"  # type: ignore[arg-type]
    alone = choose_platform(None, answers(egl="llvmpipe"))  # type: ignore[arg-type]
    assert (alone.name, alone.is_software) == ("egl", True)
    assert "osmesa: no driver" in alone.reason
    assert choose_platform("osmesa", gpu).name == "osmesa"  # type: ignore[arg-type]
    with pytest.raises(GLUnavailable, match="apt-get install"):
        choose_platform(None, answers())  # type: ignore[arg-type]

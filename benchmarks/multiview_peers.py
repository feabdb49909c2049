"""Other ways to draw views of objects, one process a way; run by the interpreter that has the library, without uvd.

`pyrender`: a new OffscreenRenderer for each view. `pyrender-kept`: one for all. `pyvista`: one off-screen plotter an
object. `blender`: Cycles with 128 samples, through bpy. All load the same OBJ files with textures, put three lights,
and draw 256x256 pixels from the same cameras, with one core. A way may draw some of the views only.

    python -P multiview_peers.py WAY JOB.json RESULT.json CORE
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 256
SAMPLES = 128
LIGHTS = ((0.55, 0.65, 0.75), (-0.8, 0.25, 0.45), (-0.15, 0.5, -0.9))
"""Directions towards the lights, +Y up."""

Camera = tuple[float, float, float, float]
"""Azimuth, elevation, distance in diameters, field of view; as uvd's."""
Views = Iterable[NDArray[np.uint8]]


def backward(camera: Camera) -> NDArray[np.float64]:
    """From what is looked at to the camera, of length 1."""
    azimuth, elevation = np.radians(camera[:2])
    return np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])


def sphere_of(points: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Middle of the bounding box of `(n, 3)` points, and the diameter of the sphere around it that holds them all."""
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    return center.astype(np.float64), 2 * float(np.linalg.norm(points - center, axis=1).max())


def pose(camera: Camera, center: NDArray[np.float64], diameter: float) -> NDArray[np.float64]:
    """`(4, 4)` camera to world, looking along -Z with +Y up."""
    back = backward(camera)
    right = np.array([np.cos(np.radians(camera[0])), 0.0, -np.sin(np.radians(camera[0]))])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
    matrix[:3, 3] = center + camera[2] * diameter * back
    return matrix


def looking_from(direction: tuple[float, float, float]) -> NDArray[np.float64]:
    """`(4, 4)` pose whose -Z points away from a direction."""
    back = np.asarray(direction) / np.linalg.norm(direction)
    right = np.cross((0.0, 1.0, 0.0), back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
    return matrix


def load_pyrender(path: str) -> tuple[Any, NDArray[np.float64], float]:
    """A pyrender scene, its middle and its diameter."""
    import pyrender
    import trimesh

    loaded = trimesh.load_scene(path, process=False)
    scene = pyrender.Scene(bg_color=[1.0] * 4, ambient_light=[0.3] * 3)
    for node in loaded.graph.nodes_geometry:
        transform, name = loaded.graph[node]
        scene.add(pyrender.Mesh.from_trimesh(loaded.geometry[name]), pose=transform)
    for direction in LIGHTS:
        scene.add(pyrender.DirectionalLight(intensity=2.5), pose=looking_from(direction))
    return scene, *sphere_of(loaded.to_geometry().vertices)


class Pyrender:
    """One renderer for each view, or one for all."""

    def __init__(self, kept: bool) -> None:
        setattr(np, "infty", np.inf)  # noqa: B010 - pyrender uses the name that numpy 2 dropped
        import pyrender

        self._new = lambda: pyrender.OffscreenRenderer(SIDE, SIDE)
        self._kept = self._new() if kept else None

    def load(self, path: str) -> Any:
        return load_pyrender(path)

    def draw(self, loaded: Any, cameras: list[Camera]) -> Views:
        import pyrender

        scene, center, diameter = loaded
        lens = pyrender.PerspectiveCamera(yfov=1.0, znear=0.1 * diameter, zfar=4 * diameter)
        eye = scene.add(lens)
        for camera in cameras:
            lens.yfov = np.radians(camera[3])
            scene.set_pose(eye, pose(camera, center, diameter))
            renderer = self._kept or self._new()
            try:
                pixels, _ = renderer.render(scene)
            except Exception:
                self._kept = self._kept and self._new()
                raise
            finally:
                if renderer is not self._kept:
                    renderer.delete()
            yield pixels


class Pyvista:
    """VTK's own importer of OBJ files with their materials."""

    def load(self, path: str) -> Any:
        import pyvista  # type: ignore[import-not-found]
        from vtkmodules.vtkIOImport import vtkOBJImporter  # type: ignore[import-not-found]

        plotter = pyvista.Plotter(off_screen=True, window_size=[SIDE, SIDE], lighting="none")
        plotter.set_background("white")
        importer = vtkOBJImporter()
        importer.SetFileName(path)
        importer.SetFileNameMTL(str(Path(path).with_suffix(".mtl")))
        importer.SetTexturePath(str(Path(path).parent))
        importer.SetRenderWindow(plotter.render_window)
        importer.Update()
        for direction in LIGHTS:
            plotter.add_light(pyvista.Light(position=direction, light_type="scene light", intensity=0.45))
        return plotter

    def draw(self, loaded: Any, cameras: list[Camera]) -> Views:
        import pyvista

        actors = loaded.renderer.GetActors()
        meshes = [
            pyvista.wrap(actors.GetItemAsObject(i).GetMapper().GetInput()) for i in range(actors.GetNumberOfItems())
        ]
        center, diameter = sphere_of(np.concatenate([mesh.points for mesh in meshes]))
        for camera in cameras:
            loaded.camera.focal_point = center
            loaded.camera.position = center + camera[2] * diameter * backward(camera)
            loaded.camera.up = (0.0, 1.0, 0.0)
            loaded.camera.view_angle = camera[3]
            loaded.renderer.ResetCameraClippingRange()
            yield np.asarray(loaded.screenshot(return_img=True))
        loaded.close()


class Blender:
    """Cycles on the CPU, without denoising."""

    def __init__(self, engine: str) -> None:
        import bpy  # type: ignore[import-not-found]

        self._bpy, self._engine = bpy, engine
        self._folder = tempfile.TemporaryDirectory()

    def load(self, path: str) -> Any:
        bpy = self._bpy
        bpy.ops.wm.read_factory_settings(use_empty=True)
        bpy.ops.wm.obj_import(filepath=path)
        scene = bpy.context.scene
        corners = [one.matrix_world @ v.co for one in scene.objects if one.type == "MESH" for v in one.data.vertices]
        points = np.array(corners)
        scene.render.engine = self._engine
        scene.render.resolution_x = scene.render.resolution_y = SIDE
        scene.render.threads_mode, scene.render.threads = "FIXED", 1
        scene.cycles.samples, scene.cycles.use_denoising = SAMPLES, False
        scene.render.film_transparent = True
        scene.world = bpy.data.worlds.new("world")
        for number, direction in enumerate(LIGHTS):
            lamp = bpy.data.objects.new(f"light{number}", bpy.data.lights.new(f"light{number}", "SUN"))
            lamp.data.energy = 2.5
            lamp.matrix_world = self._matrix(looking_from(direction))
            scene.collection.objects.link(lamp)
        # Blender's +Z is up: (x, y, z) there is (x, z, -y) here.
        return scene, *sphere_of(points[:, [0, 2, 1]] * (1, 1, -1))

    def _matrix(self, here: NDArray[np.float64]) -> Any:
        from mathutils import Matrix  # type: ignore[import-not-found]

        turn = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
        return Matrix((turn @ here).tolist())

    def draw(self, loaded: Any, cameras: list[Camera]) -> Views:
        bpy = self._bpy
        scene, center, diameter = loaded
        eye = bpy.data.objects.new("eye", bpy.data.cameras.new("eye"))
        eye.data.clip_end = 10 * diameter
        scene.collection.objects.link(eye)
        scene.camera = eye
        for camera in cameras:
            eye.data.angle = np.radians(camera[3])
            eye.matrix_world = self._matrix(pose(camera, center, diameter))
            scene.render.filepath = f"{self._folder.name}/view.png"
            bpy.ops.render.render(write_still=True)
            image = bpy.data.images.load(scene.render.filepath)
            rgba = np.array(image.pixels[:], dtype=np.float32).reshape(SIDE, SIDE, 4)[::-1]
            bpy.data.images.remove(image)
            over = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
            yield (over * 255).round().astype(np.uint8)


WAYS: dict[str, Callable[[], Any]] = {
    "pyrender": lambda: Pyrender(kept=False),
    "pyrender-kept": lambda: Pyrender(kept=True),
    "pyvista": Pyvista,
    "blender": lambda: Blender("CYCLES"),
}


def measure(way: Any, job: dict[str, Any], sheet: str) -> dict[str, Any]:
    """Seconds of loading and of drawing by object, and why objects were not drawn."""
    cameras = [tuple(camera) for camera in job["cameras"]]
    result: dict[str, Any] = {"load": {}, "draw": {}, "failed": {}}
    pictures = {}
    list(way.draw(way.load(job["warm_up"]), cameras[:1]))  # what a library does once is not measured
    for path in job["objects"]:
        start = time.process_time()
        try:
            loaded = way.load(path)
            middle = time.process_time()
            views = list(way.draw(loaded, cameras))
        except Exception as error:  # noqa: BLE001 - whatever a library raises on an object is the finding
            result["failed"][path] = f"{type(error).__name__}: {error}"[:120]
            continue
        result["load"][path], result["draw"][path] = middle - start, time.process_time() - middle
        pictures[path] = views[0][..., :3]
    np.savez_compressed(sheet, *pictures.values())
    return result


def main() -> None:
    way, job, result, core = sys.argv[1:5]
    os.sched_setaffinity(0, [int(core)])
    found = measure(WAYS[way](), json.loads(Path(job).read_text()), f"{result}.npz")
    Path(result).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # drivers may crash while they are unloaded, after the work is done


if __name__ == "__main__":
    main()

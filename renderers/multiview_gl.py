"""Draws prepared parts with pyrender: one upload an object, one draw a view, one context a process.

pyrender supplies buffers, textures and the draw loop; what decides pixels is fixed here: the shader, the order of
drawing (pyrender keeps meshes and lights in sets, whose order changes between runs), and a framebuffer of twice the
size, shrunk by area averaging, which looks the same on every platform (OSMesa has no multisampling). Distances and
normals come from a second pass with one sample in the middle of each pixel: no value mixes two surfaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.renderers.gl import create_context, probe_gl
from uvd.renderers.multiview_camera import Camera
from uvd.renderers.multiview_scene import OBJECT_RADIUS, Part

SUPERSAMPLING = 2
"""Samples a side of a pixel: 4 samples a pixel."""

NEAR_MARGIN = 1.2 * OBJECT_RADIUS


@dataclass(frozen=True, slots=True)
class ObjectViews:
    """The views of one object.

    Attributes:
        pixels: `(N, size, size, 3)` uint8 RGB.
        coverage: `(N, size, size)` uint8, 255 where the object covers the whole pixel.
        depth: `(N, size, size)` float32, distance along the optical axis to what is first hit behind the middle of the
            pixel, in object diameters; 0 where nothing is. None if it was not asked for.
        normals: `(N, size, size, 3)` float32 unit vectors there, x right, y up, z to the camera, without bump maps; 0
            where nothing is. None if they were not asked for.
    """

    pixels: NDArray[np.uint8]
    coverage: NDArray[np.uint8]
    depth: NDArray[np.float32] | None = None
    normals: NDArray[np.float32] | None = None


class ViewRenderer:
    """A context and its renderer; use `view_renderer(size)`, which keeps one a process."""

    def __init__(self, size: int) -> None:
        platform = probe_gl().name
        self.size = size
        self._context = create_context(platform)
        self._renderer = _pyrender_renderer(size)

    def draw(
        self,
        parts: Sequence[Part],
        cameras: Sequence[Camera],
        background: tuple[int, int, int],
        geometry: bool = False,
    ) -> ObjectViews:
        """Draws all cameras' views, with depth and normals if `geometry`; `parts` come opaque first."""
        import pyrender

        self._context.make_current()
        scene = pyrender.Scene(bg_color=[*(channel / 255 for channel in background), 0.0], ambient_light=[0.0] * 3)
        nodes = [scene.add(pyrender.Mesh([_primitive(part)])) for part in parts]
        eye = scene.add(pyrender.PerspectiveCamera(yfov=1.0, aspectRatio=1.0))
        try:
            views = [self._view(scene, eye, camera, parts, nodes) for camera in cameras]
            maps = self._geometry(scene, eye, cameras, nodes) if geometry else None
        finally:
            self._renderer.release()
        pixels, coverage = (np.stack(images) for images in zip(*views, strict=True))
        if maps is None:
            return ObjectViews(pixels, coverage)
        return ObjectViews(pixels, coverage, depth=maps[..., 3].copy(), normals=maps[..., :3].copy())

    def _view(
        self, scene: Any, eye: Any, camera: Camera, parts: Sequence[Part], nodes: Sequence[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        distances = [_distance(part, camera) if part.surface.blend else np.inf for part in parts]
        order = sorted(range(len(parts)), key=lambda i: (-distances[i], i))
        rgba = self._draw(scene, eye, camera, [nodes[i] for i in order])
        size = (self.size, self.size)
        _, covered = cv2.threshold(cv2.extractChannel(rgba, 3), 0, 255, cv2.THRESH_BINARY)
        pixels, coverage = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (rgba, covered))
        return pixels[::-1, :, :3].astype(np.uint8), coverage[::-1].astype(np.uint8)

    def _geometry(self, scene: Any, eye: Any, cameras: Sequence[Camera], nodes: Sequence[Any]) -> NDArray[np.float32]:
        """`(N, size, size, 4)`: normals in the camera's axes, and distances; translucent surfaces count as solid."""
        scene.bg_color = [0.0] * 4
        for node in nodes:
            node.mesh.primitives[0].material.alphaMode = "OPAQUE"
        self._renderer.aim(geometry=True)
        try:
            return np.stack([self._draw(scene, eye, camera, nodes)[::-1] for camera in cameras])
        finally:
            self._renderer.aim(geometry=False)

    def _draw(self, scene: Any, eye: Any, camera: Camera, order: Sequence[Any]) -> NDArray[Any]:
        """`(side, side, 4)`, the lowest row first."""
        eye.camera.yfov = np.radians(camera.field_of_view)
        eye.camera.zfar = camera.radius + NEAR_MARGIN
        eye.camera.znear = max(camera.radius - NEAR_MARGIN, 0.02)
        scene.set_pose(eye, camera.pose)
        self._renderer.draw_order = order
        drawn: NDArray[Any] = self._renderer.render(scene, _offscreen())
        return drawn


@lru_cache(maxsize=2)
def view_renderer(size: int) -> ViewRenderer:
    """The process's renderer for views of `size` x `size` pixels.

    Raises:
        GLUnavailable: when the machine cannot draw.
    """
    return ViewRenderer(size)


def _distance(part: Part, camera: Camera) -> float:
    return float(np.linalg.norm(part.center - camera.position))


def _offscreen() -> int:
    from pyrender.constants import RenderFlags

    return int(RenderFlags.OFFSCREEN)


def _primitive(part: Part) -> Any:
    import pyrender

    surface = part.surface
    textures: dict[int, Any] = {}

    def texture(pixels: NDArray[np.uint8] | None) -> Any:
        if pixels is None:
            return None
        if id(pixels) not in textures:
            textures[id(pixels)] = pyrender.Texture(source=pixels, source_channels="RGBA")
        return textures[id(pixels)]

    material = pyrender.MetallicRoughnessMaterial(
        baseColorFactor=np.asarray(surface.base_color),
        metallicFactor=surface.metallic,
        roughnessFactor=min(surface.roughness, 1.0),
        emissiveFactor=np.asarray(surface.emissive),
        baseColorTexture=texture(surface.base_texture),
        metallicRoughnessTexture=texture(surface.metallic_roughness_texture),
        normalTexture=texture(surface.normal_texture),
        occlusionTexture=texture(surface.occlusion_texture),
        emissiveTexture=texture(surface.emissive_texture),
        alphaMode="BLEND" if surface.blend else "OPAQUE",
        alphaCutoff=surface.alpha_cutoff,
        doubleSided=True,
    )
    primitive = pyrender.Primitive(
        positions=part.positions,
        normals=part.normals,
        texcoord_0=part.uv,
        color_0=part.colors,
        indices=part.indices,
        material=material,
        mode=pyrender.constants.GLTF.TRIANGLES,
    )
    primitive.unlit = surface.unlit
    return primitive


@dataclass(frozen=True, slots=True)
class _Target:
    """A framebuffer of `side` x `side` pixels with four channels of `dtype`."""

    framebuffer: int
    side: int
    dtype: type[np.generic]

    @classmethod
    def create(cls, side: int, dtype: type[np.generic]) -> _Target:
        """In the current context, for as long as that lives."""
        from OpenGL import GL as gl  # noqa: N811 - the usual name

        buffers = gl.glGenRenderbuffers(2)
        framebuffer = gl.glGenFramebuffers(1)
        gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, framebuffer)
        for buffer, kind, attachment in (
            (buffers[0], gl.GL_RGBA8 if dtype is np.uint8 else gl.GL_RGBA32F, gl.GL_COLOR_ATTACHMENT0),
            (buffers[1], gl.GL_DEPTH_COMPONENT24, gl.GL_DEPTH_ATTACHMENT),
        ):
            gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, buffer)
            gl.glRenderbufferStorage(gl.GL_RENDERBUFFER, kind, side, side)
            gl.glFramebufferRenderbuffer(gl.GL_FRAMEBUFFER, attachment, gl.GL_RENDERBUFFER, buffer)
        return cls(int(framebuffer), side, dtype)

    def read(self) -> NDArray[Any]:
        """`(side, side, 4)`, the lowest row first."""
        from OpenGL import GL as gl  # noqa: N811 - the usual name

        kind = gl.GL_UNSIGNED_BYTE if self.dtype is np.uint8 else gl.GL_FLOAT
        gl.glBindFramebuffer(gl.GL_READ_FRAMEBUFFER, self.framebuffer)
        data = gl.glReadPixels(0, 0, self.side, self.side, gl.GL_RGBA, kind)
        return np.frombuffer(data, dtype=self.dtype).reshape(self.side, self.side, 4)


def _pyrender_renderer(size: int) -> Any:
    """pyrender's `Renderer` with the parts that decide pixels replaced; needs a current context."""
    from pyrender.renderer import Renderer

    from uvd.renderers.multiview_shader import program_cache

    class Drawer(Renderer):
        draw_order: Sequence[Any] = ()
        _meshes: set[Any]
        _mesh_textures: set[Any]

        def prepare(self) -> None:
            self._program_cache = program_cache()
            self._targets = (_Target.create(size * SUPERSAMPLING, np.uint8), _Target.create(size, np.float32))
            self.aim(geometry=False)

        def aim(self, geometry: bool) -> None:
            """What `render` draws from here on: colours, or normals and distances."""
            self._target = self._targets[int(geometry)]
            self._program_cache.geometry = geometry
            self.viewport_width = self.viewport_height = self._target.side

        def _sorted_mesh_nodes(self, scene: Any) -> Sequence[Any]:
            return self.draw_order

        def _compute_max_n_lights(self, flags: int) -> list[int]:
            return [1, 1, 1]

        def _get_primitive_program(self, primitive: Any, flags: int, program_flags: int) -> Any:
            self._program_cache.alpha_test = primitive.material.alphaCutoff > 0
            return super()._get_primitive_program(primitive, flags, program_flags)

        def _bind_lighting(self, scene: Any, program: Any, node: Any, flags: int) -> None:
            """The lights are constants of the shader."""

        def _bind_and_draw_primitive(self, primitive: Any, pose: Any, program: Any, flags: int) -> None:
            blended = primitive.material.alphaMode == "BLEND"
            program.set_uniform("alpha_cutoff", float(primitive.material.alphaCutoff))
            program.set_uniform("opaque", 0.0 if blended else 1.0)
            program.set_uniform("unlit", float(primitive.unlit))
            super()._bind_and_draw_primitive(primitive, pose, program, flags)

        def _configure_main_framebuffer(self) -> None:
            self._main_fb_ms = self._target.framebuffer

        def _read_main_framebuffer(self, scene: Any, flags: int) -> NDArray[Any]:
            return self._target.read()

        def release(self) -> None:
            """Frees the buffers and textures of the object just drawn; shaders and framebuffers stay."""
            for mesh in self._meshes:
                for primitive in mesh.primitives:
                    primitive.delete()
            for texture in self._mesh_textures:
                texture.delete()
            self._meshes, self._mesh_textures, self.draw_order = set(), set(), ()

    drawer = Drawer(size, size)
    drawer.prepare()
    return drawer

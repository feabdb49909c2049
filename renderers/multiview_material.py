"""Materials of trimesh as one metallic-roughness surface with small RGBA textures and linear colours.

glTF factors are linear (its specification, section 3.9); colours of OBJ's MTL and of PLY are taken as displayed (sRGB).
Texture sizes are checked before decoding, and textures shrink to 1024 pixels a side: a view shows 256.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from uvd.sequences.reject import Reason, RejectedInput

MAX_TEXTURE_PIXELS = 1 << 26
"""8192 x 8192, a texture; four times as much an object."""

TEXTURE_SIZE = 1024
NEUTRAL_GREY = 0.42
"""Linear reflectance of parts without any colour; about 0.68 as displayed."""

MAX_METALLIC = 0.85
"""A pure metal shows nothing but its surroundings, of which there are few here."""

UNLIT = "uvd_unlit"
"""Key of a mesh's metadata; True if its material is unlit, which trimesh's materials do not hold."""

Texture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A metallic-roughness material (glTF 2.0, section 3.9). Textures are `(h, w, 4)` uint8 RGBA, first row on top.

    `alpha_cutoff` drops fragments below it; `blend` mixes the rest with what lies behind; otherwise alpha ends there.
    """

    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    metallic: float = 0.0
    roughness: float = 0.8
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    alpha_cutoff: float = 0.0
    blend: bool = False
    unlit: bool = False
    """The base colour is shown as it is, without light (KHR_materials_unlit)."""
    base_texture: Texture | None = None
    metallic_roughness_texture: Texture | None = None
    """Roughness in R, metalness in G."""
    normal_texture: Texture | None = None
    occlusion_texture: Texture | None = None
    emissive_texture: Texture | None = None

    @property
    def is_textured(self) -> bool:
        textures = (
            self.base_texture,
            self.metallic_roughness_texture,
            self.normal_texture,
            self.occlusion_texture,
            self.emissive_texture,
        )
        return any(texture is not None for texture in textures)


@dataclass(frozen=True, slots=True)
class Appearance:
    """How a mesh of n vertices and m faces looks: `(n, 2)` uv, `(n, 4)` or `(m, 4)` float32 RGBA colours in [0, 1]."""

    surface: Surface
    uv: NDArray[np.float32] | None = None
    vertex_colors: NDArray[np.float32] | None = None
    face_colors: NDArray[np.float32] | None = None


def to_linear(srgb: NDArray[np.floating]) -> NDArray[np.float32]:
    """sRGB in [0, 1] to linear light (IEC 61966-2-1)."""
    values = np.clip(np.asarray(srgb, dtype=np.float64), 0, 1)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


class SurfaceReader:
    """Reads the surfaces of one object; each material and each texture is converted once."""

    def __init__(self) -> None:
        self._textures: dict[int, Texture] = {}
        self._surfaces: dict[tuple[int, bool, bool], Surface] = {}
        self._kept: list[Any] = []  # ids stay unique as long as their objects live
        self._pixels = 0
        self._grey = Surface(base_color=(NEUTRAL_GREY, NEUTRAL_GREY, NEUTRAL_GREY, 1.0))
        self._white = Surface()

    def read(self, mesh: trimesh.Trimesh) -> Appearance:
        """How a mesh looks; coordinates and colours of a wrong length count as absent."""
        visual = mesh.visual
        if visual.kind == "texture":
            uv = _texture_coordinates(visual.uv, len(mesh.vertices))
            unlit = mesh.metadata.get(UNLIT) is True
            surface = self._surface(visual.material, textured=uv is not None, unlit=unlit)
            colors = _colors(visual.vertex_attributes.get("color"), len(mesh.vertices))
            return Appearance(surface, uv if surface.is_textured else None, vertex_colors=colors)
        if visual.kind == "vertex":
            return Appearance(self._white, vertex_colors=_colors(visual.vertex_colors, len(mesh.vertices)))
        if visual.kind == "face":
            return Appearance(self._white, face_colors=_colors(visual.face_colors, len(mesh.faces)))
        return Appearance(self._grey)

    def _surface(self, material: Any, textured: bool, unlit: bool) -> Surface:
        key = (id(material), textured, unlit)
        if key not in self._surfaces:
            self._kept.append(material)
            if isinstance(material, PBRMaterial):
                surface = self._metallic_roughness(material, textured)
            elif isinstance(material, SimpleMaterial):
                surface = self._simple(material, textured)
            else:
                surface = self._grey
            self._surfaces[key] = replace(surface, unlit=unlit)
        return self._surfaces[key]

    def _metallic_roughness(self, material: PBRMaterial, textured: bool) -> Surface:
        def texture(image: Any) -> Texture | None:
            return self._texture(image) if textured and image is not None else None

        packed = texture(material.metallicRoughnessTexture)
        surface = Surface(
            base_color=_rgba(material.baseColorFactor),
            metallic=min(_number(material.metallicFactor, 1.0), MAX_METALLIC),
            roughness=_number(material.roughnessFactor, 1.0),
            emissive=_rgb(material.emissiveFactor),
            base_texture=texture(material.baseColorTexture),
            metallic_roughness_texture=None if packed is None else np.ascontiguousarray(packed[..., [1, 2, 0, 3]]),
            normal_texture=texture(material.normalTexture),
            occlusion_texture=texture(material.occlusionTexture),
            emissive_texture=texture(material.emissiveTexture),
        )
        mode = material.alphaMode or "OPAQUE"
        if mode == "MASK":
            return replace(surface, alpha_cutoff=_number(material.alphaCutoff, 0.5))
        return _with_blending(surface) if mode == "BLEND" else surface

    def _simple(self, material: SimpleMaterial, textured: bool) -> Surface:
        texture = self._texture(material.image) if textured and material.image is not None else None
        color = np.asarray(material.diffuse, dtype=np.float64)[:3] / 255
        if "kd" not in material.kwargs and texture is None:
            linear = np.full(3, NEUTRAL_GREY)
        elif texture is not None and ("kd" not in material.kwargs or color.max() < 0.05):
            linear = np.ones(3)  # exporters write a black colour under a texture and mean the texture
        else:
            linear = to_linear(color)
        alpha = _number(material.kwargs.get("d"), 1.0 - _number(material.kwargs.get("tr"), 0.0))
        shine = max(_number(material.glossiness, 10.0), 0.0)
        surface = Surface(
            base_color=(float(linear[0]), float(linear[1]), float(linear[2]), alpha if alpha > 0.01 else 1.0),
            roughness=float((2 / (shine + 2)) ** 0.25),
            base_texture=texture,
        )
        return _with_blending(surface)

    def _texture(self, image: Image.Image) -> Texture:
        if id(image) not in self._textures:
            self._kept.append(image)
            width, height = image.size
            self._pixels += width * height
            if width * height > MAX_TEXTURE_PIXELS or self._pixels > 4 * MAX_TEXTURE_PIXELS:
                raise RejectedInput(Reason.TOO_COMPLEX, f"textures of {width}x{height}, {self._pixels} pixels in all")
            try:
                self._textures[id(image)] = _small_rgba(image)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise RejectedInput(Reason.NOT_IMAGE, f"texture: {error}") from error
        return self._textures[id(image)]


def _small_rgba(image: Image.Image) -> Texture:
    image.draft("RGB", (TEXTURE_SIZE, TEXTURE_SIZE))
    if image.mode in ("I;16", "I", "F"):  # 16-bit grey: PIL's own conversion would cut it off at 255
        values = np.asarray(image, dtype=np.float64)
        peak = 65535.0 if image.mode != "F" else max(float(values.max()), 1.0)
        image = Image.fromarray(np.clip(values / peak * 255, 0, 255).astype(np.uint8))
    rgba = np.array(image.convert("RGBA"), dtype=np.uint8)
    height, width = rgba.shape[:2]
    scale = TEXTURE_SIZE / max(width, height)
    if scale < 1:  # each channel on its own: opaque materials use the colours under any alpha
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgba = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return rgba


def _with_blending(surface: Surface) -> Surface:
    """Blending only where something is translucent: many exporters mark opaque objects as blended."""
    translucent = surface.base_color[3] < 0.99
    if surface.base_texture is not None:
        translucent |= bool((surface.base_texture[..., 3] < 252).any())
    return replace(surface, blend=True, alpha_cutoff=0.03) if translucent else surface


def _texture_coordinates(uv: Any, count: int) -> NDArray[np.float32] | None:
    if uv is None or np.shape(uv) != (count, 2):
        return None
    return np.nan_to_num(np.asarray(uv, dtype=np.float32), posinf=0, neginf=0)


def _colors(values: Any, count: int) -> NDArray[np.float32] | None:
    if values is None or np.ndim(values) != 2 or len(values) != count or np.shape(values)[1] not in (3, 4):
        return None
    array = np.asarray(values)
    scale = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    colors = np.ones((count, 4), dtype=np.float32)
    colors[:, : array.shape[1]] = np.clip(np.nan_to_num(array.astype(np.float32) / scale), 0, 1)
    return colors


def _number(value: Any, default: float) -> float:
    try:
        number = float(value[0] if isinstance(value, list | tuple) else value)
    except (TypeError, ValueError, IndexError):
        return default
    return min(max(number, 0.0), 1000.0) if np.isfinite(number) else default


def _rgba(value: Any) -> tuple[float, float, float, float]:
    if value is None:
        return 1.0, 1.0, 1.0, 1.0
    array = np.asarray(value)
    floats = array / 255 if array.dtype.kind in "iu" else array
    r, g, b, a = np.clip(np.nan_to_num(np.append(floats.astype(np.float64), 1.0)[:4]), 0, 1)
    return float(r), float(g), float(b), float(a)


def _rgb(value: Any) -> tuple[float, float, float]:
    if value is None:
        return 0.0, 0.0, 0.0
    return _rgba(np.asarray(value, dtype=np.float64)[:3])[:3]

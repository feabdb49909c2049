"""Pixels of any mode and colour space → sRGB.

ICC profiles are applied through littleCMS (perceptual intent). A profile that is damaged, over 4 MB, or made for
another kind of pixels than the image has is ignored, as browsers do: the pixels then count as sRGB. One that changes no
colour by more than two levels (all variants of sRGB) costs nothing after its first use in a process.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from uvd.sources.image_headers import MAX_PROFILE_BYTES

NEGLIGIBLE = 2
"""Levels of 255; below it a profile counts as sRGB."""
BAND_PIXELS = 1 << 22
_PIXELS_OF_SPACE = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def to_rgb(image: Image.Image, profile: bytes = b"") -> NDArray[np.uint8]:
    """Any of Pillow's images → `(H, W, 3)` uint8 sRGB; alpha is laid over white.

    Large images are converted in bands, so beside the image and the result memory is a few bands.

    Raises:
        OSError, ValueError, SyntaxError, EOFError: Pillow's, for damaged pixels or a mode that it cannot convert.
    """
    image.load()
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    if rows >= height:
        return _band_to_rgb(image, profile)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = _band_to_rgb(image.crop((0, top, width, bottom)), profile)
    return pixels


def _band_to_rgb(image: Image.Image, profile: bytes) -> NDArray[np.uint8]:
    if image.mode in _DEEP:
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((values / 257.0).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        colours = Image.fromarray(apply_profile(np.asarray(rgba.convert("RGB")), profile))
        colours.putalpha(rgba.getchannel("A"))
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, colours).convert("RGB"))
    if profile and image.mode in ("L", "CMYK"):
        transform = _transform(profile, image.mode)
        if transform is not None:
            return np.asarray(transform.apply(image))
    return apply_profile(np.asarray(image.convert("RGB")), profile)


def apply_profile(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB of the profile's space → sRGB; as it is without a profile for RGB that can be used."""
    transform = _transform(profile, "RGB") if profile else None
    return pixels if transform is None else np.asarray(transform.apply(Image.fromarray(pixels)))


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    return _build_transform(profile, mode) if len(profile) <= MAX_PROFILE_BYTES else None


@lru_cache(maxsize=8)
def _build_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile for pixels of `mode` to sRGB; None if it cannot be used, or changes next to nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PIXELS_OF_SPACE.get(source.profile.xcolor_space) != mode:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB" and _changes_little(transform):
            return None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(27, 27, 3)
    changed = np.asarray(transform.apply(Image.fromarray(grid)))
    return bool(np.abs(changed.astype(np.int16) - grid).max() <= NEGLIGIBLE)

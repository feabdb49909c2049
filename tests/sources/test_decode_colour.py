"""Colour profiles lead to sRGB, and a bad profile never costs the photo.

References follow from the definition of each space (IEC 61966-2-1, Adobe RGB 1998), not from the code under test.
"""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tests_support import smooth_photo

from uvd.sources import colour
from uvd.sources.decode import decode_image
from uvd.sources.image_headers import MAX_PROFILE_BYTES

PHOTO = smooth_photo(4, 60, 90)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMS = [("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]


def encoded(image: Image.Image | NDArray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: bytes, columns: dict[bytes, tuple[float, float, float]], gamma: float) -> bytes:
    """A matrix (or grey) profile of ICC version 2, with one gamma for all channels."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {name: b"XYZ \0\0\0\0" + s15(*xyz) for name, xyz in columns.items()}
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + s15(0.9642, 1.0, 0.8249)
    tags |= dict.fromkeys((b"kTRC",) if space == b"GRAY" else (b"rTRC", b"gTRC", b"bTRC"), curve)
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", offset + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + s15(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


# Primaries of Adobe RGB (1998) and of sRGB, adapted to D50 as profiles hold them.
ADOBE_D50 = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}
SRGB_D50 = {
    b"rXYZ": (0.43607, 0.22249, 0.01392),
    b"gXYZ": (0.38515, 0.71687, 0.09708),
    b"bXYZ": (0.14307, 0.06061, 0.71410),
}
ADOBE = profile(b"RGB ", ADOBE_D50, 563 / 256)


def adobe_to_srgb(pixels: NDArray) -> NDArray:
    linear = (pixels / 255.0) ** (563 / 256)
    to_xyz, from_xyz = np.array(list(ADOBE_D50.values())).T, np.linalg.inv(np.array(list(SRGB_D50.values())).T)
    linear = (linear @ to_xyz.T @ from_xyz.T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(("form", "options"), FORMS, ids=[form for form, _ in FORMS])
def test_adobe_rgb_becomes_srgb(form, options):
    stored, _ = decode_image(encoded(PHOTO, form, **options))
    pixels, _ = decode_image(encoded(PHOTO, form, icc_profile=ADOBE, **options))
    assert np.abs(pixels - adobe_to_srgb(stored)).max() <= 3
    assert np.abs(pixels.astype(int) - stored).mean() > 5


@pytest.mark.parametrize(("form", "options"), FORMS, ids=[form for form, _ in FORMS])
def test_srgb_changes_not_one_value(form, options):
    plain, _ = decode_image(encoded(PHOTO, form, **options))
    for variant in (SRGB, profile(b"RGB ", SRGB_D50, 2.2)[:-1] + b"\1"):
        pixels, _ = decode_image(encoded(PHOTO, form, icc_profile=variant, **options))
        assert np.abs(pixels.astype(int) - plain).max() <= (0 if variant is SRGB else 12)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"no profile at all", id="nonsense"),
        pytest.param(ADOBE[:300], id="cut"),
        pytest.param(ADOBE[:128] + struct.pack(">I", 2**31) + ADOBE[132:], id="two-billion-tags"),
        pytest.param(ADOBE[:16] + b"CMYK" + ADOBE[20:], id="for-cmyk"),
        pytest.param(ADOBE[:16] + b"GRAY" + ADOBE[20:], id="for-grey"),
    ],
)
@pytest.mark.parametrize(("form", "options"), FORMS, ids=[form for form, _ in FORMS])
def test_a_bad_profile_is_ignored(form, options, bad):
    plain, _ = decode_image(encoded(PHOTO, form, **options))
    assert np.array_equal(decode_image(encoded(PHOTO, form, icc_profile=bad, **options))[0], plain)


def test_a_profile_over_the_cap_is_ignored():
    plain, _ = decode_image(encoded(PHOTO, "PNG"))
    huge = ADOBE + np.random.default_rng(0).bytes(MAX_PROFILE_BYTES)
    assert np.array_equal(decode_image(encoded(PHOTO, "PNG", icc_profile=huge))[0], plain)
    assert np.array_equal(decode_image(encoded(PHOTO, "WEBP", lossless=True, icc_profile=huge))[0], plain)


def test_a_profile_in_several_segments_in_any_order_is_put_together():
    data = encoded(PHOTO, "JPEG", quality=100, subsampling=0)
    half = len(ADOBE) // 2
    pieces = [b"ICC_PROFILE\0" + bytes((number, 2)) + part for number, part in ((2, ADOBE[half:]), (1, ADOBE[:half]))]
    segments = b"".join(b"\xff\xe2" + struct.pack(">H", len(piece) + 2) + piece for piece in pieces)
    pixels, _ = decode_image(data[:2] + segments + data[2:])
    stored, _ = decode_image(data)
    assert np.abs(pixels - adobe_to_srgb(stored)).max() <= 3


def test_a_profile_is_applied_below_transparency():
    rgba = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    rgba[:30, :, 3] = 0
    pixels, _ = decode_image(encoded(rgba, "PNG", icc_profile=ADOBE))
    assert (pixels[:30] == 255).all()
    assert np.abs(pixels[30:] - adobe_to_srgb(PHOTO[30:])).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_grey_profiles_are_applied(form):
    linear = profile(b"GRAY", {}, 1.0)
    grey = Image.new("L", (64, 64), 55)
    pixels, _ = decode_image(encoded(grey, form, icc_profile=linear))
    # Linear light of 55/255 is 128 in sRGB.
    assert np.abs(pixels.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("scale_to", [None, 64])
@pytest.mark.parametrize("progressive", [False, True])
def test_cmyk_jpegs_become_rgb_at_any_scale(scale_to, progressive):
    cmyk = Image.merge("CMYK", [Image.new("L", (256, 256), value) for value in (0, 255, 255, 0)])
    cmyk.paste((255, 0, 0, 0), (128, 0, 256, 256))
    data = encoded(cmyk, "JPEG", quality=95, progressive=progressive)
    pixels, size = decode_image(data, scale_to=scale_to)
    assert size == (256, 256)
    assert pixels.shape == ((256, 256, 3) if scale_to is None else (64, 64, 3))
    middle = pixels.shape[1] // 2
    assert np.abs(pixels[:, : middle - 8].astype(int) - (255, 0, 0)).max() <= 8
    assert np.abs(pixels[:, middle + 8 :].astype(int) - (0, 255, 255)).max() <= 8


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grey_files_are_grey(form):
    grey = PHOTO[..., 1]
    pixels, _ = decode_image(encoded(grey, form, quality=100))
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].astype(int) - grey).max() <= (0 if form == "PNG" else 4)


def test_sixteen_bit_colour_keeps_its_high_bytes():
    deep = (PHOTO.astype(np.uint16) << 8) + 99
    ok, data = cv2.imencode(".png", deep[..., ::-1])
    assert ok
    assert np.array_equal(decode_image(data.tobytes())[0], PHOTO)


def test_a_profile_is_prepared_once():
    colour._build_transform.cache_clear()
    data = encoded(PHOTO, "PNG", icc_profile=ADOBE)
    for _ in range(5):
        decode_image(data)
    assert colour._build_transform.cache_info().misses == 1

"""Shortcuts do not hurt: scaled decoding and cheap filters against a full decode and Pillow's Lanczos."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from uvd.sequences import Seeds, fit
from uvd.sources import source_class
from uvd.sources.base import SourceConfig
from uvd.sources.decode import decode_image
from uvd.tokenize.metrics import ssim

SIZES = [(1920, 1080), (1024, 768), (640, 480), (513, 700), (299, 450)]


TYPICAL, TEXTURED = 1.3, 1.0
"""Slopes of the amplitude spectrum: the median of real photos at these sizes, and that of their most textured tenth."""


def natural_photo(seed: int, width: int, height: int, slope: float = TYPICAL) -> NDArray[np.uint8]:
    """Noise whose amplitude falls as a power of frequency, as in photographs, with some hard edges, in colour."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    planes = []
    shared = rng.normal(size=(height, width))
    for _ in range(3):
        noise = 0.8 * shared + 0.4 * rng.normal(size=(height, width))
        noise = np.fft.irfft2(np.fft.rfft2(noise) / frequency**slope, (height, width))
        planes.append(noise / noise.std() * 45 + 120)
    photo = np.stack(planes, axis=-1)
    y, x = np.mgrid[:height, :width]
    for _ in range(12):
        angle, place = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8, 2) * (width, height)
        side = (x - place[0]) * np.cos(angle) + (y - place[1]) * np.sin(angle)
        near = np.hypot(x - place[0], y - place[1]) < min(width, height) / 6
        photo[(side > 0) & near] += rng.normal(0, 40, 3)
    return photo.clip(0, 255).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 88, **options})
    return buffer.getvalue()


def picture(data: bytes, resample: str, scale_to: int | None) -> NDArray[np.uint8]:
    pixels, _ = decode_image(data, scale_to=scale_to)
    return fit(pixels.shape[1], pixels.shape[0], resample=resample).image(pixels)  # type: ignore[arg-type]


def lanczos(data: bytes, reduction: int) -> NDArray[np.uint8]:
    """The reference: the square that is cut out at this reduction, from the full picture."""
    image = Image.open(io.BytesIO(data))
    width, height = image.width // reduction, image.height // reduction
    side = min(width, height)
    left, top = (width - side) // 2 * reduction, (height - side) // 2 * reduction
    square = image.crop((left, top, left + side * reduction, top + side * reduction))
    return np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("size", SIZES)
def test_fast_pictures_are_like_the_exact_ones(size):
    reduction = max(factor for factor in (1, 2, 4, 8) if min(size) // factor >= 256)
    for seed in range(3):
        data = jpeg(natural_photo(seed, *size))
        assert ssim(picture(data, "fast", 256), lanczos(data, reduction)) >= 0.98


@pytest.mark.parametrize("size", SIZES)
def test_textured_pictures_lose_more_but_not_much(size):
    """The floor of `fast` is lower than 0.98: with real photos it was 0.947."""
    reduction = max(factor for factor in (1, 2, 4, 8) if min(size) // factor >= 256)
    data = jpeg(natural_photo(0, *size, slope=TEXTURED))
    assert ssim(picture(data, "fast", 256), lanczos(data, reduction)) >= 0.95


@pytest.mark.parametrize("size", SIZES)
def test_area_pictures_are_like_the_exact_ones(size):
    data = jpeg(natural_photo(5, *size))
    assert ssim(picture(data, "area", None), lanczos(data, 1)) >= 0.98


@pytest.mark.parametrize("size", SIZES)
def test_lanczos_is_pillows_own_on_the_full_picture(size):
    data = jpeg(natural_photo(6, *size))
    assert np.array_equal(picture(data, "lanczos", None), lanczos(data, 1))


def test_the_measure_sees_a_bad_shortcut():
    """Every fourth pixel, without a filter: what a careless shortcut would do."""
    photo = natural_photo(0, 1024, 1024)
    data = jpeg(photo)
    assert ssim(np.ascontiguousarray(photo[::4, ::4]), lanczos(data, 1)) < 0.9


@pytest.mark.parametrize(
    ("size", "scale_to", "decoded"),
    [
        ((1920, 1080), 256, (480, 270)),
        ((1024, 768), 256, (512, 384)),
        ((640, 480), 256, (640, 480)),
        ((513, 515), 256, (256, 257)),
        ((511, 900), 256, (511, 900)),
        ((4100, 2049), 256, (512, 256)),
        ((1024, 768), 366, (512, 384)),
        ((1024, 768), None, (1024, 768)),
    ],
)
@pytest.mark.parametrize("colour", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_as_small_as_may_be_and_no_smaller(size, scale_to, decoded, colour):
    buffer = io.BytesIO()
    Image.new(colour, size).save(buffer, "JPEG")
    pixels, full = decode_image(buffer.getvalue(), scale_to=scale_to)
    assert (pixels.shape[1], pixels.shape[0]) == decoded
    assert full == size


def test_a_reduction_leaves_nothing_out_of_place():
    """The left half stays the left half: rows and columns that a reduction cuts through are dropped, not kept."""
    photo = np.zeros((1031, 1037, 3), np.uint8)
    photo[:, :512] = 255
    pixels, _ = decode_image(jpeg(photo, quality=95), scale_to=256)
    assert pixels.shape == (257, 259, 3)
    assert pixels[:, :126].min() > 240
    assert pixels[:, 130:].max() < 15


@pytest.mark.parametrize(
    ("resample", "resize", "scale_to"),
    [
        ("area", "center_crop", None),
        ("lanczos", "random_crop", None),
        ("fast", "center_crop", 256),
        ("fast", "stretch", 256),
        ("fast", "random_crop", 366),
    ],
)
def test_the_config_says_how_small_a_photo_may_be_decoded(resample, resize, scale_to):
    config = SourceConfig(source="x", dataset="d", resample=resample, resize=resize)
    assert config.scale_to == scale_to


def test_random_crops_of_reduced_photos_are_never_enlarged():
    config = SourceConfig(source="x", dataset="d", resample="fast", resize="random_crop")
    assert config.scale_to is not None
    for draw in range(200):
        assert fit(config.scale_to, config.scale_to, "random_crop", Seeds(draw).generator()).width >= 256


def test_a_source_resamples_as_its_config_says(tmp_path):
    source_type = source_class("images")
    for resample in ("area", "fast", "lanczos"):
        config = source_type.config_class(dataset="d", input=tmp_path, resample=resample)
        assert source_type(config).transform(640, 480, Seeds(0)).resample == resample
    with pytest.raises(ValidationError):
        source_type.config_class(dataset="d", input=tmp_path, resample="nearest")


@pytest.mark.parametrize("resample", ["area", "fast", "lanczos"])
@pytest.mark.parametrize("size", [(256, 256), (100, 80), (256, 4000), (257, 300), (384, 384), (641, 640), (3000, 2000)])
def test_any_size_gives_a_picture_of_its_own_memory(resample, size):
    pixels = np.full((size[1], size[0], 3), 77, np.uint8)
    for resize in ("center_crop", "stretch"):
        out = fit(*size, resize, resample=resample).image(pixels)  # type: ignore[arg-type]
        assert out.shape == (256, 256, 3)
        assert (out == 77).all()
        assert out.flags.writeable
        assert not np.shares_memory(out, pixels)

"""Photos made worse: noise, low light, blur, low resolution, JPEG artefacts; what a photo is then restored from.

All arithmetic on pixels is in whole numbers and pixel noise comes from raw 16-bit draws, so a seed gives the same bytes
with and without SIMD. Ranges are drawn from uniformly, in the order in which the docstrings name them. Lengths are in
pixels of 256x256 pictures. Each costs 0.4 to 2 ms on one CPU core.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import ClassVar, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from uvd.renderers.canvas import check_rgb

Range = tuple[float, float]
"""Least and greatest value of a parameter."""
_QUANTILE_BITS, _STD_BITS, _LEVEL_BITS = 10, 6, 4
"""Binary places of normal quantiles, of standard deviations, and of levels between the two passes of enlarging."""


class Ranges(BaseModel):
    """Settings that are ranges: ascending, and within `BOUNDS`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    BOUNDS: ClassVar[dict[str, Range]] = {}

    @field_validator("*")
    @classmethod
    def _ascending_and_within(cls, value: object, info: ValidationInfo) -> object:
        bounds = cls.BOUNDS.get(info.field_name or "")
        if bounds is not None and isinstance(value, tuple) and not bounds[0] <= value[0] <= value[1] <= bounds[1]:
            raise ValueError(f"{value[0]} to {value[1]} is not an ascending range within {bounds[0]} to {bounds[1]}")
        return value


class Noise(Ranges):
    """How noisy."""

    BOUNDS: ClassVar[dict[str, Range]] = {"std": (0.5, 100), "photons": (2, 10_000)}

    kinds: tuple[Literal["gaussian", "shot"], ...] = Field(("gaussian", "shot"), min_length=1)
    """One is drawn for each picture."""
    std: Range = (8.0, 50.0)
    """gaussian: standard deviation in levels of 255."""
    photons: Range = (10.0, 120.0)
    """shot: photons of a channel at white. Poisson's noise, as a normal one of the same mean and variance; where under
    about 3 photons arrive, Poisson's is more skewed."""


class LowLight(Ranges):
    """How dark: level = 255 · gain · (level / 255) ^ gamma, and then the noise of a sensor with little light."""

    BOUNDS: ClassVar[dict[str, Range]] = {"gamma": (1, 5), "gain": (0.02, 1), "std": (0, 30)}

    gamma: Range = (1.2, 2.2)
    gain: Range = (0.15, 0.6)
    std: Range = (0.5, 3.0)
    """Of the noise at black, in levels; its variance grows with brightness."""


class Blur(Ranges):
    """How blurred."""

    BOUNDS: ClassVar[dict[str, Range]] = {"length": (3, 64), "radius": (1, 9)}

    kinds: tuple[Literal["motion", "defocus"], ...] = Field(("motion", "defocus"), min_length=1)
    """One is drawn for each picture."""
    length: Range = (7.0, 21.0)
    """motion: of the straight path in pixels."""
    radius: Range = (1.5, 5.5)
    """defocus: of the disc in pixels."""


class LowResolution(Ranges):
    """How small."""

    factors: tuple[Literal[2, 4, 8], ...] = Field((2, 4, 8), min_length=1)
    """One is drawn for each picture."""


class JpegArtefacts(Ranges):
    """How strongly compressed."""

    BOUNDS: ClassVar[dict[str, Range]] = {"quality": (1, 95)}

    quality: tuple[int, int] = (5, 30)
    """libjpeg's, with chroma at half the resolution."""


def draw(rng: np.random.Generator, bounds: Range) -> float:
    """A value of the range, uniformly."""
    return float(rng.uniform(*bounds))


def render_noise(photo: NDArray[np.uint8], rng: np.random.Generator, settings: Noise) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB with noise in each channel on its own. Draws kind, then `std` or `photons`, then the noise.

    Raises:
        ValueError: for an array of another shape or type; so do all functions here.
    """
    check_rgb(photo)
    if settings.kinds[int(rng.integers(len(settings.kinds)))] == "gaussian":
        return _with_noise(photo, np.full(256, draw(rng, settings.std)), rng)
    return _with_noise(photo, np.sqrt(np.arange(256) * (255 / draw(rng, settings.photons))), rng)


def render_low_light(photo: NDArray[np.uint8], rng: np.random.Generator, settings: LowLight) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB as a camera sees it in too little light. Draws `gamma`, `gain`, `std`, then the noise."""
    check_rgb(photo)
    gamma, gain, std = (draw(rng, bounds) for bounds in (settings.gamma, settings.gain, settings.std))
    levels = np.arange(256)
    darker = np.rint(255 * gain * (levels / 255) ** gamma).astype(np.uint8)
    # At level 32 the noise of the light is as strong as that of the sensor.
    return _with_noise(cv2.LUT(photo, darker), std * np.sqrt(1 + levels / 32), rng)


def render_blur(photo: NDArray[np.uint8], rng: np.random.Generator, settings: Blur) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB, moved or out of focus, mirrored at its edges. Draws kind, then angle and `length`, or
    `radius`.
    """
    check_rgb(photo)
    if settings.kinds[int(rng.integers(len(settings.kinds)))] == "motion":
        angle = draw(rng, (0, np.pi))
        return _motion(photo, angle, draw(rng, settings.length))
    return _defocus(photo, draw(rng, settings.radius))


def render_low_resolution(
    photo: NDArray[np.uint8], rng: np.random.Generator, settings: LowResolution
) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB, averaged over squares of the drawn factor and enlarged again by cubic interpolation.

    Raises:
        ValueError: also for sides that the factor does not divide.
    """
    check_rgb(photo)
    factor = settings.factors[int(rng.integers(len(settings.factors)))]
    height, width = photo.shape[:2]
    if height % factor or width % factor:
        raise ValueError(f"a picture of {width}x{height} has no squares of {factor}x{factor}")
    rows = photo.reshape(height // factor, factor, -1).sum(axis=1, dtype=np.int32)
    strips = rows.reshape(height // factor, width // factor, factor, 3)
    small = sum((strips[:, :, place] for place in range(1, factor)), strips[:, :, 0])
    small = (small * (1 << _LEVEL_BITS) + factor * factor // 2) // (factor * factor)
    wide = _enlarge(small.transpose(1, 0, 2), factor).transpose(1, 0, 2)
    large = (_enlarge(wide, factor) + (1 << _LEVEL_BITS >> 1)) >> _LEVEL_BITS
    return np.clip(large, 0, 255).astype(np.uint8)


def render_jpeg(photo: NDArray[np.uint8], rng: np.random.Generator, settings: JpegArtefacts) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB after JPEG of the drawn quality, by libjpeg-turbo's exact transforms, not its fast ones."""
    check_rgb(photo)
    quality = int(rng.integers(settings.quality[0], settings.quality[1] + 1))
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(photo), quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
    return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)


@lru_cache(maxsize=1)
def _normal_quantiles() -> NDArray[np.int32]:
    """What each 16-bit draw means as a normal number, in fixed point; 65,536 equally likely values, ±4.3."""
    normal = NormalDist()
    upper = [round(normal.inv_cdf(0.5 + (index + 0.5) / 65536) * (1 << _QUANTILE_BITS)) for index in range(32768)]
    return np.array([*(-value for value in reversed(upper)), *upper], dtype=np.int32)


def _with_noise(photo: NDArray[np.uint8], std: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Adds normal noise whose standard deviation `(256,)` depends on the level; one draw a value, in their order."""
    drawn = rng.integers(0, 65536, size=photo.shape, dtype=np.uint16)
    strength = np.rint(std * (1 << _STD_BITS)).astype(np.int32)
    noise = np.take(_normal_quantiles(), drawn)
    noise *= cv2.LUT(photo, strength)
    noise += 1 << (_QUANTILE_BITS + _STD_BITS - 1)
    noise >>= _QUANTILE_BITS + _STD_BITS
    noise += photo
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


def _motion(photo: NDArray[np.uint8], angle: float, length: float) -> NDArray[np.uint8]:
    """The mean over the pixels of a straight path."""
    direction = np.array([np.sin(angle), np.cos(angle)])
    steepest = np.abs(direction).max()
    samples = max(2, round(length * steepest))
    offsets = np.rint(np.outer(np.arange(samples) - samples // 2, direction / steepest)).astype(np.int64)
    margin = samples
    wide = cv2.copyMakeBorder(photo, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    total = np.zeros(photo.shape, np.uint16)
    for down, right in offsets.tolist():
        total = _add(total, wide, margin + down, margin + right)
    return ((total + samples // 2) // samples).astype(np.uint8)


def _defocus(photo: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    """The mean over a disc, as the sum of its rows."""
    margin = int(radius) + 1
    wide = cv2.copyMakeBorder(photo, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    total, area = np.zeros(photo.shape, np.uint16), 0
    rows: dict[int, NDArray[np.uint16]] = {}
    for down in range(-int(radius), int(radius) + 1):
        width = 2 * int((radius * radius - down * down) ** 0.5) + 1
        if width not in rows:
            rows[width] = cv2.boxFilter(wide, cv2.CV_16U, (width, 1), normalize=False)
        total = _add(total, rows[width], margin + down, margin)
        area += width
    return ((total + area // 2) // area).astype(np.uint8)


def _add(total: NDArray[np.uint16], wide: NDArray, top: int, left: int) -> NDArray[np.uint16]:
    """Adds a window of a larger picture. At most 257 pictures of 255 fit 16 bits."""
    height, width = total.shape[:2]
    return cv2.add(total, wide[top : top + height, left : left + width], dst=total, dtype=cv2.CV_16U)


def _cubic_taps(factor: int, phase: int) -> tuple[int, list[int], int]:
    """First of four neighbours relative to the pixel's own, their whole weights, and the sum of these.

    Catmull-Rom's cubic (Keys 1981, a = -1/2) at the centre of sub-pixel `phase` of `factor`: a fraction of 2·factor.
    """
    unit = 2 * factor
    first, part = (-2, 2 * phase + 1 + factor) if 2 * phase + 1 < factor else (-1, 2 * phase + 1 - factor)
    one, two, three = part * unit * unit, part * part * unit, part**3
    weights = [
        -one + 2 * two - three,
        2 * unit**3 - 5 * two + 3 * three,
        one + 4 * two - 3 * three,
        -two + three,
    ]
    return first, weights, 2 * unit**3


def _enlarge(rows: NDArray[np.int32], factor: int) -> NDArray[np.int32]:
    """`(n, m, 3)` → `(n · factor, m, 3)`, cubic interpolation along the first axis, edges repeated."""
    count = len(rows)
    padded = np.pad(rows, ((2, 2), (0, 0), (0, 0)), mode="edge")
    out = np.empty((count, factor, *rows.shape[1:]), np.int32)
    for phase in range(factor):
        first, weights, scale = _cubic_taps(factor, phase)
        total = np.full(rows.shape, scale // 2, np.int32)
        for place, weight in enumerate(weights, 2 + first):
            total += weight * padded[place : place + count]
        np.floor_divide(total, scale, out=out[:, phase])
    return out.reshape(count * factor, *rows.shape[1:])

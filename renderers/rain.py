"""Rain over a photo: straight translucent streaks at three distances, before a veil of what is too far to see.

Far drops are many, short, thin and faint, near ones few, long and bright; all fall in one direction, with a little
scatter. Drawn and blended in whole numbers, so a seed gives the same bytes with and without SIMD. Costs about 2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.renderers.canvas import check_rgb
from uvd.renderers.degradations import Range, Ranges, draw

SCATTER_DEGREES = 1.5
"""Of single streaks around the common angle, each way."""
VEIL_LEVEL = 190
"""Grey of the veil of far rain."""
_SHIFT = 4
"""Binary places of coordinates: OpenCV draws in sixteenths of a pixel."""
_SHADES = 3
"""Brightnesses within a layer, from half of it to all."""


class Rain(Ranges):
    """How it rains. Lengths are in pixels of 256x256 pictures."""

    BOUNDS: ClassVar[dict[str, Range]] = {
        "angle": (-60, 60),
        "length": (2, 100),
        "density": (10, 3000),
        "brightness": (0.05, 1),
        "veil": (0, 0.8),
    }

    angle: Range = (-25.0, 25.0)
    """From straight down, in degrees."""
    length: Range = (22.0, 50.0)
    """Of the nearest streaks; the farthest are 0.4 times as long."""
    density: Range = (300.0, 1200.0)
    """Streaks a picture."""
    brightness: Range = (0.3, 0.7)
    """Of the nearest streaks: how much of the way to white they take the photo."""
    veil: Range = (0.0, 0.2)
    """How much of the photo the grey of far rain hides."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Shares of the streaks, their length and brightness; width in pixels; and how ends fade: middle parts of a streak
    and the shares of its brightness in which they are drawn, one over another.
    """

    streaks: float
    length: float
    brightness: float
    width: int = 1
    reaches: tuple[Range, ...] = ((1.0, 1.0),)


_LAYERS = (_Layer(0.72, 0.4, 0.5), _Layer(0.25, 0.7, 0.75), _Layer(0.03, 1.0, 1.0, 2, ((1.0, 0.6), (0.6, 1.0))))
"""From far to near."""


def render_rain(photo: NDArray[np.uint8], rng: np.random.Generator, settings: Rain) -> NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB in the rain. Draws `angle`, `length`, `density`, `brightness`, `veil`; then for each layer
    the streaks' places across and down, their scatter and their lengths.

    Raises:
        ValueError: for an array of another shape or type.
    """
    check_rgb(photo)
    angle, length, density, brightness, veil = (
        draw(rng, bounds)
        for bounds in (settings.angle, settings.length, settings.density, settings.brightness, settings.veil)
    )
    light = np.zeros(photo.shape[:2], np.uint8)
    for layer in _LAYERS:
        streaks = _streaks(photo.shape[:2], layer, density, angle, length, rng)
        drawn = np.zeros(photo.shape[:2], np.uint8)
        for shade in range(_SHADES):
            level = round(255 * brightness * layer.brightness * (1 - shade / (2 * _SHADES)))
            for reach, share in layer.reaches:
                ends = _shortened(streaks[shade::_SHADES], reach)
                cv2.polylines(drawn, ends, False, round(level * share), layer.width, cv2.LINE_AA, _SHIFT)  # type: ignore[call-overload]
        np.maximum(light, drawn, out=light)
    return _blend(photo, cv2.GaussianBlur(light, (3, 3), 0), round(255 * veil))


def _streaks(
    shape: tuple[int, ...], layer: _Layer, density: float, angle: float, length: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """`(N, 2, 2)` ends x, y in pixels; some lie outside of the picture, so that its edges are as full as its middle."""
    height, width = shape
    count = max(1, round(density * layer.streaks))
    centres = np.stack([rng.uniform(-0.05, 1.05, count) * width, rng.uniform(-0.05, 1.05, count) * height], axis=1)
    angles = np.radians(angle + rng.uniform(-SCATTER_DEGREES, SCATTER_DEGREES, count))
    halves = 0.5 * length * layer.length * rng.uniform(0.6, 1.0, count)
    reach = np.stack([np.sin(angles) * halves, np.cos(angles) * halves], axis=1)
    return np.stack([centres - reach, centres + reach], axis=1)


def _shortened(streaks: NDArray[np.float64], reach: float) -> NDArray[np.int32]:
    """The middle part of each streak, in OpenCV's fixed point."""
    centres = streaks.mean(axis=1, keepdims=True)
    return np.rint((centres + (streaks - centres) * reach) * (1 << _SHIFT)).astype(np.int32)


def _blend(photo: NDArray[np.uint8], light: NDArray[np.uint8], veil: int) -> NDArray[np.uint8]:
    """The photo moved towards grey by `veil` of 255, then towards white by `light` of 255."""
    veiled = ((255 - veil) * np.arange(256) + veil * VEIL_LEVEL + 127) // 255
    behind = cv2.LUT(photo, veiled.astype(np.uint16))
    shine = cv2.cvtColor(light, cv2.COLOR_GRAY2RGB).astype(np.uint16)
    return (behind + ((255 - behind) * shine + 127) // 255).astype(np.uint8)

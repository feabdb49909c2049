"""Charts of results: lines and bars, drawn with Pillow on white, for people to look at.

No plotting package is needed: two kinds of chart, one font, six colours that stay apart for colour-blind readers
(Okabe and Ito, 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 900, 520
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 84, 70
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
_INK, _GRID = (30, 30, 30), (225, 225, 225)
_TICKS = 6

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Curve:
    """A line: `x` and `y` of one length."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def ticks(low: float, high: float, wanted: int = _TICKS) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` or before to `high` or after."""
    span = high - low or abs(high) or 1.0
    rough = span / wanted
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = floor(low / step + 1e-9), -floor(-high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def line_chart(curves: Sequence[Curve], *, title: str = "", x_axis: str = "", y_axis: str = "") -> NDArray[np.uint8]:
    """Draws curves with their points.

    Returns:
        `(520, 900, 3)` uint8 RGB.

    Raises:
        ValueError: if there is no finite point.
    """
    points = [(x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True) if isfinite(x) and isfinite(y)]
    if not points:
        raise ValueError("a chart needs at least one finite point")
    xs, ys = zip(*points, strict=True)
    low, high = min(xs), max(xs)
    scale = ticks(min(ys), max(ys))
    image, draw = _canvas(title, y_axis, scale)
    for mark in ticks(low, high, 10):
        if low <= mark <= high:
            _text(draw, (_across(mark, low, high), HEIGHT - BOTTOM + 8), f"{mark:g}", 13, "ma")
    _text(draw, ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 34), x_axis, 14, "ma")
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        places = [
            (_across(x, low, high), _up(y, scale))
            for x, y in zip(curve.x, curve.y, strict=True)
            if isfinite(x) and isfinite(y)
        ]
        draw.line(places, fill=colour, width=3)
        for x, y in places:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    _legend(draw, [curve.name for curve in curves])
    return np.asarray(image)


def bar_chart(bars: Mapping[tuple[str, str], float], *, title: str = "") -> NDArray[np.uint8]:
    """Draws bars from 0 in groups: keys are (group, name), names share a colour over the groups.

    Returns:
        `(520, 900, 3)` uint8 RGB.

    Raises:
        ValueError: if there are no bars.
    """
    if not bars:
        raise ValueError("a chart needs at least one bar")
    groups = list(dict.fromkeys(group for group, _ in bars))
    names = list(dict.fromkeys(name for _, name in bars))
    scale = ticks(min(0.0, *bars.values()), max(0.0, *bars.values()))
    image, draw = _canvas(title, "", scale)
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(60.0, room * 0.8 / len(names))
    for index, group in enumerate(groups):
        middle = LEFT + room * (index + 0.5)
        _text(draw, (middle, HEIGHT - BOTTOM + 8), group, 13, "ma")
        for number, name in enumerate(names):
            if (group, name) in bars:
                x = middle + (number - len(names) / 2) * width
                y = sorted((_up(bars[group, name], scale), _up(0.0, scale)))
                draw.rectangle((x + 1, y[0], x + width - 1, y[1]), fill=COLOURS[number % len(COLOURS)])
                if width > 26:
                    _text(draw, (x + width / 2, y[0] - 3), f"{bars[group, name]:.3g}", 11, "ms")
    _legend(draw, names)
    return np.asarray(image)


def _canvas(title: str, y_axis: str, scale: Sequence[float]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    _text(draw, (LEFT, 12), title, 17, "la")
    _text(draw, (12, TOP - 14), y_axis, 13, "ls")
    for mark in scale:
        y = _up(mark, scale)
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=_GRID)
        _text(draw, (LEFT - 8, y), f"{mark:g}", 13, "rm")
    draw.line((LEFT, TOP, LEFT, HEIGHT - BOTTOM), fill=_INK)
    draw.line((LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM), fill=_INK)
    return image, draw


def _across(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return LEFT + 12 + share * (WIDTH - LEFT - RIGHT - 24)


def _up(value: float, scale: Sequence[float]) -> float:
    share = (value - scale[0]) / (scale[-1] - scale[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _legend(draw: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
    right = float(WIDTH - RIGHT)
    for number, name in reversed(list(enumerate(names))):
        right -= draw.textlength(name, font=_font(13)) + 28
        draw.rectangle((right, TOP - 44, right + 12, TOP - 32), fill=COLOURS[number % len(COLOURS)])
        _text(draw, (right + 17, TOP - 38), name, 13, "lm")


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str) -> None:
    draw.text(place, text, fill=_INK, font=_font(size), anchor=anchor)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)

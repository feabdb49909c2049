"""Charts of results: lines and bars, drawn with Pillow on white, for people to look at.

No plotting package is needed: two kinds of chart, one font, six colours that stay apart for colour-blind readers
(Okabe and Ito, 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 900, 520
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 84, 70
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
_INK, _GRID = (30, 30, 30), (225, 225, 225)
_TICKS = 6
_NARROW = 5.0

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


def log_ticks(low: float, high: float) -> list[float]:
    """Marks of a logarithmic axis, both above 0, from `low` or before to `high` or after: 1, 2 and 5 times powers of
    ten, powers alone if those are many, and evenly spaced ones if both ends lie within a factor of 5."""
    if high / low < _NARROW and (even := [mark for mark in ticks(low, high) if mark > 0])[0] <= low:
        return even
    powers = range(floor(log10(low) + 1e-9), ceil(log10(high) - 1e-9) + 1)
    factors = (1, 2, 5) if len(powers) <= _TICKS - 2 else (1,)
    marks = [float(f"{factor}e{power}") for power in powers for factor in factors]
    first = max(index for index, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = next((index for index, mark in enumerate(marks) if mark >= high * (1 - 1e-9)), len(marks) - 1)
    return marks[first : max(last, first + 1) + 1]


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str = "",
    x_axis: str = "",
    y_axis: str = "",
    log_x: bool = False,
    log_y: bool = False,
    points: Sequence[Curve] | None = None,
) -> NDArray[np.uint8]:
    """Draws curves with their points.

    Args:
        log_x, log_y: whether an axis is logarithmic; what is not above 0 is left out then.
        points: drawn as points alone, the first in the colour of the first curve, and so on; curves have none then.

    Returns:
        `(520, 900, 3)` uint8 RGB.

    Raises:
        ValueError: if there is no point that can be drawn.
    """
    shown = [_drawable(curve, log_x, log_y) for curve in curves]
    marked = shown if points is None else [_drawable(curve, log_x, log_y) for curve in points]
    places = [place for curve in (*shown, *marked) for place in curve]
    if not places:
        raise ValueError("a chart needs at least one finite point")
    xs, ys = zip(*places, strict=True)
    low, high = min(xs), max(xs)
    scale = log_ticks(min(ys), max(ys)) if log_y else ticks(min(ys), max(ys))
    image, draw = _canvas(title, y_axis, scale, log_y)
    for mark in log_ticks(low, high) if log_x else ticks(low, high, 10):
        if low <= mark <= high:
            _text(draw, (_across(mark, low, high, log_x), HEIGHT - BOTTOM + 8), f"{mark:g}", 13, "ma")
    _text(draw, ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 34), x_axis, 14, "ma")
    for number, curve in enumerate(shown):
        line = [(_across(x, low, high, log_x), _up(y, scale, log_y)) for x, y in curve]
        draw.line(line, fill=COLOURS[number % len(COLOURS)], width=3)
    for number, curve in enumerate(marked):
        for x, y in ((_across(x, low, high, log_x), _up(y, scale, log_y)) for x, y in curve):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=COLOURS[number % len(COLOURS)])
    _legend(draw, [curve.name for curve in curves])
    return np.asarray(image)


def _drawable(curve: Curve, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in zip(curve.x, curve.y, strict=True)
        if isfinite(x) and isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]


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


def _canvas(
    title: str, y_axis: str, scale: Sequence[float], log: bool = False
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    _text(draw, (LEFT, 12), title, 17, "la")
    _text(draw, (12, TOP - 14), y_axis, 13, "ls")
    for mark in scale:
        y = _up(mark, scale, log)
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=_GRID)
        _text(draw, (LEFT - 8, y), f"{mark:g}", 13, "rm")
    draw.line((LEFT, TOP, LEFT, HEIGHT - BOTTOM), fill=_INK)
    draw.line((LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM), fill=_INK)
    return image, draw


def _share(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = log10(value), log10(low), log10(high)
    return (value - low) / (high - low) if high > low else 0.5


def _across(value: float, low: float, high: float, log: bool = False) -> float:
    return LEFT + 12 + _share(value, low, high, log) * (WIDTH - LEFT - RIGHT - 24)


def _up(value: float, scale: Sequence[float], log: bool = False) -> float:
    return HEIGHT - BOTTOM - _share(value, scale[0], scale[-1], log) * (HEIGHT - BOTTOM - TOP)


def _legend(draw: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
    """Names beside their colours, right-aligned in one row, or two if they are long."""
    widths = [draw.textlength(name, font=_font(13)) + 28 for name in names]
    split = len(names)
    while sum(widths[:split]) > WIDTH - LEFT - RIGHT and split > 1:
        split -= 1
    for first, last, up in ((0, split, 38), (split, len(names), 16)):
        right = WIDTH - RIGHT - sum(widths[first:last])
        for number in range(first, last):
            draw.rectangle((right, TOP - up - 6, right + 12, TOP - up + 6), fill=COLOURS[number % len(COLOURS)])
            _text(draw, (right + 17, TOP - up), names[number], 13, "lm")
            right += widths[number]


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str) -> None:
    draw.text(place, text, fill=_INK, font=_font(size), anchor=anchor)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)

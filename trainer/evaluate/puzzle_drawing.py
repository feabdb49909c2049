"""Panels of puzzles as pictures: equal shapes in a square grid of slots, black outlines on white.

Drawn four times as large and averaged, so that edges are smooth. A panel takes about 5 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from uvd.sequences import IMAGE_SIZE

SHAPES = ("triangle", "square", "pentagon", "circle", "star")
SIZES = (0.40, 0.56, 0.72, 0.88)
"""Diameter of a shape as a share of its slot."""
SHADES = (255, 195, 130, 65, 0)
"""Grey levels of the filling."""
_OVERSAMPLING = 4
_CORNERS = {"triangle": 3, "square": 4, "pentagon": 5}
_GAP = 8
"""Between the panels of a matrix, pixels."""


@dataclass(frozen=True, slots=True)
class Panel:
    """What a panel shows.

    Attributes:
        slots: which of the `grid * grid` slots are filled, as bits, the first slot at the upper left.
        size: share of the slot's side, the shapes' diameter.
        shade: grey level of the filling, 0 to 255.
        shape: one of `SHAPES`.
        grid: slots a side.
    """

    slots: int
    size: float
    shade: int
    shape: str
    grid: int = 3

    @property
    def number(self) -> int:
        return self.slots.bit_count()


def draw_panel(panel: Panel, side: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """`(side, side, 3)` uint8 RGB."""
    large = side * _OVERSAMPLING
    image = Image.new("L", (large, large), 255)
    draw = ImageDraw.Draw(image)
    slot = large / panel.grid
    outline = max(2, round(large / 128))
    for place in range(panel.grid * panel.grid):
        if panel.slots >> place & 1:
            row, column = divmod(place, panel.grid)
            _draw_shape(draw, panel, ((column + 0.5) * slot, (row + 0.5) * slot), panel.size * slot / 2, outline)
    grey = np.asarray(image.resize((side, side), Image.Resampling.BOX))
    return np.repeat(grey[:, :, None], 3, axis=2)


def _draw_shape(
    draw: ImageDraw.ImageDraw, panel: Panel, centre: tuple[float, float], radius: float, outline: int
) -> None:
    x, y = centre
    if panel.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), panel.shade, 0, outline)
        return
    corners = 2 * _CORNERS["pentagon"] if panel.shape == "star" else _CORNERS[panel.shape]
    # A square stands on its side, the others on their base, point up.
    turn = pi / 4 if panel.shape == "square" else 0.0
    points = []
    for corner in range(corners):
        reach = radius * (0.45 if panel.shape == "star" and corner % 2 else 1.0)
        angle = 2 * pi * corner / corners + turn
        points.append((x + reach * sin(angle), y - reach * cos(angle)))
    draw.polygon(points, panel.shade, 0, outline)


def draw_matrix(panels: Sequence[Panel | None], side: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Nine panels in three rows on a grey ground, None as an empty white one: `(side, side, 3)` uint8 RGB."""
    picture = np.full((side, side, 3), 160, np.uint8)
    cell = (side - 4 * _GAP) // 3
    margin = (side - 3 * cell - 2 * _GAP) // 2
    for index, panel in enumerate(panels):
        row, column = divmod(index, 3)
        top, left = margin + row * (cell + _GAP), margin + column * (cell + _GAP)
        drawn = 255 if panel is None else draw_panel(panel, cell)
        picture[top : top + cell, left : left + cell] = drawn
    return picture

"""Contact sheets: pictures in a grid with short labels, for people to look at. Never part of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP = 8
LABEL_HEIGHT = 18
TITLE_HEIGHT = 26
BORDER = 4
Frame = Literal["none", "given", "predicted"]
_BACKGROUND, _INK = (250, 250, 250), (30, 30, 30)
_BORDERS = {"given": (120, 120, 120), "predicted": (214, 40, 40)}


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]],
    labels: Sequence[str] = (),
    *,
    columns: int = 8,
    title: str = "",
    frames: Sequence[Frame] = (),
) -> NDArray[np.uint8]:
    """Lays pictures out row by row.

    Args:
        pictures: `(H, W, 3)` uint8 RGB each, all of one size.
        labels: one line under each picture, or none.
        columns: pictures a row.
        title: one line above.
        frames: a border for each picture: grey for `given`, red for `predicted`.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_height = height + (LABEL_HEIGHT if labels else 0) + GAP
    top = GAP + (TITLE_HEIGHT if title else 0)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), top + rows * cell_height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, GAP), title, _INK, ImageFont.load_default(15))
    for index, picture in enumerate(pictures):
        left = GAP + index % columns * (width + GAP)
        upper = top + index // columns * cell_height
        sheet.paste(Image.fromarray(picture), (left, upper))
        if frames and frames[index] != "none":
            outline = (left - BORDER, upper - BORDER, left + width + BORDER - 1, upper + height + BORDER - 1)
            draw.rectangle(outline, outline=_BORDERS[frames[index]], width=BORDER)
        if labels:
            draw.text((left, upper + height + 3), labels[index], _INK, ImageFont.load_default(12))
    return np.asarray(sheet)


def save_png(pixels: NDArray[np.uint8], path: str | Path) -> None:
    """Writes `(H, W, 3)` uint8 RGB as PNG; makes the folder if it is not there."""
    Path(path).expanduser().parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(Path(path).expanduser(), format="PNG", optimize=True)

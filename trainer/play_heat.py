"""Token-level perplexity as pictures: one cell for each of the 16x16 tokens of a predicted image, and the legend.

A cell's colour is -log p of its token under the model's own distribution, on a scale that is always the same: dark is
0 nats (p = 1, the model was sure), bright is log 8192 nats and more (no better than a guess among the 8192 codes).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from uvd.manifests.sheet import contact_sheet
from uvd.manifests.tokens import CODEBOOK_SIZE
from uvd.sequences import IMAGE_SIZE

SIDE = 16
"""Tokens a row; their order is row by row from the top left."""
CHANCE = float(np.log(CODEBOOK_SIZE))
"""-log p of a guess among all codes: the bright end of the scale, in nats."""
COLUMNS = 6
LEGEND_HEIGHT, BAR_HEIGHT, LEGEND_WIDTH = 64, 16, 420
MARGIN = 24
TICKS = (1, 10, 100, 1000, CODEBOOK_SIZE)


def token_perplexities(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(n, 256)` nats to 1/p of each token, `(n, 16, 16)` float64 of 1 and more, where the tokens lie in the image."""
    return np.exp(losses).reshape(-1, SIDE, SIDE)


def heat_map(losses: NDArray[np.float64]) -> NDArray[np.uint8]:
    """`(256,)` nats of one image's tokens to `(256, 256, 3)` uint8 RGB, a square of 16x16 pixels for each."""
    cells = colours(losses.reshape(SIDE, SIDE))
    return cells.repeat(IMAGE_SIZE // SIDE, axis=0).repeat(IMAGE_SIZE // SIDE, axis=1)


def colours(losses: NDArray[np.float64]) -> NDArray[np.uint8]:
    """`(H, W)` nats to `(H, W, 3)` uint8 RGB by viridis, from 0 to `CHANCE`; what is beyond has the last colour."""
    levels = np.rint(np.clip(losses / CHANCE, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB).astype(np.uint8)


def heat_sheet(
    pictures: Sequence[NDArray[np.uint8]], losses: Sequence[NDArray[np.float64]], names: Sequence[str]
) -> NDArray[np.uint8]:
    """Every picture with its heat map to the right, then the legend.

    Args:
        pictures: `(256, 256, 3)` uint8 RGB each.
        losses: `(256,)` nats each.
        names: what each picture is.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    cells, labels = [], []
    for picture, values, name in zip(pictures, losses, names, strict=True):
        low, middle, high = np.exp(np.quantile(values, (0, 0.5, 1)))
        cells += [picture, heat_map(values)]
        labels += [name, f"1/p from {low:,.1f} to {high:,.0f}, median {middle:,.1f}"]
    sheet = contact_sheet(cells, labels, columns=min(COLUMNS, len(cells)))
    below = np.full((LEGEND_HEIGHT, sheet.shape[1], 3), sheet[0, 0], np.uint8)
    strip = legend(tuple(sheet[0, 0].tolist()))
    below[:, : strip.shape[1]] = strip
    return np.concatenate([sheet, below])


def legend(background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The scale of `colours` with 1/p at its ticks, `(64, 468, 3)` uint8 RGB."""
    bar = colours(np.linspace(0, CHANCE, LEGEND_WIDTH)[None]).repeat(BAR_HEIGHT, axis=0)
    strip = Image.new("RGB", (LEGEND_WIDTH + 2 * MARGIN, LEGEND_HEIGHT), background)
    strip.paste(Image.fromarray(bar), (MARGIN, 18))
    draw = ImageDraw.Draw(strip)
    ink, font = (30, 30, 30), ImageFont.load_default(12)
    draw.text((MARGIN, 0), "1/p of each token: dark is sure, bright is a guess among all 8192 codes", ink, font)
    for value in TICKS:
        x = MARGIN + round(float(np.log(value)) / CHANCE * (LEGEND_WIDTH - 1))
        draw.line((x, 34, x, 39), ink)
        draw.text((x, 41), f"{value:,}", ink, font, anchor="ma")
    return np.asarray(strip)

"""Inpainting's input: the photo with parts blacked out, as LVM's release does it, or with plain random boxes.

`lvm` draws one of two forms: with probability 0.3 one square of 10 to 50 % of the picture's side, else a grid of 32
pixel patches each kept with probability r, r drawn uniformly from [0, 1] per picture. `boxes` is the paper's wording,
"random black boxes". At least one patch or box is always black and at least one pixel always left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.canvas import check_rgb

InpaintingMode = Literal["lvm", "square", "patches", "boxes"]


@dataclass(frozen=True, slots=True)
class Inpainting:
    """How a picture is blacked out."""

    mode: InpaintingMode = "lvm"
    """`lvm` mixes `square` and `patches`; `boxes` draws 1 to `max_boxes` rectangles."""
    square_probability: float = 0.3
    """Share of `square` within `lvm`."""
    min_side: float = 0.1
    max_side: float = 0.5
    """Bounds of the sides of squares and boxes, as shares of the picture's sides."""
    patch: int = 32
    """Side of a patch in pixels; patches at the right and bottom edge may be cut."""
    max_boxes: int = 4

    def __post_init__(self) -> None:
        if self.mode not in ("lvm", "square", "patches", "boxes"):
            raise ValueError(f"inpainting mode {self.mode!r} is not one of lvm, square, patches, boxes")
        if not 0 <= self.square_probability <= 1:
            raise ValueError(f"square_probability {self.square_probability} is not within 0 to 1")
        if not 0 < self.min_side <= self.max_side <= 1:
            raise ValueError(f"sides {self.min_side} to {self.max_side} are not shares in ascending order")
        if self.patch < 1 or self.max_boxes < 1:
            raise ValueError("patch and max_boxes must be at least 1")


def render_masked(
    image: NDArray[np.uint8], rng: np.random.Generator, inpainting: Inpainting | None = None
) -> NDArray[np.uint8]:
    """A copy of the `(H, W, 3)` uint8 RGB image with the masked parts black.

    Args:
        rng: from `Seeds.generator`, fresh for each picture; the number of draws depends on the mode.

    Raises:
        ValueError: for an image of another shape or type.
    """
    check_rgb(image)
    masked = np.array(image, order="C")
    masked[inpainting_mask(image.shape[0], image.shape[1], rng, inpainting or Inpainting())] = 0
    return masked


def inpainting_mask(height: int, width: int, rng: np.random.Generator, inpainting: Inpainting) -> NDArray[np.bool_]:
    """`(height, width)` bool, True where the picture is blacked out."""
    mode = inpainting.mode
    if mode == "lvm":
        mode = "square" if rng.random() < inpainting.square_probability else "patches"
    mask = np.zeros((height, width), dtype=np.bool_)
    if mode == "patches":
        mask = _patches(height, width, rng, inpainting.patch)
    elif mode == "square":
        share = rng.uniform(inpainting.min_side, inpainting.max_side)
        side = max(1, round(share * min(height, width)))
        _black_out(mask, rng, side, side)
    else:
        for _ in range(int(rng.integers(1, inpainting.max_boxes + 1))):
            shares = rng.uniform(inpainting.min_side, inpainting.max_side, size=2)
            _black_out(mask, rng, max(1, round(shares[0] * height)), max(1, round(shares[1] * width)))
    if mask.all():
        mask[int(rng.integers(height)), int(rng.integers(width))] = False
    return mask


def _patches(height: int, width: int, rng: np.random.Generator, patch: int) -> NDArray[np.bool_]:
    rows, columns = -(-height // patch), -(-width // patch)
    black = rng.random((rows, columns)) >= rng.random()
    # A picture equal to its own answer teaches nothing, and neither does one that is all black.
    if black.all() or not black.any():
        black[int(rng.integers(rows)), int(rng.integers(columns))] ^= True
    return black.repeat(patch, axis=0).repeat(patch, axis=1)[:height, :width]


def _black_out(mask: NDArray[np.bool_], rng: np.random.Generator, height: int, width: int) -> None:
    top = int(rng.integers(mask.shape[0] - height + 1))
    left = int(rng.integers(mask.shape[1] - width + 1))
    mask[top : top + height, left : left + width] = True

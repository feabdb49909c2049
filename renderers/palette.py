"""The published palette: 2048 maximally distinct RGB colours, the meaning of every class id that uvd draws.

Greedy farthest-point sampling in CIELAB (D65, CIE76 distance) over the 33x33x33 sRGB lattice, starting from black, so
that every prefix of the palette is itself well spread. The table is stored rather than computed (`palette_table.py`,
8 kB) because a last-bit difference in a cube root would change a dataset; `build_palette` is how it was made (1 s).
"""

from __future__ import annotations

from base64 import b85decode

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from uvd.renderers.palette_table import TABLE

PALETTE_SIZE = 2048
"""Number of colours, void included: more classes than LVIS (1203) or Objects365 (365) have."""

VOID = 0
"""Palette index of "no class": black."""

LATTICE = np.append(np.arange(0, 256, 8), 255).astype(np.uint8)
"""The 33 levels per channel among which the palette's colours lie."""

PALETTE: NDArray[np.uint8] = np.frombuffer(b85decode("".join(TABLE.split())), dtype=np.uint8).reshape(-1, 3)
"""`(2048, 3)` uint8 RGB, read-only."""

_PACKED = np.pad(PALETTE, ((0, 0), (0, 1))).view(np.uint32)[:, 0]


def colour(index: int) -> tuple[int, int, int]:
    """RGB of one class id; 0 is void and black.

    Raises:
        ValueError: for an index outside the palette.

    >>> colour(0)
    (0, 0, 0)
    """
    if not 0 <= index < PALETTE_SIZE:
        raise ValueError(f"class id {index} is outside the palette of {PALETTE_SIZE} colours")
    red, green, blue = PALETTE[index].tolist()
    return red, green, blue


def colours(ids: ArrayLike) -> NDArray[np.uint8]:
    """RGB of an array of class ids: `(...)` integers → `(..., 3)` uint8.

    Raises:
        ValueError: for ids that are not integers, or that lie outside the palette.
    """
    ids = np.asarray(ids)
    check_ids(ids)
    # An empty list has no type, and NumPy takes it for floats.
    return PALETTE.take(ids if ids.size else ids.astype(np.int64), axis=0)


def paint(label_map: NDArray[np.integer], ids: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
    """Colours a `(H, W)` map of palette indices, or of positions in `ids` if given: `(H, W, 3)` uint8 RGB.

    Gathering four bytes at once and dropping the fourth is three times as fast as gathering rows of three.

    Raises:
        ValueError: for ids that are not integers, or that lie outside the palette.
    """
    if ids is None:
        check_ids(label_map)
    else:
        check_ids(ids)
    table = _PACKED if ids is None else _PACKED[ids]
    packed = table.take(label_map, mode="clip")
    return cv2.cvtColor(packed.view(np.uint8).reshape(*label_map.shape, 4), cv2.COLOR_RGBA2RGB)


def check_ids(ids: NDArray) -> None:
    """Raises ValueError unless `ids` is an array of integers within the palette."""
    if ids.dtype.kind not in "iu":
        if ids.size:
            raise ValueError(f"class ids must be integers, not {ids.dtype}")
        return
    if ids.size and (int(ids.max()) >= PALETTE_SIZE or int(ids.min()) < 0):
        worst = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"class id {worst} is outside the palette of {PALETTE_SIZE} colours")


def lab_of(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIELAB (D65) of `(..., 3)` uint8 sRGB: IEC 61966-2-1 transfer curve, CIE 15 lightness curve."""
    share = rgb.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    curve = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = curve[..., 0], curve[..., 1], curve[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def build_palette(size: int = PALETTE_SIZE) -> NDArray[np.uint8]:
    """Computes the first `size` colours `(size, 3)` uint8 anew; ties go to the first colour of the lattice."""
    rgb = np.stack(np.meshgrid(LATTICE, LATTICE, LATTICE, indexing="ij"), axis=-1).reshape(-1, 3)
    # Whole thousandths of a unit make the comparison exact, so that only a value at a rounding edge could differ.
    lab = np.rint(lab_of(rgb) * 1000)
    chosen = [0]
    nearest = np.full(len(rgb), np.inf)
    while len(chosen) < size:
        difference = lab - lab[chosen[-1]]
        np.minimum(nearest, np.einsum("ij,ij->i", difference, difference), out=nearest)
        chosen.append(int(nearest.argmax()))
    return rgb[chosen]

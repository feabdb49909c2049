"""COCO's `segmentation` field → a mask at the image's raw resolution: polygons, RLE with counts, compressed RLE.

Format of the COCO API (cocodataset.org, `maskApi.c`). Annotation files are hostile: everything is checked and bounded
here, run lengths are expanded by NumPy, and only polygons with finite, bounded vertices reach pycocotools' C code,
which has no bounds of its own. A polygon in a 640x480 image costs about 0.1 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MAX_MASK_PIXELS = 64_000_000
"""Largest mask, in pixels: 64 MB once decoded."""

MAX_POLYGONS = 10_000
"""Most polygons of one instance."""

MAX_BOUNDARY = 4_000_000
"""Longest boundary of one polygon in pixels; pycocotools needs 20 bytes or more for each fifth of a pixel."""


def decode_coco_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Decodes one annotation's segmentation.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in raw pixels, or `{"size": [h, w], "counts": ...}`
            with counts a list of run lengths or COCO's compressed string.
        height, width: of the image the annotation belongs to, in raw pixels.

    Returns:
        `(height, width)` bool, possibly without any True.

    Raises:
        ValueError: for anything else; the message says what is wrong.
    """
    if height < 1 or width < 1 or height * width > MAX_MASK_PIXELS:
        raise ValueError(f"a mask of {width}x{height} is empty or larger than {MAX_MASK_PIXELS} pixels")
    if isinstance(segmentation, Mapping):
        return _decode_rle(segmentation, height, width)
    if isinstance(segmentation, list | tuple):
        return _decode_polygons(segmentation, height, width)
    raise ValueError(f"segmentation is a {type(segmentation).__name__}, expected polygons or run lengths")


def _decode_polygons(polygons: Sequence[Any], height: int, width: int) -> NDArray[np.bool_]:
    if not polygons:
        raise ValueError("segmentation is an empty list of polygons")
    if len(polygons) > MAX_POLYGONS:
        raise ValueError(f"segmentation has {len(polygons)} polygons, more than {MAX_POLYGONS}")
    mask = np.zeros((height, width), dtype=np.bool_)
    for index, polygon in enumerate(polygons):
        vertices = _vertices(polygon, index, height, width)
        [encoded] = coco_mask.frPyObjects([vertices], height, width)
        mask |= coco_mask.decode(encoded).view(np.bool_)
    return mask


def _vertices(polygon: Any, index: int, height: int, width: int) -> list[float]:
    """One checked polygon as a flat list of coordinates."""
    if not isinstance(polygon, list | tuple):
        raise ValueError(f"polygon {index} is a {type(polygon).__name__}, expected a list of coordinates")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"polygon {index} has {len(polygon)} coordinates, expected an even number of 6 or more")
    if len(polygon) > 2 * MAX_BOUNDARY:
        raise ValueError(f"polygon {index} has {len(polygon)} coordinates, more than {2 * MAX_BOUNDARY}")
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in polygon):
        raise ValueError(f"polygon {index} has coordinates that are not numbers")
    try:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        raise ValueError(f"polygon {index} has coordinates beyond any image") from None
    # A NaN fails this comparison too. One image size outside is more than any honest annotation needs.
    size = np.array((width, height), dtype=np.float64)
    if not ((points >= -size) & (points <= 2 * size)).all():
        raise ValueError(f"polygon {index} has a vertex far outside the image of {width}x{height}, or not finite")
    steps = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1)
    if steps.sum() > MAX_BOUNDARY:
        raise ValueError(f"polygon {index} has a boundary longer than {MAX_BOUNDARY} pixels")
    return points.ravel().tolist()


def _decode_rle(rle: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    size, counts = rle.get("size"), rle.get("counts")
    if size is None or counts is None:
        raise ValueError("run lengths need the keys 'size' and 'counts'")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"run lengths are for [height, width] {str(size)[:40]}, the image is [{height}, {width}]")
    runs = _run_lengths(counts, height * width)
    total = int(runs.sum())
    if total != height * width:
        raise ValueError(f"run lengths sum to {total} pixels, the image has {height * width}")
    # Runs alternate between background and foreground, down the columns.
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _run_lengths(counts: Any, pixels: int) -> NDArray[np.int64]:
    """Checked run lengths from a list of numbers or a compressed string."""
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    # Every run but the first is at least one pixel in a well-formed code; empty runs are tolerated, up to a bound.
    longest = 2 * pixels + 2
    if isinstance(counts, str):
        if len(counts) > 7 * longest:
            raise ValueError(f"compressed run lengths of {len(counts)} characters for {pixels} pixels")
        counts = _uncompressed(counts)
    if not isinstance(counts, list | tuple):
        raise ValueError(f"counts are a {type(counts).__name__}, expected a list or a string")
    if not 1 <= len(counts) <= longest:
        raise ValueError(f"{len(counts)} run lengths for {pixels} pixels")
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= pixels:
            raise ValueError(f"run length {str(count)[:40]!r} is not a whole number from 0 to {pixels}")
    return np.array(counts, dtype=np.int64)


def _uncompressed(text: str) -> list[int]:
    """COCO's string code: 5 bits a character from '0' on, low bits first, bit 5 says "more follows", the last
    character's bit 4 is the sign; from the fourth run on the difference to the run two before is stored.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"compressed run lengths contain the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 35:
            raise ValueError("compressed run lengths contain a number of more than 35 bits")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end in the middle of a number")
    return runs

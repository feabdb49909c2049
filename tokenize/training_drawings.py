"""Drawn pictures for tokenizer training: what annotations look like, with no data set behind them.

A dataset's annotations (boxes, skeletons, label maps, depth, edges, masked and grey photos) are tokenised with the same
codes as its photos, so the codebook has to see such pictures. About 1 ms each.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.sequences.example import IMAGE_SIZE as SIZE

Picture = NDArray[np.uint8]

LIMBS = ((0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13))
"""A stick person: head, neck, arms and legs, as indices into `_BODY`."""
_BODY = np.array(
    [
        *[(0, -1), (0, -0.75), (-0.22, -0.72), (-0.34, -0.4), (-0.38, -0.1), (0.22, -0.72), (0.34, -0.4)],
        *[(0.38, -0.1), (-0.13, -0.05), (-0.15, 0.45), (-0.16, 0.95), (0.13, -0.05), (0.15, 0.45), (0.16, 0.95)],
    ],
    np.float64,
)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour of a palette's kind: half of them with channels at 0, 128 or 255 only."""
    values = rng.choice([0, 128, 255], 3) if rng.random() < 0.5 else rng.integers(0, 256, 3)
    return int(values[0]), int(values[1]), int(values[2])


def _black() -> Picture:
    return np.zeros((SIZE, SIZE, 3), np.uint8)


def _canvas(photo: Picture, rng: np.random.Generator) -> Picture:
    return photo.copy() if rng.random() < 0.5 else _black()


def boxes(photo: Picture, rng: np.random.Generator) -> Picture:
    """Outlines of boxes on black or on the photo."""
    out = _canvas(photo, rng)
    for _ in range(int(rng.integers(1, 9))):
        corners = np.sort(rng.integers(0, SIZE, (2, 2)), axis=0)
        cv2.rectangle(out, corners[0].tolist(), corners[1].tolist(), _colour(rng), int(rng.integers(1, 5)))
    return out


def skeletons(photo: Picture, rng: np.random.Generator) -> Picture:
    """Stick people with limbs as filled ellipses and joints as dots."""
    out = _canvas(photo, rng)
    for _ in range(int(rng.integers(1, 4))):
        scale, width = rng.uniform(30, 120), int(rng.integers(2, 6))
        joints = _BODY + rng.normal(0, 0.09, _BODY.shape)
        points = joints * scale + rng.uniform(40, SIZE - 40, 2)
        colours = [_colour(rng) for _ in LIMBS]
        for (a, b), colour in zip(LIMBS, colours, strict=True):
            middle, delta = (points[a] + points[b]) / 2, points[b] - points[a]
            axes = (int(np.hypot(*delta) / 2), width)
            angle = float(np.degrees(np.arctan2(delta[1], delta[0])))
            cv2.ellipse(out, middle.astype(int).tolist(), axes, angle, 0, 360, colour, -1)
        for index, point in enumerate(points):
            cv2.circle(out, point.astype(int).tolist(), width, colours[index % len(colours)], -1)
    return out


def label_map(photo: Picture, rng: np.random.Generator) -> Picture:
    """Flat regions with the photo's own outlines: its blurred brightness, cut into bands, each in one colour."""
    grey = cv2.GaussianBlur(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (0, 0), rng.uniform(3, 9))
    cuts = np.quantile(grey, np.sort(rng.uniform(0, 1, int(rng.integers(2, 7)))))
    palette = np.array([_colour(rng) for _ in range(len(cuts) + 1)], np.uint8)
    if rng.random() < 0.3:
        palette[int(rng.integers(len(palette)))] = 0
    return palette[np.digitize(grey, cuts)]


def flat_regions(photo: Picture, rng: np.random.Generator) -> Picture:
    """Polygons and ellipses of flat colours on a flat background."""
    out = np.full((SIZE, SIZE, 3), _colour(rng), np.uint8)
    for _ in range(int(rng.integers(0, 9))):
        centre, radius = rng.uniform(0, SIZE, 2), rng.uniform(10, 90)
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 20))))
        reach = radius * rng.uniform(0.6, 1.0, len(angles))
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None] + centre
        cv2.fillPoly(out, [ring.astype(np.int32)], _colour(rng))
    return out


def depth_like(photo: Picture, rng: np.random.Generator) -> Picture:
    """A smooth grey ramp with smooth-edged objects in front, as relative depth looks."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    depth = rng.uniform(-0.3, 0.3) * x + rng.uniform(0, 1) * y + rng.uniform(0, 0.3)
    for _ in range(int(rng.integers(1, 6))):
        cx, cy, rx, ry = rng.uniform(0, 1, 2).tolist() + rng.uniform(0.05, 0.35, 2).tolist()
        near = 1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2
        depth = np.where(near > 0, cy + rng.uniform(0.1, 0.4) + 0.1 * np.sqrt(np.maximum(near, 0)), depth)
    depth = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
    return np.repeat((depth * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def normals_like(photo: Picture, rng: np.random.Generator) -> Picture:
    """Surface normals, as colours, of the photo's blurred brightness taken for a height."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    height = cv2.GaussianBlur(grey, (0, 0), rng.uniform(2, 8)) * rng.uniform(0.1, 0.5)
    slope = np.stack([cv2.Sobel(height, cv2.CV_32F, 1, 0), cv2.Sobel(height, cv2.CV_32F, 0, 1)], axis=2)
    normal = np.concatenate([-slope, np.ones((SIZE, SIZE, 1), np.float32)], axis=2)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    return ((normal + 1) * 127.5).astype(np.uint8)


def edges(photo: Picture, rng: np.random.Generator) -> Picture:
    """White edges on black."""
    low = int(rng.integers(50, 120))
    found = cv2.Canny(photo, low, low * 2)
    return np.repeat(found[:, :, None], 3, axis=2)


def grey_photo(photo: Picture, rng: np.random.Generator) -> Picture:
    return np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)


def masked_photo(photo: Picture, rng: np.random.Generator) -> Picture:
    """The photo with one to three black rectangles, as in inpainting."""
    out = photo.copy()
    for _ in range(int(rng.integers(1, 4))):
        (x0, y0), (width, height) = rng.integers(0, SIZE - 32, 2), rng.integers(24, 144, 2)
        out[y0 : y0 + height, x0 : x0 + width] = 0
    return out


DRAWINGS: tuple[Callable[[Picture, np.random.Generator], Picture], ...] = (
    boxes,
    skeletons,
    label_map,
    flat_regions,
    depth_like,
    normals_like,
    edges,
    grey_photo,
    masked_photo,
)
"""Each takes a `(256, 256, 3)` uint8 RGB photo and a generator and returns a new picture of that shape."""

"""The geometry around BlazePose's two networks: anchors, decoding, suppression, the rotated crop and its inverse.

After "BlazePose: On-device Real-time Body Pose tracking" (arXiv 2006.10204) and the model cards' tensor layouts. Points
are continuous raw pixels, pixel (0, 0) covering [0, 1) x [0, 1). All of it together costs under 2 ms a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, cos, hypot, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

DETECTOR_SIDE = 224
"""Input side of the detector in pixels."""

ANCHOR_GRIDS = ((28, 2), (14, 2), (7, 6))
"""Cells per side and anchors per cell: strides 8, 16 and three times 32 over 224 pixels, two anchors each."""

LONG_IMAGE = 1.2
"""Long over short side from which on an image is also searched in squares."""

MAX_SQUARES = 8

LANDMARK_SIDE = 256
"""Input side of the landmark network, and side of its person mask."""

LANDMARKS = 39
"""33 body landmarks, 2 that give the next crop (33: middle of the hips, 34: a point on the circle around the whole
body), 4 unused."""

CROP_MARGIN = 1.25
"""Side of the crop over the diameter of the circle around the body."""

HEATMAP_WINDOW = 7
HEATMAP_CONFIDENCE = 0.5
"""A landmark moves to the centre of mass of its heatmap's 7x7 cells where one of them is at least this sure."""

COCO_OF_LANDMARKS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""For each of COCO's 17 keypoints its BlazePose landmark."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A rotated square around a person: centre and side in raw pixels, rotation clockwise in radians."""

    x: float
    y: float
    side: float
    rotation: float

    def matrix(self) -> NDArray[np.float64]:
        """`(2, 3)` affine map from the unit square, [0, 1] x [0, 1] in the crop, to raw coordinates."""
        scaled_cos, scaled_sin = self.side * cos(self.rotation), self.side * sin(self.rotation)
        linear = np.array([[scaled_cos, -scaled_sin], [scaled_sin, scaled_cos]])
        offset = np.array([self.x, self.y]) - linear @ (0.5, 0.5)
        return np.column_stack([linear, offset])

    def to_raw(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """`(..., 2)` points of the unit square → raw coordinates."""
        matrix = self.matrix()
        return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop as `(256, 256, 3)` uint8; what lies outside the image is black."""
        shrink = max(1, int(self.side / LANDMARK_SIDE / 2))
        scale_x, scale_y = 1.0, 1.0
        if shrink > 1:
            # Bilinear sampling would skip pixels of a crop this large.
            height, width = image.shape[:2]
            size = max(1, width // shrink), max(1, height // shrink)
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            scale_x, scale_y = size[0] / width, size[1] / height
        matrix = pixel_matrix(self.matrix(), scale_x, scale_y)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, matrix, (LANDMARK_SIDE, LANDMARK_SIDE), flags=flags)

    def paste(self, mask_logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.bool_]:
        """`(256, 256)` logits of the crop → `(height, width)` bool mask in the raw image, False outside the crop."""
        matrix = pixel_matrix(self.matrix(), 1.0, 1.0)
        raw = cv2.warpAffine(mask_logits, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=-1.0)
        return raw > 0


def pixel_matrix(unit_matrix: NDArray[np.float64], scale_x: float, scale_y: float) -> NDArray[np.float64]:
    """The map from pixel indices of the 256x256 crop to those of the image shrunk by the scales.

    OpenCV counts from pixel centres, half a pixel away from continuous coordinates.
    """
    matrix = unit_matrix.copy()
    matrix[:, :2] /= LANDMARK_SIDE
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2
    matrix *= np.array([[scale_x], [scale_y]])
    matrix[:, 2] -= 0.5
    return matrix


def anchors() -> NDArray[np.float64]:
    """`(2254, 2)` centres of the detector's anchors in [0, 1], in the order of its outputs."""
    grids = []
    for cells, count in ANCHOR_GRIDS:
        centres = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(centres, centres, indexing="ij")
        grids.append(np.stack([x, y], axis=-1).reshape(-1, 2).repeat(count, axis=0))
    return np.concatenate(grids)


def windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Where to look for people: the whole image, and in a long one squares of its short side that overlap by half or
    more, because letterboxing leaves people of a long image few pixels. Left, top, width, height; at most 9.
    """
    whole = (0, 0, width, height)
    side, length = min(width, height), max(width, height)
    if length < LONG_IMAGE * side:
        return [whole]
    count = min(MAX_SQUARES, -(-2 * (length - side) // side) + 1)
    starts = [round(step * (length - side) / (count - 1)) for step in range(count)]
    squares = [(start, 0, side, side) if width > height else (0, start, side, side) for start in starts]
    return [whole, *squares]


def letterbox(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float, float, float]:
    """Fits an image into 224x224 with black bars, centred.

    Returns:
        the picture, and scale, left, top such that raw = (letterboxed pixel - (left, top)) / scale.
    """
    height, width = image.shape[:2]
    scale = DETECTOR_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    left, top = (DETECTOR_SIDE - size[0]) // 2, (DETECTOR_SIDE - size[1]) // 2
    boxed = np.zeros((DETECTOR_SIDE, DETECTOR_SIDE, 3), dtype=np.uint8)
    boxed[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=method)
    return boxed, scale, left, top


def decode_detections(
    raw: NDArray[np.float32], logits: NDArray[np.float32], centres: NDArray[np.float64], threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Detector outputs → detections above `threshold`, unsuppressed.

    Args:
        raw: `(A, 12)` per anchor: box centre x, y, width, height, then 4 points x, y, all in input pixels and, but for
            the size, relative to the anchor.
        logits: `(A,)`.

    Returns:
        `(D, 6, 2)` in [0, 1]: top left, bottom right, and the points middle of the hips, whole-body circle, middle of
        the shoulders, upper-body circle; and `(D,)` scores.
    """
    scores = sigmoid(logits)
    chosen = scores >= threshold
    values = raw[chosen].astype(np.float64).reshape(-1, 6, 2) / DETECTOR_SIDE
    half = values[:, 1] / 2
    points = values + centres[chosen][:, None]
    points[:, 1] = points[:, 0] + half
    points[:, 0] -= half
    return points, scores[chosen]


def blend_overlapping(
    points: NDArray[np.float64], scores: NDArray[np.float64], iou_threshold: float = 0.3
) -> list[tuple[NDArray[np.float64], float]]:
    """Weighted suppression: each best detection becomes the mean, by score, of those that overlap it.

    Args:
        points: `(D, 6, 2)` as `decode_detections` returns them, `scores` `(D,)`.

    Returns:
        pairs of `(6, 2)` and best score, best first.
    """
    waiting = np.argsort(-scores, kind="stable")
    areas = np.clip(points[:, 1] - points[:, 0], 0, None).prod(axis=1)
    blended = []
    while len(waiting):
        best = waiting[0]
        first = np.maximum(points[best, 0], points[waiting, 0])
        last = np.minimum(points[best, 1], points[waiting, 1])
        overlap = np.clip(last - first, 0, None).prod(axis=1)
        union = areas[best] + areas[waiting] - overlap
        same = overlap > iou_threshold * union
        same[0] = True
        weights = scores[waiting[same]]
        mean = np.einsum("d,dij->ij", weights, points[waiting[same]]) / weights.sum()
        blended.append((mean, float(scores[best])))
        waiting = waiting[~same]
    return blended


def crop_around(hips: NDArray[np.float64], circle: NDArray[np.float64]) -> Crop:
    """The crop around a body from two points in raw pixels: the middle of its hips, and a point on the circle around
    the whole body, in the direction of its head.
    """
    dx, dy = (circle - hips).tolist()
    rotation = pi / 2 - atan2(-dy, dx)
    rotation -= 2 * pi * np.floor((rotation + pi) / (2 * pi))
    return Crop(float(hips[0]), float(hips[1]), max(1.0, 2 * hypot(dx, dy) * CROP_MARGIN), float(rotation))


def decode_landmarks(raw: NDArray[np.float32], heatmaps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Landmark outputs → `(39, 3)`: x, y in the unit square of the crop, and score.

    Args:
        raw: `(195,)`: for each landmark x, y, z in crop pixels, visibility logit, presence logit.
        heatmaps: `(64, 64, 39)` logits, which refine x and y.
    """
    values = raw.reshape(LANDMARKS, 5).astype(np.float64)
    landmarks = np.empty((LANDMARKS, 3))
    landmarks[:, :2] = values[:, :2] / LANDMARK_SIDE
    landmarks[:, 2] = sigmoid(values[:, 3:5].min(axis=1))
    for index in range(LANDMARKS):
        landmarks[index, :2] = _refine(landmarks[index, :2], heatmaps[..., index])
    return landmarks


def _refine(point: NDArray[np.float64], heatmap: NDArray[np.float32]) -> NDArray[np.float64]:
    height, width = heatmap.shape
    column, row = int(point[0] * width), int(point[1] * height)
    if not (0 <= column < width and 0 <= row < height):
        return point
    reach = HEATMAP_WINDOW // 2
    left, top = max(0, column - reach), max(0, row - reach)
    window = sigmoid(heatmap[top : row + reach + 1, left : column + reach + 1])
    if window.max() < HEATMAP_CONFIDENCE:
        return point
    x = (window.sum(axis=0) * (np.arange(window.shape[1]) + left)).sum() / window.sum() / width
    y = (window.sum(axis=1) * (np.arange(window.shape[0]) + top)).sum() / window.sum() / height
    return np.array([x, y])


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logistic function in float64, safe from overflow; NaN becomes 0."""
    clipped = np.clip(np.nan_to_num(logits.astype(np.float64), nan=-100.0), -100, 100)
    return 1 / (1 + np.exp(-clipped))

"""Scores of pictures against what is true: pure functions over arrays, in milliseconds.

Masks are read from pictures by the nearest of black and white, as in Bar et al. (Visual Prompting via Image
Inpainting, arXiv 2209.00647), whose protocol the LVM paper follows for segmentation, detection and colorization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225])
"""Of ImageNet's channels, of values in [0, 1]: the published MSE of colorization is in their unit."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""


def foreground(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """`(H, W, 3)` uint8 RGB → `(H, W)` bool: pixels that are nearer to white than to black; a tie is black."""
    return picture.sum(axis=2, dtype=np.int64) * 2 > 3 * 255


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixels in both of two masks and in either."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; two empty masks are equal: 1."""
        return self.intersection / self.union if self.union else 1.0


def overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Overlap:
    """Of two masks `(H, W)` bool.

    Raises:
        ValueError: if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of {predicted.shape} and {truth.shape} cannot be compared")
    return Overlap(int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth)))


def mean_iou(overlaps: Sequence[Overlap]) -> float:
    """Mean over episodes of each one's IoU: the mIoU of Bar et al.; NaN for none."""
    return float(np.mean([one.iou for one in overlaps])) if overlaps else float("nan")


def class_iou(overlaps: Sequence[Overlap], classes: Sequence[str]) -> float:
    """The mIoU of few-shot segmentation: pixels summed over a class's episodes, then IoU, then the mean of classes."""
    pooled = []
    for name in dict.fromkeys(classes):
        mine = [one for one, its in zip(overlaps, classes, strict=True) if its == name]
        pooled.append(Overlap(sum(one.intersection for one in mine), sum(one.union for one in mine)).iou)
    return float(np.mean(pooled)) if pooled else float("nan")


def largest_rectangle(mask: NDArray[np.bool_]) -> Box | None:
    """Bounds of the largest 8-connected component of a mask `(H, W)`; of equals the first in raster order.

    Returns:
        None for an empty mask.
    """
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    x, y, width, height, _ = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist()
    return x, y, x + width, y + height


def box_mask(box: Box | None, height: int, width: int) -> NDArray[np.bool_]:
    """`(height, width)` bool, True inside the box; nowhere for None."""
    mask = np.zeros((height, width), np.bool_)
    if box is not None:
        x0, y0, x1, y1 = box
        mask[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = True
    return mask


def mse(first: NDArray[np.uint8], second: NDArray[np.uint8], scale: NDArray[np.float64] | float = 1.0) -> float:
    """Mean squared error of pictures `(H, W, 3)` uint8, of values in [0, 1] divided by `scale`, one a channel.

    Raises:
        ValueError: if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"pictures of {first.shape} and {second.shape} cannot be compared")
    difference = (first.astype(np.float64) - second) / 255 / scale
    return float(np.square(difference).mean())


def correct_keypoints(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], size: float, alpha: float = 0.1
) -> tuple[int, int]:
    """Percentage of correct keypoints (PCK): how many lie within `alpha · size` of the truth, and how many there are.

    Args:
        predicted: `(K, 2)` x, y in pixels; NaN for a keypoint that was not found, which is wrong.
        truth: `(K, 2)`; NaN for one that is not visible, which does not count.
        size: the longer side of the object's box, in the same pixels.

    Raises:
        ValueError: if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"keypoints of {predicted.shape} and {truth.shape} cannot be compared")
    visible = np.isfinite(truth).all(axis=1)
    distances = np.linalg.norm(predicted[visible] - truth[visible], axis=1)
    # NaN compares as False: what was not found is wrong.
    return int(np.count_nonzero(distances <= alpha * size)), int(np.count_nonzero(visible))


def perplexity_of(losses: NDArray[np.float64]) -> float:
    """exp of the mean of −log p (nats) over the tokens of one answer."""
    return float(np.exp(np.mean(losses)))


def choice_accuracy(scores: NDArray[np.float64], correct: NDArray[np.integer]) -> float:
    """Share of questions whose lowest score is the correct candidate's, and no other's.

    Args:
        scores: `(N, candidates)`, such as perplexities; a tie with the correct one is a share: half a point for two.
        correct: `(N,)` places of the correct candidates.
    """
    best = scores == scores.min(axis=1, keepdims=True)
    right = np.take_along_axis(best, np.asarray(correct)[:, None], axis=1)[:, 0]
    return float(np.mean(right / best.sum(axis=1)))

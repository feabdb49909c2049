"""Segmentation as an image: class ids in the colours of the published palette, void black, foreground white.

Rules: an id is a palette index, so 0 is void; ids beyond the palette are an error, never wrapped around; where
instances overlap the smaller one is on top. Nothing is resized here: ids are mapped by nearest neighbour before.
10 instances at 256x256 cost about 0.3 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from uvd.renderers.canvas import MAX_SIDE
from uvd.renderers.coco_masks import decode_coco_segmentation
from uvd.renderers.palette import VOID, check_ids, paint


def render_segmentation(label_map: NDArray[np.integer], void: Collection[int] = ()) -> NDArray[np.uint8]:
    """Colours a map of class ids.

    Args:
        label_map: `(H, W)` integers, each a palette index; 0 is void.
        void: further ids that mean "no class" and become black, such as 255 in Pascal VOC and Cityscapes.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: for a map of another shape or type, or an id that is neither in the palette nor void.
    """
    labels = np.asarray(label_map)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or not 1 <= min(labels.shape) <= MAX_SIDE:
        raise ValueError(f"label map is {labels.dtype} {labels.shape}, expected integers (H, W)")
    if len(void):
        labels = np.where(np.isin(labels, list(void)), VOID, labels)
    return paint(labels)


def render_instances(masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_], classes: ArrayLike) -> NDArray[np.uint8]:
    """Colours instance masks by class on black, larger instances first.

    Args:
        masks: N masks `(H, W)` bool at output resolution, all of one size; at least one.
        classes: `(N,)` class ids, palette indices from 1.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: for no masks, masks of different sizes or types, ids outside the palette, or ids that are void.
    """
    topmost, ids = _topmost(masks, classes)
    return paint(topmost, ids)


def instance_labels(masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_], classes: ArrayLike) -> NDArray[np.integer]:
    """`(H, W)` map of class ids from instance masks by the same rules, for label maps that are still to be resized."""
    topmost, ids = _topmost(masks, classes)
    return ids.take(topmost)


def _topmost(
    masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_], classes: ArrayLike
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """For each pixel the rank of the smallest instance there (0 for none, ties to the later), and the ranks' ids."""
    ids = np.asarray(classes)
    if len(masks) == 0 or ids.shape != (len(masks),):
        raise ValueError(f"{len(masks)} masks and {ids.shape} classes: expected N masks and N classes, N ≥ 1")
    check_ids(ids)
    if (ids == VOID).any():
        raise ValueError("class id 0 is void, which is black: ids of classes count from 1")
    shape = masks[0].shape
    for mask in masks:
        if mask.ndim != 2 or mask.shape != shape or mask.dtype != np.bool_:
            raise ValueError(f"mask is {mask.dtype} {mask.shape}, expected bool {shape}")
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    order = np.argsort(-areas, kind="stable")
    # The rank of an instance grows as it gets smaller, so the maximum of ranks is the topmost instance.
    rank_type = np.uint8 if len(masks) < 256 else np.uint32
    topmost = np.zeros(shape, dtype=rank_type)
    for rank, index in enumerate(order.tolist(), start=1):
        np.maximum(topmost, masks[index].view(np.uint8) * rank_type(rank), out=topmost)
    return topmost, np.concatenate([[VOID], ids[order]])


def render_foreground(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`(H, W)` bool → `(H, W, 3)` uint8, white where True: the single-class form of Pascal-5i.

    Raises:
        ValueError: for a mask of another shape or type.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}, expected bool (H, W)")
    return cv2.cvtColor(mask.view(np.uint8) * np.uint8(255), cv2.COLOR_GRAY2RGB)


__all__ = [
    "decode_coco_segmentation",
    "instance_labels",
    "render_foreground",
    "render_instances",
    "render_segmentation",
]

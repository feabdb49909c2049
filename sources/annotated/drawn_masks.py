"""Masks of objects that wait for the transform of their photo: instances in colours of classes, or white on black.

A mask is only made when it is drawn, at the photo's full size, and kept at the picture's: the masks of a photo with
many objects would not fit into memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.coco_masks import decode_coco_segmentation
from uvd.renderers.segmentation import render_foreground, render_instances
from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.drawn_boxes import check_classes
from uvd.sources.drawing import Draw

MasksAfter = Callable[[Transform], Sequence[NDArray[np.bool_]]]
"""The masks of a photo's objects after its transform, each `(256, 256)` bool."""


class CocoMasks:
    """`MasksAfter` of COCO `segmentation` fields; several drawings of one photo share what is decoded.

    Args:
        segmentations: one each object: polygons or run lengths, in pixels of the photo.
        size: (width, height) of the photo.
    """

    def __init__(self, segmentations: Sequence[Any], size: tuple[int, int]) -> None:
        self._segmentations = segmentations
        self._size = size
        self._after: tuple[Transform, list[NDArray[np.bool_]]] | None = None

    def __call__(self, transform: Transform) -> Sequence[NDArray[np.bool_]]:
        """
        Raises:
            RejectedInput: for a damaged segmentation; says which.
        """
        if self._after is None or self._after[0] != transform:
            masks = [transform.labels(self._decode(number)) for number in range(len(self._segmentations))]
            self._after = transform, [mask.astype(np.bool_, copy=False) for mask in masks]
        return self._after[1]

    def _decode(self, number: int) -> NDArray[np.bool_]:
        width, height = self._size
        try:
            return decode_coco_segmentation(self._segmentations[number], height, width)
        except ValueError as error:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"segmentation of object {number}: {error}") from error


def draw_instances(masks: MasksAfter, classes: NDArray[np.integer]) -> Draw:
    """Each object in the colour of its class, on black; where two overlap, the smaller one is on top.

    Args:
        masks: of N objects.
        classes: `(N,)` places in the palette, from 1.

    Raises:
        RejectedInput: for a class outside the palette.
    """
    check_classes(classes)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        after = masks(transform)
        if not len(after):
            return np.zeros((transform.size, transform.size, 3), np.uint8), False
        return render_instances(after, classes), any(bool(mask.any()) for mask in after)

    return draw


def draw_foreground(masks: MasksAfter, members: Sequence[int]) -> Draw:
    """Some of the objects together, white on black: the form of Pascal-5i, where these are all of one class.

    Args:
        masks: of N objects.
        members: which of them, one at least.
    """

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        after = masks(transform)
        mask = np.logical_or.reduce([after[member] for member in members])
        return render_foreground(mask), bool(mask.any())

    return draw

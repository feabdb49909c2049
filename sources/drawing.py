"""Annotations that wait for the transform of their photo: ids, boxes and masks, drawn after it, never blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.palette import PALETTE_SIZE, paint
from uvd.renderers.segmentation import render_segmentation
from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.decode import decode_image, decode_labels, read_bytes

Labels = NDArray[np.int32]

Draw = Callable[[Transform, NDArray[np.uint8]], tuple[NDArray[np.uint8], bool]]
"""(the example's transform, the photo after it) → the annotation as `(256, 256, 3)` uint8 RGB, and whether it shows
anything there. Labels are taken through the transform by nearest neighbour, coordinates are mapped and then drawn.
Raises RejectedInput for an annotation that cannot be drawn."""


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Within it a `RejectedInput` names the file that is to blame."""
    try:
        yield
    except RejectedInput as rejected:
        if path in rejected.detail:
            raise
        raise RejectedInput(rejected.reason, f"{path}: {rejected.detail}") from rejected


class ImageFolder(Protocol):
    """The settings that say where image files lie and how large they may be."""

    @property
    def input(self) -> Path: ...

    @property
    def max_bytes(self) -> int: ...

    @property
    def max_pixels(self) -> int: ...


def open_image(config: ImageFolder, path: str) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """`decode_image` of a file of the input."""
    return decode_image(read_bytes(config.input / path, config.max_bytes), max_pixels=config.max_pixels)


def open_labels(config: ImageFolder, path: str) -> Labels:
    """`decode_labels` of a file of the input; a reject names it."""
    with naming(path):
        return decode_labels(read_bytes(config.input / path, config.max_bytes), max_pixels=config.max_pixels)


def check_size(annotation: NDArray, path: str, pixels: NDArray[np.uint8]) -> None:
    """
    Raises:
        RejectedInput: unless an annotation `(H, W, …)` covers its frame pixel for pixel.
    """
    if annotation.shape[:2] != pixels.shape[:2]:
        detail = f"{path} is {annotation.shape[1::-1]}, its frame {pixels.shape[1::-1]}"
        raise RejectedInput(Reason.BAD_ANNOTATION, detail)


def draw_ids(ids: Labels) -> Draw:
    """Ids are places in the palette; 0 is void."""

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        labels = transform.labels(ids)
        try:
            return render_segmentation(labels.astype(np.int32)), bool(labels.any())
        except ValueError as error:
            raise RejectedInput(Reason.BAD_ANNOTATION, str(error)) from error

    return draw


def draw_with(ids: Labels, colours: dict[int, int], path: str) -> Draw:
    """Ids get the place in the palette that `colours` says; 0 is void. Ids not among them are an error.

    All ids of the annotation are checked, those that the transform cuts away too.
    """
    present = np.unique(ids)
    for identity in present.tolist():
        if identity and identity not in colours:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"{path}: pixels of id {identity}, which is no segment")
        if identity and colours[identity] >= PALETTE_SIZE:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"over {PALETTE_SIZE - 1} objects: the palette has no more")
    places = np.array([colours[identity] if identity else 0 for identity in present.tolist()], dtype=np.int64)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        labels = places[np.searchsorted(present, transform.labels(ids))]
        return paint(labels), bool(labels.any())

    return draw

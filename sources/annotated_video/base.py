"""The contract of a reader: one published form of annotated video → windows of up to 8 annotated frames.

A reader plans (`items`) and opens one window (`frames`); the transform, the pictures and the accounting are the
source's. What can be seen to be unusable when planning, such as a frame without annotation, is an item too: `refused`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import MAX_IMAGES
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video.config import AnnotatedVideoConfig
from uvd.sources.base import Item
from uvd.sources.drawing import Draw

WINDOW = MAX_IMAGES // 2
"""Annotated frames of one sequence; each is two pictures."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AnnotatedFrame:
    """One frame and its annotation, before the transform.

    Attributes:
        pixels: `(H, W, 3)` uint8 RGB; the transform is fitted to these.
        size: (width, height) of the raw frame.
        origin, annotation_origin: paths relative to the input.
        number: the frame's number in its video, or None.
        draw: makes the annotation's picture.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    origin: str
    annotation_origin: str
    number: int | None
    draw: Draw


class Reader(ABC):
    """Subclass, implement `items` and `frames`, and add one line to `uvd.sources.annotated_video.READERS`."""

    def __init__(self, config: AnnotatedVideoConfig) -> None:
        self.config = config

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All planned inputs in a deterministic order: windows, and what was `refused`.

        A window has `origin`, `clip` (what is split as a whole), `role` of its annotations, `split` if the data set
        says which, and whatever `frames` needs and identifies its content.

        Raises:
            SourceError: if the input as a whole is not of this form.
        """

    @abstractmethod
    def frames(self, item: Item) -> Iterator[AnnotatedFrame | RejectedInput]:
        """The frames of a window in their order. A `RejectedInput` that is yielded says what was left out of it.

        Raises:
            RejectedInput: if the window cannot be used at all.
        """

    def close(self) -> None:  # noqa: B027 - most readers hold nothing
        """Ends child processes and forgets what was read; called after each work unit."""


def windows(frames: Sequence[T], stride: int = 1) -> Iterator[list[T]]:
    """Every `stride`-th frame, in groups of up to 8.

    >>> list(windows(range(20), 2))
    [[0, 2, 4, 6, 8, 10, 12, 14], [16, 18]]
    """
    taken = list(frames[::stride])
    return (taken[start : start + WINDOW] for start in range(0, len(taken), WINDOW))

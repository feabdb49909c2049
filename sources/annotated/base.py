"""The contract of a reader: one published form of annotated images → photos, each with annotations to draw.

A reader plans (`items`) and opens one photo (`open`); the transform, the pictures, networks and the accounting are the
source's. What can be seen to be unusable when planning, such as a photo without annotation, is an item too: `refused`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.base import Item
from uvd.sources.drawing import Draw


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation of a photo, before the transform.

    Attributes:
        role: of its picture: `boxes`, `pose`, `segmentation`, `foreground`, `depth`, ...
        origin: path relative to the input of the file that it is from.
        draw: makes its picture.
        drawn: False for pictures that are photos themselves, such as the clean one of a restoration pair: these may be
            stored as JPEG.
        group: "" for annotations that belong into one example with the photo. Any other makes an example of its own,
            photo and annotation, beside others of the same group only: masks of one class. Never written.
        degraded: True for what the photo would be restored from, see `Picture`.
    """

    role: str
    origin: str
    draw: Draw
    drawn: bool = True
    group: str = ""
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One photo and its annotations.

    Attributes:
        pixels: `(H, W, 3)` uint8 RGB, upright; the transform is fitted to these.
        size: (width, height) of the raw photo.
        origin: path relative to the input.
        annotations: in the order in which their pictures follow the photo's.
        people: `(N, 4)` x, y, width, height of people in `pixels`, for pose networks; None if no annotation says.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    origin: str
    annotations: tuple[Annotation, ...]
    people: NDArray[np.float64] | None = None


class Reader(ABC):
    """Subclass, implement `items` and `open`, and add one line to `uvd.sources.annotated.READERS`."""

    def __init__(self, config: AnnotatedConfig) -> None:
        self.config = config

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All planned inputs in a deterministic order: photos, and what was `refused`.

        A photo has `origin`, `split` if the data set says which, and whatever `open` needs and identifies its content
        (sizes of its files in bytes).

        Raises:
            SourceError: if the input as a whole is not of this form.
        """

    @abstractmethod
    def open(self, item: Item) -> AnnotatedImage:
        """Decodes the photo of an item and gets its annotations ready to be drawn.

        Raises:
            RejectedInput: if the photo or an annotation cannot be used.
        """

    def close(self) -> None:  # noqa: B027 - most readers hold nothing
        """Ends child processes and forgets what was read; called after each work unit."""

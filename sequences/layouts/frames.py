"""`frames`: consecutive sampled frames of one video; the source has cut the window (16 frames at one stride)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from uvd.sequences.example import Example
from uvd.sequences.layouts.base import Arranged, Layout, LayoutError
from uvd.sequences.visual_sequence import MAX_IMAGES


class Frames(Layout):
    name: ClassVar[str] = "frames"

    def add(self, example: Example) -> Iterator[Arranged]:
        if len(example.pictures) > MAX_IMAGES:
            raise LayoutError(f"frames: a window of {len(example.pictures)} frames is over {MAX_IMAGES}")
        yield self.sequence([example], example.pictures)

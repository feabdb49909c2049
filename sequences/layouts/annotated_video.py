"""`interleaved` {f1, a1, f2, a2, …} and `grouped` {f1, f2, …, a1, a2, …}: frames of a video with one annotation type.

Paper, section 3.1. The example holds frames and annotations alternating, f1 a1 f2 a2 …, at most 16 in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar

from uvd.sequences.example import Example
from uvd.sequences.layouts.base import Arranged, Layout, LayoutError
from uvd.sequences.visual_sequence import MAX_IMAGES

T = TypeVar("T")


def grouped_order(alternating: Sequence[T]) -> list[T]:
    """All first members, then all second ones.

    >>> grouped_order(["f1", "a1", "f2", "a2"])
    ['f1', 'f2', 'a1', 'a2']
    """
    return [*alternating[::2], *alternating[1::2]]


def _check(example: Example, layout: str) -> None:
    pictures = example.pictures
    if len(pictures) % 2 or len(pictures) > MAX_IMAGES:
        raise LayoutError(f"{layout}: {len(pictures)} pictures are not up to {MAX_IMAGES // 2} pairs")
    if {picture.role for picture in pictures[::2]} != {"frame"} or len({p.role for p in pictures[1::2]}) != 1:
        raise LayoutError(f"{layout}: pictures must alternate between frames and one type of annotation")


class Interleaved(Layout):
    name: ClassVar[str] = "interleaved"

    def add(self, example: Example) -> Iterator[Arranged]:
        _check(example, self.name)
        yield self.sequence([example], example.pictures)


class Grouped(Layout):
    name: ClassVar[str] = "grouped"

    def add(self, example: Example) -> Iterator[Arranged]:
        _check(example, self.name)
        yield self.sequence([example], grouped_order(example.pictures))

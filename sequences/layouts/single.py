"""`single`: every picture is a sequence of its own (unlabelled images, 88.5 % of UVDv1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from uvd.sequences.example import Example
from uvd.sequences.layouts.base import Arranged, Layout


class Single(Layout):
    name: ClassVar[str] = "single"

    def add(self, example: Example) -> Iterator[Arranged]:
        for picture in example.pictures:
            yield self.sequence([example], [picture])

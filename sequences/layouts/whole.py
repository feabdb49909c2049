"""`whole`: a photo and all that was made of it, one example a sequence, in the example's order.

The form in which estimates are kept: kind `shards` of the source `annotated` takes such sequences apart again, so that
what networks saw once serves many datasets. An example that belongs to a group (masks of one class, categories) is
refused, because its group is not written and could not be kept apart later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from uvd.sequences.example import Example
from uvd.sequences.layouts.base import Arranged, Layout, LayoutError
from uvd.sequences.visual_sequence import MAX_IMAGES


class Whole(Layout):
    name: ClassVar[str] = "whole"

    def add(self, example: Example) -> Iterator[Arranged]:
        """
        Raises:
            LayoutError: for more than 16 pictures, or an example of a group.
        """
        origin = example.pictures[0].origin
        if len(example.pictures) > MAX_IMAGES:
            raise LayoutError(f"whole: {origin!r} has {len(example.pictures)} pictures, over {MAX_IMAGES}")
        if example.group:
            raise LayoutError(f"whole: {origin!r} belongs to a group, such as a class, which would be lost")
        yield self.sequence([example], example.pictures)

"""`multiview`: windows of 16 consecutive views of one object on its orbit of 24.

24 views do not fit 16 images, so an object gives as few windows as cover every view; start and direction of rotation
are seeded, and the orbit is a circle, so each window turns evenly. Where views have other roles, such as depth, each
role has the same windows, each a sequence of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from uvd.sequences.example import Example, Picture
from uvd.sequences.layouts.base import Arranged, Layout, LayoutError
from uvd.sequences.visual_sequence import MAX_IMAGES


def orbit_windows(views: int, start: int, direction: int, size: int = MAX_IMAGES) -> list[list[int]]:
    """Windows of consecutive view numbers on a circle that together hold every view.

    Args:
        views: how many views the orbit has.
        start: first view of the first window.
        direction: 1 or -1.
        size: views a window, unless the orbit has fewer.

    >>> orbit_windows(6, 1, -1, 4)
    [[1, 0, 5, 4], [3, 2, 1, 0]]
    """
    size = min(size, views)
    starts = [start + direction * size * window for window in range(math.ceil(views / size))]
    return [[(first + direction * step) % views for step in range(size)] for first in starts]


class Multiview(Layout):
    name: ClassVar[str] = "multiview"

    def add(self, example: Example) -> Iterator[Arranged]:
        """
        Raises:
            LayoutError: if roles have different numbers of pictures.
        """
        roles: dict[str, list[Picture]] = {}
        for picture in example.pictures:
            roles.setdefault(picture.role, []).append(picture)
        views, *others = {len(pictures) for pictures in roles.values()}
        if others:
            counts = {role: len(pictures) for role, pictures in roles.items()}
            raise LayoutError(f"multiview: {example.pictures[0].origin!r} has unequal numbers of views: {counts}")
        rng = self.seeds.generator(*example.inputs)
        start, direction = int(rng.integers(views)), 1 if rng.integers(2) else -1
        for window in orbit_windows(views, start, direction):
            for pictures in roles.values():
                yield self.sequence([example], [pictures[view] for view in window])

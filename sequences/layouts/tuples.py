"""`tuples`: an image and its k annotations; m of these 1 + k roles in one order, as many m-tuples as fit 16 images.

Paper, section 3.1: for images with several annotations, m is drawn, then the roles, then their order, which stays the
same for the whole sequence. Examples wait for others of the same roles and group (masks of one class); the draw is
seeded per sequence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from uvd.sequences.example import Example
from uvd.sequences.layouts.base import Arranged, Layout, LayoutError
from uvd.sequences.seeds import Seeds
from uvd.sequences.visual_sequence import MAX_IMAGES

Roles = tuple[str, ...]


def draw_roles(roles: Sequence[str], rng: np.random.Generator) -> Roles:
    """Draws m in [2, min(len(roles), 16)], then m of the roles in random order."""
    m = int(rng.integers(2, min(len(roles), MAX_IMAGES) + 1))
    return tuple(roles[index] for index in rng.permutation(len(roles))[:m])


class Tuples(Layout):
    name: ClassVar[str] = "tuples"

    def __init__(self, seeds: Seeds) -> None:
        super().__init__(seeds)
        self._waiting: dict[tuple[str, str, str, Roles], list[Example]] = defaultdict(list)
        self._drawn: dict[tuple[str, str, str, Roles], Roles] = {}
        self._draws = 0

    def add(self, example: Example) -> Iterator[Arranged]:
        roles = tuple(picture.role for picture in example.pictures)
        if len(set(roles)) < 2 or len(set(roles)) != len(roles):
            raise LayoutError(f"tuples: {example.pictures[0].origin!r} needs two or more different roles, has {roles}")
        key = (example.dataset, example.split, example.group, roles)
        if key not in self._drawn:
            self._drawn[key] = draw_roles(roles, self.seeds.generator(self._draws))
            self._draws += 1
        self._waiting[key].append(example)
        if len(self._waiting[key]) == MAX_IMAGES // len(self._drawn[key]):
            yield self._arrange(self._waiting.pop(key), self._drawn.pop(key))

    def finish(self) -> Iterator[Arranged]:
        for key, examples in self._waiting.items():
            yield self._arrange(examples, self._drawn[key])
        self._waiting.clear()
        self._drawn.clear()

    def _arrange(self, examples: list[Example], roles: Roles) -> Arranged:
        pictures = []
        for example in examples:
            by_role = {picture.role: picture for picture in example.pictures}
            pictures += [by_role[role] for role in roles]
        return self.sequence(examples, pictures)

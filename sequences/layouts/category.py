"""`category`: images of one class in groups of 2, 4, 8 or 16, groups concatenated to sequences of 16 images.

The model must see for itself what a group shares: class names never leave memory. Examples come class by class; the
size of each group is seeded, and groups of one size wait for each other: 16 images hold 8, 4, 2 or 1 classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from uvd.sequences.example import Example
from uvd.sequences.layouts.base import Arranged, Layout
from uvd.sequences.reject import Reason, Reject
from uvd.sequences.seeds import Seeds
from uvd.sequences.visual_sequence import MAX_IMAGES

GROUP_SIZES = (2, 4, 8, 16)


@dataclass(slots=True)
class _Group:
    """The group being filled for one dataset and split."""

    label: str
    size: int
    examples: list[Example] = field(default_factory=list)


class Category(Layout):
    name: ClassVar[str] = "category"

    def __init__(self, seeds: Seeds) -> None:
        super().__init__(seeds)
        self._groups_begun = 0
        self._open: dict[tuple[str, str], _Group] = {}
        self._waiting: dict[tuple[str, str, int], list[Example]] = defaultdict(list)

    def add(self, example: Example) -> Iterator[Arranged]:
        key = (example.dataset, example.split)
        group = self._open.get(key)
        if group is not None and group.label != example.group:
            yield from self._cut_short(group)
            group = None
        if group is None or not group.examples:
            group = self._open[key] = self._begin(example.group)
        group.examples.append(example)
        if len(group.examples) == group.size:
            yield from self._queue(group.examples)
            group.examples = []

    def finish(self) -> Iterator[Arranged]:
        for group in self._open.values():
            yield from self._cut_short(group)
        for examples in self._waiting.values():
            if examples:
                yield self._concatenate(examples)
        self._open.clear()
        self._waiting.clear()

    def _begin(self, label: str) -> _Group:
        size = int(self.seeds.generator(self._groups_begun).choice(GROUP_SIZES))
        self._groups_begun += 1
        return _Group(label, size)

    def _cut_short(self, group: _Group) -> Iterator[Arranged]:
        """Ends a class whose last group is not full: it is cut into smaller groups; a single image is left over."""
        rest = group.examples
        for size in reversed(GROUP_SIZES):
            while len(rest) >= size:
                yield from self._queue(rest[:size])
                rest = rest[size:]
        for example in rest:
            for index in example.inputs:
                yield Reject(index, example.pictures[0].origin, Reason.LEFTOVER, "no second image of its class")

    def _queue(self, group: list[Example]) -> Iterator[Arranged]:
        key = (group[0].dataset, group[0].split, len(group))
        waiting = self._waiting[key]
        waiting.extend(group)
        if len(waiting) == MAX_IMAGES:
            yield self._concatenate(waiting)
            self._waiting[key] = []

    def _concatenate(self, examples: list[Example]) -> Arranged:
        return self.sequence(examples, [example.pictures[0] for example in examples])

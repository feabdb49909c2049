"""`pairs`: {image, annotation} x 8, one annotation type a sequence; {degraded, image} for what is to be restored.

The paper's form for image-to-image tasks: the pairs before the last one are examples of the task. An example with
several annotations takes part once for each of them; examples of one group (masks of one class) share sequences with
no others; the last sequence of a shard may hold fewer pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar

from uvd.sequences.example import Example, Picture
from uvd.sequences.layouts.base import Arranged, Layout, LayoutError
from uvd.sequences.seeds import Seeds
from uvd.sequences.visual_sequence import MAX_IMAGES

PAIRS = MAX_IMAGES // 2


class Pairs(Layout):
    name: ClassVar[str] = "pairs"

    def __init__(self, seeds: Seeds) -> None:
        super().__init__(seeds)
        self._waiting: dict[tuple[str, str, str, str], list[Example]] = defaultdict(list)

    def add(self, example: Example) -> Iterator[Arranged]:
        if len(example.pictures) < 2:
            raise LayoutError(f"pairs: {example.pictures[0].origin!r} has no annotation beside its image")
        for annotation in example.pictures[1:]:
            key = (example.dataset, example.split, example.group, annotation.role)
            self._waiting[key].append(example)
            if len(self._waiting[key]) == PAIRS:
                yield self._arrange(self._waiting.pop(key), annotation.role)

    def finish(self) -> Iterator[Arranged]:
        for (*_, role), examples in self._waiting.items():
            yield self._arrange(examples, role)
        self._waiting.clear()

    def _arrange(self, examples: list[Example], role: str) -> Arranged:
        pictures: list[Picture] = []
        for example in examples:
            annotation = next(picture for picture in example.pictures[1:] if picture.role == role)
            pair = [example.pictures[0], annotation]
            pictures += reversed(pair) if annotation.degraded else pair
        return self.sequence(examples, pictures)

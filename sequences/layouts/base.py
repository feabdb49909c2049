"""The contract of a layout: examples in, visual sequences out.

A layout sees the examples of one shard one by one and hands out a sequence as soon as it is complete, so that at most a
few sequences are in memory. It never mixes datasets or splits in a sequence. What it does must depend on the examples
and the seeds only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from uvd.sequences.errors import UserError
from uvd.sequences.example import Example, Picture
from uvd.sequences.reject import Reject
from uvd.sequences.seeds import Seeds
from uvd.sequences.visual_sequence import VisualSequence

Arranged = VisualSequence | Reject


class LayoutError(UserError):
    """An example that this layout cannot arrange: a mistake in the config (`layouts:` of a source)."""


class Layout(ABC):
    """Subclass, set `name`, implement `add` (and `finish` if examples wait for others), register in `LAYOUTS`."""

    name: ClassVar[str]

    def __init__(self, seeds: Seeds) -> None:
        self.seeds = seeds.child("layout", self.name)

    @abstractmethod
    def add(self, example: Example) -> Iterator[Arranged]:
        """Takes one example; yields the sequences that are complete now."""

    def finish(self) -> Iterator[Arranged]:
        """Yields what is left at the end of the shard."""
        return iter(())

    def sequence(self, examples: Sequence[Example], pictures: Sequence[Picture]) -> VisualSequence:
        """A sequence of this layout made from `examples`, which share dataset and split."""
        return VisualSequence(
            pictures=tuple(pictures),
            layout=self.name,
            dataset=examples[0].dataset,
            split=examples[0].split,
            inputs=frozenset(index for example in examples for index in example.inputs),
        )

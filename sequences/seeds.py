"""Seeded randomness: every draw is a function of (seed, path), never of order, worker or time.

A Philox counter generator (Salmon et al., 2011) is keyed by a hash of the path, so that item 17 of shard 3 draws the
same numbers whether it is made first, last, twice or on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

Part = str | int


@dataclass(frozen=True, slots=True)
class Seeds:
    """A point in the tree of random streams.

    >>> Seeds(0, ("video", 3)).generator(17).integers(10) == Seeds(0).child("video", 3, 17).generator().integers(10)
    True
    """

    seed: int
    path: tuple[Part, ...] = ()

    def child(self, *parts: Part) -> Seeds:
        return Seeds(self.seed, self.path + parts)

    def _digest(self, parts: tuple[Part, ...]) -> int:
        text = json.dumps([self.seed, *self.path, *parts], separators=(",", ":"))
        return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "little")

    def generator(self, *parts: Part) -> np.random.Generator:
        """A fresh generator for `path + parts`; calling it twice gives the same stream twice."""
        return np.random.Generator(np.random.Philox(key=self._digest(parts)))


def split_of(identity: str, fractions: Mapping[Any, float]) -> str:
    """The split of whatever `identity` names (a URL, a video, an object), by hash alone.

    Args:
        identity: everything that must stay on one side has the same identity: all windows of a video, all views.
        fractions: share of each held-out split, such as `{"val": 0.01, "test": 0.16}`; the rest is `train`.
    """
    position = int.from_bytes(blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64
    edge = 0.0
    for split, fraction in sorted(fractions.items()):
        edge += fraction
        if position < edge:
            return split
    return "train"

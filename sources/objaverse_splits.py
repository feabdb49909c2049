"""Train or test by hash of an object's identity, and the paper's numbers of each out of however many there are.

UVDv1 has 42,000 objects to train and 8,000 to test (LVM, arXiv 2312.00785); which ones is not published. Here hashes
decide: 16 % of the objects are for testing, and of each side those with the smallest hashes are taken. An object never
changes sides, whatever is added later; it may give way to new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from uvd.sequences.seeds import split_of
from uvd.sources.base import Item
from uvd.sources.objaverse_inputs import identity_of


def chosen(items: Iterable[Item], shares: Mapping[Any, float], counts: Mapping[Any, int]) -> list[Item]:
    """Those of `items` that are taken, in their order.

    Args:
        items: with the origin, and refused ones, which are kept.
        shares: of each held-out split.
        counts: at most so many objects of a split; splits that are not named are not limited.
    """
    items = list(items)
    known = [(identity_of(item), number) for number, item in enumerate(items) if "refused" not in item]
    taken: Counter[str] = Counter()
    left_out = set()
    for identity, number in sorted(known, key=lambda one: (_rank(one[0]), one[1])):
        split = split_of(identity, shares)
        if taken[split] >= counts.get(split, len(items)):
            left_out.add(number)
        taken[split] += 1
    return [item for number, item in enumerate(items) if number not in left_out]


def _rank(identity: str) -> bytes:
    return blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8, person=b"objaverse").digest()

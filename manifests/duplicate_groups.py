"""From pairs of near hashes to groups: which hash stays, and which images belong to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.distinct import Distinct

Numbers = NDArray[np.int64]
_BATCH = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Hashes of images that are marked or represent marked ones.

    Attributes:
        hashes: `(n,)` uint64, ascending.
        leader_places: `(n,)` int64, place in the stream of the image that represents each.
        numbers: `(n,)` int64, of its group, in the order of those places.
    """

    hashes: NDArray[np.uint64]
    leader_places: Numbers
    numbers: Numbers

    def images(self, pieces: Iterable[NDArray[np.uint64]]) -> tuple[Numbers, Numbers]:
        """Places in the stream of the images with these hashes, ascending, and which hash each has."""
        places, members, start = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for piece in pieces:
            if len(self.hashes):
                found = np.searchsorted(self.hashes, piece).clip(max=len(self.hashes) - 1)
                hit = np.flatnonzero(self.hashes[found] == piece)
                places.append(start + hit)
                members.append(found[hit])
            start += len(piece)
        return np.concatenate(places), np.concatenate(members)


def group_hashes(
    found: Distinct, low: NDArray[np.uint64], high: NDArray[np.uint64], boundary: int | None = None
) -> Groups:
    """
    Args:
        found: all different hashes.
        low, high: the pairs of near ones.
        boundary: images before this place are of evaluation sets: all that is near one of theirs is marked, and nothing
            else. None: each image that is near one that stays.
    """
    a, b = np.searchsorted(found.hashes, low), np.searchsorted(found.hashes, high)
    members, leaders = _greedy(found, a, b) if boundary is None else _near_known(found, a, b, boundary)
    first = found.first[leaders]
    _, numbers = np.unique(first, return_inverse=True)
    return Groups(np.asarray(found.hashes[members]), np.asarray(first), numbers.astype(np.int64))


def _greedy(found: Distinct, a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    """(hashes, their leaders) of the groups of two images or more."""
    nodes = np.unique(np.concatenate([a, b]))
    order = np.argsort(found.first[nodes])
    rank = np.empty(len(nodes), np.int64)
    rank[order] = np.arange(len(nodes))
    ranks = np.stack([rank[np.searchsorted(nodes, a)], rank[np.searchsorted(nodes, b)]])
    low, high = ranks.min(0), ranks.max(0)
    by_high = np.lexsort((low, high))
    chosen = first_leaders(low[by_high], high[by_high], len(nodes))
    leader_of_node = nodes[order][chosen][rank]

    members = np.union1d(nodes, np.flatnonzero(found.counts > 1))
    leaders = members.copy()
    leaders[np.searchsorted(members, nodes)] = leader_of_node
    _, group = np.unique(leaders, return_inverse=True)
    sizes = np.bincount(group, weights=found.counts[members])
    kept = sizes[group] > 1
    return members[kept], leaders[kept]


def _near_known(found: Distinct, a: Numbers, b: Numbers, boundary: int) -> tuple[Numbers, Numbers]:
    """(hashes, the first known one that each is near), the known ones among them too."""
    pairs = np.concatenate([np.stack([a, b], 1), np.stack([b, a], 1)])
    known = found.first[pairs[:, 0]] < boundary
    other = found.first[pairs[:, 1]] >= boundary
    pairs = pairs[known & other]
    # Of several known ones the first in the stream.
    order = np.lexsort((found.first[pairs[:, 0]], pairs[:, 1]))
    pairs = pairs[order]
    starts = np.flatnonzero(np.diff(pairs[:, 1], prepend=-1))
    leaders, members = pairs[starts, 0], pairs[starts, 1]
    own = np.flatnonzero(found.first < boundary)
    members, leaders = np.concatenate([members, own]), np.concatenate([leaders, own])
    order = np.argsort(members)
    return members[order], leaders[order]


def first_leaders(low: Numbers, high: Numbers, nodes: int) -> Numbers:
    """For each node the first leader among its neighbours, or itself: then it is a leader.

    Args:
        low, high: pairs of neighbours, low < high, sorted by high and then low.
        nodes: they are 0 to nodes - 1, in order of precedence.
    """
    leaders = np.arange(nodes)
    for start in range(0, len(low), _BATCH):
        part = slice(start, start + _BATCH)
        for first, second in zip(low[part].tolist(), high[part].tolist(), strict=True):
            if leaders[second] == second and leaders[first] == first:
                leaders[second] = first
    return leaders

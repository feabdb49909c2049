"""Pictures that look alike: a bounded scan of the manifests' perceptual hashes, and the marks of `uvd dedup`.

The scan begins with the shard that the picture is in and goes on outwards, as near-duplicates mostly come from inputs
that were near each other; then come the other sources.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from uvd.manifests.dataset import Shard
from uvd.manifests.dedup import FOLDER
from uvd.manifests.schema import read_metadata
from uvd.pipeline.browse.catalog import Catalog, Found
from uvd.pipeline.browse.filters import FilterError

FIRST = 100_000
"""Sequences that are searched unless more is asked for."""
MOST = 2_000_000
NEAREST = 24
MARKED_ROWS = 20_000_000
"""Of a file of marks; longer ones are not searched."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A picture near another: differing bits of 64, its sequence, and its number there."""

    bits: int
    found: Found
    picture: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest pictures, and among how many sequences they were looked for; `complete` if these were all."""

    nearest: list[Neighbour]
    searched: int
    complete: bool


class NeighbourSearch:
    """Finds neighbours, one search at a time, for it takes a core."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._one = threading.Lock()

    def near(self, found: Found, picture: int, most: int = FIRST) -> Neighbours:
        """The pictures of the same role that are nearest to picture number `picture`, itself left out.

        Args:
            found: its sequence, with all columns.
            most: sequences to search; up to `MOST`. Whole shards are searched, so it may be some more.

        Raises:
            FilterError: if there is no such picture.
        """
        if not 0 <= picture < found.row["num_images"]:
            raise FilterError(f"{found.row['key']} has no picture {picture}")
        phash, role = np.uint64(found.row["phashes"][picture]), found.row["roles"][picture]
        best: list[tuple[int, int, Shard, int, int]] = []
        searched, complete = 0, True
        with self._one:
            for order, shard in enumerate(self._outwards(found)):
                self._catalog.go_on()
                if searched >= min(most, MOST):
                    complete = False
                    break
                table = self._catalog.table(shard, ["roles", "phashes"])
                searched += len(table)
                for bits, row, number in _nearest_of(table, phash, role):
                    if shard == found.shard and (row, number) == (found.place.row, picture):
                        continue
                    best.append((bits, order, shard, row, number))
                best = heapq.nsmallest(NEAREST, best, key=lambda one: (one[0], one[1], one[3], one[4]))
        nearest = [Neighbour(bits, self._catalog.at(shard, row), number) for bits, _, shard, row, number in best]
        return Neighbours(nearest, searched, complete)

    def _outwards(self, found: Found) -> Iterator[Shard]:
        """All shards: of its source by their distance, then of the others."""
        own = found.place.source
        numbers = self._catalog.listing(own).numbers
        for number in sorted(numbers, key=lambda number: (abs(number - found.shard.number), number)):
            yield Shard(found.shard.folder, number)
        for source in self._catalog.sources:
            if source != own:
                yield from (Shard(f"sequences/{source}", number) for number in self._catalog.listing(source).numbers)


def _nearest_of(table: Any, phash: np.uint64, role: str) -> Iterator[tuple[int, int, int]]:
    """(bits, row, number in its sequence) of the nearest pictures of a role in one manifest."""
    hashes, roles = table["phashes"].combine_chunks(), table["roles"].combine_chunks()
    values = hashes.flatten().to_numpy()
    same_role = pc.equal(roles.flatten(), role).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(same_role)
    bits = np.bitwise_count(values[places] ^ phash)
    # One more, because the picture itself is among them.
    order = np.argsort(bits, kind="stable")[: NEAREST + 1]
    rows = pc.list_parent_indices(hashes).to_numpy()
    starts = np.searchsorted(rows, rows[places[order]])
    for place, start, distance in zip(places[order].tolist(), starts.tolist(), bits[order].tolist(), strict=True):
        yield distance, int(rows[place]), place - start


@dataclass(frozen=True, slots=True)
class Marked:
    """What a pass of `uvd dedup` marked: the keys in the group of a sequence, and the differing bits it went by."""

    name: str
    bits: int
    keys: list[str]


def marks(catalog: Catalog, key: str) -> list[Marked]:
    """The groups that a sequence is in, of every pass that is there, which may be older than the dataset.

    At most `NEAREST` keys each. A file is read in pieces of 65,536 rows, one column at first.
    """
    storage, found = catalog.dataset.storage, []
    for name in storage.list(FOLDER):
        path = f"{FOLDER}/{name}"
        if not name.endswith(".parquet") or name.startswith("."):
            continue
        with storage.open(path) as file:
            parts = pq.ParquetFile(file)
            if parts.metadata.num_rows > MARKED_ROWS:
                continue
            groups = _groups(parts, key)
            keys = [other for other in _members(parts, groups) if other != key] if groups else []
            if groups:
                bits = int(read_metadata(parts.schema_arrow, path)["bits"])
                found.append(Marked(name.removesuffix(".parquet"), bits, keys))
    return found


def _groups(parts: pq.ParquetFile, key: str) -> set[int]:
    groups: set[int] = set()
    for number in range(parts.num_row_groups):
        mask = pc.equal(parts.read_row_group(number, ["key"])["key"], key)
        if pc.any(mask).as_py():
            groups |= set(parts.read_row_group(number, ["group"]).filter(mask)["group"].to_pylist())
    return groups


def _members(parts: pq.ParquetFile, groups: set[int]) -> list[str]:
    """Groups are in order, so that statistics of the row groups say where they are."""
    keys: dict[str, None] = {}
    place = parts.schema_arrow.get_field_index("group")
    for number in range(parts.num_row_groups):
        statistics = parts.metadata.row_group(number).column(place).statistics
        if statistics is None or any(statistics.min <= group <= statistics.max for group in groups):
            table = parts.read_row_group(number, ["key", "group"])
            mask = pc.is_in(table["group"], pa.array(sorted(groups), pa.int64()))
            keys |= dict.fromkeys(table.filter(mask)["key"].slice(0, NEAREST + 1).to_pylist())
            if len(keys) > NEAREST:
                break
    return list(keys)[: NEAREST + 1]

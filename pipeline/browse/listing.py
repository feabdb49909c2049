"""Which shards a source has, and how many wanted sequences are in each: from one listing, the index and footers.

The index of `uvd stats` is read, never written, and only where it is of the very manifests that are there. What it
does not cover is read from the shards' footers when it is asked for, and kept.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from uvd.manifests.blocks import Block, blocks_of, read_shard
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.summary import MEASURES, ROLE_MEASURES, Summary
from uvd.manifests.survey import INDEX
from uvd.pipeline.browse.filters import Filter

_THREADS = 16
_KEPT = 50_000
"""Summaries of single shards, about a kB each."""
_COLUMNS = ["folder", "block", "identity", "groups", "roles"]


@dataclass(frozen=True, slots=True)
class Part:
    """How many wanted sequences there are in a block whose summary the index has, or else in one shard."""

    numbers: tuple[int, ...]
    sequences: int
    indexed: bool


class Listing:
    """The shards of one source at one time."""

    def __init__(self, dataset: Dataset, source: str) -> None:
        self._dataset, self.folder = dataset, f"sequences/{source}"
        blocks = list(blocks_of(dataset, self.folder))
        known = _indexed(dataset, self.folder, blocks)
        self._blocks = [(block.numbers, known.get(block.number)) for block in blocks]
        self.numbers = [number for numbers, _ in self._blocks for number in numbers]
        self._summaries: dict[int, Summary] = {}

    @property
    def unknown(self) -> list[int]:
        """Shards that the index does not cover and whose footers were not read yet."""
        there = (numbers for numbers, summary in self._blocks if summary is None)
        return [number for numbers in there for number in numbers if number not in self._summaries]

    def after(self, number: int, wanted: Filter) -> int | None:
        """The first shard after `number` that may hold something wanted, as far as the index says."""
        for numbers, summary in self._blocks:
            if numbers[-1] > number and (summary is None or wanted.count(summary)):
                return numbers[bisect_right(numbers, number)]
        return None

    def summary(self, number: int) -> Summary:
        """What one shard holds.

        Raises:
            DatasetError: if its manifest is not one.
        """
        kept = self._summaries.get(number)
        if kept is None:
            if len(self._summaries) >= _KEPT:
                self._summaries.clear()
            kept = self._summaries[number] = read_shard(self._dataset, Shard(self.folder, number)).summary
        return kept

    def summaries(self, numbers: Sequence[int]) -> list[Summary]:
        """The same, of many; on object stores several at a time."""
        if self._dataset.storage.local_root is not None:
            return [self.summary(number) for number in numbers]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.summary, numbers))

    def parts(self, wanted: Filter, numbers: Sequence[int]) -> Iterator[Part]:
        """How many are wanted in each block of the index, and in each of the shards `numbers` outside of it."""
        for members, summary in self._blocks:
            if summary is not None:
                yield Part(members, wanted.count(summary), True)
        for number, summary in zip(numbers, self.summaries(numbers), strict=True):
            yield Part((number,), wanted.count(summary), False)

    @property
    def outside(self) -> list[int]:
        """Shards that the index does not cover."""
        return [number for numbers, summary in self._blocks if summary is None for number in numbers]

    def known(self) -> Iterator[Summary]:
        """All summaries that are at hand."""
        yield from (summary for _, summary in self._blocks if summary is not None)
        yield from list(self._summaries.values())


def _indexed(dataset: Dataset, folder: str, blocks: Sequence[Block]) -> dict[int, Summary]:
    """Summaries of those blocks that the index has as they are now."""
    wanted = {block.number: block.identity for block in blocks}
    storage = dataset.storage
    found: dict[int, Summary] = {}
    if not storage.exists(INDEX):
        return found
    with storage.open(INDEX) as file:
        try:
            table = pq.ParquetFile(file).read(columns=_COLUMNS)
        except pa.ArrowException:  # it is never the truth: without it, footers are read
            return found
    if table.column_names != _COLUMNS:
        return found
    for row in table.filter(pc.equal(table["folder"], folder)).to_pylist():
        if wanted.get(row["block"]) == row["identity"]:
            found[row["block"]] = Summary(_counts(row["groups"], MEASURES), _counts(row["roles"], ROLE_MEASURES))
    return found


def _counts(text: str, measures: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    names = -len(measures)
    return {tuple(row[:names]): row[names:] for row in json.loads(text)}

"""The index of statistics: what a survey found, block by block, kept beside the data for the next survey.

It is never the truth. A block counts as long as each of its manifests has the name, size and time of change that it
had; else its manifests are read again. The file may be deleted at any time, a damaged one is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from uvd.manifests.blocks import BLOCKS, Block, places
from uvd.manifests.dataset import Dataset

FOLDER = "index"
INDEX = f"{FOLDER}/statistics.parquet"
_GROUP = 16
"""Blocks of a row group, which is how much of it is held at a time: some 50,000 hosts each."""


class Index:
    """The index of the last survey, read in parts; and that of this one, written as it goes if it will differ."""

    def __init__(self, dataset: Dataset, wanted: Mapping[tuple[str, int], Block]) -> None:
        self._dataset, self._wanted = dataset, wanted
        self._trouble = ""
        self._waiting: list[pa.RecordBatch] = []
        self._writer: pq.ParquetWriter | None = None
        there = self._identities()
        known = {place for place, identity in there.items() if self._same(place, identity)}
        if len(known) < len(there) or any(block.settled for place, block in wanted.items() if place not in known):
            self._start()

    def _same(self, place: tuple[str, int], identity: str) -> bool:
        return place in self._wanted and self._wanted[place].identity == identity

    def _identities(self) -> dict[tuple[str, int], str]:
        found: dict[tuple[str, int], str] = {}
        for batch in self._read(["folder", "block", "identity"]):
            found.update(zip(places(batch), batch["identity"].to_pylist(), strict=True))
        return found

    def _read(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Row groups of the index, as far as it can be read: what is missing is read from the manifests."""
        storage = self._dataset.storage
        if not storage.exists(INDEX):
            return
        try:
            with storage.open(INDEX) as file:
                parts = pq.ParquetFile(file)
                if not parts.schema_arrow.equals(BLOCKS):
                    return
                for number in range(parts.num_row_groups):
                    yield parts.read_row_group(number, columns, use_threads=False).combine_chunks().to_batches()[0]
        except (pa.ArrowException, OSError):
            return

    def known(self) -> Iterator[pa.RecordBatch]:
        """Blocks that are unchanged since they were written."""
        for batch in self._read(BLOCKS.names):
            identities = zip(places(batch), batch["identity"].to_pylist(), strict=True)
            same = [self._same(place, identity) for place, identity in identities]
            if any(same):
                kept = batch.filter(pa.array(same))
                self._write(kept)
                yield kept

    def add(self, batch: pa.RecordBatch) -> None:
        """Keeps new blocks, unless they changed so lately that a further change might not show."""
        self._write(batch.filter(pa.array([self._wanted[place].settled for place in places(batch)])))

    def _start(self) -> None:
        try:
            self._dataset.storage.sweep(FOLDER)
            self._pending = self._dataset.storage.create(INDEX)
            # A dictionary of hosts would take twice the time and save little.
            stream = self._pending.stream
            self._writer = pq.ParquetWriter(stream, BLOCKS, compression="zstd", use_dictionary=["folder"])
        except OSError as error:  # a dataset that may only be read is surveyed all the same
            self._trouble = f"not kept: {error}"

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            return
        self._waiting.append(batch)
        if sum(map(len, self._waiting)) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None or not self._waiting:
            return
        try:
            self._writer.write_table(pa.Table.from_batches(self._waiting, BLOCKS), row_group_size=_GROUP)
            self._waiting = []
        except OSError as error:
            self._give_up(error)

    def close(self, *, complete: bool) -> str:
        """Makes the new index appear if the survey came to its end; returns what became of it."""
        self._flush()
        if self._writer is None:
            return self._trouble or "used"
        try:
            self._writer.close()
            if complete:
                self._pending.commit()
                return "written"
            self._pending.abort()
        except OSError as error:
            self._give_up(error)
        return self._trouble

    def _give_up(self, error: OSError) -> None:
        self._trouble = f"not kept: {error}"
        self._writer = None
        self._pending.abort()

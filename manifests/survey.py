"""A survey of all shards: their summaries added up, block by block, in as many processes as there are cores.

Shards are taken in blocks of 256. What a block holds is kept in `index/statistics.parquet`, bound to the name, size and
time of change of each of its manifests, so that the next survey reads only blocks in which something changed. The
index is never the truth: it may be deleted at any time, and a survey is the same without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from uvd.manifests.block_reader import read_blocks
from uvd.manifests.blocks import Block, blocks_of, places, unpack
from uvd.manifests.dataset import Dataset
from uvd.manifests.stats_index import INDEX, Index
from uvd.manifests.summary import Summary
from uvd.manifests.tokens import CODEBOOK_SIZE

KEPT_FROM = 256
"""Shards from which on an index is kept; fewer are read in a tenth of a second."""
_WAITING = 1 << 20


@dataclass
class FolderSurvey:
    """What the shards of one folder hold together.

    Attributes:
        shards: how many there are.
        totals: sums over the manifests' metadata: `inputs`, `rejected`, `images`, `tar_bytes`, `manifest_bytes`, ...
        summary: of all shards; its rejects stay empty, they are in the survey's table.
        histogram: `(8192,)` int64, how often each code occurs; of image shards, zeros.
        without_histogram: token shards whose manifest has none: their codes are not in `histogram`.
        tar_sha256: of each shard by number.
    """

    shards: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    summary: Summary = field(default_factory=Summary)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CODEBOOK_SIZE, np.int64))
    without_histogram: int = 0
    tar_sha256: dict[int, str] = field(default_factory=dict)


@dataclass
class Survey:
    """A whole dataset.

    Attributes:
        folders: by `sequences/SOURCE` or `tokens/TOKENIZER/SOURCE`, also those without shards.
        rejects: columns folder, reason, host, inputs; one row each combination.
        shards_read: shards whose manifest was opened; the others came from the index.
        index: whether the index was `used`, `written`, `off`, or why it could not be written.
    """

    folders: dict[str, FolderSurvey]
    rejects: pa.Table
    shards_read: int = 0
    index: str = "off"


REJECT_COUNTS = pa.schema(
    [
        pa.field("folder", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("host", pa.string()),
        pa.field("inputs", pa.int64()),
    ]
)


def survey(
    dataset: Dataset,
    *,
    use_index: bool = True,
    processes: int | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Survey:
    """Adds up all shards of a dataset.

    Args:
        use_index: take from the index what is unchanged, and keep it for the next time if the dataset can be written.
        processes: that read manifests; one a core by default, none beside this one for small datasets.
        advance: called with how many more shards are done, and how many there are.

    Raises:
        DatasetError: names the first file that is not a manifest of uvd.
    """
    info = dataset.info()
    names = [f"{section}/{name}" for section in ("sequences", "tokens") for name in sorted(info[section])]
    wanted = {block.place: block for name in names for block in blocks_of(dataset, name)}
    shards = sum(len(block.numbers) for block in wanted.values())
    use_index = use_index and shards >= KEPT_FROM
    adding = _Adding(names)
    result = Survey(adding.folders, adding.rejects)
    index = Index(dataset, wanted) if use_index else None
    missing = dict(wanted)

    def add(batch: pa.RecordBatch) -> None:
        done = adding.add(batch, wanted)
        if advance is not None:
            advance(done, shards)

    try:
        for batch in index.known() if index is not None else ():
            for place in places(batch):
                del missing[place]
            add(batch)
        for batch in read_blocks(dataset, list(missing.values()), processes):
            add(batch)
            if index is not None:
                index.add(batch)
    finally:
        state = index.close(complete=adding.blocks == len(wanted)) if index is not None else "off"
    result.rejects, result.index = adding.finish(), state
    result.shards_read = sum(len(block.numbers) for block in missing.values())
    return result


class _Adding:
    """Adds blocks up as they come, in any order."""

    def __init__(self, names: list[str]) -> None:
        self.folders = {name: FolderSurvey() for name in names}
        self.rejects = REJECT_COUNTS.empty_table()
        self.blocks = 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def add(self, batch: pa.RecordBatch, wanted: dict[tuple[str, int], Block]) -> int:
        """Adds some blocks; returns how many shards they have."""
        shards = 0
        for place, row in zip(places(batch), unpack(batch), strict=True):
            numbers = wanted[place].numbers
            folder = self.folders[place[0]]
            folder.shards += len(numbers)
            folder.totals.update(row.totals)
            folder.summary.add(row.summary)
            if row.histogram is not None:
                folder.histogram += row.histogram
            folder.without_histogram += row.without_histogram
            folder.tar_sha256.update(zip(numbers, row.tar_sha256, strict=True))
            self.blocks += 1
            shards += len(numbers)
        self._wait(batch)
        return shards

    def _wait(self, batch: pa.RecordBatch) -> None:
        counts = batch["inputs"]
        rows = pc.list_parent_indices(counts)
        columns = [batch["folder"].take(rows), *(pc.list_flatten(batch[name]) for name in ("reasons", "hosts"))]
        self._waiting.append(pa.table([*columns, pc.list_flatten(counts)], schema=REJECT_COUNTS))
        self._waiting_rows += len(rows)
        # Hosts repeat from block to block: adding up at each doubling holds twice the result at most.
        if self._waiting_rows > max(_WAITING, len(self.rejects)):
            self.finish()

    def finish(self) -> pa.Table:
        keys = ["folder", "reason", "host"]
        # One thread takes a fourth of the processor time that several take together.
        table = pa.concat_tables([self.rejects, *self._waiting]).group_by(keys, use_threads=False)
        grouped = table.aggregate([("inputs", "sum")])
        self.rejects = grouped.rename_columns({"inputs_sum": "inputs"}).select(REJECT_COUNTS.names)
        self._waiting, self._waiting_rows = [], 0
        return self.rejects


__all__ = ["INDEX", "FolderSurvey", "Survey", "survey"]

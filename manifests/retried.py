"""Rejects that a round of retries has taken up: counted as inputs of the round, no longer where they failed."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uvd.manifests.dataset import RETRY_PLAN, Dataset, Shard
from uvd.manifests.schema import REJECTS
from uvd.manifests.summary import summarize

COLUMNS = ("folder", "shard", "input")


def retried_inputs(dataset: Dataset) -> pa.Table:
    """(folder, shard, input) of rejects that a committed shard of retries has taken up."""
    tables = [pa.schema([REJECTS.field(name) for name in COLUMNS]).empty_table()]
    for name, entry in sorted(dataset.info()["sequences"].items()):
        # A run may have been killed between recording a round and writing its plan: then there is no round.
        if "retry_of" in entry and dataset.storage.exists(f"sequences/{name}/{RETRY_PLAN}"):
            plan = pq.read_table(
                io.BytesIO(dataset.storage.read(f"sequences/{name}/{RETRY_PLAN}")), columns=list(COLUMNS)
            )
            size = entry["retry_shard_size"]
            tables += [plan.slice(shard.number * size, size) for shard in dataset.shards(f"sequences/{name}")]
    return pa.concat_tables(tables)


def retried_counts(dataset: Dataset, retried: pa.Table) -> dict[tuple[str, str, str], int]:
    """How many of these inputs were refused, by folder, reason and host; reads the rejects of their shards."""
    counts: dict[tuple[str, str, str], int] = {}
    if not len(retried):
        return counts
    ordered = retried.sort_by([(name, "ascending") for name in COLUMNS])
    folders, shards = ordered["folder"].to_numpy(zero_copy_only=False), ordered["shard"].to_numpy()
    starts = np.flatnonzero((folders[1:] != folders[:-1]) | (shards[1:] != shards[:-1])) + 1
    for part in np.split(np.arange(len(ordered)), starts):
        rows = ordered.slice(int(part[0]), len(part))
        folder, inputs = rows["folder"][0].as_py(), set(rows["input"].to_pylist())
        shard = Shard(f"sequences/{folder}", rows["shard"][0].as_py())
        refused = [row for row in dataset.rejects(shard).to_pylist() if row["input"] in inputs]
        for (reason, host), number in summarize((), refused).rejects.items():
            counts[folder, reason, host] = counts.get((folder, reason, host), 0) + number
    return counts

"""Trying again what failed for a passing reason: `uvd ingest SOURCE --retry-rejects`.

Each round is a source of its own in the dataset, `NAME-retry1`, `NAME-retry2`, …, with shards of nothing but inputs
that were refused before for a transient reason (a timeout, a 503). Nothing that is committed changes. A round's plan is
written down once, `sequences/NAME-retryN/plan.parquet`, so a killed round goes on as it began; statistics count its
inputs there and no longer among the rejects that they came from.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uvd.manifests.dataset import RETRY_PLAN, Dataset
from uvd.sequences.reject import TRANSIENT_REASONS
from uvd.sources.base import RetriedPart, WorkUnit

PLAN = pa.schema(
    [
        pa.field("folder", pa.string(), False),  # the source whose rejects named the input last
        pa.field("shard", pa.int32(), False),
        pa.field("input", pa.int32(), False),
        pa.field("unit", pa.int32(), False),  # the shard for which the input was planned first, and its number there
        pa.field("index", pa.int32(), False),
        pa.field("num_inputs", pa.int32(), False),  # of that unit
        pa.field("payload", pa.string(), False),  # of that unit, JSON
    ]
)


def round_name(source: str, number: int) -> str:
    return f"{source}-retry{number}"


def rounds(dataset: Dataset, source: str) -> list[str]:
    """The source and the rounds of retries that were planned, in order."""
    names = [source]
    while dataset.storage.exists(_plan_path(round_name(source, len(names)))):
        names.append(round_name(source, len(names)))
    return names


def _plan_path(name: str) -> str:
    return f"sequences/{name}/{RETRY_PLAN}"


def plan_round(dataset: Dataset, source: str, units: Iterable[WorkUnit], shard_size: int) -> tuple[str, bytes, int]:
    """Plans the next round: every input whose last verdict is transient. Holds about 1 kB an input while it does.

    Args:
        units: those of the source itself.
        shard_size: inputs a shard, and a row group of the plan.

    Returns:
        the round's name, its plan as Parquet bytes, and the number of inputs (0: there is nothing to try again).
    """
    names = rounds(dataset, source)
    rows = _open_rejects(dataset, names)
    places: dict[tuple[str, int, int], tuple[int, int]] = {}
    recorded = dataset.info()["sequences"]
    for name in names[1:]:
        size = recorded[name]["retry_shard_size"]
        for number, row in enumerate(read_plan(dataset, name).to_pylist()):
            places[name, number // size, number % size] = (row["unit"], row["index"])
    located = sorted((*places.get((f, s, i), (s, i)), f, s, i) for f, s, i in rows)
    wanted = {unit for unit, *_ in located}
    known = {unit.shard: unit for unit in units if unit.shard in wanted}
    planned = [
        {
            "folder": folder,
            "shard": shard,
            "input": number,
            "unit": unit,
            "index": index,
            "num_inputs": known[unit].num_inputs,
            "payload": json.dumps(known[unit].payload, sort_keys=True),
        }
        for unit, index, folder, shard, number in located
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(planned, schema=PLAN), sink, compression="zstd", row_group_size=shard_size)
    return round_name(source, len(names)), sink.getvalue(), len(planned)


def _open_rejects(dataset: Dataset, names: list[str]) -> list[tuple[str, int, int]]:
    """(folder, shard, input) of transient rejects of all rounds that no later round has taken up."""
    import duckdb  # the driver's matter: workers load this module too, and do without its 12 MB

    reasons = sorted(str(reason) for reason in TRANSIENT_REASONS)
    taken = [read_plan(dataset, name).select(["folder", "shard", "input"]) for name in names[1:]]
    found: list[tuple[str, int, int]] = []
    with duckdb.connect() as connection:
        connection.register("taken", pa.concat_tables(taken) if taken else PLAN.empty_table())
        for name in names:
            for shard in dataset.shards(f"sequences/{name}"):
                connection.register("refused", dataset.rejects(shard))
                found += connection.execute(
                    "select distinct folder, shard, input from refused "
                    "anti join taken using (folder, shard, input) where not partial and list_contains(?, reason)",
                    [reasons],
                ).fetchall()
    return found


def start_round(dataset: Dataset, name: str, source: str, plan: bytes, entry: dict[str, Any], shard_size: int) -> None:
    """Records the round and writes its plan, in that order; a round exists when its plan does."""
    identity = sha256(plan).hexdigest()
    about = {"retry_of": source, "retry_plan_sha256": identity, "retry_shard_size": shard_size}
    fingerprint = sha256(f"{entry['fingerprint']} {identity} {shard_size}".encode()).hexdigest()
    dataset.declare("sequences", name, {**entry, **about, "fingerprint": fingerprint})
    dataset.storage.put(_plan_path(name), plan)


def read_plan(dataset: Dataset, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(dataset.storage.read(_plan_path(name))), schema=PLAN)


def round_units(dataset: Dataset, name: str) -> Iterator[WorkUnit]:
    """The shards of a round: so many rows of its plan each."""
    entry = dataset.info()["sequences"][name]
    size, rows = entry["retry_shard_size"], len(read_plan(dataset, name))
    for shard, first in enumerate(range(0, rows, size)):
        payload = {"round": name, "plan_sha256": entry["retry_plan_sha256"], "first": first}
        yield WorkUnit(shard, min(size, rows - first), payload)


def parts_of(dataset: Dataset, unit: WorkUnit) -> list[RetriedPart]:
    """What a shard of a round tries again, by the unit that it comes from."""
    with dataset.storage.open(_plan_path(unit.payload["round"])) as file:
        rows = pq.ParquetFile(file).read_row_group(unit.shard).to_pylist()
    parts = []
    for number, group in groupby(rows, key=lambda row: row["unit"]):
        members = list(group)
        first = WorkUnit(number, members[0]["num_inputs"], json.loads(members[0]["payload"]))
        parts.append(RetriedPart(first, tuple(row["index"] for row in members)))
    return parts

"""What the run logs under `runs/` say: one row a run, and throughput and cost by stage.

A log is JSON lines: `start`, an event a shard, `end` with the sums. A run that was killed has no `end`; its shards are
added up instead. On object stores a log is several objects, `LOG.jsonl`, `LOG.jsonl.00001`, …: see `part`. The pipeline
writes the logs (`pipeline/runlog.py`); they are never part of the data.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pyarrow as pa

from uvd.manifests.dataset import Dataset

FOLDER = "runs"
RUNS = pa.schema(
    [
        pa.field("run", pa.string(), False),  # name of the log
        pa.field("stage", pa.string(), False),  # ingest, tokenize
        pa.field("name", pa.string(), False),  # source, or tokenizer/source
        pa.field("host", pa.string(), False),
        pa.field("uvd_version", pa.string(), False),
        pa.field("started", pa.timestamp("ms", "UTC"), False),
        pa.field("seconds", pa.float64(), False),  # from start to end
        pa.field("shard_seconds", pa.float64(), False),  # spent on shards, all workers together
        pa.field("ended", pa.bool_(), False),  # False: killed, or still at work
        pa.field("interrupted", pa.bool_(), False),
        pa.field("failed", pa.int64(), False),  # shards
        *(
            pa.field(name, pa.int64(), False)
            for name in ("shards", "inputs", "rejected", "sequences", "images", "tokens", "bytes")
        ),
    ]
)
COUNTS = ("inputs", "rejected", "sequences", "images", "tokens", "bytes")
SHARD_STAGES = ("total", "commit")
"""Of a shard's seconds, those that do not lie within another."""
_PART = re.compile(r"(.+\.jsonl)(?:\.(\d{5,}))?")
_TAIL = 1 << 20
_LINE = 1 << 24


def part(path: str, number: int) -> str:
    """Name of a part of a log; the first is called as the log is."""
    return f"{path}.{number:05d}" if number else path


def logs(dataset: Dataset) -> dict[str, list[str]]:
    """The parts of each log, in order, by its name below `runs/`."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in dataset.storage.list(FOLDER):
        if match := _PART.fullmatch(name):
            found.setdefault(match[1], []).append((int(match[2] or 0), name))
    return {log: [name for _, name in sorted(parts)] for log, parts in found.items() if (0, log) in parts}


def read_runs(dataset: Dataset) -> pa.Table:
    """One row of `RUNS` for each log, oldest first. What is no log of uvd is left out."""
    rows = [_read_run(dataset, name, parts) for name, parts in logs(dataset).items()]
    table = pa.Table.from_pylist([row for row in rows if row is not None], schema=RUNS)
    return table.sort_by([("started", "ascending"), ("run", "ascending")])


def _read_run(dataset: Dataset, name: str, parts: list[str]) -> dict[str, Any] | None:
    head = _parse(_ends(dataset, parts[0])[0])
    if head.get("event") != "start":
        return None
    tail = _parse(_ends(dataset, parts[-1])[1])
    try:
        if tail.get("event") == "end" and "shards" in tail:
            return _row(name, head, tail)
        return _row(name, head, _add_up(_lines(dataset, parts)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _ends(dataset: Dataset, name: str) -> tuple[bytes, bytes]:
    """First and last line of a part."""
    with dataset.storage.open(f"{FOLDER}/{name}") as file:
        size = file.size()
        head = file.read_at(min(size, _TAIL), 0)
        tail = head if size <= _TAIL else file.read_at(_TAIL, size - _TAIL)
    return head.partition(b"\n")[0], tail.rstrip(b"\n").rpartition(b"\n")[2]


def _lines(dataset: Dataset, parts: list[str]) -> Iterator[bytes]:
    for name in parts:
        with dataset.storage.stream(f"{FOLDER}/{name}") as stream:
            lines = io.BufferedReader(cast(io.RawIOBase, stream))
            while line := lines.readline(_LINE):
                yield line


def _parse(line: bytes) -> dict[str, Any]:
    """An event, or nothing for a line that was cut off when its run was killed."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _add_up(lines: Iterable[bytes]) -> dict[str, Any]:
    """What an `end` event would say, from the events of shards."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    end: dict[str, Any] = {}
    last: Any = 0
    shards = failed = 0
    for line in lines:
        event = _parse(line)
        last = event.get("time", last)
        if event.get("event") == "shard":
            shards += 1
            counts.update(dict(event.get("counts", {})))
            seconds.update(dict(event.get("seconds", {})))
        elif event.get("event") == "failed":
            failed += 1
        elif event.get("event") == "end":
            end = event
    added = {"shards": shards, "counts": counts, "stage_seconds": seconds, "time": last, "failed": [None] * failed}
    return {**added, **end, "shards": shards}


def _row(name: str, head: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    start = float(head["time"])
    return {
        "run": name,
        **{key: str(head.get(key, "")) for key in ("stage", "name", "host", "uvd_version")},
        "started": datetime.fromtimestamp(start, UTC),
        "seconds": max(0.0, float(added["time"]) - start),
        "shard_seconds": float(sum(added["stage_seconds"].get(stage, 0) for stage in SHARD_STAGES)),
        "ended": added.get("event") == "end",
        "interrupted": bool(added.get("interrupted", False)),
        "failed": len(added["failed"]),
        "shards": int(added["shards"]),
        **{key: int(added["counts"].get(key, 0)) for key in COUNTS},
    }


def stage_costs(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Throughput and cost by stage and name, over all their runs.

    Returns:
        rows of stage, name, runs, shards, images, hours (of the runs), shard_hours (all workers together),
        images_per_s (of the runs' time), hours and shard_hours per million images: what a machine, or a worker, costs
        an hour times these is the price of a million images.
    """
    totals: dict[tuple[str, str], Counter[str]] = {}
    for run in runs:
        total = totals.setdefault((run["stage"], run["name"]), Counter())
        total.update({"runs": 1, **{key: run[key] for key in ("shards", "images", "seconds", "shard_seconds")}})
    rows = []
    for (stage, name), total in sorted(totals.items()):
        hours, shard_hours, millions = total["seconds"] / 3600, total["shard_seconds"] / 3600, total["images"] / 1e6
        rows.append(
            {
                "stage": stage,
                "name": name,
                **{key: total[key] for key in ("runs", "shards", "images")},
                "hours": hours,
                "shard_hours": shard_hours,
                "images_per_s": total["images"] / total["seconds"] if total["seconds"] else 0.0,
                "hours_per_million_images": hours / millions if millions else 0.0,
                "shard_hours_per_million_images": shard_hours / millions if millions else 0.0,
            }
        )
    return rows

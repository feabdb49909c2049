"""Run logs: added up by run and by stage, also those of killed runs; what is no log is left out."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from uvd.manifests import Dataset
from uvd.manifests.runs import part, read_runs, stage_costs
from uvd.manifests.sql import query
from uvd.manifests.stats import statistics
from uvd.pipeline import runlog
from uvd.pipeline.runlog import RunLog
from uvd.sequences.object_stores import ObjectStoreError

SECONDS = {"total": 2.0, "encode": 1.5, "commit": 0.5}


def write_log(dataset: Dataset, shards: int, *, ended: bool = True, name: str = "laion") -> str:
    """A log as the pipeline writes it."""
    log = RunLog(dataset.storage, "ingest", name)
    counts = {"inputs": 12, "rejected": 2, "sequences": 10, "images": 10, "bytes": 1000}
    for shard in range(shards):
        log.event("shard", shard=shard, host="h", counts=counts, reasons={}, seconds=SECONDS)
    log.event("failed", shard=99, error="x")
    if ended:
        totals = {key: value * shards for key, value in counts.items()}
        seconds = {key: value * shards for key, value in SECONDS.items()}
        log.close(
            counts=totals, stage_seconds=seconds, reasons={}, wall_seconds=1.0, failed=["000099"], interrupted=False
        )
    return log.path


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "d"))


def rewrite(dataset: Dataset, path: str, name: str, elapsed: float) -> None:
    """Gives a log another name, and times that lie so many seconds apart."""
    lines = (dataset.storage.local_root / path).read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for number, event in enumerate(events):
        event["time"] = 1000.0 + elapsed * number / (len(events) - 1)
    (dataset.storage.local_root / path).unlink()
    text = "".join(json.dumps(event) + "\n" for event in events)
    (dataset.storage.local_root / f"runs/{name}.jsonl").write_text(text)


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_is_added_up_whether_it_ended_or_was_killed(dataset, ended):
    rewrite(dataset, write_log(dataset, 3, ended=ended), "a", 40.0)
    (run,) = read_runs(dataset).to_pylist()
    assert (run["stage"], run["name"], run["shards"], run["images"], run["inputs"]) == ("ingest", "laion", 3, 30, 36)
    assert (run["shard_seconds"], run["seconds"], run["failed"], run["ended"]) == (7.5, 40.0, 1, ended)


def test_a_line_that_was_cut_off_is_no_trouble(dataset):
    path = dataset.storage.local_root / write_log(dataset, 3, ended=False)
    path.write_text(path.read_text() + '{"event": "shard", "counts": {"ima')
    (run,) = read_runs(dataset).to_pylist()
    assert (run["images"], run["ended"]) == (30, False)


@pytest.mark.parametrize(
    "content",
    ["", "\n", "no JSON\n", "[1]\n", '{"event": "shard"}\n', '{"event": "start"}\n',
     '{"event": "start", "time": "now"}\n',
     '{"event": "start", "time": 1e99}\n', '{"event": "start", "time": 1}\n{"event": "end", "time": 2, "counts": 3}\n'],
)  # fmt: skip
def test_what_is_no_log_is_left_out(dataset, content):
    write_log(dataset, 1)
    (dataset.storage.local_root / "runs/strange.jsonl").write_text(content)
    (dataset.storage.local_root / "runs/notes.txt").write_text("dear")
    assert len(read_runs(dataset)) == 1


def test_cost_by_stage_is_time_by_images(dataset):
    rewrite(dataset, write_log(dataset, 3), "a", 50.0)
    rewrite(dataset, write_log(dataset, 1, ended=False), "b", 30.0)
    (row,) = stage_costs(read_runs(dataset).to_pylist())
    assert (row["stage"], row["name"], row["runs"], row["shards"], row["images"]) == ("ingest", "laion", 2, 4, 40)
    assert row["images_per_s"] == pytest.approx(0.5)
    assert row["shard_hours"] == pytest.approx(10 / 3600)
    assert row["hours_per_million_images"] == pytest.approx(80 / 3600 / 40e-6)
    assert statistics(dataset)["costs"] == [row]
    found = query(dataset, "select stage, sum(images)::int n, max(started) > '1970-01-01' t from runs group by all")
    assert found.to_pylist() == [{"stage": "ingest", "n": 40, "t": True}]


def test_without_runs_there_is_no_cost(dataset):
    assert read_runs(dataset).num_rows == 0
    assert stage_costs([]) == []


@pytest.fixture
def remote(dataset, monkeypatch):
    """The same dataset, written and read as one on an object store is: whole files, no appending."""
    monkeypatch.setattr(dataset.storage, "local_root", None)
    monkeypatch.setattr(runlog, "PART_LINES", 10)
    (Path(dataset.uri) / "runs").mkdir(parents=True)
    return dataset


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("shards", [0, 8, 9, 35])
def test_a_log_in_parts_is_read_as_one(remote, shards, ended):
    path = write_log(remote, shards, ended=ended)
    parts = sorted(remote.storage.list("runs"))
    written = shards if ended else (shards + 1) // 10 * 10  # a killed run loses what it had not put yet
    assert parts == [part(path, number).removeprefix("runs/") for number in range(len(parts))]
    assert len(parts) == 1 + (-(-(shards + 2) // 10) if ended else (shards + 1) // 10)
    (run,) = read_runs(remote).to_pylist()
    assert (run["run"], run["ended"]) == (path.removeprefix("runs/"), ended)
    assert (run["shards"], run["images"]) == (min(written, shards), 10 * min(written, shards))
    assert json.loads(remote.storage.read(path))["event"] == "start"  # alone, and at once


def test_a_log_holds_few_lines_whatever_the_run_makes(remote):
    log = RunLog(remote.storage, "ingest", "laion")
    for shard in range(1000):
        log.event("shard", shard=shard)
        assert len(log._waiting) < 1000
    log.close()


def test_a_part_is_put_after_some_time_too(remote, monkeypatch):
    log = RunLog(remote.storage, "ingest", "laion")
    log.event("shard", shard=0, counts={}, seconds={})
    assert read_runs(remote)["shards"].to_pylist() == [0]
    later = time.monotonic() + runlog.PART_S
    monkeypatch.setattr(runlog.time, "monotonic", lambda: later)
    log.event("shard", shard=1, counts={}, seconds={})
    assert read_runs(remote)["shards"].to_pylist() == [2]


def test_a_store_that_fails_for_a_while_costs_no_line_and_ends_no_run(remote, monkeypatch, capsys):
    def down(*_: object) -> None:
        raise ObjectStoreError("the store is down")

    log, other = RunLog(remote.storage, "ingest", "laion"), RunLog(remote.storage, "ingest", "photos")
    with monkeypatch.context() as broken:
        broken.setattr(remote.storage, "put", down)
        for shard in range(25):
            log.event("shard", shard=shard, counts={}, seconds={})
        other.close()
    assert f"{other.path} could not be written to its end: the store is down" in capsys.readouterr().err
    log.close()
    assert capsys.readouterr().err == ""
    assert sorted(read_runs(remote)["shards"].to_pylist()) == [0, 25]


def test_parts_without_their_first_are_no_log(remote):
    path = write_log(remote, 20)
    remote.storage.delete(path)
    assert read_runs(remote).num_rows == 0

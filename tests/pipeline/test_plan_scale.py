"""Plans of any size: written to disk once, compared and fed as a stream, in memory that does not grow with them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests_support import write_photo

from uvd.manifests import ConfigChangedError, Dataset
from uvd.manifests.image_shard import ImageShardWriter
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan, plan_file
from uvd.pipeline.plan_file import PlanFile
from uvd.pipeline.stage import find_missing
from uvd.sequences import Reason, Reject
from uvd.sources.base import SourceConfig, SourceError
from uvd.sources.images import ImagesConfig
from uvd.sources.laion import LaionConfig


@dataclass(frozen=True)
class Job:
    shard: int
    fingerprint: str


class Plan:
    """Jobs made anew at each pass, and how often they were."""

    def __init__(self, shards: int, change: int | None = None) -> None:
        self.shards, self.change, self.made = shards, change, 0

    def __iter__(self) -> Iterator[Job]:
        for shard in range(self.shards):
            self.made += 1
            yield Job(shard, "other" if shard == self.change else f"f{shard}")


def commit(dataset: Dataset, shards: list[int]) -> None:
    for shard in shards:
        with ImageShardWriter(dataset, "images", shard) as writer:
            writer.commit(2, [Reject(index, "x", Reason.MISSING) for index in range(2)], f"f{shard}")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset(str(tmp_path / "dataset"))
    dataset.declare("sequences", "images", {"fingerprint": "f"})
    return dataset


@pytest.mark.parametrize("there", [[], [0], [4], [1, 3], [0, 1, 2, 3, 4], list(range(4))])
def test_what_is_missing_is_what_is_not_there(dataset, there):
    commit(dataset, there)
    jobs = Plan(5)
    missing = find_missing(dataset, "sequences/images", jobs)
    assert jobs.made == 5
    assert [job.shard for job in missing.jobs] == sorted(set(range(5)) - set(there))
    assert [job.shard for job in missing.jobs] == sorted(set(range(5)) - set(there))  # as often as needed
    assert (missing.planned, missing.committed, len(missing.jobs)) == (5, len(there), 5 - len(there))
    assert missing.totals["inputs"] == missing.totals["rejected"] == 2 * len(there)


@pytest.mark.parametrize(
    ("there", "plan", "message"),
    [
        ([0, 1, 2], Plan(3, change=1), "000001 was made from other inputs"),
        ([0, 1, 2, 5], Plan(3), r"holds 1 shards that are not planned now \(first: 000005\)"),
        ([3, 4, 5, 6], Plan(3), r"holds 4 shards that are not planned now \(first: 000003\)"),
        ([0, 1], Plan(0), r"holds 2 shards that are not planned now \(first: 000000\)"),
    ],
)
def test_what_does_not_fit_the_plan_is_refused_or_made_anew(dataset, there, plan, message):
    commit(dataset, there)
    with pytest.raises(ConfigChangedError, match=message):
        find_missing(dataset, "sequences/images", plan)
    assert len(dataset.shards("sequences/images")) == len(there)
    missing = find_missing(dataset, "sequences/images", plan, overwrite=True)
    assert [job.shard for job in missing.jobs] == list(range(plan.shards))
    assert dataset.shards("sequences/images") == []


def test_a_plan_that_cannot_be_read_twice_or_is_out_of_order_is_a_bug(dataset):
    with pytest.raises(ValueError, match="only once"):
        find_missing(dataset, "sequences/images", iter(Plan(3)))
    with pytest.raises(ValueError, match="comes after"):
        find_missing(dataset, "sequences/images", [Job(1, "a"), Job(1, "a")])


def test_a_plan_file_gives_the_same_jobs_as_the_plan(tmp_path):
    for seed in range(5):
        write_photo(tmp_path / "photos" / f"{seed}.jpg", seed, 80, 80)
        (tmp_path / "photos" / f"{seed}.jpg").rename(tmp_path / "photos" / f"{seed} ö\udce9\n.jpg")
    config = ImagesConfig(dataset="photos", input=tmp_path / "photos", shard_size=2)
    dataset = Dataset(str(tmp_path / "dataset"))
    expected = list(plan(dataset, config, "f"))
    with plan_file(dataset, config, "f") as jobs:
        assert len(jobs) == 3
        assert list(jobs) == list(jobs) == expected
        first, second = iter(jobs), iter(jobs)
        assert [next(first), next(second), next(first)] == [expected[0], expected[0], expected[1]]
        dataset.declare("sequences", "images", config_entry(config))
        assert sum(make_shard(job).counts["used"] for job in jobs) == 5


def test_plan_files_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def failing() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise SourceError("bad")

    with PlanFile(iter([{"a": 1}] * 3), dict) as jobs:
        assert list(jobs) == [{"a": 1}] * 3
    with pytest.raises(SourceError, match="bad"):
        PlanFile(failing(), dict)
    assert list(tmp_path.iterdir()) == []


def test_lines_longer_than_a_block(tmp_path):
    records = [{"text": "x" * size} for size in (3 << 20, 10, 1 << 20, (1 << 20) - 12, 0)]
    with PlanFile(records, dict) as jobs:
        assert list(jobs) == records


def lists(folder: Path, files: int, rows: int) -> SourceConfig:
    folder.mkdir()
    urls = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array(["http://example.org/a.jpg"]))
    for number in range(files):
        pq.write_table(pa.table({"URL": urls.cast(pa.string())}), folder / f"{number:05d}.parquet")
    return LaionConfig(dataset="d", input=str(folder))


def peak_memory(config: SourceConfig, dataset: Dataset) -> tuple[int, int]:
    """(jobs, bytes at the peak) of planning, comparing, and passing once over what is missing."""
    tracemalloc.start()
    with plan_file(dataset, config, "f") as jobs:
        missing = find_missing(dataset, "sequences/images", jobs)
        count = sum(1 for _ in missing.jobs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == missing.planned == len(missing.jobs)
    return count, peak


def test_memory_does_not_grow_with_the_rows(tmp_path, dataset):
    peak_memory(lists(tmp_path / "warm-up", 1, 1000), dataset)
    few = peak_memory(lists(tmp_path / "few", 4, 5_000), dataset)
    many = peak_memory(lists(tmp_path / "many", 4, 500_000), dataset)
    assert (few[0], many[0]) == (20, 2000)
    # One block of lines is read at a time, so what is added is bounded by that, not by the number of jobs.
    assert many[1] < few[1] + (4 << 20)


@pytest.mark.slow
def test_ten_million_rows(tmp_path, dataset):
    jobs, peak = peak_memory(lists(tmp_path / "lists", 10, 1_000_000), dataset)
    assert jobs == 10_000
    assert peak < 16 << 20

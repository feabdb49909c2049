"""The run loop, its observers and resuming at a smaller size of `benchmarks/scale.py`: right, in constant memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray import exceptions as ray_errors

from uvd.benchmarks.made_up_shards import ShardMaker, fingerprint_of
from uvd.benchmarks.scale import Tally, measured_seconds, simulate
from uvd.benchmarks.simulated_cluster import SimulatedCluster, Troubles
from uvd.manifests import Dataset
from uvd.manifests.dataset import Shard
from uvd.pipeline.runner import RunResult, run_jobs

CALM = Troubles(worker_dies=0.0, node_lost_every_s=1e12, slow_nodes=0)


@dataclass(frozen=True)
class Job:
    shard: int


def run(jobs: int, workers: int, troubles: Troubles, seconds: float = 5.0) -> tuple[RunResult, Tally, SimulatedCluster]:
    cluster = SimulatedCluster(workers, [seconds], lambda job: job.shard, troubles)
    tally = Tally(jobs)
    result = run_jobs(map(Job, range(jobs)), cluster, tally, tally.stop, lambda job: str(job.shard), cluster)
    return result, tally, cluster


def test_two_runs_with_a_stop_between_them_make_each_shard_once(tmp_path):
    outcome = simulate(tmp_path / "dataset", 20_000, 500, measured_seconds([]))
    assert outcome.wrong == []
    measured = outcome.measured
    assert measured["first"]["retries"] > 10
    assert measured["second"]["retries"] > 10
    assert measured["second"]["copies_cancelled"] >= 1  # of the attempt that hung, and of those on a slow node
    assert measured["second"]["set_aside"] == 1


def test_a_calm_cluster_needs_one_attempt_a_job():
    result, tally, cluster = run(1000, 32, CALM)
    assert (result.done, result.complete, cluster.attempts, tally.retries) == (1000, True, 1000, 0)
    assert set(tally.done_times.tolist()) == {1}
    assert cluster.now() == pytest.approx(1000 / 32 * 5.0, rel=0.05)  # workers never wait


@pytest.mark.parametrize("workers", [16, 160])
def test_a_poison_job_is_set_aside_after_three_attempts_and_holds_up_no_other(workers):
    poison = Troubles(0.0, 1e12, slow_nodes=0, poison=frozenset({0, 7}))
    result, tally, cluster = run(500, workers, poison)
    assert sorted(result.failed) == ["0", "7"]
    assert (result.done, cluster.attempts, tally.retries) == (498, 498 + 6, 4)
    assert all("took its worker with it 3 times" in error for error in tally.errors)
    if workers > 16:  # there are other nodes for the second and the third attempt
        nodes = tally.errors[0].partition("on nodes ")[2].partition(".")[0].split(", ")
        assert len(set(nodes)) == 2


def test_an_attempt_that_hangs_and_slow_nodes_hold_up_the_end_no_longer_than_a_copy_takes():
    stuck = Troubles(0.0, 1e12, slow_nodes=5, slow_times=1000.0, hanging=frozenset({990}))
    result, tally, cluster = run(1000, 160, stuck)
    assert result.complete
    assert set(tally.done_times.tolist()) == {1}
    assert cluster.cancelled >= 33  # 2 nodes of 16 workers take hours, and one attempt never ends
    assert cluster.now() < 200


def test_nodes_that_are_lost_cost_attempts_and_no_jobs():
    result, tally, cluster = run(3000, 320, Troubles(0.0, 5.0, node_back_s=20.0, slow_nodes=0))
    assert result.complete
    assert set(tally.done_times.tolist()) == {1}
    assert cluster.lost_nodes >= 3
    assert tally.retries == cluster.attempts - 3000 > 16


def test_many_jobs_that_crash_at_once_are_tried_again_on_many_nodes():
    """All attempts of a moment fail: one node for all their second attempts would take them one after another."""

    class Outage(SimulatedCluster[Job]):
        def _end(self, handle: int, error: BaseException | None = None) -> None:
            crashed = ray_errors.WorkerCrashedError() if self.now() <= 5.0 else error
            super()._end(handle, crashed)

    cluster = Outage(1600, [5.0], lambda job: job.shard, CALM)
    tally = Tally(1600)
    result = run_jobs(map(Job, range(1600)), cluster, tally, tally.stop, lambda job: str(job.shard), cluster)
    assert (result.done, tally.retries) == (1600, 1600)
    assert cluster.now() < 20


def test_memory_does_not_grow_with_the_jobs():
    def peak(jobs: int) -> int:
        tracemalloc.start()
        run(jobs, 64, Troubles(0.01, 200.0, slow_nodes=0))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(200)
    few, many = peak(1000), peak(10_000)
    assert many < few + 200_000  # a list of all jobs would take more; the tally's two bytes a job are among it


def fingerprints(count: int) -> Iterator[tuple[int, str]]:
    return ((number, fingerprint_of(number)) for number in range(count))


def test_made_up_manifests_are_as_arrow_reads_them(tmp_path):
    maker = ShardMaker(tmp_path / "sequences/laion")
    assert maker.write(fingerprints(3)) == 3
    dataset = Dataset(str(tmp_path))
    for number, fingerprint in fingerprints(3):
        shard = Shard("sequences/laion", number)
        path = Path(dataset.storage.full(shard.manifest))
        entry = pq.read_metadata(path).metadata[b"uvd"]
        assert dataset.metadata(shard)["fingerprint"] == fingerprint
        assert fingerprint.encode() in entry
        assert dataset.manifest(shard).num_rows == 4
    with pytest.raises(ValueError, match="64 characters"):
        maker.manifest(0, "f")

"""The run loop on a real local Ray: retries, poison jobs, errors that would come again, clean stops."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from uvd.pipeline.executors import ActorExecutor, TaskExecutor
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.pipeline.runner import run_jobs
from uvd.sequences.stopping import Stop


@pytest.fixture(scope="module")
def runtime():
    with ray_runtime(num_cpus=2):
        yield


@dataclass
class Recorder:
    """An observer that remembers."""

    finished: list[int] = field(default_factory=list)
    retries: list[tuple[int, int]] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    lacked: list[str] = field(default_factory=list)
    stop_after: int | None = None
    stop: Stop = field(default_factory=Stop)

    def done(self, job: int, report: int) -> None:
        self.finished.append(report)
        if self.stop_after is not None and len(self.finished) >= self.stop_after:
            self.stop.requested = True

    def retrying(self, job: int, attempt: int, error: str) -> None:
        self.retries.append((job, attempt))

    def failed(self, job: int, error: str) -> None:
        self.failures[job] = error

    def lacking(self, what: str) -> None:
        self.lacked.append(what)

    def tick(self, in_flight: int, waiting: int) -> None:
        pass


def run(function, jobs, recorder=None):
    recorder = recorder or Recorder()
    return run_jobs(iter(jobs), TaskExecutor(function), recorder, recorder.stop), recorder


def test_every_job_runs_once(runtime):
    result, recorder = run(lambda job: job, range(20))
    assert result.complete
    assert sorted(recorder.finished) == list(range(20))


def test_a_poison_job_is_tried_three_times_and_skipped(runtime):
    def poison(job):
        if job == 2:
            os._exit(1)
        return job

    result, recorder = run(poison, range(5))
    assert sorted(recorder.finished) == [0, 1, 3, 4]
    assert list(result.failed) == ["2"]
    assert recorder.retries == [(2, 2), (2, 3)]
    assert not result.complete
    assert "Crashed" in recorder.failures[2]


def test_a_worker_that_dies_once_costs_nothing(runtime, tmp_path):
    marker = str(tmp_path / "died")

    def dies_once(job):
        if job == 1 and not os.path.exists(marker):
            Path(marker).touch()
            os._exit(1)
        return job

    result, recorder = run(dies_once, range(3))
    assert result.complete
    assert sorted(recorder.finished) == [0, 1, 2]


def test_a_bug_fails_at_once_and_a_full_disk_is_tried_again(runtime):
    def breaks(job):
        if job == 0:
            raise ValueError("a bug")
        if job == 1:
            raise OSError(28, "No space left on device")
        return job

    result, recorder = run(breaks, range(3))
    assert recorder.finished == [2]
    assert sorted(result.failed) == ["0", "1"]
    assert recorder.retries == [(1, 2), (1, 3)]
    assert "a bug" in result.failed["0"]


def test_a_stop_ends_the_run_and_says_so(runtime):
    def slow(job):
        time.sleep(0.05)
        return job

    recorder = Recorder(stop_after=2)
    result, _ = run(slow, range(1000), recorder)
    assert result.interrupted
    assert not result.complete
    assert 2 <= result.done < 20


def test_jobs_are_taken_from_the_plan_as_there_is_room(runtime):
    taken = []

    def plan():
        for job in range(200):
            taken.append(job)
            yield job

    run(lambda job: time.sleep(0.02) or job, plan(), Recorder(stop_after=1))
    assert len(taken) < 50


class Fragile:
    """Dies on one job, the first time."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def run(self, job: int) -> int:
        if job == 3 and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os._exit(1)
        return job


def test_a_dead_actor_is_replaced(runtime, tmp_path):
    actor = ray.remote(num_cpus=1)(Fragile)
    recorder = Recorder()
    executor = ActorExecutor(lambda: actor.remote(str(tmp_path / "died")), {"CPU": 1.0}, most=1)
    result = run_jobs(iter(range(6)), executor, recorder, Stop())
    assert result.complete
    assert sorted(recorder.finished) == list(range(6))
    assert recorder.retries == [(3, 2)]


class Poisoned:
    """Works on two jobs at once and dies of job 3, whenever it gets it."""

    def run(self, job: int) -> int:
        time.sleep(0.1)
        if job == 3:
            os._exit(1)
        return job


def test_a_poison_job_takes_others_with_it_only_once(runtime):
    actor = ray.remote(num_cpus=1, max_concurrency=2)(Poisoned)
    recorder = Recorder()
    result = run_jobs(iter(range(8)), ActorExecutor(actor.remote, {"CPU": 1.0}, most=1, jobs_each=2), recorder, Stop())
    assert sorted(recorder.finished) == [0, 1, 2, 4, 5, 6, 7]
    assert list(result.failed) == ["3"]
    assert [attempt for job, attempt in recorder.retries if job == 3] == [2, 3]
    assert max(attempt for job, attempt in recorder.retries if job != 3) == 2

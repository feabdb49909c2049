"""The run loop by itself, with a clock of its own: stragglers, copies, poison, what the cluster lacks."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import NodeDiedError, WorkerCrashedError

from uvd.pipeline.runner import CANCEL_WAIT_S, STRAGGLER_S, RunResult, run_jobs
from uvd.sequences.stopping import Stop

NEVER = 1e9


class Stage:
    """Executor, completions and observer in one: `seconds` is how long an attempt takes, `outcome` how it ends."""

    def __init__(self, workers: int, seconds: Callable[[int, int], float]) -> None:
        self.workers, self.seconds = workers, seconds
        self.outcome: Callable[[int, int], BaseException | None] = lambda job, attempt: None
        self.time, self.lack = 0.0, ""
        self.submitted: list[tuple[int, bool, tuple[str, ...]]] = []
        self.cancelled: list[tuple[int, bool]] = []
        self.done_jobs: list[int] = []
        self.retries: list[tuple[int, int]] = []
        self.failures: dict[int, str] = {}
        self.lacked: list[tuple[float, str]] = []
        self._events: list[tuple[float, tuple[int, int], Future[int]]] = []

    # executor
    def places(self) -> int:
        return self.workers

    def has_room(self, in_flight: int) -> bool:
        return in_flight < self.workers

    def submit(self, job: int, *, alone: bool = False, avoid: Collection[str] | None = None) -> tuple[Any, str]:
        attempt = sum(1 for other, *_ in self.submitted if other == job)
        self.submitted.append((job, alone, tuple(avoid or ())))
        future: Future[int] = Future()
        error = self.outcome(job, attempt)
        if error is None:
            future.set_result(job)
        else:
            future.set_exception(error)
        heapq.heappush(self._events, (self.time + self.seconds(job, attempt), (job, attempt), future))
        return (job, attempt), f"node-{attempt}" if alone else ""

    def finished(self, handle: Any, *, crashed: bool) -> None:
        pass

    def cancel(self, handle: Any, *, force: bool) -> None:
        self.cancelled.append((handle[0], force))
        if not force:  # ends a second later
            self._events = [(self.time + 1 if at[1] == handle else at[0], *at[1:]) for at in self._events]
            heapq.heapify(self._events)

    def lacking(self) -> str:
        return self.lack

    # completions
    def watch(self, handle: Any) -> None:
        pass

    def take(self, timeout_s: float) -> list[tuple[Any, Future[int]]]:
        if self._events and self._events[0][0] <= self.time + timeout_s:
            self.time, handle, future = heapq.heappop(self._events)
            return [(handle, future)]
        self.time += timeout_s
        return []

    def now(self) -> float:
        return self.time

    # observer
    def done(self, job: int, report: int) -> None:
        self.done_jobs.append(job)

    def retrying(self, job: int, attempt: int, error: str) -> None:
        self.retries.append((job, attempt))

    def failed(self, job: int, error: str) -> None:
        self.failures[job] = error

    def lacking_said(self) -> list[str]:
        return [what for _, what in self.lacked]

    def tick(self, in_flight: int, waiting: int) -> None:
        pass


class Watching:
    """The stage's observer, whose `lacking` is another one than the executor's."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def lacking(self, what: str) -> None:
        self._stage.lacked.append((self._stage.time, what))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


def run(stage: Stage, jobs: int) -> RunResult:
    return run_jobs(iter(range(jobs)), stage, Watching(stage), Stop(), completions=stage)


def test_a_straggler_is_run_again_and_whoever_is_first_counts() -> None:
    stage = Stage(4, lambda job, attempt: NEVER if (job, attempt) == (3, 0) else 10.0)
    result = run(stage, 12)
    assert (result.complete, result.done) == (True, 12)
    assert sorted(stage.done_jobs) == list(range(12))
    assert [entry for entry in stage.submitted if entry[0] == 3] == [(3, False, ()), (3, True, ())]
    assert stage.cancelled == [(3, False)]
    assert STRAGGLER_S <= stage.time < 4 * STRAGGLER_S
    assert stage.retries == []


def test_the_first_copy_may_win_after_all() -> None:
    stage = Stage(2, lambda job, attempt: 35.0 if job == 1 and not attempt else NEVER if job == 1 else 1.0)
    result = run(stage, 3)
    assert (result.complete, sorted(stage.done_jobs)) == (True, [0, 1, 2])
    assert len([entry for entry in stage.submitted if entry[0] == 1]) == 2


def test_jobs_that_all_take_long_are_no_stragglers() -> None:
    stage = Stage(4, lambda job, attempt: 100.0 + 50 * (job == 3))
    assert run(stage, 8).complete
    assert len(stage.submitted) == 8


def test_while_there_is_other_work_nothing_is_run_twice() -> None:
    stage = Stage(2, lambda job, attempt: 200.0 if job == 0 else 1.0)
    assert run(stage, 150).complete
    assert sum(1 for job, *_ in stage.submitted if job == 0) == 2
    again = next(place for place, entry in enumerate(stage.submitted) if entry[:2] == (0, True))
    assert again == len(stage.submitted) - 1


def test_a_copy_that_dies_leaves_the_decision_to_the_other() -> None:
    stage = Stage(2, lambda job, attempt: (60.0 if not attempt else 5.0) if job == 1 else 1.0)
    stage.outcome = lambda job, attempt: WorkerCrashedError() if (job, attempt) == (1, 1) else None
    result = run(stage, 3)
    assert result.complete
    assert stage.retries == []


def test_a_copy_that_cannot_be_cancelled_does_not_hold_up_the_end() -> None:
    stage = Stage(2, lambda job, attempt: NEVER if (job, attempt) == (1, 0) else 1.0)
    stage.cancel = lambda handle, *, force: stage.cancelled.append((handle[0], force))  # type: ignore[method-assign]
    assert run(stage, 3).complete
    assert stage.cancelled == [(1, False), (1, True)]
    assert stage.time < STRAGGLER_S + CANCEL_WAIT_S + 10


@pytest.mark.parametrize("error", [WorkerCrashedError(), NodeDiedError("node x died")])
def test_a_job_that_takes_three_nodes_with_it_is_set_aside(error: Exception) -> None:
    stage = Stage(2, lambda job, attempt: 1.0)
    stage.outcome = lambda job, attempt: error if job == 1 else None
    result = run(stage, 4)
    assert sorted(stage.done_jobs) == [0, 2, 3]
    assert list(result.failed) == ["1"]
    assert [entry for entry in stage.submitted if entry[0] == 1] == [
        (1, False, ()),
        (1, True, ()),
        (1, True, ("node-1",)),
    ]
    assert stage.failures[1].startswith("set aside: it took its worker with it 3 times on nodes node-1, node-2. ")
    assert type(error).__name__ in stage.failures[1]


def test_what_the_cluster_lacks_is_said_now_and_then() -> None:
    stage = Stage(1, lambda job, attempt: 35.0)
    stage.lack = "a job needs 1 GPU of one node"
    assert run(stage, 1).complete
    assert stage.lacking_said() == ["a job needs 1 GPU of one node"] * 3

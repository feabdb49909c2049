"""The loop that runs jobs on Ray: bounded in-flight work, retries of system failures, poison jobs set aside.

Ray schedules; it holds no state that a run needs. A job is idempotent (it commits its shard atomically), so it may be
run again at any time. Costs about 2 ms a job on the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray import exceptions as ray_errors

from uvd.sequences.object_stores import explain, is_store_failure
from uvd.sequences.stopping import Stop

MAX_ATTEMPTS = 3
"""A job that kills its worker this often is poison."""
BACKOFF_S = (0.5, 2.0)
"""Pause before the second and the third attempt."""
_POLL_S = 0.2

SYSTEM_FAILURES = (
    ray_errors.WorkerCrashedError,
    ray_errors.ActorDiedError,
    ray_errors.ActorUnavailableError,
    ray_errors.NodeDiedError,
    ray_errors.LocalRayletDiedError,
    ray_errors.OutOfMemoryError,
    ray_errors.ObjectLostError,
)

J = TypeVar("J")
R = TypeVar("R")
J_contra = TypeVar("J_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


class Executor(Protocol[J_contra]):
    """Where jobs run: stateless tasks or a pool of actors."""

    def has_room(self, in_flight: int) -> bool: ...

    def submit(self, job: J_contra, *, alone: bool = False) -> ray.ObjectRef | None: ...

    def finished(self, ref: ray.ObjectRef, *, crashed: bool) -> None: ...


class Observer(Protocol[J_contra, R_contra]):
    """Is told what happens, in the driver: progress bar and run log."""

    def done(self, job: J_contra, report: R_contra) -> None: ...

    def retrying(self, job: J_contra, attempt: int, error: str) -> None: ...

    def failed(self, job: J_contra, error: str) -> None: ...

    def tick(self) -> None: ...


class TaskExecutor(Generic[J]):
    """Runs `function(job)` as Ray tasks; twice as many in flight as run at once, so no CPU waits for the driver."""

    def __init__(self, function: Callable[[J], Any], num_cpus: float = 1.0) -> None:
        self._remote = ray.remote(num_cpus=num_cpus, max_retries=0)(function)
        self._limit = max(2, int(2 * ray.cluster_resources().get("CPU", 1) / num_cpus))

    def has_room(self, in_flight: int) -> bool:
        return in_flight < self._limit

    def submit(self, job: J, *, alone: bool = False) -> ray.ObjectRef:
        return self._remote.remote(job)

    def finished(self, ref: ray.ObjectRef, *, crashed: bool) -> None:
        pass


class ActorExecutor(Generic[J]):
    """Runs `actor.run(job)` on a pool of actors; an actor that died is replaced.

    Args:
        make_actor: starts one; with `jobs_each` above 1 it must allow as many concurrent calls.
        size: number of actors.
        jobs_each: jobs that one actor works on at the same time.
    """

    def __init__(self, make_actor: Callable[[], Any], size: int, jobs_each: int = 1) -> None:
        self._make_actor = make_actor
        self._jobs_each = jobs_each
        self._load = {make_actor(): 0 for _ in range(size)}
        self._running: dict[ray.ObjectRef, tuple[Any, int]] = {}

    def has_room(self, in_flight: int) -> bool:
        return min(self._load.values()) < self._jobs_each

    def submit(self, job: J, *, alone: bool = False) -> ray.ObjectRef | None:
        """Gives the job to the least busy actor.

        Args:
            alone: give it an actor of its own, so that a job which kills its actor takes no other with it.

        Returns:
            None if `alone` and no actor is idle.
        """
        actor = min(self._load, key=self._load.__getitem__)
        if alone and self._load[actor]:
            return None
        share = self._jobs_each if alone else 1
        ref = actor.run.remote(job)
        self._load[actor] += share
        self._running[ref] = (actor, share)
        return ref

    def finished(self, ref: ray.ObjectRef, *, crashed: bool) -> None:
        actor, share = self._running.pop(ref)
        if actor not in self._load:  # another of its jobs has reported the crash
            return
        self._load[actor] -= share
        if crashed:
            ray.kill(actor)
            del self._load[actor]
            self._load[self._make_actor()] = 0


@dataclass
class RunResult:
    """How a run ended."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        return not self.failed and not self.interrupted


@dataclass
class _Attempt(Generic[J]):
    job: J
    number: int = 1
    not_before: float = 0.0


def run_jobs(
    jobs: Iterator[J], executor: Executor[J], observer: Observer[J, R], stop: Stop, name: Callable[[J], str] = str
) -> RunResult:
    """Runs all jobs; returns when each is done, failed for good, or a stop was asked for.

    A system failure (worker, actor or node died, out of memory) or an operating-system error is tried again, at most
    three times in all; any other exception fails the job at once, because it would come again.
    """
    result = RunResult()
    in_flight: dict[ray.ObjectRef, _Attempt[J]] = {}
    waiting: list[_Attempt[J]] = []
    exhausted = False
    while not stop.requested:
        while executor.has_room(len(in_flight)):
            attempt = _next_ready(waiting)
            if attempt is None and not exhausted:
                job = next(jobs, None)
                exhausted = job is None
                attempt = None if job is None else _Attempt(job)
            if attempt is None:
                break
            ref = executor.submit(attempt.job, alone=attempt.number > 1)
            if ref is None:
                waiting.append(attempt)
                break
            in_flight[ref] = attempt
        if not in_flight and not waiting and exhausted:
            return result
        for ref in _wait(in_flight):
            _settle(ref, in_flight.pop(ref), executor, observer, waiting, result, name)
        observer.tick()
    result.interrupted = True
    for ref in in_flight:
        ray.cancel(ref, force=not isinstance(executor, ActorExecutor))
    return result


def _wait(in_flight: dict[ray.ObjectRef, Any]) -> list[ray.ObjectRef]:
    if not in_flight:
        time.sleep(_POLL_S)
        return []
    ready, _ = ray.wait(list(in_flight), num_returns=len(in_flight), timeout=0)
    if not ready:
        ready, _ = ray.wait(list(in_flight), num_returns=1, timeout=_POLL_S)
    return ready


def _next_ready(waiting: list[_Attempt[J]]) -> _Attempt[J] | None:
    now = time.monotonic()
    for index, attempt in enumerate(waiting):
        if attempt.not_before <= now:
            return waiting.pop(index)
    return None


def _settle(
    ref: ray.ObjectRef,
    attempt: _Attempt[J],
    executor: Executor[J],
    observer: Observer[J, R],
    waiting: list[_Attempt[J]],
    result: RunResult,
    name: Callable[[J], str],
) -> None:
    """Takes one finished attempt: done, to be tried again, or failed."""
    try:
        report = ray.get(ref)
    except SYSTEM_FAILURES as error:
        failure, again = f"{type(error).__name__}: {_first_line(error)}", True
        executor.finished(ref, crashed=True)
    except ray_errors.RayTaskError as error:
        again = isinstance(error.cause, OSError)
        failure = explain(error.cause) if is_store_failure(error.cause) else str(error)
        executor.finished(ref, crashed=False)
    else:
        executor.finished(ref, crashed=False)
        result.done += 1
        observer.done(attempt.job, report)
        return
    if again and attempt.number < MAX_ATTEMPTS:
        pause = BACKOFF_S[attempt.number - 1]
        observer.retrying(attempt.job, attempt.number + 1, failure)
        waiting.append(_Attempt(attempt.job, attempt.number + 1, time.monotonic() + pause))
    else:
        result.failed[name(attempt.job)] = failure
        observer.failed(attempt.job, failure)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

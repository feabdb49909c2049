"""The loop that runs jobs: bounded in-flight work, retries of system failures, poison jobs set aside, stragglers twice.

Ray schedules; it holds no state that a run needs. A job is idempotent (it commits its shard atomically), so it may be
run again at any time, and by two workers at once. What one completion costs the driver does not depend on how many jobs
are planned, done or in flight.
"""

from __future__ import annotations

import queue
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray import exceptions as ray_errors

from uvd.pipeline.executors import Executor
from uvd.sequences.object_stores import explain, is_store_failure
from uvd.sequences.stopping import Stop

MAX_ATTEMPTS = 3
"""A job that kills its worker, or its node, this often is poison."""
BACKOFF_S = (0.5, 2.0)
"""Pause before the second and the third attempt."""
STRAGGLER_S, STRAGGLER_TIMES = 30.0, 3.0
"""Once nothing else is left to start, a job is run a second time elsewhere if it has taken this long, and this many
times the median: its node may be slow, or cut off."""
CANCEL_WAIT_S = 30.0
"""For jobs that are no longer needed to end, so that none writes after the run's end."""
_POLL_S = 0.2
_AT_ONCE = 1000
_LACKING_EVERY_S = 10.0

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


class Observer(Protocol[J_contra, R_contra]):
    """Is told what happens, in the driver: progress bar, run log, metrics."""

    def done(self, job: J_contra, report: R_contra) -> None: ...

    def retrying(self, job: J_contra, attempt: int, error: str) -> None: ...

    def failed(self, job: J_contra, error: str) -> None: ...

    def lacking(self, what: str) -> None:
        """No node of the cluster can take a job."""

    def tick(self, in_flight: int, waiting: int) -> None:
        """Several times a second: jobs that are submitted, and that wait for another attempt."""


class Observers(Generic[J_contra, R_contra]):
    """Tells several."""

    def __init__(self, *observers: Observer[J_contra, R_contra]) -> None:
        self._observers = observers

    def done(self, job: J_contra, report: R_contra) -> None:
        for observer in self._observers:
            observer.done(job, report)

    def retrying(self, job: J_contra, attempt: int, error: str) -> None:
        for observer in self._observers:
            observer.retrying(job, attempt, error)

    def failed(self, job: J_contra, error: str) -> None:
        for observer in self._observers:
            observer.failed(job, error)

    def lacking(self, what: str) -> None:
        for observer in self._observers:
            observer.lacking(what)

    def tick(self, in_flight: int, waiting: int) -> None:
        for observer in self._observers:
            observer.tick(in_flight, waiting)


class Completions(Protocol):
    """Tells when jobs are over, and what time it is."""

    def watch(self, handle: Any) -> None: ...

    def take(self, timeout_s: float) -> list[tuple[Any, Future[Any]]]:
        """Those that are over, each once; waits for the first."""

    def now(self) -> float:
        """Seconds, never going back."""


class RayCompletions:
    """Ray calls back for each: nothing is polled, so 10,000 jobs in flight cost no more than ten."""

    def __init__(self) -> None:
        self._done: queue.SimpleQueue[tuple[ray.ObjectRef, Future[Any]]] = queue.SimpleQueue()

    def watch(self, handle: ray.ObjectRef) -> None:
        handle.future().add_done_callback(lambda future: self._done.put((handle, future)))

    def take(self, timeout_s: float) -> list[tuple[ray.ObjectRef, Future[Any]]]:
        found = []
        try:
            found.append(self._done.get(timeout=timeout_s))
            while len(found) < _AT_ONCE:
                found.append(self._done.get_nowait())
        except queue.Empty:
            pass
        return found

    def now(self) -> float:
        return time.monotonic()


@dataclass
class RunResult:
    """How a run ended."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        return not self.failed and not self.interrupted


@dataclass(eq=False, slots=True)
class _Attempt(Generic[J]):
    """A job on its way; `running` holds one handle, or two while a straggler is run again."""

    job: J
    number: int = 1
    not_before: float = 0.0
    started: float = 0.0
    nodes: list[str] = field(default_factory=list)
    running: set[Any] = field(default_factory=set)
    over: bool = False


def run_jobs(
    jobs: Iterator[J],
    executor: Executor[J],
    observer: Observer[J, R],
    stop: Stop,
    name: Callable[[J], str] = str,
    completions: Completions | None = None,
) -> RunResult:
    """Runs all jobs; returns when each is done, failed for good, or a stop was asked for.

    A system failure (worker, actor or node died, out of memory) or an operating-system error is tried again, at most
    three times in all and on other nodes where there are some; any other exception fails the job at once, because it
    would come again.
    """
    loop = _Loop(jobs, executor, observer, name, completions or RayCompletions())
    while not stop.requested:
        loop.fill()
        if loop.finished:
            loop.cancel_rest()
            return loop.result
        loop.take()
    loop.interrupt()
    return loop.result


class _Loop(Generic[J, R]):
    def __init__(
        self,
        jobs: Iterator[J],
        executor: Executor[J],
        observer: Observer[J, R],
        name: Callable[[J], str],
        completions: Completions,
    ) -> None:
        self.result = RunResult()
        self._jobs, self._executor, self._observer, self._name = jobs, executor, observer, name
        self._completions = completions
        self._exhausted = False
        self._in_flight: dict[Any, _Attempt[J]] = {}
        self._waiting: deque[_Attempt[J]] = deque()
        self._unwanted: set[Any] = set()
        self._seconds: deque[float] = deque(maxlen=1001)
        self._next_look = self._said_lacking = completions.now()

    @property
    def finished(self) -> bool:
        """Nothing is left to wait for but copies of jobs that are done."""
        return self._exhausted and not self._waiting and len(self._in_flight) == len(self._unwanted)

    def fill(self) -> None:
        """Submits as many jobs as there is room for."""
        while self._executor.has_room(len(self._in_flight)):
            attempt = self._next()
            if attempt is None:
                return
            if not self._submit(attempt):
                self._waiting.append(attempt)
                return

    def _next(self) -> _Attempt[J] | None:
        now = self._completions.now()
        for _ in range(len(self._waiting)):
            attempt = self._waiting.popleft()
            if attempt.not_before <= now:
                return attempt
            self._waiting.append(attempt)
        if self._exhausted:
            return None
        for job in self._jobs:
            return _Attempt(job)
        self._exhausted = True
        return None

    def _submit(self, attempt: _Attempt[J], *, copy: bool = False) -> bool:
        again = attempt.number > 1
        # A copy is for a worker that is free now, so it is not bound to a node, where it might wait.
        avoid = attempt.nodes if again and not copy else None
        placed = self._executor.submit(attempt.job, alone=again or copy, avoid=avoid)
        if placed is None:
            return False
        handle, node = placed
        attempt.started = self._completions.now()
        attempt.running.add(handle)
        if node:
            attempt.nodes.append(node)
        self._in_flight[handle] = attempt
        self._completions.watch(handle)
        return True

    def take(self) -> None:
        """Waits a moment for jobs that are over; looks after the others."""
        done = self._completions.take(_POLL_S)
        for handle, future in done:
            self._settle(handle, future)
        now = self._completions.now()
        if self._in_flight and not done and now - self._said_lacking >= _LACKING_EVERY_S:
            self._said_lacking = now
            if what := self._executor.lacking():
                self._observer.lacking(what)
        if now >= self._next_look and self._exhausted and not self._waiting:
            self._next_look = now + 1
            self._run_stragglers_again(now)
        self._observer.tick(len(self._in_flight), len(self._waiting))

    def _settle(self, handle: Any, future: Future[Any]) -> None:
        """Takes one handle that is over: done, to be tried again, or failed."""
        attempt = self._in_flight.pop(handle)
        attempt.running.discard(handle)
        self._unwanted.discard(handle)
        error = future.exception()
        self._executor.finished(handle, crashed=_is_crash(error))
        if attempt.over:
            return
        if error is None:
            self._done(attempt, future.result())
        elif not attempt.running:  # or else its other copy decides
            self._failed(attempt, error)

    def _done(self, attempt: _Attempt[J], report: R) -> None:
        attempt.over = True
        self.result.done += 1
        self._seconds.append(self._completions.now() - attempt.started)
        for other in attempt.running:
            self._unwanted.add(other)
            self._executor.cancel(other, force=False)
        self._observer.done(attempt.job, report)

    def _failed(self, attempt: _Attempt[J], error: BaseException) -> None:
        failure, again = _explained(error)
        if again and attempt.number < MAX_ATTEMPTS:
            attempt.not_before = self._completions.now() + BACKOFF_S[attempt.number - 1]
            attempt.number += 1
            self._observer.retrying(attempt.job, attempt.number, failure)
            self._waiting.append(attempt)
            return
        if _is_crash(error):
            where = f" on nodes {', '.join(attempt.nodes)}" if attempt.nodes else ""
            failure = f"set aside: it took its worker with it {attempt.number} times{where}. {failure}"
        self.result.failed[self._name(attempt.job)] = failure
        self._observer.failed(attempt.job, failure)

    def _run_stragglers_again(self, now: float) -> None:
        idle = self._executor.places() - len(self._in_flight)
        if idle <= 0 or not self._seconds:
            return
        patience = max(STRAGGLER_S, STRAGGLER_TIMES * statistics.median(self._seconds))
        late = [attempt for attempt in self._in_flight.values() if not attempt.over and len(attempt.running) == 1]
        for attempt in [attempt for attempt in late if now - attempt.started >= patience][:idle]:
            self._submit(attempt, copy=True)

    def cancel_rest(self) -> None:
        """Ends copies of jobs that are done."""
        end = self._completions.now() + CANCEL_WAIT_S
        while self._unwanted and self._completions.now() < end:
            for handle, future in self._completions.take(_POLL_S):
                self._settle(handle, future)
        for handle in self._unwanted:
            self._executor.cancel(handle, force=True)

    def interrupt(self) -> None:
        self.result.interrupted = True
        for handle in self._in_flight:
            self._executor.cancel(handle, force=False)


def _is_crash(error: BaseException | None) -> bool:
    """Whether the job's own process died. What a task raises is an instance of its cause's class, too."""
    return isinstance(error, SYSTEM_FAILURES) and not isinstance(error, ray_errors.RayTaskError)


def _explained(error: BaseException) -> tuple[str, bool]:
    """(what to tell a person, whether another attempt may succeed)."""
    if isinstance(error, ray_errors.RayTaskError) and not isinstance(error.cause, SYSTEM_FAILURES):
        if is_store_failure(error.cause):
            return explain(error.cause), True
        if isinstance(error.cause, OSError):  # of the machine, not of the code: where it happened says nothing
            return f"{type(error.cause).__name__}: {error.cause}", True
        return str(error), False
    # Or a task had asked something of another process that died.
    cause = error.cause if isinstance(error, ray_errors.RayTaskError) else error
    first_line = str(cause).strip().partition("\n")[0]
    return f"{type(cause).__name__}: {first_line}", isinstance(cause, SYSTEM_FAILURES)

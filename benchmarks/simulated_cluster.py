"""A cluster that is only imagined: thousands of workers on a clock of its own, where all goes wrong that can.

It stands where Ray stands, behind the run loop's `Executor` and `Completions`, so that the loop, its observers and the
plan are the real ones. Nodes have workers; jobs wait for a free one; workers die, nodes are lost and come back, some
are slow, some jobs kill whatever runs them, some attempts never end.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ray import exceptions as ray_errors

from uvd.pipeline.executors import QUEUED, Cluster
from uvd.pipeline.progress import ShardJob

J = TypeVar("J", bound=ShardJob)
NODE = 16
"""Workers of a node."""
DIES_AFTER_S = 1.0
"""A job that kills its worker does so then."""


@dataclass(frozen=True)
class Troubles:
    """What goes wrong.

    Attributes:
        worker_dies: share of attempts that end with their worker.
        node_lost_every_s: seconds between two losses of a node, anywhere.
        node_back_s: so long a lost node is away.
        slow_nodes: one node in so many takes `slow_times` as long; 0 for none.
        poison: shards whose every attempt kills its worker.
        hanging: shards whose first attempt never ends.
    """

    worker_dies: float = 0.002
    node_lost_every_s: float = 20.0
    node_back_s: float = 300.0
    slow_nodes: int = 25
    slow_times: float = 15.0
    poison: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()


@dataclass(eq=False, slots=True)
class _Task(Generic[J]):
    job: J
    node: int = -1
    """Where it runs; or where it has to, while it waits; -1 for any."""
    running: bool = False


@dataclass(eq=False, slots=True)
class _Node:
    free: int
    times: float
    alive: bool = True
    waiting: deque[int] = field(default_factory=deque)
    running: set[int] = field(default_factory=set)


class SimulatedCluster(Generic[J]):
    """An `Executor` and `Completions` in one.

    Args:
        workers: in all, on nodes of 16.
        seconds: what jobs take, drawn from these.
        work: what a job that comes to its end does, once for each attempt; what it returns is the report.
    """

    def __init__(
        self,
        workers: int,
        seconds: Sequence[float],
        work: Callable[[J], Any],
        troubles: Troubles,
        seed: int = 0,
    ) -> None:
        self._seconds, self._work, self._troubles = seconds, work, troubles
        self._draw = random.Random(seed)
        self._now = 0.0
        slow = troubles.slow_nodes
        self._nodes = [
            _Node(NODE, troubles.slow_times if slow and number % slow == slow - 1 else 1.0)
            for number in range(-(-workers // NODE))
        ]
        self._cluster = Cluster({"CPU": 1.0}, self._describe, self.now)
        self._free: deque[int] = deque(number for _ in range(NODE) for number in range(len(self._nodes)))
        self._tasks: dict[int, _Task[J]] = {}
        self._waiting: deque[int] = deque()
        self._events: list[tuple[float, int, str]] = []
        self._over: deque[tuple[int, Future[Any]]] = deque()
        self._handles = 0
        self._hung: set[int] = set()
        self.lost_nodes = self.dead_workers = self.cancelled = self.attempts = 0
        self._schedule(troubles.node_lost_every_s, -1, "lose")

    def _describe(self) -> list[dict[str, Any]]:
        """As `ray.nodes` does."""
        return [
            {"NodeID": str(number), "Alive": node.alive, "Resources": {"CPU": NODE}}
            for number, node in enumerate(self._nodes)
        ]

    def places(self) -> int:
        return self._cluster.places()

    def has_room(self, in_flight: int) -> bool:
        return in_flight < max(QUEUED, QUEUED * self.places())

    def lacking(self) -> str:
        return self._cluster.lacking()

    def submit(self, job: J, *, alone: bool = False, avoid: Collection[str] | None = None) -> tuple[int, str]:
        chosen = "" if avoid is None else self._cluster.other_than(avoid)
        self._handles += 1
        self._tasks[self._handles] = _Task(job)
        self._place(self._handles, int(chosen) if chosen else -1)
        return self._handles, chosen

    def _place(self, handle: int, wanted: int) -> None:
        if wanted >= 0 and self._nodes[wanted].alive:
            self._tasks[handle].node = wanted
            self._nodes[wanted].waiting.append(handle)
            self._serve(wanted)
            return
        self._waiting.append(handle)
        while self._free and self._waiting:
            self._serve(self._free.popleft())

    def _serve(self, number: int) -> None:
        """Starts what a node has a worker for: what waits for this node, then what waits for any."""
        node = self._nodes[number]
        while node.alive and node.free:
            queue = node.waiting or self._waiting
            if not queue:
                self._free.append(number)
                return
            handle = queue.popleft()
            if handle in self._tasks:  # or else it was cancelled
                self._start(handle, number, node)

    def _start(self, handle: int, number: int, node: _Node) -> None:
        task = self._tasks[handle]
        task.node, task.running = number, True
        node.free -= 1
        node.running.add(handle)
        self.attempts += 1
        shard = task.job.shard
        if shard in self._troubles.hanging and shard not in self._hung:
            self._hung.add(shard)
        elif shard in self._troubles.poison or self._draw.random() < self._troubles.worker_dies:
            self._schedule(DIES_AFTER_S, handle, "die")
        else:
            self._schedule(self._draw.choice(self._seconds) * node.times, handle, "end")

    def _schedule(self, seconds: float, handle: int, what: str) -> None:
        heapq.heappush(self._events, (self._now + seconds, handle, what))

    def finished(self, handle: int, *, crashed: bool) -> None:
        pass

    def cancel(self, handle: int, *, force: bool) -> None:
        if handle in self._tasks:
            self.cancelled += 1
            self._end(handle, ray_errors.TaskCancelledError())

    def watch(self, handle: int) -> None:
        pass

    def now(self) -> float:
        return self._now

    def take(self, timeout_s: float) -> list[tuple[int, Future[Any]]]:
        """Lets time go on until something is over: one at a time, as for a driver that is never late."""
        end = self._now + timeout_s
        while not self._over and self._events and self._events[0][0] <= end:
            self._now, handle, what = heapq.heappop(self._events)
            self._happen(handle, what)
        if not self._over:
            self._now = end
        over = list(self._over)
        self._over.clear()
        return over

    def _happen(self, handle: int, what: str) -> None:
        if what == "lose":
            self._lose_node()
        elif what == "back":
            self._bring_back(handle)
        elif handle not in self._tasks:
            return  # its node was lost, or it was cancelled
        elif what == "die":
            self.dead_workers += 1
            self._end(handle, ray_errors.WorkerCrashedError())
        else:
            self._end(handle)

    def _end(self, handle: int, error: BaseException | None = None) -> None:
        task = self._tasks.pop(handle)
        future: Future[Any] = Future()
        if error is None:
            future.set_result(self._work(task.job))
        else:
            future.set_exception(error)
        self._over.append((handle, future))
        if task.running:
            node = self._nodes[task.node]
            node.running.discard(handle)
            node.free += 1
            self._serve(task.node)

    def _lose_node(self) -> None:
        self._schedule(self._draw.expovariate(1 / self._troubles.node_lost_every_s), -1, "lose")
        number = self._draw.randrange(len(self._nodes))
        node = self._nodes[number]
        if not node.alive:
            return
        self.lost_nodes += 1
        node.alive = False
        for handle in sorted(node.running):
            self._end(handle, ray_errors.NodeDiedError(f"node {number} was taken away"))
        self._schedule(self._troubles.node_back_s, number, "back")
        waiting, node.waiting = node.waiting, deque()
        for handle in waiting:
            if handle in self._tasks:
                self._place(handle, -1)

    def _bring_back(self, number: int) -> None:
        node = self._nodes[number]
        node.alive, node.free = True, NODE
        self._serve(number)

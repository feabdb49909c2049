"""Where jobs run: as stateless Ray tasks, or on a pool of actors that hold something expensive, such as a network.

Both follow the cluster as its nodes come and go, and say what it lacks if no node can ever take a job.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uvd.sources.resources import ORDINARY, Demand, Resources

QUEUED = 2
"""Tasks in flight for each that can run: the next is at its node when one is done. Also makes autoscalers add nodes."""
_LOOK_EVERY_S = 5.0
_NAMES = {"memory": "bytes of memory"}

J = TypeVar("J")
J_contra = TypeVar("J_contra", contravariant=True)
Node = Mapping[str, Any]


class Executor(Protocol[J_contra]):
    """What the run loop needs of a place where jobs run."""

    def places(self) -> int:
        """Jobs that can run at the same time."""

    def has_room(self, in_flight: int) -> bool:
        """Whether another job should be submitted."""

    def submit(
        self, job: J_contra, *, alone: bool = False, avoid: Collection[str] | None = None
    ) -> tuple[Any, str] | None:
        """Starts a job.

        Args:
            alone: it may kill the process that it runs in, so no other job should be there.
            avoid: nodes on which it has failed; None to let Ray choose, which takes one that is free.

        Returns:
            (handle, node that was chosen or empty if Ray chooses); None if it must wait for a place.
        """

    def finished(self, handle: Any, *, crashed: bool) -> None:
        """The job is over; crashed if its process died."""

    def cancel(self, handle: Any, *, force: bool) -> None:
        """Nobody needs this job any more; `force` ends its process if that is what it takes."""

    def lacking(self) -> str:
        """What no node has that jobs need; empty if there is nothing."""


class Cluster:
    """Ray's nodes, looked at every few seconds at most, whatever their number and that of the jobs."""

    def __init__(
        self,
        demand: Demand,
        look: Callable[[], list[dict[str, Any]]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.demand = demand
        self._look, self._now = look or ray.nodes, now
        self._nodes: list[Node] = []
        self._fit: list[str] = []
        self._places = self._turn = 0
        self._looked = -math.inf

    def nodes(self) -> list[Node]:
        """Those that are alive."""
        if self._now() - self._looked >= _LOOK_EVERY_S:
            self._nodes = [node for node in self._look() if node["Alive"]]
            there = [(node["NodeID"], places(node, self.demand)) for node in self._nodes]
            self._places = sum(number for _, number in there)
            self._fit = [name for name, number in there if number]
            self._looked = self._now()
        return self._nodes

    def places(self) -> int:
        """Jobs that fit on all nodes together."""
        self.nodes()
        return self._places

    def other_than(self, avoid: Collection[str]) -> str:
        """A node that can take a job and is none of those, each time another; empty if there is none."""
        self.nodes()
        for _ in self._fit:
            name = self._fit[self._turn % len(self._fit)]
            self._turn += 1
            if name not in avoid:
                return name
        return ""

    def lacking(self) -> str:
        nodes = self.nodes()
        if self._places:
            return ""
        most = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in self.demand}
        short = {name: amount for name, amount in self.demand.items() if most[name] < amount} or self.demand
        wanted = " and ".join(f"{amount:g} {_NAMES.get(name, name)}" for name, amount in short.items())
        there = ", ".join(f"{most[name]:g} {_NAMES.get(name, name)}" for name in short)
        return f"a job needs {wanted} of one node, and the largest of {len(nodes)} has {there}"


def places(node: Node, demand: Demand) -> int:
    """Jobs that a node can run at the same time."""
    has = node["Resources"]
    # A job that asks for nothing is limited by nothing; one a node will do.
    return min((int(has.get(name, 0) / amount + 1e-9) for name, amount in demand.items()), default=1)


class TaskExecutor(Generic[J]):
    """Runs `function(job)` as Ray tasks.

    Args:
        function: is tried again by the run loop, never by Ray.
        num_cpus: of one job, unless `resources` say otherwise.
    """

    def __init__(self, function: Callable[[J], Any], num_cpus: float = 1.0, resources: Resources = ORDINARY) -> None:
        self._cluster = Cluster(resources.demand(num_cpus))
        self._remote = ray.remote(**ray_options(self._cluster.demand), max_retries=0)(function)

    def places(self) -> int:
        return self._cluster.places()

    def has_room(self, in_flight: int) -> bool:
        return in_flight < max(QUEUED, QUEUED * self.places())

    def submit(self, job: J, *, alone: bool = False, avoid: Collection[str] | None = None) -> tuple[ray.ObjectRef, str]:
        # Each task has a worker of its own.
        node = "" if avoid is None else self._cluster.other_than(avoid)
        if not node:
            return self._remote.remote(job), ""
        there = NodeAffinitySchedulingStrategy(node, soft=True)
        return self._remote.options(scheduling_strategy=there).remote(job), node

    def finished(self, handle: ray.ObjectRef, *, crashed: bool) -> None:
        pass

    def cancel(self, handle: ray.ObjectRef, *, force: bool) -> None:
        ray.cancel(handle, force=True)

    def lacking(self) -> str:
        return self._cluster.lacking()


class ActorExecutor(Generic[J]):
    """Runs `actor.run(job)` on a pool of actors; an actor that died is replaced, and the pool grows with the cluster.

    Args:
        make_actor: starts one; with `jobs_each` above 1 it must allow as many concurrent calls.
        demand: what one takes of a node.
        wanted: actors, whether the cluster has places for them now or not; by default as many as it has places for.
        most: there is no work for more of them.
        jobs_each: jobs that one actor works on at the same time.
    """

    def __init__(
        self,
        make_actor: Callable[[], Any],
        demand: Demand,
        *,
        wanted: int | None = None,
        most: int | None = None,
        jobs_each: int = 1,
    ) -> None:
        self._make_actor = make_actor
        self._cluster = Cluster(demand)
        self._wanted, self._most = wanted, most
        self._jobs_each = jobs_each
        self._load: dict[Any, int] = {}
        self._starting: dict[Any, ray.ObjectRef] = {}
        self._running: dict[ray.ObjectRef, tuple[Any, int]] = {}
        self._grow()

    def _size(self) -> int:
        """Actors that there should be: at least one, for which an autoscaler may bring a node."""
        wanted = max(1, self._wanted or self._cluster.places())
        return wanted if self._most is None else min(wanted, max(1, self._most))

    def _grow(self) -> None:
        for _ in range(self._size() - len(self._load)):
            actor = self._make_actor()
            self._load[actor] = 0
            self._starting[actor] = actor.__ray_ready__.remote()

    def _usable(self) -> dict[Any, int]:
        """Actors to give jobs to, and what they have: those that have started, or all as long as none has.

        One that takes the place of a dead one may wait for a node for ever.
        """
        if self._starting:
            over, _ = ray.wait(list(self._starting.values()), num_returns=len(self._starting), timeout=0)
            self._starting = {actor: ref for actor, ref in self._starting.items() if ref not in over}
        started = {actor: load for actor, load in self._load.items() if actor not in self._starting}
        return started or self._load

    def places(self) -> int:
        return len(self._usable()) * self._jobs_each if self._cluster.places() else 0

    def has_room(self, in_flight: int) -> bool:
        self._grow()
        return min(self._usable().values()) < self._jobs_each

    def submit(
        self, job: J, *, alone: bool = False, avoid: Collection[str] | None = None
    ) -> tuple[ray.ObjectRef, str] | None:
        """Gives the job to the least busy actor; `alone` to one that is idle, which gets no other meanwhile."""
        usable = self._usable()
        actor = min(usable, key=usable.__getitem__)
        if alone and self._load[actor]:
            return None
        share = self._jobs_each if alone else 1
        ref = actor.run.remote(job)
        self._load[actor] += share
        self._running[ref] = (actor, share)
        return ref, ""

    def finished(self, handle: ray.ObjectRef, *, crashed: bool) -> None:
        actor, share = self._running.pop(handle)
        if actor not in self._load:  # another of its jobs has reported the crash
            return
        self._load[actor] -= share
        if crashed:
            self._end(actor)

    def cancel(self, handle: ray.ObjectRef, *, force: bool) -> None:
        if force and handle in self._running:
            self._end(self._running.pop(handle)[0])
        else:
            ray.cancel(handle)  # one that has begun goes on to its end

    def _end(self, actor: Any) -> None:
        if self._load.pop(actor, None) is not None:
            self._starting.pop(actor, None)
            ray.kill(actor)
            self._grow()

    def lacking(self) -> str:
        return self._cluster.lacking()


def ray_options(demand: Demand) -> dict[str, Any]:
    """A demand as `ray.remote` wants it."""
    rest = {name: amount for name, amount in demand.items() if name not in ("CPU", "GPU", "memory")}
    return {
        "num_cpus": demand.get("CPU", 0),
        "num_gpus": demand.get("GPU", 0),
        "memory": int(demand["memory"]) if "memory" in demand else None,
        "resources": rest or None,
    }

"""Places for jobs on a cluster: counted by what nodes have, found apart from where a job failed, missed by name."""

from __future__ import annotations

from typing import Any

import pytest

from uvd.pipeline import executors
from uvd.pipeline.config import ConfigError, validate
from uvd.pipeline.executors import ActorExecutor, Cluster, places, ray_options
from uvd.sources.resources import Resources

GB = 10**9


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Ray's answer, which a test changes."""
    there: list[dict[str, Any]] = []
    monkeypatch.setattr(executors.ray, "nodes", lambda: list(there))
    monkeypatch.setattr(executors, "_LOOK_EVERY_S", 0.0)
    return there


def test_a_demand_is_what_the_config_says_or_else_the_source() -> None:
    assert Resources().demand(0.5) == {"CPU": 0.5}
    asked = Resources(num_cpus=2, num_gpus=0.5, memory_gb=4, custom={"render": 1})
    assert asked.demand(0.5) == {"CPU": 2, "GPU": 0.5, "memory": 4 * GB, "render": 1}
    assert Resources(num_cpus=0).demand(1) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"num_cpu": 1}, "did you mean 'num_cpus'"),
        ({"memory_gb": 0}, "memory_gb"),
        ({"custom": {"render": 0}}, "custom.render"),
        ({"custom": {"render": "x"}}, "custom.render"),
    ],
)
def test_a_wrong_demand_is_explained(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(Resources, content, "--resources")


@pytest.mark.parametrize(
    ("demand", "fits"),
    [
        ({"CPU": 1}, 8),
        ({"CPU": 0.1}, 80),
        ({"CPU": 3}, 2),
        ({"CPU": 1, "GPU": 1}, 2),
        ({"CPU": 1, "memory": 5 * GB}, 3),
        ({"CPU": 1, "render": 1}, 0),
        ({}, 1),
    ],
)
def test_what_is_scarcest_limits_a_node(demand: dict[str, float], fits: int) -> None:
    assert places(node("a", CPU=8, GPU=2, memory=16 * GB), demand) == fits


def test_only_nodes_that_live_count_and_failed_ones_are_avoided(nodes: list[dict[str, Any]]) -> None:
    nodes += [node("a", CPU=4), node("b", CPU=2), node("dead", alive=False, CPU=64), node("small", CPU=0.5)]
    cluster = Cluster({"CPU": 1.0})
    assert cluster.places() == 6
    assert cluster.other_than([]) == "a"
    assert cluster.other_than(["a"]) == "b"
    assert cluster.other_than(["a", "b"]) == ""
    nodes.append(node("c", CPU=1))
    assert cluster.places() == 7


def test_what_no_node_has_is_named(nodes: list[dict[str, Any]]) -> None:
    cluster = Cluster({"CPU": 2.0, "GPU": 1.0})
    assert cluster.lacking() == "a job needs 2 CPU and 1 GPU of one node, and the largest of 0 has 0 CPU, 0 GPU"
    nodes.append(node("a", CPU=8))
    assert cluster.lacking() == "a job needs 1 GPU of one node, and the largest of 1 has 0 GPU"
    nodes.append(node("b", CPU=1, GPU=1))
    assert "2 CPU and 1 GPU" in cluster.lacking()  # no node has both
    nodes.append(node("c", CPU=2, GPU=1))
    assert cluster.lacking() == ""


def test_options_are_those_of_ray() -> None:
    found = ray_options({"CPU": 2, "GPU": 1, "memory": 4.0 * GB, "render": 1})
    assert found == {"num_cpus": 2, "num_gpus": 1, "memory": 4 * GB, "resources": {"render": 1}}
    assert ray_options({"CPU": 1}) == {"num_cpus": 1, "num_gpus": 0, "memory": None, "resources": None}


class Ready:
    """Of an actor: its call comes back once a test says that the actor has started."""

    def __init__(self, actor: Actor) -> None:
        self.actor, self.over = actor, False

    def remote(self) -> Ready:
        return self


class Actor:
    """Stands for a handle: remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.run = self
        self.ready = Ready(self)
        self.__ray_ready__ = self.ready

    def remote(self, job: int) -> tuple[int, int]:
        self.given.append(job)
        return id(self), job


def pool(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[ActorExecutor[int], list[Actor], list[Actor]]:
    made: list[Actor] = []
    killed: list[Actor] = []
    monkeypatch.setattr(executors.ray, "kill", killed.append)
    monkeypatch.setattr(
        executors.ray, "wait", lambda refs, num_returns, timeout: ([ref for ref in refs if ref.over], [])
    )

    def make() -> Actor:
        made.append(Actor())
        return made[-1]

    return ActorExecutor(make, {"GPU": 1.0}, **settings), made, killed


def test_a_pool_grows_with_the_cluster_up_to_its_work(nodes: list[dict[str, Any]], monkeypatch) -> None:
    executor, made, _ = pool(monkeypatch, most=3)
    assert len(made) == 1  # for which an autoscaler may bring a node
    assert executor.places() == 0
    nodes.append(node("a", GPU=2))
    assert executor.has_room(0)
    assert len(made) == executor.places() == 2
    nodes.append(node("b", GPU=4))
    executor.has_room(0)
    assert len(made) == 3


def test_a_pool_of_a_size_that_was_asked_for_does_not_wait_for_nodes(nodes: list[dict[str, Any]], monkeypatch) -> None:
    assert len(pool(monkeypatch, wanted=4)[1]) == 4
    assert len(pool(monkeypatch, wanted=4, most=2)[1]) == 2


def test_a_job_alone_gets_an_idle_actor_and_a_dead_one_is_replaced(nodes: list[dict[str, Any]], monkeypatch) -> None:
    nodes.append(node("a", GPU=1))
    executor, made, killed = pool(monkeypatch, jobs_each=2)
    first = executor.submit(1)
    assert first is not None
    assert executor.submit(2, alone=True) is None
    executor.finished(first[0], crashed=False)
    alone = executor.submit(2, alone=True)
    assert alone is not None
    assert not executor.has_room(1)
    executor.finished(alone[0], crashed=True)
    assert killed == made[:1]
    assert len(made) == 2
    assert executor.has_room(0)


def test_a_job_that_does_not_end_when_asked_is_ended_with_its_actor(nodes: list[dict[str, Any]], monkeypatch) -> None:
    nodes.append(node("a", GPU=1))
    executor, made, killed = pool(monkeypatch)
    asked: list[Any] = []
    monkeypatch.setattr(executors.ray, "cancel", asked.append)
    placed = executor.submit(1)
    assert placed is not None
    executor.cancel(placed[0], force=False)
    assert (asked, killed) == ([placed[0]], [])
    executor.cancel(placed[0], force=True)
    assert killed == made[:1]


def test_jobs_go_to_actors_that_have_started_if_there_are_some(nodes: list[dict[str, Any]], monkeypatch) -> None:
    nodes += [node("a", GPU=1), node("b", GPU=1)]
    executor, made, _ = pool(monkeypatch, jobs_each=2)
    first = executor.submit(1)
    assert first is not None  # none has started: what is wrong with them shows by their jobs
    made[0].ready.over = True
    for job in (2, 3):
        if executor.has_room(job):
            executor.submit(job)
    assert sum(len(actor.given) for actor in made) == 1 + (2 if made[1].given else 1)
    assert not executor.has_room(3)
    assert executor.places() == 2
    made[1].ready.over = True
    assert executor.has_room(3)
    assert executor.places() == 4


def test_the_successor_of_a_dead_actor_gets_nothing_until_it_has_a_node(
    nodes: list[dict[str, Any]], monkeypatch
) -> None:
    nodes += [node("a", GPU=1), node("b", GPU=1)]
    executor, made, _ = pool(monkeypatch)
    for actor in made:
        actor.ready.over = True
    first, second = executor.submit(1), executor.submit(2)
    assert first is not None
    assert second is not None
    executor.finished(first[0], crashed=True)
    assert len(made) == 3
    assert not executor.has_room(1)
    executor.finished(second[0], crashed=False)
    assert executor.has_room(0)
    executor.submit(3)
    assert made[1].given == [2, 3]
    assert made[2].given == []

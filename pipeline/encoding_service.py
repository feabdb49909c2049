"""The far side of the encoding service: one actor a GPU, or one a CPU, and any number of tasks that hand it pictures.

An actor holds nothing but its network, so one that dies is started anew by Ray, and the calls it had are made again.
It reserves no CPU: on machines without GPU, tasks and actors share the cores as they have work, and an actor that is
placed anew never waits for a core that a task holds which waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uvd.pipeline.encoding_actor import EncodingActor
from uvd.pipeline.encoding_client import Allowance, EncodingService
from uvd.pipeline.executors import places
from uvd.pipeline.tokenizing import ALLOCATOR, TokenizeSettings
from uvd.sources.resources import Demand
from uvd.tokenize.encoded import TokenizerError

CALLS_AT_ONCE = 16
"""Threads of an actor; each waits for the ids of its call."""
CALL_RETRIES = 2
"""A call that was lost with its actor so often is not made again: its pictures may be why."""


class RunningService:
    """Actors that were started; ends them with `close`.

    Args:
        settings: with the device resolved.
        num_gpus: actors on GPUs; all that there are by default.
        demands: of one task each of those that will use them.
    """

    def __init__(self, settings: TokenizeSettings, num_gpus: int | None, demands: Sequence[Demand]) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cls = ray.remote(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=CALL_RETRIES,
            max_concurrency=CALLS_AT_ONCE,
            runtime_env={"env_vars": ALLOCATOR},
        )(EncodingActor)
        if settings.device == "cuda":
            wanted = num_gpus or int(sum(node["Resources"].get("GPU", 0) for node in nodes))
            actors = [("", cls.options(num_gpus=1).remote(settings)) for _ in range(max(1, wanted))]
        else:
            actors = [
                (
                    node,
                    cls.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(settings),
                )
                for node, cpus in ((node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in nodes)
                for _ in range(cpus)
            ] or [("", cls.remote(settings))]  # no node has come yet, or all were lost: better than none
        self._starting = {actor.ready.remote(): actor for _, actor in actors}
        rooms = [
            Allowance.of(node["Resources"].get("object_store_memory", 0), count)
            for node in nodes
            if (count := max((places(node, demand) for demand in demands), default=0))
        ]
        least = min(rooms, key=lambda room: room.pictures * room.calls, default=Allowance())
        self.service = EncodingService(tuple(actors), least)

    def check(self) -> None:
        """
        Raises:
            TokenizerError: if an actor could not load its network.
        """
        if not self._starting:
            return
        ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
        for ref in ready:
            del self._starting[ref]
            try:
                ray.get(ref)
            except ray.exceptions.ActorDiedError as error:
                raise TokenizerError(f"an actor could not load the tokenizer: {error}") from error

    def close(self) -> None:
        for _, actor in self.service.actors:
            ray.kill(actor)

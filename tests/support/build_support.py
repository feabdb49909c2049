"""`uvd build` without Ray: tasks and actors as plain calls, and the two-step way beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from uvd.manifests import Dataset
from uvd.pipeline import encoding_client
from uvd.pipeline.build_shard import BuildJob, build_shard
from uvd.pipeline.config import config_entry
from uvd.pipeline.encoding_actor import EncodingActor
from uvd.pipeline.encoding_client import Allowance, EncodingService
from uvd.pipeline.ingest import declare_and_compare, make_shard, plan, plan_file
from uvd.pipeline.tokenizing import TokenizeActor, TokenizeSettings, tokens_entry
from uvd.pipeline.tokenizing import plan as plan_tokens
from uvd.sources import SourceConfig

TOKENIZER = Path(__file__).parents[1] / "data" / "muse-vqgan"
SETTINGS = TokenizeSettings(str(TOKENIZER), "cpu")


class Handle:
    """An actor as `RemoteQueue` sees it; a call is made when its answer is waited for, or by `answer` before."""

    def __init__(self, encode: Callable[[Any], Any]) -> None:
        self.encode = SimpleNamespace(remote=self._remote)
        self._encode = encode
        self.waiting: list[tuple[Any, Future]] = []
        self.most = 0
        self.gone = False

    def _remote(self, pictures: Any) -> Any:
        future: Future = Future()
        self.waiting.append((pictures, future))
        self.most = max(self.most, len(self.waiting))
        return SimpleNamespace(future=lambda: future)

    def answer(self) -> None:
        """Makes all calls that were not made yet."""
        while self.waiting:
            pictures, future = self.waiting.pop(0)
            try:
                future.set_result(self._encode(pictures))
            except Exception as error:  # noqa: BLE001 - handed on
                future.set_exception(error)


class Beside:
    """A service in this process.

    Args:
        encoders: one for each actor.
    """

    def __init__(self, monkeypatch: Any, encoders: Sequence[Callable[[Any], Any]], allowance: Allowance) -> None:
        self.handles = [Handle(encode) for encode in encoders]
        self.service = EncodingService(tuple(("", handle) for handle in self.handles), allowance)
        context = SimpleNamespace(get_node_id=lambda: "here")
        monkeypatch.setattr(encoding_client.ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(encoding_client.ray, "put", lambda array: array.copy())
        wait_for = encoding_client.wait_for

        def answer_then_wait(futures: Any, *, return_when: str, timeout: float) -> Any:
            for handle in self.handles:
                if not handle.gone:
                    handle.answer()
            return wait_for(futures, return_when=return_when, timeout=min(timeout, 60))

        monkeypatch.setattr(encoding_client, "wait_for", answer_then_wait)


def in_two_steps(out: Path, *configs: SourceConfig, shards: set[int] | None = None, tokens: bool = True) -> None:
    """What `uvd ingest` and then `uvd tokenize` make, of all shards or some."""
    dataset = Dataset(str(out))
    name, entry = tokens_entry(SETTINGS)
    for config in configs:
        made_by = config_entry(config)
        with plan_file(dataset, config, made_by["fingerprint"]) as jobs:
            declare_and_compare(dataset, config.folder, made_by, jobs, keep_pictures=True, overwrite=False)
        for job in plan(dataset, config, made_by["fingerprint"]):
            if shards is None or job.shard in shards:
                make_shard(job)
        if tokens:
            dataset.declare("tokens", f"{name}/{config.folder}", entry)
            actor = TokenizeActor(SETTINGS, 1)
            for tokenize_job in plan_tokens(dataset, config.folder, entry["fingerprint"]):
                actor.run(tokenize_job)


def in_one(out: Path, service: EncodingService, *configs: SourceConfig, keep: bool = True) -> list[BuildJob]:
    """The same by `build_shard`; returns its jobs."""
    dataset = Dataset(str(out))
    name, entry = tokens_entry(SETTINGS)
    jobs = []
    for config in configs:
        made_by = config_entry(config)
        with plan_file(dataset, config, made_by["fingerprint"]) as inputs:
            declare_and_compare(dataset, config.folder, made_by, inputs, keep_pictures=keep, overwrite=False)
        dataset.declare("tokens", f"{name}/{config.folder}", entry)
        for job in plan(dataset, config, made_by["fingerprint"]):
            jobs.append(BuildJob(job, name, entry["fingerprint"], keep))
            build_shard(jobs[-1], service)
    return jobs


def encoder() -> EncodingActor:
    return EncodingActor(SETTINGS)

"""Tokenizing: image shards → token shards, one actor a GPU, or one a CPU with one thread each."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import ray
from rich.console import Console

from uvd import __version__
from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.fingerprint import fingerprint
from uvd.pipeline.progress import ShardReport
from uvd.pipeline.ray_runtime import LOCAL, ray_runtime
from uvd.pipeline.runner import ActorExecutor
from uvd.pipeline.stage import Missing, Stage, StageResult, find_missing, run_stage
from uvd.sequences.errors import UserError
from uvd.tokenize.engine import tokenize_shard
from uvd.tokenize.tokenizer import find_folder, load_tokenizer

Device = Literal["auto", "cpu", "cuda"]
ALLOCATOR = {
    # glibc gives large blocks back to the system after every operation, which costs half the speed on a CPU.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}


class DeviceError(UserError):
    """There is no such device."""


@dataclass(frozen=True, slots=True)
class TokenizeJob:
    """Everything an actor needs to make one token shard."""

    dataset: str
    image_shard: Shard
    image_tar_sha256: str
    fingerprint: str
    config_fingerprint: str

    @property
    def shard(self) -> int:
        return self.image_shard.number


class TokenizeActor:
    """Holds one encoder on one device and tokenizes shard after shard."""

    def __init__(self, tokenizer: str, device: str, batch_size: int | None) -> None:
        import torch

        self._tokenizer = load_tokenizer(tokenizer, device=device, batch_size=batch_size, encoder_only=True)
        name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
        self._settings = {"device": name, "batch_size": self._tokenizer.batch_size, "torch": torch.__version__}

    def run(self, job: TokenizeJob) -> ShardReport:
        start = time.perf_counter()
        provenance = {
            **self._settings,
            "tokenizer": self._tokenizer.name,
            "tokenizer_fingerprint": self._tokenizer.fingerprint,
            "image_tar_sha256": job.image_tar_sha256,
            "config_fingerprint": job.config_fingerprint,
        }
        counts = tokenize_shard(
            Dataset(job.dataset), job.image_shard, self._tokenizer.name, self._tokenizer, job.fingerprint, provenance
        )
        return ShardReport(
            shard=job.shard,
            counts={name: getattr(counts, name) for name in ("sequences", "rejected", "images", "tokens", "bytes")},
            seconds={"total": time.perf_counter() - start},
            host=socket.gethostname(),
        )


def plan(dataset: Dataset, source: str, config_fingerprint: str) -> Iterator[TokenizeJob]:
    """One job an image shard; the token shard's fingerprint covers the tokenizer and the image shard's bytes."""
    for shard in dataset.shards(f"sequences/{source}"):
        sha = dataset.metadata(shard)["tar_sha256"]
        yield TokenizeJob(dataset.uri, shard, sha, fingerprint([config_fingerprint, sha]), config_fingerprint)


def tokenize(
    dataset: Dataset,
    sources: Sequence[str] = (),
    tokenizer: str = "uvd-small",
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    num_gpus: int | None = None,
    address: str = LOCAL,
    num_cpus: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Iterator[tuple[str, StageResult]]:
    """Tokenizes sources of a dataset (all by default), or what is missing of them, on one pool of actors.

    Yields:
        (source, result), as each is done.

    Raises:
        DatasetError: if the dataset does not have such a source.
        ConfigChangedError: if its tokens were made by another tokenizer of that name, or from other images.
        TokenizerError: if the tokenizer cannot be loaded.
    """
    unknown = sorted(set(sources) - set(dataset.sources()))
    if unknown:
        raise DatasetError(f"no source {unknown[0]!r} in {dataset.uri}; there are {', '.join(dataset.sources())}")
    folder_of_weights = str(find_folder(tokenizer))
    loaded = load_tokenizer(folder_of_weights, device="cpu", encoder_only=True)
    entry = {"tokenizer": loaded.name, "tokenizer_fingerprint": loaded.fingerprint, "uvd_version": __version__}
    entry["fingerprint"] = fingerprint(entry)
    plans: list[tuple[str, str, Missing[TokenizeJob]]] = []
    for source in sources or dataset.sources():
        folder = f"tokens/{loaded.name}/{source}"
        dataset.declare("tokens", f"{loaded.name}/{source}", entry, overwrite=overwrite)
        missing = find_missing(dataset, folder, list(plan(dataset, source, entry["fingerprint"])), overwrite=overwrite)
        plans.append((source, folder, missing))
    jobs = sum(len(missing.jobs) for _, _, missing in plans)
    kind = _resolve(device, address)
    actor = ray.remote(num_cpus=1, num_gpus=1 if kind == "cuda" else 0, max_restarts=0)(TokenizeActor)

    @functools.cache
    def executor() -> ActorExecutor[TokenizeJob]:
        size = _workers(kind, num_gpus, jobs)
        return ActorExecutor(lambda: actor.remote(folder_of_weights, kind, batch_size), size)

    with ray_runtime(address, num_cpus, ALLOCATOR) if jobs else nullcontext():
        for source, folder, missing in plans:
            stage: Stage[TokenizeJob] = Stage("tokenize", folder, "images", executor, address, num_cpus, ALLOCATOR)
            result = run_stage(dataset, stage, missing, console or Console(stderr=True))
            yield source, result
            if result.run.interrupted:
                return


def _resolve(device: Device, address: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if address == LOCAL and torch.cuda.is_available() else "cpu"


def _workers(kind: str, num_gpus: int | None, jobs: int) -> int:
    """How many actors: one a GPU or CPU that Ray has, no more than there are jobs.

    Raises:
        DeviceError: if Ray has fewer GPUs than asked for; waiting for them would never end.
    """
    resources = ray.cluster_resources()
    if kind == "cpu":
        return max(1, min(int(resources.get("CPU", 1)), jobs))
    there = int(resources.get("GPU", 0))
    if there < (num_gpus or 1):
        raise DeviceError(f"{num_gpus or 1} GPU asked for, Ray has {there}; use --device cpu, or a machine with a GPU")
    return max(1, min(num_gpus or there, jobs))

"""Tokenizing: image shards → token shards, one actor a GPU, or one a CPU with one thread each."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from rich.console import Console

from uvd import __version__
from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.duplicates import Duplicates, read_duplicates
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.image_shard import read_image_shard
from uvd.manifests.kept_pictures import pictures_kept, why_not_kept
from uvd.manifests.lease import Lease
from uvd.manifests.tar import TarError
from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.pipeline.executors import ActorExecutor, ray_options
from uvd.pipeline.metrics import DeviceMetrics, device_label
from uvd.pipeline.progress import ShardReport
from uvd.pipeline.ray_runtime import LOCAL, ray_runtime
from uvd.pipeline.stage import Missing, Stage, StageResult, find_missing, run_stage
from uvd.pipeline.worker_logging import shard_context
from uvd.pipeline.writing import writing
from uvd.sequences.errors import DeviceError
from uvd.sources.resources import ORDINARY, Resources
from uvd.tokenize.batching import EncodingQueue
from uvd.tokenize.engine import DECODE_THREADS, token_shard_fingerprint, tokenize_shard
from uvd.tokenize.precision import Flips, flips
from uvd.tokenize.tokenizer import Precision, Tokenizer, TokenizerError, find_folder, load_tokenizer

Device = Literal["auto", "cpu", "cuda"]
ALLOCATOR = {
    # glibc gives large blocks back to the system after every operation, which costs half the speed on a CPU; and always
    # in threads other than the first, unless they share its arena.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}

SHARDS_AT_ONCE = 2
"""That an actor works on: while the tail of one is encoded, the next fills the batch."""
GPU_DECODE_THREADS = 8
FLIP_PICTURES = 64


@dataclass(frozen=True, slots=True)
class TokenizeJob:
    """Everything an actor needs to make one token shard."""

    dataset: str
    image_shard: Shard
    image_tar_sha256: str
    fingerprint: str
    config_fingerprint: str
    duplicates: Duplicates | None = None

    @property
    def shard(self) -> int:
        return self.image_shard.number


@dataclass(frozen=True, slots=True)
class TokenizeSettings:
    """How tokens are made; see `tokenize`."""

    tokenizer: str
    device: Device = "auto"
    batch_size: int | None = None
    precision: Precision = "fp32"
    compiled: bool = False
    decode_threads: int | None = None
    duplicates: str | None = None
    """Name of a pass of `uvd dedup`: what it leaves out is rejected."""
    resources: Resources = ORDINARY
    """What an actor takes of a node, besides its GPU."""

    def logged(self) -> dict[str, Any]:
        """For the run log."""
        return {**asdict(self), "resources": self.resources.model_dump(exclude_defaults=True)}

    def load(self) -> Tokenizer:
        return load_tokenizer(
            self.tokenizer,
            self.device,
            batch_size=self.batch_size,
            precision=self.precision,
            compiled=self.compiled,
            encoder_only=True,
        )

    def describe(self, loaded: Tokenizer) -> dict[str, Any]:
        """What manifests say of how ids were made here and now.

        Args:
            loaded: what `load` gave; its batch size may have been halved since.
        """
        return {
            "device": torch.cuda.get_device_name(0) if self.device == "cuda" else "cpu",
            "precision": self.precision,
            "compiled": self.compiled,
            "torch": torch.__version__,
            "batch_size": loaded.batch_size,
            "tokenizer": loaded.name,
            "tokenizer_fingerprint": loaded.fingerprint,
        }


class TokenizeActor:
    """Holds one encoder on one device; the shards that it works on at the same time share its batches."""

    def __init__(self, settings: TokenizeSettings, decode_threads: int) -> None:
        self._settings = settings
        self._tokenizer = settings.load()
        self._queue = EncodingQueue(self._tokenizer)
        self._decode_threads = decode_threads
        self._metrics = DeviceMetrics(device_label(settings.device), self._queue.busy_seconds)

    def run(self, job: TokenizeJob) -> ShardReport:
        with shard_context("tokenize", job.image_shard.folder.partition("/")[2], job.shard):
            return self._run(job)

    def _run(self, job: TokenizeJob) -> ShardReport:
        start = time.perf_counter()

        def provenance() -> dict[str, Any]:
            return {
                **self._settings.describe(self._tokenizer),
                "image_tar_sha256": job.image_tar_sha256,
                "config_fingerprint": job.config_fingerprint,
            }

        halvings = self._tokenizer.halvings
        try:
            counts = tokenize_shard(
                Dataset(job.dataset),
                job.image_shard,
                self._tokenizer.name,
                self._queue,
                job.fingerprint,
                provenance,
                self._decode_threads,
                job.duplicates,
            )
        finally:
            if self._queue.broken:
                # A failed device stays failed for this process: another one, perhaps elsewhere, tries the shard again.
                os._exit(1)
        return ShardReport(
            shard=job.shard,
            counts={
                **{name: getattr(counts, name) for name in ("sequences", "rejected", "images", "tokens", "bytes")},
                "batch_halvings": self._tokenizer.halvings - halvings,
            },
            seconds={"total": time.perf_counter() - start},
            host=socket.gethostname(),
        )


def plan(
    dataset: Dataset, source: str, config_fingerprint: str, duplicates: Duplicates | None = None
) -> Iterator[TokenizeJob]:
    """One job an image shard; the token shard's fingerprint covers the tokenizer and the image shard's bytes."""
    for shard in dataset.shards(f"sequences/{source}"):
        sha = dataset.metadata(shard)["tar_sha256"]
        marked = duplicates.of_shard(source, shard.number) if duplicates is not None else None
        made_by = token_shard_fingerprint(config_fingerprint, sha)
        yield TokenizeJob(dataset.address, shard, sha, made_by, config_fingerprint, marked)


def measure_flips(settings: TokenizeSettings, dataset: str, sources: Sequence[str]) -> Flips | None:
    """How many ids of a fixed set, the first pictures of the sources, differ from those of fp32; None without any."""
    opened, pictures = Dataset(dataset), list[NDArray[np.uint8]]()
    for shard in (shard for source in sources for shard in opened.shards(f"sequences/{source}")):
        # What is damaged is refused when its shard is tokenized; here it is no loss.
        with suppress(CodecError, TarError):
            for stored in read_image_shard(opened, shard):
                pictures += stored.iter_pictures()
                if len(pictures) >= FLIP_PICTURES:
                    break
        if len(pictures) >= FLIP_PICTURES:
            break
    if not pictures:
        return None
    chosen = np.stack(pictures[:FLIP_PICTURES])
    return flips(settings.load(), replace(settings, precision="fp32").load(), chosen)


def tokenize(
    dataset: Dataset,
    sources: Sequence[str] = (),
    settings: TokenizeSettings = TokenizeSettings("uvd-small"),
    *,
    num_gpus: int | None = None,
    address: str = LOCAL,
    num_cpus: int | None = None,
    overwrite: bool = False,
    wait: bool = False,
    console: Console | None = None,
) -> Iterator[tuple[str, StageResult]]:
    """Tokenizes sources of a dataset (all by default), or what is missing of them, on one pool of actors.

    Args:
        wait: wait for another run that makes the same tokens, rather than refuse.

    Yields:
        (source, result), as each is done.

    Raises:
        DatasetError: if the dataset does not have such a source, or no valid marks of that pass.
        FolderHeldError: if another run makes the same tokens.
        ConfigChangedError: if its tokens were made by another tokenizer of that name, or from other images.
        TokenizerError: if the tokenizer cannot be loaded.
        PicturesNotKeptError: if tokens are missing of a source whose pictures `uvd build` did not keep.
    """
    console = console or Console(stderr=True)
    unknown = sorted(set(sources) - set(dataset.sources()))
    if unknown:
        raise DatasetError(f"no source {unknown[0]!r} in {dataset.uri}; there are {', '.join(dataset.sources())}")
    settings = replace(settings, tokenizer=str(find_folder(settings.tokenizer)))
    duplicates = read_duplicates(dataset, settings.duplicates) if settings.duplicates is not None else None
    name, entry = tokens_entry(settings, duplicates)
    folders = {source: f"tokens/{name}/{source}" for source in sources or dataset.sources()}
    with writing(dataset, folders.values(), console, wait=wait) as lease:
        plans: list[tuple[str, str, Missing[TokenizeJob]]] = []
        for source, folder in folders.items():
            kept = pictures_kept(dataset, source)
            if (
                not kept
                and dataset.info()["tokens"].get(f"{name}/{source}", {}).get("fingerprint") != entry["fingerprint"]
            ):
                raise why_not_kept(source)
            dataset.declare("tokens", f"{name}/{source}", entry, overwrite=overwrite)
            jobs = list(plan(dataset, source, entry["fingerprint"], duplicates))
            missing = find_missing(dataset, folder, jobs, overwrite=overwrite and kept)
            if missing.jobs and not kept:
                raise why_not_kept(source)
            plans.append((source, folder, missing))
        yield from run_tokenizing(dataset, plans, settings, lease, num_gpus, address, num_cpus, console)


def tokens_entry(settings: TokenizeSettings, duplicates: Duplicates | None = None) -> tuple[str, dict[str, Any]]:
    """The tokenizer's name, and what `dataset.json` records about tokens that it makes.

    Raises:
        TokenizerError: if it cannot be loaded, or its tokens are not a dataset's.
    """
    loaded = replace(settings, device="cpu", compiled=False).load()
    if loaded.tokens_per_image != TOKENS_PER_IMAGE:
        raise TokenizerError(
            f"{loaded.name} makes {loaded.tokens_per_image} tokens of a picture; a dataset's have {TOKENS_PER_IMAGE}"
        )
    entry = {"tokenizer": loaded.name, "tokenizer_fingerprint": loaded.fingerprint, "uvd_version": __version__}
    if duplicates is not None:
        entry["duplicates"] = f"{duplicates.name}: {duplicates.fingerprint}"
    entry["fingerprint"] = fingerprint(entry)
    return loaded.name, entry


def run_tokenizing(
    dataset: Dataset,
    plans: Sequence[tuple[str, str, Missing[TokenizeJob]]],
    settings: TokenizeSettings,
    lease: Lease | None,
    num_gpus: int | None,
    address: str,
    num_cpus: int | None,
    console: Console,
) -> Iterator[tuple[str, StageResult]]:
    """Makes what is missing on one pool of actors.

    Args:
        plans: (source, its folder of tokens, what is missing there); `lease` holds the folders.

    Yields:
        (source, result), as each is done.
    """
    jobs = sum(len(missing.jobs) for _, _, missing in plans)

    @functools.cache
    def executor() -> ActorExecutor[TokenizeJob]:
        return _make_executor(resolved(settings), num_gpus, jobs)

    with ray_runtime(address, num_cpus, ALLOCATOR) if jobs else nullcontext():
        if jobs:
            if address == LOCAL:
                check_gpus(resolved(settings), num_gpus)
            if settings.precision != "fp32":
                _print_flips(resolved(settings), dataset, [source for source, _, _ in plans], console)
        for source, folder, missing in plans:
            stage: Stage[TokenizeJob] = Stage(
                "tokenize", folder, "images", executor, address, num_cpus, ALLOCATOR, settings.logged(), lease
            )
            result = run_stage(dataset, stage, missing, console)
            yield source, result
            if result.run.interrupted:
                return


def check_gpus(settings: TokenizeSettings, num_gpus: int | None) -> None:
    """Makes sure that Ray has the GPUs.

    Raises:
        DeviceError: if this machine has fewer GPUs than asked for; waiting for them would never end.
    """
    there, wanted = int(ray.cluster_resources().get("GPU", 0)), num_gpus or 1
    if settings.device == "cuda" and there < wanted:
        raise DeviceError(f"{wanted} GPU asked for, Ray has {there}; use --device cpu, or a machine with a GPU")


def _print_flips(settings: TokenizeSettings, dataset: Dataset, sources: Sequence[str], console: Console) -> None:
    remote = ray.remote(num_cpus=1, num_gpus=1 if settings.device == "cuda" else 0)(measure_flips)
    found = ray.get(remote.remote(settings, dataset.address, sources))
    if found is not None:
        console.print(str(found), markup=False, highlight=False)


def _make_executor(settings: TokenizeSettings, num_gpus: int | None, jobs: int) -> ActorExecutor[TokenizeJob]:
    """One actor a GPU with several CPUs to decode for it, or one a CPU; no more than there are jobs."""
    on_gpu = settings.device != "cpu"
    cpus_each, threads = _cpus_for_a_gpu() if on_gpu else (1, DECODE_THREADS)
    threads = settings.decode_threads or threads
    demand = settings.resources.demand(cpus_each) | ({"GPU": 1.0} if on_gpu else {})
    actor = ray.remote(**ray_options(demand), max_restarts=0, max_concurrency=SHARDS_AT_ONCE)(TokenizeActor)
    return ActorExecutor(
        lambda: actor.remote(settings, threads),
        demand,
        wanted=num_gpus if on_gpu else None,
        most=jobs,
        jobs_each=SHARDS_AT_ONCE,
    )


def _cpus_for_a_gpu() -> tuple[int, int]:
    """(CPUs that an actor reserves, threads that decode for it)."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    if not nodes:  # one that an autoscaler will bring
        return 1, GPU_DECODE_THREADS
    # As many as every machine with GPUs has for each of them, or some actors would never find a place.
    each = max(1, min(GPU_DECODE_THREADS, *(int(node.get("CPU", 1) // node["GPU"]) for node in nodes)))
    return each, each


def resolved(settings: TokenizeSettings) -> TokenizeSettings:
    """`auto` is a GPU if Ray has one, on whatever machine."""
    if settings.device != "auto":
        return settings
    return replace(settings, device="cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu")

"""Ingesting: raw inputs → image shards. Plan in the driver, one Ray task a shard, commit in the worker."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.image_shard import ImageShardWriter
from uvd.pipeline.config import config_entry
from uvd.pipeline.progress import ShardReport
from uvd.pipeline.ray_runtime import LOCAL
from uvd.pipeline.runner import TaskExecutor
from uvd.pipeline.stage import Stage, StageResult, find_missing, run_stage
from uvd.sequences import Reject, Seeds
from uvd.sequences.layouts import LAYOUTS, assemble
from uvd.sources import Source, SourceConfig, WorkUnit, source_class


@dataclass(frozen=True, slots=True)
class IngestJob:
    """Everything a worker needs to make one image shard."""

    dataset: str
    source: str
    config: dict[str, Any]
    unit: WorkUnit
    fingerprint: str
    config_fingerprint: str

    @property
    def shard(self) -> int:
        return self.unit.shard


def open_source(config: SourceConfig) -> Source:
    return source_class(config.source)(config)


def plan(dataset: Dataset, config: SourceConfig, config_fingerprint: str) -> Iterator[IngestJob]:
    """One job a work unit; a shard's fingerprint covers the config, uvd's version and the unit's inputs."""
    dumped = config.model_dump(mode="json")
    for unit in open_source(config).plan():
        identity = fingerprint([config_fingerprint, unit.shard, unit.num_inputs, unit.payload])
        yield IngestJob(dataset.uri, config.source, dumped, unit, identity, config_fingerprint)


def make_shard(job: IngestJob) -> ShardReport:
    """Makes and commits one image shard; runs in a worker, or anywhere."""
    cv2.setNumThreads(1)
    config = source_class(job.source).config_class.model_validate(job.config)
    source = open_source(config)
    seeds = Seeds(config.seed, (config.folder, job.shard))
    rejects: list[Reject] = []
    lossless = config.image_codec == "lossless"
    with ImageShardWriter(Dataset(job.dataset), config.folder, job.shard, lossless=lossless, kind=job.source) as writer:
        with source.stages("total"):
            for arranged in assemble(source.read(job.unit, seeds), LAYOUTS, config.layouts, seeds):
                if isinstance(arranged, Reject):
                    rejects.append(arranged)
                else:
                    with source.stages("encode"):
                        writer.add(arranged)
        with source.stages("commit"):
            counts = writer.commit(job.unit.num_inputs, rejects, job.fingerprint, job.config_fingerprint)
    return ShardReport(
        shard=job.shard,
        counts={
            name: getattr(counts, name)
            for name in ("inputs", "used", "rejected", "partial", "sequences", "images", "bytes")
        },
        reasons=dict(Counter(str(reject.reason) for reject in rejects)),
        seconds=dict(source.stages.seconds),
        host=socket.gethostname(),
    )


def ingest(
    config: SourceConfig,
    out: str,
    *,
    address: str = LOCAL,
    num_cpus: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> StageResult:
    """Runs one source into a dataset, or what is missing of it.

    Raises:
        SourceError: if the input as a whole cannot be used.
        ConfigChangedError: if the dataset was made with other settings or inputs.
    """
    console = console or Console(stderr=True)
    dataset = Dataset(out)
    entry = config_entry(config)
    folder = f"sequences/{config.folder}"
    jobs = list(plan(dataset, config, entry["fingerprint"]))
    dataset.declare("sequences", config.folder, entry, overwrite=overwrite)
    stage = Stage("ingest", folder, "sequences", lambda: TaskExecutor(make_shard), address, num_cpus)
    return run_stage(dataset, stage, find_missing(dataset, folder, jobs, overwrite=overwrite), console)

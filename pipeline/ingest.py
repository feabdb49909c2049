"""Ingesting: raw inputs → image shards. Plan in the driver, one Ray task a shard, commit in the worker."""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import ray
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.image_shard import ImageShardWriter, ShardCounts, WrittenSequence
from uvd.manifests.kept_pictures import declare_pictures, pictures_kept, why_not_kept
from uvd.manifests.lease import Lease
from uvd.pipeline.config import config_entry
from uvd.pipeline.executors import ActorExecutor, Executor, TaskExecutor, ray_options
from uvd.pipeline.plan_file import PlanFile
from uvd.pipeline.progress import ShardReport
from uvd.pipeline.ray_runtime import LOCAL
from uvd.pipeline.retries import parts_of, plan_round, round_units, rounds, start_round
from uvd.pipeline.stage import Missing, Stage, StageResult, find_missing, run_stage
from uvd.pipeline.worker_logging import shard_context
from uvd.pipeline.writing import writing
from uvd.renderers.estimators.config import EstimateConfig
from uvd.sequences import Example, Reject, Seeds
from uvd.sequences.errors import DeviceError
from uvd.sequences.layouts import LAYOUTS, assemble
from uvd.sources import Source, SourceConfig, WorkUnit, source_class
from uvd.sources.photos import PhotoConfig
from uvd.sources.resources import Resources

ALLOCATOR = {
    # Decoded photos of some MB come and go: glibc would map and unmap each, and keep an arena for every thread. On
    # downloads this takes a third less memory a worker and 15 % less processor time. Larger blocks go back at once.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


@dataclass(frozen=True, slots=True)
class IngestJob:
    """Everything a worker needs to make one image shard.

    Attributes:
        folder: where it goes, below `sequences/`: the config's own, or that of a round of retries.
    """

    dataset: str
    source: str
    folder: str
    config: dict[str, Any]
    unit: WorkUnit
    fingerprint: str
    config_fingerprint: str

    @property
    def shard(self) -> int:
        return self.unit.shard


def open_source(config: SourceConfig) -> Source:
    return source_class(config.source)(config)


@dataclass(frozen=True)
class Round:
    """What is made in a folder that is not the config's own: a round of retries."""

    folder: str
    units: Iterable[WorkUnit]


def plan(
    dataset: Dataset, config: SourceConfig, config_fingerprint: str, again: Round | None = None
) -> Iterator[IngestJob]:
    """One job a work unit; a shard's fingerprint covers the config, uvd's version and the unit's inputs.

    Args:
        again: plan a round of retries and not the source itself.
    """
    dumped = config.model_dump(mode="json")
    folder = config.folder if again is None else again.folder
    for unit in open_source(config).plan() if again is None else again.units:
        identity = fingerprint([config_fingerprint, unit.shard, unit.num_inputs, unit.payload])
        yield IngestJob(dataset.address, config.source, folder, dumped, unit, identity, config_fingerprint)


def plan_file(
    dataset: Dataset, config: SourceConfig, config_fingerprint: str, again: Round | None = None
) -> PlanFile[IngestJob]:
    """The same jobs, planned now and kept on disk: as many passes as needed, in constant memory."""
    dumped = config.model_dump(mode="json")
    folder = config.folder if again is None else again.folder

    def from_record(record: dict[str, Any]) -> IngestJob:
        unit = WorkUnit(**record["unit"])
        return IngestJob(
            dataset.address, config.source, folder, dumped, unit, record["fingerprint"], config_fingerprint
        )

    records = (
        {
            "unit": {"shard": job.shard, "num_inputs": job.unit.num_inputs, "payload": job.unit.payload},
            "fingerprint": job.fingerprint,
        }
        for job in plan(dataset, config, config_fingerprint, again)
    )
    return PlanFile(records, from_record)


def make_shard(job: IngestJob) -> ShardReport:
    """Makes and commits one image shard; runs in a worker, or anywhere."""
    with shard_context("ingest", job.folder, job.shard):
        report, _ = ingest_shard(job, exhaust)
    return report


def exhaust(written: Iterator[WrittenSequence]) -> None:
    """Wants nothing of the sequences but that they are written."""
    deque(written, maxlen=0)


def ingest_shard(
    job: IngestJob, consume: Callable[[Iterator[WrittenSequence]], None], *, keep_pictures: bool = True
) -> tuple[ShardReport, ShardCounts]:
    """Makes one image shard, hands each sequence on when it is written, and commits after the last was consumed.

    Args:
        consume: must take all of them.
    """
    cv2.setNumThreads(1)
    config = source_class(job.source).config_class.model_validate(job.config)
    source = open_source(config)
    seeds = Seeds(config.seed, (job.folder, job.shard))
    rejects: list[Reject] = []
    dataset = Dataset(job.dataset)
    with ImageShardWriter(
        dataset,
        job.folder,
        job.shard,
        lossless=config.image_codec == "lossless",
        kind=job.source,
        keep_pictures=keep_pictures,
    ) as writer:

        def written() -> Iterator[WrittenSequence]:
            for arranged in assemble(_outcomes(dataset, source, job, seeds), LAYOUTS, config.layouts, seeds):
                if isinstance(arranged, Reject):
                    rejects.append(arranged)
                    continue
                with source.stages("encode"):
                    sequence = writer.add(arranged)
                yield sequence

        with source.stages("total"):
            consume(written())
        with source.stages("commit"):
            counts = writer.commit(job.unit.num_inputs, rejects, job.fingerprint, job.config_fingerprint)
    report = ShardReport(
        shard=job.shard,
        counts={
            name: getattr(counts, name)
            for name in ("inputs", "used", "rejected", "partial", "sequences", "images", "bytes")
        }
        | dict(source.counters),
        reasons=dict(Counter(str(reject.reason) for reject in rejects)),
        seconds=dict(source.stages.seconds),
        host=socket.gethostname(),
    )
    return report, counts


def _outcomes(dataset: Dataset, source: Source, job: IngestJob, seeds: Seeds) -> Iterator[Example | Reject]:
    if job.folder == source.config.folder:
        yield from source.read(job.unit, seeds)
        return
    first = 0
    for part in parts_of(dataset, job.unit):
        places = {index: first + place for place, index in enumerate(part.indices)}
        before = Seeds(source.config.seed, (source.config.folder, part.unit.shard))
        for outcome in source.read_again(part, before):
            if isinstance(outcome, Reject):
                yield replace(outcome, input=places[outcome.input])
            else:
                yield replace(outcome, inputs=tuple(places[index] for index in outcome.inputs))
        first += len(part.indices)


def ingest(
    config: SourceConfig,
    out: str,
    *,
    address: str = LOCAL,
    num_cpus: int | None = None,
    overwrite: bool = False,
    wait: bool = False,
    console: Console | None = None,
) -> StageResult:
    """Runs one source into a dataset, or what is missing of it.

    Args:
        wait: wait for another run of this source on this dataset, rather than refuse.

    Raises:
        FolderHeldError: if another run of this source is at work.
        SourceError: if the input as a whole cannot be used.
        ConfigChangedError: if the dataset was made with other settings or inputs.
        PicturesNotKeptError: if shards are missing of a source whose pictures `uvd build` does not keep.
    """
    console = console or Console(stderr=True)
    dataset = Dataset(out)
    entry = config_entry(config)
    folder = f"sequences/{config.folder}"
    # The plan comes first: an input that cannot be used must not leave an empty dataset.
    with (
        plan_file(dataset, config, entry["fingerprint"]) as jobs,
        writing(dataset, [folder], console, overwrite=overwrite, wait=wait) as lease,
    ):
        kept = overwrite or pictures_kept(dataset, config.folder)
        missing = declare_and_compare(dataset, config.folder, entry, jobs, keep_pictures=kept, overwrite=overwrite)
        if missing.jobs and not kept:
            raise why_not_kept(config.folder)
        return run_stage(dataset, ingest_stage(config, config.folder, address, num_cpus, lease), missing, console)


def declare_and_compare(
    dataset: Dataset,
    name: str,
    entry: dict[str, Any],
    jobs: PlanFile[IngestJob],
    *,
    keep_pictures: bool,
    overwrite: bool,
) -> Missing[IngestJob]:
    """Records how a source is made and how much of it is planned; what of it is missing.

    Raises:
        ConfigChangedError: if it was made with other settings or inputs, or the other way with its pictures.
    """
    entry = declare_pictures(dataset, name, entry, keep=keep_pictures, overwrite=overwrite)
    missing = find_missing(dataset, f"sequences/{name}", jobs, overwrite=overwrite)
    planned = {"shards": missing.planned, "inputs": sum(job.unit.num_inputs for job in jobs)}
    dataset.declare("sequences", name, {**entry, "plan": planned})
    return missing


def retry_rejects(
    config: SourceConfig,
    out: str,
    *,
    address: str = LOCAL,
    num_cpus: int | None = None,
    wait: bool = False,
    console: Console | None = None,
) -> Iterator[tuple[str, StageResult]]:
    """Finishes the rounds of retries that were begun; if there was nothing to finish, begins the next one.

    Every shard of the source itself must be committed.

    Yields:
        (folder below `sequences/`, result) of each round; nothing if there is nothing to try again.

    Raises:
        SourceError: if this source's rejects are final.
        FolderHeldError: if another run of this source is at work and `wait` is off.
    """
    console = console or Console(stderr=True)
    dataset = Dataset.existing(out)
    entry = config_entry(config)
    finished = False
    with writing(dataset, [f"sequences/{config.folder}"], console, wait=wait) as lease:
        for name in rounds(dataset, config.folder)[1:]:
            result = _run_round(dataset, config, ingest_stage(config, name, address, num_cpus, lease), console)
            finished |= bool(result.run.done)
            yield name, result
            if not result.complete:
                return
        if finished:
            return
        name, content, inputs = plan_round(dataset, config.folder, open_source(config).plan(), config.shard_size)
        if inputs:
            start_round(dataset, name, config.folder, content, entry, config.shard_size)
            yield name, _run_round(dataset, config, ingest_stage(config, name, address, num_cpus, lease), console)


def _run_round(dataset: Dataset, config: SourceConfig, stage: Stage[IngestJob], console: Console) -> StageResult:
    with round_plan(dataset, config, stage.folder.partition("/")[2]) as jobs:
        return run_stage(dataset, stage, find_missing(dataset, stage.folder, jobs), console)


def round_plan(dataset: Dataset, config: SourceConfig, name: str) -> PlanFile[IngestJob]:
    """The jobs of a round of retries that was begun."""
    recorded = dataset.info()["sequences"][name]["fingerprint"]
    return plan_file(dataset, config, recorded, Round(name, round_units(dataset, name)))


class ShardActor:
    """Makes shards one after another, so that networks are loaded once."""

    def run(self, job: IngestJob) -> ShardReport:
        return make_shard(job)


def ingest_stage(
    config: SourceConfig, folder: str, address: str, num_cpus: int | None, lease: Lease | None
) -> Stage[IngestJob]:
    """How shards of `sequences/<folder>` are made; `lease` holds it."""

    def executor() -> Executor[IngestJob]:  # called when Ray is there
        if isinstance(config, PhotoConfig) and config.estimate.wanted:
            return _actors(config.estimate, config.resources)
        return TaskExecutor(make_shard, source_class(config.source).num_cpus, config.resources)

    settings = config.model_dump(mode="json")
    return Stage("ingest", f"sequences/{folder}", "sequences", executor, address, num_cpus, ALLOCATOR, settings, lease)


def _actors(estimate: EstimateConfig, resources: Resources) -> ActorExecutor[IngestJob]:
    """One actor a GPU, or one a CPU."""
    demand = resources.demand(1.0)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if estimate.device != "cpu" else 0
    if estimate.device == "cuda" and not gpus and "GPU" not in demand:
        raise DeviceError("estimate.device is cuda, and Ray has no GPU; `resources: {num_gpus: 1}` waits for one")
    if gpus:
        demand = {"GPU": 1.0, **demand}
    actor = ray.remote(**ray_options(demand))(ShardActor)
    return ActorExecutor(actor.remote, demand)

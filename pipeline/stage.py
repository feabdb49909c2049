"""What ingesting and tokenizing have in common: find what is missing, run it on Ray, sum up, sweep.

Exactly once comes from three things: a shard's fingerprint says what it is made of, its manifest says that it is there,
and making it again gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console

from uvd.manifests.dataset import ConfigChangedError, Dataset, Shard
from uvd.pipeline.progress import RunProgress
from uvd.pipeline.ray_runtime import LOCAL, ray_runtime
from uvd.pipeline.runlog import RunLog
from uvd.pipeline.runner import Executor, RunResult, run_jobs, stop_on_signals


class FingerprintedJob(Protocol):
    """A job that makes one shard."""

    @property
    def shard(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...


J = TypeVar("J", bound=FingerprintedJob)
_COUNTED = ("inputs", "used", "rejected", "partial", "sequences", "images", "tokens")


@dataclass
class StageResult:
    """How a stage ended: shards planned, already there, made now; totals over all of them; what failed."""

    planned: int
    existing: int
    run: RunResult
    totals: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        return self.run.complete and self.existing + self.run.done == self.planned


@dataclass(frozen=True)
class Missing(Generic[J]):
    """The plan against what is committed."""

    jobs: list[J]
    planned: int
    committed: dict[int, dict[str, Any]]


def find_missing(dataset: Dataset, folder: str, jobs: Sequence[J], *, overwrite: bool = False) -> Missing[J]:
    """The jobs whose shard is not committed yet.

    Args:
        overwrite: where a committed shard would be refused, drop them all and make them anew.

    Raises:
        ConfigChangedError: if a committed shard was made from something else, or is not in the plan.
    """
    try:
        return _compare(dataset, folder, jobs)
    except ConfigChangedError:
        if not overwrite:
            raise
    section, _, name = folder.partition("/")
    dataset.drop(section, name)
    return _compare(dataset, folder, jobs)


def _essence(dataset: Dataset, shard: Shard) -> dict[str, Any]:
    """What is needed of a manifest's metadata; token manifests hold a histogram besides."""
    metadata = dataset.metadata(shard)
    return {name: metadata[name] for name in ("fingerprint", *_COUNTED) if name in metadata}


def _compare(dataset: Dataset, folder: str, jobs: Sequence[J]) -> Missing[J]:
    shards = {shard.number: shard for shard in dataset.shards(folder)}
    with ThreadPoolExecutor(8) as pool:
        committed = dict(zip(shards, pool.map(lambda shard: _essence(dataset, shard), shards.values()), strict=True))
    missing: list[J] = []
    planned: set[int] = set()
    for job in jobs:
        planned.add(job.shard)
        known = committed.get(job.shard)
        if known is None:
            missing.append(job)
        elif known["fingerprint"] != job.fingerprint:
            raise ConfigChangedError(
                f"shard {folder}/{job.shard:06d} was made from other inputs than those planned now "
                "(files added, removed or changed). Use another dataset or name, or --overwrite to make it anew."
            )
    extra = sorted(set(committed) - planned)
    if extra:
        raise ConfigChangedError(
            f"{folder} holds {len(extra)} shards that are not planned now (first: {extra[0]:06d}): "
            "inputs are missing. Bring them back, or use --overwrite to make it anew."
        )
    return Missing(missing, len(planned), committed)


@dataclass(frozen=True)
class Stage(Generic[J]):
    """One run of ingesting or tokenizing: how it is called, where its shards go, what executes them."""

    name: str
    """`ingest` or `tokenize`."""
    folder: str
    unit: str
    """What progress counts: `sequences` or `images`."""
    make_executor: Callable[[], Executor[J]]
    address: str = LOCAL
    num_cpus: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def run_stage(dataset: Dataset, stage: Stage[J], missing: Missing[J], console: Console) -> StageResult:
    """Runs the missing jobs, starting Ray only if there are any; totals cover existing and new shards."""
    dataset.sweep(stage.folder)
    totals: Counter[str] = Counter()
    for metadata in missing.committed.values():
        totals.update({key: value for key, value in metadata.items() if key in _COUNTED})
    result = StageResult(missing.planned, len(missing.committed), RunResult(), totals)
    if not missing.jobs:
        return result
    result.run = RunResult(interrupted=True)
    # Ray installs signal handlers of its own when it starts, so ours come after it.
    with ray_runtime(stage.address, stage.num_cpus, stage.environment), stop_on_signals() as stop:
        log = RunLog(dataset.storage, stage.name, stage.folder.partition("/")[2])
        progress = RunProgress(f"{stage.name} {stage.folder}", len(missing.jobs), log, console, stage.unit)
        try:
            executor = stage.make_executor()
            result.run = run_jobs(iter(missing.jobs), executor, progress, stop, lambda job: f"{job.shard:06d}")
        finally:
            progress.close()
            log.close(**progress.summary(), failed=sorted(result.run.failed), interrupted=result.run.interrupted)
    dataset.sweep(stage.folder)
    totals.update(progress.counts)
    result.reasons = progress.reasons
    return result

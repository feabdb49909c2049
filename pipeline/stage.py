"""What ingesting and tokenizing have in common: find what is missing, run it on Ray, sum up, sweep.

Exactly once comes from three things: a shard's fingerprint says what it is made of, its manifest says that it is there,
and making it again gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console

from uvd.manifests.dataset import ConfigChangedError, Dataset
from uvd.manifests.essences import COUNTED, read_essences
from uvd.manifests.lease import Lease
from uvd.pipeline.executors import Executor
from uvd.pipeline.metrics import RunMetrics
from uvd.pipeline.progress import RunProgress, ShardReport
from uvd.pipeline.ray_runtime import LOCAL, ray_runtime
from uvd.pipeline.runlog import RunLog
from uvd.pipeline.runner import Observers, RunResult, run_jobs
from uvd.sequences.stopping import stop_on_signals


class FingerprintedJob(Protocol):
    """A job that makes one shard."""

    @property
    def shard(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...


J = TypeVar("J", bound=FingerprintedJob)
_NO_MORE: tuple[int | None, str] = (None, "")


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


class MissingJobs(Generic[J]):
    """The jobs of a plan whose shards are not committed; each iteration reads the plan anew, nothing is held."""

    def __init__(self, plan: Iterable[J], planned: int, committed: NDArray[np.int64]) -> None:
        self._plan, self._planned, self._committed = plan, planned, committed

    def __len__(self) -> int:
        return self._planned - len(self._committed)

    def __iter__(self) -> Iterator[J]:
        there = iter(self._committed)
        known = next(there, None)
        for job in self._plan:
            if job.shard == known:
                known = next(there, None)
            else:
                yield job


@dataclass(frozen=True)
class Missing(Generic[J]):
    """The plan against what is committed: jobs to run, and totals over the shards that need none."""

    jobs: MissingJobs[J]
    planned: int
    totals: Counter[str]

    @property
    def committed(self) -> int:
        """Number of shards that are there."""
        return self.planned - len(self.jobs)


def find_missing(dataset: Dataset, folder: str, plan: Iterable[J], *, overwrite: bool = False) -> Missing[J]:
    """The jobs whose shard is not committed yet.

    Reads the plan once and each committed manifest's metadata once, both in shard order, and keeps 8 bytes a committed
    shard.

    Args:
        plan: jobs by increasing shard; it is iterated again when the jobs are run, so no one-way iterator will do.
        overwrite: where a committed shard would be refused, drop them all and make them anew.

    Raises:
        ConfigChangedError: if a committed shard was made from something else, or is not in the plan.
        ValueError: if the plan is a one-way iterator, or not in shard order.
    """
    if iter(plan) is plan:
        raise ValueError("the plan is an iterator, which can be read only once")
    try:
        return _compare(dataset, folder, plan)
    except ConfigChangedError:
        if not overwrite:
            raise
    section, _, name = folder.partition("/")
    dataset.drop(section, name)
    return _compare(dataset, folder, plan)


def _compare(dataset: Dataset, folder: str, plan: Iterable[J]) -> Missing[J]:
    numbers = dataset.shard_numbers(folder)
    totals: Counter[str] = Counter()
    with closing(_fingerprints(dataset, folder, numbers, totals)) as committed:
        planned, extra = _match(folder, plan, numbers, committed)
    if extra:
        raise ConfigChangedError(
            f"{folder} holds {len(extra)} shards that are not planned now (first: {extra[0]:06d}): "
            "inputs are missing. Bring them back, or use --overwrite to make it anew."
        )
    return Missing(MissingJobs(plan, planned, numbers), planned, totals)


def _fingerprints(
    dataset: Dataset, folder: str, numbers: NDArray[np.int64], totals: Counter[str]
) -> Generator[tuple[int, str]]:
    """(shard number, fingerprint) of what is committed, in order; adds up its counts on the way."""
    with closing(read_essences(dataset, folder, numbers)) as batches:
        for batch in batches:
            sums = {name: pc.sum(batch[name]).as_py() for name in COUNTED}
            totals.update({name: value for name, value in sums.items() if value is not None})
            yield from zip(batch["number"].to_pylist(), batch["fingerprint"].to_pylist(), strict=True)


def _match(
    folder: str, plan: Iterable[J], numbers: NDArray[np.int64], committed: Iterator[tuple[int, str]]
) -> tuple[int, list[int]]:
    """(jobs planned, committed shards that are not planned)."""
    extra: list[int] = []
    planned, last = 0, -1
    number, made_from = next(committed, _NO_MORE)
    for job in plan:
        shard = job.shard
        if shard <= last:
            raise ValueError(f"plan of {folder}: shard {shard} comes after {last}")
        planned, last = planned + 1, shard
        while number is not None and number < shard:
            extra.append(number)
            number, made_from = next(committed, _NO_MORE)
        if number != shard:
            continue
        if made_from != job.fingerprint:
            raise ConfigChangedError(
                f"shard {folder}/{shard:06d} was made from other inputs than those planned now "
                "(files added, removed or changed). Use another dataset or name, or --overwrite to make it anew."
            )
        number, made_from = next(committed, _NO_MORE)
    # What is left was not planned; its metadata does not matter.
    return planned, extra + numbers[numbers > last].tolist()


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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For the run log: all that it takes to make a shard again, places of inputs included."""
    lease: Lease | None = None
    """Of the folder: the run stops if it is lost."""


def run_stage(dataset: Dataset, stage: Stage[J], missing: Missing[J], console: Console) -> StageResult:
    """Runs the missing jobs, starting Ray only if there are any; totals cover existing and new shards."""
    dataset.sweep(stage.folder)
    totals = Counter(missing.totals)
    result = StageResult(missing.planned, missing.committed, RunResult(), totals)
    if not len(missing.jobs):
        return result
    result.run = RunResult(interrupted=True)
    # Ray installs signal handlers of its own when it starts, so ours come after it.
    with ray_runtime(stage.address, stage.num_cpus, stage.environment), stop_on_signals() as stop:
        if stage.lease is not None:
            stage.lease.call_when_lost(stop.request)
        log = RunLog(dataset.storage, stage.name, stage.folder.partition("/")[2], stage.settings)
        progress = RunProgress(f"{stage.name} {stage.folder}", len(missing.jobs), log, console, stage.unit)
        metrics = RunMetrics(stage.name, stage.folder.partition("/")[2])
        watching: Observers[J, ShardReport] = Observers(progress, metrics)
        try:
            executor = stage.make_executor()
            result.run = run_jobs(iter(missing.jobs), executor, watching, stop, lambda job: f"{job.shard:06d}")
        finally:
            metrics.close()
            progress.close()
            log.close(**progress.summary(), failed=sorted(result.run.failed), interrupted=result.run.interrupted)
    try:
        dataset.sweep(stage.folder)
    except OSError as error:
        if result.run.complete:
            raise
        # Of a run that failed anyway this says nothing new, and its own result must not be lost.
        console.print(f"{stage.folder} could not be cleaned up: {error}", style="yellow", markup=False)
    totals.update(progress.counts)
    result.reasons = progress.reasons
    return result

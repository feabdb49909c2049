"""`uvd verify`: the checks of `manifests.verify`, a bunch of shards a Ray task, or in this process if there are few."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uvd.manifests.dataset import Dataset
from uvd.manifests.verify import (
    EVERYTHING,
    Bunch,
    Checked,
    Scope,
    Survey,
    check_bunch,
    check_here,
    conclude,
    survey_folders,
)
from uvd.manifests.verify_findings import Finding, Kind, Verification
from uvd.pipeline.executors import TaskExecutor
from uvd.pipeline.ingest import ALLOCATOR
from uvd.pipeline.progress import LINE_EVERY_S
from uvd.pipeline.ray_runtime import LOCAL, ray_runtime
from uvd.pipeline.runner import run_jobs
from uvd.sequences.stopping import stop_on_signals

FEW_SHARDS, FEW_BYTES = 1000, 1 << 30
"""Up to so many shards, and bytes of tars if they are read, are checked before a local Ray would have started."""


@dataclass(frozen=True, slots=True)
class VerifyJob:
    """Everything a worker needs to check some shards."""

    dataset: str
    bunch: Bunch
    deep: bool


def check_job(job: VerifyJob) -> Checked:
    """Checks the shards of a job; runs in a worker."""
    return check_bunch(Dataset(job.dataset), job.bunch, job.deep)


class VerifyProgress:
    """Observes a run: shows it, and keeps what was found; a bunch that nobody could check is a finding."""

    def __init__(self, shards: int, console: Console) -> None:
        self.checked: list[tuple[Bunch, Checked]] = []
        self._shards, self._done, self._found, self._console = shards, 0, 0, console
        self._start = self._last_line = time.monotonic()
        columns = (
            TextColumn("verifying"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards · {task.fields[found]} findings · ETA"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=shards, found=0)
        self._bar.start()

    def close(self) -> None:
        self._bar.stop()

    def advance(self, shards: int, findings: int) -> None:
        self._done += shards
        self._found += findings
        self._bar.update(self._task, completed=self._done, found=self._found)

    def done(self, job: VerifyJob, report: Checked) -> None:
        self.checked.append((job.bunch, report))
        self.advance(report.shards, len(report.findings))

    def retrying(self, job: VerifyJob, attempt: int, error: str) -> None:
        line = f"{job.bunch.folder}/{job.bunch.shard:06d}: attempt {attempt} after: {error}"
        self._console.print(line, style="yellow", markup=False)

    def failed(self, job: VerifyJob, error: str) -> None:
        last = error.strip().rpartition("\n")[2]
        found = [Finding(job.bunch.folder, number, "", Kind.UNREACHABLE, last) for number in job.bunch.numbers]
        self.done(job, Checked(len(found), 0, 0, found))

    def lacking(self, what: str) -> None:
        self._console.print(f"verifying: waiting for the cluster: {what}", style="yellow", markup=False)

    def tick(self, in_flight: int, waiting: int) -> None:
        now = time.monotonic()
        if self._console.is_terminal or now - self._last_line < LINE_EVERY_S:
            return
        self._last_line = now
        left = (now - self._start) / self._done * (self._shards - self._done) if self._done else 0
        eta = f", about {left:.0f} s left" if left else ""
        line = f"verifying: {self._done}/{self._shards} shards, {self._found} findings{eta}"
        self._console.print(line, markup=False, highlight=False)


def verify_dataset(
    dataset: Dataset,
    *,
    deep: bool = False,
    scope: Scope = EVERYTHING,
    address: str = LOCAL,
    num_cpus: int | None = None,
    console: Console | None = None,
) -> Verification:
    """Checks a dataset on Ray, or in this process if `address` is local and there is little to do: same findings."""
    console = console or Console(stderr=True)
    survey = survey_folders(dataset, scope, deep)
    if address == LOCAL and survey.shards <= FEW_SHARDS and (not deep or survey.bytes <= FEW_BYTES):
        progress = VerifyProgress(survey.shards, console)
        try:
            return check_here(dataset, survey, deep, lambda part: progress.advance(part.shards, len(part.findings)))
        finally:
            progress.close()
    return check_on_ray(dataset, survey, deep, address, num_cpus, console)


def check_on_ray(
    dataset: Dataset, survey: Survey, deep: bool, address: str, num_cpus: int | None, console: Console
) -> Verification:
    """Checks the survey's bunches, one Ray task each; lost workers are replaced, three attempts a bunch."""
    jobs: Sequence[VerifyJob] = [VerifyJob(dataset.address, bunch, deep) for bunch in survey.bunches]
    with ray_runtime(address, num_cpus, ALLOCATOR), stop_on_signals() as stop:
        progress = VerifyProgress(survey.shards, console)
        try:
            result = run_jobs(
                iter(jobs),
                TaskExecutor(check_job),
                progress,
                stop,
                lambda job: f"{job.bunch.folder}/{job.bunch.shard:06d}",
            )
        finally:
            progress.close()
    if result.interrupted:
        survey.planned_inputs.clear()  # not all was added up
    verification = conclude(survey, progress.checked)
    verification.interrupted = result.interrupted
    return verification

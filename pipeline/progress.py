"""Live progress of a run: a bar on a terminal, a plain line every few seconds elsewhere; and the run's log."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from uvd.pipeline.runlog import RunLog

LINE_EVERY_S = 5.0


class ShardJob(Protocol):
    """What progress needs to know of a job."""

    @property
    def shard(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a worker reports of one committed shard.

    Attributes:
        counts: `sequences`, `images`, `inputs`, `rejected`, `tokens`, `bytes`, ... as the stage has them.
        reasons: rejects by reason.
        seconds: wall time by stage.
        host: where it ran.
    """

    shard: int
    counts: dict[str, int]
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    host: str = ""


class RunProgress:
    """Observes a run: shows it, logs it, adds it up."""

    def __init__(self, title: str, total: int, log: RunLog, console: Console, unit: str = "sequences") -> None:
        self._log, self._console, self._unit, self._title = log, console, unit, title
        self._total, self._finished = total, 0
        self._start = self._last_line = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("shards · {task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, detail="starting")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def done(self, job: ShardJob, report: ShardReport) -> None:
        self.counts.update(report.counts)
        self.reasons.update(report.reasons)
        self.seconds.update({stage: seconds for stage, seconds in report.seconds.items()})
        self._finished += 1
        self._log.event(
            "shard",
            shard=report.shard,
            host=report.host,
            counts=report.counts,
            reasons=report.reasons,
            seconds={stage: round(seconds, 4) for stage, seconds in report.seconds.items()},
        )
        if self._bar is not None:
            self._bar.update(self._task, advance=1, detail=self._detail())

    def retrying(self, job: ShardJob, attempt: int, error: str) -> None:
        self._log.event("retry", shard=job.shard, attempt=attempt, error=error)
        self._console.print(f"shard {job.shard:06d}: attempt {attempt} after: {error}", style="yellow", markup=False)

    def failed(self, job: ShardJob, error: str) -> None:
        self._log.event("failed", shard=job.shard, error=error)
        self._console.print(f"shard {job.shard:06d} failed:\n{error}", style="red", markup=False)

    def lacking(self, what: str) -> None:
        self._log.event("lacking", what=what)
        self._console.print(f"{self._title}: waiting for the cluster: {what}", style="yellow", markup=False)

    def tick(self, in_flight: int, waiting: int) -> None:
        now = time.monotonic()
        if self._bar is None and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._console.print(f"{self._title}: {self._finished}/{self._total} shards, {self._detail()}{self._eta()}")

    def _detail(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-6)
        made = self.counts[self._unit]
        rejected = f", {self.counts['rejected']} rejected" if self.counts["rejected"] else ""
        return f"{made} {self._unit}, {made / elapsed:.1f}/s{rejected}"

    def _eta(self) -> str:
        if not self._finished:
            return ""
        remaining = (time.monotonic() - self._start) / self._finished * (self._total - self._finished)
        return f", about {remaining:.0f} s left"

    def summary(self) -> dict[str, Any]:
        return {
            "shards": self._finished,
            "counts": dict(self.counts),
            "reasons": dict(self.reasons),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "wall_seconds": round(time.monotonic() - self._start, 3),
        }

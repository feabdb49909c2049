"""Jobs as a table or JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.table import Table

from uvd.pipeline.jobs.cluster import Job

_STYLES = {"RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}


def job_record(job: Job) -> dict[str, Any]:
    """A job as JSON shows it; times in seconds since 1970."""
    arguments = job.about.get("arguments") or []
    return {
        "id": job.id,
        "command": "uvd " + " ".join(map(str, arguments)) if arguments else job.entrypoint,
        "dataset": job.about.get("dataset", ""),
        "state": job.state.lower(),
        "exit_code": job.exit_code,
        "started": job.started,
        "ended": job.ended,
        "seconds": round(_seconds(job), 1),
        "version": job.about.get("version"),
        "wheel": job.about.get("wheel"),
    }


def jobs_table(jobs: Iterable[Job]) -> Table:
    """One row a job."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "command", "dataset", "state", "started", "took"):
        table.add_column(name, no_wrap=name in ("id", "state", "started", "took"), overflow="fold")
    for job in jobs:
        state = job.state.lower() + (f" ({job.exit_code})" if job.exit_code else "")
        started = datetime.fromtimestamp(job.started).strftime("%m-%d %H:%M:%S") if job.started else ""
        title, dataset = str(job.about.get("title", job.entrypoint)), str(job.about.get("dataset", ""))
        style = _STYLES.get(job.state, "")
        cells = (job.id, title, dataset, f"[{style}]{state}[/]" if style else state, started, duration(_seconds(job)))
        table.add_row(*(_plain(cell) if number in (1, 2) else cell for number, cell in enumerate(cells)))
    return table


def _plain(text: str) -> str:
    """Without what rich would take for markup."""
    return text.replace("[", r"\[")


def _seconds(job: Job) -> float:
    return max((job.ended or time.time()) - job.started, 0.0) if job.started else 0.0


def duration(seconds: float) -> str:
    """
    >>> duration(9), duration(75), duration(7321)
    ('9 s', '1:15', '2:02:01')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"

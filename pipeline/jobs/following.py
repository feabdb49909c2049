"""Following a job's log as it is written, over connections that may break, until the job has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from uvd.pipeline.jobs.cluster import Cluster, Job
from uvd.pipeline.jobs.errors import ClusterUnreachableError, JobError

QUIET_S = 90.0
"""A connection that brings nothing for so long is made anew: the host may be gone. Runs print a line every 5 s."""
OUTAGE_S = 180.0
"""How long to try before giving up on a cluster that does not answer; the job is not touched by it."""
_PAUSE_S = 2.0
SHARDS_FAILED = 3


def follow(cluster: Cluster, job_id: str, write: Callable[[str], None]) -> Job:
    """Writes the log from its beginning, and returns the job when it has ended.

    Raises:
        JobError: if the cluster did not answer for `OUTAGE_S`; the job may go on all the same.
    """
    tail = _Tail(cluster, job_id, write)
    job = cluster.job(job_id)
    last_answer = time.monotonic()
    while not job.over:
        try:
            asyncio.run(tail.run())
            job = cluster.job(job_id)
            last_answer = time.monotonic()
        except (ClusterUnreachableError, OSError, RuntimeError, TimeoutError) as error:
            if time.monotonic() - last_answer > OUTAGE_S:
                raise JobError(
                    f"no answer from {cluster.url} for {OUTAGE_S:.0f} s ({error}). The job may well go on; `uvd jobs "
                    f"logs {job_id} --follow` follows it again"
                ) from error
        if not job.over:
            time.sleep(_PAUSE_S)
    tail.finish(cluster.log(job_id))
    return job


class _Tail:
    """What was written of a log; a new connection sends it from the beginning."""

    def __init__(self, cluster: Cluster, job_id: str, write: Callable[[str], None]) -> None:
        self._cluster, self._job_id, self._write = cluster, job_id, write
        self._written = 0

    async def run(self) -> None:
        """Writes what comes, until the log ends or nothing has come for a while."""
        seen = 0
        lines = self._cluster.client.tail_job_logs(self._job_id)
        try:
            while True:
                part = await asyncio.wait_for(anext(lines), QUIET_S)
                seen += len(part)
                self._add(part, seen)
        except (StopAsyncIteration, TimeoutError):
            return
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "aiohttp":
                raise
            raise ClusterUnreachableError(str(error)) from error
        finally:
            await lines.aclose()

    def _add(self, part: str, end: int) -> None:
        new = end - self._written
        if new > 0:
            self._write(part[-new:])
            self._written = end

    def finish(self, log: str) -> None:
        """Writes what a broken connection kept back."""
        self._add(log, len(log))


def exit_code(job: Job) -> int:
    """That of the command; 3 for a job that was stopped, 1 for one that could not run or was killed."""
    if job.state == "STOPPED":
        return SHARDS_FAILED
    if job.state == "SUCCEEDED":
        return 0
    return job.exit_code if job.exit_code and job.exit_code > 0 else 1


def outcome(job: Job) -> str:
    """How it ended, and how to go on, in one or two lines."""
    again = f"`uvd jobs resume {job.id}`, or the same command again, goes on from there."
    if job.state == "SUCCEEDED":
        return f"{job.id} succeeded (exit code 0)"
    if job.state == "STOPPED":
        return f"{job.id} was stopped; what it committed is kept. {again}"
    if job.exit_code is None:
        return f"{job.id} failed before or outside its command: {_reason(job.message)}"
    if job.exit_code < 0:
        return f"{job.id} was killed by signal {-job.exit_code}. {again}"
    more = f" {again}" if job.exit_code == SHARDS_FAILED else ""
    return f"{job.id} failed (exit code {job.exit_code}){more}"


def _reason(message: str) -> str:
    return message.strip()[-2000:] or "Ray gives no reason"

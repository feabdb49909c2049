"""The driver at UVDv1's size: 1.6 million shards of 1,000 images on 10,000 workers that are only simulated.

Plan, run loop, progress, metrics, run log and the comparison with what is committed are the real ones; the cluster is
`simulated_cluster`, where workers die, nodes are lost, some are slow, some jobs are poison and some attempts never end.
What jobs take is drawn from shards that were measured: those of run logs (`--log`), or else from the download of
`results/laion.json`. The run is stopped in the middle, its shards are written to disk, and a second run does the rest.

    python -m uvd.benchmarks.scale [--jobs 1600000] [--workers 10000] [--folder DIR] [--log RUN.jsonl ...]

Takes 12 GB of disk below `--folder` and 2.4 million files, which are deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from uvd.benchmarks.made_up_shards import ShardMaker
from uvd.benchmarks.record import RESULTS, write_result
from uvd.benchmarks.simulated_cluster import NODE, SimulatedCluster, Troubles
from uvd.manifests.dataset import Dataset
from uvd.manifests.runs import read_runs
from uvd.pipeline.executors import QUEUED
from uvd.pipeline.ingest import IngestJob, Round, plan_file
from uvd.pipeline.metrics import RunMetrics
from uvd.pipeline.plan_file import PlanFile
from uvd.pipeline.progress import RunProgress, ShardReport
from uvd.pipeline.runlog import RunLog
from uvd.pipeline.runner import RunResult, run_jobs
from uvd.pipeline.stage import Missing, find_missing
from uvd.sequences.stopping import Stop
from uvd.sources.base import WorkUnit
from uvd.sources.laion import LaionConfig

BARS = {"completions_per_s": 2000.0, "peak_gb": 2.0, "resume_s": 60.0}
IMAGES = 1000
POISON_ONE_IN, HANGING_ONE_IN = 20_000, 40_000
NODE_LIVES_S = 3600.0
"""On average, which is little even for spot nodes."""
SPREAD = 0.35
"""Of the logarithm of a shard's seconds: lists differ in the servers that they name."""
DRAWN = 10_000
FOLDER = "sequences/laion"
CONFIG = LaionConfig(dataset="laion", input="/lists")


def measured_seconds(logs: Sequence[Path]) -> list[float]:
    """Seconds of shards of 1,000 images: as these run logs have them, or drawn around the measured download."""
    found = []
    for log in logs:
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "shard" and event["counts"].get("images"):
                took = event["seconds"]["total"] + event["seconds"]["commit"]
                found.append(took * IMAGES / event["counts"]["images"])
    if found:
        return found
    result = json.loads((RESULTS / "laion.json").read_text())
    cores = result["hardware"]["cores"]
    means = [IMAGES * cores / run["images_per_s"] for run in result["runs"]["uvd"]]
    draw = random.Random(1)
    return [draw.choice(means) * math.exp(draw.gauss(0, SPREAD)) for _ in range(DRAWN)]


def units(jobs: int) -> Iterator[WorkUnit]:
    """As a list of URLs is planned: 1,000 rows of files of a million."""
    for shard in range(jobs):
        payload = {"file": f"part-{shard // 1000:05d}.parquet", "bytes": 123_456_789, "start": shard % 1000 * IMAGES}
        yield WorkUnit(shard, IMAGES, payload)


def troubles(jobs: int, workers: int) -> Troubles:
    poison = frozenset(range(jobs // 7, jobs, POISON_ONE_IN))
    hanging = frozenset(range(jobs // 11, jobs, HANGING_ONE_IN)) - poison
    return Troubles(node_lost_every_s=NODE_LIVES_S * NODE / workers, poison=poison, hanging=hanging)


@dataclass
class Tally:
    """An observer that counts what it is told of each job, hands it on, and stops the run after so many."""

    jobs: int
    stop_after: int = -1
    observers: Sequence[Any] = ()
    stop: Stop = field(default_factory=Stop)
    errors: list[str] = field(default_factory=list)
    retries: int = 0
    most_in_flight: int = 0
    reports: int = 0

    def __post_init__(self) -> None:
        self.done_times = np.zeros(self.jobs, np.uint8)
        self.failed_times = np.zeros(self.jobs, np.uint8)

    def done(self, job: IngestJob, report: ShardReport) -> None:
        self.done_times[job.shard] += 1
        self.reports += 1
        if self.reports == self.stop_after:
            self.stop.requested = True
        for observer in self.observers:
            observer.done(job, report)

    def failed(self, job: IngestJob, error: str) -> None:
        self.failed_times[job.shard] += 1
        self.errors.append(error)
        for observer in self.observers:
            observer.failed(job, error)

    def retrying(self, job: IngestJob, attempt: int, error: str) -> None:
        self.retries += 1
        for observer in self.observers:
            observer.retrying(job, attempt, error)

    def lacking(self, what: str) -> None:
        for observer in self.observers:
            observer.lacking(what)

    def tick(self, in_flight: int, waiting: int) -> None:
        self.most_in_flight = max(self.most_in_flight, in_flight)
        for observer in self.observers:
            observer.tick(in_flight, waiting)


class Work:
    """What a simulated job does: it is committed, as often as attempts come to their end."""

    def __init__(self, jobs: int) -> None:
        self.times = np.zeros(jobs, np.uint8)

    def __call__(self, job: IngestJob) -> ShardReport:
        self.times[job.shard] += 1
        rejected = job.shard % 7
        counts = {"inputs": IMAGES, "used": IMAGES - rejected, "rejected": rejected, "partial": 0}
        counts |= {"sequences": IMAGES - rejected, "images": IMAGES - rejected, "bytes": 31_000 * IMAGES}
        seconds = {"total": 5.5, "commit": 0.1, "fetch": 3.0, "decode": 1.5, "encode": 0.9}
        return ShardReport(job.shard, counts, {"http_404": rejected} if rejected else {}, seconds, "node")


def run(missing: Missing[IngestJob], dataset: Dataset, cluster: SimulatedCluster[IngestJob], tally: Tally) -> RunResult:
    """One run through the real loop, with all the observers that a run has."""
    log = RunLog(dataset.storage, "ingest", "laion", CONFIG.model_dump(mode="json"))
    with open(os.devnull, "w") as nowhere:
        progress = RunProgress("ingest", len(missing.jobs), log, Console(file=nowhere))
        metrics = RunMetrics("ingest", "laion")
        tally.observers = (progress, metrics)
        result = run_jobs(iter(missing.jobs), cluster, tally, tally.stop, lambda job: f"{job.shard:06d}", cluster)
        progress.close()
        log.close(**progress.summary(), failed=sorted(result.failed), interrupted=result.interrupted)
    return result


@dataclass
class Outcome:
    """Two runs, with a stop between them: what is measured, and what must be so."""

    measured: dict[str, Any]
    wrong: list[str]


def simulate(folder: Path, jobs: int, workers: int, seconds: Sequence[float], seed: int = 0) -> Outcome:
    """Plans, runs half, writes what is committed, resumes, runs the rest."""
    dataset = Dataset(str(folder))
    dataset.declare("sequences", "laion", {"fingerprint": "f", "config": {"dataset": "laion"}})
    measured: dict[str, Any] = {}
    clock = Clock(measured)
    wanted = troubles(jobs, workers)
    work = Work(jobs)
    with plan_file(dataset, CONFIG, "f", Round("laion", units(jobs))) as plan:
        clock.stop("plan_s")
        cluster = SimulatedCluster(workers, seconds, work, wanted, seed=seed)
        first = Tally(jobs, stop_after=jobs // 2)
        stopped = run(find_missing(dataset, FOLDER, plan), dataset, cluster, first)
        measured["first"] = _figures(cluster, first, clock.stop("first_s"))
        write_committed(dataset, plan, work.times)
        clock.stop("write_s")
        missing = find_missing(dataset, FOLDER, plan)
        clock.stop("compare_s")
        planned = sum(job.unit.num_inputs for job in plan)  # as ingesting does, for dataset.json
        dataset.sweep(FOLDER)
        clock.stop("begin_s")
        committed = work.times > 0
        cluster = SimulatedCluster(workers, seconds, work, wanted, seed=seed + 1)
        second = Tally(jobs)
        ended = run(missing, dataset, cluster, second)
        measured["second"] = _figures(cluster, second, clock.stop("second_s"))
    measured |= {
        "resume_s": measured["compare_s"] + measured["begin_s"],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "readers_peak_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9,
        "jobs": jobs,
        "committed_before_resume": int(committed.sum()),
        "made_twice": int((work.times > 1).sum()),
    }
    failures = [*first.errors, *second.errors]
    told = second.done_times + second.failed_times
    checks = {
        "the first run was interrupted, the second was not": stopped.interrupted and not ended.interrupted,
        "the first run told of no job twice": bool((first.done_times + first.failed_times <= 1).all()),
        "what it said is done is committed": bool(committed[first.done_times == 1].all()),
        "resuming found what is missing": len(missing.jobs) == int((~committed).sum()) and planned == jobs * IMAGES,
        "its totals are those of what is committed": missing.totals["images"] == IMAGES * int(committed.sum()),
        "the second run did each missing job once, or failed it once, and no other": bool((told == ~committed).all()),
        "it failed exactly what is poison": set(np.flatnonzero(second.failed_times).tolist()) == wanted.poison,
        "all else is committed": set(np.flatnonzero(work.times == 0).tolist()) == wanted.poison,
        "each was set aside after three attempts": all("took its worker with it 3 times" in text for text in failures),
        "in flight was never more than there is room for": second.most_in_flight <= QUEUED * (workers + NODE),
        "the logs hold each shard": sum(read_runs(dataset)["shards"].to_pylist()) == first.reports + second.reports,
    }
    return Outcome(measured, [what for what, holds in checks.items() if not holds])


def _figures(cluster: SimulatedCluster[Any], tally: Tally, seconds: float) -> dict[str, Any]:
    over = tally.reports + len(tally.errors)
    return {
        "jobs_over": over,
        "completions_per_s": over / seconds,
        "simulated_hours": cluster.now() / 3600,
        "attempts": cluster.attempts,
        "retries": tally.retries,
        "set_aside": len(tally.errors),
        "workers_died": cluster.dead_workers,
        "nodes_lost": cluster.lost_nodes,
        "copies_cancelled": cluster.cancelled,
        "most_in_flight": tally.most_in_flight,
    }


def write_committed(dataset: Dataset, plan: PlanFile[IngestJob], times: NDArray[np.uint8]) -> None:
    maker = ShardMaker(Path(dataset.uri) / FOLDER, IMAGES)
    maker.write((job.shard, job.fingerprint) for job in plan if times[job.shard])


class Clock:
    """Real seconds of each part as they pass, and processor seconds, those of ended readers among them."""

    def __init__(self, into: dict[str, Any]) -> None:
        self._into, self._last, self._used = into, time.perf_counter(), sum(os.times()[:4])
        self._into["processor_seconds"] = {}

    def stop(self, name: str) -> float:
        now, used = time.perf_counter(), sum(os.times()[:4])
        self._into[name], self._last = now - self._last, now
        self._into["processor_seconds"][name], self._used = used - self._used, used
        print(f"{name} {self._into[name]:,.1f}", flush=True)
        return float(self._into[name])


def report(outcome: Outcome, about: dict[str, Any], out: Path | None) -> None:
    measured = outcome.measured
    reached = {
        "completions_per_s": min(measured[part]["completions_per_s"] for part in ("first", "second")),
        "peak_gb": measured["peak_gb"],
        "resume_s": measured["resume_s"],
    }
    bars = {
        name: {"bar": bar, "met": reached[name] >= bar if name == "completions_per_s" else reached[name] <= bar}
        for name, bar in BARS.items()
    }
    path = write_result("scale", {**about, **measured, "reached": reached, "bars": bars, "wrong": outcome.wrong}, out)
    print(f"reached {reached}\nwrote {path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_600_000)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=None, help="where the dataset goes for a while")
    parser.add_argument("--log", type=Path, nargs="*", default=[], help="run logs to take shards' seconds from")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/scale.json")
    arguments = parser.parse_args()
    seconds = measured_seconds(arguments.log)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        outcome = simulate(folder / "dataset", arguments.jobs, arguments.workers, seconds)
        report(
            outcome, {"workers": arguments.workers, "shard_seconds_median": float(np.median(seconds))}, arguments.out
        )
    finally:
        shutil.rmtree(folder)
    if outcome.wrong:
        raise SystemExit(f"not as it must be: {'; '.join(outcome.wrong)}")


if __name__ == "__main__":
    main()

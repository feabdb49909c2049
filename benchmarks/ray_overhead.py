"""What Ray and the run loop cost: the same shard function in plain processes, and through `run_jobs` on a local Ray.

The work is `make_shard` on photos, in shards of ten seconds or more, on one and on two workers. All ways have the same
jobs, environment and observers of a run; each is in a process of its own, by turns. Workers make a small shard before
the clock starts, so imports are in no figure; the start of Ray is told apart.

    python -m uvd.benchmarks.ray_overhead [--shards 8] [--photos 4200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from uvd.benchmarks.record import median, write_result
from uvd.manifests.dataset import Dataset
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import ALLOCATOR, IngestJob, make_shard, plan
from uvd.sources.images import ImagesConfig

CORES = 2
BARS = {"overhead_1": 0.03, "overhead_2": 0.03, "speedup": 1.9, "shard_seconds": 10.0}
DISTINCT = 64
"""Different photos; the others are links to them."""
WARM_UP = 4
"""Small shards, made before the clock starts."""
_LIMIT_S = 1800.0
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENCV_OPENCL_RUNTIME": "disabled"}
WAYS = {"plain_1": 1, "ray_1": 1, "plain_2": 2, "ray_2": 2}


def write_photos(folder: Path, count: int) -> None:
    """JPEGs of 640×480 that are as smooth and as noisy as photos, 100 kB each."""
    import cv2

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:07d}.jpg"
        if number >= DISTINCT:
            os.link(folder / f"{number % DISTINCT:07d}.jpg", path)
            continue
        smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        noisy = smooth.astype(np.int16) + rng.integers(-12, 13, (480, 640, 1))
        if not cv2.imwrite(str(path), noisy.clip(0, 255).astype(np.uint8)):
            raise OSError(f"{path} could not be written")


def jobs_of(folder: Path, name: str, photos: Path, shard_size: int) -> tuple[Dataset, list[IngestJob]]:
    config = ImagesConfig(dataset="photos", input=photos, shard_size=shard_size)
    dataset = Dataset(str(folder / name))
    entry = config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    return dataset, list(plan(dataset, config, entry["fingerprint"]))


def in_plain_processes(workers: int, jobs: list[IngestJob], warm_up: list[IngestJob]) -> dict[str, float]:
    """A loop in this process, or a pool of two that takes one job after another."""
    start = time.perf_counter()
    if workers == 1:
        for job in warm_up:
            make_shard(job)
        begun = time.perf_counter()
        for job in jobs:
            make_shard(job)
        return {"start_s": begun - start, "seconds": time.perf_counter() - begun}
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(make_shard, warm_up, chunksize=1):
            pass
        begun = time.perf_counter()
        for _ in pool.imap_unordered(make_shard, jobs, chunksize=1):
            pass
        return {"start_s": begun - start, "seconds": time.perf_counter() - begun}


def on_ray(workers: int, dataset: Dataset, jobs: list[IngestJob], warm_up: list[IngestJob]) -> dict[str, float]:
    """Through the run loop, with progress and log, as `uvd ingest` does it."""
    from uvd.pipeline.executors import TaskExecutor
    from uvd.pipeline.progress import RunProgress
    from uvd.pipeline.ray_runtime import ray_runtime
    from uvd.pipeline.runlog import RunLog
    from uvd.pipeline.runner import run_jobs
    from uvd.sequences.stopping import Stop

    def through(these: list[IngestJob]) -> None:
        log = RunLog(dataset.storage, "ingest", "photos")
        with open(os.devnull, "w") as nowhere:
            progress = RunProgress("ingest", len(these), log, Console(file=nowhere))
            result = run_jobs(iter(these), TaskExecutor(make_shard), progress, Stop(), lambda job: f"{job.shard:06d}")
            progress.close()
        log.close(**progress.summary(), failed=sorted(result.failed), interrupted=result.interrupted)
        if not result.complete:
            raise RuntimeError(f"shards failed: {result.failed}")

    start = time.perf_counter()
    with ray_runtime(num_cpus=workers, environment=ALLOCATOR):
        through(warm_up)
        begun = time.perf_counter()
        through(jobs)
        ended = time.perf_counter()
    return {"start_s": begun - start, "seconds": ended - begun, "end_s": time.perf_counter() - ended}


def measure(way: str, folder: Path, shard_size: int) -> dict[str, float]:
    """One way, in this process, on datasets that are made anew."""
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    workers = WAYS[way]
    _, warm_up = jobs_of(data, "warm-up", folder / "small", 8)
    dataset, jobs = jobs_of(data, "dataset", folder / "photos", shard_size)
    if way.startswith("plain"):
        figures = in_plain_processes(workers, jobs, warm_up)
    else:
        figures = on_ray(workers, dataset, jobs, warm_up)
    made = len(dataset.shards(f"sequences/{jobs[0].folder}"))
    if made != len(jobs):
        raise RuntimeError(f"{made} of {len(jobs)} shards were made")
    shutil.rmtree(data)
    return {**figures, "shard_seconds": figures["seconds"] * workers / len(jobs)}


def in_own_process(way: str, folder: Path, shard_size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "uvd.benchmarks.ray_overhead", "--way", way, "--folder", str(folder)]
    environment = {**os.environ, **ALLOCATOR, **SINGLE_THREADED}
    done = subprocess.run(
        [*command, "--photos", str(shard_size)], stdout=subprocess.PIPE, text=True, env=environment, timeout=_LIMIT_S
    )
    if done.returncode:
        raise RuntimeError(f"{way} ended with {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def summarize(rounds: Mapping[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians of ratios, each of two ways of one round."""

    def ratio(way: str, to: str) -> float:
        return median([one["seconds"] / other["seconds"] for one, other in zip(rounds[way], rounds[to], strict=True)])

    return {
        "overhead_1": ratio("ray_1", "plain_1") - 1,
        "overhead_2": ratio("ray_2", "plain_2") - 1,
        "speedup": ratio("ray_1", "ray_2"),
        "plain_speedup": ratio("plain_1", "plain_2"),
        "shard_seconds": median([one["shard_seconds"] for one in rounds["plain_1"]]),
        "ray_start_s": median([one["start_s"] for one in rounds["ray_1"]]),
        "ray_end_s": median([one["end_s"] for one in rounds["ray_1"]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--photos", type=int, default=4200, help="of a shard; ten seconds or more are wanted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=None, help="JSON file; default benchmarks/results/ray_overhead.json"
    )
    parser.add_argument("--way", choices=list(WAYS), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help="where photos and datasets go for a while")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if arguments.way is not None:
        print(json.dumps(measure(arguments.way, arguments.folder, arguments.photos)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        write_photos(folder / "photos", arguments.shards * arguments.photos)
        write_photos(folder / "small", WARM_UP * 8)
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(arguments.rounds):
            for way in WAYS:
                rounds[way].append(in_own_process(way, folder, arguments.photos))
                print(f"round {number + 1}/{arguments.rounds}  {way}: {rounds[way][-1]}", flush=True)
    reached = summarize(rounds)
    meets: dict[str, Callable[[float, float], bool]] = {
        "overhead_1": float.__le__, "overhead_2": float.__le__, "speedup": float.__ge__, "shard_seconds": float.__ge__
    }  # fmt: skip
    bars = {name: {"bar": bar, "met": meets[name](reached[name], bar)} for name, bar in BARS.items()}
    content: dict[str, Any] = {"shards": arguments.shards, "photos_per_shard": arguments.photos, "rounds": rounds}
    path = write_result("ray_overhead", {**content, "reached": reached, "bars": bars}, arguments.out)
    print(f"reached {reached}\nwrote {path}")


if __name__ == "__main__":
    main()

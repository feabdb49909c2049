"""Downloading: `uvd ingest laion` against img2dataset on the same URLs, cores and local web server, by turns.

Three ways: img2dataset (WebDataset output, 256 px, centre crop, JPEG q95); uvd with the same work on pixels (full
decode, INTER_AREA); uvd as it is (scaled decode). Images a second from start to exit, peak memory of all processes, and
whether every row is accounted for. img2dataset is installed into a virtual environment of its own.

    python -m uvd.benchmarks.laion [--urls 12000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from rich.console import Console

from uvd.benchmarks import photo_host
from uvd.benchmarks.record import ROOT, median, write_result
from uvd.benchmarks.tokenize import sample_photos
from uvd.manifests.dataset import Dataset
from uvd.manifests.stats import query
from uvd.sequences import Seeds

PORT = 8742
PEER = "img2dataset"
SAMPLE_S = 2.0
"""Between two looks at the memory; each costs some 10 ms a process, of which we have more than the peer."""
SIZES = ((640, 480), (800, 600), (1024, 768), (1280, 853))
DISTINCT = 1500
"""Distinct photos; more URLs than that name some of them again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one way."""

    seconds: float
    images: int
    unaccounted: int
    peak_mib: float

    @property
    def speed(self) -> float:
        return self.images / self.seconds


def write_photos(folder: Path, console: Console) -> None:
    """Seeded views of the sample packages' photos as JPEGs of about 100 kB."""
    folder.mkdir(parents=True)
    photos = sample_photos(console)
    sizes = []
    for number in range(DISTINCT):
        rng = Seeds(0, ("laion-benchmark",)).generator(number)
        photo = photos[number % len(photos)]
        width, height = SIZES[int(rng.integers(len(SIZES)))]
        scale = rng.uniform(0.6, 1.0) * min(photo.shape[1] / width, photo.shape[0] / height)
        crop_w, crop_h = int(width * scale), int(height * scale)
        x, y = int(rng.integers(0, photo.shape[1] - crop_w + 1)), int(rng.integers(0, photo.shape[0] - crop_h + 1))
        crop = np.ascontiguousarray(photo[y : y + crop_h, x : x + crop_w])
        pixels = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA if scale >= 1 else cv2.INTER_CUBIC)
        data = simplejpeg.encode_jpeg(pixels, quality=88, colorsubsampling="420")
        sizes.append(len(data))
        (folder / f"{number:05d}.jpg").write_bytes(data)
    console.print(f"{DISTINCT} photos, {np.mean(sizes) / 1e3:.0f} kB on average", markup=False)


def write_urls(file: Path, number: int) -> None:
    pq.write_table(pa.table({"url": [photo_host.url(index, PORT) for index in range(number)]}), file)


class PeakMemory:
    """The highest sum over a process and its descendants of what each holds for itself and its share of the rest."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            total = 0
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue
            self.peak = max(self.peak, total)


def timed(command: list[str], log: Path) -> tuple[float, float]:
    """Runs a command; seconds and peak MiB.

    Raises:
        RuntimeError: if it fails; with the end of its output.
    """
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
        with PeakMemory(process.pid) as memory:
            code = process.wait()
    seconds = time.perf_counter() - start
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-3000:]}")
    return seconds, memory.peak / 2**20


def run_peer(python: Path, urls: Path, out: Path, number: int, cores: int) -> Outcome:
    code = (
        f"import {PEER}; {PEER}.download(url_list={str(urls)!r}, output_folder={str(out)!r}, input_format='parquet', "
        f"url_col='url', output_format='webdataset', image_size=256, resize_mode='center_crop', encode_quality=95, "
        f"processes_count={cores}, thread_count=64, number_sample_per_shard=1000, timeout=10, "
        f"disallowed_header_directives=['noai','noimageai','noindex','noimageindex'], enable_wandb=False)"
    )
    seconds, peak = timed([str(python), "-c", code], out.with_suffix(".log"))
    totals: Counter[str] = Counter()
    for file in out.glob("*_stats.json"):
        counts = json.loads(file.read_text())
        totals.update({name: counts[name] for name in ("count", "successes")})
    return Outcome(seconds, totals["successes"], number - totals["count"], peak)


def run_uvd(urls: Path, out: Path, number: int, settings: list[str]) -> Outcome:
    command = [
        sys.executable,
        "-m",
        "uvd.pipeline.cli",
        "ingest",
        "laion",
        "--config",
        str(ROOT / "configs/laion.yaml"),
    ]
    changes = [f"input={urls}", "shard_size=1000", "fetch.allow_private_hosts=true", "dataset=benchmark", *settings]
    for change in changes:
        command += ["--set", change]
    seconds, peak = timed([*command, "--out", str(out)], out.with_suffix(".log"))
    dataset = Dataset.existing(str(out))
    images = sum(dataset.metadata(shard)["images"] for shard in dataset.shards("sequences/laion"))
    (rejected,) = query(dataset, "select count(distinct (shard, input)) n from rejects where not partial").to_pylist()
    return Outcome(seconds, images, number - images - rejected["n"], peak)


def peer_python(cache: Path, console: Console) -> Path:
    """The interpreter of img2dataset's own environment, made if it is not there."""
    python = cache / PEER / "bin" / "python"
    if not (cache / PEER / ".complete").exists():
        console.print(f"installing {PEER} into {cache / PEER}", markup=False)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(cache / PEER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEER, "setuptools<81"], check=True)
        (cache / PEER / ".complete").touch()
    return python


def peer_version(python: Path) -> str:
    code = f"import importlib.metadata as m; print(m.version({PEER!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-cache", type=Path, default=Path.home() / ".cache/uvd/benchmarks")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/laion.json")
    return parser.parse_args()


def main() -> None:
    arguments, console = parse(), Console(stderr=True)
    python = peer_python(arguments.peer_cache, console)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", console)
        urls = folder / "urls.parquet"
        write_urls(urls, arguments.urls)
        host = [sys.executable, "-m", "uvd.benchmarks.photo_host", str(folder / "photos"), str(PORT)]
        with subprocess.Popen(host, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            if server.stdout.readline() != "ready\n":
                raise RuntimeError(f"the web server did not start; is port {PORT} taken?")
            try:
                outcomes = measure(arguments, python, urls, folder, cores)
            finally:
                server.terminate()
    report(arguments, outcomes, peer_version(python), console)


def measure(
    arguments: argparse.Namespace, python: Path, urls: Path, folder: Path, cores: int
) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {PEER: [], "uvd, same pixels": [], "uvd": []}
    for number in range(arguments.rounds):
        for way, runs in outcomes.items():
            out = folder / "out"
            if way == PEER:
                runs.append(run_peer(python, urls, out, arguments.urls, cores))
            else:
                exact = ["resample=area"] if way != "uvd" else []
                runs.append(run_uvd(urls, out, arguments.urls, exact))
            shutil.rmtree(out)
            last = runs[-1]
            print(
                f"round {number + 1}  {way}: {last.speed:.0f} images/s, {last.peak_mib:.0f} MiB, "
                f"{last.unaccounted} rows unaccounted for",
                flush=True,
            )
    return outcomes


def report(arguments: argparse.Namespace, outcomes: dict[str, list[Outcome]], version: str, console: Console) -> None:
    speed = {way: median([run.speed for run in runs]) for way, runs in outcomes.items()}
    peak = {way: median([run.peak_mib for run in runs]) for way, runs in outcomes.items()}
    ratios = {
        "same pixels": speed["uvd, same pixels"] / speed[PEER],
        "default": speed["uvd"] / speed[PEER],
        "memory": peak["uvd"] / peak[PEER],
    }
    unaccounted = max(run.unaccounted for run in outcomes["uvd"] + outcomes["uvd, same pixels"])
    bars: dict[str, Any] = {
        "same pixels": {"bar": 1.25, "met": ratios["same pixels"] >= 1.25},
        "default": {"bar": 2.2, "met": ratios["default"] >= 2.2},
        "memory": {"bar": 0.7, "met": ratios["memory"] <= 0.7},
        "unaccounted rows": {"bar": 0, "met": unaccounted == 0},
    }
    content = {
        "peer": f"{PEER} {version}",
        "urls": arguments.urls,
        "runs": {way: [asdict(run) | {"images_per_s": run.speed} for run in runs] for way, runs in outcomes.items()},
        "median_images_per_s": speed,
        "median_peak_mib": peak,
        "ratios": ratios,
        "bars": bars,
    }
    path = write_result("laion", content, arguments.out)
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.2f} (bar {bars[name]['bar']})", markup=False)
    console.print(f"wrote {path}", markup=False)


if __name__ == "__main__":
    main()

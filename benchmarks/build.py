"""Building: `uvd ingest` and then `uvd tokenize`, a process each, against `uvd build`, on the same inputs by turns.

Three inputs: photos on disk; video clips; a list of URLs of a local web server with latency and a link of 8 MB/s, about
as fast as two cores encode. Seconds from start to exit, peak memory of all processes (PSS), what the object store held
at most, and whether both datasets have the same bytes.

    python -m uvd.benchmarks.build [--rounds 3] [--photos 1200] [--cases photos,videos,urls]
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from uvd.benchmarks import photo_host
from uvd.benchmarks.laion import write_photos
from uvd.benchmarks.record import median, write_result
from uvd.benchmarks.video_clips import lay_out
from uvd.manifests.dataset import Dataset

BAR = 1.15
LATENCY_S, LINK_BYTES_S = 0.3, 8_000_000
SAMPLE_S = 1.0
"""Between two looks at the memory; each costs some 10 ms a process."""
TWO_STEPS, ONE = "ingest + tokenize", "build"
TOKENIZER = "uvd-small"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one way."""

    seconds: float
    processor_s: float
    images: int
    peak_mib: float
    store_mib: float


class Watch:
    """What a process and its descendants took: memory (PSS) and object store at most, and processor time.

    Processor time is what was seen of each process last, so up to a second of each is missing.
    """

    def __init__(self, pid: int) -> None:
        self.peak = self.store = 0
        self._processor: dict[int, float] = {}
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def processor_s(self) -> float:
        return sum(self._processor.values())

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            total = 0
            with suppress(psutil.NoSuchProcess):
                for process in [self._process, *self._process.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                        times = process.cpu_times()
                        self._processor[process.pid] = times.user + times.system
                        total += process.memory_full_info().pss
                        if process.name() == "raylet":
                            self.store = max(self.store, _store(process.pid))
            self.peak = max(self.peak, total)


def _store(pid: int) -> int:
    """Bytes of the object store that were ever used; it is an unlinked file that the raylet has open."""
    used = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if "plasma" in str(link.readlink()):
                used += link.stat().st_blocks * 512
    return used


def timed(arguments: list[str], log: Path) -> tuple[float, float, float, float]:
    """Runs `uvd`; seconds, processor seconds, peak MiB, object store MiB.

    Raises:
        RuntimeError: if it fails; with the end of its output.
    """
    command = [sys.executable, "-m", "uvd.pipeline.cli", *arguments]
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        with Watch(process.pid) as watch:
            code = process.wait()
    seconds = time.perf_counter() - start
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-3000:]}")
    return seconds, watch.processor_s, watch.peak / 2**20, watch.store / 2**20


def run(way: str, config: Path, source: str, out: Path) -> Outcome:
    """Makes a dataset from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    if way == ONE:
        file = config.with_name("build.yaml")
        file.write_text(yaml.safe_dump({"tokenizer": TOKENIZER, "sources": {"case": config.name}}))
        commands = [["build", "--config", str(file), "--out", str(out)]]
    else:
        commands = [
            ["ingest", source, "--config", str(config), "--out", str(out)],
            ["tokenize", "--dataset", str(out), "--tokenizer", TOKENIZER],
        ]
    measured = [timed(command, out.with_suffix(".log")) for command in commands]
    dataset = Dataset.existing(str(out))
    images = sum(dataset.metadata(shard)["images"] for shard in dataset.all_shards("tokens"))
    seconds, processor, peaks, stores = zip(*measured, strict=True)
    return Outcome(sum(seconds), sum(processor), images, max(peaks), max(stores))


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two datasets have the same files, run logs aside."""

    def files(root: Path) -> dict[str, Path]:
        found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        return {name: path for name, path in found.items() if not name.startswith("runs/")}

    mine, theirs = files(one), files(other)
    return mine.keys() == theirs.keys() and all(mine[name].read_bytes() == theirs[name].read_bytes() for name in mine)


@contextmanager
def web_server(photos: Path) -> Iterator[int]:
    """The photos at a free port of loopback, behind a slow link."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "uvd.benchmarks.photo_host", str(photos), str(port)]
    command += [str(LATENCY_S), str(LINK_BYTES_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if server.stdout.readline() != "ready\n":
                raise RuntimeError("the web server did not start")
            yield port
        finally:
            server.terminate()


def prepare(case: str, folder: Path, photos: Path, number: int, port: int, console: Console) -> tuple[Path, str]:
    """The inputs of a case: its config and source."""
    settings: dict[str, Any] = {"dataset": case, "name": "case"}
    if case == "photos":
        chosen = folder / "chosen"
        chosen.mkdir()
        for count, file in zip(range(number), sorted(photos.iterdir()), strict=False):
            (chosen / f"{count:05d}.jpg").hardlink_to(file)
        source, more = "images", {"input": str(chosen), "shard_size": 100}
    elif case == "videos":
        clips = lay_out(folder, 2, console)
        (folder / "clips").mkdir()
        for name, file in clips.items():
            shutil.copyfile(file, folder / "clips" / name)
        source, more = "video", {"input": str(folder / "clips"), "shard_size": 2, "layouts": {"frames": 1.0}}
    else:
        urls = folder / "urls.parquet"
        pq.write_table(pa.table({"url": [photo_host.url(index, port) for index in range(number)]}), urls)
        source = "laion"
        more = {"input": str(urls), "shard_size": 300, "resample": "fast", "fetch": {"allow_private_hosts": True}}
    config = folder / "case.yaml"
    config.write_text(yaml.safe_dump({"source": source, **settings, **more}))
    return config, source


def measure(case: str, config: Path, source: str, folder: Path, rounds: int, console: Console) -> dict[str, Any]:
    runs: dict[str, list[Outcome]] = {TWO_STEPS: [], ONE: []}
    same = True
    for number in range(rounds):
        # The other way first in every second round.
        for way in sorted(runs, reverse=bool(number % 2)):
            runs[way].append(run(way, config, source, folder / way.partition(" ")[0]))
            console.print(f"{case} {number + 1}/{rounds} {way}: {runs[way][-1]}", markup=False, highlight=False)
        same &= same_bytes(folder / "ingest", folder / "build")
    seconds = {way: median([outcome.seconds for outcome in outcomes]) for way, outcomes in runs.items()}
    ratio = seconds[TWO_STEPS] / seconds[ONE]
    return {
        "runs": {way: [asdict(outcome) for outcome in outcomes] for way, outcomes in runs.items()},
        "median_seconds": seconds,
        "median_processor_s": {way: median([run.processor_s for run in outcomes]) for way, outcomes in runs.items()},
        "median_peak_mib": {way: median([outcome.peak_mib for outcome in outcomes]) for way, outcomes in runs.items()},
        "most_in_store_mib": max(outcome.store_mib for outcome in runs[ONE]),
        "same_bytes": same,
        "ratio": ratio,
        "bar": BAR,
        "met": ratio >= BAR and same,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=1200, help="photos on disk, and URLs")
    parser.add_argument("--cases", default="photos,videos,urls")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/build.json")
    return parser.parse_args()


def main() -> None:
    arguments, console = parse(), Console(stderr=True)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name) / "served"
        write_photos(photos, console)
        with web_server(photos) as port:
            for case in arguments.cases.split(","):
                folder = Path(name) / case
                folder.mkdir()
                config, source = prepare(case, folder, photos, arguments.photos, port, console)
                results[case] = measure(case, config, source, folder, arguments.rounds, console)
                shutil.rmtree(folder)
    settings = {"photos": arguments.photos, "latency_s": LATENCY_S, "link_bytes_s": LINK_BYTES_S}
    settings |= {"tokenizer": TOKENIZER, "rounds": arguments.rounds}
    path = write_result("build", {"settings": settings, "cases": results}, arguments.out)
    for case, result in results.items():
        console.print(f"{case}: {result['ratio']:.2f} (bar {BAR}), same bytes: {result['same_bytes']}", markup=False)
    console.print(f"wrote {path}", markup=False)


if __name__ == "__main__":
    main()

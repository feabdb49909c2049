"""`uvd stats`, `uvd show` and `--sql` on made-up datasets of 1, 10 and 100 million sequences, each in its own process.

A dataset has 1,000 sequences a shard, image and token manifests (see `made_up_manifests`), so 100 million are 200,000
manifests and as many files of rejects, 12 GB. Measured: statistics from all footers, as the first time; statistics from
the index; sequences by their keys, drawn; one SQL query on all rows. Each by the clock, by processor time, and by peak
resident memory with the helper processes; on two cores, whatever the machine has.

    python -m uvd.benchmarks.manifests [--sizes 1e6 1e7 1e8] [--folder DIR] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from uvd.benchmarks.made_up_manifests import KINDS, ROWS, shards_of, write_dataset
from uvd.benchmarks.record import ROOT, median, write_result
from uvd.manifests.blocks import SETTLED_S

CORES = 2
SHARDS_WITH_PICTURES = 4
KEYS = 20
BARS = {"first_s": 30.0, "again_s": 30.0, "peak_gb": 4.0, "show_s": 0.3}
CHART = ROOT / "docs" / "manifest-scale.png"
SQL = "select dataset, count(*) n, sum(num_images) images from sequences group by all order by n desc"
NAMES = {"first": "stats, first time", "again": "stats, with index", "show": "show", "sql": "SQL on all rows"}


def measure_first(uri: str) -> dict[str, Any]:
    """Statistics without an index; leaves one for the next time."""
    shutil.rmtree(Path(uri) / "index", ignore_errors=True)
    return _statistics(uri)


def _statistics(uri: str) -> dict[str, Any]:
    from uvd.manifests.dataset import Dataset
    from uvd.manifests.stats import statistics

    start = time.perf_counter()
    result = statistics(Dataset.existing(uri))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "shards_read": result["shards"]["read"],
        "sequences": sum(row["sequences"] for row in result["sources"]),
        "tokens": sum(row["tokens"] for row in result["sources"]),
        "rejects": sum(row["inputs"] for row in result["rejects"]),
    }


def measure_show(uri: str) -> dict[str, Any]:
    """Random keys: found, read, drawn as a contact sheet and saved."""
    from uvd.manifests.dataset import Dataset
    from uvd.manifests.find import find_sequence
    from uvd.manifests.sheet import save_png
    from uvd.pipeline.showing import sequence_sheet

    dataset, kind = Dataset.existing(uri), KINDS[0]
    tars = sorted(path.stem for path in (Path(uri) / f"sequences/{kind.folder}").glob("*.tar"))
    shards = _shards(uri)
    draw = random.Random(0)
    found, shown = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(KEYS):
            key = f"{kind.folder}-{draw.randrange(shards):06d}-{draw.randrange(ROWS):06d}"
            start = time.perf_counter()
            find_sequence(dataset, key)
            found.append(time.perf_counter() - start)
            key = f"{kind.folder}-{draw.choice(tars)}-{draw.randrange(ROWS):06d}"
            start = time.perf_counter()
            save_png(sequence_sheet(dataset, key), f"{folder}/sheet.png")
            shown.append(time.perf_counter() - start)
    return {"seconds": max(shown[1:]), "first_seconds": shown[0], "median_seconds": median(shown), "find": max(found)}


def _shards(uri: str) -> int:
    """Of single images."""
    return sum(
        name.count(".") == 1 and name.endswith(".parquet") for name in os.listdir(f"{uri}/sequences/{KINDS[0].folder}")
    )


def measure_sql(uri: str) -> dict[str, Any]:
    """One query that goes through all manifests of images."""
    from uvd.manifests.dataset import Dataset
    from uvd.manifests.sql import query

    start = time.perf_counter()
    rows = query(Dataset.existing(uri), SQL).to_pylist()
    return {"seconds": time.perf_counter() - start, "sequences": sum(row["n"] for row in rows)}


MEASURES: dict[str, Callable[[str], dict[str, Any]]] = {
    "first": measure_first,
    "again": _statistics,
    "show": measure_show,
    "sql": measure_sql,
}


def in_own_process(way: str, uri: str) -> dict[str, Any]:
    """Runs one measurement; adds the peak of resident memory of all its processes together, in GB."""
    command = [sys.executable, "-m", "uvd.benchmarks.manifests", "--measure", way, "--folder", uri]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = _Watch(process.pid)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{way} ended with {process.returncode}")
    return {**json.loads(output), "peak_gb": watch.peak / 1e9, "load_average": os.getloadavg()[0]}


class _Watch:
    """Samples the resident memory of a process and its children until it ends; what they share counts for each."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            try:
                process = psutil.Process(self._pid)
                members = [process, *process.children(recursive=True)]
                self.peak = max(self.peak, sum(member.memory_info().rss for member in members))
            except psutil.NoSuchProcess:
                if not psutil.pid_exists(self._pid):
                    return
            time.sleep(0.05)


def measure(folder: Path, sequences: int, keep: bool) -> dict[str, Any]:
    """Makes a dataset, or finishes one that is there, and measures all ways on it."""
    start = time.perf_counter()
    uri = write_dataset(folder, sequences, CORES, SHARDS_WITH_PICTURES)
    print(f"{sequences:,} sequences made in {time.perf_counter() - start:.0f} s", flush=True)
    time.sleep(SETTLED_S)  # until then the index does not trust the last files
    shards = sum(shards_of(kind, sequences) for kind in KINDS)
    measured: dict[str, Any] = {"manifests": 2 * shards, "gigabytes": _manifest_bytes(folder) / 1e9}
    for way in NAMES:
        measured[way] = in_own_process(way, uri)
        print(f"  {way}: " + "  ".join(f"{key} {value:,.3f}" for key, value in measured[way].items()), flush=True)
    wanted = ROWS * shards
    counted = {way: measured[way]["sequences"] for way in ("first", "again", "sql")}
    if any(value != wanted for value in counted.values()):
        raise AssertionError(f"{wanted} sequences were written, counted {counted}")
    if not keep:
        shutil.rmtree(folder)
    return measured


def _manifest_bytes(folder: Path) -> int:
    return sum(
        entry.stat().st_size
        for place, _, _ in os.walk(folder)
        for entry in os.scandir(place)
        if entry.name.endswith(".parquet")
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """Seconds and memory by size, all axes logarithmic, one chart above the other."""
    from uvd.manifests.sheet import save_png
    from uvd.trainer.evaluate.chart import Curve, line_chart

    sizes = tuple(float(size) for size in results)
    charts = []
    for key, title in (("seconds", "Seconds"), ("peak_gb", "Peak memory of all processes, GB")):
        curves = [Curve(name, sizes, tuple(r[way][key] for r in results.values())) for way, name in NAMES.items()]
        charts.append(line_chart(curves, title=title, x_axis="sequences in the dataset", log_x=True, log_y=True))
    save_png(np.concatenate(charts), str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7, 1e8], help="sequences")
    parser.add_argument("--folder", type=Path, default=None, help="where the datasets go; 15 GB for the largest")
    parser.add_argument("--keep", action="store_true", help="leave the datasets there")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/manifests.json")
    parser.add_argument("--measure", choices=list(NAMES), default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if arguments.measure is not None:
        result = MEASURES[arguments.measure](str(arguments.folder))
        print(json.dumps({**result, "processor_seconds": sum(os.times()[:4])}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        results = {
            str(int(size)): measure(folder / f"{int(size)}", int(size), arguments.keep) for size in arguments.sizes
        }
    largest = results[str(int(max(arguments.sizes)))]
    reached = {
        "first_s": largest["first"]["seconds"],
        "again_s": largest["again"]["seconds"],
        "peak_gb": max(largest[way]["peak_gb"] for way in ("first", "again")),
        "show_s": largest["show"]["seconds"],
    }
    bars = {name: {"bar": bar, "met": reached[name] <= bar} for name, bar in BARS.items()}
    content = {"rows_per_shard": ROWS, "cores_used": CORES, "results": results, "reached": reached, "bars": bars}
    path = write_result("manifests", content, arguments.out)
    if arguments.out is None:
        draw(results, CHART)
    print(f"reached {reached}\nwrote {path}")


if __name__ == "__main__":
    main()

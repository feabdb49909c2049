"""What every benchmark shares: the machine it ran on, rounds by turns, and a JSON file that says how it was made."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uvd import __version__

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, GPU and operating system."""
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def commit() -> str:
    """The commit that ran, with `+changes` if files differ from it; `unknown` outside a clone."""
    if not (ROOT / ".git").exists():
        return "unknown"
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def rounds_by_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measures each way once a round, so that a change of the machine's load meets all of them alike."""
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            measured[name].append(way())
            print(f"round {number + 1}/{rounds}  {name}: {measured[name][-1]:,.1f}", flush=True)
    return measured


def median(values: list[float]) -> float:
    return statistics.median(values)


def write_result(name: str, content: dict[str, Any], out: Path | None = None) -> Path:
    """Writes `results/NAME.json` (or `out`) with hardware, commit and date, and returns its path."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "uvd_version": __version__,
        "hardware": hardware(),
        **content,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path

"""Running `uvd` as a user does, waiting for what it commits, and killing it or its workers."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

DEADLINE_S = 120


def uvd(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "uvd.pipeline.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, output
    return output


def wait_for(process: subprocess.Popen, condition) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def committed(out: Path, section: str) -> int:
    return sum(1 for path in (out / section).rglob("*.parquet") if "rejects" not in path.name)


def kill_worker(driver: subprocess.Popen, doing: str) -> bool:
    """Kills one Ray worker of this driver that is at work; says whether there was one."""
    for child in psutil.Process(driver.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(f"ray::{doing}"):
                child.kill()
                return True
        except psutil.Error:
            continue
    return False


def killed_and_run_again(start: Callable[[], subprocess.Popen], out: Path, seed: int, most: int) -> None:
    """Kills an ingesting driver after some shards, fewer than `most`, and lets the same command finish."""
    rng = random.Random(seed)
    process = start()
    target = rng.randrange(1, most)
    wait_for(process, lambda: committed(out, "sequences") >= target)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished(start())


def finished_despite_kills(process: subprocess.Popen, pause_s: float, most: int = 3) -> int:
    """Kills up to `most` workers that make shards, and waits for the driver; how many were killed."""
    killed = 0
    while process.poll() is None and killed < most:
        time.sleep(pause_s)
        killed += kill_worker(process, "make_shard")
    finished(process)
    return killed

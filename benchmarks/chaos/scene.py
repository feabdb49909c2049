"""One run of the campaign: a command on a cluster, and how to look at it and wait for it while it is disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from uvd.benchmarks.chaos.clock import JumpingClock
from uvd.benchmarks.chaos.cluster import Cluster, Node, end_with_parent
from uvd.benchmarks.chaos.workloads import Workload, committed

NODES = 2
"""Machines with a CPU, besides the head."""
RUN_S = 150.0
"""A command that has not ended by then hangs: a violation."""
_POLL_S = 0.02


class HungError(RuntimeError):
    """A command did not end in time; the message has the end of what it said."""


@dataclass
class Driver:
    """One `uvd` command that was started."""

    process: subprocess.Popen[bytes]
    log: Path
    expected: frozenset[int] | None = None
    """Exit codes that it may end with after what was done to it; None for any."""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = RUN_S) -> int:
        """
        Raises:
            HungError: if it does not end; it is killed.
        """
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise HungError(f"still running after {timeout_s:.0f} s: {self.said()[-1500:]}") from None

    def kill(self) -> None:
        if self.running:
            # A stopped process dies of SIGKILL too.
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)


@dataclass
class Scene:
    """What a fault acts on.

    Attributes:
        out: the dataset.
        folder: of this run alone, for logs.
        rng: of this run's seed.
    """

    cluster: Cluster
    workload: Workload
    out: Path
    folder: Path
    rng: random.Random
    clock: JumpingClock | None = None
    drivers: list[Driver] = field(default_factory=list)
    struck: int = 0
    """How often the fault met a command that was running."""

    def start(
        self, *more: str, expected: tuple[int, ...] | None = (0,), environment: Mapping[str, str] | None = None
    ) -> Driver:
        """Runs the command, in a process of its own."""
        command = self.workload.command(self.out, "--address", self.cluster.address, *more)
        descriptor, name = tempfile.mkstemp(prefix="driver-", suffix=".log", dir=self.folder)
        with os.fdopen(descriptor, "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.cluster.environment, **(environment or {})},
                preexec_fn=end_with_parent,
            )
        driver = Driver(process, Path(name), None if expected is None else frozenset(expected))
        self.drivers.append(driver)
        return driver

    def committed(self) -> int:
        return committed(self.out, self.workload.section)

    def wait_until(self, condition: Callable[[], bool], driver: Driver, timeout_s: float = 60) -> bool:
        """Waits while the driver runs; says whether the condition came true."""
        end = time.monotonic() + timeout_s
        while driver.running and time.monotonic() < end:
            if condition():
                return True
            time.sleep(_POLL_S)
        return condition()

    def wait_for_a_moment(self, driver: Driver) -> None:
        """A random moment of the run: while it starts (one in five), or when some shards are committed."""
        if self.rng.random() < 0.2:
            begun = time.monotonic()
            pause = self.rng.uniform(0.5, 6)
            self.wait_until(lambda: time.monotonic() - begun > pause, driver)
            return
        shards = self.rng.randrange(self.workload.shards)
        self.wait_until(lambda: self.committed() >= shards, driver)
        time.sleep(self.rng.uniform(0, 0.3))

    def strike(self, driver: Driver, blow: Callable[[], object]) -> bool:
        """Does something to a run; says, and counts, whether the command was still running by then."""
        running = driver.running
        blow()
        self.struck += running
        return running

    def wait_for_workers(self, driver: Driver, timeout_s: float = 60) -> list[tuple[Node, psutil.Process]]:
        """Workers that work now, on living nodes; empty if the driver ended before there were any."""
        found: list[tuple[Node, psutil.Process]] = []

        def look() -> bool:
            found[:] = [
                (node, worker) for node in self.cluster.living() for worker in node.workers(self.workload.doing)
            ]
            return bool(found)

        self.wait_until(look, driver, timeout_s)
        return found

    def workers_on(self, shard: int) -> list[tuple[Node, psutil.Process]]:
        """Workers that have this shard's unfinished file open."""
        name, found = f".{shard:06d}.tar.", []
        for node in self.cluster.living():
            for worker in node.workers(self.workload.doing):
                with suppress(psutil.Error):
                    if any(Path(file.path).name.startswith(name) for file in worker.open_files()):
                        found.append((node, worker))
        return found

    def end_drivers(self) -> None:
        for driver in self.drivers:
            driver.kill()

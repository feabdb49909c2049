"""The campaign: a seed decides workload, fault and moment; after the fault the same command is run until it is done."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uvd.benchmarks.chaos.check import Checked, check
from uvd.benchmarks.chaos.clock import JumpingClock
from uvd.benchmarks.chaos.cluster import Cluster
from uvd.benchmarks.chaos.faults import FAULTS, Fault, unmount
from uvd.benchmarks.chaos.scene import NODES, HungError, Scene
from uvd.benchmarks.chaos.workloads import Workload, workloads

WORKLOADS = ("photos", "video", "urls", "tokens", "build")
_OWN_TRACEBACK = "_run_module_as_main"
"""In what a command says when it ends by an exception that nobody expected; failures of shards have tracebacks too."""
MAX_TRIES = 4
"""The command must be done after so many more runs, each of them undisturbed."""


@dataclass
class Outcome:
    """One seeded run.

    Attributes:
        struck: how often the fault met a command that was running.
        codes: exit codes of the disturbed commands.
        tries: undisturbed runs of the same command until one had nothing left to do or was done.
        problems: whatever is a bug; empty for a good run.
    """

    seed: int
    fault: str
    workload: str
    struck: int = 0
    codes: list[int | None] = field(default_factory=list)
    tries: int = 0
    seconds: float = 0.0
    identical: bool = False
    leftovers: int = 0
    unaccounted: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Campaign:
    """A cluster, inputs and calm datasets that many runs share; made by `campaign`."""

    def __init__(self, folder: Path, cluster: Cluster, clock: JumpingClock | None, made: dict[str, Workload]) -> None:
        self._folder, self._cluster, self._clock, self.workloads = folder, cluster, clock, made
        self.kept: list[Path] = []
        """Folders of runs that showed a problem: dataset and what the commands said."""

    def run(self, seed: int, fault: Fault | None = None, workload: str | None = None) -> Outcome:
        """One run; what the seed would choose can be given. Never raises for what a run does."""
        rng = random.Random(seed)
        drawn = _draw_fault(rng)
        fault = fault or drawn
        fitting = [name for name in self.workloads if not fault.workloads or name in fault.workloads]
        name = workload or rng.choice(fitting)
        outcome, begun = Outcome(seed, fault.name, name), time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix=f"seed-{seed}-", dir=self._folder))
        scene = Scene(self._cluster, self.workloads[name], folder / "dataset", folder, rng, self._clock)
        scene.out.mkdir()
        try:
            self._cluster.restore(NODES)
            scene.workload.lay_out(scene.out)
            _disturb(scene, fault, outcome)
            self._cluster.restore(NODES)
            _finish(scene, outcome)
            _judge(check(scene.out, scene.workload.calm), outcome)
        except HungError as error:
            outcome.problems.append(f"hung: {error}")
        except Exception:  # noqa: BLE001 - a campaign goes on, and its report has every failure in full
            outcome.problems.append(traceback.format_exc())
        finally:
            scene.end_drivers()
            if self._clock is not None:
                self._clock.set(0)
            unmount(scene.out)
        outcome.seconds = round(time.monotonic() - begun, 1)
        if outcome.good:
            shutil.rmtree(folder)
        else:
            outcome.problems.append(f"kept: {folder}")
            self.kept.append(folder)
        return outcome


def _draw_fault(rng: random.Random) -> Fault:
    possible = [fault for fault in FAULTS.values() if fault.possible()]
    return rng.choices(possible, [fault.weight for fault in possible])[0]


def _disturb(scene: Scene, fault: Fault, outcome: Outcome) -> None:
    fault.act(scene)
    outcome.struck = scene.struck
    for driver in scene.drivers:
        code = driver.wait()
        outcome.codes.append(code)
        if driver.expected is not None and code not in driver.expected:
            outcome.problems.append(f"exit code {code}, not of {sorted(driver.expected)}: {driver.said()[-2000:]}")
        elif code > 0 and _OWN_TRACEBACK in driver.said():
            outcome.problems.append(f"a traceback in place of a message: {driver.said()[-4000:]}")


def _finish(scene: Scene, outcome: Outcome) -> None:
    """The same command, until it is done; also if it was done before, for then it must find nothing to do."""
    while outcome.tries < MAX_TRIES:
        driver = scene.start()
        outcome.tries += 1
        if driver.wait() == 0:
            return
    outcome.problems.append(f"not done after {outcome.tries} undisturbed runs: {driver.said()[-2000:]}")


def _judge(checked: Checked, outcome: Outcome) -> None:
    outcome.identical = not checked.different and not checked.leftovers
    outcome.leftovers, outcome.unaccounted = len(checked.leftovers), len(checked.unaccounted)
    if not checked.good:
        outcome.problems.append(str(checked))


@contextmanager
def campaign(names: tuple[str, ...] = WORKLOADS, folder: Path | None = None) -> Iterator[Campaign]:
    """Makes inputs, calm datasets and a cluster for the time of the block.

    Args:
        names: workloads.
        folder: for all files; by default a temporary one, removed at the end unless a run showed a problem.
    """
    root = Path(tempfile.mkdtemp(prefix="uvd-chaos-data-")) if folder is None else folder
    prepared: Campaign | None = None
    try:
        clock = JumpingClock(root) if JumpingClock.possible() else None
        with workloads(root, names) as made, Cluster(clock.environment if clock is not None else None) as cluster:
            cluster.start(NODES)
            prepared = Campaign(root, cluster, clock, made)
            yield prepared
    finally:
        if folder is None and not (prepared and prepared.kept):
            shutil.rmtree(root, ignore_errors=True)


def run_seeds(
    seeds: Iterable[int], chosen: Fault | None, workload: str | None, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """The runs of these seeds, one after another."""
    names = WORKLOADS if workload is None else (workload,)
    outcomes = []
    with campaign(names) as prepared:
        for seed in seeds:
            outcomes.append(prepared.run(seed, chosen, workload))
            tell(outcomes[-1])
    return outcomes

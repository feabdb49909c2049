"""What is done to a run. Each fault starts the command, disturbs it at a moment of its seed's choice, and mends what it
broke, so that the same command can be run again.

None of them touches the code under test: processes are killed or stopped, nodes come and go, disks fill up or refuse.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uvd.benchmarks.chaos.clock import JumpingClock
from uvd.benchmarks.chaos.cluster import kill_all
from uvd.benchmarks.chaos.hog import filled_store
from uvd.benchmarks.chaos.scene import NODES, RUN_S, Driver, Scene
from uvd.manifests.lease import LEASE_S

KILLED = -signal.SIGKILL
REFUSED, INCOMPLETE = 1, 3


@dataclass(frozen=True)
class Fault:
    """A way to disturb a run.

    Attributes:
        means: for the table.
        act: starts the command, disturbs it, mends what it broke; may leave the command running.
        weight: how often it comes, relative to the others.
        possible: whether this machine permits it.
        workloads: those that it is for; all if empty.
    """

    name: str
    means: str
    act: Callable[[Scene], None]
    weight: int = 1
    possible: Callable[[], bool] = lambda: True
    workloads: tuple[str, ...] = ()


def kill_workers(scene: Scene) -> None:
    driver = scene.start()
    for _ in range(scene.rng.randint(1, 2)):
        scene.wait_for_a_moment(driver)
        if workers := scene.wait_for_workers(driver):
            worker = scene.rng.choice(workers)[1]
            scene.strike(driver, functools.partial(kill_all, [worker]))


def kill_node(scene: Scene) -> None:
    """One machine of two loses its power, and none comes for it."""
    driver = scene.start()
    scene.wait_for_a_moment(driver)
    scene.strike(driver, scene.rng.choice(scene.cluster.living()).kill)


def kill_raylet(scene: Scene) -> None:
    """Ray's daemon of one machine dies; its workers live until they notice. A new machine comes."""
    driver = scene.start()
    scene.wait_for_a_moment(driver)
    scene.strike(driver, scene.rng.choice(scene.cluster.living()).kill_raylet)
    time.sleep(scene.rng.uniform(0, 2))
    scene.cluster.add_node()


def kill_all_nodes(scene: Scene) -> None:
    driver = scene.start()
    scene.wait_for_a_moment(driver)
    family = [process for node in scene.cluster.living() for process in node.family()]
    scene.strike(driver, lambda: kill_all(family))
    scene.cluster.add_node()


def kill_driver(scene: Scene) -> None:
    """The driver is killed, once or twice, and the command run again at once: workers of the dead may still write."""
    for _ in range(scene.rng.randint(1, 2)):
        driver = scene.start(expected=(KILLED, 0))
        scene.wait_for_a_moment(driver)
        scene.strike(driver, driver.kill)


def kill_head(scene: Scene) -> None:
    """The head dies, with the driver or before its eyes; a new cluster comes while nodes of the old may still work."""
    driver = scene.start(expected=None)
    scene.wait_for_a_moment(driver)
    scene.strike(driver, lambda: kill_all(scene.cluster.head.family()))
    with_driver, with_nodes = scene.rng.random() < 0.5, scene.rng.random() < 0.5
    if with_driver:
        driver.kill()
    if with_nodes:
        kill_all([process for node in scene.cluster.nodes for process in node.family()])
    driver.wait()
    scene.cluster.restart(NODES)
    scene.start().wait()
    # Its workers may have been killed in the middle of a file just now; the next run sweeps that.
    scene.cluster.end_orphans()


def fill_object_store(scene: Scene) -> None:
    """Another job fills the object store of every node before the command starts, until it ends."""
    with filled_store(scene.cluster):
        driver = scene.start()
        scene.strike(driver, driver.wait)


def fill_disk(scene: Scene) -> None:
    """The disk of the dataset is full at some shard; then it is given more space."""
    calm = sum(path.stat().st_size for path in scene.workload.calm.rglob("*") if path.is_file())
    begin = sum(path.stat().st_size for path in scene.out.rglob("*") if path.is_file())
    shutil.rmtree(scene.out)
    scene.out.mkdir()
    size = begin + int((calm - begin) * scene.rng.uniform(0.1, 0.9)) + (256 << 10)
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(scene.out))
    scene.workload.lay_out(scene.out)
    scene.struck += scene.start(expected=(REFUSED, INCOMPLETE)).wait() != 0
    _run("mount", "-o", "remount,size=256m", str(scene.out))


def refuse_writing(scene: Scene) -> None:
    """The folder of the shards, or before the first of them the dataset, cannot be written for some seconds."""
    driver: Driver | None = None
    if scene.rng.random() < 0.7:
        driver = scene.start(expected=(REFUSED, INCOMPLETE, 0))
        scene.wait_for_a_moment(driver)
    folders = [path.parent for path in (scene.out / scene.workload.section).rglob("[0-9]*.parquet")]
    folder = max(folders, key=lambda path: path.stat().st_mtime, default=scene.out)
    _run("chattr", "+i", str(folder))
    try:
        if driver is None:
            driver = scene.start(expected=(REFUSED, INCOMPLETE, 0))
        scene.struck += driver.running
        begun, pause = time.monotonic(), scene.rng.uniform(1, 12)
        scene.wait_until(lambda: time.monotonic() - begun > pause, driver)
    finally:
        _run("chattr", "-i", str(folder))


def jump_clocks(scene: Scene) -> None:
    """The wall clock of all machines jumps by up to ten years, forth and back."""
    assert scene.clock is not None
    driver = scene.start()
    for _ in range(scene.rng.randint(1, 3)):
        scene.wait_for_a_moment(driver)
        seconds = scene.rng.choice((-1, 1)) * int(10 ** scene.rng.uniform(1, 8.5))
        scene.strike(driver, functools.partial(scene.clock.set, seconds))
    driver.wait()
    scene.clock.set(0)
    # Ray's own timers may have gone wrong in years to come; that is not to be blamed on the next run.
    scene.cluster.kill_everything()


def suspend_driver(scene: Scene) -> None:
    """The driver is suspended for longer than a lease lasts; who tries to take over meanwhile is refused."""
    driver = scene.start()
    scene.wait_for_a_moment(driver)
    if not scene.strike(driver, lambda: driver.process.send_signal(signal.SIGSTOP)):
        return
    suspended = time.monotonic()
    held = any((scene.out / "runs").glob("*.lease"))
    scene.start(expected=(REFUSED,) if held else (REFUSED, 0)).wait()
    time.sleep(max(0, suspended + LEASE_S + 2 - time.monotonic()))
    driver.process.send_signal(signal.SIGCONT)


def submit_twice(scene: Scene) -> None:
    """Two start the same command at about the same time; each other time the second waits for its turn."""
    first = scene.start(expected=(REFUSED, 0))
    time.sleep(scene.rng.choice((0, scene.rng.uniform(0, 6))))
    waits = scene.rng.random() < 0.5
    second = scene.start(*(["--wait"] if waits else []), expected=(0,) if waits else (REFUSED, 0))
    scene.struck += first.running and second.running
    first.wait()
    second.wait()


def poison(scene: Scene) -> None:
    """A shard kills its worker, or the whole node, whenever it is made: it must be set aside, and the rest be made."""
    shard, whole_node = scene.rng.randrange(scene.workload.shards), scene.rng.random() < 0.5
    driver = scene.start(expected=(INCOMPLETE,))
    end = time.monotonic() + RUN_S
    while driver.running and time.monotonic() < end:
        for node, worker in scene.workers_on(shard):
            scene.strike(driver, node.kill if whole_node else functools.partial(kill_all, [worker]))
        starting = any(node.process.poll() is None and not node.joined for node in scene.cluster.nodes)
        if not starting and len(scene.cluster.living()) < NODES:
            scene.cluster.launch_node()
        time.sleep(0.02)
    driver.wait(1)
    left = scene.workload.shards - scene.committed()
    if driver.code == INCOMPLETE and left != 1:
        raise AssertionError(f"besides the poison shard, {left - 1} others were not made: {driver.said()[-1500:]}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _may_refuse_writing() -> bool:
    return os.geteuid() == 0 and shutil.which("chattr") is not None


def unmount(folder: Path) -> None:
    """Takes away what `fill_disk` mounted, if it did."""
    if os.path.ismount(folder):
        _run("umount", "-l", str(folder))


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("worker", "SIGKILL of one or two workers or tokenizing actors", kill_workers, 3),
        Fault("node", "a node loses its power, none comes for it", kill_node, 2),
        Fault("raylet", "SIGKILL of a raylet; a new node comes", kill_raylet, 2),
        Fault("all nodes", "all nodes but the head lose their power; a new one comes", kill_all_nodes),
        Fault("driver", "SIGKILL of the driver, once or twice", kill_driver, 3),
        Fault("head", "the head dies, with or without driver and nodes; a new cluster comes", kill_head, 2),
        Fault("object store full", "another job fills the object store of every node", fill_object_store),
        Fault("disk full", "the dataset's disk is full at some shard", fill_disk, 2, _may_mount),
        Fault("read-only", "the dataset cannot be written for some seconds", refuse_writing, 1, _may_refuse_writing),
        Fault("clock", "wall clocks of all machines jump by up to ten years", jump_clocks, 2, JumpingClock.possible),
        Fault("suspended", "SIGSTOP of the driver for longer than a lease", suspend_driver),
        Fault("two submitters", "the same command twice at once", submit_twice, 2),
        Fault("poison", "a shard that kills its worker or node each time", poison, 1, workloads=("video", "urls")),
    )
}
__all__ = ["FAULTS", "Fault", "unmount"]

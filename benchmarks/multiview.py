"""Views of objects: 24 views of each of 24 real textured objects, by uvd's child process and by other ways, by turns.

All read the same files and draw from the same cameras with one core. Seconds are those of the processor, all processes
of a way together, loading included and the first start of a library not; so other work on the machine counts less. Slow
ways draw some of the views, and their drawing counts as many times: with a new pyrender renderer a view, or with Cycles
(three objects), every view has the same to do. Besides: one and two worker processes with a core each, by the clock,
the best of all rounds; and how well the outlines agree with those of the others.

    python -m uvd.benchmarks.multiview [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from uvd.benchmarks import multiview_peers
from uvd.benchmarks.record import median, write_result
from uvd.pipeline.demo.objects import textured_objects
from uvd.renderers.gl import GL_ENVIRONMENT, probe_gl
from uvd.renderers.multiview import VIEWS, orbit
from uvd.sequences import IMAGE_SIZE, Seeds
from uvd.sources.isolation import IsolatedProcess

OURS = "uvd"
OBJECTS = 24
LIBRARIES = {"pyvista": "pyvista==0.49.1", "bpy": "bpy==4.5.15"}
"""What pip installs; 4.5 is the last bpy for Python 3.11."""


@dataclass(frozen=True, slots=True)
class Way:
    """Another way to draw: whose interpreter, which library, how many objects and views of each."""

    library: str
    objects: int
    views: int


WAYS = {
    "pyrender": Way("pyrender", OBJECTS, 3),
    "pyrender-kept": Way("pyrender", OBJECTS, 8),
    "pyvista": Way("pyvista", OBJECTS, VIEWS),
    "blender": Way("bpy", 3, 2),
}
BARS = {"pyrender": 6.0, "blender": 40.0}
TWO_WORKERS_BAR = 1.5


class Ours:
    """What the `objaverse` source does with a file: one child process that parses and draws."""

    def __init__(self) -> None:
        environment = {**GL_ENVIRONMENT, "PYOPENGL_PLATFORM": probe_gl().name}
        handler = "uvd.renderers.multiview_worker:render_file"
        self._child = IsolatedProcess(handler, timeout_s=120, memory_bytes=4 << 30, environment=environment)

    def draw(self, path: Path, cameras: Sequence[Sequence[float]]) -> NDArray[np.uint8]:
        """`(N, 256, 256, 3)`."""
        request = {
            "path": str(path),
            "max_bytes": 256 << 20,
            "max_faces": 2_000_000,
            "size": IMAGE_SIZE,
            "background": [255, 255, 255],
            "up": "auto",
            "cameras": cameras,
        }
        _, (views,) = self._child.call(request)
        return views

    def run(
        self, objects: Sequence[Path], cameras: Sequence[Sequence[float]]
    ) -> tuple[dict[str, float], list[NDArray[np.uint8]]]:
        """Seconds by object, and the first view of each."""
        self.draw(objects[0], cameras[:1])  # starts the child
        seconds, firsts = {}, []
        for path in objects:
            start = _processor_s()
            firsts.append(self.draw(path, cameras)[0])
            seconds[str(path)] = _processor_s() - start
        return seconds, firsts

    def close(self) -> None:
        self._child.close()


def _processor_s() -> float:
    """Seconds that this process and its children have computed for."""
    # Linux makes the number of a process's clock of its id so: linux/posix-timers.h, MAKE_PROCESS_CPUCLOCK.
    children = [(~child.pid << 3) | 2 for child in psutil.Process().children()]
    return time.process_time() + sum(time.clock_gettime(clock) for clock in children)


def interpreters(cache: Path, console: Console) -> dict[str, tuple[Path, str]]:
    """By library: the interpreter that has it and its version; or no path, and why not."""
    found = {"pyrender": (Path(sys.executable), version("pyrender"))}
    for library, requirement in LIBRARIES.items():
        folder = cache / library
        try:
            if not (folder / ".complete").exists():
                console.print(f"installing {requirement} into {folder}", markup=False)
                subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
                command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", requirement]
                subprocess.run(command, check=True, capture_output=True, text=True)
                (folder / ".complete").touch()
            found[library] = (folder / "bin/python", requirement.partition("==")[2])
        except subprocess.CalledProcessError as error:
            last = (error.stderr or str(error)).strip().splitlines()[-1]
            console.print(f"without {library}: {last}", markup=False)
            found[library] = (Path(), last)
    return found


def run_peer(
    name: str, python: Path, objects: Sequence[Path], cameras: Sequence[Sequence[float]], folder: Path
) -> tuple[dict[str, float], dict[str, str], list[NDArray[np.uint8]]]:
    """Seconds for all views by object, why objects were not drawn, and the first view of each that was.

    Raises:
        RuntimeError: if the process fails; with the end of its output.
    """
    way = WAYS[name]
    step = len(cameras) // way.views
    job, result = folder / "job.json", folder / f"{name}.json"
    names = [str(path) for path in objects]
    plan = {"warm_up": names[1], "objects": names[: way.objects], "cameras": cameras[::step]}
    job.write_text(json.dumps(plan))
    core = str(min(os.sched_getaffinity(0)))
    # EGL, for it is the faster platform for pyrender without a GPU too. Mesa may keep compiled shaders on disk.
    environment = {**os.environ, "LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYOPENGL_PLATFORM": "egl"}
    # -P: this folder has a `tokenize` of its own, which must not take the place of Python's.
    command = [str(python), "-P", multiview_peers.__file__, name, str(job), str(result), core]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(result.read_text())
    with np.load(f"{result}.npz") as pictures:
        firsts = [pictures[key] for key in pictures]
    return {path: found["load"][path] + step * found["draw"][path] for path in found["load"]}, found["failed"], firsts


def outline(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What is not background, holes and light spots filled, for materials differ."""
    drawn = (picture.min(axis=-1) < 235).astype(np.uint8)
    return cv2.morphologyEx(drawn, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0


def overlap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    a, b = outline(one), outline(other)
    return float((a & b).sum() / max((a | b).sum(), 1))


def workers_s(number: int, objects: int) -> float:
    """Seconds by the clock until `number` worker processes, a core each, have all drawn all objects."""
    cores = sorted(os.sched_getaffinity(0))[:number]
    command = [sys.executable, "-m", "uvd.benchmarks.multiview", "--objects", str(objects), "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, str(core)], **pipes) for core in cores]  # type: ignore[call-overload]
    for process in started:
        process.stdout.readline()
    start = time.perf_counter()
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.stdout.readline()
    seconds = time.perf_counter() - start
    for process in started:
        process.communicate()
    return seconds


def work(core: int, objects: Sequence[Path], cameras: Sequence[Sequence[float]]) -> None:
    """A worker of `workers_s`: says that it is ready, waits for a line, draws, says that it is done."""
    os.sched_setaffinity(0, [core])
    ours = Ours()
    ours.draw(objects[0], cameras[:1])
    print("ready", flush=True)
    sys.stdin.readline()
    for path in objects:
        ours.draw(path, cameras)
    print("done", flush=True)
    ours.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--folder", type=Path, default=None, help="objects already unpacked; fetched by default")
    parser.add_argument("--peer-cache", type=Path, default=Path.home() / ".cache/uvd/benchmarks")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/multiview.json")
    parser.add_argument("--worker", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments, console = parse(), Console(stderr=True)
    cv2.setNumThreads(1)
    quiet = Console(quiet=True) if arguments.worker is not None else console
    objects = textured_objects(arguments.objects, quiet, arguments.folder)
    cameras = [[c.azimuth, c.elevation, c.radius, c.field_of_view] for c in orbit(Seeds(0).generator("benchmark"))]
    if arguments.worker is not None:
        work(arguments.worker, objects, cameras)
        return
    found = interpreters(arguments.peer_cache, console)
    with tempfile.TemporaryDirectory() as name:
        measured = measure(arguments.rounds, objects, cameras, found, Path(name))
    report(arguments, objects, found, measured, console)


@dataclass(slots=True)
class Measured:
    """Seconds of each round by way and object, failures, overlap of outlines, and seconds of 1 and 2 workers."""

    seconds: dict[str, dict[str, list[float]]]
    failed: dict[str, dict[str, str]]
    overlap: dict[str, float]
    workers: dict[int, list[float]]


def measure(
    rounds: int,
    objects: Sequence[Path],
    cameras: Sequence[Sequence[float]],
    found: Mapping[str, tuple[Path, str]],
    folder: Path,
) -> Measured:
    ways = [name for name, way in WAYS.items() if found[way.library][0] != Path()]
    result = Measured({name: {} for name in (OURS, *ways)}, {}, {}, {1: [], 2: []})
    allowed = os.sched_getaffinity(0)
    for number in range(rounds):
        os.sched_setaffinity(0, [min(allowed)])
        ours = Ours()
        seconds, firsts = ours.run(objects, cameras)
        ours.close()
        _note(result, OURS, seconds, number, rounds)
        mine = dict(zip(seconds, firsts, strict=True))
        for name in ways:
            seconds, failed, firsts = run_peer(name, found[WAYS[name].library][0], objects, cameras, folder)
            _note(result, name, seconds, number, rounds)
            result.failed[name] = failed
            result.overlap[name] = median(
                [overlap(mine[path], first) for path, first in zip(seconds, firsts, strict=True)]
            )
        os.sched_setaffinity(0, allowed)
        for workers in result.workers:
            if len(allowed) >= workers:
                result.workers[workers].append(workers_s(workers, len(objects)))
                print(
                    f"round {number + 1}/{rounds}  workers {workers}: {result.workers[workers][-1]:.1f} s", flush=True
                )
    return result


def _note(result: Measured, way: str, seconds: Mapping[str, float], number: int, rounds: int) -> None:
    for path, value in seconds.items():
        result.seconds[way].setdefault(path, []).append(value)
    speed = VIEWS * len(seconds) / sum(seconds.values())
    print(f"round {number + 1}/{rounds}  {way}: {speed:.2f} views/s over {len(seconds)} objects", flush=True)


def report(
    arguments: argparse.Namespace,
    objects: Sequence[Path],
    found: Mapping[str, tuple[Path, str]],
    measured: Measured,
    console: Console,
) -> None:
    typical = {way: {path: median(s) for path, s in by.items()} for way, by in measured.seconds.items()}
    speeds = {way: VIEWS * len(by) / sum(by.values()) for way, by in typical.items()}
    # Over the objects that the other way drew: ours drew all.
    ratios = {
        way: sum(by.values()) / sum(typical[OURS][path] for path in by) for way, by in typical.items() if way != OURS
    }
    reached: dict[str, float] = {f"to {way}": ratio for way, ratio in ratios.items()}
    bars = {f"to {way}": {"bar": bar, "met": ratios[way] >= bar} for way, bar in BARS.items() if way in ratios}
    one, two = measured.workers.values()
    if two:
        reached["two workers to one"] = 2 * min(one) / min(two)
        bars["two workers to one"] = {
            "bar": TWO_WORKERS_BAR,
            "met": reached["two workers to one"] >= TWO_WORKERS_BAR,
        }
    content = {
        "rounds": arguments.rounds,
        "gl": f"{probe_gl().name}, {probe_gl().renderer}",
        "ways": {name: f"{way.library} {found[way.library][1]}" for name, way in WAYS.items()},
        "views_of_each_object": VIEWS,
        "drawn_by_others": {name: {"objects": way.objects, "views": way.views} for name, way in WAYS.items()},
        "objects": [path.stem for path in objects],
        "not_drawn": {way: {Path(path).stem: why for path, why in by.items()} for way, by in measured.failed.items()},
        "processor_seconds": {
            way: {Path(path).stem: values for path, values in by.items()} for way, by in measured.seconds.items()
        },
        "views_per_s": speeds,
        "overlap_of_outlines_with_ours": measured.overlap,
        "workers_wall_s": measured.workers,
        "reached": reached,
        "bars": bars,
    }
    path = write_result("multiview", content, arguments.out)
    print(f"{'way':16}{'views/s':>10}{'objects':>9}{'not drawn':>11}{'outlines':>10}{'ours is':>10}")
    for way, speed in speeds.items():
        rest = f"{measured.overlap[way]:10.3f}{ratios[way]:9.1f}x" if way != OURS else ""
        print(f"{way:16}{speed:10.2f}{len(typical[way]):9}{len(measured.failed.get(way, {})):11}{rest}")
    for name, bar in bars.items():
        console.print(f"{name}: {reached[name]:.2f} (bar {bar['bar']})", markup=False)
    console.print(f"wrote {path}", markup=False)


if __name__ == "__main__":
    main()

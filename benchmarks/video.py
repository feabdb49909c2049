"""Video: sequences of 16 frames at strides 10, 20 and 30, by the `video` source and by other ways, turn by turn.

All read the same windows of the same files with one thread: the sample packages' clips, played again where they are too
short for a window at stride 30, and one of ten minutes. Seconds are those of the processor, all processes of a way
together, so that other work on the machine counts less. Besides: whether the frames are those of plain decoding (PSNR),
and the peak memory of ours, child included, over clips of growing length.

    python -m uvd.benchmarks.video [--rounds 3] [--minutes 10]
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from uvd.benchmarks import video_peers
from uvd.benchmarks.record import median, write_result
from uvd.benchmarks.video_clips import ALL, DEFAULT, LONG, STRIDES, Job, lay_out, plan, repeat
from uvd.benchmarks.video_peers import frames_of
from uvd.pipeline.demo.packages import fetch_packages
from uvd.sequences import IMAGE_SIZE, MAX_IMAGES, Seeds, fit
from uvd.sources.video import VideoConfig, VideoSource
from uvd.sources.video_pixels import target_size

LENGTHS = (1, 4, 16, 64)
"""Of the clips that memory is measured on."""
MIN_PSNR = 30.0
OURS, SEEK, PLAIN = "uvd", "opencv", "pyav"
LIBRARIES = {"decord": ("decord==0.6.0", "opencv-python-headless"), "torchcodec": ("--no-deps", "torchcodec==0.13.0")}
"""What pip installs for each; torchcodec 0.13.0 is the last whose wheel on PyPI runs without CUDA."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way: who runs it, or why nobody does."""

    python: Path
    version: str
    environment: Mapping[str, str]
    missing: str = ""


class Ours:
    """The `video` source as one worker runs it, its checks for still and black windows included."""

    def __init__(self, folder: Path) -> None:
        # Nothing is dropped, for all ways make all sequences; the checks are made all the same.
        settings = {"strides": STRIDES, "min_motion": 0.0, "max_black_frames": MAX_IMAGES}
        self._sources = {
            number: VideoSource(
                VideoConfig(dataset="benchmark", input=str(folder), windows_per_stride=number, **settings)
            )
            for number in (ALL, DEFAULT)
        }

    def read(self, path: str, per_stride: int, sequences: video_peers.Sequences) -> list[list[int | None]]:
        """Makes all sequences of a clip; the frame numbers of each."""
        item = {"kind": "file", "origin": Path(path).name, "start_s": 0.0, "end_s": None}
        made = []
        for example in self._sources[per_stride].examples(item, 0, Seeds(0)):
            np.stack([picture.pixels for picture in example.pictures])
            sequences.made += 1
            made.append([picture.index for picture in example.pictures])
            for picture in example.pictures:
                if picture.index in sequences.sampled:
                    sequences.samples[picture.index] = picture.pixels
        return made

    def run(self, jobs: Sequence[Job]) -> tuple[dict[str, float], dict[str, NDArray[np.uint8]]]:
        """Seconds by clip, and the sampled pictures.

        Raises:
            RuntimeError: if other frames come than are wanted.
        """
        for number in self._sources:
            self.read(jobs[0].path, number, video_peers.Sequences([], []))  # starts the child
        seconds, samples = {}, {}
        for job in jobs:
            sequences = video_peers.Sequences([], job.sampled)
            start = _processor_s()
            made = self.read(job.path, job.per_stride, sequences)
            seconds[job.name] = _processor_s() - start
            if sorted(made) != sorted(list(frames_of(window)) for window in job.windows):
                raise RuntimeError(f"uvd made other windows of {job.name}")
            samples[job.name] = np.stack([sequences.samples[number] for number in job.sampled])
        return seconds, samples


def _processor_s() -> float:
    """Seconds that this process and its children have computed for."""
    # Linux makes the number of a process's clock of its id so: linux/posix-timers.h, MAKE_PROCESS_CPUCLOCK.
    children = [(~child.pid << 3) | 2 for child in psutil.Process().children()]
    return time.process_time() + sum(time.clock_gettime(clock) for clock in children)


def find_peers(cache: Path, console: Console) -> dict[str, Peer]:
    peers = {
        SEEK: Peer(Path(sys.executable), cv2.__version__, {}),
        PLAIN: Peer(Path(sys.executable), av.__version__, {}),
    }
    for library, requirements in LIBRARIES.items():
        try:
            peers[library] = _install(library, requirements, cache / library, console)
        except subprocess.CalledProcessError as error:
            last = (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
            console.print(f"without {library}: {last}", markup=False)
            peers[library] = Peer(Path(), "", {}, last)
    return peers


def _install(library: str, requirements: Sequence[str], folder: Path, console: Console) -> Peer:
    """A virtual environment with the library, which has shown that it can be imported."""
    python, packages = folder / "bin" / "python", Path(np.__file__).parents[1]
    environment: dict[str, str] = {}
    run = {"check": True, "capture_output": True, "text": True}
    if not (folder / ".complete").exists():
        console.print(f"installing {library} into {folder}", markup=False)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], **run)  # type: ignore[call-overload]
        subprocess.run([str(python), "-m", "pip", "install", *requirements], **run)  # type: ignore[call-overload]
        if library == "torchcodec":
            # It brings neither torch nor FFmpeg: it gets uvd's torch, and the FFmpeg of PyAV under its usual names.
            (folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages/uvd.pth").write_text(f"{packages}\n")
            _link_ffmpeg(packages / "av.libs", folder / "ffmpeg")
        (folder / ".complete").touch()
    if library == "torchcodec":
        environment = {"LD_LIBRARY_PATH": f"{folder / 'ffmpeg'}:{packages / 'av.libs'}"}
    code = f"import {library}, importlib.metadata as m; print(m.version({library!r}))"
    command = [str(python), "-c", code]
    said = subprocess.run(command, env=os.environ | environment, **run)  # type: ignore[call-overload]
    return Peer(python, said.stdout.strip().splitlines()[-1], environment)


def _link_ffmpeg(libraries: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for library in [*libraries.glob("libav*.so.*"), *libraries.glob("libsw*.so.*")]:
        stem, version = library.name.partition("-")[0], library.name.partition(".so.")[2]
        link = folder / f"{stem}.so.{version.partition('.')[0]}"
        link.unlink(missing_ok=True)
        link.symlink_to(library)


def run_peer(way: str, peer: Peer, jobs: Path, folder: Path) -> tuple[dict[str, float], dict[str, NDArray[np.uint8]]]:
    """As `Ours.run`, in a process of its own.

    Raises:
        RuntimeError: if it fails; with the end of its output.
    """
    result, samples = folder / f"{way}.json", folder / f"{way}.npz"
    core = str(min(os.sched_getaffinity(0)))
    # -P: this folder has a `tokenize` of its own, which must not take the place of Python's.
    command = [str(peer.python), "-P", video_peers.__file__, way, str(jobs), str(result), str(samples), core]
    environment = os.environ | peer.environment | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    with np.load(samples) as arrays:
        return json.loads(result.read_text()), dict(arrays)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the sampled pictures of a clip compare with plain decoding.

    Attributes:
        psnr: of the worst picture, in dB.
        other_frames: pictures that are clearly nearer (half the square error) to the frame before or after.
    """

    psnr: float
    other_frames: int


def reference(job: Job) -> NDArray[np.uint8]:
    """`(N, 3, 256, 256, 3)`: the sampled frames between their neighbours, all of the file decoded in order.

    At full size first, then by area to square pixels and a short side of 256, then the centre.
    """
    wanted = {near for number in job.sampled for near in (number - 1, number, number + 1)}
    pictures: dict[int, NDArray[np.uint8]] = {}
    with av.open(job.path) as container:
        stream = container.streams.video[0]
        aspect = float(stream.sample_aspect_ratio or 1)
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures[number] = _as_shown(frame.to_ndarray(format="rgb24"), aspect)
    return np.stack([[pictures.get(n + step, pictures[n]) for step in (-1, 0, 1)] for n in job.sampled])


def _as_shown(pixels: NDArray[np.uint8], aspect: float) -> NDArray[np.uint8]:
    size = target_size(pixels.shape[1], pixels.shape[0], aspect, IMAGE_SIZE)
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return fit(*size, "center_crop", None).image(pixels)


def compare(pictures: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> Agreement:
    """Pictures `(N, 256, 256, 3)` with those of `reference`."""
    error = np.square(pictures[:, None].astype(np.float32) - wanted).mean(axis=(2, 3, 4))
    psnr = 10 * np.log10(255**2 / max(float(error[:, 1].max()), 1e-5))
    return Agreement(float(psnr), int((2 * error.min(axis=1) < error[:, 1]).sum()))


def peak_mib(path: Path) -> float:
    """Peak resident memory of this process and its child, in MiB, for all windows of a clip."""
    Ours(path.parent).read(str(path), ALL, video_peers.Sequences([], []))
    process = psutil.Process()
    return sum(_high_water(pid) for pid in (process.pid, *(child.pid for child in process.children())))


def _high_water(pid: int) -> float:
    # Not ru_maxrss, which a process inherits from the one that started it.
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure_memory(clip: Path, folder: Path) -> dict[int, float]:
    peaks = {}
    for times in LENGTHS:
        path = repeat(clip, folder / f"memory{times}{clip.suffix}", times)
        command = [sys.executable, "-m", "uvd.benchmarks.video", "--memory", str(path)]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[times] = float(said.stdout)
        print(f"memory, {times} times {clip.name}: {peaks[times]:.0f} MiB", flush=True)
    return peaks


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the long clip")
    parser.add_argument("--clips", nargs="*", default=None, help="only these, by name")
    parser.add_argument("--peer-cache", type=Path, default=Path.home() / ".cache/uvd/benchmarks")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/video.json")
    parser.add_argument("--memory", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments, console = parse(), Console(stderr=True)
    cv2.setNumThreads(1)
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    if arguments.memory is not None:
        print(peak_mib(arguments.memory))
        return
    peers = find_peers(arguments.peer_cache, console)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        jobs = plan(lay_out(folder / "clips", arguments.minutes, console))
        jobs = [job for job in jobs if arguments.clips is None or job.name in arguments.clips]
        seconds, quality = measure(arguments.rounds, jobs, peers, folder)
        (folder / "memory").mkdir()
        memory = measure_memory(fetch_packages(console) / LONG, folder / "memory")
    report(arguments, jobs, peers, seconds, quality, memory, console)


def measure(
    rounds: int, jobs: Sequence[Job], peers: Mapping[str, Peer], folder: Path
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, Agreement]]]:
    """(seconds of each round by way and clip, agreement with plain decoding by way and clip)."""
    file = folder / "jobs.json"
    file.write_text(json.dumps([asdict(job) for job in jobs]))
    ours = Ours(folder / "clips")
    ways = [OURS, *(way for way, peer in peers.items() if not peer.missing)]
    seconds: dict[str, dict[str, list[float]]] = {way: {job.name: [] for job in jobs} for way in ways}
    samples: dict[str, dict[str, NDArray[np.uint8]]] = {}
    for number in range(rounds):
        for way in ways:
            taken, samples[way] = ours.run(jobs) if way == OURS else run_peer(way, peers[way], file, folder)
            for clip, value in taken.items():
                seconds[way][clip].append(value)
            print(f"round {number + 1}/{rounds}  {way}: {sum(taken.values()):.1f} s", flush=True)
    references = {job.name: reference(job) for job in jobs}
    quality = {
        way: {clip: compare(pictures, references[clip]) for clip, pictures in given.items()}
        for way, given in samples.items()
    }
    return seconds, quality


def report(
    arguments: argparse.Namespace,
    jobs: Sequence[Job],
    peers: Mapping[str, Peer],
    seconds: Mapping[str, Mapping[str, list[float]]],
    quality: Mapping[str, Mapping[str, Agreement]],
    memory: Mapping[int, float],
    console: Console,
) -> None:
    speeds = {
        way: {job.name: len(job.windows) / median(clips[job.name]) for job in jobs} for way, clips in seconds.items()
    }
    number = sum(len(job.windows) for job in jobs)
    totals = {way: number / sum(median(clips[job.name]) for job in jobs) for way, clips in seconds.items()}
    others = {way: speed for way, speed in totals.items() if way not in (OURS, SEEK)}
    reached = {
        "to a seek a frame": totals[OURS] / totals[SEEK],
        "to the best of the others": totals[OURS] / max(others.values()),
        "memory, longest to shortest": memory[max(memory)] / memory[min(memory)],
        "lowest PSNR": min(clip.psnr for clip in quality[OURS].values()),
        "other frames": sum(clip.other_frames for clip in quality[OURS].values()),
    }
    bars: dict[str, Any] = {
        "to a seek a frame": {"bar": 3.0, "met": reached["to a seek a frame"] >= 3.0},
        "to the best of the others": {"bar": 1.0, "met": reached["to the best of the others"] >= 1.0},
        "memory, longest to shortest": {"bar": 1.1, "met": reached["memory, longest to shortest"] <= 1.1},
        "lowest PSNR": {"bar": MIN_PSNR, "met": reached["lowest PSNR"] >= MIN_PSNR},
        "other frames": {"bar": 0, "met": reached["other frames"] == 0},
    }
    content = {
        "rounds": arguments.rounds,
        "ways": {way: peer.missing or peer.version for way, peer in peers.items()},
        "clips": {job.name: {"frames": job.frames, "sequences": len(job.windows)} for job in jobs},
        "seconds": seconds,
        "median_sequences_per_s": speeds,
        "total_sequences_per_s": totals,
        "agreement_with_plain_decoding": {
            way: {clip: asdict(value) for clip, value in clips.items()} for way, clips in quality.items()
        },
        "peak_mib_by_length": {f"{times}x": peak for times, peak in memory.items()},
        "reached": reached,
        "bars": bars,
    }
    path = write_result("video", content, arguments.out)
    _print_table(jobs, speeds, totals, quality)
    for name, value in reached.items():
        console.print(f"{name}: {value:.2f} (bar {bars[name]['bar']})", markup=False)
    console.print(f"wrote {path}", markup=False)


def _print_table(
    jobs: Sequence[Job],
    speeds: Mapping[str, Mapping[str, float]],
    totals: Mapping[str, float],
    quality: Mapping[str, Mapping[str, Agreement]],
) -> None:
    print(f"{'sequences/s':24}{'made':>6}" + "".join(f"{way:>12}" for way in speeds) + f"{'PSNR':>8}")
    for job in jobs:
        values = "".join(f"{clips[job.name]:12.2f}" for clips in speeds.values())
        print(f"{job.name:24}{len(job.windows):6}{values}{quality[OURS][job.name].psnr:8.1f}")
    print(f"{'total':24}{sum(len(job.windows) for job in jobs):6}" + "".join(f"{v:12.2f}" for v in totals.values()))


if __name__ == "__main__":
    main()

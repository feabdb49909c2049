"""Drawing: boxes, masks and skeletons by uvd's renderers and by other libraries, on the same annotations, by turns.

At 256x256, one core: 10 boxes over a photo, 10 masks, skeletons of 5 people. Each round has pictures of its own, so
that no way can remember a drawing; seconds are those of the processor, so that other work on the machine counts less,
and speeds and ratios are the medians of the rounds'. supervision gets a virtual environment of
its own with uvd's OpenCV; MMPose is uvd's. detectron2 is not measured: it has no package on PyPI. supervision's mask
annotator blends masks into the photo, ours colours them on black, which is what the dataset holds.

    python -m uvd.benchmarks.renderers [--rounds 7] [--pictures 100]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from uvd.benchmarks import renderer_peers
from uvd.benchmarks.record import median, write_result
from uvd.benchmarks.renderer_peers import Draw, time_a_picture, unpack_masks
from uvd.renderers.boxes import render_boxes
from uvd.renderers.pose import render_pose
from uvd.renderers.segmentation import render_instances
from uvd.sequences import IMAGE_SIZE, Seeds

OURS, SUPERVISION, MMPOSE = "uvd", "supervision", "mmpose"
PEERS = {"boxes": (SUPERVISION,), "masks": (SUPERVISION,), "skeletons": (SUPERVISION, MMPOSE)}
BARS = {"boxes": 1.5, "masks": 4.0, "skeletons": 10.0}
"""Least ratio of our pictures/s to each peer's."""
MIN_IOU = 0.9
"""Of the areas that ours and MMPose's skeletons cover."""
PASSES = {"boxes": 20, "masks": 5, "skeletons": 1}
"""Times each picture is drawn in a round; skeletons once, for ours remembers shapes of limbs."""
BOXES, MASKS, PEOPLE = 10, 10, 5
SUPERVISION_VERSION = "0.31.2"
STANDING = np.array(
    [
        *((0.0, -0.42), (0.02, -0.45), (-0.02, -0.45), (0.05, -0.43), (-0.05, -0.43)),
        *((0.12, -0.30), (-0.12, -0.30), (0.16, -0.12), (-0.16, -0.12), (0.18, 0.05), (-0.18, 0.05)),
        *((0.08, 0.02), (-0.08, 0.02), (0.09, 0.25), (-0.09, 0.25), (0.10, 0.48), (-0.10, 0.48)),
    ]
)
"""COCO's 17 keypoints of a standing person of height 1, around the middle."""


def annotate(number: int, pictures: int) -> dict[str, NDArray[Any]]:
    """`(P, 256, 256, 3)` photos with `(P, 10, 4)` boxes and classes, 10 masks as bits, and `(P, 5, 17, 3)` people."""
    rng = Seeds(0, ("renderers-benchmark",)).generator(number)
    side = IMAGE_SIZE
    photos = rng.integers(0, 256, (pictures, 16, 16, 3), dtype=np.uint8).repeat(side // 16, 1).repeat(side // 16, 2)
    sides, corners = rng.uniform(15, 120, (pictures, BOXES, 2)), rng.uniform(0, 1, (pictures, BOXES, 2))
    first = corners * (side - sides)
    masks = np.stack([[_blob(rng, side) for _ in range(MASKS)] for _ in range(pictures)])
    return {
        "photos": photos,
        "boxes": np.concatenate([first, first + sides], axis=-1),
        "classes": rng.integers(1, 81, (pictures, BOXES)),
        "masks": np.packbits(masks, axis=-1),
        "mask_boxes": np.array([[_extent(mask) for mask in of_picture] for of_picture in masks]),
        "people": np.stack([_people(rng, side) for _ in range(pictures)]),
    }


def _blob(rng: np.random.Generator, side: int) -> NDArray[np.bool_]:
    """A polygon of 12 corners around a seeded middle."""
    angles, radii = np.arange(12) * np.pi / 6, rng.uniform(12, 55) * rng.uniform(0.6, 1.0, 12)
    corners = rng.uniform(20, side - 20, 2) + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    return cv2.fillPoly(np.zeros((side, side), np.uint8), [corners.astype(np.int32)], 1).astype(np.bool_)


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _people(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    """`(5, 17, 3)`: people of 90 to 220 pixels side by side, each in a pose of its own; 1 keypoint in 10 unlabelled."""
    heights = rng.uniform(90, 220, (PEOPLE, 1, 1))
    feet = rng.uniform(0.75, 0.97, (PEOPLE, 1)) * side
    middles = np.stack([(np.arange(PEOPLE)[:, None] + rng.uniform(0.2, 0.8, (PEOPLE, 1))) * side / PEOPLE, feet], -1)
    middles[..., 1] -= 0.48 * heights[..., 0]
    places = middles + heights * (STANDING + rng.normal(0, 0.03, (PEOPLE, 17, 2)))
    labelled = rng.uniform(size=(PEOPLE, 17, 1)) > 0.1
    return np.concatenate([places, 2.0 * labelled], axis=-1)


class Ours:
    """uvd's renderers, with the methods that the peers have."""

    def boxes(self, annotations: Mapping[str, NDArray[Any]], picture: int) -> Draw:
        photo, boxes = annotations["photos"][picture], annotations["boxes"][picture]
        classes = annotations["classes"][picture]
        return lambda: render_boxes(boxes, classes, background=photo)

    def masks(self, annotations: Mapping[str, NDArray[Any]], picture: int) -> Draw:
        masks, classes = unpack_masks(annotations, picture), annotations["classes"][picture]
        return lambda: render_instances(masks, classes)

    def skeletons(self, annotations: Mapping[str, NDArray[Any]], picture: int) -> Draw:
        people = annotations["people"][picture]
        return lambda: render_pose(people)

    def drawings(self, annotations: Mapping[str, NDArray[Any]], task: str) -> list[Draw]:
        return [getattr(self, task)(annotations, picture) for picture in range(len(annotations["photos"]))]


class Peer:
    """A child process that draws when asked. Use as a context manager."""

    def __init__(self, way: str, python: Path) -> None:
        self._way = way
        # -P: this folder has a `tokenize` of its own, which must not take the place of Python's.
        command = [str(python), "-P", renderer_peers.__file__, way, str(min(os.sched_getaffinity(0)))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        cast(IO[str], self._process.stdin).close()
        self._process.wait()

    def time(self, file: Path, task: str, out: Path | None = None) -> float:
        """Seconds of the processor for a picture; all pictures go to `out` as an array, if it is given.

        Raises:
            RuntimeError: if the process ended.
        """
        job = {"file": str(file), "task": task, "passes": PASSES[task], "out": None if out is None else str(out)}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = cast(IO[str], self._process.stdout).readline()
        if not answer:
            raise RuntimeError(f"{self._way} ended with {self._process.wait()}; its output is above")
        return float(answer)


def supervision_python(cache: Path, console: Console) -> Path:
    """The interpreter of supervision's own environment, made if it is not there."""
    folder = cache / f"supervision-{SUPERVISION_VERSION}"
    python = folder / "bin" / "python"
    if not (folder / ".complete").exists():
        console.print(f"installing supervision {SUPERVISION_VERSION} into {folder}", markup=False)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        wanted = [f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "opencv-python-headless")]
        install = [str(python), "-m", "pip", "install", "--quiet", f"supervision=={SUPERVISION_VERSION}", *wanted]
        subprocess.run(install, check=True)
        (folder / ".complete").touch()
    return python


def measure(
    rounds: int, pictures: int, peers: Mapping[str, Peer], folder: Path
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Seconds a picture by task, way and round, and the lowest IoU of ours and MMPose's skeletons."""
    ours = Ours()
    seconds: dict[str, dict[str, list[float]]] = {task: {way: [] for way in (OURS, *PEERS[task])} for task in PEERS}
    lowest = 1.0
    for number in range(rounds + 1):
        annotations, file = annotate(number, pictures), folder / "annotations.npz"
        np.savez(file, **annotations)  # type: ignore[arg-type]
        for task, names in PEERS.items():
            drawings = ours.drawings(annotations, task)
            taken = {OURS: time_a_picture(drawings, PASSES[task])}
            for name in names:
                out = folder / "pictures.npz" if name == MMPOSE else None
                taken[name] = peers[name].time(file, task, out)
                if out is not None:
                    lowest = min(lowest, _lowest_iou([draw() for draw in drawings], out))
            if number == 0:  # first uses are nobody's speed
                continue
            for way, value in taken.items():
                seconds[task][way].append(value)
            print(f"round {number}/{rounds}  {task}: {_speeds(taken)}", flush=True)
    return seconds, lowest


def _speeds(taken: Mapping[str, float]) -> str:
    return ", ".join(f"{way} {1 / value:,.0f}/s" for way, value in taken.items())


def _lowest_iou(pictures: Sequence[NDArray[np.uint8]], file: Path) -> float:
    with np.load(file) as arrays:
        theirs = arrays["pictures"].any(axis=-1)
    ours = np.stack(pictures).any(axis=-1)
    return float(((ours & theirs).sum(axis=(1, 2)) / (ours | theirs).sum(axis=(1, 2))).min())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=100, help="in a round")
    parser.add_argument("--peer-cache", type=Path, default=Path.home() / ".cache/uvd/benchmarks")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/renderers.json")
    return parser.parse_args()


def main() -> None:
    arguments, console = parse(), Console(stderr=True)
    cv2.setNumThreads(1)
    pythons = {SUPERVISION: supervision_python(arguments.peer_cache, console), MMPOSE: Path(sys.executable)}
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        peers = {way: stack.enter_context(Peer(way, python)) for way, python in pythons.items()}
        seconds, lowest = measure(arguments.rounds, arguments.pictures, peers, Path(name))
    report(arguments, seconds, lowest, console)


def report(
    arguments: argparse.Namespace,
    seconds: Mapping[str, Mapping[str, list[float]]],
    lowest: float,
    console: Console,
) -> None:
    speeds = {task: {way: 1 / median(values) for way, values in ways.items()} for task, ways in seconds.items()}
    bars: dict[str, Any] = {}
    print(f"{'pictures/s':12}" + "".join(f"{way:>14}" for way in (OURS, SUPERVISION, MMPOSE)))
    for task, ways in speeds.items():
        print(f"{task:12}" + "".join(f"{ways[way]:14,.0f}" for way in ways))
        for peer in PEERS[task]:
            ratio = median(
                [theirs / ours for ours, theirs in zip(seconds[task][OURS], seconds[task][peer], strict=True)]
            )
            bars[f"{task} to {peer}"] = {"reached": ratio, "bar": BARS[task], "met": ratio >= BARS[task]}
    bars["IoU with mmpose"] = {"reached": lowest, "bar": MIN_IOU, "met": lowest >= MIN_IOU}
    content = {
        "ways": {
            SUPERVISION: SUPERVISION_VERSION,
            MMPOSE: importlib.metadata.version(MMPOSE),
            "opencv": cv2.__version__,
        },
        "rounds": arguments.rounds,
        "pictures_a_round": arguments.pictures,
        "seconds_a_picture": seconds,
        "median_pictures_per_s": speeds,
        "bars": bars,
    }
    path = write_result("renderers", content, arguments.out)
    for name, bar in bars.items():
        said = "met" if bar["met"] else "missed"
        console.print(f"{name}: {bar['reached']:.2f} (bar {bar['bar']}, {said})", markup=False)
    console.print(f"wrote {path}", markup=False)


if __name__ == "__main__":
    main()

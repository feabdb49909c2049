"""Other ways to read windows of frames, one process a way; run by the interpreter that has the library, without uvd.

`opencv`: a seek for each frame, as LVM's script. `pyav`: every frame in order. `decord`, `torchcodec`: the frames of a
clip by their numbers. All but `opencv` read a frame once, however many windows hold it, and give up pictures once no
window needs them. Each way has one thread and one core.

    python -P video_peers.py WAY JOBS.json RESULT.json SAMPLES.npz CORE
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 256
FRAMES_A_CALL = 32
"""Of decord and torchcodec, which return full-size frames in one array: 200 MB at 1080p."""

Window = tuple[int, int, int]
"""First frame, stride, number of frames."""
Pixels = NDArray[np.uint8]


def square(pixels: Pixels) -> Pixels:
    """Centre square of `(H, W, 3)`, by area to 256x256, or bicubic where it is smaller."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    method = cv2.INTER_AREA if side >= SIDE else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(pixels[y : y + side, x : x + side], (SIDE, SIDE), interpolation=method))


def frames_of(window: Window) -> range:
    start, stride, count = window
    return range(start, start + stride * count, stride)


class Sequences:
    """Puts pictures that come in order into `(16, 256, 256, 3)` sequences, and keeps some for the comparison.

    Attributes:
        sampled: numbers of the frames to keep.
        made: sequences so far.
        samples: pictures by number, as the way gave them.
    """

    def __init__(self, windows: Sequence[Window], sampled: Iterable[int]) -> None:
        self._open = sorted(windows, key=lambda window: frames_of(window)[-1])
        self._pictures: dict[int, Pixels] = {}
        self.sampled = frozenset(sampled)
        self.made = 0
        self.samples: dict[int, Pixels] = {}

    def add(self, number: int, picture: Pixels) -> None:
        self._pictures[number] = picture
        if number in self.sampled:
            self.samples[number] = picture
        while self._open and frames_of(self._open[0])[-1] <= number:
            self._finish(self._open.pop(0))

    def _finish(self, window: Window) -> None:
        np.stack([self._pictures[number] for number in frames_of(window)])
        self.made += 1
        first = min((start for start, _, _ in self._open), default=sys.maxsize)
        for number in [number for number in self._pictures if number < first]:
            del self._pictures[number]


def opencv(path: str, windows: Sequence[Window], sequences: Sequences) -> None:
    """A window after the other, and for each frame of it a seek, a decode at full size and a resize."""
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not video.isOpened():
        raise RuntimeError(f"OpenCV cannot open {path}")
    for window in windows:
        alone = Sequences([window], sequences.sampled)
        for number in frames_of(window):
            video.set(cv2.CAP_PROP_POS_FRAMES, number)
            read, pixels = video.read()
            if not read:
                raise RuntimeError(f"OpenCV gives no frame {number} of {path}")
            alone.add(number, square(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
        sequences.made += alone.made
        sequences.samples.update(alone.samples)
    video.release()


def pyav(path: str, windows: Sequence[Window], sequences: Sequences) -> None:
    """All frames up to the last that is wanted; those that are wanted at full size, then a resize."""
    import av

    wanted = set(wanted_of(windows))
    last = max(wanted)
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                sequences.add(number, square(frame.to_ndarray(format="rgb24")))
            if number == last:
                return


def decord(path: str, windows: Sequence[Window], sequences: Sequences) -> None:
    """decord scales while it converts, which is the faster of its ways."""
    import decord as library  # type: ignore[import-not-found]

    width, height = scaled(*_size(path))
    reader = library.VideoReader(path, ctx=library.cpu(0), width=width, height=height, num_threads=1)
    for numbers in batches(wanted_of(windows)):
        for number, pixels in zip(numbers, reader.get_batch(numbers).asnumpy(), strict=True):
            sequences.add(number, square(pixels))


def torchcodec(path: str, windows: Sequence[Window], sequences: Sequences) -> None:
    """The default: an exact index of the file first; frames at full size, then a resize."""
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
    for numbers in batches(wanted_of(windows)):
        for number, pixels in zip(numbers, decoder.get_frames_at(numbers).data.numpy(), strict=True):
            sequences.add(number, square(pixels))


def wanted_of(windows: Sequence[Window]) -> list[int]:
    return sorted({number for window in windows for number in frames_of(window)})


def batches(numbers: Sequence[int]) -> Iterator[list[int]]:
    for begin in range(0, len(numbers), FRAMES_A_CALL):
        yield list(numbers[begin : begin + FRAMES_A_CALL])


def scaled(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / min(width, height))
    return round(width * scale), round(height * scale)


def _size(path: str) -> tuple[int, int]:
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    video.release()
    return size


WAYS: Mapping[str, Callable[[str, Sequence[Window], Sequences], None]] = {
    "opencv": opencv,
    "pyav": pyav,
    "decord": decord,
    "torchcodec": torchcodec,
}


def main(way: str, jobs_file: str, result_file: str, samples_file: str, core: str) -> None:
    os.sched_setaffinity(0, [int(core)])
    cv2.setNumThreads(1)
    with open(jobs_file) as file:
        jobs: list[dict[str, Any]] = json.load(file)
    _warm_up(way, jobs)
    seconds: dict[str, float] = {}
    samples: dict[str, Pixels] = {}
    for job in jobs:
        sequences = Sequences(job["windows"], job["sampled"])
        start = time.process_time()
        WAYS[way](job["path"], job["windows"], sequences)
        seconds[job["name"]] = time.process_time() - start
        if sequences.made != len(job["windows"]):
            raise RuntimeError(f"{way} made {sequences.made} of {len(job['windows'])} sequences of {job['name']}")
        samples[job["name"]] = np.stack([sequences.samples[number] for number in job["sampled"]])
    np.savez(samples_file, **samples)  # type: ignore[arg-type]
    with open(result_file, "w") as file:
        json.dump(seconds, file)


def _warm_up(way: str, jobs: Sequence[Mapping[str, Any]]) -> None:
    """The imports and the first use of the library, which are nobody's speed."""
    job = min(jobs, key=lambda job: len(job["windows"]))
    WAYS[way](job["path"], job["windows"][:1], Sequences(job["windows"][:1], []))


if __name__ == "__main__":
    main(*sys.argv[1:])

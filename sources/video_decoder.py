"""Decoding videos that nobody trusts: in a child process with limits, frames over a pipe.

A file that crashes, hangs or floods the decoder is rejected; the next one gets a new child. See `video_stream` for how
frames are found and `isolation` for the limits. The pipe costs about 0.3 ms a frame of 256x256.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.isolation import IsolatedProcess

HANDLER = "uvd.sources.video_child:handle"
FULL_SIZE = 1 << 16
"""A short side that no frame has: nothing is scaled."""


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Limits of the child, for each request: an index, or up to 8 MiB of frames."""

    timeout_s: float = 120.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """The frames of a video, or of a stretch of it, as they are shown.

    Attributes:
        times_s: `(N,)` float64, increasing; seconds from the start of the stream.
        stamps: `(N,)` int64, how the file names them.
        keys: `(K,)` int64 stamps of keyframes, the last one before a stretch included.
        counted: the file has no usable timestamps: stamps are numbers, and it is read from its start.
        first: number of the first frame in the whole video; by the average rate if the stretch begins later.
        lacking: frames that a cut file announces and does not have.
    """

    times_s: NDArray[np.float64]
    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]
    counted: bool
    first: int
    lacking: int = 0

    def __len__(self) -> int:
        return len(self.times_s)

    def at(self, time_s: float) -> int | None:
        """Place of the frame that is on screen at a time, give or take half a frame; None if there is none."""
        if not len(self) or time_s < 0:
            return None
        step = float(np.median(np.diff(self.times_s))) if len(self) > 1 else 0.04
        place = int(np.searchsorted(self.times_s, time_s + step / 2, side="right")) - 1
        return place if place >= 0 and time_s < self.times_s[-1] + 2 * step else None


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One frame as it is shown: upright, square pixels, 8-bit RGB.

    Attributes:
        index: its number in the video, in the order of time, from 0.
        place: its place in the index that it was asked for by.
        time_s: seconds from the start of the stream.
        pixels: `(H, W, 3)` uint8, scaled down to the short side that was asked for, never enlarged.
        size: (width, height) of the video's own frames.
    """

    index: int
    place: int
    time_s: float
    pixels: NDArray[np.uint8]
    size: tuple[int, int]


class VideoDecoder:
    """Reads video files; a context manager, for one thread. The child starts with the first request (0.5 s)."""

    def __init__(self, limits: VideoLimits | None = None) -> None:
        limits = limits or VideoLimits()
        self._child = IsolatedProcess(HANDLER, timeout_s=limits.timeout_s, memory_bytes=limits.memory_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child; another request would start another."""
        self._child.close()

    def duration_s(self, path: Path) -> float:
        """Seconds that a file says it has; 0 if it does not say.

        Raises:
            RejectedInput: not a video, or too much for the limits.
        """
        return float(self._ask(path, {"operation": "duration"})[0]["seconds"])

    def index(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> FrameIndex:
        """The frames that are shown from `start_s` to before `end_s`, without decoding.

        Raises:
            RejectedInput: not a video, or too much for the limits.
        """
        said, (times, stamps, keys) = self._ask(path, {"operation": "index", "start_s": start_s, "end_s": end_s})
        return FrameIndex(times, stamps, keys, bool(said["counted"]), int(said["first"]), int(said["lacking"]))

    def frames(
        self, path: Path, places: Sequence[int], index: FrameIndex, short_side: int, square: bool = False
    ) -> Iterator[DecodedFrame]:
        """Decodes some frames of an index, about in order; those that cannot be decoded do not come.

        Args:
            places: of the frames in the index, increasing.
            short_side: pixels; larger frames are averaged down to it.
            square: only the centred square of each.

        Raises:
            RejectedInput: not a video, or too much for the limits.
        """
        request = {"operation": "frames", "wanted": _wanted(index, places), "short_side": short_side, "square": square}
        given, more = 0, bool(len(places))
        while more:
            said, pictures = self._ask(path, {**request, "begin": given})
            for number, size, pixels in zip(said["places"], said["sizes"], pictures, strict=True):
                place = places[number]
                time_s = float(index.times_s[place])
                yield DecodedFrame(index.first + place, place, time_s, pixels, (size[0], size[1]))
            given += len(pictures)
            more = bool(said["more"])

    def cuts(self, path: Path, index: FrameIndex, threshold: float) -> list[int]:
        """Places of the frames at which a new scene begins; decodes everything.

        Raises:
            RejectedInput: not a video, or too much for the limits.
        """
        request = {"operation": "cuts", "wanted": _wanted(index, range(len(index))), "threshold": threshold}
        return [int(place) for place in self._ask(path, request)[0]["cuts"]]

    def _ask(self, path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        if not path.is_file():
            raise RejectedInput(Reason.MISSING, "no such file")
        return self._child.call({**request, "path": str(path)})


def _wanted(index: FrameIndex, places: Sequence[int]) -> dict[str, Any]:
    """The fields of `video_stream.Wanted`."""
    return {
        "stamps": index.stamps[np.asarray(places, np.int64)].tolist(),
        "keys": index.keys.tolist(),
        "key_numbers": np.searchsorted(index.stamps, index.keys).tolist(),
        "counted": index.counted,
    }


def read_frames(
    path: Path, numbers: Sequence[int], short_side: int = FULL_SIZE
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(number, `(H, W, 3)` uint8 RGB) of some frames of one file; numbers beyond its end give none.

    Raises:
        RejectedInput: not a video, or too much for the limits.
    """
    with VideoDecoder() as decoder:
        index = decoder.index(path)
        places = [number for number in numbers if number < len(index)]
        for frame in decoder.frames(path, places, index, short_side):
            yield frame.place, frame.pixels

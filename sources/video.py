"""`video`: unlabelled clips → windows of 16 frames at strides 10, 20 and 30 (LVM paper, section 3.1), through PyAV.

One sequential pass decodes a clip and keeps only the frames that some window wants, already resized: memory is bounded
by the number of windows, not by the length of the clip. Packets are counted first (no decoding) to place the windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from pydantic import Field

from uvd.sequences import MAX_IMAGES, Example, Picture, Reason, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig
from uvd.sources.decode import input_files

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv"})
MAX_FRAME_PIXELS = 7680 * 4320
OPEN_OPTIONS = {
    # No playlists (concat, HLS, DASH), which name other files and addresses.
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg",
    "protocol_whitelist": "file",
}


class VideoConfig(SourceConfig):
    """Settings of the `video` source."""

    source: Literal["video"] = "video"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder, searched recursively for video files."""
    strides: tuple[int, ...] = (10, 20, 30)
    """Frames between two pictures of a sequence; each stride gives windows of its own."""
    windows_per_stride: int = Field(4, ge=1, le=1000)
    """Windows of one clip at one stride: end to end, then thinned to this many by the seed."""
    min_frames: int = Field(MAX_IMAGES, ge=2, le=MAX_IMAGES)
    """A clip too short for 16 frames at a stride gives one window of at least this many, or none."""
    layouts: dict[str, float] = {"frames": 1.0}
    shard_size: int = Field(50, ge=1, le=100_000)
    """Clips a shard."""
    max_bytes: int = Field(4 << 30, ge=1)


@dataclass(frozen=True, slots=True)
class Window:
    """The frames of one sequence: `count` frames from `start`, `stride` apart."""

    start: int
    stride: int
    count: int

    @property
    def frames(self) -> range:
        return range(self.start, self.start + self.stride * self.count, self.stride)


def place_windows(
    num_frames: int, strides: tuple[int, ...], per_stride: int, min_frames: int, seeds: Seeds
) -> list[Window]:
    """Windows of 16 frames end to end for each stride, thinned by the seed to at most `per_stride`.

    A clip that is too short for 16 frames at a stride gives one window with as many as fit, if these are at least
    `min_frames`.
    """
    windows = []
    for stride in strides:
        fit = (num_frames - 1) // stride + 1 if num_frames else 0
        count = min(MAX_IMAGES, fit)
        if count < min_frames:
            continue
        starts = range(0, num_frames - stride * (count - 1), stride * count)
        chosen = np.arange(len(starts))
        if len(starts) > per_stride:
            chosen = np.sort(seeds.generator("windows", stride).choice(len(starts), per_stride, replace=False))
        windows += [Window(starts[int(index)], stride, count) for index in chosen]
    return windows


class VideoSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = VideoConfig
    config: VideoConfig

    def items(self) -> Iterator[Item]:
        for origin, size in input_files(self.config.input, VIDEO_SUFFIXES, "videos"):
            yield {"origin": origin, "bytes": size}

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        config, origin = self.config, item["origin"]
        if item["bytes"] > config.max_bytes:
            raise RejectedInput(Reason.TOO_LARGE, f"{item['bytes']} bytes, over {config.max_bytes}")
        path = config.input / origin
        if not path.is_file():
            raise RejectedInput(Reason.MISSING, "no such file")
        with self.stages("probe"):
            num_frames = count_packets(path)
        windows = place_windows(num_frames, config.strides, config.windows_per_stride, config.min_frames, seeds)
        if not windows:
            raise RejectedInput(
                Reason.TOO_SHORT, f"{num_frames} frames, under {config.min_frames} at stride {min(config.strides)}"
            )
        wanted = sorted({number for window in windows for number in window.frames})
        with self.stages("decode"):
            pictures = dict(self._pictures(path, origin, wanted, seeds))
        yield from self._windows(windows, pictures, index, origin)

    def _windows(
        self, windows: list[Window], pictures: dict[int, Picture], index: int, origin: str
    ) -> Iterator[Example]:
        split = self.split(origin)
        missing = 0
        for window in windows:
            if all(number in pictures for number in window.frames):
                frames = tuple(pictures[number] for number in window.frames)
                yield Example((index,), self.config.dataset, split, frames, group=origin)
            else:
                missing += 1
        if missing:
            raise RejectedInput(Reason.TRUNCATED, f"{missing} of {len(windows)} windows lie beyond the last good frame")

    def _pictures(self, path: Path, origin: str, wanted: list[int], seeds: Seeds) -> Iterator[tuple[int, Picture]]:
        transform = None
        for number, pixels in decode_frames(path, wanted):
            size = (pixels.shape[1], pixels.shape[0])
            if transform is None:
                first, transform = size, self.transform(*size, seeds)
            if size != first:
                raise RejectedInput(Reason.NOT_VIDEO, f"frame {number} is {size}, the first was {first}")
            yield number, Picture("frame", transform.image(pixels), origin, size, number)


def count_packets(path: Path) -> int:
    """Video packets in a file: its number of frames, up to a damaged tail; reads without decoding.

    Raises:
        RejectedInput: not a video, or no video stream.
    """
    count = 0
    try:
        with av.open(str(path), options=OPEN_OPTIONS, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise RejectedInput(Reason.NOT_VIDEO, "no video stream")
            for packet in container.demux(video=0):
                count += packet.size > 0
    except FFmpegError as error:
        if not count:
            raise RejectedInput(Reason.NOT_VIDEO, _short(error)) from error
    return count


def decode_frames(path: Path, wanted: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decodes in order and yields (frame number, `(H, W, 3)` uint8 RGB, upright) of the `wanted` frames only.

    A decoder error ends the iteration: what was decoded before it is good.

    Raises:
        RejectedInput: if the frames are too large.
    """
    remaining = iter(wanted)
    target = next(remaining, None)
    try:
        with av.open(str(path), options=OPEN_OPTIONS, metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            _check_pixels(stream.codec_context.width, stream.codec_context.height)
            for number, frame in enumerate(container.decode(stream)):
                if target is None:
                    return
                if number < target:
                    continue
                _check_pixels(frame.width, frame.height)
                yield number, _upright(frame)
                target = next(remaining, None)
    except FFmpegError:
        # The caller sees which frames are missing and accounts for the windows that needed them.
        return


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise RejectedInput(Reason.BOMB, f"frames of {width}x{height}, over {MAX_FRAME_PIXELS} pixels")


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The frame as RGB, turned by the rotation that the container announces (degrees, counter-clockwise)."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _short(error: FFmpegError) -> str:
    """The library's message without the file's path, which is not part of the data."""
    return str(error.strerror)[:200]

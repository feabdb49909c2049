"""Reading a video file with PyAV: which frames there are, and some of them as RGB. Runs in a child process.

Frames are found by their presentation timestamps, which survive seeking, B-frames and variable rates; a file without
usable timestamps is read from its start and counted. Packets whose frame nobody wants are given to the decoder with
`skip_frame=NONREF` (it drops what no other frame refers to), and stretches without a wanted frame are jumped over from
keyframe to keyframe. Only wanted frames are converted (`video_pixels`).
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.video_pixels import Size, check_pixels, pixel_aspect, target_size, to_rgb

OPEN_OPTIONS = {
    # No playlists (concat, HLS, DASH), which name other files and addresses.
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg",
    "protocol_whitelist": "file",
}
MAX_FRAMES = 10_000_000
"""Of one index: 46 hours at 60 frames a second, 240 MB."""
TOLERATED_SHARE = 0.02
"""Of the announced frames: some containers count a few that are never shown."""
REFRESH_S = 10.0
"""After this long a stream whose keyframes are no complete pictures has been renewed."""
_NEVER = 1 << 62
SEEK_FRAMES = 12
"""A seek costs about as much as decoding this many frames, so shorter stretches are decoded and dropped."""
logging.getLogger("libav").setLevel(logging.CRITICAL)  # what is wrong with a file goes into its reject


@dataclass(frozen=True, slots=True)
class StreamIndex:
    """The frames of a video, or of a stretch of it, in the order in which they are shown.

    Attributes:
        times_s: `(N,)` float64, increasing; seconds from the start of the stream.
        stamps: `(N,)` int64, what `decode_stamps` takes: presentation timestamps, or plain numbers if `counted`.
        keys: `(K,)` int64 timestamps of the keyframes among them and of the last one before; empty if `counted`.
        counted: the file has no usable timestamps.
        first: number in the whole video of the first frame; by the average rate if the stretch begins later.
        lacking: frames that the file announces and does not have, if they are more than one in 50: it was cut.
    """

    times_s: NDArray[np.float64]
    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]
    counted: bool
    first: int
    lacking: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Frames to decode: `stamps`, increasing, and what an index of the same file says of its keyframes.

    Attributes:
        key_numbers: of each keyframe, how many frames of the index come before it.
    """

    stamps: Sequence[int]
    keys: Sequence[int]
    key_numbers: Sequence[int]
    counted: bool


@contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream) of a local file.

    Raises:
        RejectedInput: not a video, no video stream, frames too large.
    """
    try:
        container = av.open(path, options=OPEN_OPTIONS, metadata_errors="ignore")
    except (FFmpegError, ValueError, UnicodeError) as error:
        raise RejectedInput(Reason.NOT_VIDEO, short(error)) from error
    with container:
        stream = next((s for s in container.streams.video if not s.disposition & s.disposition.attached_pic), None)
        if stream is None or stream.codec_context is None:
            raise RejectedInput(Reason.NOT_VIDEO, "no video stream")
        check_pixels(stream.codec_context.width, stream.codec_context.height)
        stream.thread_type = "NONE"  # one shard is one single-threaded task
        yield container, stream


def duration_s(path: str) -> float:
    """Seconds that the container announces; 0 if it does not.

    Raises:
        RejectedInput: as `open_video`.
    """
    with open_video(path) as (container, stream):
        if stream.duration:
            return float(stream.duration * stream.time_base)
        return container.duration / av.time_base if container.duration else 0.0


def read_index(path: str, start_s: float = 0.0, end_s: float | None = None) -> StreamIndex:
    """Lists frames from their packets, without decoding; reads no more of the file than the stretch.

    Args:
        start_s: frames shown from here on; seconds from the start of the stream.
        end_s: and before this; None for all.

    Raises:
        RejectedInput: as `open_video`, or no frame at all could be read.
    """
    with open_video(path) as (container, stream):
        stretch = _Stretch(stream, start_s, end_s)
        # AVI holds no times at which frames are shown: with B-frames they are guesses.
        guessed = container.format.name == "avi" and stream.codec_context.has_b_frames
        found = None if guessed else _stamps(container, stream, stretch)
        if found is None:
            return _counted(path, stream, stretch)
        stamps, keys = found
        times: NDArray[np.float64] = (stamps - stretch.origin) * np.float64(stream.time_base)
        first = round(float(times[0]) * stretch.rate) if len(times) and start_s > 0 else 0
        whole = start_s <= 0 and end_s is None
        return StreamIndex(times, stamps, keys, False, first, _lacking(stream, len(stamps)) if whole else 0)


def _lacking(stream: Any, found: int) -> int:
    lacking = int(stream.frames) - found
    return lacking if lacking > TOLERATED_SHARE * stream.frames else 0


class _Stretch:
    """A stretch of a stream in seconds and in its own time base."""

    def __init__(self, stream: Any, start_s: float, end_s: float | None) -> None:
        self.origin = int(stream.start_time or 0)
        self.rate = float(stream.average_rate or stream.guessed_rate or 25)
        self.start_s, self.end_s = start_s, end_s
        base = float(stream.time_base)
        self.start = self.origin + round(start_s / base)
        self.end = None if end_s is None else self.origin + round(end_s / base)


_Found = tuple[NDArray[np.int64], NDArray[np.int64]]


def _stamps(container: Any, stream: Any, stretch: _Stretch) -> _Found | None:
    """Timestamps of all frames and of keyframes, sorted; None if some are missing or the same."""
    if stretch.start_s <= 0:
        return _demuxed(container, stream, stretch)
    for back_s in (0.0, 2.0, 10.0, np.inf):
        begin = max(stretch.start_s - back_s, 0.0)
        container.seek(stretch.origin + int(begin / stream.time_base), stream=stream, backward=True)
        found = _demuxed(container, stream, stretch)
        # Not every container seeks to keyframes; decoding has to begin at one.
        if found is None or begin == 0 or (len(found[1]) and found[1][0] <= stretch.start):
            return found
    raise AssertionError("the last attempt begins at the start")


def _demuxed(container: Any, stream: Any, stretch: _Stretch) -> _Found | None:
    """`_stamps` from where the container stands."""
    stamps: list[int] = []
    keys: list[int] = []
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            if stretch.end is not None and (packet.dts if packet.dts is not None else packet.pts) >= stretch.end:
                break
            if packet.is_corrupt:
                continue
            if packet.is_keyframe:
                keys.append(packet.pts)
            if packet.pts >= stretch.start and (stretch.end is None or packet.pts < stretch.end):
                stamps.append(packet.pts)
            if len(stamps) > MAX_FRAMES:
                raise RejectedInput(Reason.TOO_LARGE, f"over {MAX_FRAMES} frames")
    except FFmpegError as error:
        if not stamps:
            raise RejectedInput(Reason.NOT_VIDEO, short(error)) from error
        # A damaged tail: the frames before it are there, and the decoder has the last word on them.
    found = np.unique(np.array(stamps, np.int64))
    return (found, np.unique(np.array(keys, np.int64))) if len(found) == len(stamps) else None


def _counted(path: str, stream: Any, stretch: _Stretch) -> StreamIndex:
    """The index of a file whose timestamps are of no use: its packets, at its average rate."""
    count = 0
    with open_video(path) as (container, again):
        try:
            for packet in container.demux(again):
                count += packet.size > 0
                if count > MAX_FRAMES:
                    raise RejectedInput(Reason.TOO_LARGE, f"over {MAX_FRAMES} frames")
        except FFmpegError as error:
            if not count:
                raise RejectedInput(Reason.NOT_VIDEO, short(error)) from error
    times = np.arange(count) / stretch.rate
    end_s = np.inf if stretch.end_s is None else stretch.end_s
    inside = np.flatnonzero((times >= stretch.start_s) & (times < end_s))
    first = int(inside[0]) if len(inside) else 0
    return StreamIndex(times[inside], inside.astype(np.int64), np.empty(0, np.int64), True, first)


def decode_frames(path: str, wanted: Wanted, short_side: int) -> Iterator[tuple[int, Size, NDArray[np.uint8]]]:
    """Decodes frames and yields (place in `wanted`, full size as shown, pixels as `to_rgb` gives them).

    They come in order but for those that needed a second attempt. Frames that cannot be decoded are left out: an error
    of the decoder ends one packet, one of the container the file.

    Raises:
        RejectedInput: as `open_video`.
    """
    with open_video(path) as (container, stream):
        aspect = pixel_aspect(stream)
        found = (
            _decode_counted(container, stream, wanted.stamps)
            if wanted.counted
            else _Walk(container, stream, wanted).frames()
        )
        for place, frame in found:
            width, height = target_size(frame.width, frame.height, aspect, max(frame.width, frame.height))
            size = (height, width) if round(frame.rotation / 90) % 2 else (width, height)
            yield place, size, to_rgb(frame, short_side, aspect)


def _decode_counted(container: Any, stream: Any, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    places = {number: place for place, number in enumerate(numbers)}
    number, last = 0, max(numbers, default=-1)
    for packet in chain(_packets(container, stream), [None]):
        frames, damaged = _decode(stream, packet)
        for frame in frames:
            if frame.is_corrupt:
                return
            if number in places:
                yield places[number], frame
            number += 1
        if number > last or damaged:
            return  # behind damage nobody can count


class _Walk:
    """One pass over a file, a group of pictures at a time: only those that hold a wanted frame are decoded."""

    def __init__(self, container: Any, stream: Any, wanted: Wanted) -> None:
        self._container, self._stream, self._wanted = container, stream, wanted
        self._places = {stamp: place for place, stamp in enumerate(wanted.stamps)}
        self._packets = _packets(container, stream)
        # Before `skip_frame` is set: the AV1 decoder takes what it is at its opening for good.
        stream.codec_context.open(strict=False)
        self._intact_from = _NEVER
        """Stamp of the keyframe from which on frames are whole."""
        self._at = -1
        """Place among the keyframes of the last one that was read."""

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        left = set(self._wanted.stamps)
        for key, group in groupby(self._wanted.stamps, lambda stamp: bisect_right(self._wanted.keys, stamp) - 1):
            stamps = set(group)
            for place, frame in self._group(max(key, 0), stamps):
                left.discard(self._wanted.stamps[place])
                yield place, frame
            if stamps & left:
                # A damaged file, or one whose keyframes are no places to begin at (a gradual refresh).
                yield from self._straight({stamp for stamp in left if stamp >= min(stamps)})
                return

    def _group(self, key: int, stamps: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes from a keyframe until all packets of `stamps` have been fed, and what the decoder then holds."""
        unfed, end, passed = set(stamps), max(stamps), 0
        self._intact_from = _NEVER
        for packet in self._from_key(key):
            if packet.is_keyframe and packet.pts is not None:
                # Frames shown before a keyframe may be stored behind it, but not behind the one after.
                passed += packet.pts > end
                if passed == 2:
                    self._packets = chain([packet], self._packets)
                    break
                self._at = bisect_right(self._wanted.keys, packet.pts) - 1
            yield from self._fed(packet, stamps)
            unfed.discard(packet.pts)
            if not unfed:
                break
        yield from self._drained(stamps)

    def _straight(self, stamps: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes from some seconds before to the last of `stamps`, without leaving anything out."""
        begin = min(stamps) - int(REFRESH_S / self._stream.time_base)
        self._container.seek(max(begin, int(self._stream.start_time or 0)), stream=self._stream, backward=True)
        left = set(stamps)
        self._intact_from = _NEVER
        for packet in _packets(self._container, self._stream):
            for place, frame in self._fed(packet, left):
                left.discard(frame.pts)
                yield place, frame
            if not left:
                return
        yield from self._drained(left)

    def _fed(self, packet: Any, stamps: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames of `stamps` that a packet brings; none from damage on until the next keyframe.

        FFmpeg conceals damage with what lay there before, and all frames that refer to it inherit that.
        """
        if self._intact_from == _NEVER and packet.is_keyframe and packet.pts is not None:
            self._intact_from = packet.pts
        self._stream.codec_context.skip_frame = "DEFAULT" if packet.pts in stamps else "NONREF"
        frames, damaged = _decode(self._stream, packet)
        yield from self._intact(frames, stamps)
        # Frames stored behind the first keyframe and shown before it lack what they refer to: no damage.
        if damaged and (packet.pts is None or packet.pts >= self._intact_from):
            self._intact_from = _NEVER

    def _drained(self, stamps: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        yield from self._intact(_decode(self._stream, None)[0], stamps)
        self._stream.codec_context.flush_buffers()

    def _intact(self, frames: list[av.VideoFrame], stamps: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in frames:
            if frame.pts is None:
                continue
            if frame.pts >= self._intact_from and frame.is_corrupt:
                self._intact_from = _NEVER
            if frame.pts >= self._intact_from and frame.pts in stamps:
                yield self._places[frame.pts], frame

    def _from_key(self, key: int) -> Iterator[Any]:
        """Packets from a keyframe on, reached by reading or by seeking, whatever is cheaper."""
        keys, numbers = self._wanted.keys, self._wanted.key_numbers
        if not keys:
            yield from self._packets
            return
        behind = self._at >= key
        far = not behind and numbers[key] - numbers[max(self._at, 0)] > SEEK_FRAMES
        self._at = key
        for back in (0, 1, 8, key) if behind or far else (None, 0, 1, 8, key):
            if back is not None:
                self._container.seek(keys[max(0, key - back)], stream=self._stream, backward=True)
                self._packets = _packets(self._container, self._stream)
            first = self._skip_to(keys[key])
            if first is not None:
                yield from chain([first], self._packets)
                return

    def _skip_to(self, stamp: int) -> Any | None:
        """The packet of a keyframe; None if the file is beyond it, because its seek table is wrong."""
        for packet in self._packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= stamp:
                return packet if packet.pts == stamp else None
        return None


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    try:
        for packet in container.demux(stream):
            if packet.size:  # not the empty one that ends the decoder: it may be needed again after a seek
                yield packet
    except FFmpegError:
        return  # the tail of the file is damaged: the caller sees which frames are missing


def _decode(stream: Any, packet: Any | None) -> tuple[list[av.VideoFrame], bool]:
    """(frames that a packet brings to light, whether it was damaged); None for what the decoder still holds."""
    try:
        return list(stream.codec_context.decode(packet)), False
    except EOFError:
        return [], False
    except FFmpegError:
        return [], True  # the caller sees which frames are missing


def short(error: Exception) -> str:
    """The library's message without the file's path, which is not part of the data."""
    return str(getattr(error, "strerror", None) or type(error).__name__)[:200]

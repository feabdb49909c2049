"""`video`: unlabelled clips → windows of 16 frames at strides 10, 20 and 30 (LVM paper, section 3.1).

What may be given: `video_inputs`. Which frames are chosen: `video_windows`. How they are decoded: `video_stream`, in a
child process. One pass over a clip makes all of its windows; what is in memory does not grow with its length.
"""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from uvd.sequences import IMAGE_SIZE, MAX_IMAGES, Example, Picture, Reason, Reject, Seeds, Transform
from uvd.sequences.geometry import MIN_RANDOM_CROP
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, WorkUnit
from uvd.sources.decode import IMAGE_SUFFIXES, MAX_BYTES, MAX_PIXELS, list_files
from uvd.sources.fetch import fetch_in_order
from uvd.sources.fetch_config import FetchConfig
from uvd.sources.input_place import absolute_place
from uvd.sources.video_checks import WindowChecks, small_grey
from uvd.sources.video_clips import Clip, FileClip, FolderClip, ImageLimits, TarClip, natural_key
from uvd.sources.video_decoder import FULL_SIZE, VideoDecoder, VideoLimits
from uvd.sources.video_inputs import Format, VideoInputs
from uvd.sources.video_windows import Placement, Window, at_rate, place_windows, split_scenes

MAX_HELD = 256
"""Pictures kept for a window that lacks one, 50 MB, before the window is given up."""


class VideoFetchConfig(FetchConfig):
    """As for images, but for larger files; one is in memory at a time."""

    max_bytes: int = Field(256 << 20, ge=1)
    max_buffered_bytes: int = Field(256 << 20, ge=1, json_schema_extra=NOT_DATA)
    total_timeout_s: float = Field(600.0, gt=0, json_schema_extra=NOT_DATA)


class SceneConfig(BaseModel):
    """Cut detection by PySceneDetect's content detector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detect: bool = False
    """No sequence crosses a cut. Every frame has to be decoded for it."""
    threshold: float = Field(27.0, gt=0)
    """Mean change of hue, saturation and brightness from one frame to the next, 0 to 255, that makes a cut."""


class VideoConfig(SourceConfig):
    """Settings of the `video` source."""

    source: Literal["video"] = "video"
    input: Annotated[str, BeforeValidator(absolute_place)] = Field(json_schema_extra=NOT_DATA)
    """Video file, folder (searched recursively), glob pattern, or a CSV, TSV or Parquet list with a column `path`
    (relative to the list) or `url`, and if wanted `start` and `end` in seconds."""
    format: Format = "auto"
    """`files`: videos. `frames`: folders of images, each a clip. `tars`: tars of images, each folder in them a clip.
    `list`: as above. `auto`: a list if the input is one, else the first of videos, tars and frames that is there."""
    strides: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field((10, 20, 30), min_length=1)
    """Frames between two pictures of a sequence; each stride gives windows of its own."""
    fps: float | None = Field(None, gt=0, le=240)
    """Take frames at this rate before striding (video files only); none: as they are."""
    placement: Placement = "end_to_end"
    """`end_to_end`: one window after the other. `random`: where the seed puts them; they may overlap."""
    windows_per_stride: int = Field(4, ge=1, le=1000)
    """Windows of one input at one stride; more are thinned by the seed."""
    windows_per_input: int | None = Field(None, ge=1)
    """Windows of one input in all; more are thinned by the seed."""
    min_frames: int = Field(MAX_IMAGES, ge=2, le=MAX_IMAGES)
    """A clip too short for 16 frames at a stride gives one window of at least this many, or none."""
    min_duration_s: float = Field(0.0, ge=0)
    """Shorter video files are refused."""
    scenes: SceneConfig = SceneConfig()
    min_motion: float = Field(0.25, ge=0)
    """Mean difference between successive frames of a window in grey levels, at 64x64; less is a still picture."""
    max_black_frames: int = Field(0, ge=0, le=MAX_IMAGES)
    """Frames of a window that may be black: 98 % of the pixels under a tenth of the range."""
    layouts: dict[str, float] = {"frames": 1.0}
    segment_s: float = Field(240.0, ge=10)
    """Long files are planned as several inputs of so many seconds; windows do not cross from one to the next."""
    split_above: int = Field(128 << 20, ge=1)
    """Bytes from which a file counts as long."""
    shard_size: int = Field(50, ge=1, le=100_000)
    """Inputs a shard."""
    shard_bytes: int = Field(512 << 20, ge=1)
    """A shard is closed when its videos have so many bytes, even if it holds fewer inputs."""
    max_bytes: int = Field(MAX_BYTES, ge=1)
    """Largest image of a folder or tar of frames."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    timeout_s: float = Field(120.0, gt=0, json_schema_extra=NOT_DATA)
    """For an index, or for 8 MiB of decoded frames; a file that takes longer is refused."""
    memory_bytes: int = Field(2 << 30, ge=256 << 20, json_schema_extra=NOT_DATA)
    """Of the process that decodes."""
    fetch: VideoFetchConfig = VideoFetchConfig()

    @property
    def short_side(self) -> int:
        """Pixels to which frames are averaged down while they are converted."""
        if self.resample == "lanczos":
            return FULL_SIZE
        return ceil(IMAGE_SIZE / MIN_RANDOM_CROP) if self.resize == "random_crop" else IMAGE_SIZE


class VideoSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = VideoConfig
    config: VideoConfig

    def __init__(self, config: VideoConfig) -> None:
        super().__init__(config)
        self._decoder = VideoDecoder(VideoLimits(config.timeout_s, config.memory_bytes))
        self._inputs = VideoInputs(
            config.input, config.format, config.segment_s, config.split_above, 2, self._decoder.duration_s
        )

    def items(self) -> Iterator[Item]:
        yield from self._inputs.items()

    def plan(self) -> Iterator[WorkUnit]:
        """Shards end at `shard_size` inputs or `shard_bytes`, whatever comes first."""
        shard, items, held = 0, list[Item](), 0
        with closing(self._decoder):
            for item in islice(self.items(), self.config.limit):
                items.append(item)
                held += item.get("bytes", 0)
                if len(items) == self.config.shard_size or held >= self.config.shard_bytes:
                    yield WorkUnit(shard, len(items), {"items": items})
                    shard, items, held = shard + 1, [], 0
            if items:
                yield WorkUnit(shard, len(items), {"items": items})

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        with closing(self._decoder):
            yield from super().read(unit, seeds)

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        with self._opened(item) as clip:
            if len(clip.times_s) and clip.timed and item["start_s"] == 0 and item["end_s"] is None:
                duration_s = float(clip.times_s[-1] - clip.times_s[0])
                if duration_s < self.config.min_duration_s:
                    raise RejectedInput(Reason.TOO_SHORT, f"{duration_s:.1f} s, under {self.config.min_duration_s:g}")
            places = self._considered(clip)
            windows = self._windows(clip, places, seeds)
            if not windows and not clip.lacking:
                raise RejectedInput(Reason.TOO_SHORT, self._too_short(len(places)))
            yield from self._read_windows(clip, places, windows, index, item["origin"], seeds)
            if clip.lacking:
                whole = clip.lacking + len(clip.times_s)
                raise RejectedInput(Reason.TRUNCATED, f"{clip.lacking} of {whole} announced frames are not there")

    def _too_short(self, number: int) -> str:
        return f"{number} frames, under {self.config.min_frames} at stride {min(self.config.strides)}"

    @contextmanager
    def _opened(self, item: Item) -> Iterator[Clip]:
        """
        Raises:
            RejectedInput: not there, not what it should be, or refused when it was planned.
        """
        config, root = self.config, self._inputs.root
        limits = ImageLimits(config.max_bytes, config.max_pixels)
        if "refused" in item:
            raise RejectedInput(Reason(item["refused"]), item["detail"])
        with self.stages("index"):
            if item["kind"] == "frames":
                names = [name for name, _ in list_files(root / item["folder"], IMAGE_SUFFIXES) if "/" not in name]
                clip: Clip = FolderClip(root / item["folder"], sorted(names, key=natural_key), limits)
            elif item["kind"] == "tar":
                clip = TarClip(root / item["tar"], item["folder"], IMAGE_SUFFIXES, limits)
            elif item["kind"] == "file":
                clip = FileClip(self._decoder, root / item["origin"], item["start_s"], item["end_s"])
        if item["kind"] != "url":
            yield clip
            return
        with tempfile.TemporaryDirectory(prefix="uvd-video-") as folder:
            path = Path(folder) / "video"
            with self.stages("fetch"):
                path.write_bytes(self._fetched(item["url"]))
            with self.stages("index"):
                clip = FileClip(self._decoder, path, item["start_s"], item["end_s"])
            yield clip

    def _fetched(self, url: str) -> bytes:
        with closing(fetch_in_order([url], self.config.fetch)) as bodies:  # type: ignore[type-var]
            body = next(bodies)
        if isinstance(body, RejectedInput):
            raise body
        return body

    def _considered(self, clip: Clip) -> NDArray[np.int64]:
        """Places of the frames that strides are counted over."""
        if self.config.fps is not None and clip.timed:
            return at_rate(clip.times_s, self.config.fps)
        return np.arange(len(clip.times_s))

    def _windows(self, clip: Clip, places: NDArray[np.int64], seeds: Seeds) -> list[Window]:
        """Windows in the numbering of `places`, in the order in which they are complete."""
        config = self.config
        scenes = [(0, len(places))]
        if config.scenes.detect and len(places):
            with self.stages("cuts"):
                cuts = clip.cuts(config.scenes.threshold)
            scenes = split_scenes(np.searchsorted(places, cuts).tolist(), len(places))
        windows = place_windows(
            scenes, config.strides, config.windows_per_stride, config.min_frames, seeds, config.placement
        )
        if config.windows_per_input is not None and len(windows) > config.windows_per_input:
            rng = seeds.generator("windows_per_input")
            kept = np.sort(rng.choice(len(windows), config.windows_per_input, replace=False))
            windows = [windows[int(number)] for number in kept]
        return sorted(windows, key=lambda window: (window.frames[-1], window.start))

    def _read_windows(
        self, clip: Clip, places: NDArray[np.int64], windows: list[Window], index: int, origin: str, seeds: Seeds
    ) -> Iterator[Example]:
        """
        Raises:
            RejectedInput: at the end, if some windows could not be used; it says how many and why.
        """
        checks = WindowChecks(self.config.min_motion, self.config.max_black_frames)
        lost: Counter[Reason] = Counter()
        for frames in _completed(windows, places, self._timed(self._pictures(clip, places, windows, origin, seeds))):
            reason = Reason.TRUNCATED if frames is None else checks.verdict([frame.small for frame in frames])
            if frames is None or reason is not None:
                lost[reason or Reason.TRUNCATED] += 1
                continue
            pictures = tuple(frame.picture for frame in frames)
            yield Example((index,), self.config.dataset, self.split(origin), pictures, group=origin)
        if lost:
            said = ", ".join(f"{number} {_LOST[reason]}" for reason, number in sorted(lost.items()))
            raise RejectedInput(min(lost, key=list(_LOST).index), f"of {len(windows)} windows {said}")

    def _timed(self, frames: Iterator[_Frame]) -> Iterator[_Frame]:
        while True:
            with self.stages("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def _pictures(
        self, clip: Clip, places: NDArray[np.int64], windows: Sequence[Window], origin: str, seeds: Seeds
    ) -> Iterator[_Frame]:
        wanted = np.unique(places[sorted({number for window in windows for number in window.frames})]).tolist()
        transform: Transform | None = None
        first: tuple[Any, ...] = ()
        for frame in clip.frames(wanted, self.config.short_side, square=self.config.resize == "center_crop"):
            shape = (frame.size, frame.pixels.shape)
            if transform is None:
                first = shape
                transform = self.transform(frame.pixels.shape[1], frame.pixels.shape[0], seeds)
            if shape != first:
                raise RejectedInput(Reason.NOT_VIDEO, f"frame {frame.index} is {frame.size}, the first was {first[0]}")
            picture = Picture("frame", transform.image(frame.pixels), origin, frame.size, frame.index)
            yield _Frame(frame.place, picture, small_grey(picture.pixels))


@dataclass(frozen=True, slots=True)
class _Frame:
    """A picture, its place in the clip, and what `WindowChecks` looks at."""

    place: int
    picture: Picture
    small: NDArray[np.uint8]


_LOST = {
    Reason.TRUNCATED: "with frames that cannot be decoded",
    Reason.FILTERED_BLACK: "with black frames",
    Reason.FILTERED_STATIC: "without motion",
}
"""Why windows are not used, gravest first."""


def _completed(
    windows: Sequence[Window], places: NDArray[np.int64], frames: Iterator[_Frame]
) -> Iterator[list[_Frame] | None]:
    """The frames of each window, in order, as soon as they are there; None for one with a frame that does not come.

    Keeps frames as long as a window needs them, and not more than `MAX_HELD` for one that waits.
    """
    waiting = deque([int(places[number]) for number in window.frames] for window in windows)
    uses = Counter(place for wanted in waiting for place in wanted)
    held: dict[int, _Frame] = {}
    for frame in chain(frames, [None]):
        if frame is not None and uses[frame.place]:
            held[frame.place] = frame
        while waiting and (frame is None or len(held) > MAX_HELD or all(place in held for place in waiting[0])):
            wanted = waiting.popleft()
            complete = all(place in held for place in wanted)
            yield [held[place] for place in wanted] if complete else None
            for place in wanted:
                uses[place] -= 1
                if not uses[place]:
                    held.pop(place, None)

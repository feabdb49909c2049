"""`ava`: films `videos/VIDEO_ID.mp4` (mkv, webm, avi) and AVA's lists of boxes, one second apart (`ava_csv`).

Only annotated seconds are used. A window is up to 8 of them in a row, without a gap; its pictures are the frames on
screen at these seconds. A person has one colour in the whole film. A frame is sought and decoded by `VideoDecoder`, in
a child process; at stride 1 a window reads 11 s of the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.boxes import render_boxes, visible_boxes
from uvd.renderers.palette import PALETTE_SIZE
from uvd.sequences import IMAGE_SIZE, Reason, Transform
from uvd.sequences.geometry import MIN_RANDOM_CROP
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video.ava_csv import BoxList, Film, read_lists
from uvd.sources.annotated_video.base import AnnotatedFrame, Reader, windows
from uvd.sources.annotated_video.config import AnnotatedVideoConfig
from uvd.sources.base import Item, refused
from uvd.sources.drawing import Draw
from uvd.sources.matching import need_folders
from uvd.sources.video_decoder import DecodedFrame, FrameIndex, VideoDecoder

VIDEOS = "videos"
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
ROLE = "boxes"
FORM = "videos/VIDEO_ID.mp4, ava_train_v2.2.csv and/or ava_val_v2.2.csv"
STEP_MS = 1000
MARGIN_S = 2.0
"""Read before and after a window: frames are found by what is on screen, and the film may end."""


class AvaReader(Reader):
    def __init__(self, config: AnnotatedVideoConfig) -> None:
        super().__init__(config)
        self._decoder = VideoDecoder()

    def items(self) -> Iterator[Item]:
        root = self.config.input
        need_folders(root, FORM, VIDEOS)
        lists = read_lists(root)
        files, doubles = _video_files(root / VIDEOS)
        for found in lists:
            for video in sorted(found.films):
                yield from self._film(found, video, files.get(video))
            for line, detail in found.bad_rows:
                yield refused(f"{found.path.name}:{line}", Reason.BAD_ANNOTATION, detail)
        for name in doubles:
            yield refused(f"{VIDEOS}/{name}", Reason.NO_ANNOTATION, "another file has this film's name")
        for video in sorted(files.keys() - {video for found in lists for video in found.films}):
            yield refused(f"{VIDEOS}/{files[video]}", Reason.NO_ANNOTATION, "no list has a box in this film")

    def _film(self, found: BoxList, video: str, name: str | None) -> Iterator[Item]:
        film = found.films[video]
        path = f"{VIDEOS}/{name or video}"
        tracks = film.tracks()
        excluded = [time for time in sorted(film.boxes) if (video, time) in found.excluded]
        for window in _windows(sorted(film.boxes.keys() - set(excluded)), self.config.stride):
            origin = f"{path}#t={window[0] / 1000:g}"
            if name is None:
                yield refused(origin, Reason.MISSING, f"no file of this name with suffix {', '.join(SUFFIXES)}")
                continue
            yield {
                "origin": origin,
                "role": ROLE,
                "clip": video,
                "split": found.split,
                "path": path,
                "bytes": (self.config.input / path).stat().st_size,
                "list": found.path.name,
                "times_ms": window,
                "boxes": _boxes(film, tracks, window),
            }
        for time in excluded:
            yield refused(f"{path}#t={time / 1000:g}", Reason.NO_ANNOTATION, "one of the list's excluded timestamps")

    def frames(self, item: Item) -> Iterator[AnnotatedFrame | RejectedInput]:
        path = self.config.input / item["path"]
        times = [time / 1000 - self.config.files_start_s for time in item["times_ms"]]
        index = self._decoder.index(path, max(0.0, times[0] - MARGIN_S), max(0.0, times[-1] + MARGIN_S))
        places = [index.at(time) for time in times]
        decoded = self._decode(path, index, sorted({place for place in places if place is not None}))
        lost = []
        for place, time_ms, boxes in zip(places, item["times_ms"], item["boxes"], strict=True):
            frame = decoded.get(place) if place is not None else None
            if frame is None:
                lost.append((time_ms, Reason.TOO_SHORT if place is None else Reason.TRUNCATED))
            else:
                yield self._annotated(item, frame, boxes)
        if lost:
            seconds = ", ".join(f"{time / 1000:g}" for time, _ in lost)
            yield RejectedInput(lost[0][1], f"no frame of the film at second {seconds}")

    def _decode(self, path: Path, index: FrameIndex, places: list[int]) -> dict[int, DecodedFrame]:
        side = ceil(IMAGE_SIZE / MIN_RANDOM_CROP) if self.config.resize == "random_crop" else IMAGE_SIZE
        return {frame.place: frame for frame in self._decoder.frames(path, places, index, side)}

    def _annotated(self, item: Item, frame: DecodedFrame, boxes: list[list[float]]) -> AnnotatedFrame:
        draw = _draw_boxes(boxes, frame.pixels, self.config.boxes_over_image)
        return AnnotatedFrame(frame.pixels, frame.size, item["path"], item["list"], frame.index, draw)

    def close(self) -> None:
        self._decoder.close()


def _video_files(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Film → file name, the first by name; and files whose film has one already."""
    resolved = folder.resolve()
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
        and path.resolve().is_relative_to(resolved)
    )
    files: dict[str, str] = {}
    doubles = [name for name in names if files.setdefault(Path(name).stem, name) != name]
    return files, doubles


def _windows(times_ms: list[int], stride: int) -> Iterator[list[int]]:
    """Windows within runs of seconds that follow each other."""
    starts = [0, *(place for place, (a, b) in enumerate(pairwise(times_ms), start=1) if b - a > STEP_MS)]
    for start, end in zip(starts, [*starts[1:], len(times_ms)], strict=True):
        yield from windows(times_ms[start:end], stride)


def _boxes(film: Film, tracks: dict[int, int], times_ms: list[int]) -> list[list[list[float]]]:
    """For each time its boxes, [place in the palette, left, top, right, bottom] by person."""
    return [[[tracks[person], *box] for person, box in sorted(film.boxes[time].items())] for time in times_ms]


def _draw_boxes(boxes: list[list[float]], pixels: NDArray[np.uint8], over_image: bool) -> Draw:
    height, width = pixels.shape[:2]

    def draw(transform: Transform, photo: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        rows = np.array(boxes, dtype=np.float64)
        places = rows[:, 0].astype(np.int64)
        if places.max() >= PALETTE_SIZE:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"over {PALETTE_SIZE - 1} people: the palette has no more")
        corners = transform.points((rows[:, 1:] * (width, height, width, height)).reshape(-1, 2, 2)).reshape(-1, 4)
        visible = visible_boxes(corners)
        background = photo if over_image else None
        return render_boxes(corners[visible], places[visible], background=background), bool(visible.any())

    return draw

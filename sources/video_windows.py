"""Which frames of a clip become sequences: 16 at strides 10, 20 and 30 (LVM paper, section 3.1), never across a cut.

Windows lie end to end, thinned by the seed, or where the seed puts them. All of it is arithmetic on frame numbers: the
same clip, settings and seed give the same windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import MAX_IMAGES, Seeds

Placement = Literal["end_to_end", "random"]
Scene = tuple[int, int]
"""First frame, and the one after the last."""

ROUNDING_S = 0.001_001
"""What two times may be off: Matroska and WebM write milliseconds."""


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
    scenes: Sequence[Scene],
    strides: Sequence[int],
    per_stride: int,
    min_frames: int,
    seeds: Seeds,
    placement: Placement = "end_to_end",
) -> list[Window]:
    """Windows of up to 16 frames within scenes, at most `per_stride` for each stride.

    A scene that is too short for 16 frames at a stride gives one window with as many as fit, if these are at least
    `min_frames`.

    Args:
        placement: `end_to_end`: one after the other from the start of each scene, thinned by the seed if there are more
            than `per_stride`. `random`: `per_stride` different starts, drawn from all that there are.
    """
    windows: list[Window] = []
    for stride in strides:
        step = 1 if placement == "random" else stride * MAX_IMAGES
        starts = [_starts(scene, stride, min_frames, step) for scene in scenes]
        number = sum(len(found) for found, _ in starts)
        chosen: NDArray[np.integer] = np.arange(number)
        if number > per_stride:
            chosen = np.sort(seeds.generator("windows", stride).choice(number, per_stride, replace=False))
        windows += _picked(starts, chosen, stride)
    return windows


def _starts(scene: Scene, stride: int, min_frames: int, step: int) -> tuple[range, int]:
    """(possible first frames of windows in a scene, frames a window)."""
    begin, end = scene
    count = min(MAX_IMAGES, (end - begin - 1) // stride + 1) if end > begin else 0
    if count < min_frames:
        return range(0), 0
    if count < MAX_IMAGES:
        return range(begin, begin + 1), count
    return range(begin, end - stride * (count - 1), step), count


def _picked(starts: Sequence[tuple[range, int]], chosen: NDArray[np.integer], stride: int) -> list[Window]:
    """The windows that `chosen` numbers name, counting through the starts of all scenes."""
    windows: list[Window] = []
    first = 0
    for found, count in starts:
        inside = chosen[(chosen >= first) & (chosen < first + len(found))] - first
        windows += [Window(found[int(place)], stride, count) for place in inside]
        first += len(found)
    return windows


def at_rate(times_s: NDArray[np.float64], fps: float) -> NDArray[np.int64]:
    """Places of the frames that are on screen at `fps` moments a second; each frame at most once.

    Args:
        times_s: `(N,)` increasing seconds.
    """
    if not len(times_s):
        return np.empty(0, np.int64)
    # A moment that falls on a frame finds it whatever the rounding of both.
    last = int((times_s[-1] - times_s[0] + ROUNDING_S) * fps)
    moments = times_s[0] + np.arange(last + 1) / fps + ROUNDING_S
    return np.unique(np.searchsorted(times_s, moments, side="right") - 1)


def split_scenes(cuts: Sequence[int], num_frames: int) -> list[Scene]:
    """Scenes between cuts; a cut is the first frame of a new scene."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < num_frames}), num_frames]
    return list(pairwise(edges))

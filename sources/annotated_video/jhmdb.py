"""`jhmdb`: frames `Rename_Images/CLASS/CLIP/00001.png`, puppet joints and masks in one .mat file each a clip.

`joint_positions/CLASS/CLIP/joint_positions.mat` holds `pos_img` (2 x 15 x N, pixels from 1), drawn as OpenPose
skeletons: the face is taken for the nose, the belly is left out, eyes and ears are not there. `puppet_mask/CLASS/CLIP/
puppet_mask.mat` holds `part_mask` (H x W x N), drawn white on black. Frame n belongs to column n. How many columns
there are is seen when a window is read: frames beyond them are left out of it, and named; so are columns without frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.pose import render_pose, visible_people
from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video.base import AnnotatedFrame, Reader, windows
from uvd.sources.annotated_video.config import AnnotatedVideoConfig
from uvd.sources.annotated_video.hand14k import draw_mask
from uvd.sources.annotated_video.mat import read_variable
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.decode import read_bytes
from uvd.sources.drawing import Draw, check_size, open_image
from uvd.sources.matching import files_by_stem, folders, frame_number, need_folders, sizes

IMAGES = "Rename_Images"
FILES = {"pose": ("joint_positions", "joint_positions.mat"), "mask": ("puppet_mask", "puppet_mask.mat")}
"""Role → folder and file name of its annotations."""
JOINTS = 15
OPENPOSE_OF_JHMDB = (1, -1, 0, 2, 5, 8, 11, 3, 6, 9, 12, 4, 7, 10, 13)
"""For each joint of JHMDB the one of OpenPose's 18: neck, (belly), face as nose, shoulders, hips, elbows, knees,
wrists, ankles; the right one first, as in JHMDB's list."""


class JhmdbReader(Reader):
    def __init__(self, config: AnnotatedVideoConfig) -> None:
        super().__init__(config)
        self._last: tuple[str, NDArray[Any]] | None = None
        """Path and content of the .mat file that was read last: the windows of a clip follow each other."""

    def items(self) -> Iterator[Item]:
        root = self.config.input
        for role in self.config.render:
            folder, name = FILES[role]
            form = f"{IMAGES}/CLASS/CLIP/00001.png and {folder}/CLASS/CLIP/{name} (or leave {role!r} out of render)"
            need_folders(root, form, IMAGES, folder)
        clips = self._clips(IMAGES)
        if not clips:
            raise SourceError(f"no folders CLASS/CLIP in {root / IMAGES}")
        for clip in clips:
            yield from self._clip(clip)
        for role in self.config.render:
            folder, name = FILES[role]
            for clip in sorted(set(self._clips(folder)) - set(clips)):
                if (root / folder / clip / name).exists():
                    yield refused(f"{folder}/{clip}/{name}", Reason.MISSING, f"no frames in {IMAGES}/{clip}")

    def _clips(self, folder: str) -> list[str]:
        root = self.config.input / folder
        return [f"{group}/{clip}" for group in folders(root) for clip in folders(root / group)]

    def _clip(self, clip: str) -> Iterator[Item]:
        root = self.config.input
        by_stem, doubles = files_by_stem(root / IMAGES / clip)
        frames: dict[int, str] = {}
        for stem, name in sorted(by_stem.items()):
            number = frame_number(stem) if stem.isascii() and stem.isdigit() else None
            if number is None or number < 1 or number in frames:
                yield refused(f"{IMAGES}/{clip}/{name}", Reason.NO_ANNOTATION, "the name is no frame number of its own")
            else:
                frames[number] = f"{IMAGES}/{clip}/{name}"
        for name in doubles:
            yield refused(f"{IMAGES}/{clip}/{name}", Reason.NO_ANNOTATION, "another file has this name")
        if not frames:
            yield refused(f"{IMAGES}/{clip}", Reason.MISSING, "no frames in this folder")
            return
        for before, after in pairwise([0, *sorted(frames)]):
            if after - before > 1:
                detail = f"frames {before + 1} to {after - 1} are left out"
                yield refused(f"{IMAGES}/{clip}/{before + 1:05d}.png", Reason.MISSING, detail)
        for role in self.config.render:
            yield from self._windows(clip, role, frames)

    def _windows(self, clip: str, role: str, frames: dict[int, str]) -> Iterator[Item]:
        root = self.config.input
        folder, name = FILES[role]
        annotation = f"{folder}/{clip}/{name}"
        path = root / annotation
        if not (path.is_file() and path.resolve().is_relative_to((root / folder).resolve())):
            yield refused(f"{IMAGES}/{clip}", Reason.NO_ANNOTATION, f"no {annotation}")
            return
        grouped = list(windows(sorted(frames), self.config.stride))
        for numbers in grouped:
            paths = [frames[number] for number in numbers]
            yield {
                "origin": f"{annotation}#{numbers[0]}",
                "role": role,
                "clip": clip,
                "annotation": annotation,
                "frames": [list(pair) for pair in zip(numbers, paths, strict=True)],
                "bytes": sizes(root, [annotation, *paths]),
                "last": max(frames) if numbers is grouped[-1] else None,
            }

    def frames(self, item: Item) -> Iterator[AnnotatedFrame | RejectedInput]:
        annotation = item["annotation"]
        values = self._values(annotation, item["role"])
        columns = values.shape[2]
        beyond = [number for number, _ in item["frames"] if number > columns]
        for number, path in item["frames"]:
            if number <= columns:
                pixels, size = open_image(self.config, path)
                draw = _annotation(item["role"], values[:, :, number - 1], annotation, pixels)
                yield AnnotatedFrame(pixels, size, path, annotation, number, draw)
        if beyond:
            listed = ", ".join(map(str, beyond))
            yield RejectedInput(Reason.NO_ANNOTATION, f"{annotation} has {columns} columns, none for frame {listed}")
        if item["last"] is not None and columns > item["last"]:
            detail = f"{annotation} has {columns} columns, the last frame is {item['last']}"
            yield RejectedInput(Reason.MISSING, detail)

    def _values(self, annotation: str, role: str) -> NDArray[Any]:
        """`pos_img` `(2, 15, N)`, or `part_mask` `(H, W, N)`."""
        if self._last is None or self._last[0] != annotation:
            name = "pos_img" if role == "pose" else "part_mask"
            values = read_variable(read_bytes(self.config.input / annotation, self.config.max_bytes), name)
            if values.ndim == 2:  # MATLAB drops the last axis of one frame
                values = values[:, :, None]
            if values.ndim != 3 or (role == "pose" and values.shape[:2] != (2, JOINTS)):
                raise RejectedInput(Reason.BAD_ANNOTATION, f"{name} is {values.shape}")
            self._last = annotation, values
        return self._last[1]

    def close(self) -> None:
        self._last = None


def _annotation(role: str, values: NDArray[Any], path: str, pixels: NDArray[np.uint8]) -> Draw:
    if role == "pose":
        return _draw_pose(values.T.astype(np.float64), pixels)
    check_size(values, PurePosixPath(path).name, pixels)
    return draw_mask(values != 0)


def _draw_pose(xy: NDArray[np.float64], pixels: NDArray[np.uint8]) -> Draw:
    """`xy`: `(15, 2)` pixels counted from 1, so that the middle of the first is 0.5 from the edge. JHMDB places joints
    beyond the frame too: these are not visible."""
    raw = xy - 0.5
    inside: NDArray[np.bool_] = np.all((raw >= 0) & (raw <= pixels.shape[1::-1]), axis=1)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        joints = np.zeros((1, 18, 3))
        mapped = transform.points(np.where(inside[:, None], raw, 0.0))
        for joint, place in enumerate(OPENPOSE_OF_JHMDB):
            if place >= 0 and inside[joint]:
                joints[0, place] = (*mapped[joint], 1)
        return render_pose(joints), bool(visible_people(joints).any())

    return draw

"""One real clip with estimated people, laid out in the forms in which annotated video is published.

BlazePose estimates people in every 6th frame of a walking clip (5 s on one core); who is who follows from overlapping
boxes. The forms are those that docs/sources.md lists for `annotated-video`: general frames, VIPSeg's 16-bit masks,
Hand14K's pairs (with masks of people in place of hands), AVA's film and list, JHMDB's .mat files.
"""

from __future__ import annotations

import csv
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uvd.pipeline.demo.published_images import save
from uvd.pipeline.demo.scenes import CLIP, CLIP_HEIGHT
from uvd.renderers.estimators.blazepose import BlazePose, Person
from uvd.sources.video_decoder import read_frames

CLIP_FRAMES, CLIP_FPS = 230, 30
EVERY = 6
"""Frames between two that are estimated: 5 a second, as VIPSeg has them, whole seconds, as AVA wants, among them."""
SAME, DOUBLE = 0.02, 0.5
"""Overlap (intersection over union) of boxes from which a person is that of an earlier frame, or was found twice."""
VIPSEG_THING = 61
"""A class of things; their masks hold 100 x class + instance."""
AVA_START_S = 900
"""AVA's lists begin at the 15th minute of a film; copies are often cut there."""
MIN_ACTOR_FRAMES = 8
COCO_OF_JHMDB = (
    (5, 6),
    (5, 6, 11, 12),
    (0,),
    (6,),
    (5,),
    (12,),
    (11,),
    (8,),
    (7,),
    (14,),
    (13,),
    (10,),
    (9,),
    (16,),
    (15,),
)
"""For each joint of JHMDB the keypoints of COCO in whose middle it is: neck, belly, face, then right before left:
shoulders, hips, elbows, knees, wrists, ankles."""
MAT_MATRIX, MAT_COMPRESSED, MAT_UINT32, MAT_INT32, MAT_INT8 = 14, 15, 6, 5, 1
MAT_TYPES = {"float64": (6, 9), "uint8": (9, 2)}
"""dtype → class of the array, type of the stored numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class EstimatedFrame:
    """A frame and the people in it.

    Attributes:
        number: in the clip, from 0.
        pixels: `(H, W, 3)` uint8 RGB.
        people: track → person, with mask; tracks are numbered from 1 by first appearance.
    """

    number: int
    pixels: NDArray[np.uint8]
    people: Mapping[int, Person]


def estimate_walk(cache: Path) -> list[EstimatedFrame]:
    """Every 6th frame of the walking clip that shows anybody, 512 pixels high."""
    pose = BlazePose(cache)
    last: dict[int, Person] = {}
    frames = []
    for number, pixels in read_frames(cache / CLIP, range(0, CLIP_FRAMES, EVERY), CLIP_HEIGHT):
        people = follow(pose.estimate(pixels), last)
        last |= people
        if people:
            frames.append(EstimatedFrame(number, pixels, people))
    return frames


def follow(found: Sequence[Person], last: Mapping[int, Person]) -> dict[int, Person]:
    """Gives each person the track whose last box is overlapped most, or a new one."""
    people: dict[int, Person] = {}
    for person in found:
        if any(_overlap(person, other) > DOUBLE for other in people.values()):
            continue
        free = [track for track in last if track not in people and _overlap(person, last[track]) > SAME]
        new = max([0, *last, *people]) + 1
        people[max(free, key=lambda track: _overlap(person, last[track]), default=new)] = person
    return people


def _overlap(a: Person, b: Person) -> float:
    width, height = (min(a.box[side + 2], b.box[side + 2]) - max(a.box[side], b.box[side]) for side in (0, 1))
    common = max(0.0, width) * max(0.0, height)
    areas = sum((person.box[2] - person.box[0]) * (person.box[3] - person.box[1]) for person in (a, b))
    return common / (areas - common)


def lay_out_frames(root: Path, frames: Sequence[EstimatedFrame]) -> None:
    """`walk/frames/NUMBER.jpg`, and `walk/masks/NUMBER.png` of ids."""
    for frame in frames:
        save(root / "walk/frames" / f"{frame.number:04d}.jpg", frame.pixels)
        save(root / "walk/masks" / f"{frame.number:04d}.png", _ids(frame, lambda track: track).astype(np.uint8))


def lay_out_vipseg(root: Path, frames: Sequence[EstimatedFrame]) -> None:
    """`imgs/walk/NUMBER.jpg`, `panomasks/walk/NUMBER.png` of 16 bit, and `train.txt`."""
    for frame in frames:
        name = f"{frame.number:08d}"
        save(root / "imgs/walk" / f"{name}.jpg", frame.pixels)
        save(root / "panomasks/walk" / f"{name}.png", _ids(frame, lambda track: 100 * VIPSEG_THING + track - 1))
    (root / "train.txt").write_text("walk\n")


def lay_out_hand14k(root: Path, frames: Sequence[EstimatedFrame]) -> None:
    """`Images/walk_NUMBER.jpg` and `Masks/walk_NUMBER.png` of 0 and 255."""
    for frame in frames:
        name = f"walk_{frame.number:06d}"
        save(root / "Images" / f"{name}.jpg", frame.pixels)
        save(root / "Masks" / f"{name}.png", _ids(frame, lambda _: 255).astype(np.uint8))


def lay_out_ava(root: Path, frames: Sequence[EstimatedFrame], clip: Path, fps: int) -> None:
    """`videos/walk.SUFFIX`, cut to start at second 900, and `ava_train_v2.2.csv`: two actions a person and second."""
    (root / "videos").mkdir(parents=True)
    shutil.copyfile(clip, root / "videos" / f"walk{clip.suffix}")
    with (root / "ava_train_v2.2.csv").open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        for frame in frames:
            if frame.number % fps:
                continue
            height, width = frame.pixels.shape[:2]
            for track, person in sorted(frame.people.items()):
                box = np.clip(np.divide(person.box, (width, height, width, height)), 0, 1)
                for action in (12, 14):
                    second = f"{AVA_START_S + frame.number // fps:04d}"
                    rows.writerow(["walk", second, *(f"{side:.3f}" for side in box), action, track - 1])


def lay_out_jhmdb(root: Path, frames: Sequence[EstimatedFrame]) -> None:
    """A clip `walk/TRACK` for each person of 8 frames or more in a row: frames, joints and puppet masks."""
    for track in sorted({track for frame in frames for track in frame.people}):
        run = _longest_run(frames, track)
        if len(run) < MIN_ACTOR_FRAMES:
            continue
        clip = f"walk/{track}"
        for number, frame in enumerate(run, start=1):
            save(root / "Rename_Images" / clip / f"{number:05d}.png", frame.pixels)
        people = [frame.people[track] for frame in run]
        joints = {"pos_img": np.stack([jhmdb_joints(person).T for person in people], axis=2)}
        masks = {"part_mask": np.stack([_mask(person) for person in people], axis=2).astype(np.uint8)}
        _write(root / "joint_positions" / clip / "joint_positions.mat", mat_file(joints))
        _write(root / "puppet_mask" / clip / "puppet_mask.mat", mat_file(masks))


def _longest_run(frames: Sequence[EstimatedFrame], track: int) -> list[EstimatedFrame]:
    """The most frames in a row that show a person."""
    runs = [list(run) for there, run in groupby(frames, lambda frame: track in frame.people) if there]
    return max(runs, key=len)


def jhmdb_joints(person: Person) -> NDArray[np.float64]:
    """`(15, 2)` pixels, counted from 1: the middle of the first pixel is 1 here and 0.5 in COCO."""
    xy = person.keypoints[:, :2] + 0.5
    return np.stack([xy[list(keypoints)].mean(axis=0) for keypoints in COCO_OF_JHMDB])


def mat_file(variables: Mapping[str, NDArray[np.generic]]) -> bytes:
    """A MATLAB file of version 5 with deflated arrays of float64 or uint8, as `save -v7` writes it."""
    content = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    for name, values in variables.items():
        array_class, stored = MAT_TYPES[values.dtype.name]
        array = _element(MAT_UINT32, struct.pack("<II", array_class, 0))
        array += _element(MAT_INT32, struct.pack(f"<{values.ndim}i", *values.shape))
        array += _element(MAT_INT8, name.encode()) + _element(stored, values.tobytes("F"))
        packed = zlib.compress(_element(MAT_MATRIX, array))
        content += struct.pack("<II", MAT_COMPRESSED, len(packed)) + packed
    return content


def _element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def _mask(person: Person) -> NDArray[np.bool_]:
    if person.mask is None:
        raise ValueError("people must be estimated with masks")
    return person.mask


def _ids(frame: EstimatedFrame, identity: Callable[[int], int]) -> NDArray[np.uint16]:
    """`(H, W)` uint16: each person's id where the mask is, else 0; later tracks lie over earlier ones."""
    ids = np.zeros(frame.pixels.shape[:2], np.uint16)
    for track, person in sorted(frame.people.items()):
        ids[_mask(person)] = identity(track)
    return ids


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

"""The gallery's own data sets: each published form is read in full, and what is drawn lies on the people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from annotated_support import config, numbers, read
from numpy.typing import NDArray
from video_support import write_clip

from uvd.pipeline.demo import gallery, published_forms
from uvd.pipeline.demo.published_forms import EstimatedFrame, follow, jhmdb_joints, mat_file
from uvd.renderers.estimators.blazepose import Person
from uvd.renderers.palette import colour
from uvd.sources.annotated_video.mat import read_variable
from uvd.sources.video_decoder import read_frames

WIDTH, HEIGHT, FPS = 200, 150, 5
PEOPLE = {1: (40, 20), 2: (100, 60)}
"""Track → left and top of a person in frame 0; each is 40 wide, 80 high, and moves a pixel a frame to the right."""


def person(track: int, number: int) -> Person:
    """Keypoints in the person's middle column, in order from top to bottom."""
    left, top = PEOPLE[track][0] + number, PEOPLE[track][1]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + 80, left : left + 40] = True
    keypoints = np.column_stack([np.full(17, left + 20.0), np.linspace(top + 5, top + 75, 17), np.ones(17)])
    return Person(keypoints, (left, top, left + 40, top + 80), 1.0, mask)


@pytest.fixture
def frames() -> list[EstimatedFrame]:
    """Ten frames, one a second; the second person is not in the last of them."""
    found = []
    for number in range(0, 50, FPS):
        people = {track: person(track, number) for track in PEOPLE if track == 1 or number < 45}
        pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        for one in people.values():
            pixels[one.mask] = 200
        found.append(EstimatedFrame(number, pixels, people))
    return found


@pytest.fixture
def inputs(tmp_path: Path, frames: list[EstimatedFrame]) -> Path:
    clip = write_clip(tmp_path / "clip.mp4", 50, size=(WIDTH, HEIGHT), rate=FPS)
    published_forms.lay_out_frames(tmp_path / "frames", frames)
    published_forms.lay_out_vipseg(tmp_path / "vipseg", frames)
    published_forms.lay_out_hand14k(tmp_path / "hand14k", frames)
    published_forms.lay_out_ava(tmp_path / "ava", frames, clip, FPS)
    published_forms.lay_out_jhmdb(tmp_path / "jhmdb", frames)
    return tmp_path


def to_crop(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a mask is after the central crop."""
    middle = mask[:, (WIDTH - HEIGHT) // 2 :][:, :HEIGHT].astype(np.uint8)
    return cv2.resize(middle, (256, 256), interpolation=cv2.INTER_NEAREST).astype(bool)


def inside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.erode(to_crop(mask).astype(np.uint8), np.ones((5, 5))).astype(bool)


def around(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.dilate(to_crop(mask).astype(np.uint8), np.ones((5, 5))).astype(bool)


@pytest.mark.parametrize(("kind", "colours"), [("frames", True), ("vipseg", True), ("hand14k", False)])
def test_masks_lie_on_the_people_in_constant_colours(inputs, frames, kind, colours):
    examples, rejects = read(config(inputs / kind, kind=kind))
    assert rejects == []
    assert [numbers(example) for example in examples] == [[0, 5, 10, 15, 20, 25, 30, 35], [40, 45]]
    annotations = [picture.pixels for example in examples for picture in example.pictures[1::2]]
    for frame, annotation in zip(frames, annotations, strict=True):
        assert not annotation[~around(np.any([one.mask for one in frame.people.values()], axis=0))].any()
        for track, one in frame.people.items():
            hidden = np.any([other.mask for later, other in frame.people.items() if later > track], axis=0)
            expected = colour(track) if colours else (255, 255, 255)
            assert set(map(tuple, annotation[inside(one.mask & ~hidden)].tolist())) == {expected}


def test_boxes_surround_the_people_once_a_second(inputs, frames):
    (first, second), rejects = read(config(inputs / "ava", kind="ava", files_start_s=900, boxes_over_image=False))
    assert rejects == []
    assert (first.split, numbers(first), numbers(second)) == ("train", [0, 5, 10, 15, 20, 25, 30, 35], [40, 45])
    drawn = [picture.pixels for example in (first, second) for picture in example.pictures[1::2]]
    for frame, annotation in zip(frames, drawn, strict=True):
        for track, one in frame.people.items():
            rows, columns = np.nonzero((annotation == colour(track)).all(axis=2))
            expected_rows, expected_columns = np.nonzero(to_crop(one.mask))
            for found, expected in ((rows, expected_rows), (columns, expected_columns)):
                assert abs(found.min() - expected.min()) <= 3
                assert abs(found.max() - expected.max()) <= 3


def test_each_person_is_a_clip_of_jhmdb(inputs, frames):
    examples, rejects = read(config(inputs / "jhmdb", kind="jhmdb"))
    assert rejects == []
    assert sorted({(example.group, example.pictures[1].role) for example in examples}) == [
        ("walk/1", "mask"), ("walk/1", "pose"), ("walk/2", "mask"), ("walk/2", "pose"),
    ]  # fmt: skip
    for example in examples:
        track = int(example.group[-1])
        for picture, number in zip(example.pictures[1::2], numbers(example), strict=True):
            one = frames[number - 1].people[track]
            painted = picture.pixels.any(axis=2)
            if picture.role == "mask":
                assert painted[inside(one.mask)].all()
                assert not painted[~around(one.mask)].any()
            else:  # the joints are in one column
                middle = ((one.box[0] + one.box[2]) / 2 - (WIDTH - HEIGHT) / 2) * 256 / HEIGHT
                assert abs(np.nonzero(painted)[1].mean() + 0.5 - middle) < 1.5
                assert not painted[~around(one.mask)].any()


def test_joints_are_those_of_jhmdb():
    """Neck between the shoulders, belly between shoulders and hips; pixels are counted from 1."""
    keypoints = np.column_stack([np.arange(17.0), 10 * np.arange(17.0), np.ones(17)])
    joints = jhmdb_joints(Person(keypoints, (0, 0, 1, 1), 1.0, None))
    x = [5.5, 8.5, 0, 6, 5, 12, 11, 8, 7, 14, 13, 10, 9, 16, 15]
    assert joints == pytest.approx(np.column_stack([x, np.multiply(10, x)]) + 0.5)


def test_mat_files_hold_what_was_put_in():
    rng = np.random.default_rng(0)
    joints, masks = rng.random((2, 15, 7)), rng.integers(0, 2, (9, 5, 7)).astype(np.uint8)
    data = mat_file({"pos_img": joints, "part_mask": masks})
    assert np.array_equal(read_variable(data, "pos_img"), joints)
    assert np.array_equal(read_variable(data, "part_mask"), masks)


def test_people_keep_their_tracks():
    """Listed in another order, found twice, gone for a while, and someone new."""
    last = {1: person(1, 0), 2: person(2, 0)}
    moved = [person(2, 6), person(1, 6), person(2, 7)]
    assert {track: one.box[0] for track, one in follow(moved, last).items()} == {2: 106, 1: 46}
    newcomer = Person(person(1, 0).keypoints, (170, 0, 190, 20), 1.0, None)
    assert {track: one.box[0] for track, one in follow([newcomer, person(2, 6)], last).items()} == {3: 170, 2: 106}


@pytest.mark.parametrize("clip", [clip for clip in gallery.CLIPS if clip.encoder], ids=lambda clip: clip.label)
def test_transcoding_keeps_every_frame(tmp_path, clip):
    source = write_clip(tmp_path / "source.mp4", 12, size=(320, 300), rate=25)
    target = tmp_path / f"clip{clip.suffix}"
    gallery.transcode(source, target, clip.encoder, dict(clip.options))
    read = list(read_frames(target, range(50)))
    assert [number for number, _ in read] == list(range(12))
    assert read[0][1].shape == (270, 288, 3)

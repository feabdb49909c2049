"""The `annotated-video` source: frames and annotations meet by name, and whatever does not meet is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotated_support import config, ingest, read
from PIL import Image
from pydantic import ValidationError

from uvd.renderers.palette import PALETTE
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.annotated_video import READERS, reader_class
from uvd.sources.annotated_video.source import AnnotatedVideoConfig, AnnotatedVideoSource
from uvd.sources.base import SourceError

STEP = 10


def write_frame(root: Path, clip: str, number: int, size: tuple[int, int] = (80, 60)) -> Path:
    """A grey frame of level 10 x number."""
    path = root / clip / "frames" / f"f_{number:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (STEP * number,) * 3).save(path)
    return path


def write_labels(root: Path, clip: str, number: int, size: tuple[int, int] = (80, 60), top: int = 0) -> Path:
    """Label `number` in the middle of the picture, 0 around it."""
    path = root / clip / "mask" / f"f_{number:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(size[::-1], np.uint16 if top else np.uint8)
    labels[15:45, 25:55] = top or number
    Image.fromarray(labels).save(path)
    return path


def write_clip(root: Path, clip: str, numbers: range) -> None:
    for number in numbers:
        write_frame(root, clip, number)
        write_labels(root, clip, number)


def test_windows_of_eight_pairs(tmp_path):
    write_clip(tmp_path, "a", range(1, 20))
    write_clip(tmp_path, "b", range(5, 8))
    examples, rejects = read(config(tmp_path))
    assert rejects == []
    numbers = [[picture.index for picture in example.pictures[::2]] for example in examples]
    assert numbers == [[*range(1, 9)], [*range(9, 17)], [17, 18, 19], [5, 6, 7]]
    for example in examples:
        assert [picture.role for picture in example.pictures] == ["frame", "mask"] * (len(example.pictures) // 2)


@pytest.mark.parametrize("layout", ["interleaved", "grouped"])
def test_frames_and_annotations_are_of_the_same_moment(tmp_path, layout):
    write_clip(tmp_path / "in", "a", range(1, 17))
    counts, reasons, sequences = ingest(config(tmp_path / "in", layouts={layout: 1}), tmp_path / "d")
    assert (counts["used"], reasons) == (2, {})
    for window, stored in enumerate(sequences):
        pictures, roles = stored.pictures(), stored.row["roles"]
        assert roles == (["frame", "mask"] * 8 if layout == "interleaved" else ["frame"] * 8 + ["mask"] * 8)
        frames = [picture for picture, role in zip(pictures, roles, strict=True) if role == "frame"]
        masks = [picture for picture, role in zip(pictures, roles, strict=True) if role == "mask"]
        for place, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            number = 8 * window + place + 1
            assert np.abs(frame.astype(int) - STEP * number).max() <= 3
            assert (mask[128, 128] == PALETTE[number]).all()
            assert (mask[5, 5] == 0).all()


def test_matching_is_by_name_not_by_order(tmp_path):
    """Frames 1 to 9 and masks 2 to 10: paired by order, each would get its neighbour's."""
    for number in range(1, 10):
        write_frame(tmp_path / "in", "a", number)
        write_labels(tmp_path / "in", "a", number + 1)
    counts, reasons, (stored,) = ingest(config(tmp_path / "in", layouts={"interleaved": 1}), tmp_path / "d")
    assert (counts["inputs"], counts["used"]) == (3, 1)
    assert reasons == {"a/frames/f_00001.png": "no_annotation", "a/mask/f_00010.png": "missing"}
    assert stored.row["indices"] == [number for number in range(2, 10) for _ in range(2)]
    for number, mask in zip(range(2, 10), stored.pictures()[1::2], strict=True):
        assert (mask[128, 128] == PALETTE[number]).all()


def test_the_stride_skips_annotated_frames(tmp_path):
    write_clip(tmp_path, "a", range(1, 20))
    examples, _ = read(config(tmp_path, stride=3))
    assert [[picture.index for picture in example.pictures[::2]] for example in examples] == [[1, 4, 7, 10, 13, 16, 19]]


def test_two_annotation_types_give_sequences_of_their_own(tmp_path):
    write_clip(tmp_path, "a", range(1, 5))
    for number in range(1, 5):
        write_labels(tmp_path, "a", number).rename(tmp_path / "a" / f"moved-{number}.png")
        (tmp_path / "a" / "depth").mkdir(exist_ok=True)
        (tmp_path / "a" / f"moved-{number}.png").rename(tmp_path / "a" / "depth" / f"f_{number:05d}.png")
        write_labels(tmp_path, "a", number)
    examples, rejects = read(config(tmp_path))
    assert rejects == []
    assert [{picture.role for picture in example.pictures} for example in examples] == [
        {"frame", "depth"},
        {"frame", "mask"},
    ]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("size", "bad_annotation"),
        ("palette", "bad_annotation"),
        ("colour", "bad_annotation"),
        ("unreadable", "not_image"),
        ("cut", "truncated"),
        ("frame", "not_image"),
        ("gone", "missing"),
    ],
)
def test_a_bad_member_costs_its_window_and_no_more(tmp_path, damage, reason):
    root = tmp_path / "in"
    write_clip(root, "a", range(1, 9))
    write_clip(root, "b", range(1, 9))
    mask, frame = root / "a" / "mask" / "f_00003.png", root / "a" / "frames" / "f_00003.png"
    source = AnnotatedVideoSource(config(root))
    units = list(source.plan())
    if damage == "size":
        write_labels(root, "a", 3, (60, 80))
    elif damage == "palette":
        write_labels(root, "a", 3, top=5000)
    elif damage == "colour":
        Image.new("RGB", (80, 60), "red").save(mask)
    elif damage == "unreadable":
        mask.write_text("no mask")
    elif damage == "cut":
        noise = np.random.default_rng(1).integers(0, 9, (60, 80)).astype(np.uint8)
        Image.fromarray(noise).save(mask)
        mask.write_bytes(mask.read_bytes()[:600])
    elif damage == "frame":
        frame.write_text("no frame")
    else:
        mask.unlink()
    items = [item for unit in units for item in source.read(unit, Seeds(0))]
    (reject,) = (item for item in items if isinstance(item, Reject))
    assert (reject.origin, reject.reason) == ("a/frames/f_00001.png", reason)
    (example,) = (item for item in items if isinstance(item, Example))
    assert example.pictures[0].origin == "b/frames/f_00001.png"
    if damage != "gone":  # planned anew, the frame without a mask would be an input of its own
        counts, reasons, _ = ingest(config(root), tmp_path / "d")
        assert (counts["inputs"], counts["used"], reasons) == (2, 1, {"a/frames/f_00001.png": reason})


def test_two_files_of_one_name_are_both_accounted_for(tmp_path):
    """`f_00001.png` and `f_00001.jpg`: only one can be the frame, and the other must not disappear in silence."""
    write_clip(tmp_path, "a", range(1, 4))
    Image.new("RGB", (80, 60)).save(tmp_path / "a" / "frames" / "f_00001.jpg")
    examples, rejects = read(config(tmp_path))
    named = {reject.origin for reject in rejects} | {p.origin for example in examples for p in example.pictures}
    assert {"a/frames/f_00001.jpg", "a/frames/f_00001.png"} <= named


def test_what_a_mac_leaves_behind_is_no_input(tmp_path):
    write_clip(tmp_path, "a", range(1, 4))
    (tmp_path / "a" / "frames" / "._f_00001.png").write_bytes(b"x")
    (tmp_path / "a" / ".AppleDouble").mkdir()
    examples, rejects = read(config(tmp_path))
    assert (len(examples), rejects) == (1, [])


def test_a_clip_without_annotations_is_rejected(tmp_path):
    write_clip(tmp_path, "a", range(1, 3))
    write_frame(tmp_path, "b", 1)
    examples, rejects = read(config(tmp_path))
    assert len(examples) == 1
    assert [(reject.origin, reject.reason) for reject in rejects] == [("b", "no_annotation")]


def test_colours_are_taken_as_they_are(tmp_path):
    write_frame(tmp_path, "a", 1)
    (tmp_path / "a" / "flow").mkdir()
    halves = np.zeros((60, 80, 3), np.uint8)
    halves[:, 40:] = (12, 200, 99)
    Image.fromarray(halves).save(tmp_path / "a" / "flow" / "f_00001.png")
    (example,), _ = read(config(tmp_path, annotation="colours"))
    drawn = example.pictures[1].pixels
    assert set(map(tuple, drawn.reshape(-1, 3).tolist())) == {(0, 0, 0), (12, 200, 99)}  # nearest: nothing blended
    assert (drawn[:, :128] == 0).all()


def test_an_input_without_clips_is_an_error_that_names_it(tmp_path):
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SourceError, match=str(place)):
            list(AnnotatedVideoSource(config(place)).plan())


def test_a_window_without_any_annotation_in_the_crop_is_rejected(tmp_path):
    """80x60 is cropped to its middle 60 columns: labels in the first ones are cut away."""
    write_clip(tmp_path, "b", range(1, 3))
    write_frame(tmp_path, "a", 1)
    write_labels(tmp_path, "a", 1)
    labels = np.zeros((60, 80), np.uint8)
    labels[:, :8] = 3
    Image.fromarray(labels).save(tmp_path / "a" / "mask" / "f_00001.png")
    examples, rejects = read(config(tmp_path))
    assert [(reject.origin, reject.reason) for reject in rejects] == [("a/frames/f_00001.png", "no_annotation")]
    assert len(examples) == 1
    assert len(read(config(tmp_path, resize="stretch"))[0]) == 2


def test_every_kind_has_its_reader():
    kinds = AnnotatedVideoConfig.model_json_schema()["properties"]["kind"]["enum"]
    assert sorted(kinds) == sorted(READERS)
    assert len({reader_class(kind) for kind in kinds}) == len(kinds)


def test_a_setting_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="colour_by is a setting of kind vipseg, not of ava"):
        config(tmp_path, kind="ava", colour_by="class")
    dumped = config(tmp_path, kind="vipseg", colour_by="class").model_dump(mode="json")  # as workers get it
    assert AnnotatedVideoConfig.model_validate(dumped).colour_by == "class"


@pytest.mark.parametrize("kind", sorted(READERS))
def test_an_input_of_another_form_is_an_error_that_says_what_was_expected(tmp_path, kind):
    (tmp_path / "something.txt").write_text("else")
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SourceError, match=f"{tmp_path}.*expected"):
            list(AnnotatedVideoSource(config(place, kind=kind)).plan())

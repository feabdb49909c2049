"""VIPSeg in both of its forms: colours follow objects through a clip, and every frame, mask and list entry is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_support import (
    HEIGHT,
    WIDTH,
    colour_on,
    config,
    ingest,
    numbers,
    object_mask,
    read,
    reasons,
    scene,
    write_picture,
)
from numpy.typing import NDArray

from uvd.renderers.palette import PALETTE
from uvd.sequences import Example, Seeds
from uvd.sources.annotated_video.source import AnnotatedVideoSource
from uvd.sources.base import SourceError

STUFF, THINGS = 3, (6100, 6101)
"""Published values: a stuff class, and two instances of class 61."""
SEGMENTS = {STUFF: 0x0A0B0C, THINGS[0]: 0x030201, THINGS[1]: 0x7F0001}
"""Their colours in the converted form, R + 256 G + 65536 B."""
CATEGORIES = {STUFF: 2, THINGS[0]: 60, THINGS[1]: 60}


def tracks_in(number: int) -> tuple[int, ...]:
    """The second object comes in with frame 10: the first window has only one."""
    return (0, 1) if number >= 10 else (0,)


def values(number: int) -> NDArray[np.uint16]:
    """Void in the upper rows, stuff below, objects on top."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint16)
    mask[10:] = STUFF
    for track in tracks_in(number):
        mask[object_mask(number, track)] = THINGS[track]
    return mask


def write_published(root: Path, video: str, frames: range, images: str = "imgs") -> None:
    for number in frames:
        write_picture(root / images / video / f"{number:08d}.jpg", scene(number, tracks_in(number)))
        write_picture(root / "panomasks" / video / f"{number:08d}.png", values(number))


def write_converted(root: Path, videos: dict[str, range], split: str = "train", images: str = "images") -> None:
    """Frames, coloured masks and the JSON of one split."""
    annotations, listed = [], []
    for video, frames in videos.items():
        entries = []
        for number in frames:
            mask = values(number)
            colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            for value, segment in SEGMENTS.items():
                colours[mask == value] = (segment & 255, segment >> 8 & 255, segment >> 16)
            name = f"{number:08d}"
            write_picture(root / images / video / f"{name}.jpg", scene(number, tracks_in(number)))
            write_picture(root / "panomasksRGB" / video / f"{name}.png", colours)
            present = [value for value in SEGMENTS if (mask == value).any()]
            segments = [{"id": SEGMENTS[v], "category_id": CATEGORIES[v], "iscrowd": 0, "area": 1} for v in present]
            entries.append({"file_name": f"{name}.png", "image_id": name, "segments_info": segments})
        annotations.append({"video_id": video, "annotations": entries})
        listed.append({"video_id": video, "images": [{"file_name": f"{number:08d}.jpg"} for number in frames]})
    categories = [{"id": i, "name": f"class {i}", "isthing": int(i > 50)} for i in (2, 7, 60)]
    content = {"videos": listed, "annotations": annotations, "categories": categories}
    (root / f"panoptic_gt_VIPSeg_{split}.json").write_text(json.dumps(content))


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def colours_of(example: Example, track: int) -> set[tuple[int, int, int]]:
    """Colours of a track in all frames of a window that show it."""
    pairs = zip(example.pictures[::2], example.pictures[1::2], strict=True)
    shown = [(frame, drawn) for frame, drawn in pairs if track in tracks_in(frame.index or 0)]
    return {colour_on(frame.pixels, drawn.pixels, track) for frame, drawn in shown}


@pytest.mark.parametrize("form", ["published", "converted"])
def test_an_object_keeps_its_colour_over_the_windows_of_a_clip(tmp_path, form):
    if form == "published":
        write_published(tmp_path, "a", range(1, 13))
    else:
        write_converted(tmp_path, {"a": range(1, 13)})
    (first, second), rejects = read(config(tmp_path, kind="vipseg"))
    assert rejects == []
    assert (numbers(first), numbers(second)) == ([1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12])
    assert {picture.role for picture in first.pictures} == {"frame", "segmentation"}
    # Sorted ids of the whole clip: published 3, 6100, 6101; converted 0x030201, 0x0A0B0C, 0x7F0001.
    stuff, one, other = (1, 2, 3) if form == "published" else (2, 1, 3)
    assert colours_of(first, 0) == colours_of(second, 0) == {tuple(PALETTE[one])}
    assert (colours_of(first, 1), colours_of(second, 1)) == (set(), {tuple(PALETTE[other])})
    for example in (first, second):
        for drawn in example.pictures[1::2]:
            assert (drawn.pixels[200, 30] == PALETTE[stuff]).all()
            assert (drawn.pixels[:12] == 0).all()
            assert set(map(tuple, drawn.pixels.reshape(-1, 3).tolist())) <= set(map(tuple, PALETTE[:4].tolist()))


@pytest.mark.parametrize("form", ["published", "converted"])
def test_a_window_read_alone_has_the_same_colours(tmp_path, form):
    if form == "published":
        write_published(tmp_path, "a", range(1, 13))
        write_published(tmp_path, "b", range(10, 12))
    else:
        write_converted(tmp_path, {"a": range(1, 13), "b": range(10, 12)})
    together, _ = read(config(tmp_path, kind="vipseg"))
    alone = [
        example
        for unit in AnnotatedVideoSource(config(tmp_path, kind="vipseg", shard_size=1)).plan()
        for example in AnnotatedVideoSource(config(tmp_path, kind="vipseg", shard_size=1)).read(unit, Seeds(0))
    ]
    assert len(together) == len(alone) == 3
    for one, other in zip(together, alone, strict=True):
        assert isinstance(other, Example)
        for a, b in zip(one.pictures, other.pictures, strict=True):
            assert np.array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize(("form", "thing", "stuff"), [("published", 61, 3), ("converted", 3, 1)])
def test_colours_by_class(tmp_path, form, thing, stuff):
    """Published masks say the class; of the JSON's categories 2, 7 and 60 each has its place."""
    if form == "published":
        write_published(tmp_path, "a", range(10, 12))
    else:
        write_converted(tmp_path, {"a": range(10, 12)})
    (example,), _ = read(config(tmp_path, kind="vipseg", colour_by="class"))
    assert colours_of(example, 0) == colours_of(example, 1) == {tuple(PALETTE[thing])}
    assert (example.pictures[1].pixels[200, 30] == PALETTE[stuff]).all()


def test_the_converted_form_is_taken_where_both_are_there(tmp_path):
    write_converted(tmp_path, {"a": range(1, 3)}, images="imgs")
    write_published(tmp_path, "a", range(1, 3))
    (example,), _ = read(config(tmp_path, kind="vipseg"))
    assert example.pictures[1].origin == "panomasksRGB/a/00000001.png"


@pytest.mark.parametrize("layout", ["interleaved", "grouped"])
def test_both_layouts_end_to_end(tmp_path, layout):
    write_published(tmp_path / "in", "a", range(1, 9))
    counts, refused, (stored,) = ingest(config(tmp_path / "in", kind="vipseg", layouts={layout: 1}), tmp_path / "d")
    assert (counts["inputs"], counts["used"], refused) == (1, 1, {})
    pairs = [number for number in range(1, 9) for _ in range(2)]
    assert stored.row["indices"] == (pairs if layout == "interleaved" else [*range(1, 9), *range(1, 9)])
    names = ["frame", "segmentation"] * 8
    assert stored.row["roles"] == (names if layout == "interleaved" else sorted(names))
    pictures = stored.pictures()
    frames, drawn = (pictures[::2], pictures[1::2]) if layout == "interleaved" else (pictures[:8], pictures[8:])
    for frame, mask in zip(frames, drawn, strict=True):
        assert colour_on(frame, mask, 0) == tuple(PALETTE[2])


def test_splits_are_the_data_sets_own(tmp_path):
    write_converted(tmp_path, {"a": range(1, 3)}, "train")
    write_converted(tmp_path, {"b": range(1, 3)}, "val")
    write_converted(tmp_path, {"c": range(1, 3)}, "test")
    examples, _ = read(config(tmp_path, kind="vipseg", holdout={"val": 0.0}))
    assert {e.group: e.split for e in examples} == {"a": "train", "b": "val", "c": "test"}
    (tmp_path / "val.txt").write_text("a\n\nc\n")
    examples, _ = read(config(tmp_path, kind="vipseg"))
    assert {e.group: e.split for e in examples} == {"a": "val", "b": "val", "c": "val"}


def test_without_lists_the_clip_is_hashed_as_a_whole(tmp_path):
    for video in "abcdefgh":
        write_published(tmp_path, video, range(1, 10))
    examples, _ = read(config(tmp_path, kind="vipseg", holdout={"val": 0.5}))
    assert {example.split for example in examples} == {"train", "val"}
    for video in "abcdefgh":
        assert len({example.split for example in examples if example.group == video}) == 1


def test_whatever_has_no_partner_is_named(tmp_path):
    write_published(tmp_path, "a", range(1, 5))
    write_published(tmp_path, "frames-only", range(1, 3))
    write_published(tmp_path, "masks-only", range(1, 3))
    for kind, video in (("panomasks", "frames-only"), ("imgs", "masks-only")):
        for path in (tmp_path / kind / video).iterdir():
            path.unlink()
        (tmp_path / kind / video).rmdir()
    (tmp_path / "panomasks" / "a" / "00000002.png").unlink()
    (tmp_path / "imgs" / "a" / "00000003.jpg").unlink()
    (tmp_path / "train.txt").write_text("a\nnever-downloaded\n")
    (example,), rejects = read(config(tmp_path, kind="vipseg"))
    assert numbers(example) == [1, 4]
    assert reasons(rejects) == {
        "imgs/a/00000002.jpg": "no_annotation",
        "panomasks/a/00000003.png": "missing",
        "imgs/frames-only": "no_annotation",
        "panomasks/masks-only": "missing",
        "imgs/never-downloaded": "missing",
    }


def test_masks_that_the_json_does_not_describe_and_the_reverse(tmp_path):
    write_converted(tmp_path, {"a": range(1, 5), "gone": range(1, 2)})
    (tmp_path / "images" / "a" / "00000004.jpg").unlink()
    (tmp_path / "panomasksRGB" / "a" / "00000004.png").unlink()
    for folder in ("images", "panomasksRGB"):
        (next((tmp_path / folder / "gone").iterdir())).unlink()
        (tmp_path / folder / "gone").rmdir()
    edit(tmp_path / "panoptic_gt_VIPSeg_train.json", lambda c: c["annotations"][0]["annotations"].pop(1))
    (example,), rejects = read(config(tmp_path, kind="vipseg"))
    assert numbers(example) == [1, 3]
    assert reasons(rejects) == {
        "images/a/00000002.jpg": "no_annotation",
        "panomasksRGB/a/00000004.png": "missing",
        "images/gone": "missing",
    }


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("value", "bad_annotation"), ("size", "bad_annotation"), ("text", "not_image"), ("frame", "truncated")],
)
def test_a_bad_file_costs_its_window_and_not_the_colours_of_the_other(tmp_path, damage, reason):
    write_published(tmp_path, "a", range(1, 13))
    mask, frame = tmp_path / "panomasks/a/00000002.png", tmp_path / "imgs/a/00000002.jpg"
    if damage == "value":
        write_picture(mask, np.full((HEIGHT, WIDTH), 12_500, np.uint16))
    elif damage == "size":
        write_picture(mask, np.full((HEIGHT, HEIGHT), STUFF, np.uint16))
    elif damage == "text":
        mask.write_text("no mask")
    else:
        frame.write_bytes(frame.read_bytes()[:-3000])
    (example,), rejects = read(config(tmp_path, kind="vipseg"))
    assert reasons(rejects) == {"imgs/a/00000001.jpg": reason}
    assert colours_of(example, 0) == {tuple(PALETTE[2])}


def test_a_colour_that_is_no_segment(tmp_path):
    write_converted(tmp_path, {"a": range(1, 3), "b": range(1, 3)})
    write_picture(tmp_path / "panomasksRGB/a/00000002.png", np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
    examples, rejects = read(config(tmp_path, kind="vipseg"))
    assert [example.group for example in examples] == ["b"]
    assert reasons(rejects) == {"images/a/00000001.jpg": "bad_annotation"}
    assert str(9 + 256 * 9 + 65536 * 9) in rejects[0].detail


def test_an_added_mask_changes_the_plan(tmp_path):
    """All masks of a clip decide on its colours, so a mask without frame makes other shards."""
    write_published(tmp_path, "a", range(1, 3))
    (before,) = AnnotatedVideoSource(config(tmp_path, kind="vipseg", limit=1)).plan()
    write_picture(tmp_path / "panomasks/a/00000007.png", np.full((HEIGHT, WIDTH), 2, np.uint16))
    (after,) = AnnotatedVideoSource(config(tmp_path, kind="vipseg", limit=1)).plan()
    assert before.payload != after.payload


def test_more_objects_than_colours(tmp_path):
    write_published(tmp_path, "a", range(1, 2))
    many = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 2100 + 1
    write_picture(tmp_path / "panomasks/a/00000001.png", many.astype(np.uint16))
    examples, (reject,) = read(config(tmp_path, kind="vipseg"))
    assert (examples, reject.reason) == ([], "bad_annotation")
    assert "2047" in reject.detail


BROKEN = {
    "not JSON": lambda c: None,
    "'categories' is missing": lambda c: c.pop("categories"),
    "'video_id' is 7": lambda c: c["annotations"][0].update(video_id=7),
    "'file_name' is None": lambda c: c["annotations"][0]["annotations"][0].pop("file_name"),
    "'id' is 'x'": lambda c: c["annotations"][0]["annotations"][0]["segments_info"][0].update(id="x"),
    "segment id 16777216": lambda c: c["annotations"][0]["annotations"][0]["segments_info"][0].update(id=1 << 24),
    "category 99": lambda c: c["annotations"][0]["annotations"][0]["segments_info"][0].update(category_id=99),
    "is there twice": lambda c: c["annotations"].append(c["annotations"][0]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_json_of_another_form_is_an_error_that_names_the_place(tmp_path, message):
    write_converted(tmp_path, {"a": range(1, 3)})
    path = tmp_path / "panoptic_gt_VIPSeg_train.json"
    edit(path, BROKEN[message])
    if message == "not JSON":
        path.write_text("{")
    with pytest.raises(SourceError, match=message):
        list(AnnotatedVideoSource(config(tmp_path, kind="vipseg")).plan())


def test_inputs_that_cannot_be_told_apart_are_errors(tmp_path):
    write_published(tmp_path, "a", range(1, 3))
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "test.txt").write_text("a\n")
    with pytest.raises(SourceError, match=r"'a' is in train\.txt too"):
        list(AnnotatedVideoSource(config(tmp_path, kind="vipseg")).plan())
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match="imgs and images"):
        list(AnnotatedVideoSource(config(tmp_path, kind="vipseg")).plan())

"""COCO's panoptic form: colours by class or segment lie on their objects; damage costs one photo or names its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests_support import smooth_photo

from uvd.manifests import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.renderers.palette import PALETTE
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.source import AnnotatedSource
from uvd.sources.base import SourceError

SIDE = 256
LARGE, LITTLE, CROWD = 70_000, 300, 5
"""Ids of segments: of three, two and one byte."""
PLACES = {LARGE: (slice(100, 250), slice(0, 256)), LITTLE: (slice(20, 60), slice(30, 80)), CROWD: (20, slice(100, 200))}
CATEGORIES = {LARGE: 200, LITTLE: 3, CROWD: 3}
CLASS_COLOURS = {LARGE: 3, LITTLE: 1, CROWD: 1}
SEGMENT_COLOURS = {LARGE: 1, LITTLE: 2, CROWD: 3}

Content = dict[str, Any]


def ids_map() -> np.ndarray:
    """`(SIDE, SIDE)` ids of segments; 0 is void."""
    ids = np.zeros((SIDE, SIDE), np.int64)
    for identity, place in PLACES.items():
        ids[place] = identity
    return ids


def write_map(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)).save(path)


def write_photo(path: Path, height: int = SIDE, exif: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    tags[0x0112] = exif
    Image.fromarray(smooth_photo(3, height, SIDE)).save(path, exif=tags)


def content(count: int = 3) -> Content:
    segments = [{"id": identity, "category_id": CATEGORIES[identity], "iscrowd": 0} for identity in PLACES]
    segments[2]["iscrowd"] = 1
    numbers = range(1, count + 1)
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": SIDE, "height": SIDE} for n in numbers],
        "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": list(segments)} for n in numbers],
        "categories": [{"id": identity, "name": "secret"} for identity in (3, 90, 200)],
    }


def write(root: Path, coco: Content, name: str = "panoptic_val") -> Path:
    """Photos, PNGs and JSON; returns the JSON's path."""
    for entry in coco["images"]:
        if not (root / "photos" / entry["file_name"]).exists():
            write_photo(root / "photos" / entry["file_name"])
    for entry in coco["annotations"]:
        if not (root / name / entry["file_name"]).exists():
            write_map(root / name / entry["file_name"], ids_map())
    (root / f"{name}.json").write_text(json.dumps(coco))
    return root / f"{name}.json"


def config(root: Path, *files: Path, **more: Any) -> AnnotatedConfig:
    settings = {"dataset": "d", "kind": "panoptic", "input": root / "photos", "annotations": files}
    return AnnotatedConfig.model_validate(settings | more)


def read(config: AnnotatedConfig) -> tuple[dict[str, Example], dict[str, Reject]]:
    """By origin of the photo; every planned input once."""
    source = AnnotatedSource(config)
    (unit,) = source.plan()
    outcomes = list(source.read(unit, Seeds(0)))
    rejects = {outcome.origin: outcome for outcome in outcomes if isinstance(outcome, Reject)}
    examples = {outcome.pictures[0].origin: outcome for outcome in outcomes if isinstance(outcome, Example)}
    assert len(rejects) + len(examples) == unit.num_inputs
    return examples, rejects


def painted(colours: dict[int, int]) -> np.ndarray:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    for identity, place in PLACES.items():
        pixels[place] = PALETTE[colours[identity]]
    return pixels


@pytest.mark.parametrize(("colour_by", "colours"), [("class", CLASS_COLOURS), ("segment", SEGMENT_COLOURS)])
def test_segments_have_their_colours_and_void_is_black(tmp_path, colour_by, colours):
    examples, rejects = read(config(tmp_path, write(tmp_path, content()), colour_by=colour_by))
    assert rejects == {}
    assert list(examples) == ["1.jpg", "2.jpg", "3.jpg"]
    photo, segmentation = examples["2.jpg"].pictures
    assert (segmentation.role, segmentation.origin, segmentation.drawn) == ("segmentation", "panoptic_val/2.png", True)
    assert np.array_equal(segmentation.pixels, painted(colours))
    assert photo.size == segmentation.size == (SIDE, SIDE)


def test_several_files_have_their_own_folders_or_one_that_is_given(tmp_path):
    first, second = content(3), content(3)
    first = {key: first[key][:1] if key != "categories" else [{"id": 3}, {"id": 200}] for key in first}
    second = {key: second[key][1:] for key in second} | {"categories": [{"id": 1}, {"id": 3}, {"id": 200}]}
    files = write(tmp_path, first, "train"), write(tmp_path, second, "val")
    examples, rejects = read(config(tmp_path, *files))
    assert rejects == {}
    assert [example.pictures[1].origin for example in examples.values()] == ["train/1.png", "val/2.png", "val/3.png"]
    colours = {LARGE: 3, LITTLE: 2, CROWD: 2}  # among 1, 3 and 200, the ids of both
    assert all(np.array_equal(example.pictures[1].pixels, painted(colours)) for example in examples.values())
    (tmp_path / "train").rename(tmp_path / "all")
    for path in (tmp_path / "val").iterdir():
        path.rename(tmp_path / "all" / path.name)
    together, _ = read(config(tmp_path, *files, masks=tmp_path / "all"))
    assert [example.pictures[1].origin for example in together.values()] == ["all/1.png", "all/2.png", "all/3.png"]


def entry(coco: Content) -> dict[str, Any]:
    return coco["annotations"][0]


def segment(coco: Content) -> dict[str, Any]:
    return entry(coco)["segments_info"][0]


DAMAGES: dict[str, tuple[Callable[[Content], object], str, str]] = {
    "category": (lambda c: segment(c).update(category_id=4), "bad_annotation", "category_id 4"),
    "id-0": (lambda c: segment(c).update(id=0), "bad_annotation", "segment id 0"),
    "id-large": (lambda c: segment(c).update(id=1 << 24), "bad_annotation", "segment id 16777216"),
    "id-twice": (lambda c: segment(c).update(id=CROWD), "bad_annotation", "there twice"),
    "not-listed": (lambda c: entry(c)["segments_info"].pop(0), "bad_annotation", f"pixels of id {LARGE}"),
    "missing": (lambda c: entry(c).update(file_name="none.png"), "missing", "none.png"),
    "upwards": (lambda c: entry(c).update(file_name="../photos/1.jpg"), "bad_annotation", "leads out"),
    "absolute": (lambda c: entry(c).update(file_name="/etc/hostname"), "bad_annotation", "leads out"),
    "nul": (lambda c: entry(c).update(file_name="a\0.png"), "bad_annotation", "no path"),
    "surrogate": (lambda c: entry(c).update(file_name="\ud800.png"), "bad_annotation", "no path"),
    "folder": (lambda c: entry(c).update(file_name=""), "missing", "panoptic_val"),
    "no-photo": (lambda c: c["images"][0].update(file_name="none.jpg"), "missing", "no such file"),
    "photo-size": (lambda c: c["images"][0].update(width=300), "bad_annotation", "the JSON says 300x256"),
}


def damaged(root: Path, damage: str) -> AnnotatedConfig:
    path = write(root, content())
    coco = json.loads(path.read_text())
    DAMAGES[damage][0](coco)
    path.write_text(json.dumps(coco))
    return config(root, path, layouts={"pairs": 1})


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_costs_its_photo_and_no_more(tmp_path, damage):
    _, reason, detail = DAMAGES[damage]
    examples, rejects = read(damaged(tmp_path, damage))
    assert list(examples) == ["2.jpg", "3.jpg"]
    (reject,) = rejects.values()
    assert (reject.input, str(reject.reason)) == (0, reason)
    assert detail in reject.detail


@pytest.mark.parametrize("damage", ["surrogate", "not-listed"])
def test_damage_is_counted_in_the_shard(tmp_path, damage):
    base = damaged(tmp_path, damage)
    dataset, declared = Dataset(str(tmp_path / "d")), config_entry(base)
    dataset.declare("sequences", "annotated", declared)
    (job,) = plan(dataset, base, declared["fingerprint"])
    counts = make_shard(job).counts
    assert (counts["inputs"], counts["used"], counts["rejected"]) == (3, 2, 1)
    assert verify(dataset, deep=True).problems == []


@pytest.mark.parametrize(
    ("damage", "reason", "detail"),
    [
        (lambda path: write_map(path, ids_map()[:, :200]), "bad_annotation", r"1.png is (200, 256), its frame (256,"),
        (lambda path: write_map(path, np.repeat(np.repeat(ids_map(), 2, 0), 2, 1)), "bad_annotation", "(512, 512)"),
        (lambda path: path.write_text("<html>"), "not_image", "panoptic_val/1.png"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "truncated", "panoptic_val/1.png"),
    ],
    ids=["narrow", "large", "html", "cut"],
)
def test_a_png_that_does_not_fit_its_photo_costs_it(tmp_path, damage, reason, detail):
    base = config(tmp_path, write(tmp_path, content()))
    damage(tmp_path / "panoptic_val/1.png")
    examples, rejects = read(base)
    assert list(examples) == ["2.jpg", "3.jpg"]
    assert str(rejects["1.jpg"].reason) == reason
    assert detail in rejects["1.jpg"].detail


def test_a_photo_without_annotation_is_used_only_for_what_needs_none(tmp_path):
    coco = content()
    del coco["annotations"][1]
    path = write(tmp_path, coco)
    examples, rejects = read(config(tmp_path, path))
    assert (list(examples), str(rejects["2.jpg"].reason)) == (["1.jpg", "3.jpg"], "no_annotation")
    examples, rejects = read(config(tmp_path, path, derive=["grey"]))
    assert rejects == {}
    assert [picture.role for picture in examples["2.jpg"].pictures] == ["image", "grey"]


def test_the_annotation_of_an_unlisted_image_is_one_reject(tmp_path):
    coco = content()
    del coco["images"][1]
    examples, rejects = read(config(tmp_path, write(tmp_path, coco)))
    assert list(examples) == ["1.jpg", "3.jpg"]
    assert "'2.png'" in rejects["image_id 2"].detail


def test_more_segments_than_colours_are_one_reject(tmp_path):
    coco = content(2)
    many = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2100 + 1
    coco["annotations"][0]["segments_info"] = [{"id": n, "category_id": 3} for n in range(1, 2101)]
    write_map(tmp_path / "panoptic_val/1.png", many)
    path = write(tmp_path, coco)
    examples, rejects = read(config(tmp_path, path, colour_by="segment"))
    assert (list(examples), list(rejects)) == (["2.jpg"], ["1.jpg"])
    assert "2047" in rejects["1.jpg"].detail
    examples, rejects = read(config(tmp_path, path, colour_by="class"))
    assert (examples["1.jpg"].pictures[1].pixels == PALETTE[1]).all()


def test_a_png_in_coordinates_of_the_file_lies_on_the_photo_as_stored(tmp_path):
    coco = content(1)
    coco["images"][0]["height"] = 200
    coco["annotations"][0]["segments_info"] = [{"id": LITTLE, "category_id": 3}]
    write_photo(tmp_path / "photos/1.jpg", height=200, exif=6)
    ids = np.where(ids_map() == LITTLE, LITTLE, 0)[:200]
    write_map(tmp_path / "panoptic_val/1.png", ids)
    examples, rejects = read(config(tmp_path, write(tmp_path, coco), resize="stretch"))
    assert rejects == {}
    photo, segmentation = examples["1.jpg"].pictures
    assert photo.size == (SIDE, 200)
    rows, columns = np.nonzero(segmentation.pixels.any(axis=2))
    assert (columns.min(), columns.max()) == (30, 79)
    assert (rows.min(), rows.max()) == pytest.approx((20 * SIDE / 200, 60 * SIDE / 200 - 1), abs=1)


BROKEN: dict[str, Callable[[Content], object]] = {
    r"'images' is missing": lambda c: c.pop("images"),
    r"'annotations' is missing": lambda c: c.update(annotations=None),
    r"'categories' is missing": lambda c: c.pop("categories"),
    r"no images": lambda c: c.update(images=[], annotations=[]),
    r"categories\[1\] has no 'id'": lambda c: c["categories"][1].update(id="x"),
    r"annotations\[0\] has no 'image_id'": lambda c: entry(c).pop("image_id"),
    r"annotations\[0\] has no 'file_name'": lambda c: entry(c).pop("file_name"),
    r"annotations\[0\] has no 'segments_info'": lambda c: entry(c).pop("segments_info"),
    r"annotations\[0\].segments_info\[0\] has no 'id'": lambda c: segment(c).pop("id"),
    r"annotations\[0\].segments_info\[1\] is a int": lambda c: entry(c).update(segments_info=[segment(c), 1]),
    r"annotations\[0\].segments_info\[0\] has no 'category_id'": lambda c: segment(c).update(category_id=1.5),
    r"annotations\[1\] has the 'image_id' 1": lambda c: c["annotations"][1].update(image_id=1),
    r"images\[1\] has the 'id' 1": lambda c: c["images"][1].update(id=1),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_not_panoptic_is_an_error_that_names_the_place(tmp_path, message):
    path = write(tmp_path, content())
    coco = json.loads(path.read_text())
    BROKEN[message](coco)
    path.write_text(json.dumps(coco))
    with pytest.raises(SourceError, match=message) as refused:
        list(AnnotatedSource(config(tmp_path, path)).plan())
    assert "panoptic_val.json" in str(refused.value)


def test_a_missing_folder_of_pngs_is_an_error_that_says_what_to_set(tmp_path):
    path = write(tmp_path, content())
    (tmp_path / "panoptic_val").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=f"no folder {tmp_path}/panoptic_val .*masks"):
        list(AnnotatedSource(config(tmp_path, path)).plan())
    examples, _ = read(config(tmp_path, path, masks=tmp_path / "elsewhere"))
    assert len(examples) == 3


def test_a_replaced_png_changes_the_plan(tmp_path):
    base = config(tmp_path, write(tmp_path, content()))
    (before,) = AnnotatedSource(base).plan()
    write_map(tmp_path / "panoptic_val/1.png", np.full((SIDE, SIDE), LITTLE))
    (after,) = AnnotatedSource(base).plan()
    assert before.payload != after.payload
    assert "secret" not in str(before)

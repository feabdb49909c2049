"""One video, one object, one photo is in one split: over layouts, strides, roles, kinds, shards and sources.

Half of everything is held out here, so that whatever was split by anything but its origin would soon be on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import video_support
from annotated_support import write_picture
from object_support import InThisProcess, textured_glb, write
from PIL import Image
from tests_support import smooth_photo, write_photo

from uvd.pipeline.config import validate
from uvd.sequences import Example, Seeds, VisualSequence
from uvd.sequences.layouts import LAYOUTS, assemble
from uvd.sequences.reject import Reject
from uvd.sources import source_class
from uvd.sources.objaverse import ObjaverseSource

HALF = {"val": 0.5}
PHOTOS = 12


def examples(name: str, **settings: Any) -> list[Example]:
    """All examples of a source in small shards."""
    model = source_class(name)
    content = {"source": name, "dataset": "d", "holdout": HALF, "shard_size": 3} | settings
    source = model(validate(model.config_class, content, name))
    found: list[Example] = []
    for unit in source.plan():
        for item in source.read(unit, Seeds(settings.get("seed", 0), (name, unit.shard))):
            assert not isinstance(item, Reject), item
            found.append(item)
    return found


def sequences(found: Iterable[Example], layouts: dict[str, float]) -> list[VisualSequence]:
    made = [item for item in assemble(found, LAYOUTS, layouts, Seeds(0)) if isinstance(item, VisualSequence)]
    assert {sequence.layout for sequence in made} == set(layouts)
    return made


def splits_of(
    found: Iterable[Example | VisualSequence], known: dict[str, set[str]] | None = None
) -> dict[str, set[str]]:
    """Splits by the raw file, over all pictures in it."""
    splits = known if known is not None else {}
    for item in found:
        for picture in item.pictures:
            splits.setdefault(picture.origin, set()).add(item.split)
    return splits


def check(splits: dict[str, set[str]], number: int) -> None:
    assert len(splits) == number
    assert {origin: names for origin, names in splits.items() if len(names) > 1} == {}
    assert set.union(*splits.values()) == {"train", "val"}


# ---- videos


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for number in range(6):
        video_support.write_clip(root / f"clip-{number}.mp4", 96, rate=4)
    return root


@pytest.fixture(scope="module", autouse=True)
def _one_decoder():
    with video_support.kept_decoders():
        yield


def test_all_windows_and_strides_of_a_video_in_any_piece_and_shard(clips):
    splits: dict[str, set[str]] = {}
    for more in ({}, {"split_above": 1000, "segment_s": 10}, {"seed": 5, "shard_size": 2, "windows_per_stride": 2}):
        found = examples("video", input=str(clips), strides=[1, 2, 3], layouts={"frames": 1}, **more)
        assert len(found) > 12
        splits_of(found, splits)
        splits_of(sequences(found, {"frames": 1}), splits)
    check(splits, 6)


def test_a_video_that_a_list_names_several_times(clips):
    rows = [f"{{}}clip-{number}.mp4,{start},{start + 9}" for number in range(6) for start in (0, 12)]
    spelt = [row.format(prefix) for row, prefix in zip(rows, ["", "./", "", "a/../"] * 3, strict=True)]
    (clips / "list.csv").write_text("\n".join(["path,start,end", *spelt]) + "\n")
    (clips / "a").mkdir(exist_ok=True)
    found = examples("video", input=str(clips / "list.csv"), strides=[1], layouts={"frames": 1})
    assert len(found) == 2 * 2 * 6
    by_file: dict[str, set[str]] = {}
    for example in found:
        by_file.setdefault(Path(example.pictures[0].origin).name, set()).add(example.split)
    check(by_file, 6)


def test_folders_of_frames(tmp_path):
    for clip in range(8):
        for number in range(40):
            write_photo(tmp_path / f"clip-{clip}" / f"{number:03d}.jpg", 40 * clip + number, 64, 64)
    check(splits_of(examples("video", input=str(tmp_path), strides=[1, 2], layouts={"frames": 1})), 8)


@pytest.mark.parametrize("layout", ["interleaved", "grouped"])
def test_all_annotations_of_a_video(tmp_path, layout):
    for clip in range(8):
        for number in range(17):
            write_picture(tmp_path / f"clip-{clip}" / "frames" / f"{number:03d}.jpg", smooth_photo(clip, 64, 64))
            for kind in ("mask", "depth"):
                path = tmp_path / f"clip-{clip}" / kind / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (64, 64), 40 + number).save(path)
    found = examples("annotated-video", input=tmp_path, layouts={layout: 1})
    clips: dict[str, set[str]] = {}
    for example in sequences(found, {layout: 1}):
        for picture in example.pictures:
            clips.setdefault(picture.origin.partition("/")[0], set()).add(example.split)
    assert len(found) == 8 * 2 * 3
    check(clips, 8)


# ---- objects


@pytest.fixture
def _no_child(monkeypatch) -> None:
    monkeypatch.setattr(ObjaverseSource, "_child", lambda _: InThisProcess)


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("objects")
    for number in range(5):
        write(root / "000-000" / f"{number:032x}.glb", textured_glb(number))
    return root


@pytest.mark.usefixtures("_no_child")
def test_all_views_and_roles_of_an_object(objects):
    common = {"input": objects, "views": 4, "shard_size": 2, "split_counts": {}}
    around = examples("objaverse", layouts={"multiview": 1}, **common)
    by_view = examples(
        "objaverse", layouts={"pairs": 1, "tuples": 1}, roles=["view", "depth", "mask"], seed=4, **common
    )
    one_by_one = examples("objaverse", layouts={"single": 1}, **common)
    splits = splits_of([*around, *by_view, *one_by_one])
    splits_of(sequences(around, {"multiview": 1}), splits)
    splits_of(sequences(by_view, {"pairs": 1, "tuples": 1}), splits)
    check(splits, 5)


@pytest.mark.usefixtures("_no_child")
@pytest.mark.parametrize("sides", [("train", "test"), ("test", "")])
def test_an_object_that_a_list_names_twice(objects, tmp_path, sides):
    """By one uid, in two files and with two splits."""
    uid = f"{1:032x}"
    for folder in ("a", "b"):
        write(tmp_path / folder / f"{uid}.glb", textured_glb(1))
    rows = [f"{uid},{folder}/{uid}.glb,{side}" for folder, side in zip("ab", sides, strict=True)]
    write(tmp_path / "list.csv", "\n".join(["uid,path,split", *rows]) + "\n")
    model = source_class("objaverse")
    config = {"source": "objaverse", "dataset": "d", "input": tmp_path / "list.csv", "views": 2}
    source = model(validate(model.config_class, config, "objaverse"))
    found = [item for unit in source.plan() for item in source.read(unit, Seeds(0))]
    assert [type(item).__name__ for item in found] == ["Example", "Reject"]
    assert isinstance(found[0], Example)
    assert found[0].split == sides[0]
    assert isinstance(found[1], Reject)
    assert found[1].reason == "duplicate"


# ---- photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """`class-K/NAME.jpg`, and boxes and polygons in COCO's form."""
    root = tmp_path_factory.mktemp("photos")
    names = [f"class-{number % 3}/{number:03d}.jpg" for number in range(PHOTOS)]
    for number, name in enumerate(names):
        write_photo(root / name, number, 120, 160)
    images = [{"id": n, "file_name": name, "width": 160, "height": 120} for n, name in enumerate(names)]
    outline = {"bbox": [20, 20, 80, 80], "segmentation": [[20, 20, 100, 20, 100, 100, 20, 100]], "area": 6400}
    annotations = [{"id": n, "image_id": n, "category_id": 1, "iscrowd": 0} | outline for n in range(PHOTOS)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return root


def test_a_photo_in_all_layouts_kinds_and_sources(photos):
    """The same folder through several sources: a photo's split follows its path, whatever becomes of it."""
    splits: dict[str, set[str]] = {}
    boxes = {"input": photos, "kind": "coco", "annotations": [photos / "instances.json"]}
    for layouts in ({"pairs": 1.0}, {"tuples": 1.0}, {"pairs": 1.0, "tuples": 1.0}):
        found = examples("annotated", layouts=layouts, seed=len(layouts), **boxes)
        splits_of(found, splits)
        splits_of(sequences(found, layouts), splits)
    splits_of(examples("annotated", render=["segmentation"], layouts={"pairs": 1}, shard_size=5, **boxes), splits)
    splits_of(examples("images", input=photos, layouts={"single": 1}), splits)
    splits_of(examples("images", input=photos, derive=["grey", "masked"], layouts={"pairs": 1}, seed=9), splits)
    check(splits, PHOTOS)


@pytest.mark.parametrize("form", ["folders", "list"])
def test_a_photo_in_a_group_of_its_class(photos, form):
    """The origin has no name here, as it might tell the class; the split is the photo's all the same."""
    place: dict[str, Any] = {"input": str(photos)}
    if form == "list":
        names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
        (photos / "list.csv").write_text("\n".join(["path,class", *(f"{name},{name[:7]}" for name in names)]) + "\n")
        place = {"input": str(photos), "list_file": photos / "list.csv", "format": "list"}
    grouped = examples("categories", layouts={"category": 1}, **place)
    alone = examples("images", input=photos, layouts={"single": 1})
    assert [item.split for item in grouped] == [item.split for item in alone]
    made = sequences(grouped, {"category": 1})
    check(splits_of(made, splits_of(grouped)), PHOTOS)


def test_photos_added_to_a_class_change_nobodys_split(photos, tmp_path):
    before: dict[bytes, str] = {}
    for number in (6, 12):
        for name in sorted(path.relative_to(photos) for path in photos.rglob("*.jpg"))[::-1][:number]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes((photos / name).read_bytes())
        now = {
            item.pictures[0].pixels.tobytes(): item.split
            for item in examples("categories", input=str(tmp_path), layouts={"category": 1})
        }
        assert before.items() <= now.items()
        before = now
    assert len(before) == PHOTOS

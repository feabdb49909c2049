"""Photos and maps matched by name: in every published layout, and whatever does not fit named and refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from annotated_support import write_picture
from map_file_support import HEIGHT, WIDTH, config, ids, ramp, read, reasons
from numpy.typing import NDArray
from pydantic import ValidationError
from tests_support import smooth_photo

from uvd.renderers.palette import PALETTE
from uvd.sources.annotated.map_form import MapForm
from uvd.sources.annotated.presets import PRESETS
from uvd.sources.annotated.source import AnnotatedSource
from uvd.sources.base import SourceError

# Matching


def write_all(root: Path, *paths: str) -> None:
    for path in paths:
        size = ids().astype(np.uint8) if path.endswith("_l.png") or "labels" in path else smooth_photo(1, HEIGHT, WIDTH)
        write_picture(root / path, size)


def test_names_decide_and_never_the_order(tmp_path):
    for number in (2, 10, 9):
        write_picture(tmp_path / f"img/{number}.png", smooth_photo(number, HEIGHT, WIDTH))
    for number in (10, 9, 2, 1):
        write_picture(tmp_path / f"labels/{number}.png", np.full((HEIGHT, WIDTH), number, np.uint8))
    maps = {"segmentation": {"files": "labels/*.png", "form": "labels"}}
    examples, rejects = read(config(tmp_path, images="img/*.png", maps=maps))
    assert reasons(rejects) == {"labels/1.png": "missing"}
    assert len(examples) == 3
    for example in examples:
        number = int(Path(example.pictures[0].origin).stem)
        assert example.pictures[1].origin == f"labels/{number}.png"
        assert (example.pictures[1].pixels == PALETTE[number]).all()


def test_whatever_has_no_partner_is_named(tmp_path):
    write_all(tmp_path, "img/a.jpg", "img/a.png", "img/b.png", "img/c.png", "img/d.png")
    write_all(tmp_path, "labels/a.png", "labels/a.tif", "labels/b.png", "labels/x.png", "target/b.png", "target/c.png")
    maps = {
        "segmentation": {"files": "labels/*.{png,tif}", "form": "labels", "void": [255]},
        "target": {"files": "target/*.png", "form": "picture"},
    }
    examples, rejects = read(config(tmp_path, images="img/*.{png,jpg}", maps=maps))
    assert {example.pictures[0].origin: [p.role for p in example.pictures[1:]] for example in examples} == {
        "img/a.jpg": ["segmentation"],
        "img/b.png": ["segmentation", "target"],
        "img/c.png": ["target"],
    }
    assert reasons(rejects) == {
        "img/a.png": "no_annotation",
        "img/d.png": "no_annotation",
        "labels/a.tif": "bad_annotation",
        "labels/x.png": "missing",
    }


def test_photos_and_maps_in_one_folder(tmp_path):
    write_all(tmp_path, "a/1.png", "a/1_l.png", "b/1.png", "b/2_l.png")
    maps = {"labels": {"files": "**/*_l.png", "form": "labels", "void": [255]}}
    (example,), rejects = read(config(tmp_path, images="**/*.png", maps=maps))
    assert [picture.origin for picture in example.pictures] == ["a/1.png", "a/1_l.png"]
    assert reasons(rejects) == {"b/1.png": "no_annotation", "b/2_l.png": "missing"}


def test_links_out_of_the_input_are_not_read(tmp_path):
    write_all(tmp_path, "in/img/a.png", "in/labels/a.png", "outside/b.png", "outside/labels/b.png")
    (tmp_path / "in/img/b.png").symlink_to(tmp_path / "outside/b.png")
    (tmp_path / "in/labels/b.png").symlink_to(tmp_path / "outside/labels/b.png")
    maps = {"labels": {"files": "labels/*.png", "form": "labels", "void": [255]}}
    (example,), rejects = read(config(tmp_path / "in", images="img/*.png", maps=maps))
    assert (example.pictures[0].origin, rejects) == ("img/a.png", [])


def test_names_that_are_no_text(tmp_path):
    write_all(tmp_path, "img/a.png", "labels/a.png")
    for folder in ("img", "labels"):
        with open(os.path.join(os.fsencode(tmp_path / folder), b"b\xff.png"), "wb") as file:
            file.write(b"whatever")
    maps = {"labels": {"files": "labels/*.png", "form": "labels", "void": [255]}}
    (example,), rejects = read(config(tmp_path, images="img/*.png", maps=maps))
    assert example.pictures[0].origin == "img/a.png"
    assert reasons(rejects) == {"img/b\\udcff.png": "unreadable", "labels/b\\udcff.png": "unreadable"}


def test_the_plan_names_files_and_sizes(tmp_path):
    write_all(tmp_path, "img/a.png", "labels/a.png")
    maps = {"labels": {"files": "labels/*.png", "form": "labels"}}
    (unit,) = AnnotatedSource(config(tmp_path, images="img/*.png", maps=maps)).plan()
    sizes = [(tmp_path / path).stat().st_size for path in ("img/a.png", "labels/a.png")]
    (item,) = unit.payload["items"]
    assert item == {"origin": "img/a.png", "bytes": sizes[0], "maps": [["labels", "labels/a.png", sizes[1]]]}


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        ("img/*.jpg", {"m": "labels/*.png"}, "no photos below .* none matches img"),
        ("img/*.png", {"m": "label/*.png"}, "no files for m below .* none matches label/"),
        ("../*.png", {"m": "labels/*.png"}, "no pattern of paths below a folder"),
        ("img/*.png", {"m": "labels/*/*.png"}, "captures 2 parts of a path"),
        ("img/*.png", {"image": "labels/*.png"}, "'image' is no role"),
        ("img/*.png", {"a/b": "labels/*.png"}, "'a/b' is no role"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, images, maps, message):
    write_all(tmp_path, "img/a.png", "labels/a.png")
    maps = {role: {"files": files, "form": "labels"} for role, files in maps.items()}
    with pytest.raises(SourceError, match=message):
        list(AnnotatedSource(config(tmp_path, images=images, maps=maps)).plan())


def test_no_input_folder(tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        list(AnnotatedSource(config(tmp_path / "x", kind="pairs")).plan())


@pytest.mark.parametrize(
    "settings",
    [
        {"files": "../a", "form": "labels"},
        {"files": "a/*", "form": "depth", "void": [255]},
        {"files": "a/*", "form": "disparity", "far": 80},
        {"files": "a/*", "form": "labels", "scale": 256},
        {"files": "a/*", "form": "depth", "near": 5, "far": 5},
        {"files": "a/*", "form": "depth", "scale": 0},
        {"files": "a/*", "form": "labels", "unknown": 1},
        {"files": "a/*", "form": "labels", "add": -1},
        {"files": "a/*"},
    ],
)
def test_forms_that_are_refused(settings):
    with pytest.raises(ValidationError):
        MapForm.model_validate(settings)


# Presets


def preset_files(root: Path, kind: str) -> list[str]:
    """Writes one example of a data set as published: the paths of its photo and maps, in their order."""
    label, deep = ids().astype(np.uint8) % 9, np.rint(ramp() * 1000).astype(np.uint16)
    photo = smooth_photo(1, HEIGHT, WIDTH)
    drive = "2011_09_26_drive_0001_sync"
    files: dict[str, list[tuple[str, NDArray]]] = {
        "ade20k": [
            ("images/validation/ADE_val_00000001.jpg", photo),
            ("annotations/validation/ADE_val_00000001.png", label),
        ],
        "cityscapes": [
            ("leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png", photo),
            ("gtFine/val/bonn/bonn_000000_000019_gtFine_labelIds.png", label),
            ("disparity/val/bonn/bonn_000000_000019_disparity.png", deep),
        ],
        "coco-stuff": [
            ("images/val2017/000000000139.jpg", photo),
            ("annotations/val2017/000000000139.png", label),
        ],
        "voc-segmentation": [
            ("JPEGImages/2007_000032.jpg", photo),
            ("SegmentationClass/2007_000032.png", label),
            ("SegmentationObject/2007_000032.png", label),
        ],
        "nyu-depth": [
            ("official_splits/test/bathroom/rgb_00045.jpg", photo),
            ("official_splits/test/bathroom/sync_depth_00045.png", deep),
        ],
        "kitti-depth": [
            (f"2011_09_26/{drive}/image_02/data/0000000005.png", photo),
            (f"val/{drive}/proj_depth/groundtruth/image_02/0000000005.png", deep),
        ],
        "pairs": [("input/1.jpg", photo), ("target/1.png", photo)],
        "stereo": [("left/1.png", photo), ("right/1.png", photo), ("disparity/1.tif", deep)],
    }
    for path, stored in files[kind]:
        write_picture(root / path, stored)
    return [path for path, _ in files[kind]]


@pytest.mark.parametrize("kind", PRESETS)
def test_published_layouts(tmp_path, kind):
    paths = preset_files(tmp_path, kind)
    examples, rejects = read(config(tmp_path, kind=kind))
    assert rejects == []
    whole, *alone = examples
    assert [picture.origin for picture in whole.pictures] == paths
    splits = {"ade20k": "val", "cityscapes": "val", "coco-stuff": "val", "nyu-depth": "test", "kitti-depth": "val"}
    assert whole.split == splits.get(kind, "train")
    if kind == "voc-segmentation":
        assert [example.group for example in alone] == [str(place) for place in range(1, 9)]
        assert {example.pictures[1].role for example in alone} == {"foreground"}
    else:
        assert alone == []
    roles = [picture.role for picture in whole.pictures]
    assert roles == ["image", *(role for role in PRESETS[kind].maps if role != "foreground")]


@pytest.mark.parametrize("kind", ["cityscapes", "voc-segmentation", "stereo"])
def test_optional_maps_may_be_absent(tmp_path, kind):
    paths = preset_files(tmp_path, kind)
    (tmp_path / paths[-1]).unlink()
    examples, rejects = read(config(tmp_path, kind=kind))
    assert rejects == []
    assert [picture.origin for picture in examples[0].pictures] == paths[:-1]


@pytest.mark.parametrize("kind", PRESETS)
def test_the_maps_of_another_split_or_photo_are_not_taken(tmp_path, kind):
    paths = preset_files(tmp_path, kind)
    photo = tmp_path / paths[0]
    other = paths[0].replace("validation", "training").replace("val", "train").replace("image_02", "image_03")
    if other == paths[0]:
        other = str(Path(paths[0]).with_stem(f"{photo.stem}9"))
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    photo.rename(tmp_path / other)
    examples, rejects = read(config(tmp_path, kind=kind))
    assert examples == []
    assert reasons(rejects) == {other: "no_annotation", **dict.fromkeys(paths[1:], "missing")}


def test_cityscapes_void_and_coco_stuff_places(tmp_path):
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[100:], label[200:] = 7, 33
    photo = smooth_photo(1, HEIGHT, WIDTH)
    write_picture(tmp_path / "c/leftImg8bit/train/a/a_1_2_leftImg8bit.png", photo)
    write_picture(tmp_path / "c/gtFine/train/a/a_1_2_gtFine_labelIds.png", np.where(label == 0, 4, label))
    (example,), _ = read(config(tmp_path / "c", kind="cityscapes"))
    rows = example.pictures[1].pixels[[0, 150, 250], 0]
    assert np.array_equal(rows, PALETTE[[0, 7, 33]])
    write_picture(tmp_path / "s/images/train2017/1.jpg", photo)
    write_picture(tmp_path / "s/annotations/train2017/1.png", np.where(label == 33, 255, label))
    (example,), _ = read(config(tmp_path / "s", kind="coco-stuff"))
    assert np.array_equal(example.pictures[1].pixels[[0, 150, 250], 0], PALETTE[[1, 8, 0]])


def test_only_the_wanted_roles_are_read(tmp_path):
    preset_files(tmp_path, "voc-segmentation")
    examples, _ = read(config(tmp_path, kind="voc-segmentation", roles=["segmentation"]))
    assert {picture.role for example in examples for picture in example.pictures} == {"image", "segmentation"}
    with pytest.raises(ValidationError, match="no role 'depth'; there are segmentation, instances, foreground"):
        read(config(tmp_path, kind="voc-segmentation", roles=["depth"]))


def test_folders_say_the_split_if_asked(tmp_path):
    write_all(tmp_path, "img/val2017/a.png", "labels/val2017/a.png", "img/train/b.png", "labels/train/b.png")
    maps = {"labels": {"files": "labels/*/*.png", "form": "labels", "void": [255]}}
    examples, _ = read(config(tmp_path, images="img/*/*.png", maps=maps, folder_splits=True))
    assert [example.split for example in examples] == ["train", "val"]

"""Kind `yolo`: boxes and polygons lie on their objects in both folder forms, bad lines are named, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uvd.renderers.palette import PALETTE
from uvd.sequences import Example, Reject, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.source import AnnotatedSource
from uvd.sources.annotated.yolo import YoloReader, cut_polygon, labels_of, split_in
from uvd.sources.annotated.yolo_labels import MAX_OBJECTS, read_labels
from uvd.sources.base import SourceError

WIDTH, HEIGHT = 500, 300
LEFT, TOP, RIGHT, BOTTOM = 150, 100, 250, 220
"""Of a red rectangle in every photo."""
BOX = f"3 {(LEFT + RIGHT) / 2 / WIDTH} {(TOP + BOTTOM) / 2 / HEIGHT} {(RIGHT - LEFT) / WIDTH} {(BOTTOM - TOP) / HEIGHT}"
CORNERS = ((LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM), (LEFT, BOTTOM))
POLYGON = "3 " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in CORNERS)
SIDE = "0 0 0 0.02 0 0.02 1 0 1"
"""A polygon that the centre crop cuts away."""


def add(root: Path, photo: str, label: str | None = None, lines: str | bytes = BOX) -> None:
    path = root / photo
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    pixels[TOP:BOTTOM, LEFT:RIGHT] = (250, 40, 40)
    Image.fromarray(pixels).save(path)
    if label is not None:
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / label).write_bytes(lines.encode() if isinstance(lines, str) else lines)


def config(root: Path, **more: Any) -> AnnotatedConfig:
    return AnnotatedConfig.model_validate({"dataset": "d", "kind": "yolo", "input": root} | more)


def read(root: Path, **more: Any) -> tuple[list[Example], dict[str, str]]:
    """Examples, and reason with detail by origin of what was refused; checks the accounting."""
    source = AnnotatedSource(config(root, **more))
    examples, rejects = [], {}
    for unit in source.plan():
        outcomes = list(source.read(unit, Seeds(0)))
        indices = [item.inputs[0] if isinstance(item, Example) else item.input for item in outcomes]
        assert set(indices) == set(range(unit.num_inputs))
        examples += [item for item in outcomes if isinstance(item, Example)]
        rejects |= {item.origin: f"{item.reason}: {item.detail}" for item in outcomes if isinstance(item, Reject)}
    return examples, rejects


def pictures(example: Example) -> dict[str, np.ndarray]:
    return {picture.role: picture.pixels for picture in example.pictures}


def red(example: Example) -> np.ndarray:
    pixels = pictures(example)["image"].astype(int)
    return (pixels[..., 0] > 155) & (pixels[..., 1] < 50)


@pytest.mark.parametrize("lines", [BOX, POLYGON], ids=["box", "polygon"])
def test_boxes_lie_on_their_objects(tmp_path, lines):
    add(tmp_path, "images/a.png", "labels/a.txt", lines)
    ((example,), rejects) = read(tmp_path, render=["filled_boxes", "boxes"], boxes_over_image=False)
    assert rejects == {}
    assert np.array_equal(pictures(example)["filled_boxes"][..., 0] == 255, red(example))
    colours = {tuple(value) for value in pictures(example)["boxes"].reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), tuple(PALETTE[4].tolist())}


@pytest.mark.parametrize("resize", ["center_crop", "stretch", "random_crop"])
def test_polygons_lie_on_their_objects(tmp_path, resize):
    add(tmp_path, "images/a.png", "labels/a.txt", f"{POLYGON}\n{SIDE}\n")
    ((example,), _) = read(tmp_path, resize=resize, render=["segmentation"])
    assert list(pictures(example)) == ["image", "segmentation"]
    drawn = (pictures(example)["segmentation"] == PALETTE[4]).all(axis=-1)
    object_ = red(example)
    assert np.logical_and(drawn, object_).sum() / np.logical_or(drawn, object_).sum() > 0.97
    side = (pictures(example)["segmentation"] == PALETTE[1]).all(axis=-1)
    assert side.any() == (resize == "stretch")


def test_the_smaller_polygon_is_on_top_and_boxes_have_no_segmentation(tmp_path):
    whole = "7 0 0 1 0 1 1 0 1"
    add(tmp_path, "images/a.png", "labels/a.txt", f"{POLYGON}\n{whole}\n")
    add(tmp_path, "images/b.png", "labels/b.txt", BOX)
    examples, rejects = read(tmp_path, render=["segmentation"])
    picture = pictures(examples[0])["segmentation"]
    assert {tuple(value) for value in picture.reshape(-1, 3).tolist()} == {tuple(PALETTE[n].tolist()) for n in (4, 8)}
    assert rejects["images/b.png"].startswith("no_annotation")


def test_foreground_is_one_example_a_class(tmp_path):
    other = "5 0.5 0.8 0.6 0.8 0.6 0.9 0.5 0.9"
    add(tmp_path, "images/a.png", "labels/a.txt", "\n".join([POLYGON, other, other.replace("0.8", "0.2"), BOX, SIDE]))
    examples, _ = read(tmp_path, render=["foreground"])
    assert [example.group for example in examples] == ["4", "6"]
    mask = pictures(examples[0])["foreground"]
    assert {tuple(value) for value in mask.reshape(-1, 3).tolist()} == {(0, 0, 0), (255, 255, 255)}
    assert (mask[..., 0] > 0).sum() > 0.97 * red(examples[0]).sum()


def test_all_folder_forms_and_their_splits(tmp_path):
    for photo, label in {
        "images/train2017/a.png": "labels/train2017/a.txt",
        "images/val/deep/a.png": "labels/val/deep/a.txt",
        "images/a.png": "labels/a.txt",
        "valid/images/a.png": "valid/labels/a.txt",
        "test/images/a.png": "test/labels/a.txt",
        "images/images/a.b.png": "images/labels/a.b.txt",
    }.items():
        add(tmp_path, photo, label)
    examples, rejects = read(tmp_path)
    assert rejects == {}
    assert {example.pictures[0].origin: example.split for example in examples} == {
        "images/train2017/a.png": "train",
        "images/val/deep/a.png": "val",
        "images/a.png": "train",
        "valid/images/a.png": "val",
        "test/images/a.png": "test",
        "images/images/a.b.png": "train",
    }
    held_out = read(tmp_path, holdout={"val": 0.999999})[0]
    assert {e.split for e in held_out if e.pictures[0].origin in ("images/a.png", "images/images/a.b.png")} == {"val"}
    assert {e.split for e in held_out if e.pictures[0].origin.startswith("images/train2017")} == {"train"}


def test_paths():
    assert labels_of("images/images/x/a.jpg") == "images/labels/x/a.txt"
    assert labels_of("a/imagesx/a.jpg") is None
    assert labels_of("images.jpg") is None
    assert split_in("training/images/a.jpg") is None
    assert split_in("images/a/train.jpg") is None


BAD_LINES = {
    "nan": "0 nan 0.5 0.1 0.1",
    "infinite": "0 0.5 inf 0.1 0.1",
    "negative": "0 -0.1 0.5 0.1 0.1",
    "over-one": "0 0.5 1.01 0.1 0.1",
    "polygon-over-one": "0 0.1 0.1 0.2 0.1 0.2 1.5",
    "class-alone": "0",
    "four": "0 0.5 0.5 0.1",
    "six": "0 0.5 0.5 0.1 0.1 0.9",
    "two-vertices-and-a-half": "0 0.1 0.1 0.2 0.1 0.2 0.2 0.3",
    "class-name": "dog 0.5 0.5 0.1 0.1",
    "class-half": "0.5 0.5 0.5 0.1 0.1",
    "class-negative": "-1 0.5 0.5 0.1 0.1",
    "class-huge": "1e300 0.5 0.5 0.1 0.1",
    "commas": "0,0.5,0.5,0.1,0.1",
    "pixels": "0 150 100 50 60",
}


def test_bad_lines_cost_their_photo_and_are_named(tmp_path):
    add(tmp_path, "images/good.png", "labels/good.txt", f"\ufeff{BOX}\r\n\r\n  {BOX}  \n")
    for name, line in BAD_LINES.items():
        add(tmp_path, f"images/{name}.png", f"labels/{name}.txt", f"{BOX}\n\n{line}\n{BOX}\n")
    add(tmp_path, "images/bytes.png", "labels/bytes.txt", b"\xff\xfe\x00\x01")
    add(tmp_path, "images/beyond.png", "labels/beyond.txt", "2047 0.5 0.5 0.1 0.1")
    examples, rejects = read(tmp_path)
    assert [example.pictures[0].origin for example in examples] == ["images/good.png"]
    assert len(rejects) == len(BAD_LINES) + 2
    for name in BAD_LINES:
        message = rejects[f"images/{name}.png"]
        assert message.startswith(f"bad_annotation: labels/{name}.txt, line 3: "), message
        assert "dog" not in message
    assert all(message.startswith("bad_annotation") for message in rejects.values())


def test_more_objects_than_any_photo_has_are_not_read():
    with pytest.raises(RejectedInput, match="over 10000 objects"):
        read_labels(b"0 0.5 0.5 0.1 0.1\n" * (MAX_OBJECTS + 1))


def test_classes_written_as_floats_and_boxes_without_area(tmp_path):
    add(tmp_path, "images/a.png", "labels/a.txt", "2.000000e+00 0.5 0.5 0.2 0.2\n4 0.5 0.5 0 0.3\n")
    ((example,), _) = read(tmp_path, boxes_over_image=False)
    colours = {tuple(value) for value in pictures(example)["boxes"].reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), tuple(PALETTE[3].tolist())}


def test_whatever_has_no_partner_is_named(tmp_path):
    add(tmp_path, "images/a.png", "labels/a.txt")
    add(tmp_path, "images/a.jpg")
    add(tmp_path, "images/none.png")
    add(tmp_path, "images/empty.png", "labels/empty.txt", "")
    add(tmp_path, "images/blank.png", "labels/blank.txt", "\n \n")
    add(tmp_path, "preview.png")
    add(tmp_path, "images/.hidden.png")
    for name in ("labels/lost.txt", "labels/classes.txt", "README.txt"):
        (tmp_path / name).write_text("secret words")
    examples, rejects = read(tmp_path)
    assert [example.pictures[0].origin for example in examples] == ["images/a.jpg"]
    assert {origin: message.partition(":")[0] for origin, message in rejects.items()} == {
        "images/a.png": "no_annotation",
        "images/none.png": "no_annotation",
        "images/empty.png": "no_annotation",
        "images/blank.png": "no_annotation",
        "preview.png": "no_annotation",
        "labels/lost.txt": "missing",
    }
    examples, rejects = read(tmp_path, derive=["grey"])
    assert [example.pictures[0].origin for example in examples] == [
        "images/a.jpg",
        "images/blank.png",
        "images/empty.png",
        "images/none.png",
    ]


def test_what_is_no_yolo_folder_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="images and labels"):
        read(tmp_path)
    add(tmp_path, "train/a.png", "train/a.txt")
    with pytest.raises(SourceError, match="does not hold images"):
        read(tmp_path)
    add(tmp_path, "images/a.png", "labels/a.txt")
    with pytest.raises(SourceError, match="keypoints"):
        read(tmp_path, render=["pose", "boxes"])


def test_items_know_their_files_by_size(tmp_path):
    add(tmp_path, "images/a.png", "labels/a.txt")
    (item,) = YoloReader(config(tmp_path)).items()
    sizes = [(tmp_path / "images/a.png").stat().st_size, len(BOX)]
    assert item == {"origin": "images/a.png", "labels": "labels/a.txt", "bytes": sizes}


def test_polygons_are_cut_exactly():
    star = np.array([[-400, 50], [100, 90], [600, -60], [128, 300], [90, 150]], np.float64)
    cut = cut_polygon(star, 0, 256)
    assert cut.min() >= 0
    assert cut.max() <= 256
    rows, columns = np.mgrid[0:256:8, 0:256:8] + 0.5
    inside = winding(star, columns, rows)
    assert np.array_equal(inside, winding(cut, columns, rows))
    assert 0.2 < inside.mean() < 0.9
    assert len(cut_polygon(star + 5000, 0, 256)) == 0
    square = np.array([[10, 10], [20, 10], [20, 20], [10, 20]], np.float64)
    assert np.array_equal(cut_polygon(square, 0, 256), square)


def winding(polygon: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Even-odd test of points."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside

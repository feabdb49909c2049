"""The `annotated` source on a small COCO data set drawn here: labels lie on their objects, damage costs one image."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from uvd.manifests import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.renderers.palette import PALETTE
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.annotated.source import AnnotatedConfig, AnnotatedSource
from uvd.sources.base import SourceError

WIDTH, HEIGHT = 400, 300
CROP = 50
"""The centre crop of 400x300 begins at x = 50; 300 pixels become 256."""
SCALE = 256 / 300
CLASSES = {7: "secret-dog", 3: "secret-cat", 90: "secret-person"}
COLOUR_INDEX = {3: 1, 7: 2, 90: 3}
BOX = (120, 60, 100, 80)
SECOND = (250, 160, 60, 90)


def draw_image(folder: Path, name: str, seed: int) -> None:
    """Noise with a red and a blue rectangle at BOX and SECOND."""
    pixels = np.random.default_rng(seed).integers(60, 120, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for (x, y, width, height), colour in ((BOX, (255, 0, 0)), (SECOND, (0, 0, 255))):
        pixels[y : y + height, x : x + width] = colour
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name, compress_level=1)


def polygon(box: tuple[int, int, int, int]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def run_lengths(box: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, width, height = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def standing(box: tuple[int, int, int, int]) -> list[float]:
    """17 keypoints spread over a box, all visible."""
    x, y, width, height = box
    places = [(0.5, 0.1), (0.55, 0.05), (0.45, 0.05), (0.6, 0.1), (0.4, 0.1), (0.7, 0.3), (0.3, 0.3), (0.8, 0.5)]
    places += [
        (0.2, 0.5),
        (0.9, 0.6),
        (0.1, 0.6),
        (0.6, 0.6),
        (0.4, 0.6),
        (0.6, 0.8),
        (0.4, 0.8),
        (0.6, 0.95),
        (0.4, 0.95),
    ]
    return [value for u, v in places for value in (x + u * width, y + v * height, 2)]


Coco = dict[str, Any]


def content() -> Coco:
    images = [{"id": n, "file_name": f"{n:03d}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2, 3, 4)]
    first = {"image_id": 1, "category_id": 7, "bbox": list(BOX), "segmentation": polygon(BOX), "iscrowd": 0}
    second = {"image_id": 2, "category_id": 3, "bbox": list(SECOND), "segmentation": run_lengths(SECOND), "iscrowd": 0}
    crowd = {"image_id": 2, "category_id": 7, "bbox": list(BOX), "segmentation": run_lengths(BOX), "iscrowd": 1}
    person = {"image_id": 3, "category_id": 90, "bbox": list(BOX), "keypoints": standing(BOX), "num_keypoints": 17}
    third = {"image_id": 3, "category_id": 7, "bbox": list(SECOND), "segmentation": polygon(SECOND), "iscrowd": 0}
    return {
        "images": images,
        "annotations": [first, second, crowd, person, third],
        "categories": [{"id": identity, "name": name} for identity, name in CLASSES.items()],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2, 3, 4):
        draw_image(tmp_path / "images", f"{number:03d}.png", number)
    return tmp_path


def config(folder: Path, coco: Any, **more: Any) -> AnnotatedConfig:
    path = folder / "annotations.json"
    path.write_text(coco if isinstance(coco, str) else json.dumps(coco))
    settings = {"dataset": "d", "input": folder / "images", "annotations": [path], "boxes_over_image": False}
    return AnnotatedConfig.model_validate(settings | more)


def read(config: AnnotatedConfig) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Pictures by role, for each image, and the reason of each reject; all in one unit, every input once."""
    source = AnnotatedSource(config)
    (unit,) = source.plan()
    items = list(source.read(unit, Seeds(0)))
    named = [item.input if isinstance(item, Reject) else item.inputs[0] for item in items]
    assert named == list(range(unit.num_inputs))
    examples = [item for item in items if isinstance(item, Example)]
    return (
        {
            example.pictures[0].origin: {picture.role: picture.pixels for picture in example.pictures}
            for example in examples
        },
        {item.origin: item.reason for item in items if isinstance(item, Reject)},
    )


def extent(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column and row, left, top, right, bottom, of what is not black."""
    rows, columns = np.nonzero(pixels.any(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def expected_extent(box: tuple[int, int, int, int]) -> list[float]:
    x, y, width, height = box
    left, top = (x - CROP) * SCALE, y * SCALE
    return [left, top, left + width * SCALE - 1, top + height * SCALE - 1]


def on_object(photo: np.ndarray, channel: int) -> np.ndarray:
    """Where the photo shows the rectangle of that colour."""
    others = [index for index in range(3) if index != channel]
    return (photo[..., channel] > 200) & (photo[..., others] < 60).all(axis=2)


def test_labels_lie_on_their_objects_after_the_crop(folder):
    examples, rejects = read(config(folder, content(), render=["boxes", "pose", "segmentation"]))
    assert rejects == {"004.png": "no_annotation"}
    assert {name: set(roles) for name, roles in examples.items()} == {
        "001.png": {"image", "boxes", "segmentation"},
        "002.png": {"image", "boxes", "segmentation"},
        "003.png": {"image", "boxes", "pose", "segmentation"},
    }
    one, two, three = examples["001.png"], examples["002.png"], examples["003.png"]
    assert extent(one["boxes"]) == pytest.approx(expected_extent(BOX), abs=1)
    assert extent(two["boxes"]) == pytest.approx(expected_extent(SECOND), abs=1)  # the crowd has no box
    for drawn, channel, category in ((one, 0, 7), (two, 2, 3), (three, 2, 7)):
        mask = (drawn["segmentation"] == PALETTE[COLOUR_INDEX[category]]).all(axis=2)
        seen = on_object(drawn["image"], channel)
        assert (mask & seen).sum() / (mask | seen).sum() > 0.95
    crowd = (two["segmentation"] == PALETTE[COLOUR_INDEX[7]]).all(axis=2)
    seen = on_object(two["image"], 0)
    assert (crowd & seen).sum() / (crowd | seen).sum() > 0.95
    left, top, right, bottom = extent(three["pose"])
    red = on_object(three["image"], 0)
    rows, columns = np.nonzero(red)
    radius = 3  # of a joint
    assert columns.min() <= left + radius < right - radius <= columns.max()
    assert rows.min() <= top + radius < bottom - radius <= rows.max()
    assert (bottom - top) > 0.8 * (rows.max() - rows.min())
    joint = [int((BOX[0] + 0.6 * BOX[2] - CROP) * SCALE), int((BOX[1] + 0.8 * BOX[3]) * SCALE)]
    assert three["pose"][joint[1], joint[0]].any()  # the left knee


def test_boxes_over_the_image_change_only_their_outline(folder):
    examples, _ = read(config(folder, content(), render=["boxes"], boxes_over_image=True))
    changed = (examples["001.png"]["boxes"] != examples["001.png"]["image"]).any(axis=2)
    left, top, right, bottom = (round(value) for value in expected_extent(BOX))
    assert 0 < changed.sum() < 2 * 2 * (right - left + bottom - top + 4)
    assert not changed[top + 4 : bottom - 3, left + 4 : right - 3].any()


def test_colours_of_classes_are_the_same_in_all_images(folder):
    examples, _ = read(config(folder, content(), render=["boxes", "segmentation"]))
    colours = {
        name: {tuple(colour) for colour in drawn["boxes"].reshape(-1, 3).tolist()} - {(0, 0, 0)}
        for name, drawn in examples.items()
    }
    dog, cat, person = (tuple(PALETTE[COLOUR_INDEX[identity]].tolist()) for identity in (7, 3, 90))
    assert colours == {"001.png": {dog}, "002.png": {cat}, "003.png": {dog, person}}


def test_stretching_moves_labels_with_the_photo(folder):
    examples, _ = read(config(folder, content(), render=["segmentation"], resize="stretch"))
    for name, channel, category in (("001.png", 0, 7), ("002.png", 2, 3)):
        mask = (examples[name]["segmentation"] == PALETTE[COLOUR_INDEX[category]]).all(axis=2)
        seen = on_object(examples[name]["image"], channel)
        assert (mask & seen).sum() / (mask | seen).sum() > 0.95


def test_several_files_of_the_same_images_are_joined(folder):
    instances, people = content(), content()
    instances["annotations"] = instances["annotations"][:3]
    people["annotations"] = people["annotations"][3:4]
    people["categories"] = [{"id": 90, "name": "secret-person"}]
    (folder / "people.json").write_text(json.dumps(people))
    base = config(folder, instances, render=["boxes", "pose"])
    examples, rejects = read(base.model_copy(update={"annotations": (*base.annotations, folder / "people.json")}))
    assert set(examples["003.png"]) == {"image", "boxes", "pose"}
    assert rejects == {"004.png": "no_annotation"}


def test_an_image_without_annotations_still_has_derived_pictures(folder):
    examples, rejects = read(config(folder, content(), render=["boxes"], derive=["grey", "masked"]))
    assert rejects == {}
    assert set(examples["004.png"]) == {"image", "grey", "masked"}


def first(coco: Coco) -> dict[str, Any]:
    return coco["annotations"][0]


def image(coco: Coco) -> dict[str, Any]:
    return coco["images"][0]


Damage = Callable[[Coco], object]
NAN, HUGE = float("nan"), 10**400

DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda coco: image(coco).update(file_name="none.png"), "missing"),
    "folder": (lambda coco: image(coco).update(file_name=""), "missing"),
    "width": (lambda coco: image(coco).update(width=300, height=400), "bad_annotation"),
    "upwards": (lambda coco: image(coco).update(file_name="../outside.png"), "bad_annotation"),
    "absolute": (lambda coco: image(coco).update(file_name="/etc/hostname"), "bad_annotation"),
    "nul": (lambda coco: image(coco).update(file_name="a\0.png"), "bad_annotation"),
    "surrogate": (lambda coco: image(coco).update(file_name="\ud800.png"), "bad_annotation"),
    "bbox-words": (lambda coco: first(coco).update(bbox=["a", "b", "c", "d"]), "bad_annotation"),
    "bbox-digits": (lambda coco: first(coco).update(bbox=["120", "60", "100", "80"]), "bad_annotation"),
    "bbox-nan": (lambda coco: first(coco).update(bbox=[NAN, 60, 100, 80]), "bad_annotation"),
    "bbox-infinite": (lambda coco: first(coco).update(bbox=[0, 0, float("inf"), 80]), "bad_annotation"),
    "bbox-huge": (lambda coco: first(coco).update(bbox=[0, 0, HUGE, 80]), "bad_annotation"),
    "bbox-null": (lambda coco: first(coco).update(bbox=[120, 60, None, 80]), "bad_annotation"),
    "bbox-short": (lambda coco: first(coco).update(bbox=[120, 60, 100]), "bad_annotation"),
    "bbox-nested": (lambda coco: first(coco).update(bbox=[[120, 60], [100, 80, 1]]), "bad_annotation"),
    "bbox-object": (lambda coco: first(coco).update(bbox={"x": 120}), "bad_annotation"),
    "bbox-number": (lambda coco: first(coco).update(bbox=5), "bad_annotation"),
    "category": (lambda coco: first(coco).update(category_id=8), "bad_annotation"),
    "polygon-short": (lambda coco: first(coco).update(segmentation=[[1, 2, 3, 4]]), "bad_annotation"),
    "polygon-odd": (lambda coco: first(coco).update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "bad_annotation"),
    "polygon-nan": (lambda coco: first(coco).update(segmentation=[[1, 2, NAN, 4, 5, 6]]), "bad_annotation"),
    "polygon-far": (lambda coco: first(coco).update(segmentation=[[1, 2, 1e9, 4, 5, 6]]), "bad_annotation"),
    "polygon-words": (lambda coco: first(coco).update(segmentation=[["a"] * 6]), "bad_annotation"),
    "polygon-text": (lambda coco: first(coco).update(segmentation="polygon"), "bad_annotation"),
    "rle-size": (lambda coco: first(coco).update(segmentation={"size": [9, 9], "counts": [81]}), "bad_annotation"),
    "rle-sum": (lambda coco: first(coco).update(segmentation={"size": [300, 400], "counts": [5]}), "bad_annotation"),
    "rle-text": (lambda coco: first(coco).update(segmentation={"size": [300, 400], "counts": "~~"}), "bad_annotation"),
    "keypoints-short": (lambda coco: first(coco).update(keypoints=[1, 2, 2] * 16, num_keypoints=16), "bad_annotation"),
    "keypoints-nan": (lambda coco: first(coco).update(keypoints=[NAN] * 51, num_keypoints=17), "bad_annotation"),
    "keypoints-huge": (lambda coco: first(coco).update(keypoints=[HUGE] * 51, num_keypoints=17), "bad_annotation"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_costs_its_image_and_no_more(folder, damage):
    apply, reason = DAMAGES[damage]
    coco = content()
    apply(coco)
    draw_image(folder, "outside.png", 9)
    examples, rejects = read(config(folder, coco))
    assert rejects == {image(coco)["file_name"]: reason, "004.png": "no_annotation"}
    assert set(examples) == {"002.png", "003.png"}


@pytest.mark.parametrize("damage", ["missing", "nul", "surrogate", "bbox-huge", "keypoints-nan", "rle-text"])
def test_damage_is_counted_in_the_shard(folder, damage):
    apply, reason = DAMAGES[damage]
    coco = content()
    apply(coco)
    source_config = config(folder, coco, layouts={"pairs": 1})
    dataset, entry = Dataset(str(folder / "d")), config_entry(source_config)
    dataset.declare("sequences", "annotated", entry)
    (job,) = plan(dataset, source_config, entry["fingerprint"])
    counts = make_shard(job).counts
    assert (counts["inputs"], counts["used"], counts["rejected"]) == (4, 2, 2)
    (shard,) = dataset.shards("sequences/annotated")
    rejects = {row["input"]: row["reason"] for row in dataset.rejects(shard).to_pylist()}
    assert rejects == {0: reason, 3: "no_annotation"}
    assert verify(dataset, deep=True).problems == []


def test_a_damaged_image_file_is_one_reject(folder):
    (folder / "images" / "002.png").write_text("<html>")
    examples, rejects = read(config(folder, content(), derive=["grey"]))
    assert rejects == {"002.png": "not_image"}
    assert set(examples) == {"001.png", "003.png", "004.png"}


def test_annotations_of_an_unlisted_image_are_one_reject(folder):
    coco = content()
    stray = [first(coco) | {"image_id": 55}, first(coco) | {"image_id": 55}]
    coco["annotations"] += copy.deepcopy(stray)
    examples, rejects = read(config(folder, coco, derive=["grey"]))
    assert rejects == {"image_id 55": "bad_annotation"}
    assert len(examples) == 4


def test_a_class_beyond_the_palette_is_one_reject(folder):
    """2048 colours, void included: the 2048th class has none, and may not borrow another's."""
    coco = content()
    coco["categories"] = [{"id": identity, "name": "c"} for identity in range(1, 2200)]
    first(coco)["category_id"] = 2150
    examples, rejects = read(config(folder, coco, derive=["grey"]))
    assert rejects == {"001.png": "bad_annotation"}
    assert len(examples) == 3


def test_boxes_outside_the_crop_are_not_visible(folder):
    coco = content()
    coco["annotations"] = [first(coco) | {"bbox": [0, 0, 40, 300], "segmentation": polygon((0, 0, 40, 300))}]
    _, rejects = read(config(folder, coco, render=["boxes", "pose", "segmentation"]))
    assert rejects["001.png"] == "no_annotation"


def test_class_names_are_in_no_byte_that_is_written(folder):
    source_config = config(folder, content())
    dataset, entry = Dataset(str(folder / "d")), config_entry(source_config)
    dataset.declare("sequences", "annotated", entry)
    for job in plan(dataset, source_config, entry["fingerprint"]):
        assert "secret" not in str(job.unit)
        make_shard(job)
    (shard,) = dataset.shards("sequences/annotated")
    written = [path.read_bytes() for path in (folder / "d").rglob("*") if path.is_file()]
    written += [str(dataset.manifest(shard).to_pylist()).encode(), str(dataset.rejects(shard).to_pylist()).encode()]
    assert len(written) == 6
    assert not any(b"secret" in data for data in written)


def without(key: str) -> Coco:
    return {name: value for name, value in content().items() if name != key}


def with_image(**entry: Any) -> Coco:
    """With other values in the first image's entry; None leaves a key out."""
    coco = content()
    coco["images"][0] = {key: value for key, value in (coco["images"][0] | entry).items() if value is not None}
    return coco


@pytest.mark.parametrize(
    ("coco", "named"),
    [
        pytest.param("not json", "not JSON", id="text"),
        pytest.param("", "not JSON", id="empty"),
        pytest.param("[" * 100_000, "not JSON", id="deep"),
        pytest.param('{"images": [', "not JSON", id="cut"),
        pytest.param([1, 2], "list", id="list"),
        pytest.param(without("images"), "'images'", id="no-images"),
        pytest.param(without("annotations"), "'annotations'", id="no-annotations"),
        pytest.param(without("categories"), "'categories'", id="no-categories"),
        pytest.param(content() | {"images": {}}, "'images'", id="images-object"),
        pytest.param(content() | {"images": [{"id": "1"}]}, r"images\[0\].*'id'", id="image-id-text"),
        pytest.param(with_image(width=None), r"images\[0\].*'width'", id="no-width"),
        pytest.param(with_image(height=300.5), r"images\[0\].*'height'", id="height-fraction"),
        pytest.param(with_image(id=True), r"images\[0\].*'id'", id="id-true"),
        pytest.param(with_image(file_name=5), r"images\[0\].*file_name", id="name-5"),
        pytest.param(with_image(file_name=None), r"images\[0\].*coco_url", id="no-name"),
        pytest.param(with_image(id=2), r"images\[1\].*'id' 2", id="id-twice"),
        pytest.param(content() | {"images": []}, "no images", id="no-entries"),
        pytest.param(content() | {"annotations": [{}]}, r"annotations\[0\].*'image_id'", id="annotation-empty"),
        pytest.param(content() | {"categories": ["dog"]}, r"categories\[0\] is a str", id="category-text"),
    ],
)
def test_what_is_not_coco_is_an_error_that_names_file_and_key(folder, coco, named):
    with pytest.raises(SourceError, match=named) as refused:
        list(AnnotatedSource(config(folder, coco)).plan())
    assert "annotations.json" in str(refused.value)


@pytest.mark.parametrize("kind", ["none", "folder"])
def test_an_annotation_file_that_is_none_is_an_error_that_names_it(folder, kind):
    base = config(folder, content())
    place = folder / "other"
    if kind == "folder":
        place.mkdir()
    with pytest.raises(SourceError, match=str(place)):
        list(AnnotatedSource(base.model_copy(update={"annotations": (place,)})).plan())

"""What others add to COCO's form: names of files, keypoints, whole bodies, masks of one class, turned photos."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests_support import smooth_photo

from uvd.renderers.palette import PALETTE
from uvd.renderers.skeletons import AP10K, FACE, HAND, OPENPOSE_BODY, render_skeletons
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.annotated.coco import CocoReader
from uvd.sources.annotated.coco_json import COCO_KEYPOINTS, plain_name, read_coco
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.source import AnnotatedSource
from uvd.sources.base import SourceError
from uvd.sources.json_files import read_json_object

SIDE = 256
"""Square photos of the picture's own size: raw coordinates are those of the picture."""
BOX = [40, 60, 100, 80]
SMALL = [150, 30, 40, 50]
AP10K_NAMES = "left_eye right_eye nose neck root_of_tail left_shoulder left_elbow left_front_paw right_shoulder"
AP10K_NAMES += " right_elbow right_front_paw left_hip left_knee left_back_paw right_hip right_knee right_back_paw"

Entry = dict[str, Any]


def write_photo(path: Path, pixels: np.ndarray | None = None, exif: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(smooth_photo(3, SIDE, SIDE) if pixels is None else pixels)
    tags = Image.Exif()
    tags[0x0112] = exif
    image.save(path, quality=97, subsampling=0, exif=tags)


def image(identity: int = 1, **more: Any) -> Entry:
    return {"id": identity, "width": SIDE, "height": SIDE, "file_name": f"{identity}.jpg"} | more


def polygon(box: list[int]) -> list[list[int]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def thing(identity: int = 1, category: int = 1, box: list[int] = BOX, **more: Any) -> Entry:
    return {"image_id": identity, "category_id": category, "bbox": box, "segmentation": polygon(box)} | more


def points(count: int, seed: int = 0, visibility: float = 2) -> list[float]:
    """Numbers of keypoints within the photo."""
    xy = np.random.default_rng(seed).integers(20, SIDE - 20, (count, 2))
    return [float(value) for x, y in xy.tolist() for value in (x, y, visibility)]


def config(root: Path, *files: Entry, **more: Any) -> AnnotatedConfig:
    """One JSON file for each of `files`; images, annotations and categories 1 to 3 unless they say."""
    paths = []
    for number, content in enumerate(files):
        paths.append(root / f"{number}.json")
        whole = {"images": [image()], "annotations": [], "categories": [{"id": n} for n in (1, 2, 3)]} | content
        paths[-1].write_text(json.dumps(whole))
    if not (root / "photos").exists():
        write_photo(root / "photos/1.jpg")
    settings = {"dataset": "d", "input": root / "photos", "annotations": paths, "boxes_over_image": False}
    return AnnotatedConfig.model_validate(settings | more)


def read(config: AnnotatedConfig) -> tuple[list[Example], dict[str, Reject]]:
    source = AnnotatedSource(config)
    (unit,) = source.plan()
    outcomes = list(source.read(unit, Seeds(0)))
    rejects = [outcome for outcome in outcomes if isinstance(outcome, Reject)]
    assert len({reject.origin for reject in rejects}) == len(rejects)
    examples = [outcome for outcome in outcomes if isinstance(outcome, Example)]
    used = {index for example in examples for index in example.inputs} | {reject.input for reject in rejects}
    assert used == set(range(unit.num_inputs))
    return examples, {reject.origin: reject for reject in rejects}


def drawn(config: AnnotatedConfig) -> dict[str, np.ndarray]:
    """Pictures by role of the one example."""
    (example,), rejects = read(config)
    assert rejects == {}
    return {picture.role: picture.pixels for picture in example.pictures}


def filled(box: list[int]) -> np.ndarray:
    """`(SIDE, SIDE)` bool: where a box is."""
    mask = np.zeros((SIDE, SIDE), bool)
    x, y, width, height = box
    mask[y : y + height, x : x + width] = True
    return mask


# Names of files


def origins(examples: list[Example]) -> list[str]:
    return [example.pictures[0].origin for example in examples]


@pytest.mark.parametrize("place", ["train2017/000000000009.jpg", "000000000009.jpg"])
def test_lvis_names_images_by_their_url(tmp_path, place):
    write_photo(tmp_path / "photos" / place)
    entry = image(9, coco_url="http://images.cocodataset.org/train2017/000000000009.jpg")
    del entry["file_name"]
    examples, rejects = read(config(tmp_path, {"images": [entry], "annotations": [thing(9)]}))
    assert (origins(examples), rejects) == ([place], {})


@pytest.mark.parametrize("place", ["images/v1/patch8", "v1/patch8", "patch8", "."])
def test_objects365_files_may_lie_under_shorter_tails_of_their_name(tmp_path, place):
    name = "objects365_v1_00420917.jpg"
    write_photo(tmp_path / "photos" / place / name)
    entry = image(420917, file_name=f"images/v1/patch8/{name}")
    examples, rejects = read(config(tmp_path, {"images": [entry], "annotations": [thing(420917)]}))
    assert (origins(examples), rejects) == ([f"{place}/{name}".removeprefix("./")], {})


def test_a_file_that_two_images_could_be_is_neither(tmp_path):
    write_photo(tmp_path / "photos/1.jpg")
    write_photo(tmp_path / "photos/c/2.jpg")
    write_photo(tmp_path / "photos/2.jpg")
    names = ["a/1.jpg", "b/1.jpg", "2.jpg", "c/2.jpg", "d/2.jpg"]
    images = [image(number, file_name=name) for number, name in enumerate(names)]
    examples, rejects = read(config(tmp_path, {"images": images, "annotations": [thing(n) for n in range(5)]}))
    assert origins(examples) == ["2.jpg", "c/2.jpg"]  # they have their whole names
    assert {name: str(reject.reason) for name, reject in rejects.items()} == dict.fromkeys(
        ["a/1.jpg", "b/1.jpg", "d/2.jpg"], "bad_annotation"
    )
    assert "2 images of the JSON have the file '1.jpg'" in rejects["a/1.jpg"].detail


def test_a_wrong_folder_is_an_error_and_not_a_reject_for_each_image(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for place, message in (("elsewhere", r"none of the 2 images .* such as '1.jpg'"), ("none", "is not a folder")):
        images = {"images": [image(1), image(2)]}
        with pytest.raises(SourceError, match=message):
            list(AnnotatedSource(config(tmp_path, images, input=tmp_path / place)).plan())


def test_a_link_out_of_the_input_is_refused(tmp_path):
    write_photo(tmp_path / "outside.jpg")
    write_photo(tmp_path / "photos/2.jpg")
    (tmp_path / "photos/1.jpg").symlink_to(tmp_path / "outside.jpg")
    examples, rejects = read(config(tmp_path, {"images": [image(1), image(2)], "annotations": [thing(1), thing(2)]}))
    assert (origins(examples), list(rejects)) == (["2.jpg"], ["1.jpg"])
    assert "leads out" in rejects["1.jpg"].detail


# Several files


def test_an_object_in_two_files_is_one_annotation(tmp_path):
    person = thing(id=7)
    posed = thing(id=7, keypoints=points(17), num_keypoints=17)
    other = thing(id=7, category=2, box=SMALL)  # an id by chance: another class and box
    base = config(tmp_path, {"annotations": [person]}, {"annotations": [posed, other]})
    (item,) = CocoReader(base).items()
    first, second = item["annotations"]
    assert set(first) == {"class", "bbox", "segmentation", "keypoints"}
    assert (second["class"], second["bbox"]) == (2, SMALL)
    assert set(drawn(base)) == {"image", "boxes", "pose", "segmentation"}


def test_files_of_other_images_are_an_error(tmp_path):
    for other in (image(file_name="2.jpg"), image(width=300)):
        with pytest.raises(SourceError, match=r"1\.json is not of the same images: images\[0\] with 'id' 1"):
            list(CocoReader(config(tmp_path, {}, {"images": [other]})).items())


def test_colours_are_places_among_the_ids_of_all_files(tmp_path):
    two = config(tmp_path, {"annotations": [thing(category=7)], "categories": [{"id": 7}]}, {"categories": [{"id": 4}]})
    assert (drawn(two)["segmentation"][filled(BOX)] == PALETTE[2]).all()


def test_the_plan_holds_no_more_than_is_drawn(tmp_path):
    whole = thing(keypoints=points(17), face_kpts=points(68), id=3, area=9, caption="secret")
    for render, keys in (("boxes", {"bbox"}), ("foreground", {"segmentation"}), ("pose", {"keypoints", "face_kpts"})):
        (item,) = CocoReader(config(tmp_path, {"annotations": [whole]}, {}, render=[render])).items()
        assert set(item["annotations"][0]) == {"class"} | keys


def test_planning_needs_no_more_memory_than_parsing(tmp_path):
    entries = [thing(n % 50, id=n, area=n / 7, segmentation=[points(15, n)]) for n in range(5000)]
    base = config(tmp_path, {"images": [image(n) for n in range(50)], "annotations": entries})
    tracemalloc.start()
    read_json_object(base.annotations[0], 1 << 30, "COCO")
    parsing = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    coco = read_coco(base.annotations, {"bbox", "segmentation", "keypoints"})
    kept, planning = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(coco.annotations) == 50
    assert planning < 1.01 * parsing
    assert kept < parsing


# Keypoints


def test_animals_and_people_get_their_own_skeletons(tmp_path):
    categories = [{"id": 1}, {"id": 2, "keypoints": AP10K_NAMES.split()}, {"id": 3, "keypoints": COCO_KEYPOINTS}]
    for category, skeleton in ((1, OPENPOSE_BODY), (2, AP10K), (3, OPENPOSE_BODY)):
        animal = thing(category=category, keypoints=points(17))
        base = config(tmp_path, {"annotations": [animal], "categories": categories}, render=["pose"])
        expected = render_skeletons([(skeleton, np.array(animal["keypoints"]).reshape(1, 17, 3))])
        assert np.array_equal(drawn(base)["pose"], expected)


def test_of_more_keypoints_the_first_17_are_drawn(tmp_path):
    names = [*COCO_KEYPOINTS, "left_finger", "right_finger", "left_toe", "right_toe"]
    person = thing(keypoints=points(21))
    base = config(tmp_path, {"annotations": [person], "categories": [{"id": 1, "keypoints": names}]}, render=["pose"])
    expected = render_skeletons([(OPENPOSE_BODY, np.array(person["keypoints"]).reshape(1, 21, 3)[:, :17])])
    assert np.array_equal(drawn(base)["pose"], expected)


@pytest.mark.parametrize("names", [["nose", "tail"], COCO_KEYPOINTS[::-1], "nose", [1] * 17])
def test_an_unknown_skeleton_is_an_error_where_poses_are_drawn(tmp_path, names):
    content = {"annotations": [thing(keypoints=points(17))], "categories": [{"id": 1, "keypoints": names}]}
    with pytest.raises(SourceError, match=r"0\.json.*categories\[0\].*leave pose out"):
        list(CocoReader(config(tmp_path, content)).items())
    assert set(drawn(config(tmp_path, content, render=["boxes"]))) == {"image", "boxes"}


def test_names_of_keypoints_are_told_in_any_style():
    styles = ["left_shoulder", "Left Shoulder", "leftShoulder", "LeftShoulder", "LEFT_SHOULDER", "L_Shoulder"]
    assert {plain_name(style) for style in styles} == {"left shoulder"}


def whole_body(**more: Any) -> Entry:
    parts = {"lefthand": 21, "righthand": 21, "face": 68, "foot": 6}
    person = thing(keypoints=points(17))
    for seed, (part, count) in enumerate(parts.items(), start=1):
        person |= {f"{part}_kpts": points(count, seed), f"{part}_valid": True}
    return person | more


def test_hands_and_face_of_whole_bodies_are_drawn(tmp_path):
    person = whole_body()
    placed = [
        (skeleton, np.array(person[key]).reshape(1, -1, 3))
        for skeleton, key in (
            (OPENPOSE_BODY, "keypoints"),
            (HAND, "lefthand_kpts"),
            (HAND, "righthand_kpts"),
            (FACE, "face_kpts"),
        )
    ]
    pose = drawn(config(tmp_path, {"annotations": [person]}, render=["pose"]))["pose"]
    assert np.array_equal(pose, render_skeletons(placed))
    assert not np.array_equal(pose, render_skeletons(placed[:1]))


def test_hands_that_are_not_valid_are_not_drawn_and_any_visibility_is(tmp_path):
    person = whole_body(lefthand_valid=False, face_valid=False, righthand_kpts=points(21, 2, visibility=0.1))
    seen = np.array(points(21, 2, visibility=1)).reshape(1, 21, 3)
    expected = render_skeletons([(OPENPOSE_BODY, np.array(person["keypoints"]).reshape(1, 17, 3)), (HAND, seen)])
    assert np.array_equal(drawn(config(tmp_path, {"annotations": [person]}, render=["pose"]))["pose"], expected)


@pytest.mark.parametrize("key", ["lefthand_kpts", "face_kpts", "keypoints"])
def test_damaged_keypoints_are_a_reject_that_names_them(tmp_path, key):
    for value in (points(5), [float("nan")] * len(whole_body()[key]), "x"):
        _, rejects = read(config(tmp_path, {"annotations": [whole_body(**{key: value})]}))
        assert str(rejects["1.jpg"].reason) == "bad_annotation"
        assert key in rejects["1.jpg"].detail


# Crowds, boxes, masks


def test_crowds_are_segmented_and_neither_boxed_nor_posed(tmp_path):
    crowd = thing(iscrowd=1, keypoints=points(17), num_keypoints=17)
    pictures = drawn(config(tmp_path, {"annotations": [crowd]}, render=["boxes", "pose", "segmentation"]))
    assert set(pictures) == {"image", "segmentation"}
    assert np.array_equal(pictures["segmentation"].any(axis=2), filled(BOX))


def test_boxes_without_area_or_outside_are_not_drawn(tmp_path):
    nothing = [[10, 10, 0, 50], [10, 10, 50, -5], [400, 10, 20, 20], [-1e300, 0, 1e300, 1e300], [0, 0, 1e308, 0]]
    entries = [{"image_id": 1, "category_id": 2, "bbox": box} for box in nothing]
    pictures = drawn(config(tmp_path, {"annotations": [*entries, thing()]}, render=["boxes"]))
    assert {tuple(colour) for colour in pictures["boxes"].reshape(-1, 3)} == {(0, 0, 0), tuple(PALETTE[1])}
    _, rejects = read(config(tmp_path, {"annotations": entries}, render=["boxes"]))
    assert str(rejects["1.jpg"].reason) == "no_annotation"


def test_filled_boxes_are_white_on_black_beside_boxes_over_the_photo(tmp_path):
    base = config(tmp_path, {"annotations": [thing()]}, render=["boxes", "filled_boxes"], boxes_over_image=True)
    pictures = drawn(base)
    assert np.array_equal(pictures["filled_boxes"] == 255, np.repeat(filled(BOX)[:, :, None], 3, axis=2))
    assert set(np.unique(pictures["filled_boxes"])) == {0, 255}
    assert np.array_equal(pictures["boxes"][~filled(BOX)], pictures["image"][~filled(BOX)])


def test_foreground_is_an_example_for_each_class_that_is_visible(tmp_path):
    write_photo(tmp_path / "photos/1.jpg", smooth_photo(3, SIDE, SIDE + 100))
    shift = 50  # of the centre crop
    inside, other = [BOX[0] + shift, *BOX[1:]], [SMALL[0] + shift, *SMALL[1:]]
    entries = [thing(box=inside), thing(category=3, box=other), thing(category=3, box=inside, iscrowd=1)]
    entries.append(thing(category=2, box=[0, 0, 40, 200]))  # is cut away
    content = {"images": [image(width=SIDE + 100)], "annotations": entries}
    examples, rejects = read(config(tmp_path, content, render=["foreground", "boxes"]))
    assert rejects == {}
    masks = {example.group: example.pictures[-1] for example in examples}
    assert sorted(masks) == ["", "1", "3"]
    for group, mask in (("1", filled(BOX)), ("3", filled(BOX) | filled(SMALL))):
        assert masks[group].role == "foreground"
        assert np.array_equal(masks[group].pixels, np.where(mask[:, :, None], 255, 0).repeat(3, axis=2))


def test_a_damaged_mask_of_one_class_costs_the_photo(tmp_path):
    entries = [thing(), thing(category=2, segmentation={"size": [SIDE, SIDE], "counts": [5]})]
    examples, rejects = read(config(tmp_path, {"annotations": entries}, render=["foreground", "boxes"]))
    assert examples == []
    assert "object 1" in rejects["1.jpg"].detail


# Photos that EXIF turns


def turned_photo(path: Path, orientation: int = 6) -> None:
    """Stored 256 wide and 200 high with a red rectangle at BOX; a viewer turns it."""
    pixels = smooth_photo(3, 200, SIDE) // 3
    pixels[filled(BOX)[:200]] = (255, 0, 0)
    write_photo(path, pixels, exif=orientation)


def agreement(pictures: dict[str, np.ndarray]) -> float:
    """IoU of the red rectangle in the photo and what is segmented."""
    red = (pictures["image"][..., 0] > 200) & (pictures["image"][..., 1:] < 80).all(axis=2)
    mask = pictures["segmentation"].any(axis=2)
    return float((red & mask).sum() / (red | mask).sum())


def test_annotations_in_coordinates_of_the_file_lie_on_the_photo_as_stored(tmp_path):
    turned_photo(tmp_path / "photos/1.jpg")
    content = {"images": [image(height=200)], "annotations": [thing()]}
    base = config(tmp_path, content, render=["segmentation"])
    (example,), _ = read(base)
    assert example.pictures[0].size == (SIDE, 200)
    assert agreement(drawn(base)) > 0.95


def test_annotations_in_upright_coordinates_lie_on_the_upright_photo(tmp_path):
    turned_photo(tmp_path / "photos/1.jpg")
    upright = [200 - BOX[1] - BOX[3], BOX[0], BOX[3], BOX[2]]  # orientation 6: a quarter turn clockwise
    content = {"images": [image(width=200)], "annotations": [thing(box=upright)]}
    content["images"][0]["height"] = SIDE
    base = config(tmp_path, content, render=["segmentation"])
    (example,), _ = read(base)
    assert example.pictures[0].size == (200, SIDE)
    assert agreement(drawn(base)) > 0.95


def test_swapped_sizes_without_a_turn_are_a_reject(tmp_path):
    turned_photo(tmp_path / "photos/1.jpg", orientation=1)
    _, rejects = read(config(tmp_path, {"images": [image(width=200)], "annotations": [thing()]}))
    assert str(rejects["1.jpg"].reason) == "bad_annotation"
    assert rejects["1.jpg"].detail == "image is 256x200, the JSON says 200x256"


def test_a_half_turn_cannot_be_told_and_is_taken_for_upright(tmp_path):
    turned_photo(tmp_path / "photos/1.jpg", orientation=3)
    upright = [SIDE - BOX[0] - BOX[2], 200 - BOX[1] - BOX[3], BOX[2], BOX[3]]
    base = config(tmp_path, {"images": [image(height=200)], "annotations": [thing(box=upright)]})
    assert agreement(drawn(base)) > 0.95


# People for pose networks


@pytest.mark.parametrize(("boxes", "people"), [("given", [BOX]), ("detected", None)])
def test_people_are_boxes_of_category_1_that_are_no_crowd(tmp_path, boxes, people):
    pose = {"backend": "mmpose", "config": "c.py", "checkpoint": "c.pth", "boxes": boxes}
    pose |= {"detector_config": "d.py", "detector_checkpoint": "d.pth"}
    entries = [thing(id=4), thing(category=2, box=SMALL), thing(box=SMALL, iscrowd=1), thing(box=[5, 5, 0, 9])]
    same = {"annotations": [thing(id=4, keypoints=points(17))]}
    base = config(tmp_path, {"annotations": entries}, same, render=["segmentation"], estimate={"pose": pose})
    reader = CocoReader(base)
    (item,) = reader.items()
    shown = reader.open(item).people
    assert (shown if shown is None else shown.tolist()) == people
    empty = config(tmp_path, {}, render=["segmentation"], estimate={"pose": pose})
    shown = CocoReader(empty).open(next(iter(CocoReader(empty).items()))).people
    assert (shown is None) if people is None else shown.shape == (0, 4)

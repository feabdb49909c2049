"""Segmentation, detection, colorization and keypoints on small data in the published forms, with a model that knows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from evaluate_support import FakeModel, model_that_knows
from PIL import Image
from scipy.io import savemat
from tests_support import smooth_photo

from uvd.trainer.evaluate.colorization import colorization_episodes, evaluate_colorization
from uvd.trainer.evaluate.detection import detection_episodes, evaluate_detection, read_box
from uvd.trainer.evaluate.keypoint_picture import COLOURS, draw_keypoints, read_keypoints
from uvd.trainer.evaluate.keypoints import evaluate_keypoints, keypoint_episodes
from uvd.trainer.evaluate.matlab import MatlabError, read_mat
from uvd.trainer.evaluate.pascal import Pascal, fold_classes, read_boxes
from uvd.trainer.evaluate.pascal3d import crop_object, objects_of_class
from uvd.trainer.evaluate.prompting import Asking, EvaluationError, answer
from uvd.trainer.evaluate.report import Report
from uvd.trainer.evaluate.scorers import foreground
from uvd.trainer.evaluate.segmentation import evaluate_segmentation, segmentation_episodes
from uvd.trainer.sampling import Sampling

XML = """<annotation><folder>VOC2012</folder><size><width>120</width><height>80</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>
<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"""


def write_photo(path: Path, seed: int, height: int = 80, width: int = 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_photo(seed, height, width)).save(path, format="JPEG", quality=95)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC's form. Masks: photos 0 to 5 show class 1 + n % 2, and class 7; boxes: `train` 0 to 5, `val` 6 to 11."""
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit" / "VOC2012"
    palette = [value for colour in range(256) for value in (colour, 0, 255 - colour)]
    for folder in ("SegmentationClass", "Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [f"2007_{number:06d}" for number in range(12)]
    for number, name in enumerate(names):
        write_photo(root / "JPEGImages" / f"{name}.jpg", number)
        ids = np.zeros((80, 120), np.uint8)
        ids[10:40, 20 + number : 60 + number] = 1 + number % 2
        ids[50:70, 5:25] = 7
        ids[9, :] = 255
        mask = Image.fromarray(ids, mode="P")
        mask.putpalette(palette)
        mask.save(root / "SegmentationClass" / f"{name}.png")
        boxes = [OBJECT.format(name="bird", x0=11, y0=21, x1=40 + number, y1=50)]
        if number in (4, 10):
            boxes.append(OBJECT.format(name="bird", x0=1, y0=1, x1=9, y1=9))
        if number in (5, 11):
            boxes = [OBJECT.format(name="bird", x0=1, y0=1, x1=100, y1=70)]
        (root / "Annotations" / f"{name}.xml").write_text(XML.format(objects="".join(boxes)))
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names[:6]) + "\n")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[:6]) + "\n")
    (root / "ImageSets/Main/val.txt").write_text("\n".join(names[6:]) + "\n")
    return root


def measured(report: Report, measure: str) -> dict[tuple[str, str], float]:
    return {(row.group, row.predictor): row.measures[measure] for row in report.rows}


def test_folds_are_five_classes_each():
    assert [fold_classes(fold) for fold in (0, 3)] == [(1, 2, 3, 4, 5), (16, 17, 18, 19, 20)]
    with pytest.raises(EvaluationError, match="fold 4"):
        fold_classes(4)


def test_segmentation_episodes_keep_class_fold_and_photos_apart(voc):
    episodes = list(segmentation_episodes(Pascal.open(voc.parent.parent), 0, 2, 12, seed=1))
    again = list(segmentation_episodes(Pascal.open(voc), 0, 2, 12, seed=1))
    other = list(segmentation_episodes(Pascal.open(voc), 0, 2, 12, seed=2))
    assert [episode.prompt.tobytes() for episode in episodes] == [episode.prompt.tobytes() for episode in again]
    assert [episode.prompt.tobytes() for episode in episodes] != [episode.prompt.tobytes() for episode in other]
    pairs = {
        (pair[0].tobytes(), pair[1].tobytes()): number
        for number in (1, 2)
        for name, its in Pascal.open(voc).fold_pairs(0)
        if its == number
        for pair in [Pascal.open(voc).mask_pair(name, its, "stretch")]
    }
    for episode in episodes:
        assert episode.prompt.shape == (5, 256, 256, 3)
        photos = [picture.tobytes() for picture in episode.prompt[::2]]
        answers = [picture.tobytes() for picture in (*episode.prompt[1::2], episode.truth)]
        assert len(set(photos)) == 3
        classes = {pairs[pair] for pair in zip(photos, answers, strict=True)}
        assert classes == {("aeroplane", "bicycle").index(episode.group) + 1}
    # Each of the six (photo, class) is asked for before one comes again.
    assert len({episode.prompt[-1].tobytes() for episode in episodes[:6]}) == 6


def test_masks_are_white_on_black_and_void_is_black(voc):
    photo, mask = Pascal.open(voc).mask_pair("2007_000000", 1, "stretch")
    assert set(np.unique(mask)) == {0, 255}
    share = foreground(mask).mean()
    assert share == pytest.approx(30 * 40 / (80 * 120), abs=0.01)
    assert photo.std() > 10
    _, seven = Pascal.open(voc).mask_pair("2007_000000", 7, "stretch")
    assert foreground(seven)[180:220, 20:50].all()
    assert not foreground(seven)[:150].any()


def test_segmentation_scores_those_who_know_see_nothing_or_copy(voc):
    known = model_that_knows(segmentation_episodes(Pascal.open(voc), 0, 1, 8))
    report = evaluate_segmentation(known, voc, folds=[0], episodes=8)
    values = measured(report, "mIoU")
    assert values["fold 0", "model"] == values["fold 0", "truth"] == values["fold 0", "tokenizer"] == 1
    assert values["fold 0", "blank"] == 0
    assert 0.5 < values["fold 0", "example"] < 1
    assert report.sheet is not None
    assert report.sheet.shape[2] == 3
    copying = evaluate_segmentation(FakeModel(policy="example"), voc, folds=[0], episodes=8)
    assert measured(copying, "mIoU")["fold 0", "model"] == values["fold 0", "example"]
    assert measured(copying, "class mIoU")["fold 0", "truth"] == 1


def test_folds_are_averaged(voc):
    report = evaluate_segmentation(FakeModel(policy="example"), voc, folds=[0, 1], episodes=4)
    values = measured(report, "mIoU")
    assert values["fold 1", "model"] == 1  # class 7 lies at the same place in every photo
    assert values["mean", "model"] == pytest.approx((values["fold 0", "model"] + 1) / 2)
    with pytest.raises(EvaluationError, match="class of fold 2"):
        evaluate_segmentation(FakeModel(), voc, folds=[2])


def test_published_lists_are_read(voc, tmp_path):
    (tmp_path / "fold0.txt").write_text("2007_000001__02\n2007_000003__02\n")
    assert Pascal.open(voc).fold_pairs(0, tmp_path) == [("2007_000001", 2), ("2007_000003", 2)]
    for wrong in ("2007_000001__07\n", "2007_000001\n", "2007_000001__x\n"):
        (tmp_path / "fold0.txt").write_text(wrong)
        with pytest.raises(EvaluationError, match="NAME__CC"):
            Pascal.open(voc).fold_pairs(0, tmp_path)
    (tmp_path / "fold0.txt").write_text("../../etc/passwd__02\n2007_000003__02\n")
    with pytest.raises(EvaluationError, match="no file"):
        list(segmentation_episodes(Pascal.open(voc), 0, 1, 2, lists=tmp_path))


def test_detection_takes_single_small_objects_and_scores_rectangles(voc):
    pascal = Pascal.open(voc)
    queries = {name for name, _, _ in pascal.single_objects("val", 0.2)}
    assert queries == {f"2007_{number:06d}" for number in (6, 7, 8, 9)}  # 10 has two objects, 11 a large one
    known = model_that_knows(detection_episodes(pascal, 0, 2, 6))
    report = evaluate_detection(known, voc, folds=[0], examples=2, episodes=6)
    values = measured(report, "mIoU")
    assert values["fold 0", "model"] == values["fold 0", "truth"] == 1
    assert values["fold 0", "blank"] == 0
    assert 0.6 < values["fold 0", "example"] < 1
    first = next(detection_episodes(pascal, 0, 1, 1))
    rough = first.truth.copy()
    rough[:3, :3] = 255  # a second, smaller spot
    middle = tuple(int(axis.mean()) for axis in np.nonzero(foreground(first.truth)))
    rough[middle] = 0  # a hole
    assert (read_box(rough) == foreground(first.truth)).all()


def test_boxes_count_from_zero(voc):
    ((number, box),), size = read_boxes(voc, "Annotations/2007_000000.xml")
    assert (number, box, size) == (3, (10.0, 20.0, 30.0, 30.0), (120, 80))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "no XML"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "document types"),
        ("<annotation></annotation>", "VOC's form"),
        (XML.format(objects=OBJECT.format(name="bird", x0=9, y0=9, x1=3, y1=20)), "VOC's form"),
        (XML.format(objects=OBJECT.format(name="bird", x0="nan", y0=9, x1=13, y1=20)), "VOC's form"),
    ],
)
def test_bad_xml_is_refused(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_boxes(tmp_path, "a.xml")


def test_bad_pictures_are_named(voc, tmp_path):
    with pytest.raises(EvaluationError, match="no JPEGImages"):
        Pascal.open(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"\xff\xd8damaged")
    with pytest.raises(EvaluationError, match=re.escape("a.jpg cannot be decoded")):
        Pascal.open(tmp_path).mask_pair("a", 1, "stretch")
    write_photo(tmp_path / "JPEGImages/a.jpg", 1)
    Image.fromarray(smooth_photo(1, 80, 120)).save(tmp_path / "SegmentationClass/a.png")
    with pytest.raises(EvaluationError, match="class ids need a palette"):
        Pascal.open(tmp_path).mask_pair("a", 1, "stretch")
    (tmp_path / "secret.jpg").symlink_to(voc / "JPEGImages/2007_000000.jpg")
    with pytest.raises(EvaluationError, match="no file"):
        Pascal(tmp_path).mask_pair("../secret", 1, "stretch")


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_drawn(voc):
    with pytest.raises(EvaluationError, match=r"7 examples.*needs 16 images.*holds 8"):
        evaluate_segmentation(FakeModel(context_images=8), voc, examples=7)


def test_drawing_depends_on_the_episode_not_on_its_batch(voc):
    seeds = []
    for batch in (1, 3):
        model = model_that_knows(segmentation_episodes(Pascal.open(voc), 0, 1, 5))
        asking = Asking(Sampling(0.7, 5, 0.9), seed=4, batch=batch)
        assert len(list(answer(model, segmentation_episodes(Pascal.open(voc), 0, 1, 5), asking))) == 5
        assert {sampling.temperature for sampling in model.samplings} == {0.7}
        seeds.append([seed for _, seed in model.seen])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 5


def test_colorization(tmp_path):
    for number in range(5):
        write_photo(tmp_path / f"n{number % 2:08d}" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    episodes = list(colorization_episodes(tmp_path, 2, 1000))
    assert len({episode.prompt[-1].tobytes() for episode in episodes}) == len(episodes) == 5
    for episode in episodes:
        assert len({picture.tobytes() for picture in (*episode.prompt, episode.truth)}) == 6
        assert all((grey == grey[:, :, :1]).all() for grey in episode.prompt[::2])
        assert abs(int(episode.truth.mean()) - int(episode.prompt[-1].mean())) < 20
    report = evaluate_colorization(model_that_knows(episodes), tmp_path, examples=2)
    values = measured(report, "MSE")
    assert values["photos", "model"] == values["photos", "truth"] == values["photos", "tokenizer"] == 0
    assert 0 < values["photos", "query"] < values["photos", "blank"]
    plain = measured(report, "MSE 01")["photos", "query"]
    assert values["photos", "query"] == pytest.approx(plain / 0.226**2, rel=0.05)
    with pytest.raises(EvaluationError, match="5 images"):
        evaluate_colorization(FakeModel(), tmp_path, examples=5)
    with pytest.raises(EvaluationError, match="no folder"):
        evaluate_colorization(FakeModel(), tmp_path / "none")


def test_keypoints_survive_being_drawn_and_read():
    rng = np.random.default_rng(0)
    for count in (1, 8, len(COLOURS)):
        keypoints = rng.uniform(10, 246, (count, 2))
        keypoints[1:][rng.random(count - 1) < 0.2] = np.nan
        found = read_keypoints(draw_keypoints(keypoints), count)
        assert (np.isfinite(found) == np.isfinite(keypoints)).all()
        apart = np.linalg.norm(keypoints[:, None] - keypoints[None], axis=2) + 1e9 * np.eye(count)
        alone = np.isfinite(keypoints[:, 0]) & (np.nan_to_num(apart, nan=1e9).min(axis=1) > 24)
        assert np.abs(found - keypoints)[alone].max() < 0.6
        # Dots that overlap share their pixels, and move apart by less than a radius.
        assert np.nanmax(np.abs(found - keypoints)) < 12
    assert np.isnan(read_keypoints(np.zeros((256, 256, 3), np.uint8), 3)).all()


def test_keypoints_are_read_from_blurred_and_noisy_dots():
    import cv2

    keypoints = np.array([[40.0, 40], [120, 60], [200, 200], [60, 200], [128, 128], [220, 40]])
    picture = cv2.GaussianBlur(draw_keypoints(keypoints), (0, 0), 2.5).astype(np.int16)
    noise = np.random.default_rng(1).integers(-40, 41, picture.shape)
    found = read_keypoints((picture + noise).clip(0, 255).astype(np.uint8), 6)
    assert np.abs(found - keypoints).max() < 2


def mat_struct(objects: list[dict[str, object]]) -> dict[str, object]:
    array = np.empty((1, len(objects)), dtype=[(name, object) for name in objects[0]])
    for place, item in enumerate(objects):
        array[0, place] = tuple(item.values())
    return {"record": {"filename": "a.jpg", "database": "pascal", "objects": array}}


@pytest.fixture
def pascal3d(tmp_path: Path) -> Path:
    """Five photos with a car each, whose wheels and lamp are annotated, and a difficult car and a bus in the first."""
    for number in range(5):
        write_photo(tmp_path / f"Images/car_pascal/2008_{number:06d}.jpg", number, 100, 140)
        anchors = {
            "wheel_left": {"location": np.array([[31.5, 71.5 + number]]), "status": 1.0},
            "wheel_right": {"location": np.array([[81.5, 71.5]]), "status": 1.0},
            "lamp": {"location": np.array([[50.0, 50.0]]), "status": 2.0},
            "roof": {"location": np.empty((0, 0)), "status": 4.0},
        }
        car = {"class": "car", "bbox": np.array([[21.0, 31, 100, 90]]), "difficult": 0.0, "anchors": anchors}
        objects = [car]
        if number == 0:
            objects += [{**car, "difficult": 1.0}, {**car, "class": "bus"}]
        (tmp_path / "Annotations/car_pascal").mkdir(parents=True, exist_ok=True)
        path = tmp_path / f"Annotations/car_pascal/2008_{number:06d}.mat"
        savemat(path, mat_struct(objects), do_compression=bool(number % 2))
    return tmp_path


def test_pascal_3d_is_read(pascal3d):
    found = objects_of_class(pascal3d, "car")
    assert len(found) == 5
    assert found[0].box == (20.0, 30.0, 100.0, 90.0)
    # Sorted by name: lamp, roof, wheel_left, wheel_right; only status 1 is visible.
    assert np.isnan(found[0].keypoints[:2]).all()
    assert found[0].keypoints[2:].tolist() == [[31.0, 71.0], [81.0, 71.0]]
    crop, keypoints, size = crop_object(pascal3d, found[0])
    # 96 pixels a side, from (12, 12): 256 / 96 per pixel.
    assert size == pytest.approx(80 * 256 / 96)
    assert keypoints[2] == pytest.approx([(31 - 12) * 256 / 96, (71 - 12) * 256 / 96])
    assert crop[-8:].max() == 0  # the crop leaves the photo below
    assert crop[100:130].min() > 0 or crop[100:130].mean() > 20


def test_keypoints_are_scored(pascal3d):
    known = model_that_knows(keypoint_episodes(pascal3d, "car", 2))
    report = evaluate_keypoints(known, pascal3d, examples=2)
    values = measured(report, "PCK@0.1")
    assert values["car", "model"] == values["car", "truth"] == values["car", "tokenizer"] == 1
    assert values["car", "blank"] == 0
    assert values["car", "example"] > 0.5  # the cars are alike
    assert report.rows[0].episodes == 5
    with pytest.raises(EvaluationError, match="no annotations"):
        evaluate_keypoints(known, pascal3d, classes=["bus"])
    with pytest.raises(EvaluationError, match="expected one of"):
        evaluate_keypoints(known, pascal3d, classes=["cow"])


def test_the_validation_list_limits_the_photos(pascal3d):
    (pascal3d / "PASCAL/VOCdevkit/VOC2012/ImageSets/Main").mkdir(parents=True)
    (pascal3d / "PASCAL/VOCdevkit/VOC2012/ImageSets/Main/val.txt").write_text("2008_000001\n2008_000003\n")
    photos = [item.photo for item in objects_of_class(pascal3d, "car")]
    assert photos == ["Images/car_pascal/2008_000001.jpg", "Images/car_pascal/2008_000003.jpg"]


def test_mat_files(tmp_path):
    values = {
        "number": 3.5,
        "ints": np.arange(6, dtype=np.int16).reshape(2, 3),
        "text": "hällo",
        "cells": np.array([["a", np.array([[1.0, 2.0]])]], dtype=object),
        "nested": {"inner": {"deep": 7}},
    }
    for packed in (False, True):
        savemat(tmp_path / "a.mat", values, do_compression=packed)
        found = read_mat((tmp_path / "a.mat").read_bytes())
        assert found["number"].tolist() == [[3.5]]
        assert found["ints"].tolist() == values["ints"].tolist()
        assert found["text"] == "hällo"
        assert found["cells"][0] == "a"
        assert found["nested"][0]["inner"][0]["deep"].tolist() == [[7]]


def test_damaged_mat_files_are_refused(tmp_path, monkeypatch):
    savemat(tmp_path / "a.mat", {"record": {"a": np.arange(50.0)}})
    data = (tmp_path / "a.mat").read_bytes()
    with pytest.raises(MatlabError, match="no MAT file"):
        read_mat(b"x" * 500)
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(128, len(data), 4):
            broken[place] = rng.integers(256)
        for cut in (len(data), int(rng.integers(100, len(data)))):
            try:
                read_mat(bytes(broken[:cut]))
            except MatlabError:
                continue
    savemat(tmp_path / "bomb.mat", {"x": np.zeros(1 << 16)}, do_compression=True)
    monkeypatch.setattr("uvd.trainer.evaluate.matlab.MAX_UNPACKED", 1 << 18)
    with pytest.raises(MatlabError, match="unpacks to over"):
        read_mat((tmp_path / "bomb.mat").read_bytes())

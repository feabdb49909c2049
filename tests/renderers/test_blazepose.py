from __future__ import annotations

from math import pi
from pathlib import Path

import numpy as np
import pytest

from uvd.renderers.estimators.base import EstimatorFilesError
from uvd.renderers.estimators.blazepose import (
    DETECTOR,
    LANDMARK_NET,
    BlazePose,
    Person,
    _largest_parts,
    _without_duplicates,
    samples_folder,
)
from uvd.renderers.estimators.blazepose_geometry import (
    LANDMARK_SIDE,
    Crop,
    anchors,
    blend_overlapping,
    crop_around,
    decode_detections,
    decode_landmarks,
    letterbox,
    sigmoid,
    windows,
)


def test_anchors_have_the_detectors_number_and_order() -> None:
    centres = anchors()
    assert centres.shape == (2254, 2)
    assert centres[0].tolist() == centres[1].tolist() == [0.5 / 28, 0.5 / 28]
    assert centres[2].tolist() == [1.5 / 28, 0.5 / 28]
    assert centres[28 * 28 * 2].tolist() == [0.5 / 14, 0.5 / 14]
    assert centres[-1].tolist() == [6.5 / 7, 6.5 / 7]


def test_decoding_one_anchor() -> None:
    raw, logits = np.zeros((2254, 12), np.float32), np.full(2254, -50, np.float32)
    raw[100], logits[100] = [22.4, 0, 44.8, 22.4, 0, 22.4, 0, -22.4, 0, 0, 0, 0], 3
    points, scores = decode_detections(raw, logits, anchors(), 0.5)
    x, y = anchors()[100]
    assert scores == pytest.approx([sigmoid(np.array([3.0]))[0]])
    assert np.allclose(points[0, 0], (x + 0.1 - 0.1, y - 0.05))
    assert np.allclose(points[0, 1], (x + 0.1 + 0.1, y + 0.05))
    assert np.allclose(points[0, 2:4], [(x, y + 0.1), (x, y - 0.1)])


def test_overlapping_detections_are_blended_by_score() -> None:
    one = np.array([[0, 0], [1, 1], [0.5, 0.5], [0.5, 0], [0, 0], [0, 0]], dtype=float)
    points = np.stack([one, one + 0.1, one + 5])
    blended = blend_overlapping(points, np.array([0.75, 0.25, 0.9]))
    assert [score for _, score in blended] == [0.9, 0.75]
    assert np.allclose(blended[1][0], one + 0.025)
    assert blend_overlapping(np.zeros((0, 6, 2)), np.zeros(0)) == []


def test_crop_of_an_upright_and_of_a_lying_person() -> None:
    upright = crop_around(np.array([100.0, 200.0]), np.array([100.0, 120.0]))
    assert (upright.x, upright.y, upright.side) == (100, 200, 200)
    assert upright.rotation == pytest.approx(0)
    lying = crop_around(np.array([100.0, 200.0]), np.array([180.0, 200.0]))
    assert lying.rotation == pytest.approx(pi / 2)
    upside_down = crop_around(np.array([100.0, 200.0]), np.array([100.0, 280.0]))
    assert abs(upside_down.rotation) == pytest.approx(pi)


def test_the_head_is_up_in_the_crop() -> None:
    hips, head = np.array([100.0, 200.0]), np.array([160.0, 120.0])
    crop = crop_around(hips, head)
    assert np.allclose(crop.to_raw(np.array([0.5, 0.5])), hips)
    assert np.allclose(crop.to_raw(np.array([0.5, 0.5 - 0.5 / 1.25])), head)


@pytest.mark.parametrize("rotation", [0.0, 0.4, -2.0, pi])
def test_a_mark_is_found_where_the_crop_says(rotation: float) -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    image[140:146, 180:186] = 255
    crop = Crop(200, 150, 180, rotation)
    rows, columns = np.nonzero(crop.cut(image)[..., 0] > 127)
    found = crop.to_raw((np.array([columns.mean(), rows.mean()]) + 0.5) / LANDMARK_SIDE)
    assert np.allclose(found, (183, 143), atol=0.3)


@pytest.mark.parametrize("side", [100.0, 260.0, 900.0, 2500.0])
def test_a_mask_returns_to_where_it_was_cut(side: float) -> None:
    row, column = np.mgrid[0:900, 0:1000]
    disc = np.hypot(column + 0.5 - 500, row + 0.5 - 450) < 0.3 * side
    crop = Crop(510, 440, side, 0.7)
    cut = crop.cut(np.repeat((disc * 255).astype(np.uint8)[..., None], 3, axis=2))[..., 0]
    back = crop.paste(cut.astype(np.float32) - 127.5, 900, 1000)
    assert (back & disc).sum() / (back | disc).sum() > 0.97


def test_landmarks_follow_a_sure_heatmap_only() -> None:
    raw = np.zeros((39, 5), np.float32)
    raw[:, :2], raw[:, 3], raw[:, 4] = 128, 4, -4
    heatmaps = np.full((64, 64, 39), -30, np.float32)
    heatmaps[33, 31, 0] = 5
    heatmaps[33, 31, 1] = -1
    landmarks = decode_landmarks(raw.ravel(), heatmaps)
    assert np.allclose(landmarks[0, :2], (31 / 64, 33 / 64), atol=1e-4)
    assert np.allclose(landmarks[1, :2], 0.5)
    assert np.allclose(landmarks[:, 2], sigmoid(np.array([-4.0])))


def test_landmarks_outside_the_crop_are_left_alone() -> None:
    raw = np.zeros((39, 5), np.float32)
    raw[:, 0], raw[:, 1] = -80, 999
    landmarks = decode_landmarks(raw.ravel(), np.full((64, 64, 39), 5, np.float32))
    assert np.allclose(landmarks[:, :2], (-80 / 256, 999 / 256))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1000, 10), (3, 700), (224, 224), (1920, 1080)])
def test_letterbox_and_windows_of_any_shape(width: int, height: int) -> None:
    boxed, scale, left, top = letterbox(np.full((height, width, 3), 255, np.uint8))
    assert boxed.shape == (224, 224, 3)
    assert (boxed[top + round(height * scale) // 2, left + round(width * scale) // 2] == 255).all()
    found = windows(width, height)
    assert 1 <= len(found) <= 9
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height and w and h for x, y, w, h in found)


def test_windows_of_a_long_image_overlap() -> None:
    assert windows(1000, 1000) == [(0, 0, 1000, 1000)]
    assert windows(1500, 1000)[1:] == [(0, 0, 1000, 1000), (500, 0, 1000, 1000)]
    assert len(windows(1000, 2000)) == 4


def person(x: float, score: float) -> Person:
    keypoints = np.column_stack([np.full(17, x), np.linspace(0, 100, 17), np.ones(17)])
    return Person(keypoints, (x, 0, x + 50, 100), score, None)


def test_the_same_person_is_kept_once() -> None:
    people = [person(10, 0.9), person(13, 0.8), person(90, 0.7)]
    assert [p.score for p in _without_duplicates(people)] == [0.9, 0.7]


def test_parts_of_the_mask_without_keypoints_are_dropped() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:40, 10:40] = mask[60:90, 60:90] = True
    keypoints = np.zeros((17, 3))
    keypoints[0] = (20, 20, 0.9)
    keypoints[1] = (70, 70, 0.1)
    assert np.flatnonzero(_largest_parts(mask, keypoints).any(axis=1)).tolist() == list(range(10, 40))


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(EstimatorFilesError, match=r"pose_detection\.tflite is missing"):
        BlazePose(tmp_path)
    (tmp_path / DETECTOR).write_bytes(b"no model at all" * 10)
    with pytest.raises(EstimatorFilesError, match=r"pose_landmark_full\.tflite is missing"):
        BlazePose(tmp_path)
    (tmp_path / LANDMARK_NET).write_bytes(b"no model at all" * 10)
    with pytest.raises(EstimatorFilesError, match="not a TFLite model"):
        BlazePose(tmp_path)


ASTRONAUT = samples_folder() / "skimage/data/astronaut.png"


@pytest.mark.samples
@pytest.mark.skipif(not ASTRONAUT.is_file(), reason="run `uvd samples` first")
def test_the_astronaut_is_found() -> None:
    pytest.importorskip("ai_edge_litert")
    from PIL import Image

    image = np.asarray(Image.open(ASTRONAUT).convert("RGB"))
    model = BlazePose()
    [found] = model.estimate(image)
    nose, left_eye, right_eye = found.keypoints[:3, :2]
    assert np.allclose(nose, (220, 125), atol=12)
    assert right_eye[0] < nose[0] < left_eye[0]
    assert left_eye[1] < nose[1]
    assert found.mask is not None
    assert found.mask[300, 150]
    assert not found.mask[100, 400]
    [again] = model.estimate(image)
    assert np.array_equal(found.keypoints, again.keypoints)
    assert model.estimate(np.zeros((64, 300, 3), np.uint8)) == []

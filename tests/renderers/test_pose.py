from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.renderers import mm_compat
from uvd.renderers.pose import render_pose, visible_people, whole_body
from uvd.renderers.skeletons import OPENPOSE_BODY, render_skeletons


def test_golden_skeletons(golden: Callable[..., None], people: NDArray[np.float64]) -> None:
    golden("pose", render_pose(people))


def test_golden_overlay(golden: Callable[..., None], people: NDArray[np.float64], photo: NDArray[np.uint8]) -> None:
    before = photo.copy()
    golden("pose_overlay", render_pose(people, background=photo))
    assert np.array_equal(photo, before)


def test_neck_is_the_mean_of_the_shoulders_only_when_both_are_visible(people: NDArray[np.float64]) -> None:
    joints = OPENPOSE_BODY.place(people)
    assert np.allclose(joints[0, 1, :2], people[0, 5:7, :2].mean(axis=0))
    assert joints[0, 1, 2] == 1
    assert joints[2, 1, 2] == 0


def test_joints_are_reordered() -> None:
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, :, 0] = np.arange(17)
    order = OPENPOSE_BODY.place(keypoints)[0, :, 0]
    assert order.tolist() == [0, 5.5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**31, 2.0**32 + 100, 70_000, -70_000])
def test_absurd_keypoints_leave_no_mark(people: NDArray[np.float64], value: float) -> None:
    hidden, broken = people.copy(), people.copy()
    hidden[:, 9] = 0
    broken[:, 9, 0] = value
    assert np.array_equal(render_pose(broken), render_pose(hidden))
    broken[:, :, 0] = value
    assert not render_pose(broken).any()


def test_scores_that_are_not_numbers_hide_a_keypoint(people: NDArray[np.float64]) -> None:
    hidden, broken = people.copy(), people.copy()
    hidden[:, 5] = 0
    broken[:, 5, 2] = np.nan
    assert np.array_equal(render_pose(broken), render_pose(hidden))


def test_occluded_coco_keypoints_are_drawn_and_low_scores_are_not(people: NDArray[np.float64]) -> None:
    occluded, faint = people.copy(), people.copy()
    occluded[..., 2] = np.minimum(occluded[..., 2], 1)
    faint[..., 2] = 0.29
    assert np.array_equal(render_pose(occluded), render_pose(people))
    assert not render_pose(faint).any()
    assert visible_people(faint).tolist() == [False, False, False]
    assert visible_people(people).all()


def test_no_people_and_wrong_shapes() -> None:
    assert not render_pose(np.zeros((0, 17, 3))).any()
    for shape in ((17, 3), (1, 17, 2), (1, 19, 3)):
        with pytest.raises(ValueError, match="keypoints"):
            render_pose(np.zeros(shape))


def test_whole_bodies_are_split_into_parts() -> None:
    keypoints = np.zeros((2, 133, 3))
    keypoints[:, :, 0] = np.arange(133)
    parts = {skeleton.name: np.asarray(points)[..., 0].tolist() for skeleton, points in whole_body(keypoints)}
    assert parts["body"] == [list(range(17))] * 2
    assert parts["face"] == [list(range(23, 91))] * 2
    assert parts["hand"] == [list(range(91, 112))] * 2 + [list(range(112, 133))] * 2
    assert whole_body(np.zeros((0, 133, 3))) == ()
    with pytest.raises(ValueError, match="133"):
        whole_body(np.zeros((1, 17, 3)))


@pytest.fixture(scope="module")
def mmpose_draws() -> Callable[..., NDArray[np.uint8]]:
    """MMPose's "openpose" style: (data set, keypoints, background) to a picture."""
    pytest.importorskip("mmpose")
    mm_compat.install()
    from mmengine.structures import InstanceData
    from mmpose.visualization import PoseLocalVisualizer

    def draw(dataset: str, keypoints: NDArray[np.float64], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
        visualizer = PoseLocalVisualizer()
        visualizer.set_dataset_meta({"dataset_name": dataset}, skeleton_style="openpose")
        visualizer.radius, visualizer.line_width = OPENPOSE_BODY.radius, OPENPOSE_BODY.width // 2
        instances = InstanceData(keypoints=keypoints[..., :2], keypoints_visible=keypoints[..., 2])
        return visualizer._draw_instances_kpts(background.copy(), instances, kpt_thr=0.3, skeleton_style="openpose")

    return draw


def agree(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], background: NDArray[np.uint8]) -> float:
    """Intersection over union of what was drawn."""
    a, b = (ours != background).any(axis=-1), (theirs != background).any(axis=-1)
    return float((a & b).sum() / (a | b).sum())


def test_pixels_are_those_of_mmpose(
    mmpose_draws: Callable[..., NDArray[np.uint8]], people: NDArray[np.float64], photo: NDArray[np.uint8]
) -> None:
    rng = np.random.Generator(np.random.Philox(7))
    cases = [people]
    for count in (1, 2, 5):
        spread = rng.uniform(-40, 296, (count, 17, 2))
        cases.append(np.concatenate([spread, rng.uniform(0, 1, (count, 17, 1))], axis=-1))
    for keypoints in cases:
        for background in (np.zeros_like(photo), photo):
            theirs = mmpose_draws("coco", keypoints, background)
            assert np.array_equal(render_pose(keypoints, background=background), theirs)


def test_whole_bodies_cover_what_those_of_mmpose_cover(
    mmpose_draws: Callable[..., NDArray[np.uint8]], people: NDArray[np.float64], photo: NDArray[np.uint8]
) -> None:
    rng = np.random.Generator(np.random.Philox(9))
    keypoints = np.zeros((3, 133, 3))
    keypoints[:, :17] = people
    # Feet, face, left and right hand, each around a keypoint of the body.
    for first, last, around in ((17, 23, 15), (23, 91, 0), (91, 112, 9), (112, 133, 10)):
        spread = rng.normal(0, 14, (3, last - first, 2))
        keypoints[:, first:last, :2] = people[:, around : around + 1, :2] + spread
        keypoints[:, first:last, 2] = rng.uniform(0.1, 1, (3, last - first))
    for background in (np.zeros_like(photo), photo):
        ours = render_skeletons(whole_body(keypoints), background=background)
        theirs = mmpose_draws("coco_wholebody", keypoints, background)
        assert agree(ours, theirs, background) >= 0.99
        # Ours puts all hands over all bodies, and MMPose draws one limb of right hands white.
        assert (ours != theirs).any(axis=-1).mean() < 0.03

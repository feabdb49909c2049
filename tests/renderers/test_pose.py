from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.renderers import mm_compat
from uvd.renderers.pose import HALF_WIDTH, RADIUS, openpose_joints, render_pose, visible_people


def test_golden_skeletons(golden: Callable[..., None], people: NDArray[np.float64]) -> None:
    golden("pose", render_pose(people))


def test_golden_overlay(golden: Callable[..., None], people: NDArray[np.float64], photo: NDArray[np.uint8]) -> None:
    before = photo.copy()
    golden("pose_overlay", render_pose(people, background=photo))
    assert np.array_equal(photo, before)


def test_neck_is_the_mean_of_the_shoulders_only_when_both_are_visible(people: NDArray[np.float64]) -> None:
    joints = openpose_joints(people)
    assert np.allclose(joints[0, 1, :2], people[0, 5:7, :2].mean(axis=0))
    assert joints[0, 1, 2] == 1
    assert joints[2, 1, 2] == 0


def test_joints_are_reordered() -> None:
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, :, 0] = np.arange(17)
    order = openpose_joints(keypoints)[0, :, 0]
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
    for shape in ((17, 3), (1, 17, 2), (1, 18, 3)):
        with pytest.raises(ValueError, match="keypoints"):
            render_pose(np.zeros(shape))
    with pytest.raises(ValueError, match="radius"):
        render_pose(np.zeros((1, 17, 3)), radius=-1)


def test_pixels_are_those_of_mmpose(people: NDArray[np.float64], photo: NDArray[np.uint8]) -> None:
    pytest.importorskip("mmpose")
    mm_compat.install()
    from mmengine.structures import InstanceData
    from mmpose.visualization import PoseLocalVisualizer

    visualizer = PoseLocalVisualizer(radius=RADIUS, line_width=HALF_WIDTH)
    visualizer.set_dataset_meta({"dataset_name": "coco"}, skeleton_style="openpose")
    visualizer.radius, visualizer.line_width = RADIUS, HALF_WIDTH

    def theirs(keypoints: NDArray[np.float64], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
        instances = InstanceData(keypoints=keypoints[..., :2], keypoints_visible=keypoints[..., 2])
        return visualizer._draw_instances_kpts(background.copy(), instances, kpt_thr=0.3, skeleton_style="openpose")

    rng = np.random.Generator(np.random.Philox(7))
    cases = [people]
    for count in (1, 2, 5):
        spread = rng.uniform(-40, 296, (count, 17, 2))
        cases.append(np.concatenate([spread, rng.uniform(0, 1, (count, 17, 1))], axis=-1))
    for keypoints in cases:
        for background in (np.zeros_like(photo), photo):
            ours, oracle = render_pose(keypoints, background=background), theirs(keypoints, background)
            a, b = (ours != background).any(axis=-1), (oracle != background).any(axis=-1)
            assert (a & b).sum() >= 0.99 * (a | b).sum()
            assert np.abs(ours.astype(int) - oracle).mean() < 0.05

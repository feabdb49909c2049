"""Skeletons of each kind, and the shapes of limbs that are remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cv2 import ellipse2Poly
from numpy.typing import NDArray

from uvd.renderers import skeletons
from uvd.renderers.skeletons import (
    AP10K,
    FACE,
    HAND,
    MAX_REMEMBERED,
    OPENPOSE_BODY,
    Skeleton,
    render_skeletons,
    visible_skeletons,
)

KINDS = [OPENPOSE_BODY, HAND, FACE, AP10K]


def hand(x: float, y: float, size: float, turn: float = 0.0) -> NDArray[np.float64]:
    """`(21, 3)`: an open hand with its wrist at (x, y), fingers up when `turn` is 0 degrees."""
    points = [(0.0, 0.0)]
    for finger, reach in zip((-50, -20, 0, 18, 38), (0.75, 0.95, 1.0, 0.95, 0.8), strict=True):
        angle = np.radians(finger + turn)
        points += [(reach * r * np.sin(angle), -reach * r * np.cos(angle)) for r in (0.45, 0.65, 0.83, 1.0)]
    return np.column_stack([np.array(points) * size + (x, y), np.ones(21)])


def face(x: float, y: float, size: float) -> NDArray[np.float64]:
    """`(68, 3)`: jaw, brows, nose, eyes and mouth around (x, y)."""
    jaw = np.linspace(0, np.pi, 17)
    points = [*zip(-np.cos(jaw), 1.2 * np.sin(jaw), strict=True)]
    for side in (-1, 1):
        points += [(side * 0.45 + step, -0.4 - 0.08 * np.cos(step * 5)) for step in np.linspace(-0.3, 0.3, 5)]
    points += [(0.0, row) for row in (-0.15, 0.0, 0.15, 0.3)]
    points += [(step, 0.38) for step in np.linspace(-0.2, 0.2, 5)]
    for side in (-1, 1):
        points += [(side * 0.45 + 0.2 * np.cos(t), -0.15 + 0.1 * np.sin(t)) for t in np.arange(6) * np.pi / 3]
    for across, along, count in ((0.45, 0.2, 12), (0.3, 0.08, 8)):
        turns = np.arange(count) * 2 * np.pi / count
        points += [(across * np.cos(t), 0.72 + along * np.sin(t)) for t in turns]
    return np.column_stack([np.array(points) * size + (x, y), np.ones(68)])


def animal(x: float, y: float, size: float) -> NDArray[np.float64]:
    """`(17, 3)`: an animal of AP-10K standing in profile, its head to the right."""
    points = [(0.92, -0.52), (0.86, -0.54), (1.0, -0.42), (0.62, -0.3), (-0.6, -0.28)]
    for shift, top in ((0.5, -0.1), (0.4, -0.08), (-0.5, -0.1), (-0.58, -0.06)):
        points += [(shift, top), (shift + 0.03, top + 0.3), (shift - 0.02, 0.6 + 0.05 * shift)]
    return np.column_stack([np.array(points) * size + (x, y), np.full(17, 2.0)])


def wild(seed: int, skeleton: Skeleton, count: int) -> NDArray[np.float64]:
    """`(count, K, 3)`: points anywhere in 256x256 and around it, scores anywhere."""
    rng = np.random.Generator(np.random.Philox(seed))
    places = rng.uniform(-40, 296, (count, skeleton.joints, 2))
    return np.concatenate([places, rng.uniform(0, 1, (count, skeleton.joints, 1))], axis=-1)


def test_golden_hands(golden: Callable[..., None]) -> None:
    golden("hands", render_skeletons([(HAND, np.stack([hand(70, 200, 150, -15), hand(190, 240, 90, 20)]))]))


def test_golden_hands_overlay(golden: Callable[..., None], photo: NDArray[np.uint8]) -> None:
    before = photo.copy()
    golden("hands_overlay", render_skeletons([(HAND, [hand(128, 220, 180)])], background=photo))
    assert np.array_equal(photo, before)


def test_golden_faces(golden: Callable[..., None]) -> None:
    golden("faces", render_skeletons([(FACE, np.stack([face(80, 110, 60), face(200, 150, 35)]))]))


def test_golden_animals(golden: Callable[..., None]) -> None:
    animals = np.stack([animal(110, 90, 85), animal(150, 200, 60)])
    animals[1, 11:14, 2] = 0
    golden("ap10k", render_skeletons([(AP10K, animals)]))


def test_golden_whole_body(golden: Callable[..., None], people: NDArray[np.float64]) -> None:
    bodies = people[:2]
    hands = [
        hand(x, y, 26, turn) for x, y, turn in ((bodies[0, 9, 0], bodies[0, 9, 1], 120), (*bodies[0, 10, :2], 200))
    ]
    faces = [face(*person[0, :2], 11) for person in bodies]
    golden("whole_body", render_skeletons([(OPENPOSE_BODY, bodies), (HAND, hands), (FACE, faces)]))


@pytest.mark.parametrize("skeleton", KINDS, ids=lambda skeleton: skeleton.name)
def test_limbs_join_joints_that_exist(skeleton: Skeleton) -> None:
    assert all(0 <= joint < skeleton.joints for limb in skeleton.limbs for joint in limb[:2])
    assert len({frozenset(limb[:2]) for limb in skeleton.limbs}) == len(skeleton.limbs)


def test_hands_and_animals_are_of_one_piece() -> None:
    for skeleton, limbs in ((HAND, 20), (OPENPOSE_BODY, 17), (AP10K, 17)):
        reached = {0}
        for _ in skeleton.limbs:
            reached |= {joint for limb in skeleton.limbs if reached & set(limb[:2]) for joint in limb[:2]}
        assert reached == set(range(skeleton.joints))
        assert len(skeleton.limbs) == limbs


@pytest.mark.parametrize("skeleton", KINDS, ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**31, 2.0**32 + 100, -70_000])
def test_absurd_points_leave_no_mark(skeleton: Skeleton, value: float) -> None:
    points = wild(3, skeleton, 2)
    hidden, broken = points.copy(), points.copy()
    hidden[:, 3] = 0
    broken[:, 3, 1] = value
    assert np.array_equal(render_skeletons([(skeleton, broken)]), render_skeletons([(skeleton, hidden)]))
    broken[:, :, 0] = value
    assert not render_skeletons([(skeleton, broken)]).any()
    assert not visible_skeletons(skeleton, broken).any()


def test_two_joints_inside_make_a_skeleton_visible() -> None:
    points = np.zeros((3, 21, 3))
    points[:, :2] = (50, 60, 1)
    points[1, 1, 2] = 0.29
    points[2, 1, 0] = 256
    assert visible_skeletons(HAND, points).tolist() == [True, False, False]
    assert visible_skeletons(HAND, points, width=300).tolist() == [True, False, True]
    assert visible_skeletons(HAND, np.zeros((0, 21, 3))).shape == (0,)


def test_joints_may_be_given_as_they_are_drawn(people: NDArray[np.float64]) -> None:
    joints = OPENPOSE_BODY.place(people)
    assert joints.shape == (3, 18, 3)
    assert np.array_equal(render_skeletons([(OPENPOSE_BODY, joints)]), render_skeletons([(OPENPOSE_BODY, people)]))


def test_a_mean_has_no_more_to_go_by_than_its_faintest_keypoint() -> None:
    mean = Skeleton("mean", limbs=(), joint_colours=((255, 0, 0),), keypoints=((0, 1),))
    placed = mean.place([[[10, 20, 0.9], [30, 40, 0.5]], [[10, 20, 0.9], [30, 40, 0.3]]], threshold=0.3)
    assert placed.tolist() == [[[20, 30, 1]], [[20, 30, 0]]]


def test_points_of_another_kind_are_refused() -> None:
    for skeleton, count in ((HAND, 20), (AP10K, 18), (FACE, 67), (OPENPOSE_BODY, 16)):
        with pytest.raises(ValueError, match=rf"{skeleton.name} have shape \(1, {count}, 3\), expected \(N, "):
            render_skeletons([(skeleton, np.zeros((1, count, 3)))])
    with pytest.raises(ValueError, match=r"expected \(N, 17, 3\) or \(N, 18, 3\)"):
        OPENPOSE_BODY.place(np.zeros((17, 3)))


def test_width_and_radius_are_checked() -> None:
    with pytest.raises(ValueError, match="width 0"):
        replace(HAND, width=0)
    with pytest.raises(ValueError, match="radius -1"):
        replace(HAND, radius=-1)
    assert not render_skeletons([]).any()


def test_later_parts_and_later_skeletons_are_on_top() -> None:
    dot = Skeleton("dot", limbs=(), joint_colours=((1, 2, 3),))
    other = replace(dot, joint_colours=((4, 5, 6),))
    at = np.array([[[50, 50, 1]]])
    assert render_skeletons([(dot, at), (other, at)])[50, 50].tolist() == [4, 5, 6]
    assert render_skeletons([(other, at), (dot, at)])[50, 50].tolist() == [1, 2, 3]


@pytest.mark.parametrize("width", [1, 4, 9])
def test_remembered_shapes_are_those_that_are_drawn_afresh(
    photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    skeleton = replace(OPENPOSE_BODY, width=width)
    # Narrow, so that most limbs are short, and at one corner or the other, so that edges cut many.
    moved = [wild(seed, skeleton, 5) * (0.6, 0.6, 1) + np.array([120, 120, 0]) * (seed % 2) for seed in range(40)]
    cases = [np.clip(points, (1, 1, 0), (255, 255, 1)) for points in moved]
    remembered = [render_skeletons([(skeleton, points)], background=photo) for points in cases]
    monkeypatch.setattr(skeletons, "MAX_REMEMBERED", -1)
    for points, picture in zip(cases, remembered, strict=True):
        assert np.array_equal(render_skeletons([(skeleton, points)], background=photo), picture)


def test_outlines_depend_on_where_they_lie_only_at_multiples_of_30_degrees() -> None:
    longest = int(np.hypot(MAX_REMEMBERED, MAX_REMEMBERED) / 2)
    depends = set()
    for half_length in range(longest + 1):
        for angle in range(-180, 181):
            even, odd = (ellipse2Poly((at, at), (half_length, 2), angle, 0, 360, 1) for at in (40, 41))
            if even.shape != odd.shape or (odd != np.add(even, 1)).any():
                depends.add(angle)
    assert depends
    assert not {angle for angle in depends if angle % 30}

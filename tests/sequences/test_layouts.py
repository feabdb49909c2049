"""Layouts: what goes into a sequence and in which order, by property."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvd.sequences import MAX_IMAGES, Example, Picture, Reject, Seeds, VisualSequence
from uvd.sequences.layouts import LAYOUTS, LayoutError, assemble
from uvd.sequences.layouts.annotated_video import grouped_order
from uvd.sequences.layouts.category import GROUP_SIZES
from uvd.sequences.layouts.multiview import orbit_windows
from uvd.sequences.layouts.tuples import draw_roles

BLANK = np.zeros((256, 256, 3), np.uint8)
SEEDS = Seeds(7, ("test", 0))


def make(index: int, roles=("image",), split="train", group="") -> Example:
    pictures = tuple(Picture(role, BLANK, f"{index}.jpg", (1, 1), number) for number, role in enumerate(roles))
    return Example((index,), "d", split, pictures, group)


def arrange(name: str, examples, seeds=SEEDS):
    return list(assemble(examples, LAYOUTS, {name: 1.0}, seeds))


def sequences(arranged):
    return [item for item in arranged if isinstance(item, VisualSequence)]


annotated = st.lists(
    st.tuples(
        st.sets(st.sampled_from(["boxes", "pose", "segmentation", "grey"]), min_size=1),
        st.sampled_from(["train", "val"]),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(annotated)
def test_pairs_hold_one_annotation_type_and_use_every_example(kinds):
    examples = [make(i, ("image", *sorted(roles)), split) for i, (roles, split) in enumerate(kinds)]
    result = sequences(arrange("pairs", examples))
    used: Counter[tuple[int, str]] = Counter()
    for sequence in result:
        assert len(sequence.pictures) <= MAX_IMAGES
        assert len(sequence.pictures) % 2 == 0
        assert set(sequence.roles[::2]) == {"image"}
        (role,) = set(sequence.roles[1::2])
        for image, annotation in zip(sequence.pictures[::2], sequence.pictures[1::2], strict=True):
            assert image.origin == annotation.origin
            used[int(image.origin.split(".")[0]), role] += 1
        assert {kinds[index][1] for index in sequence.inputs} == {sequence.split}
    assert used == Counter((i, role) for i, (roles, _) in enumerate(kinds) for role in roles)


@settings(max_examples=40, deadline=None)
@given(annotated, st.integers(0, 5))
def test_tuples_keep_one_order_and_use_every_example_once(kinds, seed):
    examples = [make(i, ("image", *sorted(roles)), split) for i, (roles, split) in enumerate(kinds)]
    result = sequences(arrange("tuples", examples, Seeds(seed)))
    used: Counter[int] = Counter()
    for sequence in result:
        m = next((i for i, p in enumerate(sequence.pictures) if p.origin != sequence.pictures[0].origin), None)
        m = m or len(sequence.pictures)
        assert len(sequence.pictures) <= MAX_IMAGES
        assert len(sequence.pictures) % m == 0
        for start in range(0, len(sequence.pictures), m):
            part = sequence.pictures[start : start + m]
            assert tuple(p.role for p in part) == sequence.roles[:m]
            assert len({p.origin for p in part}) == 1
        used.update(sequence.inputs)
    assert used == Counter(range(len(kinds)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 3))
def test_category_groups_hold_one_class_and_nothing_is_lost(class_sizes, seed):
    labels = [f"c{number}" for number, size in enumerate(class_sizes) for _ in range(size)]
    arranged = arrange("category", [make(i, group=label) for i, label in enumerate(labels)], Seeds(seed))
    used: Counter[int] = Counter()
    for item in arranged:
        if isinstance(item, Reject):
            used[item.input] += 1
            continue
        members = [int(p.origin.split(".")[0]) for p in item.pictures]
        used.update(members)
        sizes = [size for size in GROUP_SIZES if len(members) % size == 0]
        assert any(
            all(len({labels[i] for i in members[s : s + size]}) == 1 for s in range(0, len(members), size))
            for size in sizes
        )
    assert used == Counter(range(len(labels)))


def test_category_rejects_a_single_image_of_a_class():
    (reject,) = arrange("category", [make(0, group="alone")])
    assert isinstance(reject, Reject)
    assert reject.reason == "leftover"


@given(st.integers(1, 60), st.integers(0, 100), st.sampled_from([1, -1]))
def test_orbit_windows_cover_every_view_and_turn_evenly(views, start, direction):
    windows = orbit_windows(views, start, direction)
    assert {view for window in windows for view in window} == set(range(views))
    for window in windows:
        assert len(window) == min(MAX_IMAGES, views)
        steps = {(b - a) % views for a, b in itertools.pairwise(window)}
        assert steps <= {direction % views}


def test_24_views_give_two_windows_of_16():
    assert [len(window) for window in orbit_windows(24, 5, 1)] == [16, 16]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 9))
def test_each_role_of_an_object_has_the_same_windows(views, roles, seed):
    names = ("view", "depth", "normals", "mask")[:roles]
    pictures = tuple(Picture(role, BLANK, "a.glb", (1, 1), view) for view in range(views) for role in names)
    found = sequences(arrange("multiview", [Example((0,), "d", "train", pictures)], Seeds(seed)))
    alone = sequences(arrange("multiview", [Example((0,), "d", "train", pictures[::roles])], Seeds(seed)))
    order = [[picture.index for picture in sequence.pictures] for sequence in alone]
    for place, role in enumerate(names):
        mine = found[place::roles]
        assert {name for sequence in mine for name in sequence.roles} == {role}
        assert [[picture.index for picture in sequence.pictures] for sequence in mine] == order


def test_roles_of_an_object_with_unequal_views_are_refused():
    with pytest.raises(LayoutError, match="'view': 2, 'depth': 1"):
        arrange("multiview", [make(0, ("view", "depth", "view"))])


@given(st.integers(2, 30), st.integers(0, 10_000))
def test_drawn_roles_are_distinct_and_fit(count, seed):
    roles = [f"r{number}" for number in range(count)]
    drawn = draw_roles(roles, Seeds(seed).generator())
    assert 2 <= len(drawn) <= min(count, MAX_IMAGES)
    assert len(set(drawn)) == len(drawn)


def test_annotated_video_layouts():
    alternating = ("frame", "masks") * 3
    (interleaved,) = arrange("interleaved", [make(0, alternating)])
    (grouped,) = arrange("grouped", [make(0, alternating)])
    assert [p.index for p in interleaved.pictures] == [0, 1, 2, 3, 4, 5]
    assert [p.index for p in grouped.pictures] == [0, 2, 4, 1, 3, 5] == grouped_order(range(6))


@pytest.mark.parametrize("roles", [("frame", "masks", "frame"), ("masks", "frame"), ("frame", "a", "frame", "b")])
def test_annotated_video_layouts_refuse_other_forms(roles):
    with pytest.raises(LayoutError):
        arrange("interleaved", [make(0, roles)])


def test_mixing_is_by_weight_and_by_seed_alone():
    examples = [make(i, ("image", "boxes", "pose")) for i in range(60)]
    weights = {"pairs": 3.0, "tuples": 1.0}
    first = [(s.layout, s.roles, s.inputs) for s in assemble(examples, LAYOUTS, weights, SEEDS)]
    again = [(s.layout, s.roles, s.inputs) for s in assemble(examples, LAYOUTS, weights, SEEDS)]
    assert first == again
    in_pairs = {i for layout, _, inputs in first for i in inputs if layout == "pairs"}
    in_tuples = {i for layout, _, inputs in first for i in inputs if layout == "tuples"}
    assert in_pairs | in_tuples == set(range(60))
    assert not in_pairs & in_tuples
    assert len(in_pairs) > len(in_tuples) > 0


def test_rejects_pass_through_in_place():
    reject = Reject(1, "1.jpg", "missing")  # type: ignore[arg-type]
    assert arrange("single", [make(0), reject, make(2)])[1] is reject


def test_pairs_refuse_a_photo_alone():
    with pytest.raises(LayoutError, match="no annotation"):
        arrange("pairs", [make(0)])


def test_pairs_put_what_is_degraded_before_the_photo():
    def restored(index: int) -> Example:
        photo, boxes, noise = make(index, ("image", "boxes", "noise")).pictures
        return Example((index,), "d", "train", (photo, boxes, replace(noise, degraded=True)))

    result = sequences(arrange("pairs", [restored(index) for index in range(11)]))
    assert [sequence.roles for sequence in result] == [
        ("image", "boxes") * 8,
        ("noise", "image") * 8,
        ("image", "boxes") * 3,
        ("noise", "image") * 3,
    ]
    for sequence in result:
        for first, second in zip(sequence.pictures[::2], sequence.pictures[1::2], strict=True):
            assert first.origin == second.origin


def test_pairs_of_different_groups_share_no_sequence():
    examples = [make(index, ("image", "foreground"), group=("", "a", "b")[index % 3]) for index in range(30)]
    result = sequences(arrange("pairs", examples))
    assert sorted(len(sequence.inputs) for sequence in result) == [2, 2, 2, 8, 8, 8]
    for sequence in result:
        assert len({index % 3 for index in sequence.inputs}) == 1
    assert sorted(index for sequence in result for index in sequence.inputs) == list(range(30))

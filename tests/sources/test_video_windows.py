"""Which frames become sequences: golden numbers, and what holds for every clip, setting and seed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvd.sequences import Seeds
from uvd.sources.video_windows import Window, at_rate, place_windows, split_scenes

STRIDES = (10, 20, 30)
SEEDS = Seeds(0, (3, 17))
GOLDEN_THINNED = [
    (5120, 10, 16), (7040, 10, 16), (8960, 10, 16), (11680, 10, 16),
    (5760, 20, 16), (6080, 20, 16), (14080, 20, 16), (14400, 20, 16),
    (480, 30, 16), (5280, 30, 16), (6240, 30, 16), (8640, 30, 16),
]  # fmt: skip
GOLDEN_RANDOM = [
    (5358, 10, 16), (7179, 10, 16), (8969, 10, 16), (11806, 10, 16),
    (6266, 20, 16), (6614, 20, 16), (14538, 20, 16), (14593, 20, 16),
    (508, 30, 16), (5446, 30, 16), (6950, 30, 16), (9398, 30, 16),
]  # fmt: skip
GOLDEN_RANDOM_SCENES = [
    (222, 30, 16), (223, 30, 16), (252, 30, 16), (289, 30, 16),
    (301, 30, 16), (323, 30, 16), (362, 30, 16), (372, 30, 16),
    (443, 30, 16),
]  # fmt: skip


def placed(scenes, strides=STRIDES, per_stride=4, min_frames=16, seeds=SEEDS, placement="end_to_end"):
    """(first frame, stride, frames) of windows, in the order in which they are placed."""
    windows = place_windows(scenes, strides, per_stride, min_frames, seeds, placement)
    return [(window.start, window.stride, window.count) for window in windows]


def test_the_frames_of_a_window():
    assert [*Window(7, 10, 16).frames] == [7, 17, 27, 37, 47, 57, 67, 77, 87, 97, 107, 117, 127, 137, 147, 157]
    assert [*Window(0, 30, 3).frames] == [0, 30, 60]


def test_end_to_end_by_hand():
    """700 frames: at stride 10 a window takes 160 frames and needs 151, at 20 320 and 301, at 30 480 and 451."""
    assert placed([(0, 700)]) == [
        (0, 10, 16), (160, 10, 16), (320, 10, 16), (480, 10, 16),
        (0, 20, 16), (320, 20, 16),
        (0, 30, 16),
    ]  # fmt: skip


@pytest.mark.parametrize(("stride", "needed"), [(10, 151), (20, 301), (30, 451)])
def test_how_long_a_clip_has_to_be(stride, needed):
    assert placed([(0, needed - 1)], (stride,)) == []
    assert placed([(0, needed)], (stride,)) == [(0, stride, 16)]
    assert placed([(0, needed + 16 * stride - 1)], (stride,)) == [(0, stride, 16)]
    assert placed([(0, needed + 16 * stride)], (stride,)) == [(0, stride, 16), (16 * stride, stride, 16)]


def test_thinned_by_the_seed_golden():
    """Ten minutes at 25 frames a second have room for 94, 47 and 31 windows."""
    assert placed([(0, 15_000)]) == GOLDEN_THINNED


def test_random_golden():
    assert placed([(0, 15_000)], placement="random") == GOLDEN_RANDOM


def test_scenes_golden():
    scenes = [(0, 200), (200, 215), (215, 900), (900, 1300)]
    assert placed(scenes, per_stride=9) == [
        (0, 10, 16),
        (215, 10, 16), (375, 10, 16), (535, 10, 16), (695, 10, 16),
        (900, 10, 16), (1060, 10, 16),
        (215, 20, 16), (535, 20, 16),
        (900, 20, 16),
        (215, 30, 16),
    ]  # fmt: skip
    assert placed(scenes, per_stride=9, placement="random", strides=(30,)) == GOLDEN_RANDOM_SCENES


def test_a_short_scene_gives_what_fits():
    assert placed([(0, 100), (100, 400)], min_frames=8) == [
        (0, 10, 10),
        (100, 10, 16),
        (100, 20, 15),
        (100, 30, 10),
    ]
    assert placed([(0, 100)], min_frames=11) == []
    assert placed([(0, 1)], (1,), min_frames=2) == []
    assert placed([(0, 0)], (1,), min_frames=2) == placed([], (1,)) == []


def test_draws_depend_on_the_seed_and_the_stride_alone():
    drawn = {tuple(placed([(0, 5000)], (1,), seeds=Seeds(seed))) for seed in range(10)}
    assert len(drawn) > 5
    alone = placed([(0, 15_000)], (20,))
    assert alone == [window for window in placed([(0, 15_000)]) if window[1] == 20]


@st.composite
def scene_lists(draw):
    edges = sorted({0, *draw(st.lists(st.integers(1, 3000), min_size=1, max_size=8))})
    return list(pairwise(edges))


@settings(max_examples=300, deadline=None)
@given(
    scenes=scene_lists(),
    strides=st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True).map(tuple),
    per_stride=st.integers(1, 6),
    min_frames=st.integers(2, 16),
    placement=st.sampled_from(["end_to_end", "random"]),
)
def test_windows_by_property(scenes, strides, per_stride, min_frames, placement):
    arguments = (scenes, strides, per_stride, min_frames, Seeds(1), placement)
    windows = place_windows(*arguments)
    assert windows == place_windows(*arguments)
    for stride in strides:
        mine = [window for window in windows if window.stride == stride]
        assert len(mine) <= per_stride
        assert len({window.start for window in mine}) == len(mine)
        assert mine == sorted(mine, key=lambda window: window.start)
        room = 0
        for begin, end in scenes:
            inside = [window for window in mine if begin <= window.start < end]
            fit = len(range(begin, end, stride))
            assert all(window.frames[-1] < end for window in inside)  # no window crosses a cut
            assert {window.count for window in inside} <= ({min(16, fit)} if fit >= min_frames else set())
            if placement == "end_to_end":
                assert all(b.start - a.start >= 16 * stride for a, b in pairwise(inside))
                assert all((window.start - begin) % (16 * stride) == 0 for window in inside)
                room += sum(start + 15 * stride < end for start in range(begin, end, 16 * stride)) if fit >= 16 else 0
            else:
                room += max(0, end - begin - 15 * stride) if fit >= 16 else 0
            room += min_frames <= fit < 16
        assert len(mine) == min(per_stride, room)  # and none is left out that there was room for
    assert all(window.stride in strides for window in windows)


def test_random_starts_reach_the_whole_clip():
    starts = [placed([(0, 1000)], (10,), 1, seeds=Seeds(seed), placement="random")[0][0] for seed in range(400)]
    assert min(starts) < 20
    assert 830 <= max(starts) <= 849  # the last possible start
    assert np.histogram(starts, 4, (0, 850))[0].min() > 60


def test_scenes_between_cuts():
    assert split_scenes([], 100) == [(0, 100)]
    assert split_scenes([30, 70], 100) == [(0, 30), (30, 70), (70, 100)]
    assert split_scenes([70, 0, 30, 30, 100, 250, -4], 100) == [(0, 30), (30, 70), (70, 100)]


@pytest.mark.parametrize(
    ("rate", "fps", "first"),
    [
        (50, 25, [0, 2, 4, 6, 8]),
        (25, 25, [0, 1, 2, 3, 4]),
        (25, 100, [0, 1, 2, 3, 4]),  # no frame twice
        (30, 25, [0, 1, 2, 3, 4, 6]),
        (24, 10, [0, 2, 4, 7, 9, 12]),
        (29.97, 10, [0, 3, 6, 9, 12, 15]),
        (25, 1, [0, 25, 50, 75]),
    ],
)
def test_frames_at_a_rate(rate, fps, first):
    places = at_rate(np.arange(100) / rate, fps)
    assert places[: len(first)].tolist() == first
    assert (np.diff(places) > 0).all()
    assert places[-1] < 100


@pytest.mark.parametrize("start_s", [0.0, 0.7, 1 / 3, 3600.1])
@pytest.mark.parametrize("rate", [25.0, 30000 / 1001, 24.0, 60.0])
def test_half_of_the_rate_is_every_second_frame_wherever_a_stretch_begins(start_s, rate):
    for base in (1 / 90_000, 1 / 1000):  # the clocks of MPEG and Matroska
        times_s = np.rint((start_s + np.arange(2000) / rate) / base) * base
        places = at_rate(times_s, rate / 2)
        assert set(np.diff(places)) == {2}, base
        assert len(places) == 1000


def test_a_rate_over_a_variable_one():
    times_s = np.array([0.0, 0.01, 0.02, 0.5, 0.51, 2.0])
    assert at_rate(times_s, 10).tolist() == [0, 2, 3, 4, 5]  # on screen at 0, 0.1 to 0.4, 0.5, 0.6 to 1.9, and 2.0
    assert at_rate(times_s[:1], 10).tolist() == [0]
    assert at_rate(times_s[:0], 10).tolist() == []

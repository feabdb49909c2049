"""Scores on answers that are known beforehand."""

from __future__ import annotations

import json
from math import isnan, log, nan

import numpy as np
import pytest

from uvd.trainer.evaluate.chart import Curve, bar_chart, line_chart, ticks
from uvd.trainer.evaluate.report import Report, Row, mean_row
from uvd.trainer.evaluate.scorers import (
    Overlap,
    box_mask,
    choice_accuracy,
    class_iou,
    correct_keypoints,
    foreground,
    largest_rectangle,
    mean_iou,
    mse,
    overlap,
    perplexity_of,
)


def square(x: int, y: int, side: int, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_a_pixel_is_foreground_if_it_is_nearer_to_white_than_to_black():
    levels = np.array([[0, 127, 128, 255]], np.uint8)[:, :, None].repeat(3, axis=2)
    assert foreground(levels).tolist() == [[False, False, True, True]]
    # Nearest in colour: (255, 255, 0) is 255 from white and 361 from black; red is nearer to black.
    assert foreground(np.array([[[255, 255, 0], [255, 0, 0]]], np.uint8)).tolist() == [[True, False]]


def test_iou_of_known_masks():
    assert overlap(square(0, 0, 8), square(4, 0, 8)) == Overlap(32, 96)
    assert overlap(square(0, 0, 8), square(4, 0, 8)).iou == pytest.approx(1 / 3)
    assert overlap(square(0, 0, 8), square(0, 0, 8)).iou == 1
    assert overlap(square(0, 0, 8), np.zeros((32, 32), bool)).iou == 0
    assert overlap(np.zeros((4, 4), bool), np.zeros((4, 4), bool)).iou == 1
    with pytest.raises(ValueError, match="cannot be compared"):
        overlap(np.zeros((4, 4), bool), np.zeros((4, 5), bool))


def test_the_two_means_of_iou_differ_where_sizes_do():
    overlaps = [Overlap(1, 1), Overlap(0, 99), Overlap(1, 2)]
    assert mean_iou(overlaps) == pytest.approx(0.5)
    # Class a: 1 of 100 pixels; class b: 1 of 2.
    assert class_iou(overlaps, ["a", "a", "b"]) == pytest.approx((0.01 + 0.5) / 2)
    assert isnan(mean_iou([]))
    assert isnan(class_iou([], []))


def test_the_rectangle_is_that_of_the_largest_component():
    mask = square(2, 3, 5) | square(20, 20, 9)
    mask[29, 29] = True  # touches the larger one at a corner only, which counts
    assert largest_rectangle(mask) == (20, 20, 30, 30)
    assert largest_rectangle(np.zeros((8, 8), bool)) is None
    assert largest_rectangle(np.ones((8, 9), bool)) == (0, 0, 9, 8)


def test_a_box_is_filled_and_cut_at_the_edges():
    assert (box_mask((2, 3, 7, 8), 32, 32) == square(2, 3, 5)).all()
    assert box_mask((-4, -4, 2, 2), 8, 8).sum() == 4
    assert not box_mask((-9, -9, -2, -2), 8, 8).any()
    assert not box_mask(None, 8, 8).any()


def test_mse_of_known_pictures():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert mse(black, black) == 0
    assert mse(black, grey) == pytest.approx(0.04)
    assert mse(grey, black, np.array([0.1, 0.2, 0.4])) == pytest.approx((4 + 1 + 0.25) / 3)
    with pytest.raises(ValueError, match="cannot be compared"):
        mse(black, grey[:2])


def test_keypoints_within_a_tenth_of_the_size_are_right():
    truth = np.array([[100.0, 100.0], [50.0, 50.0], [nan, nan], [10.0, 10.0]])
    predicted = np.array([[110.0, 100.0], [61.0, 50.0], [1.0, 1.0], [nan, nan]])
    # Size 100: 10 pixels are right, 11 are not; the third is not visible, the fourth was not found.
    assert correct_keypoints(predicted, truth, 100.0) == (1, 3)
    assert correct_keypoints(truth, truth, 1.0) == (3, 3)
    assert correct_keypoints(np.full((4, 2), nan), truth, 1e9) == (0, 3)


def test_perplexity_of_known_losses():
    assert perplexity_of(np.zeros(256)) == 1
    assert perplexity_of(np.full(256, log(8192))) == pytest.approx(8192)
    # The mean is taken before the exponential: one hard token counts as a factor.
    assert perplexity_of(np.array([0.0, log(16)])) == pytest.approx(4)


def test_choices_and_ties():
    scores = np.array([[1.0, 2, 3], [3, 1, 2], [1, 1, 5], [7, 7, 7]])
    assert choice_accuracy(scores, np.array([0, 0, 0, 0])) == pytest.approx((1 + 0 + 1 / 2 + 1 / 3) / 4)


def test_a_report_writes_json_without_nan_and_a_chart(tmp_path):
    report = Report("raven", "how", {"seed": 1}, axis="accuracy")
    report.rows = [Row("a", "model", 2, {"accuracy": 0.5, "other": nan}), Row("b", "model", 4, {"accuracy": 1.0})]
    report.rows.append(mean_row(report.rows[:2], "model"))
    assert isnan(report.rows[-1].measures["other"])
    assert report.rows[-1].measures["accuracy"] == 0.75
    assert report.rows[-1].episodes == 6
    assert report.measures() == ["accuracy", "other"]
    assert report.cells()[:2] == [["a", "model", "2", "0.500", ""], ["b", "model", "4", "1.000", ""]]
    written = report.save(tmp_path / "new")
    assert [path.name for path in written] == ["raven.json", "raven.png"]
    saved = json.loads(written[0].read_text())
    assert saved["rows"][0] == {"group": "a", "predictor": "model", "episodes": 2, "accuracy": 0.5, "other": None}


def test_ticks_are_round_and_cover_the_range():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(48.4, 62.1) == [45, 50, 55, 60, 65]
    for low, high in ((0.0, 0.0), (5.0, 5.0), (-3.0, 7.0), (1e-6, 3e-6), (0.0, 8192.0)):
        marks = ticks(low, high)
        assert marks[0] <= low
        assert marks[-1] >= high
        assert 2 <= len(marks) <= 14


def test_charts_show_what_they_are_given():
    falling = line_chart([Curve("model", (1, 2, 3), (60.0, 50.0, nan))], title="t", x_axis="frames")
    rising = line_chart([Curve("model", (1, 2, 3), (50.0, 60.0, nan))], title="t", x_axis="frames")
    assert falling.shape == rising.shape == (520, 900, 3)
    assert (falling != rising).any()
    tall, low = (bar_chart({("a", "model"): value, ("a", "truth"): 1.0}) for value in (0.9, 0.1))
    blue = [(chart == (0, 114, 178)).all(axis=2).sum() for chart in (tall, low)]
    assert blue[0] > 3 * blue[1]
    with pytest.raises(ValueError, match="finite"):
        line_chart([Curve("model", (1,), (nan,))])
    with pytest.raises(ValueError, match="at least one bar"):
        bar_chart({})

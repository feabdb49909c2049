"""The shared transform: image, labels, points and boxes end up in the same place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvd.sequences import Seeds, fit

RESIZES = ("center_crop", "stretch", "random_crop")


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(400, 300), (300, 400), (200, 256), (1001, 517)])
def test_a_mark_in_the_image_is_where_the_transform_says(resize, size):
    width, height = size
    transform = fit(width, height, resize, Seeds(3).generator())
    column, row = width // 2 - 3, height // 2 + 5
    labels = np.zeros((height, width), np.int32)
    labels[row - 6 : row + 7, column - 6 : column + 7] = 7
    image = np.repeat((labels * 30).astype(np.uint8)[:, :, None], 3, axis=2)
    (x, y) = transform.points(np.array([column + 0.5, row + 0.5]))
    for result in (transform.labels(labels) > 0, transform.image(image)[:, :, 0] > 105):
        rows, columns = np.nonzero(result)
        assert abs(columns.mean() + 0.5 - x) <= 1
        assert abs(rows.mean() + 0.5 - y) <= 1
    x0, y0, x1, y1 = transform.boxes(np.array([[column - 6, row - 6, 13, 13]]))[0]
    rows, columns = np.nonzero(transform.labels(labels))
    assert abs(columns.min() - x0) <= 1
    assert abs(columns.max() + 1 - x1) <= 1
    assert abs(rows.min() - y0) <= 1
    assert abs(rows.max() + 1 - y1) <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(RESIZES), st.integers(0, 9))
def test_labels_never_get_a_new_value_and_the_crop_lies_inside(width, height, resize, seed):
    transform = fit(width, height, resize, Seeds(seed).generator())
    assert 0 <= transform.x <= transform.x + transform.width <= width
    assert 0 <= transform.y <= transform.y + transform.height <= height
    labels = np.arange(width * height, dtype=np.int32).reshape(height, width)
    out = transform.labels(labels)
    assert out.shape == (256, 256)
    assert set(np.unique(out)) <= set(range(width * height))


def test_center_crop_keeps_the_aspect_ratio_and_stretch_does_not():
    assert len(set(fit(800, 300, "center_crop").scale)) == 1
    assert len(set(fit(800, 300, "stretch").scale)) == 2


def test_stretch_uses_the_whole_image():
    assert fit(800, 300, "stretch").boxes(np.array([[0, 0, 800, 300]])).tolist() == [[0, 0, 256, 256]]


def test_the_image_is_never_the_callers():
    image = np.zeros((256, 256, 3), np.uint8)
    assert not np.shares_memory(fit(256, 256).image(image), image)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="0x5"):
        fit(0, 5)
    with pytest.raises(ValueError, match="generator"):
        fit(10, 10, "random_crop")

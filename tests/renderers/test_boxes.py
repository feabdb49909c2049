from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.renderers.boxes import render_boxes, visible_boxes
from uvd.renderers.palette import colour

BOXES = [[20, 30, 120, 200], [60, 60, 100, 110], [200, 180, 400, 300], [-50, -50, 40, 20], [150, 20, 152, 24]]
CLASSES = [1, 3, 18, 1, 44]


def drawn(picture: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """First and last row and column that are not black."""
    rows, columns = np.nonzero(picture.any(axis=-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_golden_outlines(golden: Callable[..., None]) -> None:
    golden("boxes", render_boxes(BOXES, CLASSES))


def test_golden_overlay_leaves_the_photo_alone(golden: Callable[..., None], photo: NDArray[np.uint8]) -> None:
    before = photo.copy()
    golden("boxes_overlay", render_boxes(BOXES, CLASSES, background=photo))
    assert np.array_equal(photo, before)


def test_golden_filled(golden: Callable[..., None]) -> None:
    golden("boxes_filled", render_boxes(BOXES, CLASSES, filled=True))


def test_outline_stays_within_the_box() -> None:
    assert drawn(render_boxes([[10, 20, 50, 80]], [1], thickness=3)) == (10, 20, 49, 79)


def test_filled_area_is_exact() -> None:
    assert int((render_boxes([[10, 20, 50, 80]], [1], filled=True) == 255).all(axis=-1).sum()) == 40 * 60


def test_smaller_box_is_on_top_whatever_the_order() -> None:
    big, small = [0, 0, 200, 200], [0, 0, 20, 20]
    one, other = render_boxes([big, small], [1, 2]), render_boxes([small, big], [2, 1])
    assert np.array_equal(one, other)
    assert tuple(one[0, 5]) == colour(2)


def test_truncated_box_is_closed_at_the_border() -> None:
    picture = render_boxes([[200, 100, 900, 150]], [5])
    assert (picture[100:150, 255] == colour(5)).all()


@pytest.mark.parametrize(
    "box",
    [
        [300, 10, 350, 40],
        [256, 0, 300, 40],
        [-20, 10, 0, 40],
        [10, 10, 10, 40],
        [40, 10, 10, 40],
        [np.nan, 10, 20, 40],
        [0, 0, np.inf, 40],
        [-np.inf, 0, 10, 40],
        [-1e308, 0, 1e308, 40],
    ],
)
def test_boxes_without_visible_area_are_not_drawn(box: list[float]) -> None:
    assert not render_boxes([box], [1]).any()
    assert not visible_boxes([box]).any()


@pytest.mark.parametrize("box", [[10.4, 10.4, 10.5, 10.5], [255.9, 255.9, 256.5, 256.5], [0, 0, 0.01, 0.01]])
def test_tiny_boxes_get_one_pixel(box: list[float]) -> None:
    assert int(render_boxes([box], [7]).any(axis=-1).sum()) == 1
    assert visible_boxes([box]).all()


def test_huge_coordinates_are_clipped() -> None:
    assert drawn(render_boxes([[-1e30, -1e30, 1e30, 1e30]], [1])) == (0, 0, 255, 255)


def test_no_boxes_give_a_black_picture() -> None:
    assert not render_boxes(np.zeros((0, 4)), []).any()
    assert visible_boxes([]).shape == (0,)


@pytest.mark.parametrize(
    ("boxes", "classes", "message"),
    [
        ([[1, 2, 3]], [1], "shape"),
        ([[1, 2, 3, 4]], [], "classes"),
        ([[1, 2, 3, 4]], [0], "void"),
        ([[1, 2, 3, 4]], [9999], "palette"),
        ([[1, 2, 3, 4]], [-1], "palette"),
        ([[1, 2, 3, 4]], [1.5], "integers"),
    ],
)
def test_wrong_input_is_refused(boxes: list[list[float]], classes: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_boxes(boxes, classes)


def test_wrong_background_and_thickness_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        render_boxes([[1, 2, 3, 4]], [1], background=np.zeros((9, 9), np.uint8))
    with pytest.raises(ValueError, match="thickness"):
        render_boxes([[1, 2, 3, 4]], [1], thickness=0)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.renderers.palette import colour
from uvd.renderers.segmentation import instance_labels, render_foreground, render_instances, render_segmentation


def disc(x: float, y: float, radius: float) -> NDArray[np.bool_]:
    row, column = np.mgrid[0:256, 0:256]
    return np.hypot(column - x, row - y) < radius


def test_golden_label_map(golden: Callable[..., None]) -> None:
    row, column = np.mgrid[0:256, 0:256]
    golden("segmentation", render_segmentation((row // 32) * 8 + column // 32))


def test_golden_instances(golden: Callable[..., None]) -> None:
    golden("instances", render_instances([disc(90, 90, 20), disc(100, 100, 70), disc(180, 150, 60)], [3, 1, 2]))


def test_golden_foreground(golden: Callable[..., None]) -> None:
    golden("foreground", render_foreground(disc(128, 128, 80)))


def test_every_pixel_has_its_class_colour() -> None:
    labels = np.array([[0, 1, 1203], [2047, 90, 0]], dtype=np.uint16)
    picture = render_segmentation(labels)
    for place in np.ndindex(labels.shape):
        assert tuple(picture[place]) == colour(int(labels[place]))


@pytest.mark.parametrize("bad", [-1, 2048, 65_535])
def test_ids_beyond_the_palette_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="outside the palette"):
        render_segmentation(np.full((4, 4), bad, dtype=np.int32))


def test_void_ids_are_black_even_beyond_the_palette() -> None:
    labels = np.array([[1, 255], [65_535, 2]], dtype=np.uint16)
    picture = render_segmentation(labels, void=(255, 65_535))
    assert not picture[0, 1].any()
    assert not picture[1, 0].any()
    assert tuple(picture[1, 1]) == colour(2)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4)), np.zeros((4, 4, 3), int), np.zeros((0, 4), int), np.zeros((4, 4), bool)]
)
def test_maps_of_another_kind_are_refused(bad: NDArray) -> None:
    with pytest.raises(ValueError, match="label map"):
        render_segmentation(bad)


def test_smaller_instances_are_on_top_and_ties_go_to_the_later() -> None:
    big, small, same = disc(100, 100, 50), disc(100, 100, 10), disc(100, 100, 10)
    assert instance_labels([small, big], [1, 2])[100, 100] == 1
    assert instance_labels([big, small, same], [2, 1, 3])[100, 100] == 3
    assert instance_labels([big, small], [2, 1])[0, 0] == 0


def test_more_than_255_instances() -> None:
    masks = np.zeros((300, 20, 20), dtype=bool)
    for index in range(300):
        masks[index, index // 20, index % 20] = True
    labels = instance_labels(masks, np.arange(1, 301))
    assert labels.ravel()[:300].tolist() == list(range(1, 301))


@pytest.mark.parametrize(
    ("masks", "classes"),
    [
        ([], []),
        ([np.zeros((4, 4), bool)], [1, 2]),
        ([np.zeros((4, 4), bool), np.zeros((4, 5), bool)], [1, 2]),
        ([np.zeros((4, 4), np.uint8)], [1]),
        ([np.zeros((4, 4), bool)], [0]),
        ([np.zeros((4, 4), bool)], [5000]),
    ],
)
def test_wrong_instances_are_refused(masks: list[NDArray], classes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"mask|class"):
        render_instances(masks, classes)

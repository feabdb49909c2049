from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.renderers.grey import render_grey
from uvd.renderers.inpainting import Inpainting, inpainting_mask, render_masked
from uvd.sequences import Seeds


def test_grey_is_the_rounded_weighted_sum() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    exact = image.astype(np.float64) @ (0.2989, 0.5870, 0.1140)
    grey = render_grey(image)
    assert (np.abs(grey[..., 0] - exact) <= 0.5 + 1e-9).all()
    assert (grey[..., :1] == grey).all()


@pytest.mark.parametrize(
    ("rgb", "grey"), [((0, 0, 0), 0), ((255, 255, 255), 255), ((255, 0, 0), 76), ((0, 255, 0), 150)]
)
def test_grey_of_plain_colours(rgb: tuple[int, int, int], grey: int) -> None:
    assert render_grey(np.full((2, 2, 3), rgb, dtype=np.uint8))[0, 0].tolist() == [grey] * 3


def test_golden_grey(golden: Callable[..., None], photo: NDArray[np.uint8]) -> None:
    golden("grey", render_grey(photo))


@pytest.mark.parametrize("mode", ["square", "patches", "boxes"])
def test_golden_masked(golden: Callable[..., None], photo: NDArray[np.uint8], mode: str) -> None:
    golden(f"masked_{mode}", render_masked(photo, Seeds(5).generator(mode), Inpainting(mode=mode)))  # type: ignore[arg-type]


def test_masked_pixels_are_black_and_the_others_untouched(photo: NDArray[np.uint8]) -> None:
    before = photo.copy()
    masked = render_masked(photo, Seeds(0).generator(1))
    mask = inpainting_mask(256, 256, Seeds(0).generator(1), Inpainting())
    assert not masked[mask].any()
    assert np.array_equal(masked[~mask], photo[~mask])
    assert np.array_equal(photo, before)


def test_modes_of_lvm_come_with_their_shares() -> None:
    squares = 0
    for item in range(600):
        mask = inpainting_mask(256, 256, Seeds(0).generator(item), Inpainting())
        assert mask.any()
        assert not mask.all()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        side = len(rows)
        whole = mask.sum() == side * len(columns) and side == len(columns)
        on_grid = not (rows[0] % 32 or columns[0] % 32 or (rows[-1] + 1) % 32 or (columns[-1] + 1) % 32)
        if whole and not on_grid:
            squares += 1
            assert 0.1 * 256 - 1 <= side <= 0.5 * 256 + 1
    assert 0.22 < squares / 600 < 0.38


def test_patches_lie_on_the_grid() -> None:
    for item in range(50):
        mask = inpainting_mask(256, 256, Seeds(2).generator(item), Inpainting(mode="patches"))
        blocks = mask.reshape(8, 32, 8, 32)
        assert (blocks == blocks[:, :1, :, :1]).all()


@pytest.mark.parametrize("mode", ["square", "patches", "boxes"])
@pytest.mark.parametrize(("height", "width"), [(1, 2), (5, 300), (33, 31), (100, 70)])
def test_odd_sizes(mode: str, height: int, width: int) -> None:
    mask = inpainting_mask(height, width, Seeds(1).generator(mode), Inpainting(mode=mode))  # type: ignore[arg-type]
    assert mask.shape == (height, width)


@pytest.mark.parametrize(
    "settings", [{"mode": "x"}, {"square_probability": 2}, {"min_side": 0.6}, {"max_side": 1.5}, {"patch": 0}]
)
def test_wrong_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"\w{4}"):
        Inpainting(**settings)

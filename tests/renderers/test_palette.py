from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest

from uvd.renderers.palette import PALETTE, PALETTE_SIZE, build_palette, colour, colours, lab_of

CHECKSUM = "15c7585aa2921ea8e987e0cbd1cdd9b8abdd021800a251f16691a146d4e37f75"


def test_palette_never_changes() -> None:
    assert sha256(PALETTE.tobytes()).hexdigest() == CHECKSUM


def test_table_is_what_the_rule_gives() -> None:
    assert np.array_equal(build_palette(200), PALETTE[:200])


def test_void_is_black_and_the_palette_is_read_only() -> None:
    assert colour(0) == (0, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        PALETTE[1, 0] = 7


@pytest.mark.parametrize(("count", "distance"), [(32, 35), (256, 14), (1024, 8), (PALETTE_SIZE, 6)])
def test_colours_of_every_prefix_are_far_apart(count: int, distance: float) -> None:
    lab = lab_of(PALETTE[:count])
    nearest = min(np.linalg.norm(lab[i + 1 :] - lab[i], axis=1).min() for i in range(count - 1))
    assert nearest >= distance


def test_lab_of_white_and_of_red() -> None:
    assert np.allclose(lab_of(np.array([255, 255, 255], np.uint8)), (100, 0, 0), atol=0.01)
    assert np.allclose(lab_of(np.array([255, 0, 0], np.uint8)), (53.24, 80.09, 67.20), atol=0.05)


def test_colours_agree_with_colour() -> None:
    ids = np.array([[0, 5], [90, 1203]])
    assert colours(ids).shape == (2, 2, 3)
    assert tuple(colours(ids)[1, 0]) == colour(90)
    assert colours([]).shape == (0, 3)


@pytest.mark.parametrize("bad", [-1, PALETTE_SIZE, 1 << 40])
def test_ids_beyond_the_palette_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="outside the palette"):
        colour(bad)
    with pytest.raises(ValueError, match="outside the palette"):
        colours([1, bad])


def test_ids_that_are_not_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="must be integers"):
        colours([1.5])

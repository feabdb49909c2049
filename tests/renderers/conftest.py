"""Golden images of the renderers. After a wanted change, `pytest tests/renderers --regenerate-golden` writes them anew;
look at every changed picture before committing it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="write the renderers' golden images instead of comparing"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, NDArray[np.uint8]], None]:
    """Compares a picture with `golden/NAME.png`, pixel by pixel."""

    def check(name: str, picture: NDArray[np.uint8]) -> None:
        path = GOLDEN / f"{name}.png"
        if request.config.getoption("--regenerate-golden", default=False):
            GOLDEN.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path, optimize=True)
        expected = np.asarray(Image.open(path))
        assert picture.shape == expected.shape
        different = int((picture != expected).any(axis=-1).sum())
        assert different == 0, f"{different} pixels differ from {path.name}"

    return check


@pytest.fixture
def people() -> NDArray[np.float64]:
    """`(3, 17, 3)` people standing in 256x256: one whole, one with hidden legs, one with a hidden shoulder."""
    body = np.array(
        [
            (0.0, -0.42),
            (0.02, -0.45),
            (-0.02, -0.45),
            (0.05, -0.43),
            (-0.05, -0.43),
            (0.12, -0.30),
            (-0.12, -0.30),
            (0.18, -0.12),
            (-0.20, -0.14),
            (0.26, 0.02),
            (-0.12, -0.02),
            (0.08, 0.02),
            (-0.08, 0.02),
            (0.09, 0.25),
            (-0.11, 0.24),
            (0.10, 0.48),
            (-0.16, 0.45),
        ]
    )
    placed = [np.column_stack([body * h + (x, 128), np.full(17, 2.0)]) for h, x in ((220, 60), (180, 140), (120, 215))]
    placed[1][13:, 2] = 0
    placed[2][5, 2] = 0
    return np.stack(placed)


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    """A `(256, 256, 3)` picture with gradients, the same everywhere."""
    row, column = np.mgrid[0:256, 0:256]
    return np.stack([row, column, (row + column) // 2], axis=-1).astype(np.uint8)

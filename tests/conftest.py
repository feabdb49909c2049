"""Fixtures that several packages' tests share: pictures, examples, small folders of real files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests_support import write_photo

from uvd.sequences import Example, Picture


@pytest.fixture(autouse=True)
def no_real_time() -> Iterator[None]:
    """A library that makes this process real-time would let a child that computes starve whole suites."""
    yield
    policy = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    assert policy == os.SCHED_OTHER, "the test left this process under a real-time scheduling policy"


@pytest.fixture
def picture() -> Callable[..., Picture]:
    """Makes a picture of one colour, told apart by `value`."""

    def make(role: str = "image", value: int = 0, origin: str = "a.jpg", **more: object) -> Picture:
        pixels = np.full((256, 256, 3), value % 256, np.uint8)
        return Picture(role, pixels, origin, (640, 480), **more)  # type: ignore[arg-type]

    return make


@pytest.fixture
def example(picture) -> Callable[..., Example]:
    """Makes an example with the given roles."""

    def make(index: int = 0, roles: tuple[str, ...] = ("image",), split: str = "train", group: str = "") -> Example:
        pictures = tuple(picture(role, 10 * index + number, f"{index}.jpg") for number, role in enumerate(roles))
        return Example((index,), "test", split, pictures, group)

    return make


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Twelve photos and three files that are not: truncated, HTML under an image name, empty."""
    folder = tmp_path / "photos"
    for seed in range(12):
        write_photo(folder / f"photo-{seed:02d}.jpg", seed)
    whole = (folder / "photo-00.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "empty.jpg").write_bytes(b"")
    return folder

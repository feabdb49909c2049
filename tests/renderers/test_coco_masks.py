from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from uvd.renderers.segmentation import decode_coco_segmentation


def random_mask(seed: int, height: int, width: int) -> NDArray[np.bool_]:
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.random((height, width)) < rng.random()


def counts_of(mask: NDArray[np.bool_]) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
    return np.diff([0, *edges, mask.size]).tolist()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (64, 48), (480, 640)])
def test_both_run_length_codes_give_the_mask_back(height: int, width: int) -> None:
    mask = random_mask(height * width, height, width)
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    size = [height, width]
    for counts in (encoded["counts"], encoded["counts"].decode(), counts_of(mask)):
        assert np.array_equal(decode_coco_segmentation({"size": size, "counts": counts}, height, width), mask)


@pytest.mark.parametrize("filled", [False, True])
def test_uniform_masks(filled: bool) -> None:
    mask = np.full((30, 20), filled)
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(decode_coco_segmentation(encoded, 30, 20), mask)


def test_polygons_cover_their_area_and_are_joined() -> None:
    mask = decode_coco_segmentation([[10, 10, 50, 10, 50, 40, 10, 40], [60, 60, 80, 60, 80, 80, 60, 80]], 100, 120)
    assert mask.shape == (100, 120)
    assert mask.dtype == np.bool_
    assert abs(int(mask.sum()) - (40 * 30 + 20 * 20)) < 80
    assert mask[20, 20]
    assert mask[70, 70]
    assert not mask[55, 55]


def test_polygon_that_leaves_the_image_is_clipped() -> None:
    mask = decode_coco_segmentation([[-30.5, -20, 60, -20, 60, 30, -30.5, 30]], 50, 40)
    assert mask[:29].all()
    assert not mask[31:].any()


GOOD = {"size": [4, 5], "counts": [3, 4, 13]}


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        "text",
        7,
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, None]],
        [[1, 2, 3, 4, 5, True]],
        [[1, 2, 3, 4, 5, [6]]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, float("inf")]],
        [[1, 2, 3, 4, 5, 1e9]],
        [[1, 2, 3, 4, 5, 10**400]],
        [1, 2, 3, 4, 5, 6],
        [{"a": 1}],
        {},
        {"size": [4, 5]},
        {"counts": [20]},
        GOOD | {"size": [5, 4]},
        GOOD | {"size": [4, 5, 6]},
        GOOD | {"size": "45"},
        GOOD | {"size": [4, "5"]},
        GOOD | {"counts": [3, 4, 12]},
        GOOD | {"counts": [3, 4, 14]},
        GOOD | {"counts": [3, -4, 21]},
        GOOD | {"counts": [3, 4.5, 12.5]},
        GOOD | {"counts": [10**400]},
        GOOD | {"counts": []},
        GOOD | {"counts": [0] * 1000},
        GOOD | {"counts": 20},
        GOOD | {"counts": ""},
        GOOD | {"counts": "\x00\x01"},
        GOOD | {"counts": "oooooooooooo"},
        GOOD | {"counts": "o"},
        GOOD | {"counts": "ÿÿÿ"},
        GOOD | {"counts": b"\xff\xfe"},
        GOOD | {"counts": "0" * 100_000},
    ],
)
def test_damaged_segmentations_are_refused_with_a_reason(segmentation: Any) -> None:
    with pytest.raises(ValueError, match=r"\w{4}"):
        decode_coco_segmentation(segmentation, 4, 5)


def test_every_cut_and_every_flipped_character_of_a_code_is_survived() -> None:
    mask = random_mask(3, 12, 10)
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    for place in range(len(code)):
        for damaged in (code[:place], code[:place] + bytes([code[place] ^ 21]) + code[place + 1 :]):
            try:
                decoded = decode_coco_segmentation({"size": [12, 10], "counts": damaged}, 12, 10)
            except ValueError:
                continue
            assert decoded.shape == (12, 10)


def test_long_boundaries_are_refused() -> None:
    zigzag = [value for index in range(4000) for value in (0 if index % 2 else 2000, index / 2)]
    with pytest.raises(ValueError, match="boundary"):
        decode_coco_segmentation([zigzag], 2000, 2000)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5), (100_000, 100_000)])
def test_sizes_are_bounded(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="mask of"):
        decode_coco_segmentation([[0, 0, 1, 0, 1, 1]], height, width)

"""Packings lose and repeat nothing, whatever the lengths; aligned rows cut no image and waste little."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uvd.trainer.packing import Aligned, Concat, Packing, make_packing

IMAGES = st.lists(st.integers(1, 20), min_size=0, max_size=60)
CONTEXTS = st.sampled_from([256, 257, 258, 511, 600, 2064, 4096, 4128])


def framed(images: list[int]) -> NDArray[np.int64]:
    return 256 * np.array(images, np.int64) + 2


def cover(packing: Packing, lengths: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """(slots,) how many pieces lie on each slot."""
    placement = packing.place(lengths, np.random.default_rng(seed))
    covered = np.zeros(placement.slots, np.int64)
    for sequence, length in enumerate(lengths.tolist()):
        for number, piece in enumerate(packing.cut(length)):
            start = placement.starts[placement.first[sequence] + number]
            covered[start : start + piece.size] += 1
            assert start // packing.stride == (start + piece.size - 1) // packing.stride or packing.name == "concat"
    return covered


@settings(max_examples=60, deadline=None)
@given(IMAGES, CONTEXTS)
def test_no_two_pieces_share_a_slot(images: list[int], context: int) -> None:
    lengths = framed(images)
    assert (cover(Concat(context), lengths) == 1).all()
    covered = cover(Aligned(context), lengths).reshape(-1, context + 1)
    assert covered.max(initial=0) <= 1
    assert (np.diff(covered, axis=1) <= 0).all()  # padding is at the end
    assert covered[:, 0].all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), CONTEXTS)
def test_pieces_are_whole_images_and_all_of_them(images: int, context: int) -> None:
    packing, length = Aligned(context), 256 * images + 2
    pieces = packing.cut(length)
    assert all(piece.size <= packing.stride for piece in pieces)
    edges = [piece.start for piece in pieces] + [pieces[-1].stop]
    assert edges[0] == 0
    assert edges[-1] in (length, length - 1)
    assert edges[-1] == length or pieces[-1].size == packing.stride or pieces[-1].size + 1 > packing.stride
    assert all((edge - 1) % 256 == 0 for edge in edges[1:-1])
    assert all(a.stop == b.start for a, b in pairwise(pieces))


def test_sixteen_images_are_one_row_of_the_papers_context() -> None:
    packing = Aligned(4096)
    placement = packing.place(framed([16] * 5), np.random.default_rng(0))
    assert placement.slots == 5 * 4097
    assert sorted(placement.starts.tolist()) == [4097 * row for row in range(5)]
    assert packing.positions({4098: 5}) == (5 * 4096, 5 * 4096)


@pytest.mark.parametrize(
    ("context", "counts", "most"),
    [
        (4096, {258: 100_000}, 0.06),  # 15 single images a row
        (4128, {258: 100_000}, 0.01),
        (4096, {258: 70_000, 514: 9_000, 4098: 3_000, 2050: 4_000}, 0.06),
        (2064, {4098: 1000, 514: 1000}, 0.02),
    ],
)
def test_little_is_padded(context: int, counts: dict[int, int], most: float) -> None:
    packing = Aligned(context)
    positions, used = packing.positions({length: float(count) for length, count in counts.items()})
    assert 0 <= 1 - used / positions < most
    lengths = np.repeat(list(counts), list(counts.values()))
    placement = packing.place(lengths, np.random.default_rng(0))
    assert placement.slots == positions // context * (context + 1)


def test_placements_are_random_and_seeded() -> None:
    lengths = framed([1, 2, 3, 4] * 50)
    for packing in (Concat(2064), Aligned(2064)):
        one, same, other = (packing.place(lengths, np.random.default_rng(seed)).starts for seed in (1, 1, 2))
        assert (one == same).all()
        assert (one != other).mean() > 0.9
        columns = one % packing.stride
        assert len(np.unique(columns[lengths == 258])) > 10  # short ones are not always behind long ones


def test_a_context_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        make_packing("aligned", 255)

"""Pairs of 64-bit hashes that differ in few bits, found exactly among hundreds of millions.

Hashes are cut into more blocks than bits may differ, so near ones agree in some of the blocks (Manku et al., "Detecting
near-duplicates for web crawling", WWW 2007). For each choice of blocks the bits are rearranged, those blocks first, and
sorted: candidates are then neighbours. A rearranged hash can be put back, so nothing but the hashes is sorted: 8 bytes
each. What does not fit in memory is first parted on disk by the leading bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

CHUNK = 1 << 19
"""Hashes worked on at once: they and what is made of them stay in the processor's cache."""
MAX_MORE_BLOCKS = 4
MEETING_COST = 0.5
"""Of comparing two hashes, in passes over one hash."""
_BYTES = 12
"""A hash costs while its part is sorted: itself, and some for candidates among its neighbours."""
_PART_BITS = 16


@dataclass(frozen=True, slots=True)
class BlockChoice:
    """Which blocks must agree.

    Attributes:
        mask: the bits of those blocks.
        moves: (lowest bit, bits, new lowest bit) of each block, the ones that must agree moving to the top.
        kept_bits: in the mask.
    """

    mask: int
    moves: tuple[tuple[int, int, int], ...]
    kept_bits: int

    def arrange(self, hashes: Hashes) -> Hashes:
        return _move(hashes, self.moves)

    def restore(self, arranged: Hashes) -> Hashes:
        return _move(arranged, ((to, bits, low) for low, bits, to in self.moves))


def _move(hashes: Hashes, moves: Iterable[tuple[int, int, int]]) -> Hashes:
    moved = np.zeros_like(hashes)
    for low, bits, to in moves:
        moved |= ((hashes >> np.uint64(low)) & np.uint64((1 << bits) - 1)) << np.uint64(to)
    return moved


def block_choices(bits: int, blocks: int) -> list[BlockChoice]:
    """Choices such that any two hashes that differ in at most `bits` bits agree in the blocks of one of them at least.

    The hash is cut into `blocks` > `bits` blocks; `bits` differing bits touch at most `bits` of them, so the other
    `blocks` - `bits` agree.
    """
    edges = [64 * number // blocks for number in range(blocks + 1)]
    spans = list(pairwise(edges))
    choices = []
    for kept in combinations(range(blocks), blocks - bits):
        order = [*kept, *(number for number in range(blocks) if number not in kept)]
        moves, top = [], 64
        for number in order:
            low, high = spans[number]
            top -= high - low
            moves.append((low, high - low, top))
        mask = sum((1 << spans[number][1]) - (1 << spans[number][0]) for number in kept)
        choices.append(BlockChoice(mask, tuple(moves), mask.bit_count()))
    return choices


def cheapest_choices(bits: int, sample: Hashes, hashes: int) -> list[BlockChoice]:
    """Choices for the number of blocks that costs least; what is found is the same with any.

    More blocks mean more choices, each a pass over all hashes, in which fewer hashes meet by chance. How many meet is
    taken from a sample, because real hashes are not evenly spread: images with large flat areas share parts of theirs.
    """

    def cost(choices: list[BlockChoice]) -> float:
        meetings = 0.0
        for choice in choices:
            _, counts = np.unique(sample & np.uint64(choice.mask), return_counts=True)
            meetings += float((counts * (counts - 1.0)).sum()) / 2
        return len(choices) * hashes + MEETING_COST * meetings * (hashes / len(sample)) ** 2

    return min((block_choices(bits, blocks) for blocks in range(bits + 1, bits + 1 + MAX_MORE_BLOCKS)), key=cost)


def near_pairs(
    hashes: Hashes, choices: list[BlockChoice], bits: int, *, memory: int, threads: int, spill: Path
) -> tuple[Hashes, Hashes]:
    """All pairs that differ in 1 to `bits` bits, each once, the lower hash first, sorted.

    Args:
        hashes: `(n,)` uint64, each different; may lie in a mapped file.
        choices: of `cheapest_choices` for these bits.
        memory: bytes for all threads together; the pairs found come on top.
        threads: choices worked on at a time.
        spill: folder for what does not fit.
    """

    def search(number: int) -> Hashes:
        choice, earlier = choices[number], [other.mask for other in choices[:number]]
        found = [np.empty((0, 2), np.uint64)]
        for part in _parts(hashes, choice, max(CHUNK, memory // threads // _BYTES), spill):
            part.sort()
            for first, second in _neighbours(part, 64 - choice.kept_bits, bits):
                pairs = np.stack([choice.restore(first), choice.restore(second)], 1)
                # A pair that another choice has found already is not found again.
                differing = pairs[:, 0] ^ pairs[:, 1]
                new = np.ones(len(pairs), bool)
                for mask in earlier:
                    new &= (differing & np.uint64(mask)) != 0
                found.append(pairs[new])
        return np.concatenate(found)

    with ThreadPoolExecutor(threads, thread_name_prefix="uvd-hashes") as pool:
        pairs = np.concatenate(list(pool.map(search, range(len(choices)))) or [np.empty((0, 2), np.uint64)])
    low, high = pairs.min(1, initial=2**64 - 1), pairs.max(1, initial=0)
    order = np.lexsort((high, low))
    return low[order], high[order]


def _chunks(hashes: Hashes) -> Iterator[Hashes]:
    for start in range(0, len(hashes), CHUNK):
        yield np.asarray(hashes[start : start + CHUNK])


def _parts(hashes: Hashes, choice: BlockChoice, rows: int, spill: Path) -> Iterator[Hashes]:
    """The rearranged hashes, unsorted, in parts of about `rows` such that candidates are in one part."""
    if len(hashes) <= rows:
        whole = np.empty(len(hashes), np.uint64)
        for number, chunk in enumerate(_chunks(hashes)):
            whole[number * CHUNK : number * CHUNK + len(chunk)] = choice.arrange(chunk)
        yield whole
        return
    bins = min(choice.kept_bits, _PART_BITS)
    shift = np.uint64(64 - bins)
    sizes = np.zeros(1 << bins, np.int64)
    for chunk in _chunks(hashes):
        sizes += np.bincount((choice.arrange(chunk) >> shift).astype(np.int64), minlength=1 << bins)
    # Consecutive bins share a part until it is full; a bin that is larger by itself gets one of its own.
    part_of = ((np.cumsum(sizes) - 1).clip(0) // rows).astype(np.int64)
    with tempfile.TemporaryDirectory(dir=spill) as folder:
        paths = {int(part): Path(folder) / f"{part}.u64" for part in np.unique(part_of)}
        files = {part: path.open("wb") for part, path in paths.items()}
        try:
            for chunk in _chunks(hashes):
                arranged = choice.arrange(chunk)
                parts = part_of[(arranged >> shift).astype(np.int64)]
                order = np.argsort(parts, kind="stable")
                bounds = np.flatnonzero(np.diff(parts[order])) + 1
                for piece in np.split(order, bounds):
                    arranged[piece].tofile(files[int(parts[piece[0]])])
        finally:
            for file in files.values():
                file.close()
        for path in paths.values():
            yield np.fromfile(path, np.uint64)
            path.unlink()


def _neighbours(arranged: Hashes, free_bits: int, bits: int) -> Iterator[tuple[Hashes, Hashes]]:
    """Pairs of a sorted array that agree above the lowest `free_bits` bits and differ in at most `bits`."""
    free = np.uint64(free_bits)
    for start in range(0, len(arranged) - 1, CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(arranged) - 1))
        lag = 1
        while len(rows):
            differing = arranged[rows] ^ arranged[rows + lag] if lag > 1 else _next(arranged, start)
            together = (differing >> free) == 0
            near = together & (np.bitwise_count(differing) <= bits)
            if near.any():
                yield arranged[rows[near]], arranged[rows[near] + lag]
            rows = rows[together]
            lag += 1
            rows = rows[rows + lag < len(arranged)]


def _next(arranged: Hashes, start: int) -> Hashes:
    part = arranged[start : start + CHUNK + 1]
    return part[:-1] ^ part[1:]

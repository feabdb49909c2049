"""Packings: where the sequences of a block of tokens come to lie, and how rows are cut from it.

`concat` is the paper's (arXiv 2312.00785, section 3.3): one sequence after another, cut at the context length wherever
that falls. `aligned` never cuts an image: a row holds whole sequences, or whole images of one too long for it, and PAD
after them. Rows are filled by patterns: the longest pieces that still fit, repeated while there are such pieces, so
that a million pieces cost a few array operations for each pattern.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.tokens import TOKENS_PER_IMAGE

PackingName = Literal["concat", "aligned"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, stop) of a framed sequence; one that does not begin at 0 gets a BOS of its own before it."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start + (self.start > 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pieces of some sequences go.

    Attributes:
        slots: tokens and padding in all.
        starts: `(pieces,)` int64, slot of each piece's first token; the pieces of a sequence follow each other.
        first: `(sequences + 1,)` int64, number of each sequence's first piece.
    """

    slots: int
    starts: NDArray[np.int64]
    first: NDArray[np.int64]


class Packing(Protocol):
    """A way to cut sequences and to lay the pieces out. A row is `context + 1` slots, the next begins `stride` on."""

    name: PackingName
    context: int
    stride: int

    def cut(self, length: int) -> tuple[Piece, ...]: ...

    def place(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Placement:
        """A random placement of sequences of these lengths."""
        ...

    def positions(self, counts: Mapping[int, float]) -> tuple[int, int]:
        """(positions that go through the model, those of them with a loss) for so many sequences of each length."""
        ...


class Concat:
    """One after another in random order, nothing cut: rows overlap by the token that is target, then input."""

    name: PackingName = "concat"

    def __init__(self, context: int) -> None:
        self.context = self.stride = context

    def cut(self, length: int) -> tuple[Piece, ...]:
        return (Piece(0, length),)

    def place(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Placement:
        order = rng.permutation(len(lengths))
        ends = np.cumsum(lengths[order])
        starts = np.empty(len(lengths), np.int64)
        starts[order] = ends - lengths[order]
        return Placement(int(lengths.sum()), starts, np.arange(len(lengths) + 1))

    def positions(self, counts: Mapping[int, float]) -> tuple[int, int]:
        tokens = round(sum(length * count for length, count in counts.items()))
        return tokens, tokens


class Aligned:
    """Rows of whole pieces: rows, and the pieces within each, are in random order; PAD comes last."""

    name: PackingName = "aligned"

    def __init__(self, context: int) -> None:
        """
        Raises:
            ValueError: for a context that holds no image.
        """
        if context < TOKENS_PER_IMAGE:
            raise ValueError(f"aligned packing needs a context of {TOKENS_PER_IMAGE} tokens or more, not {context}")
        self.context, self.stride = context, context + 1

    def cut(self, length: int) -> tuple[Piece, ...]:
        """One piece, or as few as possible, each of whole images with a BOS before them.

        EOS is kept only where the sequence ends, and left out where the images fill the row: 16 images at a context of
        4096 are one row, all images predicted.
        """
        if length <= self.stride:
            return (Piece(0, length),)
        images, most = (length - 2) // TOKENS_PER_IMAGE, self.context // TOKENS_PER_IMAGE
        pieces = []
        for image in range(0, images, most):
            last = min(image + most, images)
            has_eos = last == images and TOKENS_PER_IMAGE * (last - image) + 2 <= self.stride
            start = 1 + TOKENS_PER_IMAGE * image if image else 0
            pieces.append(Piece(start, 1 + TOKENS_PER_IMAGE * last + has_eos))
        return tuple(pieces)

    def place(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Placement:
        kinds, kind = np.unique(lengths, return_inverse=True)
        cuts = [self.cut(int(length)) for length in kinds]
        first = np.concatenate([[0], np.cumsum(np.array([len(cut) for cut in cuts], np.int64)[kind])])
        sizes = np.empty(first[-1], np.int64)
        for number, cut in enumerate(cuts):
            for piece, place in enumerate(cut):
                sizes[first[:-1][kind == number] + piece] = place.size
        rows, row = self._rows(sizes, rng)
        # Pieces sorted by row, in random order within each: a piece's column is what lies before it in its row.
        order = rng.permutation(len(sizes))
        order = order[np.argsort(row[order], kind="stable")]
        before = np.cumsum(sizes[order]) - sizes[order]
        heads = np.flatnonzero(np.diff(row[order], prepend=-1))
        starts = np.empty(len(sizes), np.int64)
        starts[order] = row[order] * self.stride + before - before[heads][row[order]]
        return Placement(rows * self.stride, starts, first)

    def _rows(self, sizes: NDArray[np.int64], rng: np.random.Generator) -> tuple[int, NDArray[np.int64]]:
        """(number of rows, row of each piece); which of equal pieces goes where is random."""
        kinds, kind, counts = np.unique(sizes, return_inverse=True, return_counts=True)
        shuffled = rng.permutation(len(sizes))
        shuffled = shuffled[np.argsort(kind[shuffled], kind="stable")]
        taken = np.cumsum(counts) - counts
        row = np.empty(len(sizes), np.int64)
        rows = 0
        for repeats, uses in _patterns(kinds, counts, self.stride):
            for number, use in uses.items():
                chosen = shuffled[taken[number] : taken[number] + use * repeats]
                row[chosen] = rows + np.arange(use * repeats) // use
                taken[number] += use * repeats
            rows += repeats
        return rows, rng.permutation(rows)[row]

    def positions(self, counts: Mapping[int, float]) -> tuple[int, int]:
        sizes: dict[int, float] = {}
        for length, count in counts.items():
            for piece in self.cut(length):
                sizes[piece.size] = sizes.get(piece.size, 0.0) + count
        kinds = np.array(sorted(sizes), np.int64)
        numbers = np.array([round(sizes[int(size)]) for size in kinds], np.int64)
        rows = sum(repeats for repeats, _ in _patterns(kinds, numbers, self.stride))
        return rows * self.context, int((kinds * numbers).sum()) - rows


def _patterns(sizes: NDArray[np.int64], counts: NDArray[np.int64], slots: int) -> Iterator[tuple[int, dict[int, int]]]:
    """(rows filled alike, {kind: pieces of it a row}) until all pieces are used; `sizes` ascending."""
    left = counts.copy()
    while left.any():
        room, uses = slots, {}
        for kind in range(len(sizes) - 1, -1, -1):
            if use := min(room // int(sizes[kind]), int(left[kind])):
                uses[kind] = use
                room -= use * int(sizes[kind])
        repeats = min(int(left[kind]) // use for kind, use in uses.items())
        for kind, use in uses.items():
            left[kind] -= use * repeats
        yield repeats, uses


def make_packing(name: PackingName, context: int) -> Packing:
    return Concat(context) if name == "concat" else Aligned(context)

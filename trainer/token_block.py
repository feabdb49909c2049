"""Blocks: the tokens of some parts in memory, in the random order in which training sees them.

A block is made by reading each part's bytes in order and copying its sequences to their places, all of one length at a
time, so what a batch costs later is one conversion to int64. Files are read, not mapped: a mapped file that is cut
short ends the process without a word. Every id is checked on the way. Costs 2 bytes a token and 16 a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from uvd.manifests.token_shard import TOKEN_BYTES
from uvd.manifests.tokens import BOS, CODEBOOK_SIZE, EOS, PAD
from uvd.sequences import Seeds
from uvd.trainer.packing import Packing, Placement
from uvd.trainer.token_parts import SequenceRows, TokenDataError, TokenParts, in_parallel

_READ_BYTES = 16 << 20
"""Read at once, at most, unless a single sequence is longer."""
_GAP_BYTES = 256 << 10
"""What lies between two sequences is read too if it is shorter."""


class Block:
    """Sequences laid out for training.

    Attributes:
        parts: that the sequences are from.
        tokens: `(slots,)` uint16, with PAD where the packing leaves room.
    """

    def __init__(
        self, parts: TokenParts, tokens: NDArray[np.uint16], starts: NDArray[np.int64], origins: NDArray[np.int32]
    ) -> None:
        """`starts`: `(pieces,)` slot of each piece; `origins`: `(pieces, 2)` its part and its row in the manifest."""
        self.tokens = tokens
        self.parts, self._starts, self._origins = parts, starts, origins
        self._order: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def origins(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(part, row in its manifest) of each piece with a token in slots [start, stop), in order."""
        return [(int(part), int(row)) for part, row in self._origins[self._pieces(start, stop)]]

    def sources(self, start: int, stop: int) -> NDArray[np.int64]:
        """The source of each slot of [start, stop), by its place in `TokenParts.sources`; padding is its sequence's."""
        pieces = self._pieces(start, stop)
        places = self.parts.source_places(self._origins[pieces, 0])
        bounds = np.append(np.maximum(self._starts[pieces], start), stop)
        return np.repeat(places, np.diff(bounds))

    def _pieces(self, start: int, stop: int) -> NDArray[np.intp]:
        """Which pieces have a token in slots [start, stop), in order of their places."""
        if self._order is None:
            self._order = np.argsort(self._starts)
        first = max(0, int(np.searchsorted(self._starts, start, side="right", sorter=self._order)) - 1)
        last = int(np.searchsorted(self._starts, stop, sorter=self._order))
        return self._order[first:last]


def load_block(
    parts: TokenParts,
    chosen: Sequence[tuple[int, float]],
    packing: Packing,
    seeds: Seeds,
    max_tokens: int | None = None,
) -> Block:
    """Reads parts and shuffles their sequences.

    Args:
        chosen: (part, share of its sequences that is taken), in order.
        packing: how they are laid out.
        seeds: of everything random here.
        max_tokens: take only as many sequences as reach so many tokens; a seeded sample.

    Raises:
        TokenDataError: for a shard that cannot be read, or ids that are not framed sequences; names shard and key.
    """
    found = in_parallel(parts.dataset, lambda item: parts.sequences(item[0]), chosen)
    found = [
        _thinned(rows, share, seeds.generator("share", number)) if share < 1 else rows
        for number, (rows, (_, share)) in enumerate(zip(found, chosen, strict=True))
    ]
    if max_tokens is not None:
        found = _sample(found, max_tokens, seeds.generator("sample"))
    lengths = np.concatenate([rows.lengths for rows in found])
    placement = packing.place(lengths, seeds.generator("order"))
    tokens = np.full(placement.slots, PAD, np.uint16)
    ends = np.cumsum([len(rows.lengths) for rows in found])
    jobs = [
        (part, rows, placement.first[end - len(rows.lengths) : end])
        for (part, _), rows, end in zip(chosen, found, ends, strict=True)
    ]
    in_parallel(parts.dataset, lambda job: _copy_part(parts, *job, packing, placement, tokens), jobs)
    origin = np.empty((len(lengths), 2), np.int32)
    origin[:, 0] = np.repeat([part for part, _ in chosen], [len(rows.lengths) for rows in found])
    origin[:, 1] = np.concatenate([rows.rows for rows in found])
    return Block(parts, tokens, placement.starts, np.repeat(origin, np.diff(placement.first), axis=0))


def _thinned(rows: SequenceRows, share: float, rng: np.random.Generator) -> SequenceRows:
    """A share of the sequences: the mean over many parts is exact however few sequences each has."""
    number = int(share * len(rows.lengths) + rng.random())
    return rows.take(np.sort(rng.permutation(len(rows.lengths))[:number]))


def _sample(found: Sequence[SequenceRows], max_tokens: int, rng: np.random.Generator) -> list[SequenceRows]:
    lengths = np.concatenate([rows.lengths for rows in found])
    order = rng.permutation(len(lengths))
    before = np.cumsum(lengths[order]) - lengths[order]
    kept = np.zeros(len(lengths), bool)
    kept[order[before < max_tokens]] = True
    each = np.split(kept, np.cumsum([len(rows.lengths) for rows in found])[:-1])
    return [rows.take(np.flatnonzero(chosen)) for rows, chosen in zip(found, each, strict=True)]


def _copy_part(
    parts: TokenParts,
    part: int,
    rows: SequenceRows,
    first: NDArray[np.int64],
    packing: Packing,
    placement: Placement,
    out: NDArray[np.uint16],
) -> None:
    """Copies a part's sequences to their places in `out`; `first`: the number of each sequence's first piece."""
    path = parts.file(part).tar
    storage = parts.dataset.tars
    if not len(rows.lengths):
        return
    try:
        with storage.open(path) as file:
            for some in _reads(rows):
                run, start = rows.take(some), int(rows.offsets[some.start])
                data = file.read_at(int((run.offsets + run.lengths * TOKEN_BYTES).max()) - start, start)
                _check_whole(parts, part, run, start + len(data))
                _copy_run(parts, part, run, np.frombuffer(data, np.uint8), first[some], packing, placement, out)
    except OSError as error:
        raise TokenDataError(f"shard {path} cannot be read any more: {error}") from error


def _reads(rows: SequenceRows) -> Iterator[slice]:
    """Runs of sequences that are read at once."""
    ends = rows.offsets + rows.lengths * TOKEN_BYTES
    first = 0
    gaps = rows.offsets[1:] - ends[:-1]
    breaks = np.flatnonzero((gaps < 0) | (gaps > _GAP_BYTES)) + 1
    for stop in (*breaks.tolist(), len(ends)):
        while first < stop:
            last = int(np.searchsorted(ends[first:stop], rows.offsets[first] + _READ_BYTES, side="right"))
            yield slice(first, first + max(1, last))
            first += max(1, last)


def _copy_run(
    parts: TokenParts,
    part: int,
    run: SequenceRows,
    data: NDArray[np.uint8],
    first: NDArray[np.int64],
    packing: Packing,
    placement: Placement,
    out: NDArray[np.uint16],
) -> None:
    begin = (run.offsets - run.offsets[0]) // TOKEN_BYTES
    if ((run.offsets - run.offsets[0]) % TOKEN_BYTES).any():
        raise TokenDataError(f"{parts.file(part).manifest}: offsets of sequences are not those of 2-byte tokens")
    ids = data[: len(data) // TOKEN_BYTES * TOKEN_BYTES].view("<u2")
    for length in np.unique(run.lengths).tolist():
        same = np.flatnonzero(run.lengths == length)
        sequences = _windows(ids, length)[begin[same]]
        _check_ids(parts, part, run.rows[same], sequences)
        for number, piece in enumerate(packing.cut(length)):
            places = placement.starts[first[same] + number]
            if piece.start:
                out[places] = BOS
                places = places + 1
            _windows(out, piece.stop - piece.start)[places] = sequences[:, piece.start : piece.stop]


def _windows(array: NDArray[np.uint16], length: int) -> NDArray[np.uint16]:
    """`(len(array) - length + 1, length)`: row i is `array[i : i + length]`, not copied."""
    return as_strided(array, (len(array) - length + 1, length), array.strides * 2)


def _check_whole(parts: TokenParts, part: int, run: SequenceRows, end: int) -> None:
    short = run.offsets + run.lengths * TOKEN_BYTES > end
    if short.any():
        key = parts.keys(part)[int(run.rows[short.argmax()])]
        raise TokenDataError(f"shard {parts.file(part).tar} ends inside sequence {key}: `uvd verify` tells more")


def _check_ids(parts: TokenParts, part: int, rows: NDArray[np.int32], sequences: NDArray[np.uint16]) -> None:
    """`sequences`: `(n, length)`, framed."""
    framed = (sequences[:, 0] == BOS) & (sequences[:, -1] == EOS)
    if framed.all() and int(sequences[:, 1:-1].max()) < CODEBOOK_SIZE:
        return
    codes = sequences[:, 1:-1] < CODEBOOK_SIZE
    bad = int((framed & codes.all(axis=1)).argmin())
    where = f"shard {parts.file(part).tar}, sequence {parts.keys(part)[int(rows[bad])]}"
    if not codes[bad].all():
        at = int(codes[bad].argmin()) + 1
        raise TokenDataError(f"{where}: id {int(sequences[bad, at])} at token {at} is not a code below {CODEBOOK_SIZE}")
    raise TokenDataError(
        f"{where} begins with id {int(sequences[bad, 0])} and ends with {int(sequences[bad, -1])}, "
        f"not with BOS {BOS} and EOS {EOS}"
    )

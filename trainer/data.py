"""The packed loader: whole framed sequences in a seeded order, laid out by a packing, as int64 batches.

An epoch is every sequence of the split exactly once (or as its source's weight says). Its parts are shuffled over all
sources and shards, and the sequences of about `buffer_tokens` tokens of parts at a time among themselves: a block.
Batches are a function of seed and position only. Memory: two blocks, the one in use and the one being read ahead, at 2
bytes a token and 16 a sequence, and 22 bytes a part of the split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from uvd.manifests.tokens import BOS, PAD
from uvd.sequences import Seeds
from uvd.trainer.packing import Packing, PackingName, make_packing
from uvd.trainer.token_block import Block, load_block
from uvd.trainer.token_parts import EmptySplitError, TokenDataError, TokenParts, TokenSplit, open_split

__all__ = [
    "IGNORE",
    "Batch",
    "EmptySplitError",
    "PackedTokens",
    "TokenDataError",
    "TokenSplit",
    "documents",
    "evaluation_batches",
    "open_split",
]

IGNORE = -100
"""Label of a position without a loss, as torch's cross entropy has it."""
BUFFER_TOKENS = 1 << 27
"""256 MiB a block."""
EVALUATION_PARTS = 64
"""A sample for evaluation is drawn from so many parts at least, if there are as many."""
_MAX_EMPTY_EPOCHS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Slots [start, stop) of a block."""

    block: Block
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of the token stream.

    Attributes:
        tokens: `(rows, context + 1)` int64: inputs are `[:, :-1]`, targets `[:, 1:]`.
        mask_documents: the labels are those for attention within documents: none for a BOS, which nothing foretells.
        stride: slots from one row to the next in `spans`.
        spans: what the rows were cut from, one after another.
    """

    tokens: NDArray[np.int64]
    mask_documents: bool = False
    stride: int = 0
    spans: tuple[Span, ...] = field(default=(), repr=False)

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels, each `(rows, context)` int64; the label of PAD is `IGNORE`."""
        tokens = torch.from_numpy(self.tokens).to(device, non_blocking=True)
        labels = tokens[:, 1:]
        without = labels == PAD
        if self.mask_documents:
            without |= labels == BOS
        return tokens[:, :-1], labels.masked_fill(without, IGNORE)

    @property
    def keys(self) -> list[list[str]]:
        """For each row, the sequences that it is made of: reads their manifests, for messages only."""
        known: dict[tuple[int, int], list[str]] = {}
        rows = []
        for row in range(len(self.tokens)):
            names = []
            for span in self._within(row * self.stride, row * self.stride + self.tokens.shape[1]):
                for part, number in span.block.origins(span.start, span.stop):
                    file = (id(span.block.parts), part)
                    if file not in known:
                        known[file] = span.block.parts.keys(part)
                    names.append(known[file][number])
            rows.append(names)
        return rows

    def sources(self) -> NDArray[np.int64]:
        """The source of each target, by its place in `TokenParts.sources`: `(rows, context)`; 0 for a filled-up row."""
        rows, width = self.tokens.shape
        slots = np.zeros((rows - 1) * self.stride + width, np.int64)
        known = [span.block.sources(span.start, span.stop) for span in self.spans]
        found = np.concatenate(known)[: len(slots)]
        slots[: len(found)] = found
        step = slots.itemsize
        return as_strided(slots[1:], (rows, width - 1), (self.stride * step, step)).copy()

    def _within(self, start: int, stop: int) -> Iterator[Span]:
        before = 0
        for span in self.spans:
            size = span.stop - span.start
            first, last = max(start - before, 0), min(stop - before, size)
            if first < last:
                yield Span(span.block, span.start + first, span.start + last)
            before += size


def documents(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which document each token of a batch is in, for attention that does not cross from one sequence to the next.

    Args:
        inputs: `(rows, context)` int64. A document begins at each BOS and at the first PAD.

    Returns:
        Number of the document in its row, and place in the document, both from 0, each `(rows, context)` int64. A model
        of transformers that is given the places as `position_ids`, and no attention mask, masks by them itself.
    """
    pad = inputs == PAD
    begins = inputs == BOS
    begins[:, 1:] |= pad[:, 1:] & ~pad[:, :-1]
    begins[:, 0] = True
    columns = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    return begins.cumsum(1) - 1, columns - (columns * begins).cummax(1).values


@dataclass(frozen=True, slots=True, eq=False)
class _Epoch:
    """The parts of an epoch in order, some more than once, and where each block begins."""

    parts: NDArray[np.int64]
    shares: NDArray[np.float64]
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def block(self, number: int) -> list[tuple[int, float]]:
        chosen = slice(int(self.bounds[number]), int(self.bounds[number + 1]))
        return list(zip(self.parts[chosen].tolist(), self.shares[chosen].tolist(), strict=True))


def _plan_epoch(
    parts: TokenParts, weights: NDArray[np.float64], buffer_tokens: int, rng: np.random.Generator
) -> _Epoch:
    whole, share = np.divmod(weights, 1.0)
    some = np.flatnonzero(share)
    chosen = np.concatenate([np.repeat(np.arange(len(parts)), whole.astype(np.int64)), some])
    shares = np.concatenate([np.ones(len(chosen) - len(some)), share[some]])
    order = rng.permutation(len(chosen))
    chosen, shares = chosen[order], shares[order]
    tokens = parts.tokens[chosen] * shares
    ends = np.cumsum(tokens)
    blocks = -(-float(ends[-1]) // buffer_tokens)
    # Blocks of like size: a short one at the end would be shuffled less than the others.
    block = np.floor((ends - tokens / 2) / ends[-1] * blocks)
    return _Epoch(chosen, shares, np.flatnonzero(np.diff(block, prepend=-1.0, append=blocks)))


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    epoch: int = 0
    block: int = 0
    position: int = 0
    """In slots of the block."""


class PackedTokens:
    """An endless stream of batches, epoch after epoch, each in its own order; resumable at any batch.

    Attributes:
        epoch_tokens: positions that an epoch has, padding included: the mean over epochs if a weight is a fraction;
            with `aligned` packing a few rows more, for each block ends with a whole row.
        padding: share of them that is padding.
    """

    def __init__(
        self,
        shards: TokenParts,
        *,
        context: int,
        seeds: Seeds,
        source_weights: Mapping[str, float] | None = None,
        packing: PackingName = "concat",
        mask_documents: bool = False,
        buffer_tokens: int = BUFFER_TOKENS,
    ) -> None:
        """
        Args:
            shards: of a split that `open_split` opened.
            context: inputs of a row.
            source_weights: how often an epoch shows a sequence of a source; 1 if it is not named.
            packing, mask_documents: see `uvd.trainer.packing` and `Batch`.
            buffer_tokens: size of a block, to within a part.

        Raises:
            EmptySplitError: if no sequence is left to read.
            TokenDataError: if a weight names a source that the shards do not have.
        """
        weights = dict(source_weights or {})
        if not len(shards):
            raise EmptySplitError("the split holds no sequences: there is nothing to train on")
        if unknown := sorted(set(weights) - set(shards.sources)):
            known = ", ".join(shards.sources)
            raise TokenDataError(f"source_weights names {', '.join(unknown)}; the split has {known}")
        self._weights = shards.weights(weights)
        if not self._weights.any():
            raise EmptySplitError(f"source_weights {weights} leave no sequence to train on")
        self._parts, self._seeds, self._buffer_tokens = shards, seeds, buffer_tokens
        self._packing, self._mask_documents = make_packing(packing, context), mask_documents
        self.epoch_tokens, self.padding = _positions(shards, self._packing, weights)
        self._here = _Place()
        self._epochs: dict[int, _Epoch] = {}
        self._blocks: dict[tuple[int, int], Block] = {}
        self._ahead: tuple[tuple[int, int], Future[Block]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="uvd-tokens")
        settings = [packing, context, buffer_tokens, sorted(weights.items()), seeds.seed, seeds.path]
        self._stream = int.from_bytes(blake2b(json.dumps(settings).encode() + shards.digest()).digest()[:6])

    def batch(self, rows: int, rank: int = 0, world: int = 1) -> Batch:
        """The next `rows` rows of the stream; of them, worker `rank` of `world` gets its `rows / world`.

        Every worker moves on by the whole batch, so that the global order does not depend on their number.

        Raises:
            ValueError: if `world` does not divide `rows`.
            TokenDataError: see `load_block`.
        """
        if rows % world:
            raise ValueError(f"{rows} rows cannot be shared by {world} workers alike")
        mine, width = rows // world, self._packing.context + 1
        first, _ = self._walk(self._here, rank * mine * self._packing.stride)
        _, spans = self._walk(first, (mine - 1) * self._packing.stride + width)
        tokens = _cut_rows(spans, mine, width, self._packing.stride)
        self._here, _ = self._walk(self._here, rows * self._packing.stride)
        self._read_ahead()
        return Batch(tokens, self._mask_documents, self._packing.stride, spans)

    def state(self) -> dict[str, int]:
        """Where the next batch begins, and in which stream: JSON-able."""
        here = self._here
        return {"epoch": here.epoch, "block": here.block, "position": here.position, "stream": self._stream}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on where `state` was taken.

        Raises:
            TokenDataError: if it was taken from another stream: other data or settings, or another version of uvd.
        """
        if state.get("stream") != self._stream:
            raise TokenDataError("the checkpoint's place in the data is one of other data, settings or version of uvd")
        self._here = _Place(state["epoch"], state["block"], state["position"])
        self._blocks, self._ahead = {}, None

    def wait(self) -> None:
        """Waits until the block that is being read ahead is there, so that a measurement holds all of its own work."""
        if self._ahead is not None:
            self._ahead[1].exception()

    def _walk(self, place: _Place, slots: int) -> tuple[_Place, tuple[Span, ...]]:
        """Where so many slots end, and what they are."""
        spans, begin = [], place.epoch
        while slots:
            block = self._block(place)
            stop = min(len(block), place.position + slots)
            if stop > place.position:
                spans.append(Span(block, place.position, stop))
            elif not spans and place.epoch - begin > _MAX_EMPTY_EPOCHS:
                raise EmptySplitError(f"source_weights leave no sequence in {_MAX_EMPTY_EPOCHS} epochs")
            slots -= stop - place.position
            place = _Place(place.epoch, place.block, stop) if stop < len(block) else self._following(place)
        return place, tuple(spans)

    def _following(self, place: _Place) -> _Place:
        if place.block + 1 < len(self._epoch(place.epoch)):
            return _Place(place.epoch, place.block + 1)
        return _Place(place.epoch + 1)

    def _block(self, place: _Place) -> Block:
        name = (place.epoch, place.block)
        if name not in self._blocks:
            if self._ahead is not None and self._ahead[0] == name:
                self._blocks[name] = self._ahead[1].result()
                self._ahead = None
            else:
                self._blocks[name] = load_block(*self._content(place))
        return self._blocks[name]

    def _content(self, place: _Place) -> tuple[TokenParts, list[tuple[int, float]], Packing, Seeds]:
        """What `load_block` makes the block of."""
        seeds = self._seeds.child("epoch", place.epoch, "block", place.block)
        return self._parts, self._epoch(place.epoch).block(place.block), self._packing, seeds

    def _read_ahead(self) -> None:
        """Forgets what lies behind, and has the next block read while this one is in use."""
        here = (self._here.epoch, self._here.block)
        self._epochs = {number: epoch for number, epoch in self._epochs.items() if number >= here[0]}
        self._blocks = {name: block for name, block in self._blocks.items() if name >= here}
        following = self._following(self._here)
        name = (following.epoch, following.block)
        if here in self._blocks and name not in self._blocks and (self._ahead is None or self._ahead[0] != name):
            self._ahead = (name, self._reader.submit(load_block, *self._content(following)))

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            rng = self._seeds.child("epoch", number).generator("order")
            self._epochs[number] = _plan_epoch(self._parts, self._weights, self._buffer_tokens, rng)
        return self._epochs[number]


def _positions(shards: TokenParts, packing: Packing, weights: Mapping[str, float]) -> tuple[int, float]:
    """(positions of an epoch, share of them that is padding)."""
    counts: dict[int, float] = {}
    for source, lengths in shards.lengths.items():
        for length, count in lengths.items():
            counts[length] = counts.get(length, 0.0) + weights.get(source, 1.0) * count
    positions, used = packing.positions(counts)
    return max(1, positions), 1 - used / max(1, positions)


def _cut_rows(spans: Sequence[Span], rows: int, width: int, stride: int) -> NDArray[np.int64]:
    """`(rows, width)` int64 of consecutive slots, each row beginning `stride` after the one before."""
    pieces = [span.block.tokens[span.start : span.stop] for span in spans]
    slots = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    size = slots.itemsize
    return as_strided(slots, (rows, width), (stride * size, size)).astype(np.int64)


def evaluation_batches(
    shards: TokenParts,
    *,
    context: int,
    rows: int,
    max_tokens: int,
    seeds: Seeds,
    packing: PackingName = "concat",
    mask_documents: bool = False,
) -> Iterator[Batch]:
    """One pass over at most `max_tokens` tokens, the same ones each time; the last rows are filled up with PAD.

    The tokens are those of a seeded sample of the sequences, all in memory at 2 bytes a token.
    """
    if not len(shards):
        return
    order = seeds.generator("parts").permutation(len(shards))
    needed = max(EVALUATION_PARTS, 1 + int(np.searchsorted(np.cumsum(shards.tokens[order]), max_tokens)))
    layout = make_packing(packing, context)
    block = load_block(shards, [(int(part), 1.0) for part in order[:needed]], layout, seeds, max_tokens)
    yield from _padded_batches(block, layout, rows, max_tokens, mask_documents)


def _padded_batches(block: Block, layout: Packing, rows: int, max_tokens: int, mask_documents: bool) -> Iterator[Batch]:
    stride, width = layout.stride, layout.context + 1
    total = min(len(block), max_tokens) if layout.name == "concat" else len(block)
    # The last token of a concat row is a target only, and an input of the next.
    starts = range(0, total - (width - stride), stride)
    for first in range(0, len(starts), rows):
        tokens = np.full((len(starts[first : first + rows]), width), PAD, np.int64)
        for row, start in zip(tokens, starts[first : first + rows], strict=True):
            piece = block.tokens[start : min(start + width, total)]
            row[: len(piece)] = piece
        begin = starts[first]
        yield Batch(tokens, mask_documents, stride, (Span(block, begin, min(begin + rows * stride + 1, total)),))

"""The packed loader: whole framed sequences in a seeded order, one after another, cut at the context length.

This is the paper's concat packing (arXiv 2312.00785, section 3.3): a chunk may begin inside a sequence, and attention
crosses sequences. An epoch is every sequence of the split exactly once (or as its source's weight says). Batches are a
function of seed and step only. Shards are memory-mapped tars read at the manifest's offsets: no parsing, no copies but
one to int64. An epoch's order costs 16 bytes a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.token_shard import TOKEN_BYTES
from uvd.manifests.tokens import BOS, PAD
from uvd.sequences import Seeds
from uvd.sequences.errors import UserError

IGNORE = -100
"""Label of a position without a loss, as torch's cross entropy has it."""
MAX_OPEN_SHARDS = 256
"""Memory maps held open at a time: each holds a file descriptor."""


class TokenDataError(UserError):
    """Token shards that cannot be trained on; the message names the shard and, where there is one, the sequence."""


class EmptySplitError(TokenDataError):
    """There is nothing to read."""


class SequenceShard(Protocol):
    """Some framed sequences that can be read in parts."""

    name: str
    source: str
    lengths: NDArray[np.int64]
    """(n,) tokens of each sequence, with BOS and EOS."""

    def key(self, index: int) -> str: ...

    def read(self, index: int, start: int, stop: int) -> NDArray[np.uint16]:
        """Tokens [start, stop) of one sequence."""
        ...


class ManifestShard:
    """The sequences of one split in one committed token shard."""

    def __init__(self, dataset: Dataset, shard: Shard, split: str) -> None:
        table = dataset.manifest(shard, columns=["key", "split", "offset", "length"])
        table = table.filter(pc.equal(table["split"], split))
        self.name = shard.tar
        self.source = shard.folder.rpartition("/")[2]
        self._dataset, self._shard = dataset, shard
        self._keys: pa.ChunkedArray = table["key"]
        self._offsets = table["offset"].to_numpy().astype(np.int64)
        self.lengths = table["length"].to_numpy().astype(np.int64) // TOKEN_BYTES

    def key(self, index: int) -> str:
        return self._keys[index].as_py()

    def read(self, index: int, start: int, stop: int) -> NDArray[np.uint16]:
        first = int(self._offsets[index]) + start * TOKEN_BYTES
        length = (stop - start) * TOKEN_BYTES
        try:
            if self._dataset.storage.local_root is not None:
                data = _mapped(self._dataset.storage.full(self._shard.tar))[first : first + length]
            else:
                data = np.frombuffer(self._dataset.storage.read_range(self._shard.tar, first, length), np.uint8)
        except (OSError, ValueError) as error:
            raise TokenDataError(f"shard {self.name} cannot be read any more: {error}") from error
        if len(data) != length:
            raise TokenDataError(f"shard {self.name} ends inside sequence {self.key(index)}: `uvd verify` tells more")
        return data.view("<u2")


@lru_cache(maxsize=MAX_OPEN_SHARDS)
def _mapped(path: str) -> NDArray[np.uint8]:
    return np.memmap(path, np.uint8, mode="r")


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """One split of a dataset's tokens.

    Attributes:
        tokenizer: name of the folder below `tokens/`.
        tokenizer_fingerprint: of weights, preprocessing and precision; the same for all shards.
        digest: of the shards' contents, so that a resumed run sees whether the data changed.
        shards: in a fixed order; empty if the split is.
    """

    tokenizer: str
    tokenizer_fingerprint: str
    digest: str
    shards: tuple[SequenceShard, ...]

    @property
    def tokens(self) -> int:
        return sum(int(shard.lengths.sum()) for shard in self.shards)


def open_split(uri: str, split: str, tokenizer: str | None = None) -> TokenSplit:
    """Opens the token manifests of a dataset.

    Args:
        uri: the dataset.
        split: `train`, `val` or `test`.
        tokenizer: needed only if the dataset was tokenized by several.

    Raises:
        TokenDataError: if there are no tokens, several tokenizers to choose from, or shards of different fingerprints.
        uvd.manifests.dataset.DatasetError: if there is no dataset.
    """
    dataset = Dataset.existing(uri)
    folders = dataset.token_folders()
    tokenizer = _chosen(uri, tokenizer, sorted({name for name, _ in folders}))
    fingerprints: dict[str, str] = {}
    digest = sha256()
    shards: list[SequenceShard] = []
    for _, source in (folder for folder in folders if folder[0] == tokenizer):
        for shard in dataset.shards(f"tokens/{tokenizer}/{source}"):
            metadata = dataset.metadata(shard)
            fingerprints.setdefault(metadata["tokenizer_fingerprint"], shard.tar)
            digest.update(f"{shard.tar} {metadata['tar_sha256']}\n".encode())
            shards.append(ManifestShard(dataset, shard, split))
    if len(fingerprints) > 1:
        (first, one), (second, other) = list(fingerprints.items())[:2]
        raise TokenDataError(f"{one} was made by tokenizer {first[:12]}, {other} by {second[:12]}: tokenize again")
    if not fingerprints:
        raise TokenDataError(f"{uri} has no token shards of {tokenizer}: run `uvd tokenize`")
    filled = tuple(shard for shard in shards if len(shard.lengths))
    return TokenSplit(tokenizer, next(iter(fingerprints)), digest.hexdigest(), filled)


def _chosen(uri: str, tokenizer: str | None, available: list[str]) -> str:
    if not available:
        raise TokenDataError(f"{uri} has no tokens: run `uvd tokenize` first")
    if tokenizer is None and len(available) > 1:
        raise TokenDataError(f"{uri} has tokens of {', '.join(available)}: choose one with `tokenizer`")
    if tokenizer is not None and tokenizer not in available:
        raise TokenDataError(f"{uri} has no tokens of {tokenizer!r}, but of {', '.join(available)}")
    return tokenizer or available[0]


class Epoch:
    """The token stream of one pass over the shards."""

    def __init__(self, shards: Sequence[SequenceShard], order: NDArray[np.int64]) -> None:
        """`order`: (m,) indices into the sequences of all shards, numbered through."""
        lengths = np.concatenate([shard.lengths for shard in shards])
        self._shards = shards
        self._first = np.cumsum([0] + [len(shard.lengths) for shard in shards])
        self._order = order
        self._ends = np.cumsum(lengths[order])
        self.tokens = int(self._ends[-1])

    def read(self, position: int, out: NDArray[np.int64]) -> tuple[int, list[str]]:
        """Fills `out` from `position` on, as far as the epoch goes.

        Returns:
            How many tokens were written, and the keys of the sequences that they are from.

        Raises:
            TokenDataError: for an id above PAD or a sequence that does not begin with BOS, naming shard and key.
        """
        done, keys = 0, []
        turn = int(np.searchsorted(self._ends, position, side="right"))
        while done < len(out) and turn < len(self._order):
            shard, index = self._locate(int(self._order[turn]))
            length = int(shard.lengths[index])
            start = position + done - (int(self._ends[turn]) - length)
            stop = min(length, start + len(out) - done)
            piece = shard.read(index, start, stop)
            _check(piece, start, shard, index)
            out[done : done + len(piece)] = piece
            keys.append(shard.key(index))
            done += len(piece)
            turn += 1
        return done, keys

    def _locate(self, sequence: int) -> tuple[SequenceShard, int]:
        shard = int(np.searchsorted(self._first, sequence, side="right")) - 1
        return self._shards[shard], sequence - int(self._first[shard])


def _check(piece: NDArray[np.uint16], start: int, shard: SequenceShard, index: int) -> None:
    if int(piece.max()) > PAD:
        at = start + int((piece > PAD).argmax())
        raise TokenDataError(
            f"shard {shard.name}, sequence {shard.key(index)}: id {int(piece.max())} at token {at}; ids go up to {PAD}"
        )
    if start == 0 and piece[0] != BOS:
        raise TokenDataError(
            f"shard {shard.name}, sequence {shard.key(index)} begins with id {int(piece[0])}, not with BOS {BOS}"
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of the token stream.

    Attributes:
        tokens: `(rows, context + 1)` int64: inputs are `[:, :-1]`, targets `[:, 1:]`.
        keys: for each row, the sequences that it is made of.
    """

    tokens: NDArray[np.int64]
    keys: list[list[str]]

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels, each `(rows, context)` int64; the label of PAD is `IGNORE`."""
        tokens = torch.from_numpy(self.tokens).to(device, non_blocking=True)
        labels = tokens[:, 1:]
        return tokens[:, :-1], labels.masked_fill(labels == PAD, IGNORE)


class PackedTokens:
    """An endless stream of batches, epoch after epoch, each in its own order; resumable to the token."""

    def __init__(
        self,
        shards: Sequence[SequenceShard],
        *,
        context: int,
        seeds: Seeds,
        source_weights: Mapping[str, float] | None = None,
    ) -> None:
        """
        Raises:
            EmptySplitError: if no sequence is left to read.
            TokenDataError: if a weight names a source that the shards do not have.
        """
        self._shards, self._context, self._seeds = tuple(shards), context, seeds
        self._weights = dict(source_weights or {})
        self._epochs: dict[int, Epoch] = {}
        self.epoch, self.position = 0, 0
        sources = sorted({shard.source for shard in shards})
        if not shards:
            raise EmptySplitError("the split holds no sequences: there is nothing to train on")
        if unknown := sorted(set(self._weights) - set(sources)):
            raise TokenDataError(f"source_weights names {', '.join(unknown)}; the split has {', '.join(sources)}")
        self.epoch_tokens = self._epoch(0).tokens

    def batch(self, rows: int, rank: int = 0, world: int = 1) -> Batch:
        """The next `rows` chunks of the stream; of them, worker `rank` of `world` gets its `rows / world`.

        Every worker moves on by the whole batch, so that the global order does not depend on their number.
        """
        mine = rows // world
        tokens = np.empty((mine, self._context + 1), np.int64)
        keys = []
        for row in range(mine):
            epoch, position = self._ahead((rank * mine + row) * self._context)
            keys.append(self._fill(epoch, position, tokens[row]))
        self.epoch, self.position = self._ahead(rows * self._context)
        return Batch(tokens, keys)

    def state(self) -> dict[str, int]:
        """Where the next batch begins: JSON-able."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: Mapping[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def _ahead(self, tokens: int) -> tuple[int, int]:
        epoch, position = self.epoch, self.position + tokens
        while position >= self._epoch(epoch).tokens:
            position -= self._epoch(epoch).tokens
            epoch += 1
        return epoch, position

    def _fill(self, epoch: int, position: int, out: NDArray[np.int64]) -> list[str]:
        keys: list[str] = []
        while len(out):
            count, part = self._epoch(epoch).read(position, out)
            keys += part
            out, epoch, position = out[count:], epoch + 1, 0
        return keys

    def _epoch(self, number: int) -> Epoch:
        if number not in self._epochs:
            order = epoch_order(self._shards, self._seeds.child("epoch", number), self._weights)
            self._epochs = {known: epoch for known, epoch in self._epochs.items() if known >= self.epoch}
            self._epochs[number] = Epoch(self._shards, order)
        return self._epochs[number]


def epoch_order(
    shards: Sequence[SequenceShard], seeds: Seeds, weights: Mapping[str, float] | None = None
) -> NDArray[np.int64]:
    """A seeded order of the sequences of all shards, numbered through; each as often as its source's weight says.

    Raises:
        EmptySplitError: if the weights leave nothing.
    """
    rng = seeds.generator("order")
    chosen: list[NDArray[np.int64]] = []
    first = 0
    for shard in shards:
        ids = np.arange(first, first + len(shard.lengths), dtype=np.int64)
        whole, part = divmod((weights or {}).get(shard.source, 1.0), 1.0)
        chosen.append(np.repeat(ids, int(whole)))
        if part:
            # A draw a sequence, so that fractions hold over the source and not only within large shards.
            chosen.append(ids[rng.random(len(ids)) < part])
        first += len(ids)
    order = np.concatenate(chosen)
    if not len(order):
        raise EmptySplitError(f"source_weights {dict(weights or {})} leave no sequence to train on")
    return rng.permutation(order)


def evaluation_batches(
    shards: Sequence[SequenceShard], *, context: int, rows: int, max_tokens: int, seeds: Seeds
) -> Iterator[Batch]:
    """One pass over at most `max_tokens` tokens, the same ones each time; the last rows are filled up with PAD."""
    if not shards:
        return
    epoch = Epoch(shards, epoch_order(shards, seeds))
    total = min(epoch.tokens, max_tokens)
    for first in range(0, total - 1, rows * context):
        starts = range(first, min(first + rows * context, total - 1), context)
        tokens = np.full((len(starts), context + 1), PAD, np.int64)
        keys = [
            epoch.read(start, tokens[row, : min(context + 1, total - start)])[1] for row, start in enumerate(starts)
        ]
        yield Batch(tokens, keys)

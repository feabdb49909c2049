"""The token shards of one split, cut into parts of about a million tokens: what is planned, shuffled and read at once.

A part is a run of the split's sequences in one shard. Opening a split reads each manifest once and keeps 22 bytes a
part; a part's sequences are read from its manifest again when their turn comes. So memory grows with the number of
shards, not of sequences, and a shard that changes or vanishes in between is noticed and named.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.duplicates import Duplicates, read_duplicates
from uvd.manifests.schema import read_metadata
from uvd.manifests.token_shard import TOKEN_BYTES
from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.sequences.errors import UserError

PART_TOKENS = 1 << 20
"""A part ends with the sequence that begins before so many tokens: 2 MiB of a tar."""
MAX_SEQUENCE_TOKENS = 1 << 22
REMOTE_THREADS = 8
"""Reads under way at a time on an object store; local files are read one by one."""
_AT_ONCE = 256
Item = TypeVar("Item")
Result = TypeVar("Result")


class TokenDataError(UserError):
    """Token shards that cannot be trained on; the message names the shard and, where there is one, the sequence."""


class EmptySplitError(TokenDataError):
    """There is nothing to read."""


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRows:
    """Sequences of one shard.

    Attributes:
        rows: `(n,)` int32, their rows in the manifest.
        offsets: `(n,)` int64, byte of the tar at which each begins.
        lengths: `(n,)` int64, tokens of each, with BOS and EOS.
    """

    rows: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def take(self, chosen: slice | NDArray[np.intp]) -> SequenceRows:
        return SequenceRows(self.rows[chosen], self.offsets[chosen], self.lengths[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class TokenParts:
    """All parts of a split, in the order of sources and shards; false if there are none.

    Attributes:
        folders: `tokens/TOKENIZER/SOURCE` of the sources.
        folder: `(n,)` int16, each part's place in `folders`.
        shard: `(n,)` int32, number of its shard.
        first, stop: `(n,)` int32, which of the split's sequences in the shard it holds.
        tokens: `(n,)` int64.
        lengths: for each source, how many sequences of each length there are.
    """

    dataset: Dataset
    split: str
    duplicates: Duplicates | None
    folders: tuple[str, ...]
    folder: NDArray[np.int16]
    shard: NDArray[np.int32]
    first: NDArray[np.int32]
    stop: NDArray[np.int32]
    tokens: NDArray[np.int64]
    lengths: Mapping[str, Mapping[int, int]]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources with a sequence in the split."""
        return tuple(sorted(self.lengths))

    def only(self, source: str) -> TokenParts:
        """The parts of one source."""
        chosen = np.array([_source(folder) == source for folder in self.folders], bool)[self.folder]
        arrays = {name: getattr(self, name)[chosen] for name in ("folder", "shard", "first", "stop", "tokens")}
        return replace(
            self, **arrays, lengths={name: counts for name, counts in self.lengths.items() if name == source}
        )

    def source_places(self, parts: NDArray[np.integer]) -> NDArray[np.int64]:
        """The source of each of some parts, by its place in `sources`."""
        place = {name: number for number, name in enumerate(self.sources)}
        return np.array([place.get(_source(folder), -1) for folder in self.folders], np.int64)[self.folder[parts]]

    def weights(self, by_source: Mapping[str, float]) -> NDArray[np.float64]:
        """`(n,)` weight of each part; 1 for sources not named."""
        return np.array([by_source.get(_source(folder), 1.0) for folder in self.folders])[self.folder]

    def digest(self) -> bytes:
        """Of what is read in which parts."""
        content = sha256("\n".join(self.folders).encode())
        for column in (self.folder, self.shard, self.first, self.stop, self.tokens):
            content.update(np.ascontiguousarray(column).tobytes())
        return content.digest()

    def file(self, part: int) -> Shard:
        """The shard of a part."""
        return Shard(self.folders[self.folder[part]], int(self.shard[part]))

    def sequences(self, part: int) -> SequenceRows:
        """Where the sequences of a part lie: reads the shard's manifest.

        Raises:
            TokenDataError: if the manifest cannot be read or does not say any more what it said when it was opened.
        """
        shard = self.file(part)
        _, found = _read_manifest(self.dataset, shard, self.split, self.duplicates)
        found = found.take(slice(int(self.first[part]), int(self.stop[part])))
        if int(found.lengths.sum()) != self.tokens[part]:
            raise TokenDataError(f"{shard.manifest} has changed since it was opened: start again, or `--resume`")
        return found

    def keys(self, part: int) -> list[str]:
        """Keys of all rows of the manifest of a part's shard."""
        shard = self.file(part)
        with _named(shard.manifest):
            return _read_columns(self.dataset, shard, ["key"])["key"].to_pylist()


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """One split of a dataset's tokens.

    Attributes:
        tokenizer: name of the folder below `tokens/`.
        tokenizer_fingerprint: of weights, preprocessing and precision; the same for all shards.
        digest: of the shards' contents and of what is left out, so that a resumed run sees whether the data changed.
        shards: what there is to read; empty if the split is.
    """

    tokenizer: str
    tokenizer_fingerprint: str
    digest: str
    shards: TokenParts

    @property
    def tokens(self) -> int:
        return int(self.shards.tokens.sum())


def open_split(
    uri: str,
    split: str,
    tokenizer: str | None = None,
    *,
    duplicates: str | None = None,
    part_tokens: int = PART_TOKENS,
) -> TokenSplit:
    """Opens the token manifests of a dataset.

    Args:
        uri: the dataset.
        split: `train`, `val` or `test`.
        tokenizer: needed only if the dataset was tokenized by several.
        duplicates: name of a pass of `uvd dedup`, such as `all`, whose marks are left out.
        part_tokens: length of a part.

    Raises:
        TokenDataError: for shards of different fingerprints.
        uvd.manifests.dataset.DatasetError: if there is no dataset, no such tokens, several tokenizers to choose from,
            or no such marks.
    """
    dataset = Dataset.existing(uri)
    tokenizer, sources = dataset.tokens_of(tokenizer)
    names = tuple(f"tokens/{tokenizer}/{source}" for source in sources)
    marks = read_duplicates(dataset, duplicates) if duplicates is not None else None
    digest = sha256(f"{marks.name} {marks.fingerprint}\n".encode() if marks else b"")
    fingerprints: dict[str, str] = {}
    lengths: dict[str, dict[int, int]] = {}
    columns = array("q")
    for number, name in enumerate(names):
        for shard, metadata, found in _manifests(dataset, name, split, marks):
            fingerprints.setdefault(metadata["tokenizer_fingerprint"], shard.tar)
            rows = metadata.get("rows_sha256", "")  # of a view
            digest.update(f"{shard.tar} {metadata['tar_sha256']}{rows}\n".encode())
            for first, stop, tokens in _cut(found.lengths, part_tokens):
                columns.extend((number, shard.number, first, stop, tokens))
            for length, count in zip(*np.unique(found.lengths, return_counts=True), strict=True):
                counts = lengths.setdefault(_source(name), {})
                counts[int(length)] = counts.get(int(length), 0) + int(count)
    if len(fingerprints) > 1:
        (one, a), (other, b) = list(fingerprints.items())[:2]
        raise TokenDataError(f"{a} was made by tokenizer {one[:12]}, {b} by {other[:12]}: tokenize again")
    if not fingerprints:
        raise TokenDataError(f"{dataset.uri} has no token shards of {tokenizer}: run `uvd tokenize`")
    table = np.frombuffer(columns, np.int64).reshape(-1, 5).T
    folder, shard, first, stop = table[0].astype(np.int16), *(table[row].astype(np.int32) for row in (1, 2, 3))
    parts = TokenParts(dataset, split, marks, names, folder, shard, first, stop, table[4].copy(), lengths)
    return TokenSplit(tokenizer, next(iter(fingerprints)), digest.hexdigest(), parts)


def _manifests(
    dataset: Dataset, folder: str, split: str, marks: Duplicates | None
) -> Iterator[tuple[Shard, dict[str, Any], SequenceRows]]:
    shards = dataset.shards(folder)
    for start in range(0, len(shards), _AT_ONCE):
        some = shards[start : start + _AT_ONCE]
        found = in_parallel(dataset, lambda shard: _read_manifest(dataset, shard, split, marks), some)
        yield from ((shard, metadata, rows) for shard, (metadata, rows) in zip(some, found, strict=True))


def in_parallel(dataset: Dataset, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(item) for item in items]`, several at a time if each waits for a network."""
    if dataset.storage.local_root is not None:
        return [work(item) for item in items]
    with ThreadPoolExecutor(REMOTE_THREADS) as threads:
        return list(threads.map(work, items))


def _read_manifest(
    dataset: Dataset, shard: Shard, split: str, marks: Duplicates | None
) -> tuple[dict[str, Any], SequenceRows]:
    names = ["split", "offset", "length"] + (["key", "roles"] if marks is not None else [])
    with _named(shard.manifest):
        table = _read_columns(dataset, shard, names)
        metadata = read_metadata(table.schema, shard.manifest)
        dataset.check_base(shard, metadata)
        kept = np.asarray(pc.equal(table["split"], split))
        if marks is not None:
            kept &= ~marks.left_out(_source(shard.folder), shard.number, table["key"], table["roles"])
    rows = np.flatnonzero(kept).astype(np.int32)
    offsets, length = (np.asarray(table[name])[rows].astype(np.int64) for name in ("offset", "length"))
    tokens = length // TOKEN_BYTES
    right = (length % TOKEN_BYTES == 0) & (tokens > 2) & ((tokens - 2) % TOKENS_PER_IMAGE == 0)
    right &= (tokens <= MAX_SEQUENCE_TOKENS) & (offsets >= 0)
    if not right.all():
        row = int(rows[right.argmin()])
        raise TokenDataError(f"{shard.manifest}, row {row}: offset and length are not those of framed tokens")
    return metadata, SequenceRows(rows, offsets, tokens)


def _read_columns(dataset: Dataset, shard: Shard, names: list[str]) -> pa.Table:
    with dataset.storage.open(shard.manifest) as file:
        table = pq.ParquetFile(file).read(columns=names, use_threads=False)
    if missing := set(names) - set(table.column_names):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    return table


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Says which file it was that could not be read."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise TokenDataError(f"{path} cannot be read: {error}") from error


def _cut(lengths: NDArray[np.int64], part_tokens: int) -> Iterator[tuple[int, int, int]]:
    """(first, stop, tokens) of the parts of a shard."""
    ends = np.cumsum(lengths)
    firsts = np.flatnonzero(np.diff((ends - lengths) // part_tokens, prepend=-1))
    for first, stop in zip(firsts, [*firsts[1:], len(lengths)], strict=False):
        yield int(first), int(stop), int(lengths[first:stop].sum())


def _source(folder: str) -> str:
    return folder.rpartition("/")[2]

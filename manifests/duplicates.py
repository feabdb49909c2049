"""Sequences that tokenizing or training leaves out because `uvd dedup` has marked them.

A sequence is left out if each of its pictures that was compared is a near-duplicate of one that stays. The sequence of
a picture that stays is never left out, and no split is looked at, so a copy of a held-out picture leaves `train` or
`val` and the other stays. A pass against evaluation sets is stricter: one marked picture is enough. Costs 8 bytes of
memory a sequence that is left out, and 8 more while the marks are read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.dedup import FOLDER, manifests_fingerprint
from uvd.manifests.schema import read_metadata

_INDEX_BITS = 32
_COLUMNS = ["key", "image", "representative", "representative_image"]


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """The marks of one pass, by sequence.

    Attributes:
        name: of the pass.
        fingerprint: of the image shards that were compared, and how.
        roles: of the pictures that were compared.
        any_picture: whether one marked picture of a sequence is enough.
        marked: for each source `(n,)` int64, ascending: shard << 32 | index of each marked picture's sequence.
    """

    name: str
    fingerprint: str
    roles: frozenset[str]
    any_picture: bool
    marked: dict[str, NDArray[np.int64]]

    def of_shard(self, source: str, shard: int) -> Duplicates:
        """The marks of one shard alone: small enough to be sent with a job."""
        marked = self.marked.get(source, np.empty(0, np.int64))
        first, last = np.searchsorted(marked, [shard << _INDEX_BITS, (shard + 1) << _INDEX_BITS])
        return replace(self, marked={source: marked[first:last].copy()})

    def left_out(self, source: str, shard: int, keys: pa.ChunkedArray, roles: pa.ChunkedArray) -> NDArray[np.bool_]:
        """`(n,)` True for the sequences of a shard, with these keys and roles, to leave out."""
        sequences = _sequences(keys)[1]
        marked = self.marked.get(source, np.empty(0, np.int64))
        wanted = (shard << _INDEX_BITS) | sequences
        marks = np.searchsorted(marked, wanted, side="right") - np.searchsorted(marked, wanted)
        lists = roles.combine_chunks()
        counted = pc.is_in(lists.flatten(), value_set=pa.array(sorted(self.roles))).to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())])
        before = np.concatenate([[0], np.cumsum(counted)])
        compared = before[ends[1:]] - before[ends[:-1]]
        return marks > 0 if self.any_picture else (compared > 0) & (marks >= compared)


def read_duplicates(dataset: Dataset, name: str) -> Duplicates:
    """Reads the marks of a pass, a batch of rows at a time.

    Raises:
        DatasetError: if there was no such pass, or image shards have changed since.
    """
    path = f"{FOLDER}/{name}.parquet"
    if not dataset.storage.exists(path):
        raise DatasetError(f"{dataset.uri} has no {path}: run `uvd dedup`")
    found: dict[str, list[NDArray[np.int64]]] = {}
    with dataset.storage.open(path) as file:
        marks = pq.ParquetFile(file)
        metadata = read_metadata(marks.schema_arrow, path)
        fingerprint = manifests_fingerprint(dataset, metadata["sources"])
        if fingerprint != metadata["manifests"]:
            raise DatasetError(f"image shards have changed since {path} was made: run `uvd dedup` again")
        for batch in marks.iter_batches(columns=_COLUMNS):
            for source, sequences in _marked(batch).items():
                found.setdefault(source, []).append(sequences)
    marked = {source: np.sort(np.concatenate(parts)) for source, parts in found.items()}
    made = f"{fingerprint} {metadata['bits']} {metadata['exact']} {' '.join(metadata['roles'])}"
    return Duplicates(name, made, frozenset(metadata["roles"]), bool(metadata["against"]), marked)


def _marked(batch: pa.RecordBatch) -> dict[str, NDArray[np.int64]]:
    stays = pc.and_(
        pc.equal(batch["key"], batch["representative"]), pc.equal(batch["image"], batch["representative_image"])
    )
    keys = batch["key"].filter(pc.invert(stays))
    if not len(keys):
        return {}
    shards, indices = _sequences(keys)
    sources = pc.list_element(pc.split_pattern(keys, "-", max_splits=2, reverse=True), 0).dictionary_encode()
    codes = sources.indices.to_numpy()
    packed = (shards << _INDEX_BITS) | indices
    return {name: packed[codes == code] for code, name in enumerate(sources.dictionary.to_pylist())}


def _sequences(keys: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(shard, index) of keys SOURCE-SHARD-INDEX."""
    parts = pc.split_pattern(keys, "-", max_splits=2, reverse=True)
    shard, index = (pc.list_element(parts, place).cast(pa.int64()) for place in (1, 2))
    return np.asarray(shard), np.asarray(index)

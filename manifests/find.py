"""Finding one sequence by its key, which names source, shard and row: one manifest is read, nothing is listed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from uvd.manifests.dataset import Dataset, DatasetError, Shard

_KEY = re.compile(r"(?P<source>.+)-(?P<shard>\d{1,12})-(?P<index>\d{1,12})", re.ASCII)
NEAREST = 3


def find_sequence(dataset: Dataset, key: str) -> tuple[Shard, dict[str, Any]]:
    """The image shard and manifest row of a sequence.

    Raises:
        DatasetError: if there is none; names the nearest keys.
    """
    source, shard, index = _parts(dataset, key)
    image_shard = Shard(f"sequences/{source}", shard)
    if not dataset.storage.exists(image_shard.manifest):
        near = _nearest(shard, (other.number for other in dataset.shards(image_shard.folder)))
        there = [Shard(image_shard.folder, number).name for number in near]
        said = f"nearest: {', '.join(f'{source}-{name}-000000' for name in there)}" if there else "it has no shards yet"
        raise DatasetError(f"no sequence {key!r}: {image_shard.folder} has no shard {image_shard.name}; {said}")
    table = dataset.manifest(image_shard)
    row = _row(table, key)
    if row is None:
        raise DatasetError(
            f"no sequence {key!r} in shard {image_shard.name} of {source}; {_nearest_keys(table, index)}"
        )
    return image_shard, row


def _parts(dataset: Dataset, key: str) -> tuple[str, int, int]:
    """Source, shard and index that a key names.

    Raises:
        DatasetError: if it is no key, or the dataset has no such source.
    """
    sources = dataset.sources()
    match = _KEY.fullmatch(key)
    if match is None:
        near = difflib.get_close_matches(key.rpartition("-")[0] or key, sources, n=1, cutoff=0.3) or sources[:1]
        example = f"; for example {near[0]}-000000-000000" if near else ""
        raise DatasetError(f"no sequence {key!r}: keys are SOURCE-SHARD-INDEX{example}. {_there(sources)}")
    source, shard, index = match["source"], int(match["shard"]), int(match["index"])
    if source not in sources:
        near = difflib.get_close_matches(source, sources, n=NEAREST)
        nearest = ", ".join(f"{name}-{shard:06d}-{index:06d}" for name in near)
        said = f"nearest: {nearest}. " if near else ""
        raise DatasetError(f"no sequence {key!r}: no source {source!r}; {said}{_there(sources)}")
    return source, shard, index


def _there(sources: list[str]) -> str:
    return f"The sources are {', '.join(sources)}" if sources else "The dataset has no source yet"


def _nearest(number: int, others: Iterable[int]) -> list[int]:
    return sorted(sorted(others, key=lambda other: (abs(other - number), other))[:NEAREST])


def _row(table: pa.Table, key: str) -> dict[str, Any] | None:
    place = pc.index(table["key"], key).as_py()
    return None if place < 0 else table.slice(place, 1).to_pylist()[0]


def _nearest_keys(table: pa.Table, index: int) -> str:
    """Keys of the rows that are nearest to number `index`."""
    keys = table["key"].to_pylist()
    numbers = [int(key.rpartition("-")[2]) for key in keys]
    near = _nearest(index, numbers)
    return f"nearest: {', '.join(keys[numbers.index(number)] for number in near)}" if near else "it is empty"


def find_tokens(dataset: Dataset, key: str, tokenizer: str) -> tuple[Shard, dict[str, Any]]:
    """The token shard and manifest row of a sequence.

    Raises:
        DatasetError: if this tokenizer has not tokenized it.
    """
    match = _KEY.fullmatch(key)
    if match is not None:
        shard = Shard(f"tokens/{tokenizer}/{match['source']}", int(match["shard"]))
        if dataset.storage.exists(shard.manifest):
            row = _row(dataset.manifest(shard), key)
            if row is not None:
                return shard, row
    raise DatasetError(f"no tokens of {key!r} by {tokenizer!r}; run `uvd tokenize`")

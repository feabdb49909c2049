"""Finding one sequence by its key: the key names source and shard, so only one manifest is read."""

from __future__ import annotations

import difflib
from typing import Any

from uvd.manifests.dataset import Dataset, DatasetError, Shard


def find_sequence(dataset: Dataset, key: str) -> tuple[Shard, dict[str, Any]]:
    """The image shard and manifest row of a sequence.

    Raises:
        DatasetError: if there is none; names the nearest keys of its shard, or the sources.
    """
    source, _, rest = key.rpartition("-")[0].rpartition("-")
    if source not in dataset.sources():
        raise DatasetError(
            f"no sequence {key!r}: keys are SOURCE-SHARD-INDEX, and the sources are {', '.join(dataset.sources())}"
        )
    folder = f"sequences/{source}"
    shards = {shard.name: shard for shard in dataset.shards(folder)}
    if rest not in shards:
        raise DatasetError(f"no sequence {key!r}: {folder} has no shard {rest!r}")
    rows = dataset.manifest(shards[rest]).to_pylist()
    for row in rows:
        if row["key"] == key:
            return shards[rest], row
    near = difflib.get_close_matches(key, [row["key"] for row in rows], n=3)
    raise DatasetError(f"no sequence {key!r} in {folder}; nearest: {', '.join(near) or 'none, the shard is empty'}")


def find_tokens(dataset: Dataset, key: str, tokenizer: str) -> tuple[Shard, dict[str, Any]]:
    """The token shard and manifest row of a sequence.

    Raises:
        DatasetError: if this tokenizer has not tokenized it.
    """
    source, _, shard_name = key.rpartition("-")[0].rpartition("-")
    for shard in dataset.shards(f"tokens/{tokenizer}/{source}"):
        if shard.name == shard_name:
            for row in dataset.manifest(shard).to_pylist():
                if row["key"] == key:
                    return shard, row
    raise DatasetError(f"no tokens of {key!r} by {tokenizer!r}; run `uvd tokenize`")

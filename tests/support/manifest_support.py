"""Small datasets of manifests with everything that statistics look at, made by the project's own writers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from uvd.manifests import Dataset, ImageShardWriter, TokenShardWriter
from uvd.manifests.dataset import Shard
from uvd.manifests.schema import METADATA_KEY, table_to_parquet
from uvd.sequences import Picture, Reason, Reject, VisualSequence

PIXELS = np.zeros((256, 256, 3), np.uint8)
Made = tuple[str, str, Sequence[str]]
"""Layout, split and roles of a sequence."""


def declare(dataset: Dataset, source: str, name: str, tokenizer: str = "t") -> None:
    dataset.declare("sequences", source, {"fingerprint": "f", "config": {"dataset": name}})
    dataset.declare("tokens", f"{tokenizer}/{source}", {"fingerprint": "f"})


def write_image_shard(
    dataset: Dataset, source: str, number: int, sequences: Sequence[Made], refused: Sequence[tuple[Reason, str]] = ()
) -> Shard:
    """One shard of black pictures; each sequence is one input, the refused ones follow."""
    with ImageShardWriter(dataset, source, number, kind=source.partition("-")[0]) as writer:
        for index, (layout, split, roles) in enumerate(sequences):
            pictures = tuple(Picture(role, PIXELS, f"http://h/{index}", (256, 256), drawn=True) for role in roles)
            writer.add(VisualSequence(pictures, layout, f"{source}-x", split, frozenset({index})))
        rejects = [Reject(len(sequences) + place, origin, reason, "") for place, (reason, origin) in enumerate(refused)]
        writer.commit(len(sequences) + len(refused), rejects, f"f{number}", "f")
    return Shard(f"sequences/{source}", number)


def write_token_shard(
    dataset: Dataset, source: str, number: int, tokenizer: str = "t", seed: int = 0
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Random codes for the sequences of an image shard; returns all of them."""
    rng = np.random.default_rng((seed, number))
    image_shard = Shard(f"sequences/{source}", number)
    written = [np.empty((0, 256), np.uint16)]
    with TokenShardWriter(dataset, tokenizer, source, number) as writer:
        rows = dataset.manifest(image_shard).to_pylist()
        for row in rows:
            written.append(rng.integers(0, 8192, (row["num_images"], 256)).astype(np.uint16))
            writer.add(row, written[-1])
        sha = dataset.metadata(image_shard)["tar_sha256"]
        writer.commit(len(rows), f"f{number}", {"image_tar_sha256": sha, "config_fingerprint": "f"})
    return np.concatenate(written)


def change_metadata(dataset: Dataset, shard: Shard, changes: dict[str, Any], drop: Sequence[str] = ()) -> None:
    """Writes a manifest anew with other metadata."""
    path = Path(dataset.uri) / shard.manifest
    table = pq.read_table(path)
    metadata = {**json.loads(table.schema.metadata[METADATA_KEY]), **changes}
    path.write_bytes(table_to_parquet(table, {name: value for name, value in metadata.items() if name not in drop}))


def drop_metadata(dataset: Dataset, shard: Shard, *names: str) -> None:
    """Makes a manifest as it was before its metadata had these."""
    change_metadata(dataset, shard, {}, names)

"""A small dataset of pictures and their tokens over several sources, shards, layouts and splits; views of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.manifests import Dataset, ImageShardWriter, TokenShardWriter, iter_token_shard
from uvd.sequences import Picture, VisualSequence

LAYOUTS = ("single", "pairs", "frames")
IMAGES = {"single": 1, "pairs": 2, "frames": 3}
SOURCES = ("laion", "video")
SHARDS, SEQUENCES = 2, 6


def write_dataset(root: Path, seed: int = 0) -> Dataset:
    """Two sources of two shards of six sequences; every fifth is `val`."""
    dataset, rng = Dataset(str(root)), np.random.default_rng(seed)
    for source in SOURCES:
        entry = {"fingerprint": f"f{seed}"}
        dataset.declare("sequences", source, entry)
        dataset.declare("tokens", f"t/{source}", entry)
        for shard in range(SHARDS):
            _write_shard(dataset, source, shard, entry["fingerprint"], rng)
    return dataset


def _write_shard(dataset: Dataset, source: str, number: int, fingerprint: str, rng: np.random.Generator) -> None:
    with ImageShardWriter(dataset, source, number) as writer:
        for index in range(SEQUENCES):
            layout = LAYOUTS[index % 3]
            pictures = tuple(
                Picture(
                    "image", np.full((256, 256, 3), rng.integers(256), np.uint8), f"{source}/{number}/{index}", (9, 9)
                )
                for _ in range(IMAGES[layout])
            )
            split = "val" if (index + number) % 5 == 4 else "train"
            writer.add(VisualSequence(pictures, layout, f"{source}-raw", split, frozenset({index})))
        writer.commit(SEQUENCES, [], f"{fingerprint}-{number}", fingerprint)
    shard = dataset.shards(f"sequences/{source}")[number]
    with TokenShardWriter(dataset, "t", source, number) as tokens:
        for row in dataset.manifest(shard).to_pylist():
            tokens.add(row, rng.integers(0, 8192, (row["num_images"], 256)).astype(np.uint16))
        provenance = {"image_tar_sha256": dataset.metadata(shard)["tar_sha256"], "config_fingerprint": fingerprint}
        tokens.commit(SEQUENCES, f"{fingerprint}-{number}", provenance | {"tokenizer_fingerprint": "abc"})


def all_tokens(dataset: Dataset) -> dict[str, NDArray[np.uint16]]:
    """Framed tokens by key, in the dataset's order."""
    found: dict[str, NDArray[np.uint16]] = {}
    for shard in dataset.all_shards("tokens"):
        found |= {row["key"]: tokens for row, tokens in iter_token_shard(dataset, shard)}
    return found


def token_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for shard in dataset.all_shards("tokens") for row in dataset.manifest(shard).to_pylist()]

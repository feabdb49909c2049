"""A small tokenized dataset whose codes say which sequence and image they are, and what comes out of loaders on it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset
from uvd.manifests.token_shard import TokenShardWriter
from uvd.manifests.tokens import BOS
from uvd.sequences import Seeds
from uvd.trainer.data import PackedTokens, open_split
from uvd.trainer.token_parts import TokenParts

IMAGES = {"laion": (1,) * 9, "video": (16, 4, 1, 2, 8, 3, 16, 5)}
SHARDS = 3
PART = 2000
"""Tokens of a part here, so that shards are cut into several and blocks hold several parts."""
BUFFER = 7000
CONTEXT = {"concat": 600, "aligned": 2064}


def code(source: str, shard: int, index: int) -> int:
    """The first code of each image of a sequence says which sequence it is."""
    return 1000 * list(IMAGES).index(source) + 100 * shard + index


def write_tokens(uri: str, tokenizer: str = "t") -> None:
    """Every seventh sequence is held out; codes are: sequence, image, then 0."""
    dataset = Dataset(uri)
    for source, images in IMAGES.items():
        dataset.declare("tokens", f"{tokenizer}/{source}", {"fingerprint": "f"})
        for shard in range(SHARDS):
            with TokenShardWriter(dataset, tokenizer, source, shard) as writer:
                for index, number in enumerate(images):
                    codes = np.zeros((number, 256), np.uint16)
                    codes[:, 0], codes[:, 1] = code(source, shard, index), np.arange(number)
                    split = "val" if (index + shard) % 7 == 6 else "train"
                    key = f"{source}-{shard:06d}-{index:06d}"
                    row = {"key": key, "source": source, "dataset": "d", "layout": "l", "split": split}
                    writer.add({**row, "num_images": number, "roles": ["image"] * number}, codes)
                writer.commit(len(images), "f", {"tokenizer": tokenizer, "tokenizer_fingerprint": "f"})


def sequences(split: str, source: str | None = None) -> Counter[tuple[int, int]]:
    """(code, image) of all images of a split."""
    return Counter(
        (code(name, shard, index), image)
        for name, images in IMAGES.items()
        for shard in range(SHARDS)
        for index, number in enumerate(images)
        for image in range(number)
        if source in (None, name) and ("val" if (index + shard) % 7 == 6 else "train") == split
    )


def parts_of(uri: str, split: str = "train") -> TokenParts:
    return open_split(uri, split, part_tokens=PART).shards


def packed(uri: str, packing: str = "concat", seed: int = 0, **more: Any) -> PackedTokens:
    settings: dict[str, Any] = {"context": CONTEXT[packing], "buffer_tokens": BUFFER, **more}
    return PackedTokens(parts_of(uri), packing=packing, seeds=Seeds(seed), **settings)  # type: ignore[arg-type]


def images_of(tokens: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(code, image) of the images in some slots: 254 zeros tell where they are."""
    found, at = [], 0
    while at < len(tokens):
        if tokens[at] >= BOS:
            at += 1
            continue
        assert not tokens[at + 2 : at + 256].any()
        assert len(tokens) >= at + 256
        found.append((int(tokens[at]), int(tokens[at + 1])))
        at += 256
    return found


def stream(data: PackedTokens, tokens: int, rows: int = 3) -> NDArray[np.int64]:
    """The first inputs of a concat stream."""
    parts: list[NDArray[np.int64]] = []
    while sum(part.size for part in parts) < tokens:
        parts.append(data.batch(rows).tokens[:, :-1].reshape(-1))
    return np.concatenate(parts)[:tokens]


def epoch_rows(data: PackedTokens) -> NDArray[np.int64]:
    """All rows of the next epoch of an aligned stream."""
    epoch, rows = data.state()["epoch"], []
    while data.state()["epoch"] == epoch:
        rows.append(data.batch(1).tokens)
    return np.concatenate(rows)


def whole(images: list[tuple[int, int]]) -> bool:
    """Whether the images of each sequence come in order, one after another."""
    return all(b == (a[0], a[1] + 1) or b[1] == 0 for a, b in pairwise(images))

"""A small dataset of three sources to look through: single photos by URL, pairs with a gap in the shards, frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tests_support import smooth_photo

from uvd.manifests import Dataset, ImageShardWriter, TokenShardWriter
from uvd.manifests.dataset import Shard
from uvd.manifests.image_shard import read_image_shard
from uvd.sequences import Picture, VisualSequence

HOSTILE = 'javascript:alert("<script>alert(1)</script>")'
URL = "https://host.example/a.jpg?x=1&y=<b>"
Made = tuple[str, str, Sequence[str], Sequence[str]]
"""Layout, split, roles and origins of a sequence."""


def pixels(seed: int) -> NDArray[np.uint8]:
    """A photo-like picture of its own for each seed."""
    return np.ascontiguousarray(smooth_photo(seed)[:256, :256])


def write_shard(dataset: Dataset, source: str, number: int, sequences: Sequence[Made], seed: int = 0) -> None:
    """One shard; drawn pictures are those that are not of role `image` or `frame`."""
    dataset.declare("sequences", source, {"fingerprint": "f", "config": {"dataset": source}})
    with ImageShardWriter(dataset, source, number) as writer:
        for index, (layout, split, roles, origins) in enumerate(sequences):
            pictures = tuple(
                Picture(
                    role, pixels(seed + 20 * index + place), origin, (400, 300), drawn=role not in ("image", "frame")
                )
                for place, (role, origin) in enumerate(zip(roles, origins, strict=True))
            )
            writer.add(VisualSequence(pictures, layout, f"{source}-set", split, frozenset({index})))
        writer.commit(len(sequences), [], f"f{number}", "f")


def write_dataset(uri: str) -> Dataset:
    """Shards of `laion` 0 to 2 (4 single photos each), of `pairs` 0 and 9, of `video-b` 1."""
    dataset = Dataset(uri)
    for number in range(3):
        urls = [URL, HOSTILE, f"http://h/{number}.jpg", "plain/file.jpg"]
        made = [("single", "train" if place else "val", ("image",), (url,)) for place, url in enumerate(urls)]
        write_shard(dataset, "laion", number, made, 1000 * number)
    for number in (0, 9):
        pairs = [
            ("pairs", "train", ("image", role) * 2, (f"{role}/{number}",) * 4) for role in ("pose", "boxes", "pose")
        ]
        write_shard(
            dataset, "pairs", number, [*pairs, ("tuples", "val", ("image", "pose", "boxes"), ("t",) * 3)], number
        )
    write_shard(dataset, "video-b", 1, [("frames", "train", ("frame",) * 16, ("clip.mp4",) * 16)], 500)
    return dataset


class Encoder(Protocol):
    """What makes tokens."""

    name: str
    fingerprint: str

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]: ...


@dataclass
class Zeros:
    """An encoder for tests that need tokens of any kind: code 0 everywhere."""

    name: str
    fingerprint: str = "zeros"

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        return np.zeros((len(images), 256), np.uint16)


def write_tokens(dataset: Dataset, shard: Shard, tokenizer: Encoder) -> None:
    """The token shard of an image shard."""
    source = shard.folder.partition("/")[2]
    dataset.declare("tokens", f"{tokenizer.name}/{source}", {"fingerprint": "f"})
    with TokenShardWriter(dataset, tokenizer.name, source, shard.number) as writer:
        for stored in read_image_shard(dataset, shard):
            writer.add(stored.row, tokenizer.encode(stored.pictures()))
        made_by = {"tokenizer_fingerprint": tokenizer.fingerprint, "tokenizer": tokenizer.name}
        writer.commit(len(dataset.manifest(shard)), "f", {**made_by, "config_fingerprint": "f"})

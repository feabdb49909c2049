"""Pictures to train a tokenizer on: those of a dataset's image shards, decoded once into a memory-mapped file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.image_shard import read_image_shard
from uvd.sequences import IMAGE_SIZE

log = logging.getLogger(__name__)
DIGEST_PICTURES = 16
PICTURE_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3


class EmptySplitError(DatasetError):
    """The dataset has no pictures in a split."""


class PicturePool(Protocol):
    """Random access to pictures, each `(256, 256, 3)` uint8 RGB."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


def shard_pool(dataset: Dataset, cache: Path, split: str = "train", max_pictures: int | None = None) -> PicturePool:
    """Decodes the pictures of one split into `cache` (196,608 bytes each) and maps it.

    Args:
        dataset: its image shards are read in order.
        cache: folder for the raw file; a file of the same shards is used again.
        max_pictures: stop after so many.

    Raises:
        EmptySplitError: if the split is empty.
    """
    shards = [dataset.metadata(shard)["tar_sha256"] for shard in dataset.all_shards("sequences")]
    file_name = f"pictures-{fingerprint([shards, split, max_pictures])[:16]}.raw"
    cache = cache / file_name
    if not cache.exists():
        temporary = cache.with_name(f".{cache.name}.part")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with temporary.open("wb") as file:
            for picture in _pictures(dataset, split):
                if max_pictures is not None and written >= max_pictures:
                    break
                file.write(picture.tobytes())
                written += 1
        temporary.rename(cache)
    # An empty file stays: it says to other workers, and to the next run, that there is nothing.
    count = cache.stat().st_size // PICTURE_BYTES
    if not count:
        raise EmptySplitError(f"{dataset.uri} has no pictures in split {split!r}")
    return np.memmap(cache, np.uint8, "r", shape=(count, IMAGE_SIZE, IMAGE_SIZE, 3))


def pool_digest(pool: PicturePool) -> str:
    """What a pool is, by its size and some of its pictures."""
    digest = sha256(str(len(pool)).encode())
    for index in np.linspace(0, len(pool) - 1, DIGEST_PICTURES).astype(int):
        digest.update(np.ascontiguousarray(pool[int(index)]).tobytes())
    return digest.hexdigest()


def array_pool(file: Path) -> PicturePool:
    """Maps a `.npy` file of `(N, 256, 256, 3)` uint8 RGB pictures.

    Raises:
        DatasetError: if it is not such a file.
    """
    try:
        pool = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} is not a .npy file: {error}") from error
    if pool.dtype != np.uint8 or pool.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or not len(pool):
        raise DatasetError(f"{file} holds {pool.dtype} {pool.shape}, expected (N, 256, 256, 3) uint8")
    return pool


def _pictures(dataset: Dataset, split: str) -> Iterator[NDArray[np.uint8]]:
    for shard in dataset.all_shards("sequences"):
        for stored in read_image_shard(dataset, shard):
            if stored.row["split"] == split:
                try:
                    yield from stored.pictures()
                except CodecError as error:
                    # Tokenizing rejects such a sequence; a tokenizer can be trained without it.
                    log.warning("left out: %s: %s", stored.key, error)

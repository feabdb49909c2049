"""Folders of a million committed shards, made in minutes: manifests of four rows, each with its own fingerprint.

A manifest is written once by the project's writer, and then copied with another shard's number and fingerprint in its
metadata, at both places where that is: as the entry `uvd`, and in Arrow's own schema, which is base64. Tars and rejects
are there by their names, empty.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from uvd.manifests.schema import SEQUENCES, table_to_parquet

ROWS = 4
_PLACE = "0" * 64
_NUMBER = 90_000_000
"""Stands for the shard's number, with as many digits: shards are counted from here in the metadata."""
_ARROW_SCHEMA = b"ARROW:schema\x18"


class ShardMaker:
    """Writes the files of shards as if they had been made.

    Args:
        folder: of the shards, `DATASET/sequences/SOURCE`; it is made.
        images: that each shard's counts tell of.
    """

    def __init__(self, folder: Path, images: int = 1000) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        text = f"{folder.name}-000000-"
        row = {
            "key": text, "source": "laion", "dataset": "laion", "layout": "single", "split": "train", "num_images": 1,
            "roles": ["image"], "origins": ["https://example.org/a.jpg"], "indices": [None], "widths": [640],
            "heights": [480], "phashes": [1 << 60], "digests": [1 << 61], "inputs": [0], "offset": 0, "length": 32_768,
        }  # fmt: skip
        counts = {"inputs": images, "used": images, "rejected": 0, "partial": 0, "sequences": images, "images": images}
        metadata = {
            "kind": "sequences", "folder": folder.name, "shard": _NUMBER, **counts, "tar_bytes": images * 31_000,
            "tar_sha256": "f" * 64, "fingerprint": _PLACE, "config_fingerprint": "c" * 64, "uvd_version": "0.1.0",
        }  # fmt: skip
        data = table_to_parquet(pa.Table.from_pylist([row] * ROWS, schema=SEQUENCES), metadata)
        self._pieces, self._schema = _split(data)

    def write(self, shards: Iterable[tuple[int, str]]) -> int:
        """Writes shards by number and fingerprint, of 64 characters; returns how many."""
        written = 0
        for number, fingerprint in shards:
            stem = f"{self._folder}/{number:06d}"
            for path, content in (
                (f"{stem}.tar", b""),
                (f"{stem}.rejects.parquet", b""),
                (f"{stem}.parquet", self.manifest(number, fingerprint)),
            ):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.write(descriptor, content)
                os.close(descriptor)
            written += 1
        return written

    def manifest(self, number: int, fingerprint: str) -> bytes:
        """A shard's manifest; `ValueError` for a fingerprint of another length."""
        if len(fingerprint) != len(_PLACE):
            raise ValueError(f"a fingerprint has {len(_PLACE)} characters, not {len(fingerprint)}")

        def change(text: bytes) -> bytes:
            text = text.replace(_PLACE.encode(), fingerprint.encode())
            return text.replace(str(_NUMBER).encode(), str(_NUMBER + number).encode())

        before, after = self._pieces
        return change(before) + base64.b64encode(change(self._schema)) + after


def _split(data: bytes) -> tuple[tuple[bytes, bytes], bytes]:
    """What is before and after Arrow's schema in a manifest, and the schema decoded."""
    start = data.index(_ARROW_SCHEMA) + len(_ARROW_SCHEMA)
    while data[start] & 0x80:  # the length, a varint
        start += 1
    start += 1
    end = data.index(b"\0", start)
    return (data[:start], data[end:]), base64.b64decode(data[start:end])


def fingerprint_of(number: int) -> str:
    """Some fingerprint, another for each number."""
    return hashlib.sha256(str(number).encode()).hexdigest()

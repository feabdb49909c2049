"""Blocks of 256 shards: which manifests they are, and what these hold together, read from their footers."""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from uvd.manifests.dataset import SHARD_FILE, Dataset, DatasetError, Shard
from uvd.manifests.schema import METADATA_KEY
from uvd.manifests.summary import (
    COLUMNS,
    MEASURES,
    ROLE_MEASURES,
    Group,
    Summary,
    SummaryError,
    decode_groups,
    encode_summary,
    parse_rejects,
    summarize_tables,
)
from uvd.manifests.token_shard import decode_histogram
from uvd.manifests.tokens import CODEBOOK_SIZE
from uvd.sequences.object_stores import ObjectStoreError

SIZE = 256
"""Shards of a block."""
COUNTED = {
    "sequences": ("inputs", "used", "rejected", "partial", "sequences", "images", "tar_bytes"),
    "tokens": ("inputs", "rejected", "sequences", "images", "tokens", "tar_bytes"),
}
"""What is added up of the manifests' metadata."""
_ADVICE = "`uvd verify` names all such files; delete them, and the command that made their shards makes them anew."
SETTLED_S = 10.0
"""A file that changed less than so long ago might change again without its time or size showing it."""

BLOCKS = pa.schema(
    [
        pa.field("folder", pa.string(), False),
        pa.field("block", pa.int32(), False),
        pa.field("identity", pa.string(), False),
        pa.field("tar_sha256", pa.list_(pa.string()), False),
        pa.field("totals", pa.string(), False),  # JSON
        pa.field("groups", pa.string(), False),  # JSON: [values of DIMENSIONS, MEASURES]
        pa.field("roles", pa.string(), False),  # JSON: [values of DIMENSIONS, role, ROLE_MEASURES]
        pa.field("reasons", pa.list_(pa.string()), False),
        pa.field("hosts", pa.list_(pa.string()), False),
        pa.field("inputs", pa.list_(pa.int64()), False),
        pa.field("histogram", pa.binary(), False),  # deflated int64; empty if there is none
        pa.field("without_histogram", pa.int32(), False),
    ]
)


@dataclass(frozen=True, slots=True)
class Block:
    """Some shards of a folder.

    Attributes:
        number: shards `256 * number` to `256 * number + 255` are in it, those that there are.
        identity: changes when a manifest is added, removed or replaced.
        settled: no manifest changed in the last seconds.
    """

    folder: str
    number: int
    numbers: tuple[int, ...]
    manifest_bytes: int
    identity: str
    settled: bool

    @property
    def place(self) -> tuple[str, int]:
        return self.folder, self.number


@dataclass(frozen=True, slots=True)
class BlockContent:
    """What one shard holds, or the shards of a block together.

    Attributes:
        summary: its rejects are empty: they wait in `reject_lines`, or in the columns of `BLOCKS`.
        reject_lines: see `summary.parse_rejects`.
        tar_sha256: in the order of the shards' numbers.
    """

    totals: dict[str, int]
    summary: Summary
    reject_lines: bytes
    histogram: NDArray[np.int64] | None
    without_histogram: int
    tar_sha256: list[str]


def blocks_of(dataset: Dataset, folder: str) -> Iterator[Block]:
    """The committed shards of a folder in blocks, from one listing of it."""
    found: dict[int, list[tuple[int, fs.FileInfo]]] = {}
    for info in dataset.storage.iter_files(folder):
        match = SHARD_FILE.match(info.base_name)
        if match is not None and match[2] == "parquet":
            number = int(match[1])
            found.setdefault(number // SIZE, []).append((number, info))
    now = time.time()
    for block, members in sorted(found.items()):
        members.sort(key=lambda member: member[0])
        stamps = [(number, info.size, info.mtime_ns) for number, info in members]
        yield Block(
            folder,
            block,
            tuple(number for number, _ in members),
            sum(info.size for _, info in members),
            sha256(json.dumps(stamps).encode()).hexdigest(),
            all(stamp[2] is not None and stamp[2] < (now - SETTLED_S) * 1e9 for stamp in stamps),
        )


def read_shard(dataset: Dataset, shard: Shard, metadata: bytes | None = None) -> BlockContent:
    """What one shard holds, from its footer; from its columns if that has no summary.

    Args:
        metadata: what the footer has under `schema.METADATA_KEY`, if it was read before.

    Raises:
        DatasetError: if its manifest is not one.
        ObjectStoreError: if it cannot be reached.
    """
    kind = shard.folder.partition("/")[0]
    try:
        if metadata is None:
            with dataset.storage.open(shard.manifest) as file:
                metadata = (pq.read_metadata(file).metadata or {})[METADATA_KEY]
        content = json.loads(metadata)
        if content["kind"] != kind:
            raise ValueError(f"it is of kind {content['kind']!r}")
        if "summary" in content:
            text = content["summary"]
        else:
            with dataset.storage.open(shard.manifest) as file:
                columns = pq.ParquetFile(file).read(columns=list(COLUMNS[kind]))
            text = encode_summary(summarize_tables(columns, dataset.rejects(shard)))
        summary, reject_lines = decode_groups(text)
        histogram = decode_histogram(content["histogram"]) if "histogram" in content else None
        return BlockContent(
            {name: int(content[name]) for name in COUNTED[kind]},
            summary,
            reject_lines,
            histogram,
            int(kind == "tokens" and histogram is None),
            [str(content["tar_sha256"])],
        )
    except ObjectStoreError:
        raise  # which says nothing of the manifest
    except (OSError, pa.ArrowException, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{shard.manifest} is not a manifest of uvd, or damaged ({type(error).__name__}: {error}). {_ADVICE}"
        ) from error


def pack(block: Block, contents: Iterable[BlockContent]) -> pa.RecordBatch:
    """Adds up the shards of a block, given in order, to one row of `BLOCKS`.

    Raises:
        DatasetError: if the rejects of a summary are damaged.
    """
    totals: Counter[str] = Counter(manifest_bytes=block.manifest_bytes)
    summary, histogram = Summary(), np.zeros(CODEBOOK_SIZE, np.int64)
    without_histogram, hashes, lines = 0, list[str](), list[bytes]()
    for content in contents:
        totals.update(content.totals)
        summary.add(content.summary)
        if content.histogram is not None:
            histogram += content.histogram
        without_histogram += content.without_histogram
        hashes += content.tar_sha256
        lines.append(content.reject_lines)
    rejects = _add_rejects(block, lines)
    row = {
        "folder": block.folder,
        "block": block.number,
        "identity": block.identity,
        "tar_sha256": hashes,
        "totals": json.dumps(totals),
        "groups": json.dumps([[*key, *counts] for key, counts in summary.groups.items()]),
        "roles": json.dumps([[*key, *counts] for key, counts in summary.roles.items()]),
        "histogram": zlib.compress(histogram.astype("<i8").tobytes(), 1) if histogram.any() else b"",
        "without_histogram": without_histogram,
    }
    columns = {name: pa.array([value], BLOCKS.field(name).type) for name, value in row.items()}
    ends = pa.array([0, len(rejects)], pa.int32())
    for name, source in (("reasons", "reason"), ("hosts", "host"), ("inputs", "inputs")):
        columns[name] = pa.ListArray.from_arrays(ends, rejects[source].combine_chunks())
    return pa.RecordBatch.from_arrays([columns[name] for name in BLOCKS.names], schema=BLOCKS)


def _add_rejects(block: Block, lines: list[bytes]) -> pa.Table:
    try:
        table = parse_rejects(b"".join(lines))
    except SummaryError:
        for number, part in zip(block.numbers, lines, strict=True):
            try:
                parse_rejects(part)
            except SummaryError as error:
                raise DatasetError(f"{Shard(block.folder, number).manifest}: {error}. {_ADVICE}") from error
        raise
    summed = table.group_by(["reason", "host"], use_threads=False).aggregate([("inputs", "sum")])
    return summed.rename_columns({"inputs_sum": "inputs"})


def places(batch: pa.RecordBatch) -> list[tuple[str, int]]:
    """(folder, number of the block) of rows of `BLOCKS`."""
    return list(zip(batch["folder"].to_pylist(), batch["block"].to_pylist(), strict=True))


def unpack(batch: pa.RecordBatch) -> Iterator[BlockContent]:
    """The rows of `BLOCKS`, without their rejects: those are for Arrow to add up."""
    for row in batch.drop_columns(["reasons", "hosts", "inputs"]).to_pylist():
        data = zlib.decompressobj().decompress(row["histogram"], CODEBOOK_SIZE * 8)
        yield BlockContent(
            json.loads(row["totals"]),
            Summary(_counts(row["groups"], len(MEASURES)), _counts(row["roles"], len(ROLE_MEASURES))),
            b"",
            np.frombuffer(data, "<i8") if data else None,
            row["without_histogram"],
            row["tar_sha256"],
        )


def _counts(text: str, measures: int) -> dict[Group, list[int]]:
    return {tuple(row[:-measures]): row[-measures:] for row in json.loads(text)}

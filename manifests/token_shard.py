"""Token shards: framed sequences as uint16 in a tar, several to a record, and their manifest.

A record is `KEY.tokens.npy` (1-D uint16 little-endian, whole sequences `[BOS] 256·n codes [EOS]` one after another) and
`KEY.json` with their offsets. A record is closed at 64 images, so that tar and npy headers cost 6 % and not the 24 %
of one record per 16 images (measured). The manifest's byte offsets let a memory-mapped tar be read without parsing it.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uvd import __version__
from uvd.manifests import schema
from uvd.manifests.dataset import ConservationError, Dataset, Shard
from uvd.manifests.summary import encode_summary, inflate, summarize
from uvd.manifests.tar import TarWriter
from uvd.manifests.tokens import CODEBOOK_SIZE, frame
from uvd.sequences import Reason, Reject

IMAGES_PER_RECORD = 64
TOKEN_BYTES = 2
_COUNT_BYTES = (1, 2, 4)
_READ_BYTES, _GAP_BYTES = 16 << 20, 256 << 10


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What a token shard holds."""

    sequences: int
    rejected: int
    images: int
    tokens: int
    bytes: int


class TokenShardWriter:
    """Writes one token shard; use as a context manager, which leaves nothing behind unless `commit` was reached."""

    def __init__(self, dataset: Dataset, tokenizer: str, source: str, shard: int) -> None:
        self._dataset = dataset
        self._source = source
        self._shard = Shard(f"tokens/{tokenizer}/{source}", shard)
        self._pending = dataset.storage.create(self._shard.tar)
        self._tar = TarWriter(self._pending.stream)
        self._rows: list[dict[str, Any]] = []
        self._record: list[NDArray[np.uint16]] = []
        self._record_start = 0
        self._records = 0
        self._histogram = np.zeros(CODEBOOK_SIZE, np.int64)
        self._rejects: list[Reject] = []

    def __enter__(self) -> TokenShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pending.abort()

    def add(self, row: dict[str, Any], codes: NDArray[np.uint16]) -> None:
        """Appends one sequence.

        Args:
            row: its row in the image shard's manifest.
            codes: `(num_images, 256)` uint16 in [0, 8192).
        """
        images = sum(waiting["num_images"] for waiting in self._rows[self._record_start :])
        if self._record and images + len(codes) > IMAGES_PER_RECORD:
            self._close_record()
        copied = ("key", "source", "dataset", "layout", "split", "num_images", "roles")
        self._histogram += np.bincount(codes.reshape(-1), minlength=CODEBOOK_SIZE)
        tokens = frame(codes)
        self._record.append(tokens)
        self._rows.append({**{name: row[name] for name in copied}, "num_tokens": len(tokens)})

    def reject(self, index: int, key: str, reason: Reason, detail: str) -> None:
        """Leaves out sequence number `index` of the image shard, whose pictures cannot be read."""
        self._rejects.append(Reject(index, key, reason, detail))

    def _close_record(self) -> None:
        if not self._record:
            return
        key = f"{self._source}-{self._shard.name}-r{self._records:06d}"
        tokens = np.concatenate(self._record).astype("<u2")
        npy = io.BytesIO()
        np.lib.format.write_array(npy, tokens, version=(1, 0), allow_pickle=False)
        data = npy.getvalue()
        offset = self._tar.add(f"{key}.tokens.npy", data) + len(data) - tokens.nbytes
        starts = np.cumsum([0] + [len(part) for part in self._record])
        self._tar.add(f"{key}.json", json.dumps({"offsets": starts.tolist()}).encode())
        for row, start in zip(self._rows[self._record_start :], starts[:-1].tolist(), strict=True):
            row["record"] = key
            row["offset"] = offset + start * TOKEN_BYTES
            row["length"] = row["num_tokens"] * TOKEN_BYTES
        self._record, self._record_start, self._records = [], len(self._rows), self._records + 1

    def commit(self, num_inputs: int, fingerprint: str, provenance: dict[str, Any]) -> TokenCounts:
        """Makes tar, rejects and manifest appear, in that order.

        Args:
            num_inputs: sequences of the image shard; each must have been added or rejected.
            fingerprint: of tokenizer, precision and image shard.
            provenance: further metadata: tokenizer, its fingerprint, sha256 of the image shard, device, batch shape.

        Raises:
            ConservationError: unless every sequence is accounted for; nothing is written then.
        """
        if num_inputs != len(self._rows) + len(self._rejects):
            raise ConservationError(
                f"token shard {self._shard.folder}/{self._shard.name}: {len(self._rows)} tokenized and "
                f"{len(self._rejects)} rejected are not the {num_inputs} sequences of the image shard"
            )
        self._close_record()
        sha = self._tar.finish()
        counts = TokenCounts(
            sequences=len(self._rows),
            rejected=len(self._rejects),
            images=sum(row["num_images"] for row in self._rows),
            tokens=sum(row["num_tokens"] for row in self._rows),
            bytes=self._tar.bytes,
        )
        refused = schema.reject_rows(self._rejects, self._shard.number, self._source, set())
        metadata = {
            **provenance,
            "kind": "tokens",
            "folder": self._source,
            "shard": self._shard.number,
            "inputs": num_inputs,
            "rejected": len(self._rejects),
            "sequences": counts.sequences,
            "images": counts.images,
            "tokens": counts.tokens,
            "records": self._records,
            "tar_bytes": counts.bytes,
            "tar_sha256": sha,
            "fingerprint": fingerprint,
            "uvd_version": __version__,
            "histogram": encode_histogram(self._histogram),
            "summary": encode_summary(summarize(self._rows, refused)),
        }
        manifest = schema.to_parquet(self._rows, schema.TOKENS, metadata)
        self._pending.commit()
        self._dataset.storage.put(self._shard.rejects, schema.rejects_to_parquet(refused, self._source))
        self._dataset.storage.put(self._shard.manifest, manifest)
        return counts


def encode_histogram(counts: NDArray[np.int64]) -> str:
    """How often each code occurs, `(8192,)`, as base64 of deflated little-endian unsigned integers, plane by plane.

    They have 1, 2 or 4 bytes, as the largest count needs; their low bytes come first, then the next higher ones, which
    deflates to 6 kB for a shard of 1,000 images.

    Raises:
        ValueError: if a count has no room in 4 bytes.
    """
    largest = int(counts.max(initial=0))
    width = next((width for width in _COUNT_BYTES if largest < 1 << 8 * width), None)
    if width is None or counts.min(initial=0) < 0:
        raise ValueError(f"a code that occurs {largest} times in one shard cannot be counted")
    planes = counts.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()


def decode_histogram(text: str) -> NDArray[np.int64]:
    """`(8192,)` int64 of what `encode_histogram` wrote, or of plain little-endian int64, which early manifests have.

    Raises:
        ValueError: if it is no histogram.
    """
    data = inflate(text, CODEBOOK_SIZE * 8)
    width, rest = divmod(len(data), CODEBOOK_SIZE)
    if rest or width not in (*_COUNT_BYTES, 8):
        raise ValueError(f"{len(data)} bytes are no histogram of {CODEBOOK_SIZE} codes")
    if width == 8:
        return np.frombuffer(data, "<i8").astype(np.int64)
    counts = np.zeros(CODEBOOK_SIZE, np.int64)
    for number, plane in enumerate(np.frombuffer(data, np.uint8).reshape(width, CODEBOOK_SIZE)):
        counts += plane.astype(np.int64) << 8 * number
    return counts


def read_tokens(dataset: Dataset, shard: Shard, row: dict[str, Any]) -> NDArray[np.uint16]:
    """The framed tokens of one sequence, by its manifest row: one range of bytes."""
    data = dataset.tars.read_range(shard.tar, row["offset"], row["length"])
    return np.frombuffer(data, "<u2").astype(np.uint16)


def iter_token_shard(dataset: Dataset, shard: Shard) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
    """(manifest row, framed tokens) of every sequence."""
    return iter_rows(dataset, shard, dataset.manifest(shard))


def iter_rows(dataset: Dataset, shard: Shard, table: pa.Table) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
    """(manifest row, framed tokens) of some sequences of a shard, in order.

    Neighbours are read together, 16 MiB at a time at most, and what lies between is skipped if it is long.

    Args:
        table: their rows, by increasing offset.

    Raises:
        ValueError: if the tar ends before, or the rows are out of order.
    """
    starts = table["offset"].to_numpy()
    ends = starts + table["length"].to_numpy()
    if len(starts) and (starts[0] < 0 or (starts[1:] < ends[:-1]).any() or (ends < starts).any()):
        raise ValueError(f"{shard.manifest}: byte ranges of the sequences overlap or are out of order")
    first = 0
    with dataset.tars.open(shard.tar) as file:
        while first < len(starts):
            stop = first + 1
            while (
                stop < len(starts)
                and starts[stop] - ends[stop - 1] <= _GAP_BYTES
                and (ends[stop] - starts[first] <= _READ_BYTES)
            ):
                stop += 1
            data = file.read_at(int(ends[stop - 1] - starts[first]), int(starts[first]))
            if len(data) < ends[stop - 1] - starts[first]:
                raise ValueError(f"{shard.tar} ends at {starts[first] + len(data)}, inside a sequence")
            for row in table.slice(first, stop - first).to_pylist():
                tokens = np.frombuffer(data, "<u2", row["length"] // TOKEN_BYTES, row["offset"] - int(starts[first]))
                yield row, tokens.astype(np.uint16)
            first = stop

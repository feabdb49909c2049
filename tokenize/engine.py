"""The tokenizing engine: one image shard in, one committed token shard out.

Pictures are decoded ahead in threads (libjpeg-turbo and zlib release the GIL) while the model encodes. Several shards
share one `EncodingQueue` (`tokenize.batching`), which keeps its batches full and of one shape: ids do not depend on
neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.duplicates import Duplicates
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.image_shard import StoredSequence, read_image_shard
from uvd.manifests.token_shard import TokenCounts, TokenShardWriter
from uvd.sequences import Reason
from uvd.tokenize.encoded import PictureQueue, TokenizerError, encode_all

DECODE_THREADS = 2
SEQUENCES_AHEAD = 8
"""Decoded sequences that may wait for the model, for each two threads: 25 MB at 16 images each."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sequence whose pictures were decoded, or why they were not."""

    index: int
    row: dict[str, Any]
    pictures: list[NDArray[np.uint8]]
    error: str = ""
    reason: Reason = Reason.UNREADABLE


def token_shard_fingerprint(config_fingerprint: str, image_tar_sha256: str) -> str:
    """Says what a token shard is made of.

    Args:
        config_fingerprint: of the tokenizer and how it is used, as `dataset.json` records it.
        image_tar_sha256: of the image shard.
    """
    return fingerprint([config_fingerprint, image_tar_sha256])


def tokenize_shard(
    dataset: Dataset,
    shard: Shard,
    tokenizer_name: str,
    queue: PictureQueue,
    made_by: str,
    provenance: Callable[[], dict[str, Any]],
    decode_threads: int = DECODE_THREADS,
    duplicates: Duplicates | None = None,
) -> TokenCounts:
    """Encodes all sequences of an image shard and commits the token shard of the same number.

    A sequence with a damaged picture is rejected with its key and the decoder's message; the rest goes on.

    Args:
        made_by: the shard's fingerprint.
        provenance: asked at the end, when a batch size that had to be halved has settled.
        duplicates: marks of `uvd dedup`; sequences that they leave out are rejected as near-duplicates.

    Raises:
        TarError: if the image shard's tar and manifest do not match.
        TokenizerError: if the model fails on a sequence; names shard and sequence.
    """
    source = shard.folder.partition("/")[2]
    with TokenShardWriter(dataset, tokenizer_name, source, shard.number) as writer:
        num_inputs = dataset.metadata(shard)["sequences"]
        left_out = _left_out(dataset, shard, duplicates)
        decoded = _decode_ahead(read_image_shard(dataset, shard), decode_threads, left_out)
        good = ((sequence.row, sequence.pictures) for sequence in _rejecting(decoded, writer))
        # Closed at once when something fails, or the queue would wait for more pictures of this shard.
        with closing(encode_all(good, queue)) as encoded:
            for row, codes in encoded:
                writer.add(row, checked(codes, row, shard))
        return writer.commit(num_inputs, made_by, provenance())


def _left_out(dataset: Dataset, shard: Shard, duplicates: Duplicates | None) -> dict[int, Decoded]:
    """By its place in the shard, what `duplicates` leaves out."""
    if duplicates is None:
        return {}
    rows = dataset.manifest(shard, ["key", "roles"])
    flags = duplicates.left_out(shard.folder.partition("/")[2], shard.number, rows["key"], rows["roles"])
    why = f"marked by uvd dedup, pass {duplicates.name}"
    return {
        index: Decoded(index, {"key": rows["key"][index].as_py()}, [], why, Reason.NEAR_DUPLICATE)
        for index in np.flatnonzero(flags).tolist()
    }


def checked(codes: NDArray[np.uint16] | Exception, row: dict[str, Any], shard: Shard) -> NDArray[np.uint16]:
    """The ids of a sequence of an image shard.

    Raises:
        TokenizerError: if there are none; names shard and sequence.
    """
    if isinstance(codes, Exception):
        raise TokenizerError(f"image shard {shard.folder}/{shard.name}, sequence {row['key']}: {codes}") from codes
    return codes


def _rejecting(decoded: Iterable[Decoded], writer: TokenShardWriter) -> Iterator[Decoded]:
    for sequence in decoded:
        if sequence.error:
            writer.reject(sequence.index, sequence.row["key"], sequence.reason, sequence.error)
        else:
            yield sequence


def _decode(index: int, stored: StoredSequence) -> Decoded:
    try:
        return Decoded(index, stored.row, list(stored.iter_pictures()))
    except CodecError as error:
        return Decoded(index, stored.row, [], str(error) or "damaged picture")


def _decode_ahead(stored: Iterable[StoredSequence], threads: int, left_out: dict[int, Decoded]) -> Iterator[Decoded]:
    """Decodes in threads, in order, a bounded number of sequences ahead of the consumer."""
    ahead = SEQUENCES_AHEAD * max(1, threads // 2)
    with ThreadPoolExecutor(threads) as pool:
        window: deque[Future[Decoded]] = deque()
        for index, sequence in enumerate(stored):
            if index in left_out:
                window.append(Future())
                window[-1].set_result(left_out[index])
            else:
                window.append(pool.submit(_decode, index, sequence))
            if len(window) > ahead:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()

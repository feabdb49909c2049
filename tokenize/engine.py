"""The tokenizing engine: one image shard in, one committed token shard out.

Pictures are decoded ahead in threads (libjpeg-turbo and zlib release the GIL) while the model encodes; batches are
filled across sequences, and the tokenizer pads the last one to the fixed batch shape: ids do not depend on neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.image_shard import StoredSequence, read_image_shard
from uvd.manifests.token_shard import TokenCounts, TokenShardWriter
from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.sequences import IMAGE_SIZE, Reason

DECODE_THREADS = 2
SEQUENCES_AHEAD = 8
"""Decoded sequences that may wait for the model: 25 MB at 16 images each."""


class Encoder(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def batch_size(self) -> int: ...

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]: ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sequence whose pictures were decoded, or why they could not be."""

    index: int
    row: dict[str, Any]
    pictures: NDArray[np.uint8] | None
    error: str = ""


def tokenize_shard(
    dataset: Dataset,
    shard: Shard,
    tokenizer_name: str,
    encoder: Encoder,
    fingerprint: str,
    provenance: dict[str, Any],
) -> TokenCounts:
    """Encodes all sequences of an image shard and commits the token shard of the same number.

    A sequence with a damaged picture is rejected with its key and the decoder's message; the rest goes on.

    Raises:
        TarError: if the image shard's tar and manifest do not match.
    """
    source = shard.folder.partition("/")[2]
    with TokenShardWriter(dataset, tokenizer_name, source, shard.number) as writer:
        num_inputs = dataset.metadata(shard)["sequences"]
        good = _rejecting(_decode_ahead(read_image_shard(dataset, shard)), writer)
        for row, codes in encode_sequences(good, encoder):
            writer.add(row, codes)
        return writer.commit(num_inputs, fingerprint, provenance)


def _rejecting(decoded: Iterable[Decoded], writer: TokenShardWriter) -> Iterator[Decoded]:
    for sequence in decoded:
        if sequence.pictures is None:
            writer.reject(sequence.index, sequence.row["key"], Reason.UNREADABLE, sequence.error)
        else:
            yield sequence


def _decode(index: int, stored: StoredSequence) -> Decoded:
    try:
        return Decoded(index, stored.row, stored.pictures())
    except CodecError as error:
        return Decoded(index, stored.row, None, str(error))


def _decode_ahead(stored: Iterable[StoredSequence]) -> Iterator[Decoded]:
    """Decodes in threads, in order, at most `SEQUENCES_AHEAD` sequences ahead of the consumer."""
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        window: deque[Future[Decoded]] = deque()
        for index, sequence in enumerate(stored):
            window.append(pool.submit(_decode, index, sequence))
            if len(window) > SEQUENCES_AHEAD:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def encode_sequences(
    sequences: Iterable[Decoded], encoder: Encoder
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
    """Encodes sequences in full batches that run across their boundaries.

    Yields:
        (manifest row, codes `(num_images, 256)` uint16), in order.
    """
    batch = np.zeros((encoder.batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    filled = 0
    waiting: deque[tuple[dict[str, Any], NDArray[np.uint16]]] = deque()
    targets: list[tuple[NDArray[np.uint16], int]] = []
    for sequence in sequences:
        assert sequence.pictures is not None
        codes = np.zeros((len(sequence.pictures), TOKENS_PER_IMAGE), np.uint16)
        waiting.append((sequence.row, codes))
        for number, picture in enumerate(sequence.pictures):
            batch[filled] = picture
            targets.append((codes, number))
            filled += 1
            if filled == len(batch):
                _encode_into(encoder, batch, targets)
                filled = 0
                # All but the sequence being filled are complete; it is too if this picture was its last.
                while len(waiting) > 1 or (waiting and number == len(sequence.pictures) - 1):
                    yield waiting.popleft()
    if filled:
        _encode_into(encoder, batch[:filled], targets)
    yield from waiting


def _encode_into(encoder: Encoder, images: NDArray[np.uint8], targets: list[tuple[NDArray[np.uint16], int]]) -> None:
    for (codes, number), encoded in zip(targets, encoder.encode(images), strict=True):
        codes[number] = encoded
    targets.clear()

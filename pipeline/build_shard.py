"""One job of `uvd build`: an image shard and its token shard, in one go.

Workers import this module and what it imports, and not torch: that is 2 s and 200 MB for each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from socket import gethostname
from typing import Any

from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.image_shard import WrittenSequence
from uvd.manifests.token_shard import TokenCounts, TokenShardWriter
from uvd.pipeline.encoding_client import EncodingService, RemoteQueue
from uvd.pipeline.ingest import IngestJob, ingest_shard
from uvd.pipeline.progress import ShardReport
from uvd.pipeline.worker_logging import shard_context
from uvd.tokenize.encoded import encode_all
from uvd.tokenize.engine import checked, token_shard_fingerprint, tokenize_shard

_OF_IMAGES = ("inputs", "used", "rejected", "partial", "sequences", "images")


@dataclass(frozen=True, slots=True)
class BuildJob:
    """Everything a worker needs to make one image shard and its token shard.

    Attributes:
        tokens_fingerprint: of the tokenizer, as `dataset.json` records it.
    """

    ingest: IngestJob
    tokenizer: str
    tokens_fingerprint: str
    keep_pictures: bool

    @property
    def shard(self) -> int:
        return self.ingest.shard

    @property
    def fingerprint(self) -> str:
        return self.ingest.fingerprint

    @property
    def images(self) -> Shard:
        return Shard(f"sequences/{self.ingest.folder}", self.shard)


def build_shard(job: BuildJob, service: EncodingService) -> ShardReport:
    """Makes what is missing of the two shards; commits the image shard, then the token shard.

    Whatever dies meanwhile, the job may be run again: a shard that is committed is not made anew, and what is made
    again has the same bytes. An image shard of which no tar was kept is read from the inputs again.
    """
    dataset, queue = Dataset(job.ingest.dataset), RemoteQueue(service)
    with shard_context("build", job.ingest.folder, job.shard):
        if job.keep_pictures and dataset.storage.exists(job.images.manifest):
            return _tokens_alone(dataset, job, queue)
        return _both(dataset, job, queue)


def build_with(service: EncodingService) -> Callable[[BuildJob], ShardReport]:
    """`build_shard` with its service, as Ray's tasks want it."""

    def build(job: BuildJob) -> ShardReport:
        return build_shard(job, service)

    build.__qualname__ = build.__name__ = build_shard.__name__  # what Ray shows
    return build


class BuildActor:
    """Makes shards one after another, so that networks of a source are loaded once."""

    def __init__(self, service: EncodingService) -> None:
        self._service = service

    def run(self, job: BuildJob) -> ShardReport:
        return build_shard(job, self._service)


def _tokens_alone(dataset: Dataset, job: BuildJob, queue: RemoteQueue) -> ShardReport:
    start = time.perf_counter()
    images = dataset.metadata(job.images)
    sha = images["tar_sha256"]
    made_by = token_shard_fingerprint(job.tokens_fingerprint, sha)
    counts = tokenize_shard(dataset, job.images, job.tokenizer, queue, made_by, lambda: _provenance(job, queue, sha))
    seconds = {"total": time.perf_counter() - start, "wait": queue.waited_s}
    return ShardReport(
        job.shard, _counts({name: images[name] for name in _OF_IMAGES}, counts), {}, seconds, gethostname()
    )


def _both(dataset: Dataset, job: BuildJob, queue: RemoteQueue) -> ShardReport:
    with TokenShardWriter(dataset, job.tokenizer, job.ingest.folder, job.shard) as tokens:

        def encode(written: Iterator[WrittenSequence]) -> None:
            pictures = ((sequence.row, sequence.pictures()) for sequence in written)
            with closing(encode_all(pictures, queue)) as encoded:
                for row, codes in encoded:
                    tokens.add(row, checked(codes, row, job.images))

        report, images = ingest_shard(job.ingest, encode, keep_pictures=job.keep_pictures)
        sha = images.tar_sha256
        made_by = token_shard_fingerprint(job.tokens_fingerprint, sha)
        counts = tokens.commit(images.sequences, made_by, _provenance(job, queue, sha))
    seconds = {**report.seconds, "wait": queue.waited_s}
    return replace(report, counts=_counts(report.counts, counts), seconds=seconds)


def _counts(images: dict[str, int], tokens: TokenCounts) -> dict[str, int]:
    return {**images, "tokens": tokens.tokens, "unreadable": tokens.rejected, "token_bytes": tokens.bytes}


def _provenance(job: BuildJob, queue: RemoteQueue, sha: str) -> dict[str, Any]:
    return {**queue.made_by(), "image_tar_sha256": sha, "config_fingerprint": job.tokens_fingerprint}

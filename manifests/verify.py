"""Verification: does the dataset hold what its manifests say, and nothing else?

Shallow: every manifest has its tar and rejects, sizes and counts agree, nothing is orphaned, nothing is mixed. Deep:
sha256 of every tar, every picture decoded, every token sequence framed. Deep reads everything once, in threads.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import RETRY_PLAN, SHARD_FILE, Dataset, Shard
from uvd.manifests.image_shard import read_image_shard
from uvd.manifests.schema import REJECTS, SEQUENCES, TOKENS
from uvd.manifests.token_shard import decode_histogram, iter_token_shard
from uvd.manifests.tokens import CODEBOOK_SIZE, TokenFramingError, unframe

_BLOCK = 4 << 20


@dataclass
class Verification:
    """What was looked at and what was found."""

    shards: int = 0
    sequences: int = 0
    problems: list[str] = field(default_factory=list)


def verify(dataset: Dataset, *, deep: bool = False, advance: Callable[[], None] = lambda: None) -> Verification:
    """Checks a whole dataset.

    Args:
        deep: read and decode everything, not only manifests.
        advance: called after each shard, for progress.
    """
    result = Verification(problems=_undeclared(dataset))
    info = dataset.info()
    for section, expected_schema in (("sequences", SEQUENCES), ("tokens", TOKENS)):
        for name, entry in sorted(info[section].items()):
            folder = f"{section}/{name}"
            result.problems += _strangers(dataset, folder, entry)
            shards = dataset.shards(folder)

            def check(shard: Shard, schema: pa.Schema = expected_schema, entry: dict = entry) -> tuple[int, list[str]]:
                return _check_shard(dataset, shard, schema, entry, deep)

            with ThreadPoolExecutor(4) as pool:
                for sequences, problems in pool.map(check, shards):
                    result.shards += 1
                    result.sequences += sequences
                    result.problems += problems
                    advance()
    return result


def _undeclared(dataset: Dataset) -> list[str]:
    """Files and folders that `dataset.json` does not know."""
    info = dataset.info()
    known = {"": {"dataset.json", "sequences", "tokens", "runs", "dedup"}, "sequences": set(info["sequences"])}
    known["tokens"] = {name.partition("/")[0] for name in info["tokens"]}
    for tokenizer, source in dataset.token_folders():
        known.setdefault(f"tokens/{tokenizer}", set()).add(source)
    return [
        f"{folder}/{name}".removeprefix("/") + ": dataset.json does not know it"
        for folder, names in known.items()
        for name in sorted(set(dataset.storage.list(folder)) - names)
    ]


def _strangers(dataset: Dataset, folder: str, entry: dict[str, Any]) -> list[str]:
    """Files that belong to no committed shard; a plan of retries that is not the recorded one."""
    names = dataset.storage.list(folder)
    committed = {shard.name for shard in dataset.shards(folder)}
    problems = []
    if "retry_of" in entry:
        if RETRY_PLAN not in names:
            problems.append(f"{folder}/{RETRY_PLAN}: missing")
        elif hashlib.sha256(dataset.storage.read(f"{folder}/{RETRY_PLAN}")).hexdigest() != entry["retry_plan_sha256"]:
            problems.append(f"{folder}/{RETRY_PLAN}: not what dataset.json records")
        names = [name for name in names if name != RETRY_PLAN]
    for name in names:
        match = SHARD_FILE.match(name)
        if match is None:
            problems.append(f"{folder}/{name}: not a file of a dataset (left by a killed run?)")
        elif match[1] not in committed:
            problems.append(f"{folder}/{name}: orphan, its shard has no manifest")
    return problems


def _check_shard(
    dataset: Dataset, shard: Shard, schema: pa.Schema, entry: dict[str, Any], deep: bool
) -> tuple[int, list[str]]:
    place = f"{shard.folder}/{shard.name}"
    try:
        table, metadata = dataset.manifest(shard), dataset.metadata(shard)
        problems = list(_shallow(dataset, shard, table, metadata, schema, entry))
        if deep and not problems:
            problems += _deep(dataset, shard, metadata)
        return table.num_rows, [f"{place}: {problem}" for problem in problems]
    except (OSError, pa.ArrowException, zlib.error, ValueError, KeyError, TypeError) as error:
        return 0, [f"{place}: {type(error).__name__}: {error}"]


def _shallow(
    dataset: Dataset,
    shard: Shard,
    table: pa.Table,
    metadata: dict[str, Any],
    schema: pa.Schema,
    entry: dict[str, Any],
) -> Iterator[str]:
    if not table.schema.equals(schema):
        yield "the manifest has other columns than this version of uvd writes"
        return
    if metadata["config_fingerprint"] != entry["fingerprint"]:
        yield "made with other settings than dataset.json records (mixed)"
    if metadata["sequences"] != table.num_rows:
        yield f"manifest has {table.num_rows} rows, its metadata says {metadata['sequences']}"
    images = int(np.sum(table["num_images"].to_numpy())) if table.num_rows else 0
    if metadata["images"] != images:
        yield f"manifest has {images} images, its metadata says {metadata['images']}"
    tar = dataset.storage.filesystem.get_file_info(dataset.storage.full(shard.tar))
    if tar.size != metadata["tar_bytes"]:
        yield f"the tar has {tar.size} bytes, the manifest says {metadata['tar_bytes']}"
    rejects = dataset.rejects(shard)
    if not rejects.schema.equals(REJECTS):
        yield "the rejects have other columns than this version of uvd writes"
        return
    refused = len({row["input"] for row in rejects.to_pylist() if not row["partial"]})
    if refused != metadata["rejected"]:
        yield f"{refused} inputs are in the rejects, the manifest says {metadata['rejected']}"
    yield from _accounting(dataset, shard, table, metadata)
    ends = np.cumsum(np.column_stack([table["offset"].to_numpy(), table["length"].to_numpy()]), axis=1)
    if table.num_rows and ((ends[1:, 0] < ends[:-1, 1]).any() or ends[0, 0] < 0 or ends[-1, 1] > metadata["tar_bytes"]):
        yield "byte ranges of the sequences overlap, are out of order, or leave the tar"


def _accounting(dataset: Dataset, shard: Shard, table: pa.Table, metadata: dict[str, Any]) -> Iterator[str]:
    if metadata["kind"] == "sequences":
        used = len({index for row in table["inputs"].to_pylist() for index in row})
        if used != metadata["used"] or metadata["inputs"] != used + metadata["rejected"]:
            yield f"{metadata['inputs']} inputs are not {used} used and {metadata['rejected']} rejected"
        return
    image_shard = Shard(f"sequences/{metadata['folder']}", shard.number)
    if not dataset.storage.exists(image_shard.manifest):
        yield "its image shard is not there"
    elif dataset.metadata(image_shard)["tar_sha256"] != metadata["image_tar_sha256"]:
        yield "its image shard is not the one that was tokenized"
    if metadata["inputs"] != table.num_rows + metadata["rejected"]:
        yield f"{metadata['inputs']} sequences are not {table.num_rows} tokenized and {metadata['rejected']} rejected"
    if dataset.storage.exists(image_shard.manifest):
        there = dataset.metadata(image_shard)["sequences"]
        if there != metadata["inputs"]:
            yield f"{metadata['inputs']} sequences went in, its image shard has {there}"


def _deep(dataset: Dataset, shard: Shard, metadata: dict[str, Any]) -> Iterator[str]:
    digest = hashlib.sha256()
    with dataset.storage.stream(shard.tar) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != metadata["tar_sha256"]:
        yield "the tar's sha256 is not the manifest's: its bytes were changed"
    if metadata["kind"] == "tokens":
        yield from _deep_tokens(dataset, shard, metadata)
        return
    for stored in read_image_shard(dataset, shard):
        try:
            stored.pictures()
        except CodecError as error:
            yield f"{stored.key}: {error}"


def _deep_tokens(dataset: Dataset, shard: Shard, metadata: dict[str, Any]) -> Iterator[str]:
    histogram = np.zeros(CODEBOOK_SIZE, np.int64)
    for row, tokens in iter_token_shard(dataset, shard):
        try:
            codes = unframe(tokens)
        except TokenFramingError as error:
            yield f"{row['key']}: {error}"
            continue
        if len(codes) != row["num_images"]:
            yield f"{row['key']}: {len(codes)} images in the tokens, the manifest says {row['num_images']}"
        histogram += np.bincount(codes.reshape(-1), minlength=CODEBOOK_SIZE)
    if not np.array_equal(histogram, decode_histogram(metadata["histogram"])):
        yield "the tokens' histogram is not the manifest's"

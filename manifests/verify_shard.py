"""Checks of one shard: its manifest and rejects against themselves, its tar's length, `dataset.json` and its images."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.kept_pictures import says_kept
from uvd.manifests.schema import REJECTS, SEQUENCES, TOKENS, ManifestError, read_metadata
from uvd.manifests.summary import decode_summary, summarize_tables
from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.manifests.verify_content import check_content
from uvd.manifests.verify_findings import Finding, Kind
from uvd.sequences.reject import Reason
from uvd.sequences.visual_sequence import MAX_IMAGES

Problem = tuple[Kind, str]
MAX_MANIFEST_BYTES = 512 << 20
MAX_DECODED_BYTES = 4 << 30
_ATTEMPTS, _PAUSE_S = 3, 0.5
_SHOWN = 20
_NUMBERS = ("shard", "inputs", "rejected", "sequences", "images", "tar_bytes")
_TEXTS = ("kind", "folder", "tar_sha256", "fingerprint", "config_fingerprint")
_OF_KIND: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sequences": (("used",), ()),
    "tokens": (("tokens", "records"), ("histogram",)),
}
_KEY = re.compile(r"^(.+)-(\d{6,})-(\d{6,})$")


def check_shard(dataset: Dataset, shard: Shard, entry: Mapping[str, Any], deep: bool) -> tuple[int, int, list[Finding]]:
    """(rows, planned inputs, what is wrong) of a shard.

    Args:
        entry: of the shard's folder in `dataset.json`.
        deep: read and decode its content too, unless something was wrong before.
    """
    attempt = 1
    while True:
        try:
            rows, inputs, problems = _check(dataset, shard, entry, deep)
            break
        except OSError as error:  # the store or the disk; damage has other names
            if attempt == _ATTEMPTS:
                rows, inputs, problems = 0, 0, [(Kind.UNREACHABLE, f"{type(error).__name__}: {error}")]
                break
            time.sleep(_PAUSE_S * attempt)
            attempt += 1
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], (problems[-1][0], f"and {len(problems) - _SHOWN} more")]
    return rows, inputs, [Finding(shard.folder, shard.number, "", kind, detail) for kind, detail in problems]


def _check(
    dataset: Dataset, shard: Shard, entry: Mapping[str, Any], deep: bool
) -> tuple[int, int, list[tuple[Kind, str]]]:
    try:
        table = _read(dataset, shard.manifest)
    except (FileNotFoundError, ValueError) as error:
        return 0, 0, [(Kind.DAMAGED_MANIFEST, f"its manifest cannot be read: {error}")]
    section = shard.folder.partition("/")[0]
    try:
        metadata = read_metadata(table.schema, shard.manifest)
    except ValueError as error:
        known = isinstance(error, ManifestError)
        kind = Kind.FOREIGN_MANIFEST if known else Kind.DAMAGED_MANIFEST
        return 0, 0, [(kind, str(error) if known else f"its metadata is not JSON: {error}")]
    if problem := _foreign(shard, section, table, metadata):
        return 0, 0, [(Kind.FOREIGN_MANIFEST, problem)]
    problems = list(_shallow(dataset, shard, table, metadata, entry))
    if deep and not problems and says_kept(entry):
        problems += check_content(dataset, shard, table, metadata)
    return table.num_rows, metadata["inputs"], problems


def _read(dataset: Dataset, path: str) -> pa.Table:
    """A Parquet file, read whole before it is parsed, so that a store's errors and damage are told apart.

    Raises:
        ValueError: if it is damaged, or larger than any manifest.
    """
    size = dataset.storage.info(path).size or 0
    if size > MAX_MANIFEST_BYTES:
        raise ValueError(f"{size} bytes are over {MAX_MANIFEST_BYTES}")
    data = dataset.storage.read(path)
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        groups = range(file.metadata.num_row_groups)
        decoded = sum(file.metadata.row_group(number).total_byte_size for number in groups)
        if not 0 <= decoded <= MAX_DECODED_BYTES:
            raise ValueError(f"{decoded} decoded bytes are over {MAX_DECODED_BYTES}")
        table = file.read()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error
    return table


def _foreign(shard: Shard, section: str, table: pa.Table, metadata: Any) -> str:
    """Why a Parquet file is not this shard's manifest; empty if it is."""
    if not isinstance(metadata, dict):
        return "its metadata is not that of a manifest"
    numbers, texts = _OF_KIND[section]
    for name in (*_NUMBERS, *numbers):
        if not isinstance(metadata.get(name), int):
            return f"its metadata has no number {name}"
    for name in (*_TEXTS, *texts):
        if not isinstance(metadata.get(name), str):
            return f"its metadata has no {name}"
    folder = shard.folder.rpartition("/")[2]
    named = (metadata["kind"], metadata["folder"], metadata["shard"])
    if named != (section, folder, shard.number):
        return f"it is the manifest of shard {metadata['shard']} of {metadata['kind']} {metadata['folder']}"
    if not table.schema.equals(SEQUENCES if section == "sequences" else TOKENS):
        return "the manifest has other columns than this version of uvd writes"
    return ""


def _shallow(
    dataset: Dataset, shard: Shard, table: pa.Table, metadata: dict[str, Any], entry: Mapping[str, Any]
) -> Iterator[Problem]:
    if metadata["config_fingerprint"] != entry["fingerprint"]:
        yield Kind.MIXED_FINGERPRINT, "made with other settings than dataset.json records (mixed)"
    yield from _counts(table, metadata)
    yield from _keys(shard, table)
    if dataset.base is not None and (problem := _not_of_base(dataset, dataset.base, shard, table, metadata)):
        yield Kind.BASE, problem
        return
    if says_kept(entry):
        yield from _tar(dataset, shard, metadata)
    yield from _rejects(dataset, shard, table, metadata)
    if metadata["kind"] == "sequences":
        used = len(pc.unique(pc.list_flatten(table["inputs"])))
        if used != metadata["used"] or metadata["inputs"] != used + metadata["rejected"]:
            detail = f"{metadata['inputs']} inputs are not {used} used and {metadata['rejected']} rejected"
            yield Kind.CONSERVATION, detail
    else:
        yield from _against_images(dataset, table, metadata)


def _tar(dataset: Dataset, shard: Shard, metadata: dict[str, Any]) -> Iterator[Problem]:
    tar = dataset.tars.info(shard.tar)
    if tar.type != fs.FileType.File:
        yield Kind.MISSING_TAR, f"the tar is missing, the manifest says {metadata['tar_bytes']} bytes"
    elif tar.size != metadata["tar_bytes"]:
        yield Kind.TRUNCATED, f"the tar has {tar.size} bytes, the manifest says {metadata['tar_bytes']}"


def _counts(table: pa.Table, metadata: dict[str, Any]) -> Iterator[Problem]:
    """Numbers of rows, images and tokens, and that byte ranges lie in order within the tar."""
    images = table["num_images"].to_numpy().astype(np.int64)
    if metadata["sequences"] != table.num_rows:
        yield Kind.COUNTS, f"manifest has {table.num_rows} rows, its metadata says {metadata['sequences']}"
    if metadata["images"] != images.sum():
        yield Kind.COUNTS, f"manifest has {images.sum()} images, its metadata says {metadata['images']}"
    if ((images < 1) | (images > MAX_IMAGES)).any():
        yield Kind.COUNTS, f"a sequence does not have 1 to {MAX_IMAGES} images"
    lists = (
        ("roles", "origins", "indices", "widths", "heights", "phashes", "digests")
        if "roles" in table.column_names
        else ()
    )
    for name in lists:
        if name in table.column_names and (pc.list_value_length(table[name]).to_numpy() != images).any():
            yield Kind.COUNTS, f"num_images and the number of {name} differ"
    if "num_tokens" in table.column_names:
        tokens = table["num_tokens"].to_numpy().astype(np.int64)
        if (tokens != TOKENS_PER_IMAGE * images + 2).any():
            yield Kind.COUNTS, f"num_tokens is not {TOKENS_PER_IMAGE} an image and two around them"
        if metadata["tokens"] != tokens.sum():
            yield Kind.COUNTS, f"manifest has {tokens.sum()} tokens, its metadata says {metadata['tokens']}"
        if (table["length"].to_numpy() != 2 * tokens).any():
            yield Kind.COUNTS, "a byte range is not two bytes a token"
    starts = table["offset"].to_numpy()
    ends = starts + table["length"].to_numpy()
    outside = table.num_rows and (starts[0] < 0 or ends[-1] > metadata["tar_bytes"])
    if outside or (starts[1:] < ends[:-1]).any() or (ends < starts).any():
        yield Kind.COUNTS, "byte ranges of the sequences overlap, are out of order, or leave the tar"


def _keys(shard: Shard, table: pa.Table) -> Iterator[Problem]:
    """Keys are FOLDER-SHARD-INDEX by increasing index, so no two of a dataset are equal."""
    folder, last = shard.folder.rpartition("/")[2], -1
    for key in table["key"].to_pylist():
        match = _KEY.match(key)
        if match is None or (match[1], match[2]) != (folder, shard.name) or f"{int(match[3]):06d}" != match[3]:
            yield Kind.KEYS, f"key {key!r} is not one of this shard"
            return
        if int(match[3]) <= last:
            yield Kind.KEYS, f"key {key!r} comes twice or out of order"
            return
        last = int(match[3])


def _rejects(dataset: Dataset, shard: Shard, table: pa.Table, metadata: dict[str, Any]) -> Iterator[Problem]:
    try:
        rejects = _read(dataset, shard.rejects)
    except (FileNotFoundError, ValueError) as error:
        yield Kind.REJECTS, f"the rejects cannot be read: {error}"
        return
    if not rejects.schema.equals(REJECTS):
        yield Kind.REJECTS, "the rejects have other columns than this version of uvd writes"
        return
    known = {str(reason) for reason in Reason}
    inputs = set()
    for row in rejects.to_pylist():
        if (row["folder"], row["shard"]) != (metadata["folder"], metadata["shard"]):
            yield Kind.REJECTS, f"the rejects are those of {row['folder']}/{row['shard']:06d}"
            return
        if row["reason"] not in known or not 0 <= row["input"] < metadata["inputs"]:
            yield Kind.REJECTS, f"no input {row['input']} can be rejected for {row['reason']!r}"
        inputs |= {row["input"]} if not row["partial"] else set()
    if len(inputs) != metadata["rejected"]:
        detail = f"{len(inputs)} inputs are in the rejects, the manifest says {metadata['rejected']}"
        yield Kind.CONSERVATION, detail
    if "summary" in metadata:
        try:
            same = decode_summary(metadata["summary"]) == summarize_tables(table, rejects)
        except (ValueError, TypeError):
            same = False
        if not same:
            yield Kind.SUMMARY, "the summary in the manifest is not that of its rows and rejects"


def _not_of_base(dataset: Dataset, base: Dataset, shard: Shard, table: pa.Table, metadata: dict[str, Any]) -> str:
    """What keeps a view's shard from being some rows of its base's; empty if nothing does."""
    try:
        dataset.check_base(shard, metadata)
    except DatasetError as error:
        return str(error)
    rows = base.manifest(shard)
    rows = rows.filter(pc.is_in(rows["key"], value_set=table["key"].combine_chunks()))
    return "" if rows.equals(table) else f"its rows are not rows of {base.uri}"


def _against_images(dataset: Dataset, table: pa.Table, metadata: dict[str, Any]) -> Iterator[Problem]:
    if metadata["inputs"] != table.num_rows + metadata["rejected"]:
        counts = f"{table.num_rows} tokenized and {metadata['rejected']} rejected"
        yield Kind.CONSERVATION, f"{metadata['inputs']} sequences are not {counts}"
    if "imported" in metadata:
        return  # the pictures were never here
    image_shard = Shard(f"sequences/{metadata['folder']}", metadata["shard"])
    if not dataset.storage.exists(image_shard.manifest):
        yield Kind.OTHER_IMAGES, "its image shard is not there"
        return
    try:
        images = dataset.metadata(image_shard)
        sha, there = images["tar_sha256"], images["sequences"]
    except (ValueError, KeyError, TypeError, OSError):
        return  # the image shard's own finding
    if sha != metadata.get("image_tar_sha256"):
        yield Kind.OTHER_IMAGES, "its image shard is not the one that was tokenized"
    if there != metadata["inputs"]:
        yield Kind.OTHER_IMAGES, f"{metadata['inputs']} sequences went in, its image shard has {there}"

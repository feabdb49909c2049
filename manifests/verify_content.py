"""Deep checks of one shard: every byte of its tar hashed, every member looked at, pictures and tokens decoded.

The tar is read once: its sha256 is taken of the same bytes that its members come from.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uvd.manifests.codec import CodecError, decode, digest
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.tar import BLOCK, Member, TarError, header, iter_members
from uvd.manifests.token_shard import TOKEN_BYTES, decode_histogram, iter_rows
from uvd.manifests.tokens import CODEBOOK_SIZE, TokenFramingError, unframe
from uvd.manifests.verify_findings import Kind
from uvd.sequences.phash import phash

Problem = tuple[Kind, str]
_READ_BYTES = 4 << 20
_COPIED = ("key", "source", "dataset", "layout", "split", "num_images", "roles")


class HashedStream(io.RawIOBase):
    """Hands on what another stream gives, and takes its sha256."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    def finish(self) -> str:
        """sha256 in hex of the whole, of which the rest is read now."""
        while self.read(_READ_BYTES):
            pass
        return self._digest.hexdigest()


def check_content(dataset: Dataset, shard: Shard, table: pa.Table, metadata: dict[str, Any]) -> list[Problem]:
    """What is wrong with a tar whose manifest is sound.

    Raises:
        OSError: if the store does not give it.
    """
    images = metadata["kind"] == "sequences"
    problems: list[Problem] = []
    with dataset.tars.stream(shard.tar) as stream:
        hashed = HashedStream(stream)
        if dataset.base is None:
            members = iter_members(cast(BinaryIO, hashed))
            found = _images(table, members) if images else _records(shard, table, metadata, members)
            problems += _until_broken(found)
        if hashed.finish() != metadata["tar_sha256"]:
            problems.insert(0, (Kind.CHECKSUM, "the tar's sha256 is not the manifest's: its bytes were changed"))
    if dataset.base is not None and not problems:
        found = _images_of_view(dataset, shard, table) if images else _tokens_of_view(dataset, shard, table, metadata)
        problems += _until_broken(found)
    if not images and "imported" not in metadata:
        problems += _copied_rows(dataset, table, metadata)
    return problems


def _until_broken(found: Iterator[Problem]) -> Iterator[Problem]:
    try:
        yield from found
    except TarError as error:
        yield Kind.MEMBERS, str(error)


def _images(table: pa.Table, members: Iterator[Member]) -> Iterator[Problem]:
    """The members of an image shard against its rows."""
    for row in table.to_pylist():
        yield from _sequence(row, [next(members, None) for _ in range(row["num_images"] + 1)])
    if (more := next(members, None)) is not None:
        yield Kind.MEMBERS, f"{more.name!r} is in the tar and not in the manifest"


def _images_of_view(dataset: Dataset, shard: Shard, table: pa.Table) -> Iterator[Problem]:
    for row in table.to_pylist():
        data = dataset.tars.read_range(shard.tar, row["offset"], row["length"])
        members = list(iter_members(io.BytesIO(data), span=True))
        if len(members) != row["num_images"] + 1:
            yield Kind.MEMBERS, f"{row['key']}: {len(members)} files for {row['num_images']} images"
            continue
        moved: list[Member | None] = [Member(m.name, m.offset + row["offset"], m.data, m.header) for m in members]
        yield from _sequence(row, moved)


def _sequence(row: dict[str, Any], members: list[Member | None]) -> Iterator[Problem]:
    """One sequence: names in order, headers as they are written, its place, pictures, JSON."""
    key, images = row["key"], row["num_images"]
    present = [member for member in members if member is not None]
    if len(present) != len(members):
        yield Kind.MEMBERS, f"{key}: the tar ends before its {images} pictures and their JSON"
        return
    yield from _headers(present)
    names = [member.name for member in present]
    stems = [f"{key}.{index:02d}" for index in range(images)]
    wrong = [name for name, stem in zip(names, stems, strict=False) if name not in (f"{stem}.jpg", f"{stem}.png")]
    if wrong or names[-1] != f"{key}.json":
        yield Kind.MEMBERS, f"{key}: found {(wrong or names[-1:])[0]!r} in its place"
        return
    end = present[-1].offset + len(present[-1].data)
    end += -end % BLOCK
    if (present[0].offset - BLOCK, end) != (row["offset"], row["offset"] + row["length"]):
        yield Kind.MEMBERS, f"{key}: its files are not where the manifest says"
    described = {"source": row["source"], "layout": row["layout"], "roles": row["roles"], "split": row["split"]}
    if _json(present[-1].data) != described:
        yield Kind.MEMBERS, f"{key}: its JSON does not say what the manifest says"
    for member, expected, stored in zip(present[:-1], row["phashes"], row["digests"], strict=True):
        if digest(member.data) != stored:
            yield Kind.PIXELS, f"{member.name}: its digest is not the manifest's"
        extension = member.name.rpartition(".")[2]
        try:
            pixels = decode(member.data, extension)
        except CodecError as error:
            yield Kind.PIXELS, f"{member.name}: {error}"
            continue
        # A JPEG's pixels are not those that were hashed; a PNG's are.
        if extension == "png" and phash(pixels) != expected:
            yield Kind.PIXELS, f"{member.name}: its perceptual hash is not the manifest's"


def _headers(members: Iterable[Member]) -> Iterator[Problem]:
    for member in members:
        if member.header != header(member.name, len(member.data)):
            yield Kind.MEMBERS, f"{member.name}: time, owner, mode or form of its header are not those of a shard"


def _json(data: bytes) -> Any:
    """The value, or None for what is no JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def _records(shard: Shard, table: pa.Table, metadata: dict[str, Any], members: Iterator[Member]) -> Iterator[Problem]:
    """The records of a token shard against its rows: names, places, offsets, framing, histogram."""
    histogram, number = np.zeros(CODEBOOK_SIZE, np.int64), 0
    source = shard.folder.rpartition("/")[2]
    for record, group in groupby(table.to_pylist(), key=lambda row: row["record"]):
        rows, expected = list(group), f"{source}-{shard.name}-r{number:06d}"
        number += 1
        pair = [next(members, None), next(members, None)]
        names = [member.name if member is not None else "nothing" for member in pair]
        if record != expected or names != [f"{expected}.tokens.npy", f"{expected}.json"]:
            yield Kind.MEMBERS, f"found {names[0]!r} and {names[1]!r}, the manifest's record {record!r} is {expected!r}"
            return
        present = [member for member in pair if member is not None]
        yield from _headers(present)
        yield from _record(rows, present, histogram)
    if (more := next(members, None)) is not None:
        yield Kind.MEMBERS, f"{more.name!r} is in the tar and not in the manifest"
    if number != metadata["records"]:
        yield Kind.COUNTS, f"{number} records, the manifest says {metadata['records']}"
    yield from _histogram(histogram, metadata)


def _record(rows: list[dict[str, Any]], pair: list[Member], histogram: NDArray[np.int64]) -> Iterator[Problem]:
    array, described = pair
    try:
        tokens = np.lib.format.read_array(io.BytesIO(array.data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        yield Kind.TOKENS, f"{array.name}: {error}"
        return
    if tokens.dtype != np.dtype("<u2") or tokens.ndim != 1:
        yield Kind.TOKENS, f"{array.name}: {tokens.dtype} with {tokens.ndim} axes, not little-endian uint16 with one"
        return
    first = array.offset + len(array.data) - tokens.nbytes
    starts = np.cumsum([0] + [row["num_tokens"] for row in rows]).tolist()
    if _json(described.data) != {"offsets": starts} or starts[-1] != len(tokens):
        yield Kind.TOKENS, f"{described.name}: its offsets are not those of the manifest's sequences"
        return
    for row, start, end in zip(rows, starts, starts[1:], strict=False):
        if row["offset"] != first + start * TOKEN_BYTES:
            yield Kind.TOKENS, f"{row['key']}: its tokens are not where the manifest says"
        yield from _framed(row, tokens[start:end], histogram)


def _framed(row: dict[str, Any], tokens: NDArray[np.uint16], histogram: NDArray[np.int64]) -> Iterator[Problem]:
    """One sequence's tokens; adds its codes to the histogram."""
    try:
        codes = unframe(tokens)
    except TokenFramingError as error:
        yield Kind.TOKENS, f"{row['key']}: {error}"
        return
    if len(codes) != row["num_images"]:
        yield Kind.TOKENS, f"{row['key']}: {len(codes)} images in the tokens, the manifest says {row['num_images']}"
    histogram += np.bincount(codes.reshape(-1), minlength=CODEBOOK_SIZE)


def _tokens_of_view(dataset: Dataset, shard: Shard, table: pa.Table, metadata: dict[str, Any]) -> Iterator[Problem]:
    histogram = np.zeros(CODEBOOK_SIZE, np.int64)
    for row, tokens in iter_rows(dataset, shard, table):
        yield from _framed(row, tokens, histogram)
    yield from _histogram(histogram, metadata)


def _histogram(counted: NDArray[np.int64], metadata: dict[str, Any]) -> Iterator[Problem]:
    try:
        same = np.array_equal(counted, decode_histogram(metadata["histogram"]))
    except (ValueError, TypeError):
        same = False
    if not same:
        yield Kind.HISTOGRAM, "the tokens' histogram is not the manifest's"


def _copied_rows(dataset: Dataset, table: pa.Table, metadata: dict[str, Any]) -> Iterator[Problem]:
    """What token rows say of their sequences against the image shard's rows."""
    image_shard = Shard(f"sequences/{metadata['folder']}", metadata["shard"])
    try:
        images = dataset.manifest(image_shard, list(_COPIED)).to_pylist()
    except (OSError, ValueError, KeyError):
        return  # the image shard's own finding
    known = {row["key"]: row for row in images}
    for row in table.select(list(_COPIED)).to_pylist():
        if known.get(row["key"]) != row:
            yield Kind.KEYS, f"{row['key']}: its image shard says something else of this sequence"
            return

"""Image shards: sequences of pictures in a tar, their manifest and the rejects, committed in that order.

The manifest is renamed into place last and is the only proof that the shard exists. The accounting is checked before:
every planned input is in a sequence or in the rejects, or nothing is committed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from uvd import __version__
from uvd.manifests import codec, schema
from uvd.manifests.dataset import ConservationError, Dataset, Shard
from uvd.manifests.kept_pictures import pictures_kept, why_not_kept
from uvd.manifests.summary import encode_summary, summarize
from uvd.manifests.tar import Member, TarError, TarWriter, iter_members
from uvd.sequences import Reject, VisualSequence
from uvd.sequences.phash import phash


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """What became of a shard's planned inputs."""

    inputs: int
    used: int
    rejected: int
    partial: int
    sequences: int
    images: int
    bytes: int
    tar_sha256: str = ""


@dataclass(frozen=True, slots=True)
class WrittenSequence:
    """One sequence that was written: its manifest row and its pictures.

    Attributes:
        encoded: the picture's bytes if decoding them gives other pixels (JPEG), else nothing.
    """

    row: dict[str, Any]
    sequence: VisualSequence
    encoded: tuple[bytes | None, ...]

    def pictures(self) -> list[NDArray[np.uint8]]:
        """The pictures, each `(256, 256, 3)` uint8 RGB, as who reads the shard gets them."""
        return [
            picture.pixels if data is None else codec.decode(data, "jpg")
            for picture, data in zip(self.sequence.pictures, self.encoded, strict=True)
        ]


class _Nowhere(io.RawIOBase):
    """In place of a tar that is not kept: takes what is written, for its length and sha256 alone."""

    def write(self, data: Any) -> int:
        return len(data)

    @property
    def stream(self) -> BinaryIO:
        return cast(BinaryIO, self)

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


class ImageShardWriter:
    """Writes one image shard; use as a context manager, which leaves nothing behind unless `commit` was reached.

    Args:
        keep_pictures: write the tar; without, only manifest and rejects appear, and say what they would say with it.
    """

    def __init__(
        self,
        dataset: Dataset,
        source: str,
        shard: int,
        *,
        lossless: bool = False,
        kind: str = "",
        keep_pictures: bool = True,
    ) -> None:
        self._dataset = dataset
        self._source = source
        self._kind = kind or source
        self._shard = Shard(f"sequences/{source}", shard)
        self._lossless = lossless
        self._pending = dataset.storage.create(self._shard.tar) if keep_pictures else _Nowhere()
        self._tar = TarWriter(self._pending.stream)
        self._rows: list[dict[str, Any]] = []
        self._used: set[int] = set()

    def __enter__(self) -> ImageShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pending.abort()

    def add(self, sequence: VisualSequence) -> WrittenSequence:
        """Encodes and appends one sequence; returns it as it was written, with its key."""
        key = f"{self._source}-{self._shard.name}-{len(self._rows):06d}"
        sequence = replace(sequence, key=key, source=self._source)
        start = self._tar.bytes
        digests, encoded = list[int](), list[bytes | None]()
        for index, picture in enumerate(sequence.pictures):
            lossless = picture.drawn or self._lossless
            data = codec.encode_png(picture.pixels) if lossless else codec.encode_jpeg(picture.pixels)
            self._tar.add(f"{key}.{index:02d}.{'png' if lossless else 'jpg'}", data)
            digests.append(codec.digest(data))
            encoded.append(None if lossless else data)
        description = {
            "source": self._kind,
            "layout": sequence.layout,
            "roles": sequence.roles,
            "split": sequence.split,
        }
        self._tar.add(f"{key}.json", json.dumps(description, sort_keys=True).encode())
        self._rows.append(self._row(sequence, digests, start))
        self._used |= sequence.inputs
        return WrittenSequence(self._rows[-1], sequence, tuple(encoded))

    def _row(self, sequence: VisualSequence, digests: list[int], start: int) -> dict[str, Any]:
        pictures = sequence.pictures
        return {
            "key": sequence.key,
            "source": self._kind,
            "dataset": sequence.dataset,
            "layout": sequence.layout,
            "split": sequence.split,
            "num_images": len(pictures),
            "roles": list(sequence.roles),
            "origins": [schema.storable(picture.origin) for picture in pictures],
            "indices": [picture.index for picture in pictures],
            "widths": [picture.size[0] for picture in pictures],
            "heights": [picture.size[1] for picture in pictures],
            "phashes": [phash(picture.pixels) for picture in pictures],
            "digests": digests,
            "inputs": sorted(sequence.inputs),
            "offset": start,
            "length": self._tar.bytes - start,
        }

    def commit(
        self, num_inputs: int, rejects: list[Reject], fingerprint: str, config_fingerprint: str = ""
    ) -> ShardCounts:
        """Checks the accounting, then makes tar, rejects and manifest appear, in that order.

        Args:
            num_inputs: planned inputs of the shard.
            rejects: what was refused; an input that was used in part may be named too.
            fingerprint: of config, uvd version and inputs of this shard.
            config_fingerprint: the part of it that `dataset.json` records.

        Raises:
            ConservationError: unless inputs = used + rejected; nothing is written then.
        """
        rejected = {reject.input for reject in rejects} - self._used
        self._check(num_inputs, rejected)
        sha = self._tar.finish()
        counts = ShardCounts(
            inputs=num_inputs,
            used=len(self._used),
            rejected=len(rejected),
            partial=len({reject.input for reject in rejects} & self._used),
            sequences=len(self._rows),
            images=sum(row["num_images"] for row in self._rows),
            bytes=self._tar.bytes,
            tar_sha256=sha,
        )
        refused = schema.reject_rows(rejects, self._shard.number, self._source, self._used)
        metadata = {
            "kind": "sequences",
            "folder": self._source,
            "shard": self._shard.number,
            "inputs": counts.inputs,
            "used": counts.used,
            "rejected": counts.rejected,
            "partial": counts.partial,
            "sequences": counts.sequences,
            "images": counts.images,
            "tar_bytes": counts.bytes,
            "tar_sha256": sha,
            "fingerprint": fingerprint,
            "config_fingerprint": config_fingerprint,
            "uvd_version": __version__,
            "summary": encode_summary(summarize(self._rows, refused)),
        }
        manifest = schema.to_parquet(self._rows, schema.SEQUENCES, metadata)
        self._pending.commit()
        self._dataset.storage.put(self._shard.rejects, schema.rejects_to_parquet(refused, self._source))
        self._dataset.storage.put(self._shard.manifest, manifest)
        return counts

    def _check(self, num_inputs: int, rejected: set[int]) -> None:
        seen = self._used | rejected
        planned = set(range(num_inputs))
        if seen != planned:
            lost, foreign = sorted(planned - seen)[:5], sorted(seen - planned)[:5]
            raise ConservationError(
                f"shard {self._source}/{self._shard.name}: {len(seen)} of {num_inputs} inputs accounted for; "
                f"neither used nor rejected: {lost}; not planned: {foreign}"
            )


@dataclass(frozen=True, slots=True)
class StoredSequence:
    """One sequence as it lies in a shard: manifest row and encoded pictures."""

    row: dict[str, Any]
    members: tuple[Member, ...]

    @property
    def key(self) -> str:
        return self.row["key"]

    def pictures(self) -> NDArray[np.uint8]:
        """All pictures, decoded, `(n, 256, 256, 3)` uint8 RGB.

        Raises:
            CodecError: if one is damaged.
        """
        return np.stack(list(self.iter_pictures()))

    def iter_pictures(self) -> Iterator[NDArray[np.uint8]]:
        """The same, one `(256, 256, 3)` picture after another."""
        for member in self.members:
            yield codec.decode(member.data, member.name.rpartition(".")[2])


def read_image_shard(dataset: Dataset, shard: Shard) -> Iterator[StoredSequence]:
    """Streams a shard's sequences in order, reading the tar once; of a view, the ranges of bytes that it names.

    Raises:
        TarError: if tar and manifest do not say the same.
        PicturesNotKeptError: if the source's pictures were not kept.
    """
    rows = dataset.manifest(shard).to_pylist()
    if dataset.base is not None:
        yield from (read_sequence(dataset, shard, row) for row in rows)
        return
    with _there(dataset, shard), dataset.storage.stream(shard.tar) as stream:
        members = iter_members(stream)
        for row in rows:
            yield _match(row, [next(members, None) for _ in range(row["num_images"] + 1)])


def read_sequence(dataset: Dataset, shard: Shard, row: dict[str, Any]) -> StoredSequence:
    """Reads one sequence by its manifest row: one range of bytes.

    Raises:
        TarError: if tar and manifest do not say the same.
        PicturesNotKeptError: if the source's pictures were not kept.
    """
    with _there(dataset, shard):
        data = dataset.tars.read_range(shard.tar, row["offset"], row["length"])
    return _match(row, list(iter_members(io.BytesIO(data), span=True)))


@contextmanager
def _there(dataset: Dataset, shard: Shard) -> Iterator[None]:
    """Tells a tar that is lost from one that there never was."""
    try:
        yield
    except FileNotFoundError as error:
        source = shard.folder.partition("/")[2]
        if pictures_kept(dataset, source):
            raise
        raise why_not_kept(source) from error


def _match(row: dict[str, Any], members: list[Member | None]) -> StoredSequence:
    pictures = [member for member in members if member is not None and not member.name.endswith(".json")]
    if len(members) != row["num_images"] + 1 or len(pictures) != row["num_images"]:
        raise TarError(f"{row['key']}: the tar does not hold its {row['num_images']} pictures and their JSON")
    for index, member in enumerate(pictures):
        if member.name.rpartition(".")[0] != f"{row['key']}.{index:02d}":
            raise TarError(f"{row['key']}: found {member.name!r} in place of picture {index:02d}")
    return StoredSequence(row, tuple(pictures))

"""Near and exact duplicates over a whole dataset, by the 64-bit hashes in its manifests: marked, never deleted.

In the order of sources, shards and rows an image joins the group of the first representative within `bits` bits of it,
or else becomes one itself. So every marked image is within `bits` of the one that stays, and no two that stay are.
Against evaluation sets (decontamination) it is simpler: an image is marked if it is within `bits` of any of theirs.
Pairs are found exactly (`uvd.manifests.near_hashes`); equal hashes count once, so a hash that 100,000 flat images share
costs nothing. Exact duplicates are found the same way, by digests equal in all bits; a perceptual hash must be equal
too, for among billions of pictures two digests of 64 bits may agree by chance. Memory is bounded by the settings:
hashes lie in files, what does not fit is parted on disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd import __version__
from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.distinct import distinct
from uvd.manifests.duplicate_groups import Groups, group_hashes
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.near_hashes import CHUNK, cheapest_choices, near_pairs
from uvd.manifests.schema import METADATA_KEY, read_metadata
from uvd.sequences.object_stores import plain_uri

MAX_BITS = 8
"""Beyond it, unrelated photos begin to meet."""
FOLDER = "dedup"
MARKS = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("image", pa.int16(), False),  # index of the picture in its sequence
        pa.field("origin", pa.string(), False),
        pa.field("group", pa.int64(), False),  # in the order of the representatives
        pa.field("distance", pa.int8(), False),  # differing bits to the representative
        pa.field("exact", pa.bool_(), False),  # the very bytes of the representative, by digest and perceptual hash
        pa.field(
            "representative", pa.string(), False
        ),  # key of the image that stays, after `URI#` if of another dataset
        pa.field("representative_image", pa.int16(), False),
    ]
)
"""One row for each image of a group of two or more, the representative too: its key and image name itself. Against
evaluation sets one row for each image near one of theirs, which is the representative."""
_LARGEST = 5
_SAMPLE = 50_000
_AHEAD = 64
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class DedupSettings:
    """What is compared, and with which means.

    Attributes:
        bits: differing bits up to which two pictures are near-duplicates, 0 to 8.
        exact: marks equal bytes alone, whatever `bits` is.
        sources: names below `sequences/`; all if empty.
        roles: pictures that take part.
        against: other datasets, paths or URIs: marks what is near a picture of theirs, and nothing else.
        memory_gb: of arrays; the hashes themselves, 24 bytes each in mapped files, and the pairs and marks that are
            found, 50 bytes each, come on top.
        threads: all cores by default.
    """

    bits: int = 3
    exact: bool = False
    sources: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("image",)
    against: tuple[str, ...] = ()
    memory_gb: float = 4.0
    threads: int | None = None

    @property
    def column(self) -> str:
        """Of the manifests, whose hashes are compared."""
        return "digests" if self.exact else "phashes"

    @property
    def differing(self) -> int:
        """Bits of those hashes."""
        return 0 if self.exact else self.bits

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    @property
    def name(self) -> str:
        """Of the pass: its sources, and what they are held against."""
        own = ("+".join(sorted(set(self.sources))) or "all") + ("-exact" if self.exact else "")
        others = "+".join(Path(plain_uri(uri)).name for uri in self.against)
        return f"{own}-against-{others}" if others else own


@dataclass(frozen=True, slots=True)
class DedupSummary:
    """What a pass found.

    Attributes:
        images: that were compared, without those of evaluation sets.
        hashes: different ones, with those of evaluation sets.
        groups: of two images or more; against evaluation sets, their pictures that have a near one.
        marked: images that are not their group's representative.
        equal: those of them with the representative's very perceptual hash.
        exact: those of them with its very bytes.
        largest: (representative's key, images) of the largest groups.
        path: of the file, relative to the dataset.
    """

    images: int
    hashes: int
    groups: int
    marked: int
    equal: int
    exact: int
    largest: tuple[tuple[str, int], ...]
    path: str


@dataclass(frozen=True, slots=True)
class _Scanned:
    """A shard whose images are compared: those numbered [start, stop)."""

    dataset: Dataset
    prefix: str
    shard: Shard
    start: int
    stop: int


def find_duplicates(dataset: Dataset, settings: DedupSettings) -> DedupSummary:
    """Compares all pictures and writes `dedup/NAME.parquet`, whole or not at all; equal manifests give an equal file.

    Raises:
        DatasetError: for unknown sources or roles, bits out of range, or a dataset without images.
    """
    sources = _check(dataset, settings)
    others = [Dataset.existing(uri) for uri in settings.against]
    before = manifests_fingerprint(dataset, sources)
    dataset.storage.sweep(FOLDER)
    with tempfile.TemporaryDirectory(prefix="uvd-dedup-") as name:
        spill = Path(name)
        stream = spill / "stream.u64"
        known = _collect(others, [other.sources() for other in others], settings, stream, 0)
        boundary = known[-1].stop if known else 0
        scanned = _collect([dataset], [sources], settings, stream, boundary)
        images = scanned[-1].stop if scanned else boundary
        if images == boundary:
            raise DatasetError(f"no picture in {dataset.uri} has one of the roles {', '.join(settings.roles)}")
        found = distinct(_pieces(stream), memory=settings.memory_bytes, spill=spill)
        sample = found.hashes[np.linspace(0, len(found.hashes) - 1, _SAMPLE).astype(np.int64)]
        low, high = near_pairs(
            found.hashes,
            cheapest_choices(settings.differing, np.unique(sample), len(found.hashes)) if settings.differing else [],
            settings.differing,
            memory=settings.memory_bytes,
            threads=settings.threads or _cores(),
            spill=spill,
        )
        groups = group_hashes(found, low, high, boundary if others else None)
        different = len(found.hashes)
        del found, low, high
        with _connect(spill, settings) as database:
            _load_marks(database, [*known, *scanned], _pieces(stream), groups, settings)
            metadata = {
                "kind": "dedup",
                "bits": settings.differing,
                "exact": settings.exact,
                "sources": sources,
                "roles": sorted(settings.roles),
                "against": [[other.uri, manifests_fingerprint(other, other.sources())] for other in others],
                "manifests": before,
                "uvd_version": __version__,
            }
            path = f"{FOLDER}/{settings.name}.parquet"
            _write(database, dataset, path, metadata, boundary)
            return _summary(database, images - boundary, different, boundary, path)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _check(dataset: Dataset, settings: DedupSettings) -> list[str]:
    if not 0 <= settings.bits <= MAX_BITS:
        raise DatasetError(f"bits {settings.bits}: expected 0 to {MAX_BITS}")
    known = dataset.sources()
    unknown = sorted(set(settings.sources) - set(known))
    if unknown:
        raise DatasetError(f"no source {unknown[0]!r} in {dataset.uri}; there are {', '.join(known) or 'none'}")
    sources = sorted(set(settings.sources)) or known
    if not any(True for source in sources for _ in dataset.shards(f"sequences/{source}")):
        raise DatasetError(f"{dataset.uri} holds no image shards of {', '.join(sources) or 'any source'}")
    return sources


def manifests_fingerprint(dataset: Dataset, sources: Sequence[str]) -> str:
    """Of all image shards of these sources: changes when one is added, removed or made anew. Reads footers only."""
    shards = [shard for source in sources for shard in dataset.shards(f"sequences/{source}")]
    return fingerprint([[shard.manifest, dataset.metadata(shard)["tar_sha256"]] for shard in shards])


def read_marks(dataset: Dataset, name: str = "all") -> tuple[pa.Table, dict[str, Any]]:
    """Marks of a pass (see `MARKS`), and its metadata with `stale`: whether the manifests have changed since.

    Raises:
        DatasetError: if there was no such pass.
    """
    path = f"{FOLDER}/{name}.parquet"
    if not dataset.storage.exists(path):
        raise DatasetError(f"{dataset.uri} has no {path}: run `uvd dedup`")
    with dataset.storage.open(path) as file:
        table = pq.read_table(file)
    metadata = read_metadata(table.schema, path)
    known = set(metadata["sources"]) <= set(dataset.sources())
    stale = not known or metadata["manifests"] != manifests_fingerprint(dataset, metadata["sources"])
    return table, {**metadata, "stale": stale}


def _collect(
    datasets: list[Dataset], sources: list[list[str]], settings: DedupSettings, stream: Path, start: int
) -> list[_Scanned]:
    """Appends the hashes of all shards to the stream, in order; some manifests are read ahead."""
    shards = [
        (dataset, f"{dataset.uri}#" if start == 0 and settings.against else "", shard)
        for dataset, names in zip(datasets, sources, strict=True)
        for source in names
        for shard in dataset.shards(f"sequences/{source}")
    ]
    scanned, waiting = [], deque[Future[NDArray[np.uint64]]]()
    todo = iter(shards)
    with ThreadPoolExecutor(2 * (settings.threads or _cores())) as pool, stream.open("ab") as file:
        for dataset, prefix, shard in shards:
            while len(waiting) < _AHEAD and (following := next(todo, None)) is not None:
                waiting.append(pool.submit(_shard_hashes, following[0], following[2], settings))
            hashes = waiting.popleft().result()
            hashes.tofile(file)
            scanned.append(_Scanned(dataset, prefix, shard, start, start + len(hashes)))
            start += len(hashes)
    return scanned


def _shard_hashes(dataset: Dataset, shard: Shard, settings: DedupSettings) -> NDArray[np.uint64]:
    table = _read(dataset, shard, ["roles", settings.column])
    wanted = pc.is_in(table["roles"].combine_chunks().flatten(), value_set=pa.array(settings.roles, pa.string()))
    return np.asarray(table[settings.column].combine_chunks().flatten().filter(wanted), np.uint64)


def _read(dataset: Dataset, shard: Shard, columns: list[str]) -> pa.Table:
    with dataset.storage.open(shard.manifest) as file:
        return pq.ParquetFile(file).read(columns=columns, use_threads=False)


def _pieces(stream: Path) -> Iterator[NDArray[np.uint64]]:
    # Read, not mapped: pages of a mapped file count as this process's memory.
    with stream.open("rb") as file:
        while len(piece := np.fromfile(file, np.uint64, CHUNK)):
            yield piece


def _connect(spill: Path, settings: DedupSettings) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        # Some is left for the arrays that are still needed.
        "memory_limit": f"{max(100, int(settings.memory_gb * 500))}MB",
        "temp_directory": str(spill),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        **({"threads": settings.threads} if settings.threads is not None else {}),
    }
    database = duckdb.connect(str(spill / "marks.duckdb"), config=config)
    # It would go to standard output.
    database.execute("set enable_progress_bar = false")
    return database


def _load_marks(
    database: duckdb.DuckDBPyConnection,
    scanned: list[_Scanned],
    pieces: Iterator[NDArray[np.uint64]],
    groups: Groups,
    settings: DedupSettings,
) -> None:
    """`images`: a row an image of a group, with its place in the stream and that of its representative.

    `marks`: the same beside the representative's, with what tells them apart.
    """
    places, members = groups.images(pieces)
    shards = np.searchsorted(np.array([item.start for item in scanned]), places, side="right") - 1
    bounds = np.searchsorted(shards, np.arange(len(scanned) + 1))
    database.execute(
        'create table images (place bigint, leader bigint, "group" bigint, key varchar, image smallint, '
        "origin varchar, phash ubigint, digest ubigint)"
    )
    database.execute(
        'create view marks as select m.place, m.leader, m."group", m.key, m.image, m.origin, r.key representative, '
        "r.image representative_image, bit_count(xor(m.phash, r.phash))::tinyint distance, "
        "m.phash = r.phash and m.digest = r.digest exact from images m join images r on m.leader = r.place"
        # Digests that are equal by chance, and the groups that they alone made, are none.
        + (" where m.phash = r.phash qualify count(*) over (partition by m.leader) > 1" if settings.exact else "")
    )

    def read(number: int) -> pa.Table:
        inside = slice(int(bounds[number]), int(bounds[number + 1]))
        return _marks_of_shard(scanned[number], places[inside], members[inside], groups, settings.roles)

    with ThreadPoolExecutor(settings.threads or _cores()) as pool:
        hit = np.flatnonzero(np.diff(bounds)).tolist()
        for first in range(0, len(hit), _AHEAD):
            database.register("found", pa.concat_tables(list(pool.map(read, hit[first : first + _AHEAD]))))
            database.execute("insert into images from found")
            database.unregister("found")


def _marks_of_shard(
    item: _Scanned, places: NDArray[np.int64], members: NDArray[np.int64], groups: Groups, roles: Sequence[str]
) -> pa.Table:
    manifest = _read(item.dataset, item.shard, ["key", "roles", "origins", "phashes", "digests"])
    lists = manifest["roles"].combine_chunks()
    wanted = pc.is_in(lists.flatten(), value_set=pa.array(list(roles), pa.string()))
    rows = np.asarray(pc.list_parent_indices(lists))
    image = np.arange(len(rows)) - np.asarray(lists.offsets)[rows]
    kept = np.flatnonzero(np.asarray(wanted))[places - item.start]
    keys = pc.binary_join_element_wise(item.prefix, manifest["key"].take(pa.array(rows[kept])), "")
    return pa.table(
        {
            "place": places,
            "leader": groups.leader_places[members],
            "group": groups.numbers[members],
            "key": keys,
            "image": image[kept].astype(np.int16),
            **{
                name: manifest[f"{name}s" if name != "phash" else "phashes"].combine_chunks().flatten().take(kept)
                for name in ("origin", "phash", "digest")
            },
        }
    )


def _write(
    database: duckdb.DuckDBPyConnection, dataset: Dataset, path: str, metadata: Mapping[str, Any], boundary: int
) -> None:
    schema = MARKS.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    pending = dataset.storage.create(path)
    try:
        with pq.ParquetWriter(pending.stream, schema, compression="zstd") as writer:
            for batch in _rows(database, boundary):
                writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=_BATCH_ROWS)
        pending.commit()
    except BaseException:
        pending.abort()
        raise


def _rows(database: duckdb.DuckDBPyConnection, boundary: int) -> Iterator[pa.RecordBatch]:
    columns = ", ".join(f'"{name}"' for name in MARKS.names)
    yield from database.sql(
        f'select {columns} from marks where place >= {boundary} order by "group", place'
    ).to_arrow_reader(_BATCH_ROWS)


def _summary(database: duckdb.DuckDBPyConnection, images: int, hashes: int, boundary: int, path: str) -> DedupSummary:
    own = f"from marks where place >= {boundary}"
    ((groups, marked, equal, exact),) = database.sql(
        'select count(distinct "group"), count(*) filter (place <> leader), '
        "count(*) filter (distance = 0 and place <> leader), count(*) filter (exact and place <> leader) " + own
    ).fetchall()
    largest = database.sql(
        f"select representative, count(*)::bigint images {own} "
        f"group by leader, representative order by images desc, leader limit {_LARGEST}"
    ).fetchall()
    return DedupSummary(images, hashes, groups, marked, equal, exact, tuple(largest), path)

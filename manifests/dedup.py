"""Near-duplicates over a whole dataset, by the 64-bit perceptual hashes in its manifests: marked, never deleted.

In the order of keys, an image joins the group of the first representative within `bits` bits of it, or else becomes
one itself. So every marked image is within `bits` of the one that stays, and no two that stay are. Pairs are found
exactly: hashes are cut into more blocks than bits may differ, so near hashes agree in some blocks (Manku et al., WWW
2007). DuckDB does the joins within a memory limit, spilling to disk; equal hashes count once, so a hash that 100,000
flat images share costs nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd import __version__
from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.schema import METADATA_KEY, SEQUENCES, read_metadata

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
        pa.field("representative", pa.string(), False),  # key of the image that stays
        pa.field("representative_image", pa.int16(), False),
    ]
)
"""One row for each image of a group of two or more, the representative too: its key and image name itself."""
_LARGEST = 5
_SAMPLE = 50_000
_ODD = 2654435761
_MEETING_COST = 0.1
"""Of comparing two hashes, in passes over one hash."""
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class DedupSettings:
    """What is compared, and with which means.

    Attributes:
        bits: differing bits up to which two pictures are near-duplicates, 0 to 8.
        sources: names below `sequences/`; all if empty.
        roles: pictures that take part.
        memory_gb: of DuckDB, which spills to a temporary folder beyond it. The pairs found come on top, 24 bytes each.
        threads: of DuckDB; all cores by default.
    """

    bits: int = 3
    sources: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("image",)
    memory_gb: float = 4.0
    threads: int | None = None

    @property
    def name(self) -> str:
        return "+".join(sorted(set(self.sources))) or "all"


@dataclass(frozen=True, slots=True)
class DedupSummary:
    """What a pass found.

    Attributes:
        images: that were compared.
        hashes: different ones among them.
        groups: of two images or more.
        marked: images that are not their group's representative.
        equal: those of them with the representative's very hash.
        largest: (representative's key, images) of the largest groups.
        path: of the file, relative to the dataset.
    """

    images: int
    hashes: int
    groups: int
    marked: int
    equal: int
    largest: tuple[tuple[str, int], ...]
    path: str


def find_duplicates(dataset: Dataset, settings: DedupSettings) -> DedupSummary:
    """Compares all pictures and writes `dedup/NAME.parquet`, whole or not at all; equal manifests give an equal file.

    Raises:
        DatasetError: for unknown sources or roles, bits out of range, or a dataset without images.
    """
    sources = _check(dataset, settings)
    paths = [shard.manifest for source in sources for shard in dataset.shards(f"sequences/{source}")]
    if not paths:
        raise DatasetError(f"{dataset.uri} holds no image shards of {', '.join(sources) or 'any source'}")
    before = manifests_fingerprint(dataset, sources)
    dataset.storage.sweep(FOLDER)
    with tempfile.TemporaryDirectory(prefix="uvd-dedup-") as spill, _connect(spill, settings) as database:
        full = [dataset.storage.full(path) for path in paths]
        scan = pads.dataset(full, schema=SEQUENCES, filesystem=dataset.storage.filesystem, format="parquet")
        database.register("sequences", scan)
        _collect_hashes(database, settings.roles)
        if not _count(database, "hashes"):
            raise DatasetError(f"no picture in {dataset.uri} has one of the roles {', '.join(settings.roles)}")
        _find_pairs(database, settings.bits)
        _assign(database)
        metadata = {
            "kind": "dedup",
            "bits": settings.bits,
            "sources": sources,
            "roles": sorted(settings.roles),
            "manifests": before,
            "uvd_version": __version__,
        }
        path = f"{FOLDER}/{settings.name}.parquet"
        _write(database, dataset, path, metadata)
        return _summary(database, path)


def _check(dataset: Dataset, settings: DedupSettings) -> list[str]:
    if not 0 <= settings.bits <= MAX_BITS:
        raise DatasetError(f"bits {settings.bits}: expected 0 to {MAX_BITS}")
    known = dataset.sources()
    unknown = sorted(set(settings.sources) - set(known))
    if unknown:
        raise DatasetError(f"no source {unknown[0]!r} in {dataset.uri}; there are {', '.join(known) or 'none'}")
    return sorted(set(settings.sources)) or known


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
    with dataset.storage.filesystem.open_input_file(dataset.storage.full(path)) as file:
        table = pq.read_table(file)
    metadata = read_metadata(table.schema, path)
    known = set(metadata["sources"]) <= set(dataset.sources())
    stale = not known or metadata["manifests"] != manifests_fingerprint(dataset, metadata["sources"])
    return table, {**metadata, "stale": stale}


def _connect(spill: str, settings: DedupSettings) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        "memory_limit": f"{int(settings.memory_gb * 1000)}MB",
        "temp_directory": spill,
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if settings.threads is not None:
        config["threads"] = settings.threads
    return duckdb.connect(f"{spill}/hashes.duckdb", config=config)


def _collect_hashes(database: duckdb.DuckDBPyConnection, roles: Sequence[str]) -> None:
    """`hashes`: each different hash, how many images have it, and the first of them as `KEY/INDEX`."""
    database.execute("create table wanted as select unnest(?::varchar[]) role", [list(roles)])
    database.execute(
        "create view pictures as select key, image, origin, phash, key || '/' || lpad(image::varchar, 2, '0') id from ("
        "select key, unnest(range(num_images)) image, unnest(origins) origin, unnest(roles) role, "
        "unnest(phashes) phash from sequences) where role in (from wanted)"
    )
    database.execute("create table hashes as select phash, count(*) images, min(id) first from pictures group by phash")


def _count(database: duckdb.DuckDBPyConnection, table: str) -> int:
    return database.sql(f"select count(*) from {table}").fetchall()[0][0]


def block_masks(bits: int, blocks: int) -> list[int]:
    """Masks of 64 bits: any two hashes that differ in at most `bits` bits are equal under one of them at least.

    The hash is cut into `blocks` > `bits` parts; `bits` differing bits touch at most `bits` of them, so the other
    `blocks` - `bits` are equal.
    """
    edges = [64 * index // blocks for index in range(blocks + 1)]
    parts = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return [sum(kept) for kept in combinations(parts, blocks - bits)]


def cheapest_masks(bits: int, sample: NDArray[np.uint64], hashes: int) -> list[int]:
    """Masks for the number of blocks that costs least; what is found is the same with any.

    More blocks mean more masks, each a pass over all hashes, under which fewer hashes meet by chance. How many meet is
    taken from a sample, because real hashes are not evenly spread: images with large flat areas share parts of theirs.
    """

    def cost(masks: list[int]) -> float:
        meetings = 0.0
        for mask in masks:
            _, counts = np.unique(sample & np.uint64(mask), return_counts=True)
            meetings += float((counts * (counts - 1.0)).sum()) / 2
        return len(masks) * hashes + _MEETING_COST * meetings * (hashes / len(sample)) ** 2

    return min((block_masks(bits, blocks) for blocks in range(bits + 1, bits + 5)), key=cost)


def _find_pairs(database: duckdb.DuckDBPyConnection, bits: int) -> None:
    """`pairs`: different hashes within `bits` of each other, each pair once."""
    database.execute("create table pairs (a ubigint, b ubigint)")
    if bits == 0:
        return
    # Multiplying by an odd number mixes the bits, so the lowest products are an even sample, and always the same.
    sample = database.sql(
        f"select phash from hashes order by (phash::hugeint * {_ODD}) % 4294967296, phash limit {_SAMPLE}"
    ).fetchnumpy()["phash"]
    masks = cheapest_masks(bits, np.asarray(sample, np.uint64), _count(database, "hashes"))
    for number, mask in enumerate(masks):
        # A pair that an earlier mask has found is not found again.
        new = " and ".join(f"(xor(a.phash, b.phash) & {other}::ubigint) <> 0" for other in masks[:number]) or "true"
        database.execute(
            f"insert into pairs select a.phash, b.phash from hashes a join hashes b "
            f"on (a.phash & {mask}::ubigint) = (b.phash & {mask}::ubigint) and a.phash < b.phash "
            f"where bit_count(xor(a.phash, b.phash)) <= {bits} and {new}"
        )


def _assign(database: duckdb.DuckDBPyConnection) -> None:
    """`members`: hash → the hash of its group's representative, for groups of two images or more."""
    database.execute(
        "create table nodes as select phash, (row_number() over (order by first)) - 1 rank from hashes "
        "where phash in (select a from pairs union select b from pairs)"
    )
    found = database.sql(
        "select least(m.rank, n.rank) low, greatest(m.rank, n.rank) high from pairs "
        "join nodes m on m.phash = a join nodes n on n.phash = b order by high, low"
    ).fetchnumpy()
    leaders = first_leaders(np.asarray(found["low"]), np.asarray(found["high"]), _count(database, "nodes"))
    chosen = pa.table({"rank": np.arange(len(leaders)), "leader": leaders})
    database.register("chosen", chosen)
    database.execute(
        "create table members as with led as ("
        "select n.phash, l.phash leader from chosen join nodes n using (rank) join nodes l on l.rank = chosen.leader "
        "union all select phash, phash from hashes where phash not in (select phash from nodes)), "
        "sizes as (select leader, sum(images) images from led join hashes using (phash) group by leader) "
        "select led.phash, led.leader, h.first, "
        "dense_rank() over (order by h.first) - 1 number, bit_count(xor(led.phash, led.leader)) distance "
        "from led join sizes using (leader) join hashes h on h.phash = led.leader where sizes.images > 1"
    )
    database.unregister("chosen")


def first_leaders(low: NDArray[np.int64], high: NDArray[np.int64], nodes: int) -> NDArray[np.int64]:
    """For each node the first leader among its neighbours, or itself: then it is a leader.

    Args:
        low, high: pairs of neighbours, low < high, sorted by high and then low.
        nodes: they are 0 to nodes - 1, in order of precedence.
    """
    leaders = np.arange(nodes)
    for start in range(0, len(low), _BATCH_ROWS):
        part = slice(start, start + _BATCH_ROWS)
        for first, second in zip(low[part].tolist(), high[part].tolist(), strict=True):
            if leaders[second] == second and leaders[first] == first:
                leaders[second] = first
    return leaders


def _write(database: duckdb.DuckDBPyConnection, dataset: Dataset, path: str, metadata: Mapping[str, Any]) -> None:
    schema = MARKS.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    pending = dataset.storage.create(path)
    try:
        with pq.ParquetWriter(pending.stream, schema, compression="zstd") as writer:
            for batch in _rows(database):
                writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=_BATCH_ROWS)
        pending.commit()
    except BaseException:
        pending.abort()
        raise


def _rows(database: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    yield from database.sql(
        'select key, image::smallint image, origin, number "group", distance::tinyint distance, '
        "first[:-4] representative, first[-2:]::smallint representative_image "
        "from pictures join members using (phash) order by number, id"
    ).to_arrow_reader(_BATCH_ROWS)


def _summary(database: duckdb.DuckDBPyConnection, path: str) -> DedupSummary:
    ((images, hashes),) = database.sql("select sum(images)::bigint, count(*) from hashes").fetchall()
    inside = "from members join hashes using (phash)"
    ((groups, members, equal),) = database.sql(
        "select count(distinct number), coalesce(sum(images), 0)::bigint, "
        f"coalesce(sum(images) filter (where distance = 0), 0)::bigint {inside}"
    ).fetchall()
    largest = database.sql(
        f"select members.first[:-4], sum(images)::bigint images {inside} "
        f"group by members.first order by images desc, members.first limit {_LARGEST}"
    ).fetchall()
    return DedupSummary(images, hashes, groups, members - groups, equal - groups, tuple(largest), path)

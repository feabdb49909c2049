"""Manifests of made-up datasets of any size, as the project would write them, without the tars.

The columns are filled with what real ones hold: 1,000 sequences a shard (the default of every source), URLs of a few
ten thousand hosts, random perceptual hashes, sizes, byte spans; 300 rejects a shard of URLs; a histogram of codes a
token shard. So files have real sizes (60 to 200 kB), and a survey meets as many hosts as it would. Of some shards the
pictures are written too, for `uvd show`.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.image_shard import ImageShardWriter
from uvd.manifests.schema import REJECTS, SEQUENCES, TOKENS, rejects_to_parquet, table_to_parquet
from uvd.manifests.summary import Summary, encode_summary, host
from uvd.manifests.token_shard import encode_histogram
from uvd.manifests.tokens import CODEBOOK_SIZE
from uvd.sequences import Picture, VisualSequence

ROWS = 1000
REJECTS_A_SHARD = 300
HOSTS = 50_000
POOL = 300_000
"""Different URLs, in each process."""
HISTOGRAMS = 32
"""Different histograms of codes, in each process and kind."""
VALIDATION = 20
"""Sequences at the end of each shard that are of the split `val`."""
TOKENIZER = "made-up"
TAR_OVERHEAD = 1024
NEAR_ONE_IN, NEAR_BITS = 20, 3
"""One perceptual hash in so many is that of another picture but for so many bits at most."""
_REASONS = ("http_404", "http_403", "timeout", "dns", "too_small", "not_image")


@dataclass(frozen=True, slots=True)
class Kind:
    """A source: where it lies, what its sequences are, and its share of all sequences."""

    folder: str
    source: str
    dataset: str
    layout: str
    roles: tuple[str, ...]
    share: float
    from_urls: bool = False


KINDS = (
    Kind("laion", "laion", "laion-aesthetic", "single", ("image",), 0.93, from_urls=True),
    Kind("coco", "annotated", "coco", "pairs", ("image", "pose") * 8, 0.02),
    Kind("ade20k", "annotated", "ade20k", "pairs", ("image", "segmentation") * 8, 0.02),
    Kind("kinetics", "video", "kinetics", "frames", ("frame",) * 16, 0.015),
    Kind("ssv2", "video", "ssv2", "frames", ("frame",) * 16, 0.0145),
    Kind("objaverse", "objaverse", "objaverse", "multiview", ("view",) * 16, 0.0005),
)
"""Shares of sequences near those of UVDv1, with more of what is not LAION, because such rows are larger."""


def shards_of(kind: Kind, sequences: int) -> int:
    """How many shards this kind has in a dataset of so many sequences: one at least."""
    return max(1, round(kind.share * sequences / ROWS))


def write_dataset(folder: Path, sequences: int, processes: int = 2, pictures: int = 0) -> str:
    """Writes a dataset of about so many sequences, with token manifests, and returns its URI.

    Args:
        pictures: shards of single images, spread evenly, that get a real tar.
    """
    dataset = Dataset(str(folder))
    for kind in KINDS:
        entry = {"fingerprint": "0", "config": {"dataset": kind.dataset, "source": kind.source}}
        dataset.declare("sequences", kind.folder, entry)
        dataset.declare("tokens", f"{TOKENIZER}/{kind.folder}", {"fingerprint": "0", "tokenizer": TOKENIZER})
    for path in _folders():
        (folder / path).mkdir(parents=True, exist_ok=True)
    tasks = (
        (dataset.uri, number, shard) for number, kind in enumerate(KINDS) for shard in range(shards_of(kind, sequences))
    )
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _ in pool.imap_unordered(_write_shard, tasks, chunksize=64):
            pass
    singles = shards_of(KINDS[0], sequences)
    for shard in np.linspace(0, singles - 1, pictures, dtype=int).tolist() if pictures else ():
        if not (folder / Shard(f"sequences/{KINDS[0].folder}", shard).tar).exists():
            write_pictures(dataset, shard)
    return dataset.uri


def _folders() -> Iterator[str]:
    for kind in KINDS:
        yield f"sequences/{kind.folder}"
        yield f"tokens/{TOKENIZER}/{kind.folder}"


def write_pictures(dataset: Dataset, shard: int) -> None:
    """Replaces a shard of single images by one with real pictures."""
    rng = np.random.default_rng((99, shard))
    with ImageShardWriter(dataset, KINDS[0].folder, shard, kind=KINDS[0].source) as writer:
        for index in range(ROWS):
            pixels = np.repeat(np.repeat(rng.integers(0, 256, (16, 16, 3), np.uint8), 16, 0), 16, 1)
            picture = Picture("image", pixels, f"https://host{index}.example/{index}.jpg", (640, 480))
            writer.add(VisualSequence((picture,), "single", KINDS[0].dataset, "train", frozenset({index})))
        writer.commit(ROWS, [], "0", "0")


def _write_shard(task: tuple[str, int, int]) -> None:
    uri, number, shard = task
    root, kind = Path(uri), KINDS[number]
    token = Shard(f"tokens/{TOKENIZER}/{kind.folder}", shard)
    if (root / token.manifest).exists():  # written last: an interrupted run goes on from here
        return
    rng = np.random.default_rng((number, shard))
    refused = _rejects(kind, shard, rng)
    image = Shard(f"sequences/{kind.folder}", shard)
    table = _sequences(kind, shard, rng)
    (root / image.rejects).write_bytes(table_to_parquet(refused, {"kind": "rejects", "folder": kind.folder}))
    (root / image.manifest).write_bytes(table_to_parquet(table, _image_metadata(kind, shard, table, refused)))
    rows = _tokens(kind, table)
    (root / token.rejects).write_bytes(_no_rejects(kind.folder))
    (root / token.manifest).write_bytes(table_to_parquet(rows, _token_metadata(kind, shard, rows, rng)))


def _lists(values: pa.Array, each: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, each, dtype=np.int32), values)


def _urls(rng: np.random.Generator, count: int) -> pa.Array:
    """Few hosts have many images, many have few."""
    pool = _url_pool()
    start = int(rng.integers(0, len(pool) - count))
    return pool.slice(start, count)


@functools.cache
def _url_pool() -> pa.Array:
    """A shard takes a stretch of it: the URLs of one shard are as different as real ones, those of two may be equal."""
    rng, count = np.random.default_rng(7), POOL
    hosts = pa.array((HOSTS * rng.random(count) ** 3).astype(np.int64)).cast(pa.string())
    names = pa.array(np.frombuffer(rng.bytes(count * 12).hex().encode(), "S24").astype("U24"))
    return pc.binary_join_element_wise("https://host", hosts, ".example.com/wp-content/uploads/", names, ".jpg", "")


@functools.cache
def _same_in_all_shards(kind: Kind) -> dict[str, pa.Array]:
    each = len(kind.roles)
    frames = np.tile(np.arange(each, dtype=np.int32) * 10, ROWS)
    return {
        "index": pc.utf8_lpad(pa.array(np.arange(ROWS)).cast(pa.string()), 6, "0"),
        "source": pa.array([kind.source] * ROWS),
        "dataset": pa.array([kind.dataset] * ROWS),
        "layout": pa.array([kind.layout] * ROWS),
        "split": pa.array(["train"] * (ROWS - VALIDATION) + ["val"] * VALIDATION),
        "num_images": pa.array(np.full(ROWS, each, np.int16)),
        "roles": _lists(pa.array(list(kind.roles) * ROWS), each),
        "indices": _lists(pa.nulls(ROWS, pa.int32()) if each == 1 else pa.array(frames), each),
        "inputs": _lists(pa.array(np.arange(ROWS, dtype=np.int32)), 1),
    }


def _sequences(kind: Kind, shard: int, rng: np.random.Generator) -> pa.Table:
    each = len(kind.roles)
    images = ROWS * each
    same = _same_in_all_shards(kind)
    lengths = rng.integers(15_000, 40_000, ROWS) * each // 512 * 512 + TAR_OVERHEAD
    columns = {
        **same,
        "key": pc.binary_join_element_wise(f"{kind.folder}-{shard:06d}", same["index"], "-"),
        "origins": _lists(_urls(rng, images) if kind.from_urls else _files(kind, shard, each), each),
        **{
            name: _lists(pa.array(np.repeat(rng.integers(200, 2000, ROWS).astype(np.int32), each)), each)
            for name in ("widths", "heights")
        },
        "phashes": _lists(pa.array(_hashes(rng, images)), each),
        "digests": _lists(pa.array(rng.integers(0, 2**64, images, dtype=np.uint64)), each),
        "offset": pa.array(np.cumsum(lengths) - lengths),
        "length": pa.array(lengths),
    }
    return pa.table([columns[name] for name in SEQUENCES.names], schema=SEQUENCES)


def _hashes(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """Random ones; one in twenty is that of another picture of the shard with up to three bits changed."""
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = count // NEAR_ONE_IN
    changed = hashes[:copies]
    for _ in range(NEAR_BITS):
        # The same bit twice is no change, so there are equal ones too.
        changed = changed ^ (np.uint64(1) << rng.integers(0, 64, copies).astype(np.uint64))
    hashes[count - copies :] = changed
    return hashes


def _files(kind: Kind, shard: int, each: int) -> pa.Array:
    """All pictures of a sequence come from one file."""
    names = pa.array([f"{kind.dataset}/{shard:05d}/{number:06d}.mp4" for number in range(ROWS)])
    return names.take(pa.array(np.repeat(np.arange(ROWS), each)))


def _tokens(kind: Kind, table: pa.Table) -> pa.Table:
    each = len(kind.roles)
    tokens = 256 * each + 2
    record = max(1, 64 // each)
    places = np.arange(ROWS)
    names = pc.utf8_lpad(pa.array(places // record).cast(pa.string()), 6, "0")
    columns = [
        *(table[name] for name in ("key", "source", "dataset", "layout", "split", "num_images")),
        pa.array(np.full(ROWS, tokens, np.int32)),
        table["roles"],
        pc.binary_join_element_wise(f"{table['key'][0].as_py()[:-7]}-r", names, ""),
        pa.array(places * tokens * 2 + places // record * 2048 + 640),
        pa.array(np.full(ROWS, tokens * 2, np.int64)),
    ]
    return pa.table(columns, schema=TOKENS)


def _rejects(kind: Kind, shard: int, rng: np.random.Generator) -> pa.Table:
    if not kind.from_urls:
        return REJECTS.empty_table()
    count = REJECTS_A_SHARD
    columns = [
        pa.array([kind.folder] * count),
        pa.array(np.full(count, shard, np.int32)),
        pa.array(np.arange(ROWS, ROWS + count, dtype=np.int32)),
        _urls(rng, count),
        pa.array(_REASONS).take(pa.array(rng.integers(0, len(_REASONS), count))),
        pa.array([""] * count),
        pa.array(np.zeros(count, bool)),
    ]
    return pa.table(columns, schema=REJECTS)


@functools.cache
def _no_rejects(folder: str) -> bytes:
    return rejects_to_parquet([], folder)


def _summary(kind: Kind, table: pa.Table, refused: pa.Table) -> Summary:
    """What `summarize` finds, without going through the rows."""
    summary = Summary()
    lengths = table["length"].to_numpy()
    tokens = 256 * len(kind.roles) + 2 if "num_tokens" in table.column_names else 0
    for split, part in (("train", lengths[:-VALIDATION]), ("val", lengths[-VALIDATION:])):
        key, count = (kind.source, kind.dataset, kind.layout, split), len(part)
        summary.groups[key] = [count, count * len(kind.roles), count * tokens, int(part.sum())]
        for role, times in Counter(kind.roles).items():
            summary.roles[(*key, role)] = [count, count * times]
    hosts = map(host, refused["origin"].to_pylist())
    summary.rejects.update(zip(refused["reason"].to_pylist(), hosts, strict=True))
    return summary


def _image_metadata(kind: Kind, shard: int, table: pa.Table, refused: pa.Table) -> dict[str, Any]:
    return {
        "kind": "sequences",
        "folder": kind.folder,
        "shard": shard,
        "inputs": ROWS + len(refused),
        "used": ROWS,
        "rejected": len(refused),
        "partial": 0,
        "sequences": ROWS,
        "images": ROWS * len(kind.roles),
        "tar_bytes": int(pc.sum(table["length"]).as_py()),
        "tar_sha256": f"{shard:064x}",
        "fingerprint": f"{shard:064x}",
        "config_fingerprint": "0",
        "uvd_version": "0.1.0",
        "summary": encode_summary(_summary(kind, table, refused)),
    }


def _token_metadata(kind: Kind, shard: int, table: pa.Table, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "kind": "tokens",
        "folder": kind.folder,
        "shard": shard,
        "inputs": ROWS,
        "rejected": 0,
        "sequences": ROWS,
        "images": ROWS * len(kind.roles),
        "tokens": int(pc.sum(table["num_tokens"]).as_py()),
        "records": ROWS,
        "tar_bytes": int(table["offset"][-1].as_py()) + 1_024,
        "tar_sha256": f"{shard:064x}",
        "image_tar_sha256": f"{shard:064x}",
        "fingerprint": f"{shard:064x}",
        "config_fingerprint": "0",
        "tokenizer": TOKENIZER,
        "tokenizer_fingerprint": "0",
        "uvd_version": "0.1.0",
        "histogram": _histogram(ROWS * len(kind.roles) * 256, int(rng.integers(HISTOGRAMS))),
        "summary": encode_summary(_summary(kind, table, REJECTS.empty_table())),
    }


@functools.cache
def _histogram(codes: int, number: int) -> str:
    return encode_histogram(np.random.default_rng((codes, number)).poisson(_code_rates(codes)))


def _code_rates(codes: int) -> NDArray[np.float64]:
    """Some codes are common and some are never used, as in trained codebooks."""
    rates = 1 / (np.arange(CODEBOOK_SIZE) + 200.0)
    rates[-500:] = 0
    return codes * rates / rates.sum()

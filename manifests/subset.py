"""Views: datasets of manifests only, whose rows are some of those of a base and whose tars are the base's.

A view names its sequences by the same shards and keys as its base. What is chosen is a function of the base's rows, the
selection, the budget and the seed. A view of a view refers to the base of both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from uvd import __version__
from uvd.manifests.dataset import ConfigChangedError, Dataset, DatasetError, Shard
from uvd.manifests.export import count
from uvd.manifests.fingerprint import differences, fingerprint
from uvd.manifests.schema import REJECTS, rejects_to_parquet, table_to_parquet
from uvd.manifests.selection import SelectedTokens, Selection
from uvd.manifests.summary import encode_summary, summarize_tables
from uvd.manifests.token_shard import encode_histogram, iter_rows
from uvd.manifests.tokens import CODEBOOK_SIZE, unframe

_BUCKETS = 1 << 16
_RANK_BYTES = 8
"""Of a rank; its first two are the bucket."""
Rank = tuple[int, str]


@dataclass(frozen=True, slots=True)
class SubsetCounts:
    """What a view holds."""

    shards: int
    sequences: int
    images: int
    tokens: int
    """With BOS and EOS."""


def subset(
    dataset: Dataset,
    selection: Selection,
    out: str,
    *,
    tokens: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> SubsetCounts | None:
    """Makes a view of the chosen token sequences, with the image sequences that they were made from.

    Args:
        out: path or URI of the view.
        tokens: at most so many are taken, in the order of a hash of seed and key: a larger budget with the same seed
            and selection holds all of a smaller one.
        overwrite: replace a view that was made in another way; nothing but a view is ever replaced.
        advance: called after each shard.

    Returns:
        What the view holds, or None if it was there already.

    Raises:
        DatasetError: if nothing is chosen, or `out` is something else.
        ConfigChangedError: if `out` is a view made in another way, or of a base that has changed.
    """
    selected, base = SelectedTokens(dataset, selection), dataset.base or dataset
    selected.tokenizer_fingerprint()
    view = Dataset(out)
    if base.uri == view.uri or dataset.uri == view.uri:
        raise DatasetError(f"{out} is the dataset itself: a view needs a place of its own")
    about = _about(dataset, base, view, selected, asdict(selection), tokens, seed)
    if _is_there(view, about, overwrite):
        return None
    count(selected)
    last = _last_rank(selected, tokens, seed) if tokens is not None else None
    _start(view, about)
    shards = sequences = images = total = 0
    for shard in selected.shards():
        rows = _within(selected.rows(shard), last, seed)
        if rows.num_rows:
            _write_shard(dataset, base, view, shard, rows)
            shards, sequences = shards + 1, sequences + rows.num_rows
            images, total = images + _sum(rows, "num_images"), total + _sum(rows, "num_tokens")
        advance()
    _finish(dataset, view, selected, about)
    return SubsetCounts(shards, sequences, images, total)


def _about(
    dataset: Dataset,
    base: Dataset,
    view: Dataset,
    selected: SelectedTokens,
    selection: dict[str, Any],
    tokens: int | None,
    seed: int,
) -> dict[str, Any]:
    """What `dataset.json` says of the view: where its base is, how it was made, and from which shards."""
    digest = sha256()
    for shard in selected.shards():
        metadata = dataset.metadata(shard)
        digest.update(f"{shard.tar} {metadata['tar_sha256']} {metadata.get('rows_sha256', '')}\n".encode())
    place = base.uri
    if base.storage.local_root is not None and view.storage.local_root is not None:
        # Relative, so that both can be moved together and the bytes do not depend on where they are.
        place = os.path.relpath(base.storage.local_root, view.storage.local_root)
    made = {
        "selection": selection | {"tokenizer": selected.tokenizer},
        "tokens": tokens,
        "seed": seed,
        "uvd_version": __version__,
        "shards": digest.hexdigest(),
        "of_view": (dataset.info()["view"]["made"] if dataset.base is not None else None),
    }
    return {"base": place, "made": made, "fingerprint": fingerprint(made)}


def _is_there(view: Dataset, about: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the very view is there already.

    Raises:
        DatasetError: if something else is there.
        ConfigChangedError: if another view is, and it is not to be replaced.
    """
    there = view.storage.list("")
    old = view.info().get("view")
    if there and old is None:
        raise DatasetError(f"{view.uri} is there and is no view: choose another --out")
    if old is not None and old["fingerprint"] == about["fingerprint"] and old["base"] == about["base"]:
        return bool(old["complete"])
    if old is not None and old["complete"] and not overwrite:
        changes = "\n  ".join(
            differences({"base": old["base"], **old["made"]}, {"base": about["base"], **about["made"]})
        )
        raise ConfigChangedError(
            f"{view.uri} is a view that was made in another way:\n  {changes}\nUse another --out, or --overwrite it."
        )
    return False


def _start(view: Dataset, about: Mapping[str, Any]) -> None:
    """Empties the place of the view; what is there from now on is known to be unfinished."""
    view.write_view({}, {}, {**about, "complete": False})
    for section in ("sequences", "tokens", "dedup"):
        view.storage.delete_folder(section)


def _finish(dataset: Dataset, view: Dataset, selected: SelectedTokens, about: Mapping[str, Any]) -> None:
    info = dataset.info()
    # A view has no plan of retries: what was tried again is a source like others here.
    sequences = {
        name: {key: value for key, value in info["sequences"][name].items() if not key.startswith("retry_")}
        for name in selected.sources
        if name in info["sequences"] and view.shards(f"sequences/{name}")
    }
    names = [f"{selected.tokenizer}/{source}" for source in selected.sources]
    tokens = {name: info["tokens"][name] for name in names if view.shards(f"tokens/{name}")}
    view.write_view(sequences, tokens, {**about, "complete": True})


def _rank(seed: int, key: str) -> int:
    return int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=_RANK_BYTES).digest(), "big")


def _ranked(selected: SelectedTokens, seed: int) -> Iterator[tuple[Rank, int]]:
    """(rank, tokens) of each chosen sequence."""
    for shard in selected.shards():
        rows = selected.rows(shard)
        for key, tokens in zip(rows["key"].to_pylist(), rows["num_tokens"].to_pylist(), strict=True):
            yield (_rank(seed, key), key), tokens


def _last_rank(selected: SelectedTokens, budget: int, seed: int) -> Rank:
    """The rank of the last sequence that the budget has room for, those before it taken.

    Ranks are counted in 65,536 buckets first, so that only those of one bucket need be sorted.

    Raises:
        DatasetError: if there is no room for any.
    """
    shift = 8 * _RANK_BYTES - _BUCKETS.bit_length() + 1
    per_bucket = np.zeros(_BUCKETS, np.int64)
    for (rank, _), tokens in _ranked(selected, seed):
        per_bucket[rank >> shift] += tokens
    ends = np.cumsum(per_bucket)
    full = int(np.searchsorted(ends, budget, side="right"))
    spent = before = int(ends[full - 1]) if full else 0
    last: Rank = (full << shift, "")
    for place, tokens in sorted(item for item in _ranked(selected, seed) if item[0][0] >> shift == full):
        spent += tokens
        if spent > budget:
            break
        last, before = place, spent
    if not before:
        raise DatasetError(f"a budget of {budget} tokens has no room for the first sequence")
    return last


def _within(rows: pa.Table, last: Rank | None, seed: int) -> pa.Table:
    if last is None:
        return rows
    kept = [(_rank(seed, key), key) <= last for key in rows["key"].to_pylist()]
    return rows.filter(pa.array(kept, pa.bool_()))


def _write_shard(dataset: Dataset, base: Dataset, view: Dataset, shard: Shard, rows: pa.Table) -> None:
    """The manifests of one token shard and, where there is one, of the image shard that it was made from."""
    metadata = dataset.metadata(shard)
    whole = rows.num_rows == metadata["sequences"]
    counts: dict[str, Any] = {
        "inputs": rows.num_rows,
        "rejected": 0,
        "sequences": rows.num_rows,
        "images": _sum(rows, "num_images"),
        "tokens": _sum(rows, "num_tokens"),
        "records": len(pc.unique(rows["record"])),
        "histogram": metadata["histogram"] if whole else encode_histogram(_histogram(dataset, shard, rows)),
    }
    _put(view, shard, rows, metadata | counts)
    images = Shard(f"sequences/{metadata['folder']}", shard.number)
    if "imported" in metadata or not dataset.storage.exists(images.manifest):
        return
    about = dataset.metadata(images)
    dataset.check_base(images, about)
    table = dataset.manifest(images)
    table = table.filter(pc.is_in(table["key"], value_set=rows["key"].combine_chunks()))
    used = len(pc.unique(pc.list_flatten(table["inputs"])))
    counts = {
        "inputs": used,
        "used": used,
        "rejected": 0,
        "partial": 0,
        "sequences": table.num_rows,
        "images": _sum(table, "num_images"),
    }
    _put(view, images, table, about | counts)


def _histogram(dataset: Dataset, shard: Shard, rows: pa.Table) -> NDArray[np.int64]:
    """`(8192,)`, how often each code occurs in some sequences: reads their tokens."""
    result = np.zeros(CODEBOOK_SIZE, np.int64)
    try:
        for _, tokens in iter_rows(dataset, shard, rows):
            result += np.bincount(unframe(tokens).reshape(-1), minlength=CODEBOOK_SIZE)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{shard.tar} cannot be read: {error}; `uvd verify` tells more") from error
    return result


def _put(view: Dataset, shard: Shard, rows: pa.Table, metadata: dict[str, Any]) -> None:
    derived = {
        "rows_sha256": sha256("\n".join(rows["key"].to_pylist()).encode()).hexdigest(),
        "summary": encode_summary(summarize_tables(rows, REJECTS.empty_table())),
    }
    view.storage.put(shard.rejects, rejects_to_parquet([], metadata["folder"]))
    view.storage.put(shard.manifest, table_to_parquet(rows, metadata | derived))


def _sum(table: pa.Table, column: str) -> int:
    return int(table[column].to_numpy().sum(dtype=np.int64))

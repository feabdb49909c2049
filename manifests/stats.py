"""Statistics of a dataset from its manifests: shares, tokens, codebook use, rejects, duplicates, cost.

Nothing but footers of Parquet files is read, or the index of an earlier time (`manifests/survey.py`); with a condition
that is not on dimensions alone, the manifests' columns. Tokens and pictures are never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.dedup import FOLDER as DEDUP_FOLDER
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.retried import retried_counts, retried_inputs
from uvd.manifests.runs import read_runs, stage_costs
from uvd.manifests.schema import read_metadata
from uvd.manifests.shares import Cells, cells_of, filtered, shares
from uvd.manifests.sql import query
from uvd.manifests.survey import FolderSurvey, Survey, survey
from uvd.manifests.tokens import CODEBOOK_SIZE, perplexity

UVDV1_SHARES = {
    "unlabelled images": 88.5,
    "annotated images": 7.15,
    "videos": 4.24,
    "annotated videos": 0.06,
    "3D objects": 0.05,
}
"""Percent of images in UVDv1 (LVM paper, arXiv 2312.00785, section 3.1 and appendix)."""
TOP_HOSTS = 10
OTHER = "other"
ALL = "(all)"
FAMILY = {
    "laion": "unlabelled images",
    "images": "unlabelled images",
    "annotated": "annotated images",
    "categories": "annotated images",
    "video": "videos",
    "annotated-video": "annotated videos",
    "objaverse": "3D objects",
}
"""UVDv1's kind of data of each source; `other` for sources that are not named here."""
TABLES = (
    "by",
    "families",
    "sources",
    "datasets",
    "layouts",
    "roles",
    "splits",
    "accounting",
    "rejects",
    "reject_hosts",
    "reject_datasets",
    "tokens",
    "codebook",
    "duplicates",
    "costs",
)
"""The tables among the statistics, in the order in which a person wants them."""
_ACCOUNTED = ("inputs", "used", "rejected", "partial")


def statistics(
    dataset: Dataset,
    where: str | None = None,
    by: Sequence[str] = (),
    *,
    tokenizer: str | None = None,
    counted: Survey | None = None,
) -> dict[str, Any]:
    """Everything that `uvd stats` shows, as one JSON-able mapping.

    Args:
        where: SQL condition on sequences; only the tables of shares are given then.
        by: dimensions of one more table of shares, of `shares.BY`.
        tokenizer: whose tokens the shares count; the one with most tokens by default.
        counted: a survey of this dataset, if there is one already.

    Returns:
        `dataset`, `tokenizer` (or None), `shards` with `read` and `index`, and the tables of `TABLES`, each a list of
        rows with the same keys; a table may be empty or missing.

    Raises:
        DatasetError: if a manifest is none, or `where` or `by` cannot be understood.
    """
    counted = counted or survey(dataset)
    tokenizer = _choose_tokenizer(dataset, counted, tokenizer)
    cells = cells_of(counted, tokenizer)
    if where is not None:
        cells = filtered(dataset, cells, where, tokenizer)
    result: dict[str, Any] = {
        "dataset": dataset.uri,
        "where": where,
        "tokenizer": tokenizer,
        "shards": {
            "all": sum(folder.shards for folder in counted.folders.values()),
            "read": counted.shards_read,
            "index": counted.index,
        },
    }
    if by:
        result["by"] = shares(cells, by)
    result |= _one_way(cells)
    if where is None:
        result |= _accounts(dataset, counted)
        result |= _tokens(dataset, counted)
        result["duplicates"] = _duplicates(dataset, counted)
        result["costs"] = stage_costs(read_runs(dataset).to_pylist())
    return result


def _choose_tokenizer(dataset: Dataset, counted: Survey, wanted: str | None) -> str | None:
    """The one that is wanted, or that made most tokens; None if nothing is tokenized.

    Raises:
        DatasetError: if the wanted one made none.
    """
    tokens: Counter[str] = Counter()
    for tokenizer, source in dataset.token_folders():
        tokens[tokenizer] += counted.folders[f"tokens/{tokenizer}/{source}"].totals["tokens"]
    if wanted is None:
        return max(sorted(tokens), key=tokens.__getitem__, default=None)
    if wanted not in tokens:
        raise DatasetError(f"no tokens by {wanted!r}; there are {', '.join(sorted(tokens)) or 'none at all'}")
    return wanted


def _one_way(cells: Cells) -> dict[str, list[dict[str, Any]]]:
    by_source = shares(cells, ("source", "dataset"))
    return {
        "families": _families(by_source),
        "sources": shares(cells, ("source",)),
        "datasets": by_source,
        "layouts": shares(cells, ("layout",)),
        "roles": shares(cells, ("role",)),
        "splits": shares(cells, ("split",)),
    }


def _families(by_source: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sequences, images and tokens by UVDv1's kinds of data, with the share of images here and there in percent."""
    totals = {family: Counter[str]() for family in UVDV1_SHARES}
    for row in by_source:
        family = totals.setdefault(FAMILY.get(row["source"], OTHER), Counter())
        family.update({name: row[name] for name in ("sequences", "images", "tokens")})
    images = sum(total["images"] for total in totals.values())
    return [
        {
            "family": family,
            "sequences": total["sequences"],
            "images": total["images"],
            "share": 100 * total["images"] / images if images else 0.0,
            "uvdv1_share": UVDV1_SHARES.get(family, 0.0),
            "tokens": total["tokens"],
        }
        for family, total in totals.items()
    ]


def _accounts(dataset: Dataset, counted: Survey) -> dict[str, list[dict[str, Any]]]:
    """Inputs, used and rejected by source; rejects by reason, host and dataset.

    `retried` of the rejected are inputs of a round of retries, which is a source of its own: they are not among the
    rejects.
    """
    retried = retried_inputs(dataset)
    taken_up = Counter(retried["folder"].to_pylist())
    accounting = []
    for source in dataset.sources():
        folder = counted.folders[f"sequences/{source}"]
        totals = {name: folder.totals[name] for name in _ACCOUNTED}
        accounting.append({"source": source, "shards": folder.shards, **totals, "retried": taken_up[source]})
    return {"accounting": accounting, **_rejects(dataset, counted.rejects, retried_counts(dataset, retried))}


def _rejects(
    dataset: Dataset, counts: pa.Table, retried: Mapping[tuple[str, str, str], int]
) -> dict[str, list[dict[str, Any]]]:
    """The tables of rejects of image shards, all sums by Arrow: there may be millions of hosts."""
    taken_up = [(f"sequences/{folder}", reason, host, -inputs) for (folder, reason, host), inputs in retried.items()]
    columns = list(zip(*taken_up, strict=True)) or [()] * len(counts.schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, counts.schema, strict=True)]
    table = pa.concat_tables([counts, pa.table(arrays, schema=counts.schema)])
    table = table.filter(pc.starts_with(table["folder"], "sequences/"))
    names = {f"sequences/{source}": name for source, name in _datasets(dataset).items()}
    folders = table["folder"].to_numpy(zero_copy_only=False)
    table = table.append_column("dataset", pa.array([names[folder] for folder in folders], pa.string()))
    with_host = table.filter(pc.not_equal(table["host"], ""))
    return {
        "rejects": _most(table, ["reason"]),
        "reject_hosts": _most(with_host, ["host", "reason"], TOP_HOSTS),
        "reject_datasets": _most(table, ["dataset", "reason"]),
    }


def _most(table: pa.Table, keys: list[str], limit: int | None = None) -> list[dict[str, Any]]:
    """Inputs by `keys`, most first."""
    added = table.group_by(keys).aggregate([("inputs", "sum")]).rename_columns({"inputs_sum": "inputs"})
    added = added.filter(pc.not_equal(added["inputs"], 0))
    ordered = added.sort_by([("inputs", "descending"), *((key, "ascending") for key in keys)])
    rows: list[dict[str, Any]] = ordered.slice(0, limit).select([*keys, "inputs"]).to_pylist()
    return rows


def _datasets(dataset: Dataset) -> dict[str, str]:
    """Name of the dataset that each source was made from, as its config says; else the source's own."""
    named = {}
    for source, entry in dataset.info()["sequences"].items():
        config = entry.get("config")
        named[source] = str(config.get("dataset", source)) if isinstance(config, dict) else source
    return named


def _tokens(dataset: Dataset, counted: Survey) -> dict[str, list[dict[str, Any]]]:
    """Tokens, bytes and codebook use by tokenizer and source, and of all sources together where there are several."""
    folders: dict[str, dict[str, list[FolderSurvey]]] = {}
    for tokenizer, source in dataset.token_folders():
        folders.setdefault(tokenizer, {})[source] = [counted.folders[f"tokens/{tokenizer}/{source}"]]
    parts = []
    for tokenizer, sources in folders.items():
        parts += [(tokenizer, source, part) for source, part in sources.items()]
        if len(sources) > 1:
            parts.append((tokenizer, ALL, [folder for part in sources.values() for folder in part]))
    return {
        "tokens": [_token_row(*part) for part in parts],
        "codebook": [_codebook_row(*part) for part in parts],
    }


def _token_row(tokenizer: str, source: str, folders: list[FolderSurvey]) -> dict[str, Any]:
    totals = Counter[str]()
    for folder in folders:
        totals.update(folder.totals)
    tokens, tar_bytes = totals["tokens"], totals["tar_bytes"]
    return {
        "tokenizer": tokenizer,
        "source": source,
        **{name: totals[name] for name in ("sequences", "images", "rejected", "tokens", "tar_bytes")},
        "bytes_per_token": tar_bytes / tokens if tokens else 0.0,
    }


def _codebook_row(tokenizer: str, source: str, folders: list[FolderSurvey]) -> dict[str, Any]:
    """`unknown_shards` are those whose manifest has no histogram, and whose tokens are not in these numbers."""
    return {
        "tokenizer": tokenizer,
        "source": source,
        **codebook_use(np.sum([folder.histogram for folder in folders], axis=0)),
        "unknown_shards": sum(folder.without_histogram for folder in folders),
    }


def codebook_use(histogram: NDArray[np.int64]) -> dict[str, float]:
    """Share of the 8192 codes that occur, in percent, how many do not, and the perplexity (exp of the entropy)."""
    used = int(np.count_nonzero(histogram))
    return {
        "codes_used": 100 * used / CODEBOOK_SIZE,
        "dead_codes": CODEBOOK_SIZE - used,
        "perplexity": perplexity(histogram) if used else 0.0,
    }


def _duplicates(dataset: Dataset, counted: Survey) -> list[dict[str, Any]]:
    """What passes of `uvd dedup` have marked; `stale` if manifests have changed since."""
    rows = []
    for name in dataset.storage.list(DEDUP_FOLDER):
        if not name.endswith(".parquet"):
            continue
        groups, marked, metadata = _read_pass(dataset, f"{DEDUP_FOLDER}/{name}")
        sources = metadata["sources"]
        known = [counted.folders.get(f"sequences/{source}") for source in sources]
        hashes = [
            [Shard(f"sequences/{source}", number).manifest, sha]
            for source, folder in zip(sources, known, strict=True)
            if folder is not None
            for number, sha in sorted(folder.tar_sha256.items())
        ]
        rows.append(
            {
                "pass": name.removesuffix(".parquet"),
                "bits": metadata["bits"],
                "exact": metadata["exact"],
                "roles": ", ".join(metadata["roles"]),
                "groups": groups,
                "duplicates": marked,
                "stale": None in known or metadata["manifests"] != fingerprint(hashes),
            }
        )
    return rows


def _read_pass(dataset: Dataset, path: str) -> tuple[int, int, dict[str, Any]]:
    """(groups, images that are not their group's representative, metadata) of the marks in a file.

    Raises:
        DatasetError: if it was not written by `uvd dedup`.
    """
    try:
        with dataset.storage.open(path) as file:
            marks = pq.ParquetFile(file)
            metadata = read_metadata(marks.schema_arrow, path)
            rows, parts = marks.metadata.num_rows, marks.metadata.num_row_groups
            # Groups are numbered in the order of the rows.
            groups = 1 + pc.max(marks.read_row_group(parts - 1, ["group"])["group"]).as_py() if rows else 0
            kept = {name: metadata[name] for name in ("bits", "exact", "roles", "sources", "manifests")}
            return groups, rows - groups, kept
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DatasetError(f"{path} was not written by `uvd dedup` ({error}): delete it, or run that again") from error


def flatten(statistics: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables among the statistics that are not empty, in the order in which a person wants them."""
    return [(name, statistics[name]) for name in TABLES if statistics.get(name)]


__all__ = ["UVDV1_SHARES", "codebook_use", "flatten", "query", "statistics", "survey"]

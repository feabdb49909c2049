"""Statistics of a dataset from its manifests: shares beside UVDv1's, layouts, tokens and codebook use, rejects.

Nothing but Parquet is read. DuckDB does the sums over all manifests at once, and answers `--sql` on the same views,
read-only and without access to other files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from uvd.manifests.dataset import RETRY_PLAN, Dataset, DatasetError
from uvd.manifests.schema import REJECTS, SEQUENCES, TOKENS
from uvd.manifests.token_shard import decode_histogram
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


def connect(dataset: Dataset) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views `sequences`, `tokens` and `rejects`, closed to all other files."""
    views: dict[str, Any] = {
        "sequences": _scan(dataset, [shard.manifest for shard in dataset.all_shards("sequences")], SEQUENCES),
        "tokens": _scan(dataset, [shard.manifest for shard in dataset.all_shards("tokens")], TOKENS),
        "refused": _scan(dataset, [shard.rejects for shard in dataset.all_shards("sequences")], REJECTS),
        "retried": _retried(dataset),
    }
    connection = duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
    for name, view in views.items():
        connection.register(name, view)
    # What a round of retries has taken up is counted there.
    connection.execute("create view rejects as from refused anti join retried using (folder, shard, input)")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _retried(dataset: Dataset) -> pa.Table:
    """(folder, shard, input) of rejects that a committed shard of retries has taken up."""
    columns = ["folder", "shard", "input"]
    tables = [pa.schema([REJECTS.field(name) for name in columns]).empty_table()]
    for name, entry in sorted(dataset.info()["sequences"].items()):
        # A run may have been killed between recording a round and writing its plan: then there is no round.
        if "retry_of" in entry and dataset.storage.exists(f"sequences/{name}/{RETRY_PLAN}"):
            plan = pq.read_table(io.BytesIO(dataset.storage.read(f"sequences/{name}/{RETRY_PLAN}")), columns=columns)
            size = entry["retry_shard_size"]
            tables += [plan.slice(shard.number * size, size) for shard in dataset.shards(f"sequences/{name}")]
    return pa.concat_tables(tables)


def _scan(dataset: Dataset, paths: list[str], schema: pa.Schema) -> Any:
    if not paths:
        return schema.empty_table()
    full = [dataset.storage.full(path) for path in paths]
    return pads.dataset(full, schema=schema, filesystem=dataset.storage.filesystem, format="parquet")


def query(dataset: Dataset, sql: str) -> pa.Table:
    """Answers one SQL query on the views `sequences`, `tokens` and `rejects`.

    Raises:
        DatasetError: if it is not one `select`, or DuckDB refuses it.
    """
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise DatasetError("--sql takes one select statement")
        return connect(dataset).sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise DatasetError(f"--sql: {error}") from error


def statistics(dataset: Dataset) -> dict[str, Any]:
    """Everything that `uvd stats` shows, as one JSON-able mapping."""
    connection = connect(dataset)

    def rows(sql: str) -> list[dict[str, Any]]:
        table: pa.Table = connection.sql(sql).to_arrow_table()
        return table.to_pylist()

    taken_up = {row["folder"]: row["n"] for row in rows("select folder, count(*)::bigint n from retried group by all")}
    by_source = rows(
        "select source, dataset, count(*)::bigint sequences, sum(num_images)::bigint images, sum(length)::bigint bytes "
        "from sequences group by all order by source, dataset"
    )
    return {
        "dataset": dataset.uri,
        "sources": by_source,
        "families": _families(by_source),
        "layouts": rows(
            "select layout, count(*)::bigint sequences, sum(num_images)::bigint images "
            "from sequences group by all order by images desc, layout"
        ),
        "splits": rows(
            "select split, count(*)::bigint sequences, sum(num_images)::bigint images "
            "from sequences group by all order by split"
        ),
        "roles": rows(
            "select role, count(*)::bigint images from (select unnest(roles) role from sequences) "
            "group by all order by images desc, role"
        ),
        "rejects": rows(
            "select reason, count(*)::bigint inputs from rejects where not partial group by all "
            "order by inputs desc, reason"
        ),
        "reject_hosts": rows(
            "select regexp_extract(origin, '^https?://([^/?#]+)', 1) host, reason, count(*)::bigint inputs "
            "from rejects where not partial and origin similar to 'https?://.*' "
            f"group by all order by inputs desc, host, reason limit {TOP_HOSTS}"
        ),
        "accounting": _accounting(dataset, taken_up),
        "tokens": _tokens(dataset),
    }


def _families(by_source: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images by UVDv1's kinds of data, with the share here and there in percent."""
    total = sum(row["images"] for row in by_source)
    images = dict.fromkeys(UVDV1_SHARES, 0)
    for row in by_source:
        family = FAMILY.get(row["source"], OTHER)
        images[family] = images.get(family, 0) + row["images"]
    return [
        {
            "family": family,
            "images": count,
            "share": 100 * count / total if total else 0.0,
            "uvdv1_share": UVDV1_SHARES.get(family, 0.0),
        }
        for family, count in images.items()
    ]


def _accounting(dataset: Dataset, taken_up: Mapping[str, int]) -> list[dict[str, Any]]:
    """Inputs, used and rejected by source, summed over the manifests' metadata; `retried` of the rejected are inputs of
    a round of retries, which is a source of its own."""
    result = []
    for source in dataset.sources():
        totals = dict.fromkeys(("inputs", "used", "rejected", "partial"), 0)
        shards = dataset.shards(f"sequences/{source}")
        for shard in shards:
            metadata = dataset.metadata(shard)
            for name in totals:
                totals[name] += metadata[name]
        result.append({"source": source, "shards": len(shards), **totals, "retried": taken_up.get(source, 0)})
    return result


def _tokens(dataset: Dataset) -> list[dict[str, Any]]:
    """Tokens, bytes and codebook use by tokenizer and source; histograms are merged, tokens never read."""
    result = []
    for tokenizer, source in dataset.token_folders():
        totals: dict[str, int] = dict.fromkeys(("sequences", "images", "tokens", "tar_bytes", "rejected"), 0)
        histogram = np.zeros(CODEBOOK_SIZE, np.int64)
        for shard in dataset.shards(f"tokens/{tokenizer}/{source}"):
            metadata = dataset.metadata(shard)
            for name in totals:
                totals[name] += metadata[name]
            histogram += decode_histogram(metadata["histogram"])
        result.append({"tokenizer": tokenizer, "source": source, **totals, **codebook_use(histogram)})
    return result


def codebook_use(histogram: np.ndarray) -> dict[str, float]:
    """Share of the 8192 codes that occur, in percent, and the perplexity (exp of the entropy) of their use."""
    used = np.count_nonzero(histogram)
    if not used:
        return {"codes_used": 0.0, "perplexity": 0.0}
    return {
        "codes_used": 100 * used / CODEBOOK_SIZE,
        "perplexity": perplexity(histogram),
    }


def flatten(statistics: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables among the statistics, in the order in which a person wants them."""
    order = ("families", "sources", "layouts", "splits", "roles", "accounting", "rejects", "reject_hosts", "tokens")
    return [(name, statistics[name]) for name in order if statistics[name]]

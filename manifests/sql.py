"""SQL over a dataset's manifests: one `select` on the views `sequences`, `tokens`, `rejects` and `runs`, by DuckDB.

DuckDB has external access off, its configuration locked, no extensions to load and no Python variables to see. Of a
local dataset it may open the very files that the views consist of; on object stores Arrow feeds the views, and it opens
none. Besides, only the views and a few harmless table functions may be named, which is decided on DuckDB's own parse of
the query.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.retried import retried_inputs
from uvd.manifests.runs import read_runs
from uvd.manifests.schema import REJECTS, SEQUENCES, TOKENS

VIEWS = ("sequences", "tokens", "rejects", "runs")
TABLE_FUNCTIONS = frozenset({"unnest", "range", "generate_series"})
MAX_ROWS = 1_000_000
"""Of an answer."""
MAX_CHARACTERS = 100_000
MEMORY_MB = 3000
"""Of DuckDB, which spills to a temporary folder beyond it."""
SPILL_GB = 50
_PATTERN = re.compile(r"[*?\[]")
"""What DuckDB would take for a pattern in a path."""


@contextmanager
def connected(
    dataset: Dataset, views: frozenset[str] = frozenset(VIEWS), tables: Mapping[str, pa.Table] = MappingProxyType({})
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with these views and further tables, closed to all files.

    `tokens` has a first column `tokenizer` besides those of the manifests; in `rejects`, what a round of retries has
    taken up is left out, because it is counted there.
    """
    with tempfile.TemporaryDirectory(prefix="uvd-sql-") as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
            "memory_limit": f"{MEMORY_MB}MB",
            "temp_directory": spill,
            "max_temp_directory_size": f"{SPILL_GB}GB",
            "threads": len(os.sched_getaffinity(0)),
            "preserve_insertion_order": False,
        }
        with duckdb.connect(config=config) as connection:
            # It would go to standard output, where answers go.
            connection.execute("SET enable_progress_bar = false")
            paths = [path for name in sorted(views) for path in _CREATE[name](connection, dataset)]
            for name, table in tables.items():
                connection.register(name, table)
            connection.execute(f"SET allowed_paths = {_list(paths)}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection


def _sequences(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> list[str]:
    paths = _manifests(dataset, dataset.all_shards("sequences"))
    return _create(connection, dataset, "sequences", paths, SEQUENCES)


def _tokens(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> list[str]:
    """One view a tokenizer: manifests do not have its name in a column."""
    shards: dict[str, list[Shard]] = {"": []}
    for tokenizer, source in dataset.token_folders():
        shards.setdefault(tokenizer, []).extend(dataset.shards(f"tokens/{tokenizer}/{source}"))
    opened, parts = [], []
    for number, (tokenizer, members) in enumerate(sorted(shards.items())):
        opened += _create(connection, dataset, f"tokens_{number}", _manifests(dataset, members), TOKENS)
        parts.append(f"select {_quoted(tokenizer)} as tokenizer, * from tokens_{number}")
    connection.execute("create view tokens as " + " union all ".join(parts))
    return opened


def _rejects(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> list[str]:
    paths = [dataset.storage.full(shard.rejects) for shard in dataset.all_shards("sequences")]
    opened = _create(connection, dataset, "refused", paths, REJECTS)
    connection.register("retried", retried_inputs(dataset))
    connection.execute("create view rejects as from refused anti join retried using (folder, shard, input)")
    return opened


def _runs(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> list[str]:
    connection.register("runs", read_runs(dataset))
    return []


_CREATE = {"sequences": _sequences, "tokens": _tokens, "rejects": _rejects, "runs": _runs}


def _manifests(dataset: Dataset, shards: Iterable[Shard]) -> list[str]:
    return [dataset.storage.full(shard.manifest) for shard in shards]


def _create(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, paths: list[str], schema: pa.Schema
) -> list[str]:
    """Makes a view of Parquet files; returns those that DuckDB has to open itself.

    It does so with local files: Arrow takes four times as long, and keeps 70 kB of each file in memory.
    """
    if not paths:
        connection.register(name, schema.empty_table())
        return []
    if dataset.storage.local_root is None or _PATTERN.search(dataset.uri):
        files = pads.dataset(paths, schema=schema, filesystem=dataset.storage.filesystem, format="parquet")
        connection.register(name, files)
        return []
    columns = ", ".join(f'"{column}"' for column in schema.names)
    connection.execute(
        f"create view {name} as select {columns} from read_parquet({_list(paths)}, hive_partitioning = false)"
    )
    return paths


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _list(texts: Iterable[str]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"


def query(dataset: Dataset, sql: str) -> pa.Table:
    """Answers one SQL query on the views `sequences`, `tokens`, `rejects` and `runs`.

    Raises:
        DatasetError: if it is not one `select` on these, or DuckDB refuses it, or it has too many rows.
    """
    views = _check(sql)
    try:
        with connected(dataset, views) as connection:
            return _fetch(connection.sql(sql))
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise DatasetError(f"--sql: {error}") from error


def _fetch(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    reader = relation.to_arrow_reader(1 << 16)
    batches, rows = [], 0
    for batch in reader:
        batches.append(batch)
        rows += len(batch)
        if rows > MAX_ROWS:
            raise DatasetError(f"--sql: the answer has over {MAX_ROWS:,} rows; add a `limit`, or group them")
    return pa.Table.from_batches(batches, schema=reader.schema)


def _check(sql: str) -> frozenset[str]:
    """The views that a query names.

    Raises:
        DatasetError: if it is not one `select`, or names anything else.
    """
    if not sql.strip() or len(sql) > MAX_CHARACTERS:
        raise DatasetError(f"--sql takes a query of 1 to {MAX_CHARACTERS:,} characters")
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise DatasetError(f"--sql: {error}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise DatasetError("--sql takes one select statement")
    return _named(parse(sql, "--sql"))


def parse(sql: str, option: str) -> list[dict[str, Any]]:
    """The statements of a query, as DuckDB's own parser has them.

    Raises:
        DatasetError: if there is none, or one is no `select`; names the command's `option`.
    """
    try:
        with duckdb.connect() as connection:
            ((text,),) = connection.execute("select json_serialize_sql(?)", [sql]).fetchall()
    except duckdb.Error as error:
        raise DatasetError(f"{option}: {error}") from error
    parsed = json.loads(text)
    if parsed["error"]:
        raise DatasetError(f"{option}: {parsed['error_message']}")
    statements: list[dict[str, Any]] = parsed["statements"]
    return statements


def parts(parsed: Any) -> Iterator[dict[str, Any]]:
    """All nodes of what `parse` gave."""
    waiting = [parsed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _named(parsed: Any) -> frozenset[str]:
    tables, functions, own, everything = set[str](), set[str](), set[str](), False
    for value in parts(parsed):
        if "cte_map" in value:
            own |= {entry["key"].lower() for entry in value["cte_map"]["map"]}
        match value.get("type"):
            case "BASE_TABLE":
                tables.add(
                    ".".join([*filter(None, (value["catalog_name"], value["schema_name"])), value["table_name"]])
                )
            case "TABLE_FUNCTION":
                functions.add(value["function"]["function_name"].lower())
            case "SHOW_REF":
                everything = True
    strange = sorted(name for name in tables if name.lower() not in own | {*VIEWS})
    if strange:
        raise DatasetError(f"--sql: {strange[0]!r} is none of the views {', '.join(VIEWS)}")
    if functions - TABLE_FUNCTIONS:
        raise DatasetError(
            f"--sql: {min(functions - TABLE_FUNCTIONS)} is not allowed: a query reads the views {', '.join(VIEWS)} only"
        )
    return frozenset(VIEWS if everything else ({name.lower() for name in tables} & {*VIEWS}))

"""`--where` over token manifests: one SQL condition, decided row by row, by DuckDB in memory and closed to all files.

The same row gives the same answer whenever and in whatever company it is asked, so that what is chosen is a function
of the dataset alone: no subqueries, aggregates or windows, no clock, chance or setting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uvd.manifests.dataset import DatasetError
from uvd.manifests.schema import TOKENS

MAX_CHARACTERS = 100_000
_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "memory_limit": "1GB",
    "enable_external_access": False,
    "lock_configuration": True,
}


class Condition:
    """A condition over the columns of token manifests, such as `layout = 'pairs' and num_images >= 8`.

    Raises:
        DatasetError: if it is not one condition over these columns, or a row alone does not decide it.
    """

    def __init__(self, sql: str) -> None:
        self._sql = sql
        self._connection = duckdb.connect(config=_CLOSED)
        if not sql.strip() or len(sql) > MAX_CHARACTERS:
            raise DatasetError(f"--where: a condition has 1 to {MAX_CHARACTERS} characters")
        self._check(self._parsed())
        kind = self._ask("describe select", "", TOKENS.empty_table())["column_type"][0]
        if kind != "BOOLEAN":
            raise DatasetError(f"--where takes one condition; {sql!r} is a value of type {kind}")

    def mask(self, rows: pa.Table) -> NDArray[np.bool_]:
        """`(n,)` True where the condition holds; False also where it is null.

        Args:
            rows: of token manifests, with all columns.

        Raises:
            DatasetError: if DuckDB cannot decide it for these rows, such as a cast of a word to a number.
        """
        return np.asarray(self._ask("select", "is true", rows)["chosen"], dtype=bool)

    def _ask(self, verb: str, suffix: str, rows: pa.Table) -> dict[str, Any]:
        self._connection.register("manifest_rows", rows)
        try:
            # The line feed ends a comment.
            sql = f"{verb} ({self._sql}\n) {suffix} chosen from manifest_rows"
            found: dict[str, Any] = self._connection.execute(sql).fetchnumpy()
        except duckdb.Error as error:
            raise DatasetError(f"--where: {error}") from error
        finally:
            self._connection.unregister("manifest_rows")
        return found

    def _parsed(self) -> Mapping[str, Any]:
        """The one expression that the condition is."""
        try:
            (text,) = self._connection.execute(
                "select json_serialize_sql(?)", [f"select ({self._sql}\n) from manifest_rows"]
            ).fetchall()[0]
        except duckdb.Error as error:
            raise DatasetError(f"--where: {error}") from error
        parsed = json.loads(text)
        if parsed["error"]:
            raise DatasetError(f"--where: {parsed['error_message']}")
        nodes = [statement["node"] for statement in parsed["statements"]]
        if len(nodes) != 1 or nodes[0]["type"] != "SELECT_NODE" or len(nodes[0]["select_list"]) != 1:
            raise DatasetError("--where takes one condition, such as \"layout = 'pairs' and num_images >= 8\"")
        expression: Mapping[str, Any] = nodes[0]["select_list"][0]
        return expression

    def _check(self, expression: Mapping[str, Any]) -> None:
        nodes = list(_nodes(expression))
        # What a lambda calls its own are names too.
        known = {name.lower() for node in nodes if node["class"] == "LAMBDA" for name in _names(node["lhs"])}
        known |= {name.lower() for name in TOKENS.names}
        plain = {
            name
            for (name,) in self._connection.execute(
                "select function_name from duckdb_functions() group by all "
                "having bool_and(function_type = 'scalar' and stability = 'CONSISTENT')"
            ).fetchall()
        }
        for node in nodes:
            if node["class"] in ("SUBQUERY", "WINDOW", "STAR", "PARAMETER"):
                raise DatasetError(
                    f"--where: each row is decided by itself; a {node['class'].lower()} has no place here"
                )
            if node["class"] == "FUNCTION" and node["function_name"] not in plain:
                raise DatasetError(f"--where: {node['function_name']} is no function that a row alone decides")
            if node["class"] == "COLUMN_REF" and node["column_names"][0].lower() not in known:
                raise DatasetError(
                    f"--where: there is no column {node['column_names'][0]!r}, but {', '.join(TOKENS.names)}"
                )


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All expressions inside a piece of DuckDB's JSON, itself included."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class" in value:
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _names(parameters: Any) -> Iterator[str]:
    for node in _nodes(parameters):
        yield from node.get("column_names", ())

"""What share of a dataset is of which source, dataset, layout, role and split; filtered by a condition if one is given.

All shares are sums over *cells*: counts by the values of all dimensions, which the summaries of shards have. A
condition on the dimensions alone picks cells; any other is decided row by row, from the manifests.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.sql import connected, parse, parts
from uvd.manifests.summary import DIMENSIONS, Group
from uvd.manifests.survey import Survey
from uvd.manifests.tokens import TOKENS_PER_IMAGE

ROLE = "role"
BY = (*DIMENSIONS, ROLE)
"""What shares may be asked by."""
MAX_CHARACTERS = 100_000
_KEY = ", ".join(DIMENSIONS)
_CELL = pa.schema([pa.field(name, pa.string()) for name in DIMENSIONS])


@dataclass
class Cells:
    """Counts by values of `DIMENSIONS` (and role): (sequences, images, tokens, bytes), (sequences, images, tokens)."""

    groups: dict[Group, list[int]] = field(default_factory=dict)
    roles: dict[Group, list[int]] = field(default_factory=dict)


def cells_of(survey: Survey, tokenizer: str | None) -> Cells:
    """All cells; sequences, images and bytes from the image shards, tokens from the token shards of `tokenizer`."""
    cells = Cells()
    for name, folder in survey.folders.items():
        if name.startswith("sequences/"):
            for key, (sequences, images, _, size) in folder.summary.groups.items():
                _add(cells.groups, key, (sequences, images, 0, size))
            for key, (sequences, images) in folder.summary.roles.items():
                _add(cells.roles, key, (sequences, images, 0))
        elif tokenizer is not None and name.startswith(f"tokens/{tokenizer}/"):
            for key, (_, _, tokens, _) in folder.summary.groups.items():
                _add(cells.groups, key, (0, 0, tokens, 0))
            for key, (_, images) in folder.summary.roles.items():
                # BOS and EOS belong to no role.
                _add(cells.roles, key, (0, 0, images * TOKENS_PER_IMAGE))
    return cells


def _add(into: dict[Group, list[int]], key: Group, counts: Iterable[int]) -> None:
    known = into.get(key)
    into[key] = list(counts) if known is None else [a + b for a, b in zip(known, counts, strict=True)]


def shares(cells: Cells, by: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the values of `by` with sequences, images, tokens, bytes, and their share of all images in percent.

    Most images first. By role, a sequence counts for each of its roles, BOS and EOS for none, and bytes are not known.

    Args:
        by: one or more of `BY`.

    Raises:
        DatasetError: if there is no such dimension.
    """
    for name in by:
        if name not in BY:
            near = difflib.get_close_matches(name, BY, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BY)}"
            raise DatasetError(f"--by {name}: unknown; {hint}")
    source, names = (cells.roles, BY) if ROLE in by else (cells.groups, DIMENSIONS)
    added: dict[Group, list[int]] = {}
    for key, counts in source.items():
        _add(added, tuple(key[names.index(name)] for name in by), counts)
    total = sum(counts[1] for counts in added.values())
    rows = []
    for key, (sequences, images, tokens, *size) in sorted(added.items(), key=lambda item: (-item[1][1], item[0])):
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        row |= {"sequences": sequences, "images": images, "share": 100 * images / total if total else 0.0}
        row["tokens"] = tokens
        if size:
            row |= {"bytes": size[0], "bytes_per_image": size[0] / images if images else 0.0}
        rows.append(row)
    return rows


def filtered(dataset: Dataset, cells: Cells, where: str, tokenizer: str | None) -> Cells:
    """The cells of the sequences for which a condition holds.

    Args:
        where: SQL over the columns of sequence manifests, `layout = 'pairs' and num_images >= 8`.

    Raises:
        DatasetError: if it is not one condition over these columns.
    """
    _check_condition(where)
    keys = list(cells.groups)
    columns = [pa.array([key[number] for key in keys], pa.string()) for number in range(len(DIMENSIONS))]
    try:
        with connected(dataset, frozenset(), {"cells": pa.table(columns, schema=_CELL)}) as connection:
            try:
                found = connection.table("cells").filter(_as_condition(where)).fetchall()
            except duckdb.BinderException:
                found = None
        if found is None:
            return _scanned(dataset, where, tokenizer)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise DatasetError(f"--where: {error}") from error
    kept = set(found)
    return Cells(
        {key: counts for key, counts in cells.groups.items() if key in kept},
        {key: counts for key, counts in cells.roles.items() if key[:-1] in kept},
    )


def _check_condition(where: str) -> None:
    """
    Raises:
        DatasetError: unless it is one expression that is decided for each row by itself.
    """
    if not where.strip() or len(where) > MAX_CHARACTERS:
        raise DatasetError(f"--where takes a condition of 1 to {MAX_CHARACTERS:,} characters")
    parsed = parse(f"select {where}\n from sequences", "--where")
    node = parsed[0]["node"]
    if len(parsed) != 1 or node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1:
        raise DatasetError("--where takes one condition, such as \"layout = 'pairs' and num_images >= 8\"")
    if any(part.get("class") in ("SUBQUERY", "WINDOW") for part in parts(node)):
        raise DatasetError("--where: each row is decided by itself; subqueries and windows have no place here")


def _as_condition(where: str) -> str:
    # A line of its own, so that a comment at its end hides nothing of ours.
    return f"({where}\n)"


def _scanned(dataset: Dataset, where: str, tokenizer: str | None) -> Cells:
    """The same, from the rows of all manifests."""
    cells = Cells()
    views = frozenset({"sequences"} if tokenizer is None else {"sequences", "tokens"})
    with connected(dataset, views) as connection:
        connection.table("sequences").filter(_as_condition(where)).create_view("chosen")
        counted = connection.sql(
            f"select {_KEY}, roles, count(*)::bigint, sum(num_images)::bigint, sum(length)::bigint "
            f"from chosen group by {_KEY}, roles"
        )
        for *key, roles, sequences, images, size in _rows(counted):
            _add(cells.groups, tuple(key), (sequences, images, 0, size))
            for role in set(roles):
                _add(cells.roles, (*key, role), (sequences, sequences * roles.count(role), 0))
        if tokenizer is not None:
            counted = connection.sql(
                f"select {_KEY}, roles, count(*)::bigint, sum(num_tokens)::bigint from tokens "
                f"semi join chosen using (key) where tokenizer = $name group by {_KEY}, roles",
                params={"name": tokenizer},
            )
            for *key, roles, sequences, tokens in _rows(counted):
                _add(cells.groups, tuple(key), (0, 0, tokens, 0))
                for role in set(roles):
                    images = sequences * roles.count(role)
                    _add(cells.roles, (*key, role), (0, 0, images * TOKENS_PER_IMAGE))
    return cells


def _rows(relation: duckdb.DuckDBPyRelation) -> Iterable[tuple[Any, ...]]:
    for batch in relation.to_arrow_reader(1 << 14):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

"""What a shard holds, summed up in its manifest's metadata, so that statistics of any dataset read footers only.

A summary is additive: those of all shards make that of the dataset, exactly. It is derived from the shard's rows and
rejects, and `uvd verify` holds it against them; manifests from before there were summaries are summed up from their
columns when they are met.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pyarrow import csv

DIMENSIONS = ("source", "dataset", "layout", "split")
"""Columns of both kinds of manifests by which sequences are counted."""
MEASURES = ("sequences", "images", "tokens", "bytes")
"""Tokens are with BOS and EOS, 0 in image shards; bytes are those of the sequences in the tar."""
ROLE_MEASURES = ("sequences", "images")
"""Sequences that have the role at all, and pictures in it."""
COLUMNS = {
    "sequences": (*DIMENSIONS, "num_images", "roles", "length"),
    "tokens": (*DIMENSIONS, "num_images", "roles", "length", "num_tokens"),
}
"""What a summary is made from, by kind of manifest."""
REJECT_COUNTS = pa.schema([("reason", pa.string()), ("host", pa.string()), ("inputs", pa.int64())])
MAX_BYTES = 64 << 20
"""Of a summary's JSON; more is refused unread. That of 1,000 inputs has some kB."""
_HOST = re.compile(r"^https?://([^/?#\s]+)")

Group = tuple[str, ...]
"""Values of `DIMENSIONS`."""


class SummaryError(ValueError):
    """Bytes that are not a summary."""


@dataclass
class Summary:
    """Counts of one shard, or of many.

    Attributes:
        groups: `MEASURES` by values of `DIMENSIONS`.
        roles: `ROLE_MEASURES` by values of `DIMENSIONS` and role.
        rejects: inputs that nothing was used of, by reason and host of their URL (empty if they have none). An input
            that was refused for two reasons counts for both.
    """

    groups: dict[Group, list[int]] = field(default_factory=dict)
    roles: dict[Group, list[int]] = field(default_factory=dict)
    rejects: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, other: Summary) -> None:
        """Adds the counts of other shards."""
        for mine, theirs in ((self.groups, other.groups), (self.roles, other.roles)):
            for key, counts in theirs.items():
                _count(mine, key, counts)
        self.rejects.update(other.rejects)


def _count(into: dict[Group, list[int]], key: Group, counts: Iterable[int]) -> None:
    known = into.get(key)
    into[key] = list(counts) if known is None else [a + b for a, b in zip(known, counts, strict=True)]


def summarize(rows: Iterable[Mapping[str, Any]], rejects: Iterable[Mapping[str, Any]]) -> Summary:
    """Sums up the rows of one shard's manifest (with its kind's `COLUMNS`) and of its rejects."""
    result = Summary()
    for row in rows:
        key = tuple(row[name] for name in DIMENSIONS)
        _count(result.groups, key, (1, row["num_images"], row.get("num_tokens", 0), row["length"]))
        for role, images in Counter(row["roles"]).items():
            _count(result.roles, (*key, role), (1, images))
    refused = {(row["input"], row["reason"], host(row["origin"])) for row in rejects if not row["partial"]}
    result.rejects.update((reason, name) for _, reason, name in refused)
    return result


def summarize_tables(manifest: pa.Table, rejects: pa.Table) -> Summary:
    """The same, of tables."""
    kind = "tokens" if "num_tokens" in manifest.column_names else "sequences"
    rows = manifest.select(list(COLUMNS[kind])).to_pylist()
    return summarize(rows, rejects.select(["input", "reason", "origin", "partial"]).to_pylist())


def host(origin: str) -> str:
    """Host, with port if there is one, of an HTTP URL; empty for other origins."""
    match = _HOST.match(origin)
    return match[1].rpartition("@")[2] if match else ""


def encode_summary(summary: Summary) -> str:
    """As base64 of deflated text: a line of JSON, then one of reason, host and number for each kind of rejects, between
    tabs. Equal summaries give equal text."""
    content = {
        "groups": [[*key, *counts] for key, counts in sorted(summary.groups.items())],
        "roles": [[*key, *counts] for key, counts in sorted(summary.roles.items())],
    }
    first = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    rejects = (f"{reason}\t{name}\t{inputs}" for (reason, name), inputs in sorted(summary.rejects.items()))
    text = "".join(line + "\n" for line in (first, *rejects))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def decode_summary(text: str) -> Summary:
    """Reads what `encode_summary` wrote.

    Raises:
        SummaryError: if it is none.
    """
    summary, lines = decode_groups(text)
    rejects = parse_rejects(lines).to_pylist()
    return replace(summary, rejects=Counter({(row["reason"], row["host"]): row["inputs"] for row in rejects}))


def decode_groups(text: str) -> tuple[Summary, bytes]:
    """A summary without its rejects, and these as lines, for `parse_rejects` to read those of many at once.

    Raises:
        SummaryError: if it is no summary.
    """
    try:
        first, _, lines = inflate(text, MAX_BYTES).partition(b"\n")
        content = json.loads(first)
        groups = dict(_split(row, len(DIMENSIONS), len(MEASURES)) for row in content["groups"])
        roles = dict(_split(row, len(DIMENSIONS) + 1, len(ROLE_MEASURES)) for row in content["roles"])
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise SummaryError(f"its summary is damaged: {error}") from error
    return Summary(groups, roles), lines


def parse_rejects(lines: bytes) -> pa.Table:
    """Columns of `REJECT_COUNTS` from the lines of one summary or of many.

    Raises:
        SummaryError: if they are not such lines.
    """
    if not lines:
        return REJECT_COUNTS.empty_table()
    try:
        return csv.read_csv(
            pa.BufferReader(lines),
            csv.ReadOptions(column_names=REJECT_COUNTS.names),
            csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(column_types=REJECT_COUNTS, null_values=[]),
        )
    except pa.ArrowException as error:
        raise SummaryError(f"the rejects of its summary are damaged: {error}") from error


def _split(row: list[Any], names: int, counts: int) -> tuple[Group, list[int]]:
    if len(row) != names + counts:
        raise ValueError(f"{len(row)} values in place of {names + counts}")
    return tuple(map(str, row[:names])), [int(value) for value in row[names:]]


def inflate(text: str, max_bytes: int) -> bytes:
    """Decodes base64 of deflated bytes.

    Raises:
        ValueError: if there are more than `max_bytes`, or it is cut short.
    """
    machine = zlib.decompressobj()
    data = machine.decompress(base64.b64decode(text, validate=True), max_bytes)
    if not machine.eof:
        raise ValueError(f"cut short, or more than {max_bytes} bytes")
    return data

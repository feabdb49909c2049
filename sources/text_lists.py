"""URL lists as text: CSV, TSV and JSON lines, plain or gzipped; where their rows are, and reading a range of them.

They have no footer, so planning reads each file once (plain about 400 MB/s, gzipped about 250) and notes where the rows
of each work unit lie. A newline ends a row; in CSV only after an even number of quotes (RFC 4180). TSV and JSON lines
know no quoting. Blank lines are no rows. Gzipped files cannot be entered in the middle: a unit decompresses all that
lies before it, so keep them at some 100 MB. A row that is not well-formed is one reject.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.input_place import InputFile, InputPlace
from uvd.sources.url_columns import to_rows

SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
HEAD_BYTES = 1 << 18
"""A header line, and the JSON lines that tell which keys there are, must lie within this."""
MAX_UNIT_BYTES = 256 << 20
"""More bytes of text are not taken into memory for one work unit."""
_BLOCK = 1 << 20
_NEWLINE, _RETURN, _QUOTE = b"\n"[0], b"\r"[0], b'"'[0]


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How a file's rows are written."""

    delimiter: str | None
    """None for JSON lines."""
    gzip: bool
    header: tuple[str, ...]
    """Names of the columns, for files whose first row is not a header."""

    @property
    def quoted(self) -> bool:
        return self.delimiter == ","

    @property
    def has_header(self) -> bool:
        return self.delimiter is not None and not self.header


def text_format(name: str, header: tuple[str, ...]) -> TextFormat:
    kind = name.lower().removesuffix(".gz").rpartition(".")[2]
    return TextFormat({"csv": ",", "tsv": "\t"}.get(kind), name.lower().endswith(".gz"), header)


@dataclass(frozen=True, slots=True)
class TextSpan:
    """The rows of one work unit: bytes of the decompressed file."""

    offset: int
    length: int
    rows: int


def row_bounds(blocks: Iterable[bytes], quoted: bool) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Byte offsets where rows start and end (newline included): two arrays for the rows that end in each block."""
    base, start, inside, before = 0, 0, 0, _NEWLINE
    for block in blocks:
        data = np.frombuffer(block, np.uint8)
        newlines = np.flatnonzero(data == _NEWLINE)
        if quoted:
            quotes = np.flatnonzero(data == _QUOTE)
            newlines = newlines[(np.searchsorted(quotes, newlines) + inside) % 2 == 0]
            inside = (inside + len(quotes)) % 2
        ends = newlines + (base + 1)
        starts = np.concatenate([[start], ends[:-1]])[: len(ends)]
        # The first byte of a row of two bytes may be the last one of the block before.
        first = np.where(starts < base, before, data[np.maximum(starts - base, 0)] if len(ends) else 0)
        blank = (ends - starts == 1) | ((ends - starts == 2) & (first == _RETURN))
        yield starts[~blank], ends[~blank]
        start = int(ends[-1]) if len(ends) else start
        base, before = base + len(data), data[-1]
    if base - start > 1 or (base - start == 1 and before != _RETURN):
        yield np.array([start]), np.array([base])


def find_spans(blocks: Iterable[bytes], form: TextFormat, shard_size: int) -> list[TextSpan]:
    """Cuts a file into spans of `shard_size` rows, reading it once."""
    offsets: list[int] = []
    ends: list[int] = []
    rows, end = -1 if form.has_header else 0, 0
    for starts, stops in row_bounds(blocks, form.quoted):
        numbers = rows + np.arange(len(starts))
        offsets += starts[(numbers >= 0) & (numbers % shard_size == 0)].tolist()
        ends += stops[(numbers >= 0) & (numbers % shard_size == shard_size - 1)].tolist()
        rows += len(starts)
        end = int(stops[-1]) if len(stops) else end
    if len(ends) < len(offsets):
        ends.append(end)
    return [
        TextSpan(offset, stop - offset, min(shard_size, rows - number * shard_size))
        for number, (offset, stop) in enumerate(zip(offsets, ends, strict=True))
    ]


def read_blocks(stream: pa.NativeFile) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def column_names(place: InputPlace, file: InputFile, form: TextFormat) -> list[str] | None:
    """The header's names, or the keys of the first JSON lines; None for a file without a row."""
    with place.stream(file.name, gzip=form.gzip) as stream:
        head = stream.read(HEAD_BYTES)
    if form.header:
        return list(form.header)
    bounds = row_bounds([head] if head else [], form.quoted)
    rows = [head[start:end] for starts, ends in bounds for start, end in zip(starts, ends, strict=True)]
    if not rows:
        return None
    if form.delimiter is not None:
        return _cells(rows[0].decode("utf-8-sig", "backslashreplace"), form)[0]
    keys: dict[str, None] = {}
    for row in rows:
        try:
            value = json.loads(row)
        except (ValueError, RecursionError):
            continue  # refused when it is read as a row; the last line of the head may be cut
        if isinstance(value, dict):
            keys |= dict.fromkeys(value)
    return list(keys)


def read_span(
    place: InputPlace,
    file: InputFile,
    form: TextFormat,
    span: TextSpan,
    names: Sequence[str],
    located: Mapping[str, str],
) -> tuple[pa.Table, dict[int, RejectedInput]]:
    """The rows of one span as a table of `url_columns.ROWS`, and the verdicts on those that cannot be read.

    Raises:
        RejectedInput: none of them can: the span is too large, or parsing finds another number of rows than planned.
    """
    if span.length > MAX_UNIT_BYTES:
        raise RejectedInput(Reason.TOO_LARGE, f"{span.length} bytes of text in one work unit, over {MAX_UNIT_BYTES}")
    data = _read_bytes(place, file, form, span)
    bad: dict[int, RejectedInput] = {}
    rows = _parse_json(data, located, bad) if form.delimiter is None else _parse_cells(data, form, names, located, bad)
    if len(rows) != span.rows:
        raise RejectedInput(
            Reason.UNREADABLE, f"{len(rows)} rows where {span.rows} were planned: quotes are not as in RFC 4180"
        )
    return to_rows(rows), bad


def _read_bytes(place: InputPlace, file: InputFile, form: TextFormat, span: TextSpan) -> bytes:
    if not form.gzip:
        with place.open(file.name) as source:
            return source.read_at(span.length, span.offset)
    with place.stream(file.name, gzip=True) as stream:
        left = span.offset
        while left and (skipped := len(stream.read(min(left, _BLOCK)))):
            left -= skipped
        return stream.read(span.length)


def _lines(text: str) -> list[str]:
    return [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line]


def _cells(text: str, form: TextFormat) -> list[list[str]]:
    """Rows of cells; blank lines are left out."""
    if not form.quoted:
        return [line.split(form.delimiter) for line in _lines(text)]
    # The limit is the whole process's: other readers rely on theirs.
    before = csv.field_size_limit(MAX_UNIT_BYTES)
    try:
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise RejectedInput(Reason.UNREADABLE, f"CSV: {error}") from error
    finally:
        csv.field_size_limit(before)


def _parse_cells(
    data: bytes, form: TextFormat, names: Sequence[str], located: Mapping[str, str], bad: dict[int, RejectedInput]
) -> list[Mapping[str, Any]]:
    places = {meaning: names.index(name) for meaning, name in located.items()}
    rows: list[Mapping[str, Any]] = []
    encoding = "utf-8-sig" if form.header else "utf-8"
    for number, cells in enumerate(_cells(data.decode(encoding, "backslashreplace"), form)):
        whole = len(cells) == len(names)
        if not whole:
            bad[number] = RejectedInput(Reason.UNREADABLE, f"{len(cells)} columns, not {len(names)}")
        rows.append({meaning: cells[place] for meaning, place in places.items()} if whole else {})
    return rows


def _parse_json(data: bytes, located: Mapping[str, str], bad: dict[int, RejectedInput]) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for line in data.split(b"\n"):
        if not line.removesuffix(b"\r"):
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad[len(rows)] = RejectedInput(Reason.UNREADABLE, f"JSON: {type(error).__name__}")
            value = {}
        if not isinstance(value, dict):
            bad[len(rows)] = RejectedInput(Reason.UNREADABLE, f"JSON: a {type(value).__name__}, not an object")
            value = {}
        rows.append({meaning: value.get(name) for meaning, name in located.items()})
    return rows

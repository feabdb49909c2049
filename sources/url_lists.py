"""URL lists of any format: planned as files and ranges of their rows, read as tables with fixed columns.

Parquet is planned from footers alone. A file that is damaged (its footer or gzip data cannot be read) is one planned
input, which is rejected as `unreadable`; the others go on. Only the mapped columns are read, so captions go no further
than the parser of a text format. A unit's rows are decoded from the start of their row group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources import text_lists
from uvd.sources.base import SourceError
from uvd.sources.input_place import InputFile, InputPlace, is_damage
from uvd.sources.text_lists import TextSpan, text_format
from uvd.sources.url_columns import Columns, cast_rows

SUFFIXES = (".parquet", *text_lists.SUFFIXES)
_THREADS, _AHEAD = 16, 64
_BATCH_ROWS = 8192
DAMAGED_PARQUET = "no Parquet footer that can be read"
DAMAGED_GZIP = "gzip data that cannot be read to its end"


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """One work unit of a file: how many inputs it has, and what goes into its payload."""

    num_inputs: int
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Index:
    """What planning has to know of one file."""

    rows: int = 0
    spans: tuple[TextSpan, ...] | None = None
    """Of text formats."""
    damage: str = ""


@dataclass(frozen=True)
class UrlLists:
    """The lists at one place.

    Args:
        needed: meanings of the columns that must be there (`url`, and what the filters look at).
        header: names of the columns of CSV and TSV files without a header line.
        shard_size: rows of a work unit.
    """

    place: InputPlace
    columns: Columns
    needed: tuple[str, ...]
    header: tuple[str, ...]
    shard_size: int

    def plan(self, files: Sequence[InputFile]) -> Iterator[UnitPlan]:
        """All units, file by file; units never span files.

        Raises:
            SourceError: a file lacks a column, none of the files is whole, or disk or network failed.
        """
        whole = False
        for file, index in _ahead(self._index, files):
            whole |= not index.damage
            yield from self._units(file, index)
        if not whole:
            raise SourceError(
                f"no list at {self.place.uri} can be read: {self.place.show(files[0].name)} has {index.damage}"
            )

    def _units(self, file: InputFile, index: _Index) -> Iterator[UnitPlan]:
        identity = {"file": file.name, "bytes": file.bytes}
        if index.damage:
            yield UnitPlan(1, identity | {"damaged": index.damage})
        elif index.spans is None:
            for start in range(0, index.rows, self.shard_size):
                yield UnitPlan(min(self.shard_size, index.rows - start), identity | {"start": start})
        else:
            for number, span in enumerate(index.spans):
                place = {"start": number * self.shard_size, "offset": span.offset, "length": span.length}
                yield UnitPlan(span.rows, identity | place | {"rows": span.rows})

    def _index(self, file: InputFile) -> _Index:
        parquet = file.name.lower().endswith(".parquet")
        try:
            return self._index_parquet(file) if parquet else self._index_text(file)
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise SourceError(f"{self.place.show(file.name)} cannot be read: {error}") from error
            return _Index(damage=DAMAGED_PARQUET if parquet else DAMAGED_GZIP)

    def _index_parquet(self, file: InputFile) -> _Index:
        with self.place.open(file.name) as source, pq.ParquetFile(source) as parquet:
            self._locate(parquet.schema_arrow.names, file)
            return _Index(parquet.metadata.num_rows)

    def _index_text(self, file: InputFile) -> _Index:
        form = text_format(file.name, self.header)
        names = text_lists.column_names(self.place, file, form)
        if names is None:
            return _Index()
        self._locate(names, file)
        with self.place.stream(file.name, gzip=form.gzip) as stream:
            return _Index(spans=tuple(text_lists.find_spans(text_lists.read_blocks(stream), form, self.shard_size)))

    def _locate(self, names: Sequence[str], file: InputFile) -> dict[str, str]:
        return self.columns.locate(names, self.needed, self.place.show(file.name))

    def read(self, payload: Mapping[str, Any], count: int) -> tuple[pa.Table, dict[int, RejectedInput]]:
        """The first `count` rows of a unit as a table of `url_columns.ROWS`, and the verdicts on unreadable ones.

        Raises:
            RejectedInput: none of them can be read.
            SourceError: the file was changed after planning.
            OSError: disk or network failed.
        """
        file = InputFile(payload["file"], payload["bytes"])
        self.place.check_unchanged(file)
        if "damaged" in payload:
            raise RejectedInput(Reason.UNREADABLE, payload["damaged"])
        try:
            if file.name.lower().endswith(".parquet"):
                return self._read_parquet(file, payload["start"], count), {}
            form = text_format(file.name, self.header)
            names = text_lists.column_names(self.place, file, form) or []
            span = TextSpan(payload["offset"], payload["length"], payload["rows"])
            table, bad = text_lists.read_span(self.place, file, form, span, names, self._locate(names, file))
            return table.slice(0, count), bad
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            # A good footer may hide damaged pages: the rows cannot be known, so all of the unit's are refused.
            raise RejectedInput(Reason.UNREADABLE, str(error).partition("\n")[0][:200]) from error

    def _read_parquet(self, file: InputFile, start: int, count: int) -> pa.Table:
        with self.place.open(file.name) as source, pq.ParquetFile(source) as parquet:
            located = self._locate(parquet.schema_arrow.names, file)
            batches = list(_row_range(parquet, start, count, list(dict.fromkeys(located.values()))))
            table = pa.Table.from_batches(batches) if batches else parquet.schema_arrow.empty_table()
        if table.num_rows != count:
            raise RejectedInput(Reason.UNREADABLE, f"Parquet: {table.num_rows} rows of {count}")
        return cast_rows(table, located)


def _row_range(parquet: pq.ParquetFile, start: int, count: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `start + count`, holding one small batch at a time beside them."""
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if first < start + count and start < first + rows:
            position = first
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                low, high = max(start - position, 0), min(start + count - position, batch.num_rows)
                if low < high:
                    yield batch.slice(low, high - low)
                position += batch.num_rows
                if position >= start + count:
                    break
        first += rows


def _ahead(function: Callable[[InputFile], _Index], files: Sequence[InputFile]) -> Iterator[tuple[InputFile, _Index]]:
    """Results in order, computed by some threads ahead of need, but few where only few turn out to be needed."""
    with ThreadPoolExecutor(_THREADS) as pool:
        start, size = 0, 1
        while start < len(files):
            batch = files[start : start + size]
            yield from zip(batch, pool.map(function, batch), strict=True)
            start, size = start + size, min(4 * size, _AHEAD)

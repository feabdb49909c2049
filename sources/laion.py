"""`laion`: URL lists as LAION, COYO and DataComp publish them (Parquet) → downloaded images, one picture each.

Only the URL column is read: captions never pass the reader. Planning reads Parquet footers; a work unit is a file and a
range of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from uvd.sequences import Example, Picture, Reason, Reject, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA, Source, SourceConfig, SourceError, WorkUnit
from uvd.sources.decode import MAX_PIXELS, decode_image
from uvd.sources.fetch import FetchConfig, fetch_in_order


class LaionConfig(SourceConfig):
    """Settings of the `laion` source."""

    source: Literal["laion"] = "laion"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Parquet file, or folder of Parquet files."""
    url_column: str = "url"
    """Name of the URL column; compared without regard to case (LAION writes `URL`)."""
    min_side: int = Field(64, ge=1)
    """Shortest side of a downloaded image in pixels."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    fetch: FetchConfig = FetchConfig()


class LaionSource(Source):
    config_class: ClassVar[type[SourceConfig]] = LaionConfig
    config: LaionConfig

    def plan(self) -> Iterator[WorkUnit]:
        shard = 0
        left = self.config.limit
        for file in self._files():
            schema, rows = _footer(file)
            self._column(schema, file)
            rows = rows if left is None else min(rows, left)
            left = None if left is None else left - rows
            for start in range(0, rows, self.config.shard_size):
                count = min(self.config.shard_size, rows - start)
                payload = {"file": self._relative(file), "bytes": file.stat().st_size, "start": start}
                yield WorkUnit(shard, count, payload)
                shard += 1

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        root = self.config.input
        file = root if root.is_file() else root / unit.payload["file"]
        try:
            urls = self._urls(file, unit.payload["start"], unit.num_inputs)
        except (pa.ArrowInvalid, OSError) as error:
            # A good footer may hide damaged pages: the rows cannot be known, so all of the unit's are refused.
            for index in range(unit.num_inputs):
                row = f"{unit.payload['file']} row {unit.payload['start'] + index}"
                yield Reject(index, row, Reason.UNREADABLE, f"Parquet: {error}"[:200])
            return
        bodies = fetch_in_order(urls, self.config.fetch)
        for index, url in enumerate(urls):
            with self.stages("fetch"):
                body = next(bodies)
            try:
                if isinstance(body, RejectedInput):
                    raise body
                yield self._example(body, url, index, seeds.child(index))
            except RejectedInput as rejected:
                yield rejected.reject(index, url)

    def _example(self, body: bytes, url: str, index: int, seeds: Seeds) -> Example:
        with self.stages("decode"):
            pixels, size = decode_image(
                body, max_pixels=self.config.max_pixels, min_side=self.config.min_side, scale_to=256
            )
        with self.stages("resize"):
            transform = self.transform(pixels.shape[1], pixels.shape[0], seeds)
            picture = Picture("image", transform.image(pixels), url, size)
        return Example((index,), self.config.dataset, self.split(url), (picture,))

    def _files(self) -> list[Path]:
        root = self.config.input
        files = [root] if root.is_file() else sorted(root.rglob("*.parquet")) if root.is_dir() else []
        if not files:
            raise SourceError(f"input {root} is neither a Parquet file nor a folder that holds some")
        return files

    def _relative(self, file: Path) -> str:
        return file.name if file == self.config.input else file.relative_to(self.config.input).as_posix()

    def _column(self, schema: pa.Schema, file: Path) -> str:
        matches = [name for name in schema.names if name.lower() == self.config.url_column.lower()]
        if not matches:
            raise SourceError(f"{file} has no column {self.config.url_column!r}; it has {', '.join(schema.names)}")
        return matches[0]

    def _urls(self, file: Path, start: int, count: int) -> list[str]:
        """Rows `start` to `start + count` of the URL column; a null becomes the empty string, which is rejected."""
        table = pq.ParquetFile(file)
        column = self._column(table.schema_arrow, file)
        urls: list[Any] = []
        first = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            low, high = max(start - first, 0), min(start + count - first, rows)
            if low < high:
                values = table.read_row_group(group, columns=[column])[column].slice(low, high - low)
                # As bytes, because one URL that is not UTF-8 would make the whole column unreadable.
                urls += values.cast(pa.binary()).to_pylist()
            first += rows
        return [_text(url) for url in urls]


def _text(url: bytes | None) -> str:
    return (url or b"").decode("utf-8", "backslashreplace")


def _footer(file: Path) -> tuple[pa.Schema, int]:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{file} is not a readable Parquet file: {error}") from error

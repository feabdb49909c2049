"""Columns of URL lists: which column means what, and rows as one table with fixed names and types.

Names are tried without regard to case. The defaults are those of LAION (https://laion.ai/blog/laion-5b; `URL`, `WIDTH`,
`punsafe`, ...), COYO (https://huggingface.co/datasets/kakaobrain/coyo-700m; `watermark_score`, ...) and DataComp
(https://huggingface.co/datasets/mlfoundations/datacomp_pools; `original_width`, `sha256`, ...). LAION's own `hash` is
one of URL and caption, not of the image, so it is not among them. Captions are no column here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from uvd.sources.base import SourceError

DEFAULTS: dict[str, tuple[str, ...]] = {
    "url": ("url", "image_url"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score"),
    "punsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "pwatermark": ("pwatermark", "watermark_score"),
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2"),
    "hash": ("sha256", "md5"),
}
"""Meaning → names that are tried, in this order, where the config names none."""
TEXT_MEANINGS = ("url", "hash")
ROWS = pa.schema([pa.field(name, pa.string() if name in TEXT_MEANINGS else pa.float64()) for name in DEFAULTS])
"""What every format is read into; what a list does not have, or cannot be read as a number, is null."""


class Columns(BaseModel):
    """Names of the list's columns, where they are none of the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = None
    width: str | None = None
    height: str | None = None
    similarity: str | None = None
    """Of image and caption (CLIP)."""
    punsafe: str | None = None
    """Probability that the image is not safe for work."""
    pwatermark: str | None = None
    aesthetic: str | None = None
    hash: str | None = None
    """md5 or sha256 of the image file, in hex."""

    def locate(self, names: Sequence[str], needed: Iterable[str], origin: str) -> dict[str, str]:
        """Meaning → the column that holds it, for those of `needed`, which are found or refused.

        Raises:
            SourceError: a column is missing; says which there are.
        """
        exact = {name: name for name in reversed(names)}
        lower = {name.lower(): name for name in reversed(names)}
        found = {}
        for meaning in needed:
            wanted = getattr(self, meaning)
            candidates = (wanted,) if wanted is not None else DEFAULTS[meaning]
            matches = [exact.get(name, lower.get(name.lower())) for name in candidates]
            match = next((match for match in matches if match is not None), None)
            if match is None:
                tried = " or ".join(repr(name) for name in candidates)
                raise SourceError(
                    f"{origin} has no column {tried}; it has {', '.join(names) or 'none'}. "
                    f"Name the one that holds `{meaning}` in the config: columns.{meaning}"
                )
            found[meaning] = match
        return found


def to_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of meaning → raw value, from text formats, as a table of `ROWS`."""
    columns = {
        field.name: [
            as_text(row.get(field.name)) if field.name in TEXT_MEANINGS else as_number(row.get(field.name))
            for row in rows
        ]
        for field in ROWS
    }
    return pa.table(columns, schema=ROWS)


def cast_rows(table: pa.Table, located: Mapping[str, str]) -> pa.Table:
    """A table with a list's own column names and types as a table of `ROWS`."""
    arrays = []
    for field in ROWS:
        if field.name not in located:
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[located[field.name]]
        if field.name in TEXT_MEANINGS:
            # By way of bytes, because one value that is not UTF-8 would make the whole column unreadable.
            binary = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            values = (column.cast(pa.binary()) if binary else column).to_pylist()
            arrays.append(pa.array([as_text(value) for value in values], pa.string()))
        elif pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            arrays.append(column.cast(pa.float64(), safe=False))
        else:
            arrays.append(pa.array([as_number(value) for value in column.to_pylist()], pa.float64()))
    return pa.table(arrays, schema=ROWS)


def as_text(value: object) -> str | None:
    """Bytes that are not UTF-8 become escapes; what is no text is null."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    # Lone surrogates, which JSON can hold and UTF-8 cannot.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else None


def as_number(value: object) -> float | None:
    """A number, or text that is one; anything else, and NaN, is null."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number

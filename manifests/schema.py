"""The Parquet schemas of manifests and rejects, and the JSON that sits in each file's metadata.

Files are deterministic: fixed column order, one row group, zstd, no times and no host names.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uvd.sequences import Reject

METADATA_KEY = b"uvd"
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
"""Memory addresses, which libraries put into their messages: they would differ from run to run."""

SEQUENCES = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("source", pa.string(), False),
        pa.field("dataset", pa.string(), False),
        pa.field("layout", pa.string(), False),
        pa.field("split", pa.string(), False),
        pa.field("num_images", pa.int16(), False),
        pa.field("roles", pa.list_(pa.string()), False),
        pa.field("origins", pa.list_(pa.string()), False),  # URL or relative path of each picture's raw file
        pa.field("indices", pa.list_(pa.int32()), False),  # frame or view number of each picture, or null
        pa.field("widths", pa.list_(pa.int32()), False),  # of the raw image, in pixels
        pa.field("heights", pa.list_(pa.int32()), False),
        pa.field("phashes", pa.list_(pa.uint64()), False),
        pa.field("digests", pa.list_(pa.uint64()), False),  # of each stored file's bytes, `codec.digest`
        pa.field("inputs", pa.list_(pa.int32()), False),  # planned inputs of the shard that went in
        pa.field("offset", pa.int64(), False),  # span of the sequence's members in the tar, headers included
        pa.field("length", pa.int64(), False),
    ]
)

TOKENS = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("source", pa.string(), False),
        pa.field("dataset", pa.string(), False),
        pa.field("layout", pa.string(), False),
        pa.field("split", pa.string(), False),
        pa.field("num_images", pa.int16(), False),
        pa.field("num_tokens", pa.int32(), False),  # with BOS and EOS
        pa.field("roles", pa.list_(pa.string()), False),
        pa.field("record", pa.string(), False),  # key of the record that holds the sequence
        pa.field("offset", pa.int64(), False),  # byte offset in the tar of the sequence's first uint16
        pa.field("length", pa.int64(), False),
    ]
)

REJECTS = pa.schema(
    [
        pa.field("folder", pa.string(), False),  # below `sequences/`, or the source below `tokens/TOKENIZER/`
        pa.field("shard", pa.int32(), False),
        pa.field("input", pa.int32(), False),
        pa.field("origin", pa.string(), False),
        pa.field("reason", pa.string(), False),
        pa.field("detail", pa.string(), False),
        pa.field("partial", pa.bool_(), False),  # True: other parts of this input were used
    ]
)


class ManifestError(ValueError):
    """A Parquet file that is not a uvd manifest."""


def to_parquet(rows: list[dict[str, Any]], schema: pa.Schema, metadata: Mapping[str, Any]) -> bytes:
    """Serialises rows; `metadata` goes as sorted JSON under the file metadata key `uvd`."""
    return table_to_parquet(pa.Table.from_pylist(rows, schema=schema), metadata)


def table_to_parquet(table: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    """The same, of a table that is there already."""
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    sink = io.BytesIO()
    described = table.replace_schema_metadata({METADATA_KEY: text.encode()})
    pq.write_table(described, sink, compression="zstd", row_group_size=max(1, len(table)))
    return sink.getvalue()


def reject_rows(rejects: list[Reject], shard: int, folder: str, used: set[int]) -> list[dict[str, Any]]:
    """The rejects of one shard as rows of `REJECTS`; those whose input is in `used` are marked partial."""
    return [
        {
            "folder": folder,
            "shard": shard,
            "input": reject.input,
            "origin": storable(reject.origin),
            "reason": str(reject.reason),
            "detail": storable(_ADDRESS.sub("0x…", reject.detail)),
            "partial": reject.input in used,
        }
        for reject in sorted(rejects, key=lambda reject: (reject.input, reject.reason, reject.detail))
    ]


def rejects_to_parquet(rows: list[dict[str, Any]], folder: str) -> bytes:
    """Serialises rows of `REJECTS`, as `reject_rows` makes them."""
    return to_parquet(rows, REJECTS, {"kind": "rejects", "folder": folder})


def storable(text: str) -> str:
    """`text` as UTF-8 can hold it: bytes of file names that are not UTF-8 are written as escapes (`\\udce9`)."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_metadata(schema: pa.Schema, name: str) -> dict[str, Any]:
    """The `uvd` JSON of a Parquet file's schema.

    Raises:
        ManifestError: if it has none.
    """
    metadata = (schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise ManifestError(f"{name} is not a uvd manifest: its file metadata has no 'uvd' entry")
    return json.loads(metadata)

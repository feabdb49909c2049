"""The forms in which token sequences leave a dataset: LVM's JSON lines, an array for numpy, Parquet for Hugging Face.

Each writer takes sequences one by one in their final order and writes as it goes; equal sequences give equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd.manifests.lvm_jsonl import encode_line
from uvd.manifests.tokens import unframe

FILE_TOKENS = 1 << 28
"""A JSON lines or Parquet file ends with the sequence that reaches so many tokens: 1.4 GB or 0.5 GB."""
_ROWS_TOKENS = 1 << 22
"""Of a row group."""
_ABOUT = [
    pa.field("key", pa.string(), False),
    pa.field("source", pa.string(), False),
    pa.field("dataset", pa.string(), False),
    pa.field("layout", pa.string(), False),
    pa.field("split", pa.string(), False),
    pa.field("num_images", pa.int16(), False),
    pa.field("roles", pa.list_(pa.string()), False),
]
INDEX = pa.schema([*_ABOUT, pa.field("start", pa.int64(), False), pa.field("num_tokens", pa.int32(), False)])
"""Of numpy's `sequences.parquet`: row i is sequence i, `tokens[start : start + num_tokens]`."""
HUB = pa.schema([*_ABOUT, pa.field("tokens", pa.list_(pa.uint16()), False)])


class FormatWriter(Protocol):
    """Writes the files of one export into an empty folder."""

    def add(self, row: dict[str, Any], tokens: NDArray[np.uint16]) -> None:
        """Appends a sequence: its manifest row and framed tokens, `[BOS] 256·n codes [EOS]`."""

    def close(self) -> None:
        """Completes the files."""


class LvmJsonl:
    """`tokens-00000.jsonl`, …: see `lvm_jsonl`. Codes only."""

    def __init__(self, folder: Path, file_tokens: int = FILE_TOKENS) -> None:
        self._folder, self._file_tokens = folder, file_tokens
        self._file: IO[bytes] | None = None
        self._files, self._tokens = 0, 0

    def add(self, row: dict[str, Any], tokens: NDArray[np.uint16]) -> None:
        if self._file is None:
            self._file = (self._folder / f"tokens-{self._files:05d}.jsonl").open("xb", buffering=1 << 20)
            self._files, self._tokens = self._files + 1, 0
        self._file.write(encode_line(unframe(tokens)))
        self._tokens += len(tokens)
        if self._tokens >= self._file_tokens:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class NumpyArrays:
    """`tokens.bin`, all framed sequences as uint16 little-endian; `offsets.npy`, `(n + 1,)` int64; `sequences.parquet`.

    Args:
        sequences: how many there will be: the header of `offsets.npy` comes first.
    """

    def __init__(self, folder: Path, sequences: int) -> None:
        self._tokens = (folder / "tokens.bin").open("xb", buffering=1 << 20)
        self._offsets = (folder / "offsets.npy").open("xb", buffering=1 << 20)
        header = {"descr": "<i8", "fortran_order": False, "shape": (sequences + 1,)}
        np.lib.format.write_array_header_1_0(self._offsets, header)
        self._offsets.write(np.zeros(1, "<i8").tobytes())
        self._index = _Rows(folder / "sequences.parquet", INDEX)
        self._expected, self._place, self._count = sequences, 0, 0

    def add(self, row: dict[str, Any], tokens: NDArray[np.uint16]) -> None:
        self._tokens.write(tokens.astype("<u2").tobytes())
        self._index.add(row | {"start": self._place, "num_tokens": len(tokens)}, len(tokens))
        self._place, self._count = self._place + len(tokens), self._count + 1
        self._offsets.write(np.array([self._place], "<i8").tobytes())

    def close(self) -> None:
        for file in (self._tokens, self._offsets):
            file.close()
        self._index.close()
        if self._count != self._expected:
            raise ValueError(f"{self._count} sequences came, {self._expected} were announced")


class HubParquet:
    """`SPLIT/tokens-00000.parquet`, …: framed tokens as `list<uint16>`, and what `datasets` wants to know of columns.

    `README.md` names the files of each split, as a dataset card does.
    """

    def __init__(self, folder: Path, file_tokens: int = FILE_TOKENS) -> None:
        self._folder, self._file_tokens = folder, file_tokens
        self._open: dict[str, _Rows] = {}
        self._files: dict[str, int] = {}
        self._schema = HUB.with_metadata({b"huggingface": json.dumps({"info": {"features": _features(HUB)}}).encode()})

    def add(self, row: dict[str, Any], tokens: NDArray[np.uint16]) -> None:
        split = row["split"]
        if split not in self._open:
            number = self._files.get(split, 0)
            path = self._folder / split / f"tokens-{number:05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            self._open[split], self._files[split] = _Rows(path, self._schema), number + 1
        rows = self._open[split]
        rows.add(row | {"tokens": tokens}, len(tokens))
        if rows.tokens >= self._file_tokens:
            rows.close()
            del self._open[split]

    def close(self) -> None:
        for rows in self._open.values():
            rows.close()
        lines = ["---", "configs:", "- config_name: default", "  data_files:"]
        for split in sorted(self._files):
            lines += [f"  - split: {split}", f"    path: {split}/*.parquet"]
        text = (
            "Token sequences of pictures, made by uvd: `tokens` is `[BOS 8192] 256·n codes below 8192 [EOS 8193]` of "
            "n images. `export.json` names the tokenizer."
        )
        (self._folder / "README.md").write_text("\n".join([*lines, "---", "", text, ""]), encoding="utf-8")


class _Rows:
    """A Parquet file, written a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[dict[str, Any]] = []
        self._waiting_tokens = self.tokens = 0

    def add(self, row: dict[str, Any], tokens: int) -> None:
        self._waiting.append({name: row[name] for name in self._schema.names})
        self.tokens += tokens
        self._waiting_tokens += tokens
        if self._waiting_tokens >= _ROWS_TOKENS:
            self._flush()

    def _flush(self) -> None:
        columns = {name: [row[name] for row in self._waiting] for name in self._schema.names}
        self._writer.write_table(pa.table(columns, schema=self._schema), row_group_size=max(1, len(self._waiting)))
        self._waiting, self._waiting_tokens = [], 0

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Columns as `datasets` describes them in Parquet files that it writes itself.

    Lists are `Sequence` there: all versions read it, `List` only those from 4.0 on.
    """

    def value(kind: pa.DataType) -> dict[str, Any]:
        return {"dtype": str(kind), "_type": "Value"}

    return {
        field.name: {"feature": value(field.type.value_type), "_type": "Sequence"}
        if pa.types.is_list(field.type)
        else value(field.type)
        for field in schema
    }

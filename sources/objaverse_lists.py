"""Lists of objects: CSV, TSV, Parquet, JSON lines, JSON and text, read as rows of `uid`, `path`, `sha256` and `split`.

JSON is a list of rows, `{uid: path}` as Objaverse's own package returns, or `{split: [rows]}`. Where a row is one word
it is a path if it has a `/` or a suffix of a 3D format, else a uid. Annotations of Objaverse-XL have `fileIdentifier`,
an address, in place of a uid; names of local files follow from it. Text other than CSV is read whole, up to 512 MiB.
"""

from __future__ import annotations

import gzip
import json
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from uvd.renderers.multiview_files import ARCHIVE, FORMATS
from uvd.sources.base import SourceError

COLUMNS = ("uid", "path", "sha256", "split", "fileIdentifier")
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".jsonl", ".json", ".txt"})
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
MAX_LIST_BYTES = 512 << 20
"""Of text, when decompressed."""

_THINGIVERSE = re.compile(r"/thing:([0-9]+)/.*fileId=([0-9]+)$")

ListRow = Mapping[str, Any]
"""Some of `COLUMNS`; values are whatever the list holds."""


def is_list(path: Path) -> bool:
    return list_format(path) in LIST_SUFFIXES


def list_format(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_list(path: Path) -> Iterator[ListRow]:
    """Rows in their order; what is no row comes as an empty one.

    Raises:
        SourceError: for a file that cannot be read, or that names neither uids nor paths.
    """
    form = list_format(path)
    try:
        if form == ".parquet":
            yield from _parquet(path)
        elif form in (".csv", ".tsv"):
            yield from _table(path, "\t" if form == ".tsv" else ",")
        elif form == ".jsonl":
            yield from (_parsed(line) for line in read_text(path).splitlines() if line.strip())
        elif form == ".json":
            yield from _json(path)
        else:
            yield from (_word(line.strip()) for line in read_text(path).splitlines() if line.strip())
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"list {path} cannot be read: {error}") from error


def read_text(path: Path) -> str:
    """A text file, gzipped if it is named so, up to `MAX_LIST_BYTES`.

    Raises:
        SourceError: for one that is larger or cannot be read.
    """
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise SourceError(f"{path} holds more than {MAX_LIST_BYTES} bytes")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """
    Raises:
        SourceError: as for `read_text`, and for what is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error


def uid_of_identifier(identifier: str) -> str:
    """The stem of the local file of one of Objaverse-XL's identifiers: Sketchfab, Thingiverse or Smithsonian.

    >>> uid_of_identifier("https://sketchfab.com/3d-models/7d6a14874eed48c2b720f0d1adfe6dd9")
    '7d6a14874eed48c2b720f0d1adfe6dd9'
    """
    if "sketchfab.com/" in identifier:
        return identifier.rstrip("/").rpartition("/")[2]
    if match := _THINGIVERSE.search(identifier):
        return f"thing-{match[1]}-file-{match[2]}"
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, identifier))


def _parquet(path: Path) -> Iterator[ListRow]:
    with pq.ParquetFile(path) as file:
        known = _known(path, file.schema_arrow.names)
        for batch in file.iter_batches(columns=known):
            yield from batch.to_pylist()


def _table(path: Path, delimiter: str) -> Iterator[ListRow]:
    parse = pacsv.ParseOptions(delimiter=delimiter)
    convert = pacsv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
    with pacsv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
        known = _known(path, reader.schema.names)
        for batch in reader:
            yield from batch.select(known).to_pylist()


def _known(path: Path, names: list[str]) -> list[str]:
    if not {"uid", "path", "fileIdentifier"}.intersection(names):
        raise SourceError(f"{path} has no column uid, path or fileIdentifier; it has {', '.join(names) or 'none'}")
    return [name for name in COLUMNS if name in names]


def _json(path: Path) -> Iterator[ListRow]:
    content = read_json(path)
    if isinstance(content, list):
        yield from map(_row, content)
    elif isinstance(content, dict) and content and content.keys() <= SPLITS.keys():
        for split, rows in content.items():
            if not isinstance(rows, list):
                raise SourceError(f"{path}: {split} is a {type(rows).__name__}, not a list")
            yield from ({**_row(row), "split": split} for row in rows)
    elif isinstance(content, dict):
        yield from ({"uid": uid, "path": place} for uid, place in content.items())
    else:
        raise SourceError(f"{path} is a {type(content).__name__}, not a list of objects")


def _parsed(line: str) -> ListRow:
    try:
        return _row(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def _row(value: Any) -> ListRow:
    if isinstance(value, str):
        return _word(value)
    return {name: value[name] for name in COLUMNS if name in value} if isinstance(value, dict) else {}


def _word(word: str) -> ListRow:
    return {"path" if "/" in word or word.lower().endswith((*FORMATS, ARCHIVE)) else "uid": word}

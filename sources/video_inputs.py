"""What the `video` source may be given: video files, folders of frames, tars of frames, lists of files and addresses.

Planning reads names and sizes, the rows of lists, the headers of tars, and how long a file is said to be, the last only
for large ones: those become several inputs of `segment_s` seconds, so that a long film spreads over many workers.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from uvd.sequences.reject import RejectedInput
from uvd.sources.base import Item, SourceError
from uvd.sources.decode import IMAGE_SUFFIXES, list_files
from uvd.sources.input_place import InputPlace
from uvd.sources.video_clips import folder_of, tar_frames

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv"})
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
TAR_SUFFIXES = frozenset({".tar"})
Format = Literal["auto", "files", "frames", "tars", "list"]
_COLUMNS = {"path": pa.string(), "url": pa.string(), "start": pa.float64(), "end": pa.float64()}
_GLOB = frozenset("*?[")
MAX_TIME_S = 1e7
"""Of an interval: 115 days."""
MAX_SEGMENTS = 10_000
"""Of one file, whatever length it claims: 27 days in pieces of 240 s."""


class VideoInputs:
    """Lists the clips of an input, in a deterministic order.

    Args:
        place: file, folder or glob pattern (`**` for any depth).
        split_above: video files of more bytes are cut into segments.
        duration_s: how long a file says that it is.
        min_frames: folders with fewer frames are none.
    """

    def __init__(
        self,
        place: str,
        form: Format,
        segment_s: float,
        split_above: int,
        min_frames: int,
        duration_s: Callable[[Path], float],
    ) -> None:
        self._place, self._form = place, form
        self._segment_s, self._split_above = segment_s, split_above
        self._min_frames = min_frames
        self._duration_s = duration_s
        self.root = _root(place)

    def items(self) -> Iterator[Item]:
        """One item a clip: `kind` and what `video` needs to open it.

        Raises:
            SourceError: if there is nothing of the kind, or a list cannot be read.
        """
        found = False
        for item in self._listed():
            found = True
            yield item
        if not found:
            wanted = {"auto": "video files, tars or folders of frames"}.get(self._form, self._form)
            raise SourceError(f"no {wanted} at {self._place}")

    def _listed(self) -> Iterator[Item]:
        path = Path(self._place)
        if self._form == "list" or (self._form == "auto" and path.suffix.lower() in LIST_SUFFIXES and path.is_file()):
            yield from self._rows(path)
            return
        if not (path.exists() or _GLOB & set(self._place)):
            raise SourceError(f"input {self._place} is neither a file, nor a folder, nor a pattern that finds any")
        for form, suffixes, items in (
            ("files", VIDEO_SUFFIXES, self._files),
            ("tars", TAR_SUFFIXES, self._tars),
            ("frames", IMAGE_SUFFIXES, self._folders),
        ):
            if self._form in ("auto", form):
                names = self._names(suffixes)
                if names:
                    yield from items(names)
                    return

    def _names(self, suffixes: frozenset[str]) -> list[tuple[str, int]]:
        """(path below the root, bytes) of files, sorted."""
        path = Path(self._place)
        if path.is_dir():
            return list_files(path, suffixes)
        matches = [path] if path.is_file() else sorted(map(Path, glob(self._place, recursive=True)))
        return [
            (match.relative_to(self.root).as_posix(), match.stat().st_size)
            for match in matches
            if match.suffix.lower() in suffixes and match.is_file()
        ]

    def _files(self, names: list[tuple[str, int]]) -> Iterator[Item]:
        for name, size in names:
            yield from self._segments(name, size, 0.0, None)

    def _segments(self, name: str, size: int, start_s: float, end_s: float | None) -> Iterator[Item]:
        """A video file, or a stretch of it, in one piece or in several of `segment_s` seconds."""
        whole = {"kind": "file", "origin": name, "bytes": size, "start_s": start_s, "end_s": end_s}
        if size <= self._split_above:
            yield whole
            return
        try:
            said_s = self._duration_s(self.root / name)
        except RejectedInput:
            yield whole  # the verdict comes when it is read
            return
        last_s = said_s if end_s is None else min(said_s or end_s, end_s)
        pieces = min(max(1, round((last_s - start_s) / self._segment_s)), MAX_SEGMENTS)
        for piece in range(pieces):
            begin = start_s + piece * self._segment_s
            end = end_s if piece == pieces - 1 else begin + self._segment_s
            yield {**whole, "bytes": size // pieces, "start_s": begin, "end_s": end}

    def _folders(self, names: list[tuple[str, int]]) -> Iterator[Item]:
        folders: dict[str, list[tuple[str, int]]] = {}
        for name, size in names:
            folder, _, file = name.rpartition("/")
            folders.setdefault(folder, []).append((file, size))
        for folder, files in sorted(folders.items()):
            if len(files) >= self._min_frames:
                size = sum(size for _, size in files)
                yield {"kind": "frames", "origin": folder or self.root.name, "folder": folder, "bytes": size,
                       "frames": len(files)}  # fmt: skip

    def _tars(self, names: list[tuple[str, int]]) -> Iterator[Item]:
        for name, size in names:
            path = self.root / name
            folders: dict[str, int] = {}
            about = {"kind": "tar", "bytes": size, "tar": name}
            try:
                for member in tar_frames(InputPlace(str(path)), path, IMAGE_SUFFIXES):
                    folders[folder_of(member)] = folders.get(folder_of(member), 0) + 1
            except RejectedInput as rejected:
                yield {**about, "origin": name, "refused": str(rejected.reason), "detail": rejected.detail}
                continue
            for folder, frames in sorted(folders.items()):
                origin = f"{name}/{folder}" if folder else name
                yield {**about, "origin": origin, "folder": folder, "frames": frames}
            if not folders:
                yield {**about, "origin": name, "folder": "", "frames": 0}

    def _rows(self, path: Path) -> Iterator[Item]:
        for number, row in enumerate(_read_rows(path)):
            # However a path is spelt, it is one video, with one origin and in one split.
            name, url = posixpath.normpath(row["path"]) if row.get("path") else "", row.get("url") or ""
            start_s, end_s = row.get("start") or 0.0, row.get("end")
            origin = name or url or f"{path.name} row {number}"
            if not (0 <= start_s < (MAX_TIME_S if end_s is None else end_s) <= MAX_TIME_S):
                yield {"kind": "row", "origin": origin, "refused": "bad_annotation", "detail": f"{start_s} to {end_s}"}
            elif name:
                file = self.root / name
                size = file.stat().st_size if file.is_file() else 0
                yield from self._segments(name, size, start_s, end_s)
            else:
                yield {"kind": "url", "origin": origin, "url": url, "start_s": start_s, "end_s": end_s}


def _root(place: str) -> Path:
    """The folder that origins are relative to: the input itself, or the last folder before a pattern or file name."""
    path = Path(place)
    if path.is_dir():
        return path
    parts = path.parts[:-1]
    plain = next((number for number, part in enumerate(parts) if _GLOB & set(part)), len(parts))
    return Path(*parts[:plain])


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a list, the known columns only.

    Raises:
        SourceError: not readable, or without a column `path` or `url`.
    """
    try:
        for batch in _batches(path):
            known = [name for name in _COLUMNS if name in batch.schema.names]
            if not {"path", "url"} & set(known):
                raise SourceError(f"{path.name} has neither a column `path` nor `url`; it has {batch.schema.names}")
            columns = [batch.column(name).cast(_COLUMNS[name]) for name in known]
            yield from pa.RecordBatch.from_arrays(columns, names=known).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"list {path} cannot be read: {error}") from error


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
        return
    options = pacsv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    convert = pacsv.ConvertOptions(column_types=dict(_COLUMNS), strings_can_be_null=True)
    with pacsv.open_csv(path, parse_options=options, convert_options=convert) as reader:
        yield from reader

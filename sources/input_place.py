"""Where input files lie: a file or folder on disk, or an object store through `pyarrow.fs`, behind the same few calls.

Files are opened by names that listing them gave; nothing leads out of the place. Failures of disk or network are told
from damaged content, because they may pass: those are raised and the shard is tried again, damage is a reject.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from uvd.sequences.errors import UserError
from uvd.sequences.object_stores import explain, is_store_failure, open_uri, plain_uri
from uvd.sources.base import SourceError
from uvd.sources.decode import list_files


def absolute_place(value: object) -> str:
    """A URI as it is, a path made absolute with `~` for the home folder: workers have another working directory."""
    text = str(value)
    return text if "://" in text else str(Path(text).expanduser().absolute())


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file: path relative to the place with `/`, and size in bytes."""

    name: str
    bytes: int


class InputPlace:
    """A file, or a folder searched recursively.

    Args:
        uri: path, or `file://`, `s3://`, `gs://` URI.

    Raises:
        SourceError: if the scheme is unknown or the place cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self.uri = plain_uri(uri)
        self.local = "://" not in uri or uri.startswith("file://")
        self.filesystem: fs.FileSystem
        try:
            if self.local:
                self.filesystem = fs.LocalFileSystem()
                path = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
            else:
                self.filesystem, path = open_uri(uri)
            kind = self.filesystem.get_file_info(path).type
        except (pa.ArrowException, ValueError, OSError, UserError) as error:
            raise SourceError(f"input {self.uri} cannot be opened: {explain(error)}") from error
        self.is_file = kind == fs.FileType.File
        self._root, _, self._only = path.rpartition("/") if self.is_file else (path.rstrip("/"), "", "")

    def files(self, suffixes: tuple[str, ...]) -> list[InputFile]:
        """The files whose names end with one of `suffixes`, sorted by name; a place that is a file gives that file."""
        if self.is_file:
            size = self.filesystem.get_file_info(self._full(self._only)).size
            return [InputFile(self._only, size)] if self._only.lower().endswith(suffixes) else []
        if self.local:
            root = Path(self._root)
            if not root.is_dir():
                return []
            listed = list_files(root, frozenset(f".{suffix.rpartition('.')[2]}" for suffix in suffixes))
        else:
            selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
            infos = self.filesystem.get_file_info(selector)
            start = len(self._root.strip("/")) + 1
            listed = sorted(
                (info.path.strip("/")[start:], info.size) for info in infos if info.type == fs.FileType.File
            )
        return [InputFile(name, size) for name, size in listed if name.lower().endswith(suffixes)]

    def check_unchanged(self, file: InputFile) -> None:
        """
        Raises:
            SourceError: if the file is gone, or its size is another one than when it was listed.
        """
        info = self.filesystem.get_file_info(self._full(file.name))
        if info.type != fs.FileType.File or info.size != file.bytes:
            raise SourceError(f"{self.show(file.name)} was changed or removed after planning")

    def open(self, name: str) -> pa.NativeFile:
        """For random access."""
        return self.filesystem.open_input_file(self._full(name))

    def stream(self, name: str, *, gzip: bool = False, buffer_size: int = 1 << 20) -> pa.NativeFile:
        """For one pass from start to end; `gzip` decompresses on the way."""
        return self.filesystem.open_input_stream(
            self._full(name), compression="gzip" if gzip else None, buffer_size=buffer_size
        )

    def show(self, name: str) -> str:
        """A file as messages name it."""
        return self.uri if self.is_file else f"{self.uri.rstrip('/')}/{name}"

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}"


def is_damage(error: Exception) -> bool:
    """Whether an error from reading says that the content is damaged, rather than that disk or network failed."""
    if isinstance(error, OSError):
        return error.errno is None and not is_store_failure(error)
    return True

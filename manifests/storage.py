"""Where a dataset lies: a local folder, or an object store through `pyarrow.fs`, behind the same few operations.

Files appear whole or not at all. Locally: temporary name in the same folder, fsync, rename, fsync of the folder. On
object stores: the file is spooled on local disk and uploaded when complete; no rename is assumed. What is listed and
read must be what was written before, as S3, GCS and Azure promise.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from pyarrow import NativeFile, fs

from uvd.manifests.lease import hold
from uvd.sequences.errors import UserError
from uvd.sequences.object_stores import ObjectStoreError, explain, is_store_failure, open_uri, plain_uri, s3_address

if TYPE_CHECKING:
    from uvd.manifests.s3_objects import S3Objects

_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{12}\.tmp$")
_COPY_BYTES = 8 << 20


def is_temporary(name: str) -> bool:
    """Whether a file of this name is being written, or was when its writer was killed."""
    return _TEMPORARY.match(name) is not None


class StorageError(UserError):
    """The place that a dataset URI names cannot be used."""


class PendingFile:
    """A file being written. `commit` makes it appear under its name; `abort` leaves nothing."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        if storage.local_root is not None:
            final = storage.local_root / path
            final.parent.mkdir(parents=True, exist_ok=True)
            self._temporary: Path | None = final.with_name(f".{final.name}.{os.urandom(6).hex()}.tmp")
            self.stream = cast(BinaryIO, open(self._temporary, "xb"))  # noqa: SIM115 - closed by commit or abort
        else:
            self._temporary = None
            self.stream = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by commit or abort

    def commit(self) -> None:
        self.stream.flush()
        if self._temporary is None:
            self._upload()
        else:
            os.fsync(self.stream.fileno())
            final = self._temporary.parent / Path(self._path).name
            os.rename(self._temporary, final)
            fsync_path(final.parent)
        self.stream.close()

    def abort(self) -> None:
        # What a full disk did not take must go: closing would try to write it once more, and fail.
        with suppress(OSError):
            self.stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _upload(self) -> None:
        self.stream.seek(0)
        if self._storage.s3 is not None:
            self._storage.s3.put(self._storage.key(self._path), self.stream)
            return
        with self._storage.filesystem.open_output_stream(self._storage.full(self._path)) as out:
            while block := self.stream.read(_COPY_BYTES):
                out.write(block)


class Storage:
    """One root and the files below it, named by relative paths with forward slashes.

    Attributes:
        address: what opens it again, as in another process.
        uri: how messages, logs and manifests name it: the address without its query.
        s3: what writes, if it is on S3.
    """

    s3: S3Objects | None = None

    def __init__(self, uri: str) -> None:
        """Opens `uri`: a path, or `file://`, `s3://`, `gs://`.

        Raises:
            StorageError: if the scheme is unknown, the place cannot be reached, or the URI holds credentials.
        """
        self.address, self.uri = uri, plain_uri(uri)
        self.local_root: Path | None = None
        if "://" not in uri or uri.startswith("file://"):
            self.local_root = _local_path(uri)
            self.filesystem: fs.FileSystem = fs.LocalFileSystem()
            self._root = str(self.local_root)
            return
        try:
            self.filesystem, self._root = open_uri(uri)
            if uri.startswith("s3://"):
                from uvd.manifests.s3_objects import S3Objects  # a quarter of a second, for nobody else

                self.s3 = S3Objects(s3_address(uri)[0])
        except UserError as error:
            raise StorageError(str(error)) from error

    def full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def key(self, path: str) -> str:
        """Of an object: its full path without the bucket."""
        return self.full(path).partition("/")[2]

    def why_not_there(self, path: str) -> str:
        """Of a file that `exists` did not find, the reason for a message."""
        bucket = self._root.partition("/")[0]
        if self.s3 is not None and self.filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
            return f"there is no bucket {bucket!r} at that endpoint: check its name, AWS_ENDPOINT_URL and AWS_REGION"
        return f"there is no {path}"

    def create(self, path: str) -> PendingFile:
        return PendingFile(self, path)

    def put(self, path: str, data: bytes) -> None:
        """Writes a whole file atomically."""
        pending = self.create(path)
        try:
            pending.stream.write(data)
            pending.commit()
        except BaseException:
            pending.abort()
            raise

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        """Says which file it was, of which failures of an object store do not all tell."""
        try:
            yield
        except ObjectStoreError:
            raise
        except OSError as error:
            if not is_store_failure(error):
                raise
            raise ObjectStoreError(f"{self.uri}/{path}: {explain(error)}") from error

    @contextmanager
    def open(self, path: str) -> Iterator[NativeFile]:
        """Opens a file for random access.

        Raises:
            FileNotFoundError: if it is not there.
            ObjectStoreError: if the store fails, in the block too.
        """
        with self._reaching(path), self.filesystem.open_input_file(self.full(path)) as file:
            yield file

    def exists(self, path: str) -> bool:
        return bool(self.info(path).type == fs.FileType.File)

    def info(self, path: str) -> fs.FileInfo:
        """Type, size and time of change of what is there under a name, if anything is."""
        with self._reaching(path):
            return self.filesystem.get_file_info(self.full(path))

    def read(self, path: str) -> bytes:
        with self._reaching(path), self.filesystem.open_input_stream(self.full(path)) as stream:
            return bytes(stream.read())

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`: one range request on object stores."""
        with self.open(path) as file:
            return file.read_at(length, offset)

    @contextmanager
    def stream(self, path: str) -> Iterator[BinaryIO]:
        """Opens a file for one pass from start to end."""
        with (
            self._reaching(path),
            self.filesystem.open_input_stream(self.full(path), buffer_size=1 << 20) as stream,
        ):
            yield cast(BinaryIO, stream)

    def names(self, folder: str) -> list[str]:
        """What is directly in `folder`, in no order; of a local folder, without a look at each file."""
        if self.local_root is None:
            return [info.base_name for info in self.iter_files(folder)]
        try:
            return os.listdir(self.full(folder))
        except FileNotFoundError:
            return []

    def list(self, folder: str) -> list[str]:
        """Names of the files and folders directly in `folder`, sorted; empty if there is no such folder."""
        return sorted(self.names(folder))

    def iter_files(self, folder: str) -> Iterator[fs.FileInfo]:
        """Name, size and time of change of what is directly in `folder`, in no order; nothing if it is not there."""
        with self._reaching(folder):
            infos = self.filesystem.get_file_info(fs.FileSelector(self.full(folder), allow_not_found=True))
        yield from infos

    def delete(self, path: str) -> None:
        if self.s3 is not None:
            self.s3.delete(self.key(path))
        else:
            self.filesystem.delete_file(self.full(path))

    def delete_folder(self, folder: str) -> None:
        if self.s3 is not None:
            self.s3.delete_below(self.key(folder) + "/")
        elif self.filesystem.get_file_info(self.full(folder)).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.full(folder))

    def sweep(self, folder: str) -> int:
        """Removes the temporary files or unfinished uploads that a killed run left in `folder`; returns how many."""
        if self.s3 is not None:
            return self.s3.abort_uploads(self.key(folder) + "/")
        stale = [name for name in self.names(folder) if is_temporary(name)]
        for name in stale:
            self.delete(f"{folder}/{name}" if folder else name)
        return len(stale)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the dataset while `dataset.json` is read and rewritten: locally by a lock on its folder, on object
        stores by a lease. Waits for others; leaves no lock file.
        """
        if self.local_root is None:
            with hold(self, ["dataset.json"], wait=True):
                yield
            return
        self.local_root.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.local_root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.sweep("")
            yield
        finally:
            os.close(folder)


def _local_path(uri: str) -> Path:
    if not uri.startswith("file://"):
        return Path(uri).expanduser().absolute()
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise StorageError(f"{uri} names the host {parts.netloc!r}; a file URI has three slashes: file:///path")
    return Path(unquote(parts.path)).absolute()


def fsync_path(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

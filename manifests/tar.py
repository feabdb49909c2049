"""Deterministic ustar archives and a reader that trusts nothing.

The writer fixes mtime, owner and mode, and reports where each member's bytes lie, so that readers can seek to them.
The reader accepts regular files with plain names and allow-listed extensions, and checks sizes and header checksums: an
archive is read, never extracted. Plain ustar is read by every webdataset user (POSIX.1-1988).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO

BLOCK = 512
RECORD = 20 * BLOCK
"""Tars are padded to whole records, as GNU tar and Python do."""
MAX_MEMBER_BYTES = 64 << 20
EXTENSIONS = frozenset({"jpg", "png", "json", "npy"})


class TarError(ValueError):
    """The archive is damaged or holds something that does not belong in a shard."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes:
        name: file name without folders, at most 100 ASCII characters.
        offset: byte offset of the content in the archive.
        data: the content.
        header: the block before the content.
    """

    name: str
    offset: int
    data: bytes
    header: bytes


def _checked_name(name: str) -> str:
    stem, _, extension = name.rpartition(".")
    if not stem or stem.startswith(".") or "/" in name or "\\" in name or not name.isascii():
        raise TarError(f"member name {name!r} is not a plain file name")
    if len(name) > tarfile.LENGTH_NAME:
        raise TarError(f"member name {name!r} is longer than {tarfile.LENGTH_NAME} characters")
    if extension not in EXTENSIONS:
        raise TarError(f"member {name!r}: extension not one of {sorted(EXTENSIONS)}")
    return name


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's content: mtime 0, mode 0644, owner 0, as every shard has them."""
    info = tarfile.TarInfo(_checked_name(name))
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


class TarWriter:
    """Writes members one after another to a binary stream; keeps sha256 and length as it goes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = sha256()
        self.bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Appends one member; returns the byte offset of its content.

        Raises:
            TarError: for a name that the reader would refuse, or content over 64 MiB.
        """
        if len(data) > MAX_MEMBER_BYTES:
            raise TarError(f"member {name!r} has {len(data)} bytes, over {MAX_MEMBER_BYTES}")
        self._write(header(name, len(data)))
        offset = self.bytes
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return offset

    def finish(self) -> str:
        """Writes the end of the archive; returns its sha256 in hex."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.bytes % RECORD))
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.bytes += len(data)


def iter_members(stream: BinaryIO, *, span: bool = False) -> Iterator[Member]:
    """Yields the members of an archive in order, reading it once from start to end.

    Args:
        stream: the archive, from its start.
        span: the stream is a run of whole members cut out of an archive, so it has no end marker.

    Raises:
        TarError: for a torn archive, a bad checksum, a link, device, folder or extension header, or a foreign name.
    """
    position = 0
    while True:
        block = stream.read(BLOCK)
        if span and not block:
            return
        if len(block) < BLOCK:
            raise TarError(f"archive ends at byte {position + len(block)} without its end marker")
        if block == bytes(BLOCK):
            return
        info = _checked_header(block, position)
        position += BLOCK
        padded = info.size + -info.size % BLOCK
        data = stream.read(padded)
        if len(data) < padded:
            raise TarError(f"archive ends inside member {info.name!r}")
        yield Member(info.name, position, data[: info.size], block)
        position += padded


def _checked_header(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise TarError(f"bad header at byte {position}: {error}") from error
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise TarError(f"member {info.name!r} is not a regular file")
    if not 0 <= info.size <= MAX_MEMBER_BYTES:
        raise TarError(f"member {info.name!r} has {info.size} bytes, over {MAX_MEMBER_BYTES}")
    _checked_name(info.name)
    return info

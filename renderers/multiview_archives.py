"""An object in a zip, with its materials, textures and buffers: members are read in memory, and nothing is extracted.

One zip is one object: the only file of a 3D format in it, or the one named `scene`, as Sketchfab's downloads call it.
Before Python's `zipfile` sees an archive its directory is bounded (APPNOTE 6.3.10, section 4.3.16). Members are stored
or deflated, and no longer than they say and the object may be; their checksums are verified.
"""

from __future__ import annotations

import io
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Container
from urllib.parse import unquote

from uvd.renderers.multiview_references import References, is_external
from uvd.sequences.reject import Reason, RejectedInput

MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 8 << 20
MAIN_STEM = "scene"

_END, _ZIP64_LOCATOR, _LOCAL = b"PK\x05\x06", b"PK\x06\x07", b"PK\x03\x04"
_END_RECORD = struct.Struct("<4s4H2LH")
_MAX_COMMENT = 0xFFFF
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of the others, bz2 and LZMA inflate without a bound."""
_ENCRYPTED = 1
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OSError, NotImplementedError)


class ArchiveResolver(References):
    """Members of a zip, by paths relative to the object's file in it."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._archive = archive
        self._folder = folder
        self._members = {posixpath.normpath(_path(info)): info for info in archive.infolist() if not info.is_dir()}

    def get(self, key: str) -> bytes:
        name = self.name_of(key)
        for candidate in (name, unquote(name)):
            info = self._members.get(posixpath.normpath(posixpath.join(self._folder, candidate)))
            if info is not None:
                return self.read(info)
        raise FileNotFoundError(key)

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """Unpacks one member.

        Raises:
            RejectedInput: `TOO_LARGE` or `UNREADABLE`.
        """
        name = _path(info)
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
            raise self.refuse(Reason.UNREADABLE, f"{name!r} is encrypted or compressed by method {info.compress_type}")
        self.take(name, info.file_size)
        try:
            with self._archive.open(info) as member:
                data = member.read(info.file_size + 1)
        except _DAMAGE as error:
            raise self.refuse(Reason.UNREADABLE, f"{name!r}: {error}") from error
        if len(data) != info.file_size:
            raise self.refuse(Reason.UNREADABLE, f"{name!r} has {len(data)} bytes, not {info.file_size}")
        return data

    def namespaced(self, namespace: str) -> ArchiveResolver:
        return ArchiveResolver(self._archive, posixpath.join(self._folder, namespace), self.bytes_left)


def open_archive(data: bytes, max_bytes: int, formats: Container[str]) -> tuple[str, bytes, ArchiveResolver]:
    """Finds the object in a zip.

    Args:
        data: the whole archive.
        max_bytes: of what is unpacked.
        formats: suffixes of objects, in lower case.

    Returns:
        Path and bytes of its file, and where its other files come from.

    Raises:
        RejectedInput: `NOT_3D` (no object, or several), `TRUNCATED`, `UNREADABLE`, `TOO_COMPLEX` (too many members),
            `TOO_LARGE`, or `EXTERNAL_REFERENCE` (names that lead out of the archive).
    """
    _check_directory(data)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _DAMAGE as error:
        raise RejectedInput(Reason.UNREADABLE, f"zip: {error}") from error
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise RejectedInput(Reason.TOO_COMPLEX, f"{len(members)} members, limit {MAX_MEMBERS}")
    for info in members:
        if is_external(_path(info)):
            raise RejectedInput(Reason.EXTERNAL_REFERENCE, f"member {info.filename!r}"[:300])
    main = _main(members, formats)
    resolver = ArchiveResolver(archive, posixpath.dirname(_path(main)), max_bytes)
    return _path(main), resolver.read(main), resolver


def _path(info: zipfile.ZipInfo) -> str:
    return info.filename.replace("\\", "/")


def _main(members: list[zipfile.ZipInfo], formats: Container[str]) -> zipfile.ZipInfo:
    found = []
    for info in members:
        path = _path(info)
        hidden = any(part == "__MACOSX" or part.startswith(".") for part in posixpath.normpath(path).split("/"))
        if not info.is_dir() and not hidden and posixpath.splitext(path)[1].lower() in formats:
            found.append(info)
    scenes = [info for info in found if posixpath.splitext(posixpath.basename(_path(info)))[0].lower() == MAIN_STEM]
    for candidates in (found, scenes):
        if len(candidates) == 1:
            return candidates[0]
    names = ", ".join(sorted(_path(info) for info in found))
    detail = f"{len(found)} objects in one zip: {names}" if found else f"no object among {len(members)} members"
    raise RejectedInput(Reason.NOT_3D, detail[:300])


def _check_directory(data: bytes) -> None:
    """Bounds the directory by its end record, which `zipfile` would follow whatever it says."""
    start = data.rfind(_END, max(0, len(data) - _END_RECORD.size - _MAX_COMMENT))
    if start < 0 or len(data) - start < _END_RECORD.size:
        cut = data.startswith(_LOCAL)
        raise RejectedInput(Reason.TRUNCATED if cut else Reason.NOT_3D, "a zip without its end" if cut else "no zip")
    _, _, _, _, count, size, _, _ = _END_RECORD.unpack_from(data, start)
    if data[max(0, start - 20) : start].startswith(_ZIP64_LOCATOR):
        raise RejectedInput(Reason.TOO_COMPLEX, "a ZIP64 directory, for more members or bytes than an object has")
    if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
        raise RejectedInput(Reason.TOO_COMPLEX, f"{count} members in a directory of {size} bytes, limit {MAX_MEMBERS}")

"""Reads archives of others: member after member, sizes capped, nothing extracted to a path that an archive names.

An archive gives `Member`s; what is wanted of them is written below one folder under a name of checked parts. Links,
devices and folders of an archive are never made. Costs what unpacking costs; one member at a time is in memory.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO

from uvd.sequences.errors import UserError

MAX_MEMBER_BYTES = 64 << 20
MAX_TOTAL_BYTES = 512 << 20
"""Of all files written out of one archive."""
MAX_FILES = 20_000
MAX_NAME_CHARACTERS = 240


class SamplesError(UserError):
    """Sample packages could not be fetched or are not what was expected."""


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive.

    Attributes:
        name: as the archive has it, unchecked.
        size: in bytes, as the archive says; `read` gives no more.
        read: its content. Archives that are streams want it called before the next member is asked for.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def zip_members(file: Path | BinaryIO, name: str) -> Iterator[Member]:
    """The regular files of a zip file; `name` is for messages.

    Raises:
        SamplesError: for what is no zip file, or is damaged, encrypted or packed in an unknown way.
    """
    with _zip_errors(name), zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield Member(info.filename, info.file_size, partial(_read_zipped, archive, info, name))


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    with _zip_errors(name):
        return archive.read(info)


@contextmanager
def _zip_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise SamplesError(f"{name} cannot be read as a zip file: {error}") from error


def matching(members: Iterable[Member], patterns: Iterable[str]) -> Iterator[Member]:
    """Members whose name matches one of the shell patterns; `*` matches `/` too."""
    patterns = tuple(patterns)
    return (member for member in members if any(fnmatchcase(member.name, pattern) for pattern in patterns))


def checked_parts(name: str) -> list[str]:
    """The parts of a member's name, for a path that we build.

    Raises:
        SamplesError: for an absolute or overlong name, or one with `..`, `.`, nothing, a backslash or control
            characters between its slashes.
    """
    parts = name.split("/")
    bad = any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts)
    if bad or len(name) > MAX_NAME_CHARACTERS:
        raise SamplesError(f"an archive holds a file with a name that is not accepted: {name[:300]!r}")
    return parts


def read_member(member: Member) -> bytes:
    """A member's content.

    Raises:
        SamplesError: if it is larger than 64 MiB, or not as long as the archive says.
    """
    if not 0 <= member.size <= MAX_MEMBER_BYTES:
        raise SamplesError(f"{member.name} has {member.size} bytes, more than the {MAX_MEMBER_BYTES} accepted")
    content = member.read()
    if len(content) != member.size:
        raise SamplesError(f"{member.name} is cut off: {len(content)} of {member.size} bytes")
    return content


def write_members(members: Iterable[Member], folder: Path) -> dict[str, int]:
    """Writes members as new files below `folder`, which nobody else writes to.

    Returns:
        Bytes of each file, by its path relative to `folder`.

    Raises:
        SamplesError: for a bad name, a name that comes twice or is file and folder, and for more than 20,000 files or
            512 MiB.
    """
    written: dict[str, int] = {}
    total = 0
    for member in members:
        path = folder.joinpath(*checked_parts(member.name))
        total += member.size
        if len(written) >= MAX_FILES or total > MAX_TOTAL_BYTES:
            raise SamplesError(f"an archive holds more than {MAX_FILES} files or {MAX_TOTAL_BYTES} bytes")
        content = read_member(member)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
        except (FileExistsError, NotADirectoryError) as error:
            raise SamplesError(f"an archive holds two files for {member.name}") from error
        written[member.name] = member.size
    return written

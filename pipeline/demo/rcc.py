"""Reads Qt resource archives (`.rcc`), in which GCompris keeps its pictures.

Layout, big-endian: `qres`, version, offsets of tree, data and names. A tree node is name offset (u32), flags (u16),
then for a folder its number of children and the first child's node, for a file four bytes of locale and the data
offset; from version 2 on eight bytes of time follow. Data: u32 length, content, which zlib may have packed (then u32
unpacked length first). A name: u16 length, u32 hash, UTF-16. Every offset is checked before it is followed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import partial

from uvd.pipeline.demo.archives import Member, SamplesError

MAGIC = b"qres"
VERSIONS = (1, 2, 3)
ZLIB, FOLDER, ZSTD = 1, 2, 4
MAX_DEPTH = 32


def rcc_members(content: bytes, archive: str) -> Iterator[Member]:
    """The files of a resource archive, by their path without leading slash; `archive` is for messages.

    Raises:
        SamplesError: for what is no resource archive, points outside itself or at one node twice, or is packed with
            something else than zlib.
    """
    try:
        if content[:4] != MAGIC:
            raise SamplesError(f"{archive} is no Qt resource archive")
        version, tree, data, names = struct.unpack_from(">4I", content, 4)
        if version not in VERSIONS:
            raise SamplesError(f"{archive}: resource archives of version {version} are not read, only {VERSIONS}")
        node_bytes = 14 if version == 1 else 22
        waiting: list[tuple[int, tuple[str, ...]]] = [(0, ())]
        seen = {0}
        while waiting:
            node, path = waiting.pop()
            start = tree + node * node_bytes
            name_offset, flags = struct.unpack_from(">IH", content, start)
            if node:
                path = (*path, _name(content, names + name_offset, archive))
            if not flags & FOLDER:
                (offset,) = struct.unpack_from(">I", content, start + 10)
                yield _file(content, data + offset, flags, "/".join(path), archive)
                continue
            number, first = struct.unpack_from(">2I", content, start + 6)
            last_start = tree + (first + number) * node_bytes
            children = range(first, first + number)
            if last_start > len(content) or len(path) >= MAX_DEPTH or not seen.isdisjoint(children):
                raise SamplesError(f"{archive}: the folder {'/'.join(path)!r} is damaged")
            seen.update(children)
            waiting += [(child, path) for child in reversed(children)]
    except (struct.error, UnicodeDecodeError) as error:
        raise SamplesError(f"{archive} is a damaged Qt resource archive: {error}") from error


def _name(content: bytes, start: int, archive: str) -> str:
    (length,) = struct.unpack_from(">H", content, start)
    raw = content[start + 6 : start + 6 + 2 * length]
    if len(raw) != 2 * length:
        raise SamplesError(f"{archive}: a name reaches beyond the end")
    name = raw.decode("utf-16-be")
    if "/" in name:
        raise SamplesError(f"{archive}: a name holds a slash: {name[:100]!r}")
    return name


def _file(content: bytes, start: int, flags: int, name: str, archive: str) -> Member:
    (length,) = struct.unpack_from(">I", content, start)
    begin, end = start + 4, start + 4 + length
    if end > len(content):
        raise SamplesError(f"{archive}: {name} reaches beyond the end")
    if flags & ZSTD:
        raise SamplesError(f"{archive}: {name} is packed with zstd, which is not read")
    if not flags & ZLIB:
        return Member(name, length, lambda: content[begin:end])
    if length < 4:
        raise SamplesError(f"{archive}: {name} is cut off")
    (size,) = struct.unpack_from(">I", content, begin)
    return Member(name, size, partial(_inflate, content[begin + 4 : end], size, f"{archive}: {name}"))


def _inflate(packed: bytes, size: int, name: str) -> bytes:
    """At most `size` bytes, however much the packed ones would become."""
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(packed, max(size, 1))
        more = out if not size else inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise SamplesError(f"{name} is damaged: {error}") from error
    if more or len(out) != size or not inflater.eof:
        raise SamplesError(f"{name} does not unpack to the {size} bytes that it should have")
    return out

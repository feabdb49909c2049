"""Images in tars as img2dataset writes them (WebDataset): `KEY.jpg`, `KEY.json`, `KEY.txt`; captions are never read.

Samples are runs of members with one key (the name up to the first dot of its last part). Planning reads the headers: on
disk about 25 µs a member, on an object store the whole tar once. A unit is a range of a tar's samples. Headers are read
one by one (Python's tarfile takes a damaged one for the end): what is no plain file is passed over, nothing is
extracted, sizes are capped, and where a header is damaged, the rest of the tar is one input, rejected.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.decode import IMAGE_SUFFIXES
from uvd.sources.input_place import InputFile, InputPlace

SUFFIXES = (".tar",)
MAX_EXTENSION_BYTES = 1 << 16
"""A PAX header or long name; webdataset's are under 1 KiB."""
MAX_JSON_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_SKIP_BYTES = 1 << 20
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class DamagedTarError(ValueError):
    """The tar cannot be read beyond this point."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A plain file in a tar, and where its headers and its content begin."""

    name: str
    size: int
    start: int
    content: int

    @property
    def key(self) -> str:
        folder, slash, name = self.name.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"

    @property
    def suffix(self) -> str:
        return f".{self.name.rpartition('.')[2].lower()}"


@dataclass(frozen=True, slots=True)
class TarSpan:
    """The samples of one work unit: bytes of the tar, and how many."""

    offset: int
    length: int
    samples: int


@dataclass(frozen=True, slots=True)
class TarSample:
    """What is used of a sample: the image, or the verdict on it, and the URL that it came from."""

    origin: str
    image: bytes | RejectedInput


class _Cursor:
    """Reads forward from a position; skips by seeking where the file can."""

    def __init__(self, stream: pa.NativeFile, position: int) -> None:
        self._stream, self.position = stream, position
        self._seeks = stream.seekable()

    def read(self, size: int) -> bytes:
        """Raises DamagedTarError if the file ends before."""
        data = self._stream.read(size)
        self.position += len(data)
        if len(data) < size:
            raise DamagedTarError("it ends in the middle of a member")
        return data

    def header(self) -> bytes:
        """The next block; empty at the end of the file."""
        data = self._stream.read(_BLOCK)
        self.position += len(data)
        if 0 < len(data) < _BLOCK:
            raise DamagedTarError("it ends in the middle of a header")
        return data

    def skip_to(self, position: int) -> None:
        if self._seeks:
            self._stream.seek(position)
            self.position = position
        while self.position < position:
            self.read(min(position - self.position, _SKIP_BYTES))


def _members(cursor: _Cursor, end: int, *, whole: bool = False) -> Iterator[TarMember]:
    """Plain files whose headers begin before `end`; the reader may take the content before it asks for the next.

    Args:
        whole: up to the end of the tar, so that its end marker must be there.

    Raises:
        DamagedTarError: a header is damaged, or the file ends too early.
    """
    start = cursor.position
    extended: dict[str, Any] = {}
    while cursor.position < end and (block := cursor.header()):
        if not block.strip(b"\0"):
            return
        kind, name, size = _header(block)
        content = cursor.position
        if kind in _EXTENSIONS:
            if size > MAX_EXTENSION_BYTES:
                raise DamagedTarError(f"an extended header of {size} bytes")
            extended |= _extension(kind, cursor.read(size))
            cursor.skip_to(content + _padded(size))
            continue
        size = 0 if kind in _WITHOUT_CONTENT else extended.get("size", size)
        if content + size > end:
            raise DamagedTarError("it ends in the middle of a member")
        if kind in _PLAIN:
            yield TarMember(extended.get("path", name), size, start, content)
        cursor.skip_to(min(content + _padded(size), end))
        start, extended = cursor.position, {}
    if whole:
        raise DamagedTarError("it has no end marker, as if it was cut")


def _header(block: bytes) -> tuple[bytes, str, int]:
    """(type, name, size) of a 512-byte header; three times as fast as tarfile, which parses all fields."""
    if _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise DamagedTarError("a header is damaged")
    # GNU writes members of 8 GiB and more as a binary number.
    size = int.from_bytes(block[125:136], "big") if block[124] == 0x80 else _octal(block[124:136])
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return block[156:157], name.decode("utf-8", "surrogateescape"), size


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0") or b"0"
    if digits.strip(b"01234567"):
        raise DamagedTarError("a header is damaged")
    return int(digits, 8)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _extension(kind: bytes, data: bytes) -> dict[str, Any]:
    """Name and size from a PAX header or a GNU long name."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, Any] = {}
    while kind == tarfile.XHDTYPE and data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length[:9]) <= len(data):
            raise DamagedTarError("a PAX header that is none")
        name, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        data = data[int(length) :]
        if name == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape")
        if name == b"size":
            if not value.isdigit() or len(value) > 18:
                raise DamagedTarError("a PAX header that is none")
            found["size"] = int(value)
    return found


def list_members(place: InputPlace, file: InputFile) -> Iterator[TarMember]:
    """All plain files of a tar, from its headers alone where the place can seek.

    Raises:
        DamagedTarError: where a header is damaged, or the tar ends without its end marker.
        OSError: disk or network failed.
    """
    with _opened(place, file, 0, file.bytes) as cursor:
        yield from _members(cursor, file.bytes, whole=True)


def list_described(
    place: InputPlace, file: InputFile, suffixes: Collection[str], max_bytes: int
) -> Iterator[tuple[TarMember, bytes]]:
    """As `list_members`, each with its content if it has one of `suffixes` and up to `max_bytes`, else with none.

    Raises:
        DamagedTarError, OSError: as there.
    """
    with _opened(place, file, 0, file.bytes) as cursor:
        for member in _members(cursor, file.bytes, whole=True):
            wanted = member.suffix in suffixes and member.size <= max_bytes
            yield member, cursor.read(member.size) if wanted else b""


def read_content(place: InputPlace, file: InputFile, offset: int, size: int) -> bytes:
    """The content of one member, from where listing found it.

    Raises:
        RejectedInput: the tar ends before.
        OSError: disk or network failed.
    """
    with place.open(file.name) as source:
        data = source.read_at(size, offset)
    if len(data) < size:
        raise RejectedInput(Reason.UNREADABLE, "the tar is shorter than when it was planned")
    return data


def find_spans(place: InputPlace, file: InputFile, shard_size: int) -> tuple[list[TarSpan], str]:
    """Cuts a tar into spans of `shard_size` samples, reading its headers once; and says why the rest is lost, if it is.

    Raises:
        OSError: disk or network failed.
    """
    starts: list[int] = []
    samples, key, damage = 0, None, ""
    try:
        for member in list_members(place, file):
            if member.key != key:
                key = member.key
                if samples % shard_size == 0:
                    starts.append(member.start)
                samples += 1
    except DamagedTarError as error:
        damage = str(error)
    ends = [*starts[1:], file.bytes]
    spans = [
        TarSpan(start, end - start, min(shard_size, samples - number * shard_size))
        for number, (start, end) in enumerate(zip(starts, ends, strict=False))
    ]
    return spans, damage


@contextmanager
def _opened(place: InputPlace, file: InputFile, offset: int, length: int) -> Iterator[_Cursor]:
    if place.local:
        with place.open(file.name) as stream:
            stream.seek(offset)
            yield _Cursor(stream, offset)
    elif not offset:
        with place.stream(file.name) as stream:
            yield _Cursor(stream, 0)
    else:
        with place.open(file.name) as source, source.get_stream(offset, length) as part:
            yield _Cursor(pa.BufferedInputStream(part, _SKIP_BYTES), offset)


def read_samples(place: InputPlace, file: InputFile, span: TarSpan, max_bytes: int) -> Iterator[TarSample]:
    """The samples of a span, `span.samples` of them, one at a time.

    Args:
        max_bytes: larger images are refused unread.

    Raises:
        OSError: disk or network failed.
    """
    given, key = 0, None
    sample: dict[str, Any] = {}
    with _opened(place, file, span.offset, span.length) as cursor:
        try:
            for member in _members(cursor, min(span.offset + span.length, file.bytes)):
                if member.key != key:
                    if key is not None:
                        yield _finish(file, key, sample)
                        given += 1
                    if given == span.samples:
                        return
                    key, sample = member.key, {}
                _take(cursor, member, sample, max_bytes)
        except DamagedTarError:
            # Planning found the same place; the sample before it is whole as far as it goes.
            pass
    if key is not None and given < span.samples:
        yield _finish(file, key, sample)


def _take(cursor: _Cursor, member: TarMember, sample: dict[str, Any], max_bytes: int) -> None:
    if member.suffix in IMAGE_SUFFIXES and "image" not in sample:
        if member.size > max_bytes:
            sample["image"] = RejectedInput(Reason.TOO_LARGE, f"{member.size} bytes, over {max_bytes}")
        else:
            sample["image"] = cursor.read(member.size)
    elif member.suffix == ".json" and member.size <= MAX_JSON_BYTES:
        sample["url"] = _url(cursor.read(member.size))


def _url(data: bytes) -> str:
    try:
        described = json.loads(data)
    except (ValueError, RecursionError):
        return ""  # then the name of the sample says where it came from
    url = described.get("url") if isinstance(described, dict) else None
    return url if isinstance(url, str) else ""


def _finish(file: InputFile, key: str, sample: Mapping[str, Any]) -> TarSample:
    missing = RejectedInput(Reason.MISSING, "the sample has no image")
    return TarSample(sample.get("url") or f"{file.name}/{key}", sample.get("image", missing))

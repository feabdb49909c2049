"""Debian packages as files: fetched with `apt-get download`, which needs no root, and read without installing them.

A `.deb` is an `ar` archive with `data.tar.xz` in it (deb(5)); it is unpacked as a stream, with its length and the
memory of the unpacker capped. Other compressions are refused: Debian 12 has none.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from uvd.pipeline.demo.archives import Member, SamplesError

APT_TIMEOUT_S = 1800
MAX_DATA_BYTES = 1 << 30
"""Of an unpacked `data.tar`; the largest of ours has 283 MB."""
MAX_ENTRIES = 50_000
MAX_XZ_MEMORY = 256 << 20
BLOCK_BYTES = 1 << 16
AR_MAGIC, AR_HEADER_BYTES, AR_MEMBERS = b"!<arch>\n", 60, 8


def require_apt() -> None:
    """Raises SamplesError where there is no apt-get."""
    for tool in ("apt-get", "apt-cache"):
        if shutil.which(tool) is None:
            raise SamplesError(f"{tool} is not on the PATH: the tokenizer's pictures are in packages of Debian 12")


def offered_versions(name: str) -> list[str]:
    """Versions that apt-get can download, the newest first; empty for an unknown package."""
    lines = _apt(["apt-cache", "madison", name], Path.cwd()).splitlines()
    fields = [[field.strip() for field in line.split("|")] for line in lines]
    return list(dict.fromkeys(row[1] for row in fields if len(row) == 3 and row[0] == name and "Packages" in row[2]))


def choose_version(name: str, wanted: str, *, any_version: bool) -> str:
    """`wanted` if apt-get offers it; with `any_version` otherwise the newest that it offers.

    Raises:
        SamplesError: if there is nothing to choose; the message names what is wanted and what is offered.
    """
    offered = offered_versions(name)
    if wanted in offered:
        return wanted
    if not offered:
        raise SamplesError(f"apt-get offers no {name} (wanted: {wanted}); `apt-get update` may help, on Debian 12")
    if not any_version:
        raise SamplesError(
            f"apt-get offers {name} {', '.join(offered)}, and the pictures are those of {wanted} (Debian 12); "
            "--any-version takes what is offered, and the pools will differ"
        )
    return offered[0]


def download_deb(name: str, version: str, folder: Path) -> Path:
    """Downloads one package to `folder`.

    Raises:
        SamplesError: when apt-get fails; with its message.
    """
    part = folder / f".{name}.part"
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    _apt(["apt-get", "download", "-qq", f"{name}={version}"], part)
    files = sorted(part.glob(f"{name}_*.deb"))
    if len(files) != 1:
        raise SamplesError(f"apt-get left {len(files)} packages in place of {name} {version}")
    final = files[0].rename(folder / files[0].name)
    shutil.rmtree(part)
    return final


def _apt(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=APT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise SamplesError(f"`{' '.join(command)}` did not end within {APT_TIMEOUT_S} s") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("E:")]
        raise SamplesError(f"`{' '.join(command)}` failed: {' '.join(lines or result.stderr.splitlines()[-3:])}")
    return result.stdout


def deb_members(file: Path) -> Iterator[Member]:
    """The regular files of a package, by their path without leading `./`; each is to be read before the next.

    Raises:
        SamplesError: for what is no Debian package, or is damaged, too large or packed with something else than xz.
    """
    with file.open("rb") as stream, _deb_errors(file.name):
        data = XzStream(stream, _find_data(stream, file.name), file.name)
        with tarfile.open(fileobj=data, mode="r|") as tar:
            for index, info in enumerate(tar):
                if index >= MAX_ENTRIES:
                    raise SamplesError(f"{file.name} has more than {MAX_ENTRIES} entries")
                if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse():
                    yield Member(info.name.removeprefix("./"), info.size, partial(_content, tar, info, file.name))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> bytes:
    with _deb_errors(name):
        opened = tar.extractfile(info)
        return opened.read() if opened else b""


@contextmanager
def _deb_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise SamplesError(f"{name} is a damaged Debian package: {error}") from error


def _find_data(stream: BinaryIO, name: str) -> int:
    """Leaves the stream at the start of `data.tar.xz` and returns its length."""
    if stream.read(len(AR_MAGIC)) != AR_MAGIC:
        raise SamplesError(f"{name} is no Debian package")
    for _ in range(AR_MEMBERS):
        header = stream.read(AR_HEADER_BYTES)
        digits = header[48:58].strip()
        if len(header) != AR_HEADER_BYTES or header[58:] != b"`\n" or not digits.isdigit():
            break
        member, size = header[:16].decode("ascii", "replace").rstrip(" /"), int(digits)
        if member == "data.tar.xz":
            return size
        if member.startswith("data.tar"):
            raise SamplesError(f"{name} holds {member}; only data.tar.xz is read, as in the packages of Debian 12")
        stream.seek(size + size % 2, io.SEEK_CUR)
    raise SamplesError(f"{name} is a damaged Debian package: there is no data.tar.xz in it")


class XzStream(io.RawIOBase):
    """The next `size` bytes of a file, unpacked as they are read, at most 1 GiB of them."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        super().__init__()
        self._stream, self._left, self._name = stream, size, name
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # a writable buffer; 3.12 has a type for it
        while not self._unpacker.eof:
            block = b""
            if self._unpacker.needs_input:
                block = self._stream.read(min(BLOCK_BYTES, self._left))
                self._left -= len(block)
                if not block:
                    raise EOFError("its data end too early")
            out = self._unpacker.decompress(block, len(buffer))
            if out:
                self._given += len(out)
                if self._given > MAX_DATA_BYTES:
                    raise SamplesError(f"{self._name} unpacks to more than {MAX_DATA_BYTES} bytes")
                buffer[: len(out)] = out
                return len(out)
        return 0

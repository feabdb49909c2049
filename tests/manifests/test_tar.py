"""Tars: deterministic, readable by everyone, and read without trust."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvd.manifests.tar import EXTENSIONS, MAX_MEMBER_BYTES, TarError, TarWriter, iter_members

names = st.builds(
    lambda stem, extension: f"{stem}.{extension}",
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=80),
    st.sampled_from(sorted(EXTENSIONS)),
)


def written(members: list[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    stream = io.BytesIO()
    writer = TarWriter(stream)
    offsets = [writer.add(name, data) for name, data in members]
    writer.finish()
    return stream.getvalue(), offsets


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=3000)), max_size=8))
def test_round_trip_and_offsets(members):
    data, offsets = written(members)
    read = list(iter_members(io.BytesIO(data)))
    assert [(member.name, member.data) for member in read] == members
    assert [member.offset for member in read] == offsets
    for (_, content), offset in zip(members, offsets, strict=True):
        assert data[offset : offset + len(content)] == content
    assert data == written(members)[0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=3000)), max_size=5, unique_by=lambda member: member[0]))
def test_pythons_tarfile_reads_it_as_plain_ustar(members):
    data, _ = written(members)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
        assert [(info.name, archive.extractfile(info).read()) for info in infos] == members
        assert {(info.mtime, info.uid, info.gid, info.mode) for info in infos} <= {(0, 0, 0, 0o644)}
        assert not any(info.pax_headers for info in infos)


@pytest.mark.parametrize(
    "name", ["../a.json", "a/b.jpg", ".json", "a", "a.exe", "a.pkl", "é.jpg", "a\\b.jpg", "x" * 200]
)
def test_the_writer_refuses_foreign_names(name):
    with pytest.raises(TarError):
        TarWriter(io.BytesIO()).add(name, b"")


def _archive(**changes: object) -> bytes:
    info = tarfile.TarInfo("a.json")
    info.size = 2
    for key, value in changes.items():
        setattr(info, key, value)
    stream = io.BytesIO()
    stream.write(info.tobuf(tarfile.PAX_FORMAT))
    stream.write(b"{}" + bytes(510) + bytes(1024))
    return stream.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc/passwd.json"},
        {"name": "/etc/passwd.json"},
        {"name": "model.pkl"},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "b.json"},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"size": MAX_MEMBER_BYTES + 1},
        {"pax_headers": {"comment": "x"}},
    ],
)
def test_the_reader_refuses_what_does_not_belong(changes):
    with pytest.raises(TarError):
        list(iter_members(io.BytesIO(_archive(**changes))))


@pytest.mark.parametrize("cut", [1, 100, 511, 513, 600, 1023, 1024, 1500])
def test_a_torn_archive_is_named_as_such(cut):
    data, _ = written([("a.json", b"x" * 600), ("b.json", b"y")])
    with pytest.raises(TarError, match="ends"):
        list(iter_members(io.BytesIO(data[:cut])))


def test_a_flipped_header_bit_is_seen():
    data = bytearray(written([("a.json", b"{}")])[0])
    data[20] ^= 1
    with pytest.raises(TarError, match="bad header"):
        list(iter_members(io.BytesIO(bytes(data))))

"""The `uvd` entry of a footer: what Arrow says, or nothing."""

from __future__ import annotations

import io
import json
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvd.manifests.footer import TAIL_BYTES, find_entry, read_footer
from uvd.manifests.schema import METADATA_KEY, SEQUENCES, table_to_parquet

NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
METADATA = st.dictionaries(NAMES, NAMES | st.integers() | st.lists(NAMES, max_size=3), max_size=5)
HOSTILE = b"\x19\x2c\x18\x03uvd\x18\x02{}\x00\x18\x0cARROW:schema\x18\x01A\x00"


def manifest(metadata: dict[str, Any], origin: str = "http://h/1.jpg", rows: int = 3) -> bytes:
    """A manifest as the project writes it."""
    row = {
        "key": "images-000000-000000", "source": "images", "dataset": "d", "layout": "single", "split": "train",
        "num_images": 1, "roles": ["image"], "origins": [origin], "indices": [None], "widths": [9], "heights": [9],
        "phashes": [2**63], "digests": [5], "inputs": [0], "offset": 0, "length": 2048,
    }  # fmt: skip
    return table_to_parquet(pa.Table.from_pylist([row] * rows, schema=SEQUENCES), metadata)


def arrow(data: bytes) -> bytes | type[Exception] | None:
    """What Arrow says of the same file."""
    try:
        return (pq.read_metadata(pa.BufferReader(data)).metadata or {}).get(METADATA_KEY)
    except (OSError, ValueError, pa.ArrowException) as error:
        return type(error)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = tmp_path_factory.mktemp("footer") / "000000.parquet"

    def read(data: bytes) -> bytes | None:
        path.write_bytes(data)
        return read_footer(path)

    return read


@settings(deadline=None)
@given(metadata=METADATA, rows=st.integers(0, 3), origin=NAMES)
def test_manifests_are_read_as_arrow_reads_them(read, metadata, rows, origin):
    data = manifest(metadata, origin, rows)
    found = read(data)
    assert found == arrow(data)
    assert json.loads(found) == metadata


@pytest.mark.parametrize("size", [10, 126, 127, 128, 5_000, 16_383, 16_384, 20_000])
def test_entries_of_any_length(read, size):
    data = manifest({"histogram": "x" * size})
    assert read(data) == arrow(data) is not None


def test_a_footer_beyond_what_is_read_is_left_to_arrow(read):
    data = manifest({"histogram": "x" * TAIL_BYTES})
    assert read(data) is None
    assert isinstance(arrow(data), bytes)


@given(entries=st.dictionaries(st.sampled_from([b"uvd", b"other", HOSTILE, b"uvd2"]), st.binary(max_size=30)))
@settings(deadline=None, max_examples=50)
def test_other_files_of_arrow_get_arrows_answer_or_none(read, entries):
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(entries or None), sink)
    assert read(sink.getvalue()) in (None, arrow(sink.getvalue()))


def test_files_of_other_writers_get_none(read, tmp_path):
    duckdb.execute(f"copy (select 1 a) to '{tmp_path}/d.parquet' (format parquet, kv_metadata {{uvd: '{{}}'}})")
    data = (tmp_path / "d.parquet").read_bytes()
    assert (read(data), arrow(data)) == (None, b"{}")


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), in_footer=st.booleans())
@settings(deadline=None, max_examples=400)
def test_a_changed_byte_gives_arrows_answer_or_none(read, place, flip, in_footer):
    good = manifest({"fingerprint": "f" * 64, "tar_sha256": "0" * 64})
    start = len(good) - 8 - int.from_bytes(good[-8:-4], "little") if in_footer else 0
    position = start + int(place * (len(good) - start))
    data = good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :]
    found, theirs = read(data), arrow(data)
    if isinstance(theirs, type):  # then the damage lies before the entry, or there is no answer here either
        assert found in (None, arrow(good))
    else:
        assert found in (None, theirs)


@given(cut=st.integers(1, 6000), front=st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_truncated_file_gives_arrows_answer_or_none(read, cut, front):
    good = manifest({"fingerprint": "f"})
    data = good[cut:] if front else good[:-cut]
    found, theirs = read(data), arrow(data)
    assert found is None or found == (arrow(good) if isinstance(theirs, type) else theirs)
    if not front:
        assert found is None


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"\xff\xff\xff\xffPAR1", b"\0\0\0\0PAR1", b"x" * 200])
def test_what_is_no_parquet_file_gives_none(read, data):
    assert read(data) is None


@settings(deadline=None)
@given(before=st.binary(max_size=40), after=st.binary(max_size=40), length=st.integers(0, 127))
def test_bytes_in_a_column_are_not_taken_for_the_entry(read, before, after, length):
    """Statistics hold the smallest and the largest origin: a foreign file may have anything there."""
    sink = io.BytesIO()
    text = before + HOSTILE.replace(b"\x18\x01A", b"\x18" + bytes([length]) + b"A") + after
    pq.write_table(pa.table({"a": pa.array([text], pa.binary())}), sink)
    assert read(sink.getvalue()) is None
    hidden = table_to_parquet(pa.table({"a": pa.array([text], pa.binary())}), {"fingerprint": "f"})
    assert read(hidden) in (None, arrow(hidden))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_footer(tmp_path / "000000.parquet")


def test_no_bytes_of_any_kind_break_it():
    good = manifest({"a": 1})
    footer = good[-8 - int.from_bytes(good[-8:-4], "little") : -8]
    assert find_entry(footer) == b'{"a":1}'
    for end in range(len(footer)):
        assert find_entry(footer[:end]) is None

"""Lists of every format give the same rows, each row is planned once, and damage costs no more than itself."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from uvd.sequences import Reject, Seeds
from uvd.sources.base import SourceError
from uvd.sources.laion import LaionConfig, LaionSource
from uvd.sources.text_lists import find_spans, row_bounds, text_format
from uvd.sources.url_columns import Columns

CAPTIONS = ["plain", "a, b", 'say ""hi"" "twice"', "two\nlines", "", "back\r\nslash \\", '"']
FORMATS = ("parquet", "csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz")


def write(path: Path, urls: list[str], columns: tuple[str, ...] = ("TEXT", "URL", "WIDTH")) -> Path:
    """A list of `urls`, in the format that the path's suffix names, with captions that are hard to parse."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(CAPTIONS[number % len(CAPTIONS)], url, 100 + number) for number, url in enumerate(urls)]
    text = io.StringIO(newline="")
    if path.name.endswith(".parquet"):
        pq.write_table(pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True))), path, row_group_size=7)
        return path
    if ".csv" in path.name:
        csv.writer(text).writerows([columns, *rows])
    elif ".tsv" in path.name:
        cells = [columns, *((" ".join(caption.split()), url, width) for caption, url, width in rows)]
        text.write("".join("\t".join(map(str, row)) + "\n" for row in cells))
    else:
        text.write("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def source(place: Path | str, **settings: Any) -> LaionSource:
    return LaionSource(LaionConfig.model_validate({"dataset": "d", "input": place} | settings))


def rejects(source: LaionSource) -> list[tuple[str, str]]:
    """(origin, reason) of every planned input, in order; none of the URLs can be fetched."""
    found = []
    for number, unit in enumerate(source.plan()):
        assert unit.shard == number
        items = [item for item in source.read(unit, Seeds(0)) if isinstance(item, Reject)]
        assert [item.input for item in items] == list(range(unit.num_inputs))
        found += [(item.origin, str(item.reason)) for item in items]
    return found


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("shard_size", [1, 5, 8, 16, 100])
def test_every_format_gives_every_row_once(tmp_path, suffix, shard_size):
    urls = [f"ftp://{number}" for number in range(16)]
    listed = source(write(tmp_path / f"list.{suffix}", urls), shard_size=shard_size)
    assert rejects(listed) == [(url, "bad_url") for url in urls]
    assert all(unit.num_inputs <= shard_size for unit in listed.plan())


@pytest.mark.parametrize("limit", [1, 15, 16, 17, 31, 32, 50])
def test_the_limit_cuts_units_of_text_too(tmp_path, limit):
    urls = [f"ftp://{number}" for number in range(32)]
    write(tmp_path / "in/a.csv.gz", urls[:16])
    write(tmp_path / "in/b.jsonl", urls[16:])
    assert rejects(source(tmp_path / "in", limit=limit, shard_size=10)) == [(url, "bad_url") for url in urls[:limit]]


def test_a_folder_may_mix_formats_and_hold_other_files(tmp_path):
    for number, suffix in enumerate(FORMATS):
        write(tmp_path / "in" / f"{number}" / f"list.{suffix}", [f"ftp://{number}"])
    (tmp_path / "in/0/_stats.json").write_text("{}")
    (tmp_path / "in/empty.csv").write_bytes(b"")
    (tmp_path / "in/header-only.csv").write_text("url,width\n")
    assert [url for url, _ in rejects(source(tmp_path / "in"))] == [f"ftp://{number}" for number in range(len(FORMATS))]


def test_a_file_uri_is_the_path(tmp_path):
    write(tmp_path / "with space" / "list.csv", ["ftp://a"])
    uri = f"file://{tmp_path}/with%20space"
    plans = [list(source(place).plan()) for place in (uri, tmp_path / "with space", f"{uri}/list.csv")]
    assert plans[0] == plans[1] == plans[2]
    assert rejects(source(uri)) == [("ftp://a", "bad_url")]


def test_places_that_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("http://example.org/a.jpg\n")
    for place in (tmp_path, tmp_path / "a.txt", tmp_path / "nothing"):
        with pytest.raises(SourceError, match="neither a file nor a folder that holds some of"):
            list(source(place).plan())
    with pytest.raises(SourceError, match="cannot be opened"):
        source("nonsense://bucket/x")


def test_row_bounds_do_not_depend_on_blocks():
    """Against Python's own reader, for random well-formed CSV cut at random places."""
    rng = random.Random(0)
    for _ in range(50):
        rows = [["x" * rng.randrange(1, 3), rng.choice(CAPTIONS), "z"] for _ in range(rng.randrange(12))]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=rng.choice(["\n", "\r\n"])).writerows(rows)
        whole = text.getvalue().rstrip("\r\n") if rng.random() < 0.3 else text.getvalue()
        if rng.random() < 0.5:
            whole = "\n\r\n" + whole + rng.choice(["\n", "\r\n", ""])
        data = whole.encode()
        blocks = []
        while data[sum(map(len, blocks)) :]:
            done = sum(map(len, blocks))
            blocks.append(data[done : done + rng.randrange(1, 5)])
        found = [
            list(csv.reader(io.StringIO(data[start:end].decode(), newline="")))
            for starts, ends in row_bounds(blocks, quoted=True)
            for start, end in zip(starts, ends, strict=True)
        ]
        assert found == [[row] for row in rows]
        spans = find_spans(blocks, text_format("a.csv", ("a", "b", "c")), 5)
        assert sum(span.rows for span in spans) == len(rows)


def test_a_quote_in_tsv_is_a_character(tmp_path):
    (tmp_path / "list.tsv").write_text('url\tcaption\nftp://a\t5" nail\nftp://b\t"open\nftp://c\tx\n')
    assert [url for url, _ in rejects(source(tmp_path / "list.tsv"))] == ["ftp://a", "ftp://b", "ftp://c"]


def test_a_stray_quote_in_csv_costs_its_unit_and_is_counted(tmp_path):
    """By RFC 4180 the quote opens a cell, which swallows line ends; parsing then disagrees with planning."""
    lines = [f"ftp://{number},c" for number in range(9)]
    lines[1] = 'ftp://1,5" nail'
    lines[2] = 'ftp://2,6" nail'
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
    found = rejects(source(tmp_path / "list.csv", shard_size=4))
    assert [reason for _, reason in found] == ["unreadable"] * 4 + ["bad_url"] * 4
    assert found[4:] == [(f"ftp://{number}", "bad_url") for number in range(5, 9)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"url,w\nftp://a,1\nftp://b\nftp://c,3\n", ["bad_url", "unreadable", "bad_url"]),
        ("a.csv", b"\xef\xbb\xbfURL,w\r\nftp://a,1\r\n\r\nftp://\xff,1", ["bad_url", "bad_url"]),
        ("a.tsv", b"url\tw\nftp://a\t1\t2\nftp://b\t1\n", ["unreadable", "bad_url"]),
        (
            "a.jsonl",
            b'{"url": "ftp://a"}\n{"url": \nnot json\n[1]\n{"url": 3}\n{"w": 1}\n{"url": "\\ud800"}\n',
            ["bad_url", "unreadable", "unreadable", "unreadable", "bad_url", "bad_url", "bad_url"],
        ),
        ("a.jsonl", b'{"url": "ftp://a"}\n' + b"[" * 100_000 + b"\n", ["bad_url", "unreadable"]),
    ],
)
def test_a_row_that_is_broken_is_one_reject(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    found = rejects(source(tmp_path / name))
    assert [reason for _, reason in found] == expected
    assert all(origin.startswith(f"{name} row ") for origin, reason in found if reason == "unreadable")


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "footer"])
def test_a_damaged_parquet_file_is_one_reject_and_the_rest_goes_on(tmp_path, damage):
    for name in "abc":
        write(tmp_path / "in" / f"{name}.parquet", [f"ftp://{name}{number}" for number in range(3)])
    broken = tmp_path / "in/b.parquet"
    whole = broken.read_bytes()
    contents = {
        "text": b"url\nftp://a\n",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "footer": whole[:-200] + bytes(192) + whole[-8:],
    }
    broken.write_bytes(contents[damage])
    found = rejects(source(tmp_path / "in"))
    assert found[3] == ("b.parquet", "unreadable")
    assert [origin for origin, _ in found[:3] + found[4:]] == [f"ftp://{n}{k}" for n in "ac" for k in range(3)]


def test_damaged_gzip_is_one_reject(tmp_path):
    write(tmp_path / "in/a.csv.gz", ["ftp://a"])
    cut = write(tmp_path / "in/b.jsonl.gz", [f"ftp://{random.Random(n).random()}" for n in range(500)])
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "in/c.csv.gz").write_text("url\nftp://c\n")
    assert rejects(source(tmp_path / "in")) == [
        ("ftp://a", "bad_url"),
        ("b.jsonl.gz", "unreadable"),
        ("c.csv.gz", "unreadable"),
    ]


def test_damaged_pages_behind_a_good_footer_are_as_many_rejects_as_rows(tmp_path):
    place = tmp_path / "in/a.parquet"
    write(place, [f"ftp://{number}" for number in range(20)])
    data = bytearray(place.read_bytes())
    data[4:300] = bytes(296)
    place.write_bytes(data)
    found = rejects(source(tmp_path / "in", shard_size=7))
    assert len(found) == 20
    assert found[0] == ("a.parquet row 0", "unreadable")


def test_a_file_that_changes_after_planning_fails_its_shard(tmp_path):
    place = write(tmp_path / "list.csv", ["ftp://a"])
    listed = source(place)
    (unit,) = listed.plan()
    place.write_text("url\nftp://b\n")
    with pytest.raises(SourceError, match="changed or removed"):
        list(listed.read(unit, Seeds(0)))


@pytest.mark.parametrize(
    ("names", "meaning", "found"),
    [
        (["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "similarity", "punsafe", "pwatermark"], "pwatermark", None),
        (["id", "url", "text", "width", "image_phash", "watermark_score"], "pwatermark", "watermark_score"),
        (["id", "url", "aesthetic_score_laion_v2"], "aesthetic", "aesthetic_score_laion_v2"),
        (["URL", "AESTHETIC_SCORE"], "aesthetic", "AESTHETIC_SCORE"),
        (["uid", "url", "original_width", "clip_b32_similarity_score", "sha256"], "width", "original_width"),
        (["uid", "url", "clip_b32_similarity_score"], "similarity", "clip_b32_similarity_score"),
        (["url", "sha256", "md5"], "hash", "sha256"),
        (["Url", "url"], "url", "url"),
    ],
)
def test_known_lists_need_no_mapping(names, meaning, found):
    assert Columns().locate(names, (meaning,), "x") == {meaning: found or meaning}


def test_laions_own_hash_is_none_of_the_image():
    with pytest.raises(SourceError, match=r"columns\.hash"):
        Columns().locate(["URL", "hash"], ("hash",), "x")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl.gz"])
def test_a_column_that_a_filter_needs_is_missing(tmp_path, suffix):
    place = write(tmp_path / f"list.{suffix}", ["ftp://a"])
    with pytest.raises(SourceError, match=r"no column 'punsafe' or .*it has TEXT, URL, WIDTH\..* columns.punsafe"):
        list(source(place, filters={"max_punsafe": 0.5}).plan())
    with pytest.raises(SourceError, match=r"no column 'link'; it has TEXT, URL, WIDTH"):
        list(source(place, columns={"url": "link"}).plan())
    renamed = write(tmp_path / f"renamed.{suffix}", ["ftp://a"], ("a", "link", "w"))
    assert rejects(source(renamed, columns={"url": "LINK"})) == [("ftp://a", "bad_url")]


def test_files_without_header_get_names_from_the_config(tmp_path):
    (tmp_path / "list.tsv").write_text("a caption\tftp://a\nanother\tftp://b\n")
    named = source(tmp_path / "list.tsv", list_header=["caption", "url"])
    assert [url for url, _ in rejects(named)] == ["ftp://a", "ftp://b"]


def test_the_config_file_and_what_it_shows_in_comments_are_valid():
    text = (Path(__file__).parents[2] / "configs/laion.yaml").read_text()
    LaionConfig.model_validate(yaml.safe_load(text) | {"input": "/a"})
    shown = re.sub(r"(?m)^# (columns|list_header|format):", r"\1:", re.sub(r"(?m)^#  (?=\w)", "  ", text))
    config = LaionConfig.model_validate(yaml.safe_load(shown) | {"input": "/a"})
    named = {"filters": config.filters, "checks": config.checks, "columns": config.columns}
    for name, part in named.items():
        assert part.model_fields_set == set(type(part).model_fields), name

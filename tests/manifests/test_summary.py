"""Summaries: what a shard's manifest says of its rows, and histograms of its codes; exact, additive, deterministic."""

from __future__ import annotations

import base64
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvd.manifests.schema import REJECTS, SEQUENCES
from uvd.manifests.summary import (
    Summary,
    SummaryError,
    decode_groups,
    decode_summary,
    encode_summary,
    host,
    inflate,
    parse_rejects,
    summarize,
    summarize_tables,
)
from uvd.manifests.token_shard import decode_histogram, encode_histogram

WORDS = st.text("aä\t\n\"'\\,🎈", max_size=4)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "source": st.sampled_from(["laion", "video"]),
            "dataset": WORDS,
            "layout": st.sampled_from(["single", "pairs"]),
            "split": st.sampled_from(["train", "val"]),
            "roles": st.lists(st.sampled_from(["image", "pose", "röle"]), min_size=1, max_size=16),
            "length": st.integers(0, 2**40),
        }
    ).map(lambda row: row | {"num_images": len(row["roles"])}),
    max_size=12,
)
REFUSED = st.lists(
    st.fixed_dictionaries(
        {
            "input": st.integers(0, 5),
            "reason": st.sampled_from(["dns", "http_404"]),
            "origin": st.sampled_from(
                ["http://a/x", "https://b:80/y", "photos/a.jpg", "http://bad\thost/", "http:///"]
            ),
            "partial": st.booleans(),
        }
    ),
    max_size=12,
)


@settings(deadline=None)
@given(ROWS, REFUSED)
def test_a_summary_counts_what_the_rows_say_and_survives_being_written(rows, refused):
    summary = summarize(rows, refused)
    assert sum(counts[0] for counts in summary.groups.values()) == len(rows)
    assert sum(counts[1] for counts in summary.groups.values()) == sum(len(row["roles"]) for row in rows)
    assert sum(counts[3] for counts in summary.groups.values()) == sum(row["length"] for row in rows)
    for role in ("image", "pose"):
        there = [row["roles"] for row in rows if role in row["roles"]]
        found = [counts for key, counts in summary.roles.items() if key[-1] == role]
        assert [sum(part) for part in zip(*found, strict=True)] == (
            [len(there), sum(roles.count(role) for roles in there)] if there else []
        )
    wanted = Counter(
        reason for _, reason, _ in {(r["input"], r["reason"], host(r["origin"])) for r in refused if not r["partial"]}
    )
    by_reason = Counter[str]()
    for (reason, _), inputs in summary.rejects.items():
        by_reason[reason] += inputs
    assert by_reason == wanted
    assert decode_summary(encode_summary(summary)) == summary


@settings(deadline=None)
@given(ROWS, ROWS, REFUSED)
def test_summaries_of_parts_make_that_of_the_whole(first, second, refused):
    added = summarize(first, refused)
    added.add(summarize(second, ()))
    assert added == summarize([*first, *second], refused)


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_equal_summaries_are_equal_bytes(rows, random):
    mixed = list(rows)
    random.shuffle(mixed)
    assert encode_summary(summarize(mixed, ())) == encode_summary(summarize(rows, ()))


def test_an_empty_shard_has_a_summary():
    empty = summarize_tables(SEQUENCES.empty_table(), REJECTS.empty_table())
    assert empty == Summary() == decode_summary(encode_summary(empty))


@pytest.mark.parametrize(
    ("origin", "named"),
    [
        ("http://example.org/a.jpg", "example.org"),
        ("https://example.org:8080?x", "example.org:8080"),
        ("https://user:secret@example.org/a", "example.org"),
        ("photos/http.jpg", ""),
        ("http://exa mple/a", "exa"),
        ("ftp://example.org/", ""),
    ],
)
def test_the_host_of_an_origin(origin, named):
    assert host(origin) == named


def damaged() -> list[str]:
    whole = encode_summary(Summary({("a", "b", "c", "d"): [1, 2, 3, 4]}, {}, Counter({("dns", "h"): 3})))

    def pack(text: str) -> str:
        return base64.b64encode(zlib.compress(text.encode())).decode()

    return [
        "",
        "no base64!",
        whole[:-8],
        pack("{"),
        pack("[]"),
        pack('{"groups": [["a", "b", 1]], "roles": []}'),
        pack('{"groups": [["a", "b", "c", "d", 1, 2, 3, "x"]], "roles": []}'),
        pack('{"groups": [], "roles": []}\ndns\th\tmany\n'),
        pack('{"groups": [], "roles": []}\ndns\th\n'),
        pack('{"groups": [], "roles": []}\ndns\th\t\n'),
    ]


@pytest.mark.parametrize("text", damaged())
def test_a_damaged_summary_is_refused(text):
    with pytest.raises(SummaryError, match="damaged"):
        decode_summary(text)


def test_a_bomb_is_not_inflated():
    bomb = base64.b64encode(zlib.compress(bytes(100_000_000))).decode()
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        inflate(bomb, 1000)
    with pytest.raises(SummaryError):
        decode_groups(bomb)
    with pytest.raises(ValueError, match="more than"):
        decode_histogram(bomb)


def test_rejects_of_many_summaries_are_read_at_once():
    parts = [decode_groups(encode_summary(Summary(rejects=Counter({("dns", f"h{n}"): n + 1}))))[1] for n in range(3)]
    table = parse_rejects(b"".join(parts))
    assert table.to_pydict() == {"reason": ["dns"] * 3, "host": ["h0", "h1", "h2"], "inputs": [1, 2, 3]}


@pytest.mark.parametrize("largest", [0, 1, 255, 256, 65_535, 65_536, 2**32 - 1])
def test_a_histogram_survives_in_as_few_bytes_as_it_needs(largest):
    counts = np.random.default_rng(0).integers(0, largest + 1, 8192)
    counts[17] = largest
    text = encode_histogram(counts)
    assert np.array_equal(decode_histogram(text), counts)
    width = 1 if largest < 256 else 2 if largest < 65_536 else 4
    assert len(zlib.decompress(base64.b64decode(text))) == 8192 * width


def test_a_histogram_as_early_manifests_have_it_is_read():
    counts = np.arange(8192)
    old = base64.b64encode(zlib.compress(counts.astype("<i8").tobytes(), 6)).decode()
    assert np.array_equal(decode_histogram(old), counts)


@pytest.mark.parametrize("counts", [np.full(8192, 2**32), np.full(8192, -1)])
def test_a_count_without_room_is_refused(counts):
    with pytest.raises(ValueError, match="cannot be counted"):
        encode_histogram(counts)


def test_bytes_that_are_no_histogram_are_refused():
    with pytest.raises(ValueError, match="no histogram"):
        decode_histogram(base64.b64encode(zlib.compress(bytes(8192 * 3))).decode())

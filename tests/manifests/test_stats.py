"""`uvd stats`: shares by every dimension, conditions, rejects, codebook, duplicates, each against its source."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_support import declare, drop_metadata, write_image_shard, write_token_shard

from uvd.manifests import Dataset, DatasetError
from uvd.manifests.dataset import Shard
from uvd.manifests.dedup import DedupSettings, find_duplicates
from uvd.manifests.shares import BY, Cells, shares
from uvd.manifests.sql import query
from uvd.manifests.stats import TABLES, flatten, statistics
from uvd.manifests.tokens import perplexity
from uvd.sequences import Reason

SHARDS = {
    ("laion", 0): [("single", "train", ["image"])] * 3,
    ("laion", 1): [("single", "val", ["image"])],
    ("annotated-coco", 0): [("pairs", "train", ["image", "pose"] * 2), ("tuples", "val", ["pose", "depth", "image"])],
    ("annotated-ade", 0): [("pairs", "train", ["image", "segmentation"])],
    ("mine", 0): [("frames", "train", ["frame"] * 4)],
}
REFUSED = {
    ("laion", 0): [(Reason.HTTP_404, "http://a/1"), (Reason.HTTP_404, "http://a/2"), (Reason.DNS, "http://b/1")],
    ("laion", 1): [(Reason.HTTP_404, "http://a/3")],
    ("mine", 0): [(Reason.DNS, "clips/a.mp4")],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    dataset = Dataset(str(tmp_path_factory.mktemp("stats") / "d"))
    for (source, number), sequences in SHARDS.items():
        declare(dataset, source, f"{source}-x")
        write_image_shard(dataset, source, number, sequences, REFUSED.get((source, number), ()))
        if source != "mine":
            write_token_shard(dataset, source, number)
    dataset.declare("tokens", "other/laion", {"fingerprint": "f"})
    write_token_shard(dataset, "laion", 0, "other")
    return dataset


def from_rows(dataset: Dataset, by: tuple[str, ...], where: str = "true") -> dict[tuple[str, ...], tuple[int, ...]]:
    """Sequences, images and tokens by SQL over the rows."""
    roles = "role" in by
    keys = ", ".join(by)
    images = "count(*)" if roles else "sum(num_images)"
    tokens = "256 * count(*)" if roles else "sum(num_tokens)"
    unrolled = "(select *, unnest(roles) role from {} where {})" if roles else "(select * from {} where {})"
    rows = unrolled.format("sequences", where)
    counted = query(dataset, f"select {keys}, count(distinct key)::int, {images}::int from {rows} group by {keys}")
    found = {tuple(row[: len(by)]): [*row[len(by) :], 0] for row in zip(*counted.to_pydict().values(), strict=True)}
    chosen = f"tokenizer = 't' and key in (select key from sequences where {where})"
    counted = query(dataset, f"select {keys}, {tokens}::int from {unrolled.format('tokens', chosen)} group by {keys}")
    for row in zip(*counted.to_pydict().values(), strict=True):
        found[tuple(row[:-1])][2] = row[-1]
    return {key: tuple(counts) for key, counts in found.items()}


def asked(dataset: Dataset, by: tuple[str, ...], where: str | None = None) -> dict[tuple[str, ...], tuple[int, ...]]:
    rows = statistics(dataset, where, by)["by"]
    return {tuple(row[name] for name in by): (row["sequences"], row["images"], row["tokens"]) for row in rows}


@pytest.mark.parametrize("by", [part for size in (1, 2, 5) for part in combinations(BY, size)])
def test_shares_are_those_of_the_rows(dataset, by):
    assert asked(dataset, by) == from_rows(dataset, by)


@pytest.mark.parametrize(
    "where",
    [
        "layout = 'pairs'",
        "split = 'val' and source <> 'laion' -- a comment",
        "dataset in ('laion-x', 'mine-x')",
        "num_images >= 3",
        "list_contains(roles, 'pose')",
        "key like 'laion-000000-%' or widths[1] > 1000",
        "false",
        "null",
        "num_images > 100",
    ],
)
def test_a_condition_gives_what_sql_over_the_rows_gives(dataset, where):
    for by in (("source", "dataset"), ("layout", "role")):
        assert asked(dataset, by, where) == from_rows(dataset, by, where.partition("--")[0])


def test_with_a_condition_there_are_only_shares(dataset):
    result = statistics(dataset, "split = 'val'")
    assert set(result) & set(TABLES) == {"families", "sources", "datasets", "layouts", "roles", "splits"}
    assert [row["split"] for row in result["splits"]] == ["val"]


@pytest.mark.parametrize(
    "where",
    ["", "layout =", "nope = 1", "true) or (true", "1; drop view sequences", "layout = 'x' union select 1",
     "exists (from read_text('/etc/passwd'))", "key in (select content from '/etc/passwd')", "num_images > 'many'",
     "dataset in (select dataset from sequences)", "row_number() over () < 3", "layout = 'x', true",
     "sum(num_images) > 1", "x" * 200_000],
)  # fmt: skip
def test_what_is_no_condition_is_refused(dataset, where):
    with pytest.raises(DatasetError, match="--where"):
        statistics(dataset, where)


def test_an_unknown_dimension_gets_the_nearest_named(dataset):
    with pytest.raises(DatasetError, match="did you mean 'layout'"):
        statistics(dataset, by=["layuot"])
    with pytest.raises(DatasetError, match="there are source, dataset"):
        statistics(dataset, by=["zzz"])


def test_shares_add_up_and_stand_beside_uvdv1s(dataset):
    result = statistics(dataset)
    for name in ("families", "sources", "datasets", "layouts", "roles", "splits"):
        assert sum(row["share"] for row in result[name]) == pytest.approx(100)
        assert sum(row["images"] for row in result[name]) == 17
    families = {row["family"]: row for row in result["families"]}
    assert (families["unlabelled images"]["images"], families["unlabelled images"]["uvdv1_share"]) == (4, 88.5)
    assert families["annotated images"]["images"] == 9
    assert families["other"]["images"] == 4
    assert families["annotated images"]["tokens"] == 256 * 9 + 2 * 3
    assert families["videos"]["share"] == 0.0
    assert json.loads(json.dumps(result)) == result


def test_bytes_are_those_of_the_tars(dataset):
    rows = {row["source"]: row for row in statistics(dataset)["tokens"] if row["tokenizer"] == "t"}
    tars = [Path(dataset.uri) / Shard("tokens/t/laion", number).tar for number in (0, 1)]
    assert rows["laion"]["tar_bytes"] == sum(tar.stat().st_size for tar in tars)
    assert rows["laion"]["bytes_per_token"] == rows["laion"]["tar_bytes"] / rows["laion"]["tokens"]
    assert rows["(all)"]["tokens"] == sum(row["tokens"] for name, row in rows.items() if name != "(all)")


def test_rejects_by_reason_host_and_dataset(dataset):
    result = statistics(dataset)
    assert result["rejects"] == [{"reason": "http_404", "inputs": 3}, {"reason": "dns", "inputs": 2}]
    assert result["reject_hosts"] == [
        {"host": "a", "reason": "http_404", "inputs": 3},
        {"host": "b", "reason": "dns", "inputs": 1},
    ]
    assert result["reject_datasets"] == [
        {"dataset": "laion-x", "reason": "http_404", "inputs": 3},
        {"dataset": "laion-x", "reason": "dns", "inputs": 1},
        {"dataset": "mine-x", "reason": "dns", "inputs": 1},
    ]
    assert all(row["inputs"] == row["used"] + row["rejected"] for row in result["accounting"])


def test_codebook_use_is_merged_from_the_histograms_of_shards(dataset):
    rows = {row["source"]: row for row in statistics(dataset)["codebook"] if row["tokenizer"] == "t"}
    codes = [write_token_shard(dataset, *place) for place in SHARDS if place[0] != "mine"]
    histogram = np.bincount(np.concatenate(codes).reshape(-1), minlength=8192)
    assert rows["(all)"]["dead_codes"] == np.count_nonzero(histogram == 0)
    assert rows["(all)"]["perplexity"] == pytest.approx(perplexity(histogram))
    laion = np.bincount(np.concatenate(codes[:2]).reshape(-1), minlength=8192)
    assert rows["laion"]["perplexity"] == pytest.approx(perplexity(laion))
    assert rows["laion"]["codes_used"] == pytest.approx(100 * np.count_nonzero(laion) / 8192)


def test_the_tokenizer_with_most_tokens_is_counted_or_the_one_that_is_asked_for(dataset):
    assert statistics(dataset)["tokenizer"] == "t"
    other = statistics(dataset, tokenizer="other")
    assert {row["source"]: row["tokens"] for row in other["sources"]}["laion"] == 3 * 258
    with pytest.raises(DatasetError, match="no tokens by 'nobody'; there are other, t"):
        statistics(dataset, tokenizer="nobody")


def test_shards_without_histogram_are_counted(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    declare(dataset, "laion", "x")
    for number in (0, 1):
        write_image_shard(dataset, "laion", number, SHARDS["laion", 0])
        write_token_shard(dataset, "laion", number)
    drop_metadata(dataset, Shard("tokens/t/laion", 1), "histogram")
    (row,) = statistics(dataset)["codebook"]
    assert row["unknown_shards"] == 1


def test_duplicates_are_those_that_dedup_marked_and_grow_stale(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    declare(dataset, "laion", "x")
    write_image_shard(dataset, "laion", 0, SHARDS["laion", 0])
    assert statistics(dataset)["duplicates"] == []
    found = find_duplicates(dataset, DedupSettings(bits=2))
    (row,) = statistics(dataset)["duplicates"]
    assert (row["pass"], row["bits"], row["groups"], row["duplicates"]) == ("all", 2, found.groups, found.marked)
    assert (found.groups, found.marked, row["stale"]) == (1, 2, False)
    write_image_shard(dataset, "laion", 1, SHARDS["laion", 1])
    assert statistics(dataset)["duplicates"][0]["stale"] is True
    (tmp_path / "d/dedup/all.parquet").write_bytes(b"no")
    with pytest.raises(DatasetError, match=r"dedup/all\.parquet was not written by `uvd dedup`"):
        statistics(dataset)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.tuples(*[st.sampled_from("ab")] * 4), st.lists(st.integers(0, 9), min_size=4, max_size=4), max_size=6
    ),
    st.lists(st.sampled_from(BY[:-1]), min_size=1, max_size=4, unique=True),
)
def test_any_shares_add_up_to_all(groups, by):
    rows = shares(Cells(groups), by)
    for number, name in enumerate(("sequences", "images", "tokens", "bytes")):
        assert sum(row[name] for row in rows) == sum(counts[number] for counts in groups.values())
    assert len({tuple(row[name] for name in by) for row in rows}) == len(rows)
    assert [row["images"] for row in rows] == sorted((row["images"] for row in rows), reverse=True)


def test_an_empty_dataset_has_statistics(tmp_path):
    result = statistics(Dataset(str(tmp_path)))
    assert [name for name, _ in flatten(result)] == ["families"]
    assert Counter(row["images"] for row in result["families"]) == {0: 5}

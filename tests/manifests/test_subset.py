"""Views: some rows of a base, whose tars they refer to; everything that reads a dataset reads them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests_support import dataset_bytes
from token_views import all_tokens, token_rows, write_dataset

from uvd.manifests import ConfigChangedError, Dataset, DatasetError, read_image_shard
from uvd.manifests import subset as subsetting
from uvd.manifests.export import export
from uvd.manifests.find import find_sequence, find_tokens
from uvd.manifests.selection import Selection
from uvd.manifests.stats import query, statistics
from uvd.manifests.subset import subset
from uvd.manifests.verify import verify
from uvd.pipeline.showing import sequence_sheet
from uvd.sequences import Seeds
from uvd.trainer.data import PackedTokens, open_split

TWO = 2 * 256 + 2


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("subset") / "base")


def view_of(dataset: Dataset, out: Path, **more) -> Dataset:
    made = subset(dataset, more.pop("selection", Selection()), str(out), **more)
    view = Dataset.existing(str(out))
    rows = token_rows(view)
    assert made is not None
    assert (made.sequences, made.tokens) == (len(rows), sum(row["num_tokens"] for row in rows))
    return view


def keys(dataset: Dataset) -> list[str]:
    return [row["key"] for row in token_rows(dataset)]


def test_a_view_holds_the_chosen_rows_and_no_tar(base, tmp_path):
    view = view_of(base, tmp_path / "v", selection=Selection(where="layout = 'pairs'"))
    assert token_rows(view) == [row for row in token_rows(base) if row["layout"] == "pairs"]
    names = {path.name for path in (tmp_path / "v").rglob("*") if path.is_file()}
    assert names == {
        "dataset.json",
        "000000.parquet",
        "000000.rejects.parquet",
        "000001.parquet",
        "000001.rejects.parquet",
    }
    images = [row["key"] for shard in view.all_shards("sequences") for row in view.manifest(shard).to_pylist()]
    assert images == keys(view)
    assert verify(view, deep=True).problems == []


def test_every_reader_reads_it(base, tmp_path):
    view = view_of(base, tmp_path / "v", selection=Selection(split="train", where="num_images <> 2"))
    expected = {key: tokens for key, tokens in all_tokens(base).items() if key in set(keys(view))}
    assert all(np.array_equal(tokens, expected[key]) for key, tokens in all_tokens(view).items())
    stored = [stored for shard in view.all_shards("sequences") for stored in read_image_shard(view, shard)]
    assert [one.key for one in stored] == keys(view)
    assert all(len(one.pictures()) == one.row["num_images"] for one in stored)
    key = keys(view)[1]
    assert find_sequence(view, key)[1]["key"] == find_tokens(view, key, "t")[1]["key"] == key
    assert np.array_equal(sequence_sheet(view, key), sequence_sheet(base, key))
    with pytest.raises(DatasetError, match="no sequence"):
        find_sequence(view, next(row["key"] for row in token_rows(base) if row["num_images"] == 2))
    export(view, Selection(), "numpy", tmp_path / "from-view")
    export(base, Selection(split="train", where="num_images <> 2"), "numpy", tmp_path / "from-base")
    assert (tmp_path / "from-view/tokens.bin").read_bytes() == (tmp_path / "from-base/tokens.bin").read_bytes()


def test_statistics_are_of_the_view_alone(base, tmp_path):
    view = view_of(base, tmp_path / "v", selection=Selection(where="source = 'video' and split = 'train'"))
    result = statistics(view)
    rows = token_rows(view)
    assert {row["layout"]: row["sequences"] for row in result["layouts"]} == Counter(row["layout"] for row in rows)
    (tokens,) = result["tokens"]
    assert (tokens["sequences"], tokens["tokens"]) == (len(rows), sum(row["num_tokens"] for row in rows))
    codes = np.concatenate([framed[1:-1] for framed in all_tokens(view).values()])
    assert result["codebook"][0]["codes_used"] == pytest.approx(100 * len(np.unique(codes)) / 8192)
    assert all(row["inputs"] == row["used"] + row["rejected"] for row in result["accounting"])
    assert query(view, "select count(*) n from tokens").to_pylist() == [{"n": len(rows)}]


def test_training_sees_the_view_and_nothing_else(base, tmp_path):
    view = view_of(base, tmp_path / "v", selection=Selection(where="layout = 'frames'"))
    opened = open_split(view.uri, "train")
    rows = [row for row in token_rows(view) if row["split"] == "train"]
    assert opened.tokens == sum(row["num_tokens"] for row in rows)
    batches = PackedTokens(opened.shards, packing="concat", seeds=Seeds(0), context=770, buffer_tokens=1 << 20)
    seen = {batches.batch(1).tokens[0, :-1].astype(np.uint16).tobytes() for _ in rows}
    assert seen == {all_tokens(base)[row["key"]].tobytes() for row in rows}
    assert opened.digest != open_split(base.uri, "train").digest
    smaller = view_of(base, tmp_path / "w", selection=Selection(where="layout = 'frames' and key < 'video'"))
    assert open_split(smaller.uri, "train").digest != opened.digest


# ---- budgets


def test_a_larger_budget_holds_all_of_a_smaller_one(base, tmp_path, monkeypatch):
    everything = sum(row["num_tokens"] for row in token_rows(base))
    before: set[str] = set()
    for number, budget in enumerate((900, 2000, 5000, 9000, everything, 10**12)):
        view = view_of(base, tmp_path / str(number), tokens=budget)
        now, spent = set(keys(view)), sum(row["num_tokens"] for row in token_rows(view))
        assert before <= now
        assert min(budget, everything) - 3 * 256 - 2 < spent <= budget
        before = now
    assert before == set(keys(base))


@pytest.mark.parametrize("buckets", [1, 2, 1 << 16])
def test_the_sample_is_a_prefix_of_the_order_of_hashes(base, tmp_path, buckets, monkeypatch):
    """However the ranks are counted."""
    monkeypatch.setattr(subsetting, "_BUCKETS", buckets)
    ranked = sorted(token_rows(base), key=lambda row: (subsetting._rank(7, row["key"]), row["key"]))
    for count in (1, 5, 23, 24):
        budget = sum(row["num_tokens"] for row in ranked[:count])
        for extra in (0, ranked[count]["num_tokens"] - 1 if count < 24 else 99):
            out = tmp_path / f"{count}-{extra}"
            view = view_of(base, out, tokens=budget + extra, seed=7)
            assert set(keys(view)) == {row["key"] for row in ranked[:count]}


def test_another_seed_is_another_sample(base, tmp_path):
    views = [keys(view_of(base, tmp_path / str(seed), tokens=5000, seed=seed)) for seed in range(3)]
    assert len({tuple(names) for names in views}) == 3


def test_a_budget_without_room_is_refused(base, tmp_path):
    with pytest.raises(DatasetError, match="has no room"):
        subset(base, Selection(), str(tmp_path / "v"), tokens=100)
    with pytest.raises(DatasetError, match="nothing to write"):
        subset(base, Selection(split="test"), str(tmp_path / "v"))
    assert not (tmp_path / "v").exists()


# ---- views of views, making one again


def test_a_view_of_a_view_refers_to_the_base(base, tmp_path):
    first = view_of(base, tmp_path / "first", selection=Selection(split="train"))
    second = view_of(first, tmp_path / "second", selection=Selection(where="layout = 'single'"))
    shutil.rmtree(tmp_path / "first")
    assert set(keys(second)) == {
        r["key"] for r in token_rows(base) if r["split"] == "train" and r["layout"] == "single"
    }
    assert verify(second, deep=True).problems == []
    assert second.base is not None
    assert second.base.uri == base.uri


def test_the_same_again_does_nothing_and_another_is_refused(base, tmp_path):
    view_of(base, tmp_path / "v", tokens=5000)
    before = dataset_bytes(tmp_path / "v")
    assert subset(base, Selection(), str(tmp_path / "v"), tokens=5000) is None
    with pytest.raises(ConfigChangedError, match="tokens: 5000 → 6000"):
        subset(base, Selection(), str(tmp_path / "v"), tokens=6000)
    assert dataset_bytes(tmp_path / "v") == before
    view_of(base, tmp_path / "v", tokens=6000, overwrite=True)
    view_of(base, tmp_path / "v", tokens=5000, overwrite=True)
    assert dataset_bytes(tmp_path / "v") == before


def test_a_killed_one_is_unusable_and_the_same_command_ends_it(base, tmp_path):
    class Killed(BaseException):
        pass

    def stop() -> None:
        raise Killed

    with pytest.raises(Killed):
        subset(base, Selection(), str(tmp_path / "v"), advance=stop)
    with pytest.raises(DatasetError, match="was not finished"):
        Dataset.existing(str(tmp_path / "v"))
    with pytest.raises(Killed):  # another choice than the one that was killed
        subset(base, Selection(split="val"), str(tmp_path / "v"), advance=stop)
    view_of(base, tmp_path / "v", selection=Selection(split="train"))
    view_of(base, tmp_path / "w", selection=Selection(split="train"))
    assert dataset_bytes(tmp_path / "v") == dataset_bytes(tmp_path / "w")


def test_nothing_but_a_view_is_ever_replaced(base, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    other = write_dataset(tmp_path / "other")
    for place in (str(tmp_path / "mine"), other.uri, base.uri):
        with pytest.raises(DatasetError, match=r"is no view|is the dataset itself"):
            subset(base, Selection(), place, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert len(keys(other)) == len(keys(base)) == 24


# ---- the base changes


def test_base_and_view_move_together(tmp_path):
    write_dataset(tmp_path / "here" / "base")
    view_of(Dataset(str(tmp_path / "here" / "base")), tmp_path / "here" / "views" / "v", tokens=5000)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert verify(Dataset.existing(str(tmp_path / "there" / "views" / "v")), deep=True).problems == []


def test_a_base_that_is_gone_is_named(tmp_path):
    view_of(write_dataset(tmp_path / "base"), tmp_path / "v")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(DatasetError, match=r"is a view of .*/base, where no dataset"):
        Dataset.existing(str(tmp_path / "v"))


def test_other_settings_of_the_base_are_refused(tmp_path):
    view_of(write_dataset(tmp_path / "base"), tmp_path / "v")
    shutil.rmtree(tmp_path / "base")
    write_dataset(tmp_path / "base", seed=1)
    with pytest.raises(DatasetError, match="made anew under other settings"):
        Dataset.existing(str(tmp_path / "v"))


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_a_shard_of_the_base_that_is_another_now_is_refused(change, tmp_path):
    """Under the same settings, so that only the shard itself can tell."""
    base = write_dataset(tmp_path / "base")
    view = view_of(base, tmp_path / "v")
    folder = tmp_path / "base" / "tokens" / "t" / "laion"
    for suffix in (".tar", ".parquet", ".rejects.parquet"):
        if change == "gone":
            (folder / f"000001{suffix}").unlink()
        else:
            shutil.copy(folder / f"000000{suffix}", folder / f"000001{suffix}")
    said = r"shard tokens/t/laion/000001 (has changed|is gone)"
    assert any(change in problem for problem in verify(view).problems)
    for use in (
        lambda: open_split(view.uri, "train"),
        lambda: export(view, Selection(), "numpy", tmp_path / "out"),
        lambda: subset(view, Selection(), str(tmp_path / "w")),
    ):
        with pytest.raises(DatasetError, match=said):
            use()


def test_rows_that_are_not_the_bases_are_found(base, tmp_path):
    view = view_of(base, tmp_path / "v")
    folder = tmp_path / "v" / "tokens" / "t" / "laion"
    other = write_dataset(tmp_path / "other", seed=1)
    table = other.manifest(other.shards("tokens/t/laion")[0])
    metadata = view.metadata(view.shards("tokens/t/laion")[0])
    row = table.schema.get_field_index("layout")
    table = table.set_column(row, table.schema.field(row), [["single"] * table.num_rows])
    (folder / "000000.parquet").write_bytes(subsetting.table_to_parquet(table, metadata))
    assert any("are not rows of" in problem for problem in verify(view).problems)


def test_a_view_takes_no_shards_of_its_own(base, tmp_path):
    view = view_of(base, tmp_path / "v")
    with pytest.raises(DatasetError, match="is a view: make sequences in"):
        view.declare("sequences", "more", {"fingerprint": "f"})
    assert json.loads((tmp_path / "v" / "dataset.json").read_text())["view"]["base"].endswith("base")

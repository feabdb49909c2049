"""The survey of all shards: equal to a scan of the rows, with and without its index, whatever changed meanwhile."""

from __future__ import annotations

import base64
import os
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_support import change_metadata, declare, drop_metadata, write_image_shard, write_token_shard

from uvd.manifests import Dataset, DatasetError, blocks
from uvd.manifests import survey as survey_module
from uvd.manifests.dataset import Shard
from uvd.manifests.stats_index import INDEX
from uvd.manifests.summary import Summary, encode_summary, summarize_tables
from uvd.manifests.survey import Survey, survey
from uvd.manifests.token_shard import encode_histogram
from uvd.manifests.verify import verify
from uvd.sequences import Reason

SEQUENCES = [("single", "train", ["image"]), ("pairs", "val", ["image", "pose"])]
REFUSED = [(Reason.HTTP_404, "http://a/1"), (Reason.HTTP_404, "http://a/2"), (Reason.DNS, "http://b/")]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Five shards of one source in blocks of two, and one of another, all with tokens."""
    monkeypatch.setattr(blocks, "SIZE", 2)
    monkeypatch.setattr(survey_module, "KEPT_FROM", 1)
    dataset = Dataset(str(tmp_path / "d"))
    for source, shards in (("laion", 5), ("video", 1)):
        declare(dataset, source, f"{source}-x")
        for number in range(shards):
            write_image_shard(dataset, source, number, SEQUENCES[: 1 + number % 2], REFUSED[: number % 4])
            write_token_shard(dataset, source, number)
    age(dataset)
    return dataset


def age(dataset: Dataset) -> None:
    """Lets the manifests be an hour old, so that the index trusts their times."""
    for path in Path(dataset.uri).rglob("*.parquet"):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 3600 * 10**9))


def plain(found: Survey) -> dict[str, object]:
    """A survey as values that can be compared."""
    rejects = sorted(found.rejects.to_pylist(), key=lambda row: tuple(row.values()))
    folders = {
        name: (folder.shards, folder.totals, folder.summary, folder.histogram.tolist(), folder.tar_sha256)
        for name, folder in found.folders.items()
    }
    return {"rejects": rejects, "folders": folders}


def scanned(dataset: Dataset) -> dict[str, Summary]:
    """Summaries by folder, from the rows of all manifests."""
    found: dict[str, Summary] = {}
    for section in ("sequences", "tokens"):
        for shard in dataset.all_shards(section):
            summary = summarize_tables(dataset.manifest(shard), dataset.rejects(shard))
            found.setdefault(shard.folder, Summary()).add(summary)
    return found


def assert_exact(dataset: Dataset, found: Survey) -> None:
    """A survey is what a scan of the rows and of the tokens finds."""
    wanted = scanned(dataset)
    assert {name for name, folder in found.folders.items() if folder.shards} == set(wanted)
    for name, summary in wanted.items():
        rejects = {
            (row["reason"], row["host"]): row["inputs"] for row in found.rejects.to_pylist() if row["folder"] == name
        }
        assert found.folders[name].summary.groups == summary.groups
        assert found.folders[name].summary.roles == summary.roles
        assert rejects == summary.rejects


def test_a_survey_is_a_scan_of_rows_and_tokens(dataset):
    found = survey(dataset)
    assert_exact(dataset, found)
    laion = found.folders["sequences/laion"]
    assert (laion.shards, laion.totals["inputs"], laion.totals["used"], laion.totals["rejected"]) == (5, 13, 7, 6)
    assert laion.tar_sha256 == {s.number: dataset.metadata(s)["tar_sha256"] for s in dataset.shards("sequences/laion")}
    codes = np.concatenate([write_token_shard(dataset, "laion", number) for number in range(5)])
    tokens = found.folders["tokens/t/laion"]
    assert np.array_equal(tokens.histogram, np.bincount(codes.reshape(-1), minlength=8192))
    assert tokens.totals["tokens"] == codes.size + 2 * 7
    assert tokens.without_histogram == 0


def test_the_index_is_written_used_and_may_be_deleted(dataset):
    first = survey(dataset)
    assert (first.index, first.shards_read) == ("written", 12)
    second = survey(dataset)
    assert (second.index, second.shards_read) == ("used", 0)
    assert plain(second) == plain(first)
    before = (Path(dataset.uri) / INDEX).read_bytes()
    survey(dataset, use_index=False)
    assert (Path(dataset.uri) / INDEX).read_bytes() == before
    shutil.rmtree(Path(dataset.uri) / "index")
    assert plain(survey(dataset)) == plain(first)


def test_a_replaced_added_or_removed_shard_is_read_again_with_its_block_only(dataset):
    survey(dataset)
    write_image_shard(dataset, "laion", 1, [("tuples", "train", ["image", "depth", "pose"])])
    age(dataset)
    found = survey(dataset)
    assert found.shards_read == 12  # age() touched all of them
    assert_exact(dataset, found)
    write_image_shard(dataset, "laion", 5, SEQUENCES)
    (Path(dataset.uri) / "sequences/laion/000000.parquet").unlink()
    found = survey(dataset)
    assert found.shards_read == 1 + 2  # of the first block and of the last
    assert_exact(dataset, found)
    assert found.folders["sequences/laion"].shards == 5


def test_what_has_just_changed_is_not_trusted_to_stay(dataset):
    write_image_shard(dataset, "video", 0, SEQUENCES[:1])
    survey(dataset)
    path = Path(dataset.uri) / "sequences/video/000000.parquet"
    stat = path.stat()
    replaced = survey(dataset)
    assert replaced.shards_read == 1
    # The same size at the same time, as a coarse clock would have it.
    write_image_shard(dataset, "video", 0, [("paris", "train", ["image"])])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert_exact(dataset, survey(dataset))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3), st.booleans(), st.booleans()), max_size=4
    )
)
def test_after_any_changes_the_index_gives_what_a_scan_gives(dataset, changes):
    for number, sequences, refused, remove, aged in changes:
        manifest = Path(dataset.uri) / Shard("sequences/laion", number).manifest
        if remove:
            manifest.unlink(missing_ok=True)
        else:
            write_image_shard(dataset, "laion", number, SEQUENCES[:sequences], REFUSED[:refused])
            if aged:
                os.utime(manifest, ns=(0, manifest.stat().st_mtime_ns - 3600 * 10**9))
        assert_exact(dataset, survey(dataset))


def test_helper_processes_find_the_same(dataset):
    alone = survey(dataset, use_index=False, processes=1)
    assert plain(survey(dataset, use_index=False, processes=2)) == plain(alone)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "damaged"),
        (lambda path: path.write_bytes(b"no Parquet at all"), "damaged"),
        (lambda path: shutil.copy(path.with_name("000003.rejects.parquet"), path), "kind 'rejects'"),
        (lambda path: shutil.copy(path.parents[2] / "tokens/t/laion/000003.parquet", path), "kind 'tokens'"),
        (lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata(None), path), "KeyError"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(dataset, processes, damage, said):
    damage(Path(dataset.uri) / "sequences/laion/000003.parquet")
    with pytest.raises(DatasetError, match=said) as caught:
        survey(dataset, processes=processes)
    assert "sequences/laion/000003.parquet" in str(caught.value)
    assert not (Path(dataset.uri) / INDEX).exists()
    assert list((Path(dataset.uri) / "index").glob("*")) == []


def test_a_damaged_list_of_rejects_is_named(dataset):
    text = zlib.decompress(base64.b64decode(encode_summary(Summary()))) + b"dns\thost\n"
    broken = base64.b64encode(zlib.compress(text)).decode()
    change_metadata(dataset, Shard("sequences/laion", 2), {"summary": broken})
    with pytest.raises(DatasetError, match=r"laion/000002\.parquet: the rejects of its summary are damaged"):
        survey(dataset)


def test_manifests_without_summary_or_histogram_are_read_by_their_columns(dataset):
    whole = survey(dataset, use_index=False)
    drop_metadata(dataset, Shard("sequences/laion", 3), "summary")
    drop_metadata(dataset, Shard("tokens/t/laion", 2), "summary", "histogram")
    found = survey(dataset, use_index=False)
    assert_exact(dataset, found)
    assert found.rejects.sort_by("inputs").num_rows == whole.rejects.num_rows
    assert found.folders["tokens/t/laion"].without_histogram == 1
    assert found.folders["tokens/t/laion"].histogram.sum() < whole.folders["tokens/t/laion"].histogram.sum()


@pytest.mark.parametrize("content", [b"no Parquet", b""])
def test_a_damaged_index_is_made_anew(dataset, content):
    first = survey(dataset)
    (Path(dataset.uri) / INDEX).write_bytes(content)
    again = survey(dataset)
    assert (again.index, plain(again)) == ("written", plain(first))


def test_an_index_of_another_version_is_made_anew(dataset):
    first = survey(dataset)
    table = pq.read_table(Path(dataset.uri) / INDEX)
    pq.write_table(table.drop_columns(["totals"]), Path(dataset.uri) / INDEX)
    assert plain(survey(dataset)) == plain(first)


def test_a_dataset_that_cannot_be_written_is_surveyed_all_the_same(dataset):
    (Path(dataset.uri) / "index").write_text("in the way, as a read-only folder would be")
    found = survey(dataset)
    assert found.index.startswith("not kept: ")
    assert_exact(dataset, found)


def test_small_datasets_keep_no_index(dataset, monkeypatch):
    monkeypatch.setattr(survey_module, "KEPT_FROM", 13)
    assert survey(dataset).index == "off"
    assert not (Path(dataset.uri) / "index").exists()


def test_progress_adds_up(dataset):
    done = []
    survey(dataset, advance=lambda more, of: done.append((more, of)))
    assert sum(more for more, _ in done) == 12
    assert {of for _, of in done} == {12}


def test_a_helper_that_dies_is_an_error(dataset, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with 1"):
        survey(dataset, processes=2)


def test_an_empty_dataset_has_a_survey(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    declare(dataset, "laion", "x")
    found = survey(dataset)
    assert found.folders["sequences/laion"].shards == 0
    assert found.rejects.num_rows == 0


def test_verify_holds_summaries_and_histograms_against_rows_and_tokens(dataset):
    assert verify(dataset, deep=True).problems == []
    for shard, name, wrong in (
        (Shard("sequences/laion", 3), "summary", encode_summary(Summary())),
        (Shard("tokens/t/laion", 2), "summary", "no summary"),
        (Shard("tokens/t/laion", 4), "histogram", encode_histogram(np.ones(8192, np.int64))),
    ):
        change_metadata(dataset, shard, {name: wrong})
    problems = verify(dataset, deep=True).problems
    assert [problem.partition(":")[0] for problem in problems] == [
        "sequences/laion/000003",
        "tokens/t/laion/000002",
        "tokens/t/laion/000004",
    ]
    assert "not that of its rows and rejects" in problems[0]

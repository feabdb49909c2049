"""Verification finds every kind of damage; statistics add up and SQL stays inside."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from uvd.manifests import ConfigChangedError, Dataset, DatasetError, ImageShardWriter, TokenShardWriter
from uvd.manifests.dataset import ConservationError
from uvd.manifests.stats import codebook_use, query, statistics
from uvd.manifests.verify import verify
from uvd.sequences import Picture, Reason, Reject, VisualSequence

ENTRY = {"fingerprint": "f", "config": {"a": 1}}


@pytest.fixture
def dataset(tmp_path):
    """Two image shards of `laion` and their token shards."""
    root = tmp_path / "d"
    dataset = Dataset(str(root))
    dataset.declare("sequences", "laion", ENTRY)
    dataset.declare("tokens", "t/laion", ENTRY)
    rng = np.random.default_rng(0)
    for shard in range(2):
        with ImageShardWriter(dataset, "laion", shard) as writer:
            for index in range(3):
                pixels = rng.integers(0, 255, (256, 256, 3)).astype(np.uint8)
                picture = Picture("image", pixels, f"http://h/{index}", (256, 256))
                writer.add(VisualSequence((picture,), "single", "laion-x", "train", frozenset({index})))
            writer.commit(4, [Reject(3, "http://h/3", Reason.HTTP_404, "404")], "f0", "f")
    for shard in dataset.shards("sequences/laion"):
        with TokenShardWriter(dataset, "t", "laion", shard.number) as tokens:
            for row in dataset.manifest(shard).to_pylist():
                tokens.add(row, rng.integers(0, 8192, (1, 256)).astype(np.uint16))
            provenance = {"image_tar_sha256": dataset.metadata(shard)["tar_sha256"], "config_fingerprint": "f"}
            tokens.commit(3, "f0", provenance)
    return dataset


def problems(dataset, deep=True) -> str:
    return "\n".join(verify(dataset, deep=deep).problems)


def test_a_good_dataset_has_no_problems(dataset):
    result = verify(dataset, deep=True)
    assert result.problems == []
    assert (result.shards, result.sequences) == (4, 12)


@pytest.mark.parametrize("shard", ["sequences/laion/000000", "tokens/t/laion/000001"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncate", "bytes"),
        ("flip", "sha256"),
        ("drop-tar", "bytes"),
        ("drop-rejects", "rejects"),
        ("tmp", "killed run"),
    ],
)
def test_damage_is_named(dataset, shard, damage, said):
    tar = dataset.storage.local_root / f"{shard}.tar"
    data = bytearray(tar.read_bytes())
    if damage == "truncate":
        tar.write_bytes(data[:-1000])
    elif damage == "flip":
        data[700] ^= 1
        tar.write_bytes(data)
    elif damage == "drop-tar":
        tar.unlink()
    elif damage == "drop-rejects":
        tar.with_suffix(".rejects.parquet").unlink()
    else:
        tar.with_name(".000000.tar.0123456789ab.tmp").write_bytes(b"")
    found = problems(dataset)
    assert said in found
    assert shard.rpartition("/")[0] in found


def test_a_manifest_gone_leaves_orphans(dataset):
    (dataset.storage.local_root / "sequences/laion/000000.parquet").unlink()
    found = problems(dataset)
    assert "000000.tar: orphan" in found
    assert "its image shard is not there" in found


def test_a_foreign_parquet_file_is_named(dataset):
    folder = dataset.storage.local_root / "sequences/laion"
    shutil.copy(folder / "000000.rejects.parquet", folder / "000001.parquet")
    assert "000001" in problems(dataset, deep=False)
    (folder / "000001.parquet").write_bytes(b"PAR1 not really")
    assert "000001" in problems(dataset, deep=False)


def test_tokens_of_other_images_are_named(dataset):
    folder = dataset.storage.local_root / "sequences/laion"
    for suffix in (".tar", ".parquet", ".rejects.parquet"):
        shutil.copy(folder / f"000001{suffix}", folder / f"000000{suffix}")
    assert "not the one that was tokenized" in problems(dataset, deep=False)


def test_mixed_settings_are_named(dataset):
    path = dataset.storage.local_root / "dataset.json"
    info = json.loads(path.read_text())
    info["sequences"]["laion"]["fingerprint"] = "other"
    path.write_text(json.dumps(info))
    assert "mixed" in problems(dataset, deep=False)


def test_changed_settings_are_refused_and_explained(dataset):
    changed = {"fingerprint": "g", "config": {"a": 2}}
    with pytest.raises(ConfigChangedError, match=r"config\.a: 1 → 2"):
        dataset.declare("sequences", "laion", changed)
    dataset.declare("sequences", "laion", changed, overwrite=True)
    assert dataset.shards("sequences/laion") == []
    assert dataset.token_folders() == []  # they were made from the old images


def test_statistics_add_up(dataset):
    result = statistics(dataset)
    (row,) = result["datasets"]
    assert (row["source"], row["dataset"], row["sequences"], row["images"]) == ("laion", "laion-x", 6, 6)
    assert row["tokens"] == 6 * 258
    assert result["families"][0]["share"] == 100.0
    assert sum(row["uvdv1_share"] for row in result["families"]) == pytest.approx(100)
    (accounting,) = result["accounting"]
    assert accounting["inputs"] == accounting["used"] + accounting["rejected"] == 8
    assert result["rejects"] == [{"reason": "http_404", "inputs": 2}]
    (tokens,) = result["tokens"]
    assert (tokens["images"], tokens["tokens"]) == (6, 6 * 258)
    json.dumps(result)


def test_codebook_use():
    histogram = np.zeros(8192, np.int64)
    assert codebook_use(histogram) == {"codes_used": 0.0, "dead_codes": 8192, "perplexity": 0.0}
    histogram[:4] = 5
    assert codebook_use(histogram)["perplexity"] == pytest.approx(4)
    assert codebook_use(histogram)["codes_used"] == pytest.approx(100 * 4 / 8192)


def test_sql_answers(dataset):
    assert query(dataset, "select count(*) n from rejects").to_pylist() == [{"n": 2}]
    assert query(dataset, "select sum(num_tokens)::int n from tokens").to_pylist() == [{"n": 6 * 258}]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "copy sequences to '/tmp/x.csv'",
        "drop view sequences",
        "set enable_external_access = true",
        "select 1; select 2",
        "install httpfs",
        "selec",
    ],
)
def test_sql_that_leaves_the_dataset_is_refused(dataset, sql):
    with pytest.raises(DatasetError, match="--sql"):
        query(dataset, sql)


def test_no_dataset_is_a_clear_error(tmp_path):
    with pytest.raises(DatasetError, match="no dataset"):
        Dataset.existing(str(tmp_path))


def test_another_format_version_is_refused(dataset):
    (dataset.storage.local_root / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(DatasetError, match="format version 1"):
        Dataset.existing(dataset.uri)


def test_what_dataset_json_does_not_know_is_named(dataset):
    (dataset.storage.local_root / "sequences/ghost").mkdir()
    (dataset.storage.local_root / ".dataset.json.0123456789ab.tmp").write_text("{")
    found = problems(dataset, deep=False)
    assert "sequences/ghost" in found
    assert ".dataset.json" in found


def test_a_token_shard_that_lacks_a_sequence_is_not_committed(dataset):
    (first, _) = dataset.shards("sequences/laion")
    rows = dataset.manifest(first).to_pylist()
    with TokenShardWriter(dataset, "t", "laion", 7) as tokens:
        tokens.add(rows[0], np.zeros((1, 256), np.uint16))
        with pytest.raises(ConservationError, match="1 tokenized and 0 rejected are not the 3"):
            tokens.commit(3, "f0", {})
    assert [shard.number for shard in dataset.shards("tokens/t/laion")] == [0, 1]


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_damaged_dataset_json_is_a_clear_error(dataset, text):
    (dataset.storage.local_root / "dataset.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        Dataset.existing(dataset.uri)

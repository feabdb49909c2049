"""Finding by key: one manifest is read, nothing listed; what is not there gets its nearest neighbours named."""

from __future__ import annotations

import pytest
from manifest_support import declare, write_image_shard, write_token_shard

from uvd.manifests import Dataset, DatasetError
from uvd.manifests.find import find_sequence, find_tokens


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    dataset = Dataset(str(tmp_path_factory.mktemp("find") / "d"))
    for source in ("laion", "annotated-video"):
        declare(dataset, source, source)
        for number in (0, 7, 1_000_000):
            write_image_shard(dataset, source, number, [("single", "train", ["image"])] * 4)
    write_token_shard(dataset, "laion", 7)
    return dataset


@pytest.mark.parametrize("key", ["laion-000007-000003", "annotated-video-1000000-000000"])
def test_a_key_is_found_without_listing(dataset, key, monkeypatch):
    monkeypatch.setattr(dataset.storage, "list", lambda folder: pytest.fail(f"listed {folder}"))
    shard, row = find_sequence(dataset, key)
    assert row["key"] == key
    assert f"{shard.folder.partition('/')[2]}-{shard.name}" == key.rpartition("-")[0]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("laion-000007-000009", "nearest: laion-000007-000001, laion-000007-000002, laion-000007-000003"),
        ("laion-000007-3", "nearest: laion-000007-000001, laion-000007-000002, laion-000007-000003"),
        ("laion-7-000003", "nearest: .*laion-000007-000003"),
        ("laion-000006-000000", "nearest: laion-000000-000000, laion-000007-000000, laion-1000000-000000"),
        ("loin-000007-000003", "no source 'loin'; nearest: laion-000007-000003"),
        ("zzz-000007-000003", "no source 'zzz'; The sources are annotated-video, laion"),
        ("laion", "SOURCE-SHARD-INDEX; for example laion-000000-000000"),
        ("laion-000007", "SOURCE-SHARD-INDEX; for example laion-000000-000000"),
        ("", "SOURCE-SHARD-INDEX"),
        ("../../etc-000000-000000", "no source"),
        ("laion-000007-00000\N{ARABIC-INDIC DIGIT THREE}", "SOURCE-SHARD-INDEX"),
        ("laion-99999999999999-000000", "SOURCE-SHARD-INDEX"),
        ("laion-000007-000003\n", "SOURCE-SHARD-INDEX"),
    ],
)
def test_what_is_not_there_gets_its_nearest_named(dataset, key, said):
    with pytest.raises(DatasetError, match=said):
        find_sequence(dataset, key)


def test_tokens_are_found_or_said_to_be_missing(dataset):
    shard, row = find_tokens(dataset, "laion-000007-000002", "t")
    assert (shard.folder, row["key"]) == ("tokens/t/laion", "laion-000007-000002")
    for key, tokenizer in (
        ("laion-000007-000009", "t"),
        ("laion-000000-000000", "t"),
        ("x", "t"),
        ("laion-000007-000002", "u"),
    ):
        with pytest.raises(DatasetError, match="uvd tokenize"):
            find_tokens(dataset, key, tokenizer)


def test_a_dataset_without_sources_says_so(tmp_path):
    with pytest.raises(DatasetError, match="no source yet"):
        find_sequence(Dataset(str(tmp_path)), "laion-000000-000000")

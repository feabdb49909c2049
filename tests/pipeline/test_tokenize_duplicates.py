"""`uvd tokenize --duplicates`: what `uvd dedup` has marked becomes a reject; other marks are other tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console
from tests_support import write_photo

from uvd.manifests.dataset import ConfigChangedError, Dataset, DatasetError
from uvd.manifests.dedup import DedupSettings, find_duplicates
from uvd.manifests.duplicates import read_duplicates
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.pipeline.tokenizing import TokenizeSettings, tokenize, tokens_entry
from uvd.pipeline.tokenizing import plan as plan_tokens
from uvd.sources.images import ImagesConfig

SETTINGS = TokenizeSettings("uvd-small", duplicates="all")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Four photos in two shards; the third is a copy of the first."""
    for seed in (0, 1, 3):
        write_photo(tmp_path / "photos" / f"{seed}.jpg", seed)
    shutil.copyfile(tmp_path / "photos" / "0.jpg", tmp_path / "photos" / "2.jpg")
    config = ImagesConfig(dataset="photos", input=tmp_path / "photos", shard_size=2)
    opened = Dataset(str(tmp_path / "dataset"))
    entry = config_entry(config)
    opened.declare("sequences", "images", entry)
    for job in plan(opened, config, entry["fingerprint"]):
        make_shard(job)
    return opened


def test_a_job_knows_the_marks_of_its_own_shard_only(dataset: Dataset) -> None:
    find_duplicates(dataset, DedupSettings())
    marks = read_duplicates(dataset, "all")
    (entry_name, entry), (_, plain) = tokens_entry(SETTINGS, marks), tokens_entry(TokenizeSettings("uvd-small"))
    assert entry_name == "uvd-small"
    assert entry["fingerprint"] != plain["fingerprint"]
    jobs = list(plan_tokens(dataset, "images", entry["fingerprint"], marks))
    sizes = [len(job.duplicates.marked["images"]) for job in jobs if job.duplicates is not None]
    assert sorted(sizes) == [0, 1]


def test_marked_sequences_are_rejected_and_the_dataset_verifies(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="run `uvd dedup`"):
        list(tokenize(dataset, settings=SETTINGS, console=Console(quiet=True)))
    assert find_duplicates(dataset, DedupSettings()).marked == 1
    for _, result in tokenize(dataset, settings=SETTINGS, console=Console(quiet=True), num_cpus=2):
        assert result.run.complete
    shards = dataset.shards("tokens/uvd-small/images")
    assert sum(len(dataset.manifest(shard)) for shard in shards) == 3
    rejects = [row for shard in shards for row in dataset.rejects(shard).to_pylist()]
    assert [row["reason"] for row in rejects] == ["near_duplicate"]
    assert not verify(dataset, deep=True).problems
    with pytest.raises(ConfigChangedError, match="duplicates"):
        list(tokenize(dataset, settings=TokenizeSettings("uvd-small"), console=Console(quiet=True)))

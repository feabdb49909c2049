"""What is missing, what is refused, what is swept: the rules around a stage, without Ray."""

from __future__ import annotations

import os

import pytest
from rich.console import Console
from tests_support import dataset_bytes, write_photo

from uvd.manifests import ConfigChangedError, Dataset
from uvd.pipeline.config import config_entry
from uvd.pipeline.demo.inputs import lay_out
from uvd.pipeline.demo.packages import SamplesError
from uvd.pipeline.ingest import make_shard, plan
from uvd.pipeline.stage import find_missing
from uvd.sources.images import ImagesConfig


@pytest.fixture
def made(tmp_path):
    """(dataset, jobs): three shards of two photos, all committed."""
    for seed in range(6):
        write_photo(tmp_path / "photos" / f"{seed}.jpg", seed)
    config = ImagesConfig(dataset="photos", input=tmp_path / "photos", shard_size=2)
    dataset = Dataset(str(tmp_path / "dataset"))
    entry = config_entry(config)
    dataset.declare("sequences", "images", entry)
    jobs = list(plan(dataset, config, entry["fingerprint"]))
    for job in jobs:
        make_shard(job)
    return dataset, jobs


def test_nothing_is_missing_when_all_is_there(made):
    dataset, jobs = made
    missing = find_missing(dataset, "sequences/images", jobs)
    assert list(missing.jobs) == []
    assert (missing.planned, missing.committed, len(missing.jobs)) == (3, 3, 0)
    assert missing.totals == {"inputs": 6, "used": 6, "rejected": 0, "partial": 0, "sequences": 6, "images": 6}


def test_a_shard_without_manifest_is_missing_and_its_files_are_swept(made):
    dataset, jobs = made
    before = dataset_bytes(dataset.storage.local_root)
    (dataset.storage.local_root / "sequences/images/000001.parquet").unlink()
    (dataset.storage.local_root / "sequences/images/.000001.tar.0123456789ab.tmp").write_bytes(b"torn")
    dataset.sweep("sequences/images")
    names = {name for name in dataset_bytes(dataset.storage.local_root) if "000001" in name}
    assert names == set()
    (job,) = find_missing(dataset, "sequences/images", jobs).jobs
    make_shard(job)
    assert dataset_bytes(dataset.storage.local_root) == before


def test_changed_and_vanished_inputs_are_refused_or_made_anew(made):
    dataset, jobs = made
    with pytest.raises(ConfigChangedError, match="not planned now"):
        find_missing(dataset, "sequences/images", jobs[:2])
    missing = find_missing(dataset, "sequences/images", jobs[:2], overwrite=True)
    assert [job.shard for job in missing.jobs] == [0, 1]
    assert dataset.shards("sequences/images") == []


def test_overwrite_keeps_what_is_right(made):
    dataset, jobs = made
    before = dataset_bytes(dataset.storage.local_root)
    dataset.declare("sequences", "images", dataset.info()["sequences"]["images"], overwrite=True)
    assert list(find_missing(dataset, "sequences/images", jobs, overwrite=True).jobs) == []
    assert dataset_bytes(dataset.storage.local_root) == before


def test_relative_paths_mean_the_same_in_another_folder(tmp_path, monkeypatch):
    write_photo(tmp_path / "photos" / "0.jpg", 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = ImagesConfig(dataset="photos", input="photos")
    dataset = Dataset("dataset")
    entry = config_entry(config)
    dataset.declare("sequences", "images", entry)
    (job,) = plan(dataset, config, entry["fingerprint"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert make_shard(job).counts["used"] == 1
    assert (tmp_path / "dataset/sequences/images/000000.parquet").exists()
    assert os.listdir(tmp_path / "elsewhere") == []


def test_the_place_of_the_input_does_not_change_the_data(tmp_path):
    data = []
    for name in ("a", "b with space"):
        write_photo(tmp_path / name / "photos" / "0.jpg", 0)
        config = ImagesConfig(dataset="photos", input=tmp_path / name / "photos")
        dataset = Dataset(f"file://{tmp_path}/{name.replace(' ', '%20')}/dataset")
        entry = config_entry(config)
        dataset.declare("sequences", "images", entry)
        for job in plan(dataset, config, entry["fingerprint"]):
            make_shard(job)
        data.append(dataset_bytes(tmp_path / name / "dataset"))
    assert data[0] == data[1]


def test_the_demo_never_deletes_what_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(SamplesError, match="choose another folder"):
        lay_out(tmp_path, Console())
    assert (tmp_path / "thesis.txt").read_text() == "dear"

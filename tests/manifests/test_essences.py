"""What a resume reads of manifests: the same whether few processes read them or many, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_support import change_metadata, declare, drop_metadata, write_image_shard, write_token_shard

from uvd.benchmarks.made_up_shards import ShardMaker, fingerprint_of
from uvd.manifests import Dataset, DatasetError, essences, reader_process
from uvd.manifests.dataset import Shard
from uvd.manifests.essences import ESSENCES, read_essences
from uvd.sequences import Reason

FOLDER = "sequences/laion"


@pytest.fixture
def dataset(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    declare(dataset, "laion", "x")
    return dataset


def read(dataset, folder=FOLDER, processes=None, size=8):
    batches = list(read_essences(dataset, folder, dataset.shard_numbers(folder), processes, size))
    assert all(batch.num_rows == size for batch in batches[:-1])
    return pa.Table.from_batches(batches, ESSENCES).to_pylist()


def test_essences_are_what_the_metadata_says(dataset):
    for number in (0, 2, 1_000_000):
        write_image_shard(dataset, "laion", number, [("single", "train", ["image"])], [(Reason.TIMEOUT, "http://h/x")])
        write_token_shard(dataset, "laion", number)
    for folder in (FOLDER, "tokens/t/laion"):
        rows = read(dataset, folder)
        assert [row["number"] for row in rows] == [0, 2, 1_000_000]
        for row in rows:
            metadata = dataset.metadata(Shard(folder, row["number"]))
            assert row == {**{name: metadata.get(name) for name in ESSENCES.names}, "number": row["number"]}
    assert rows[0]["tokens"] == 258
    assert rows[0]["used"] is None  # image shards have it, token shards do not


def test_no_shards_have_no_essences(dataset):
    assert read(dataset) == read(dataset, processes=2) == []


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_many_manifests_come_in_order_from_any_number_of_processes(dataset, processes):
    numbers = [*range(13), *range(5000, 5040)]
    ShardMaker(Path(dataset.uri) / FOLDER, images=3).write((number, fingerprint_of(number)) for number in numbers)
    rows = read(dataset, processes=processes)
    assert [(row["number"], row["fingerprint"]) for row in rows] == [(n, fingerprint_of(n)) for n in numbers]
    assert {row["images"] for row in rows} == {3}


def test_an_object_store_gives_the_same(dataset, monkeypatch):
    ShardMaker(Path(dataset.uri) / FOLDER).write((number, fingerprint_of(number)) for number in range(50))
    there = read(dataset)
    monkeypatch.setattr(dataset.storage, "local_root", None)
    assert read(dataset) == there


def damage(dataset, how):
    shard = Shard(FOLDER, 3)
    path = Path(dataset.storage.full(shard.manifest))
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "foreign":
        pq.write_table(pa.table({"a": [1]}), path)
    elif how == "no JSON":
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"uvd": "{"}), path)
    elif how == "no object":
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"uvd": json.dumps([1])}), path)
    elif how == "no fingerprint":
        drop_metadata(dataset, shard, "fingerprint")
    elif how == "text for a count":
        change_metadata(dataset, shard, {"images": "many"})
    else:
        change_metadata(dataset, shard, {"inputs": 2**70})


@pytest.mark.parametrize(
    "how",
    ["empty", "truncated", "foreign", "no JSON", "no object", "no fingerprint", "text for a count", "huge count"],
)
def test_a_damaged_manifest_is_named(dataset, how):
    for number in range(5):
        write_image_shard(dataset, "laion", number, [("single", "train", ["image"])])
    damage(dataset, how)
    with pytest.raises(DatasetError, match=r"sequences/laion/000003\.parquet is not a manifest of uvd"):
        read(dataset)


def test_a_damaged_manifest_is_named_by_a_process_too(dataset):
    ShardMaker(Path(dataset.uri) / FOLDER).write((number, fingerprint_of(number)) for number in range(6))
    damage(dataset, "empty")
    with pytest.raises(DatasetError, match=r"sequences/laion/000003\.parquet is not a manifest of uvd"):
        read(dataset, processes=2)


def test_a_process_that_dies_is_an_error(dataset, monkeypatch):
    monkeypatch.setattr(reader_process.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with 1"):
        list(read_essences(dataset, FOLDER, np.arange(10), 2))


def test_processes_end_when_nobody_reads_on(dataset, monkeypatch):
    started = []

    class Watched(reader_process.ReaderProcess):
        def __init__(self, module: str) -> None:
            super().__init__(module)
            started.append(self._process)

    monkeypatch.setattr(essences, "ReaderProcess", Watched)
    ShardMaker(Path(dataset.uri) / FOLDER).write((number, fingerprint_of(number)) for number in range(30))
    reading = read_essences(dataset, FOLDER, dataset.shard_numbers(FOLDER), 2, 10)
    assert next(reading).num_rows == 10
    reading.close()
    assert [process.poll() is not None for process in started] == [True, True]

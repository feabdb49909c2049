"""Sequences that `uvd dedup` has marked are left out of training, and one of each group stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from uvd.manifests import schema
from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.dedup import DedupSettings, find_duplicates
from uvd.manifests.token_shard import TokenShardWriter
from uvd.sequences import Seeds
from uvd.trainer.data import PackedTokens, open_split

A, B, C, D = (int(n) for n in np.random.default_rng(0).integers(0, 1 << 62, 4))
SEQUENCES = [[A], [B], [A], [A, B], [A, C], [C], [D, D], [D]]
"""Hashes of the pictures. 2, 3, 5 and 7 show nothing that does not stay elsewhere; 4 and 6 hold the first C and D."""
LEFT_OUT = {2, 3, 5, 7}


def write(dataset: Dataset, shard: int, roles: str = "image") -> None:
    rows: list[dict[str, Any]] = []
    for index, hashes in enumerate(SEQUENCES):
        number = len(hashes)
        row = {
            "key": f"a-b-{shard:06d}-{index:06d}",
            "source": "laion",
            "dataset": "d",
            "layout": "l",
            "split": "train",
        }
        row |= {"num_images": number, "roles": [roles] * number, "origins": ["o"] * number, "indices": [None] * number}
        row |= {
            "widths": [9] * number,
            "heights": [9] * number,
            "phashes": hashes,
            "digests": hashes,
            "inputs": [index],
        }
        rows.append(row | {"offset": 0, "length": 0})
    image_manifest = schema.to_parquet(rows, schema.SEQUENCES, {"tar_sha256": f"{shard} {roles}"})
    dataset.storage.put(f"sequences/a-b/{shard:06d}.parquet", image_manifest)
    with TokenShardWriter(dataset, "t", "a-b", shard) as writer:
        for row in rows:
            writer.add(row, np.zeros((row["num_images"], 256), np.uint16))
        writer.commit(len(rows), "f", {"tokenizer": "t", "tokenizer_fingerprint": "f"})


@pytest.fixture
def dataset(tmp_path: Any) -> Dataset:
    dataset = Dataset(str(tmp_path / "data"))
    dataset.declare("sequences", "a-b", {"fingerprint": "f"})
    dataset.declare("tokens", "t/a-b", {"fingerprint": "f"})
    write(dataset, 0)
    return dataset


def kept(dataset: Dataset, name: str | None) -> set[tuple[int, int]]:
    """(shard, index) of the sequences that training sees in an epoch."""
    data = PackedTokens(open_split(dataset.uri, "train", duplicates=name).shards, context=258, seeds=Seeds(0))
    rows = data.batch(data.epoch_tokens // 258)
    return {(int(key.split("-")[2]), int(key.split("-")[3])) for keys in rows.keys for key in keys}


def test_sequences_of_marked_pictures_only_are_left_out(dataset: Dataset) -> None:
    find_duplicates(dataset, DedupSettings())
    everything = {(0, index) for index in range(len(SEQUENCES))}
    assert kept(dataset, None) == everything
    assert kept(dataset, "all") == {(0, index) for index in range(len(SEQUENCES)) if index not in LEFT_OUT}
    plain, without = (open_split(dataset.uri, "train", duplicates=name) for name in (None, "all"))
    assert plain.digest != without.digest
    assert without.tokens < plain.tokens


def test_a_second_shard_of_copies_goes_and_other_roles_stay(dataset: Dataset) -> None:
    write(dataset, 1)
    write(dataset, 2, roles="depth")
    find_duplicates(dataset, DedupSettings())
    found = kept(dataset, "all")
    assert not any(shard == 1 for shard, _ in found)
    assert {index for shard, index in found if shard == 2} == set(range(len(SEQUENCES)))


def test_one_picture_of_an_evaluation_set_is_enough(dataset: Dataset, tmp_path: Any) -> None:
    other = Dataset(str(tmp_path / "held-out"))
    other.declare("sequences", "a-b", {"fingerprint": "f"})
    row = {"key": "a-b-000000-000000", "source": "laion", "dataset": "d", "layout": "l", "split": "test"}
    row |= {"num_images": 1, "roles": ["image"], "origins": ["o"], "indices": [None], "widths": [9], "heights": [9]}
    manifest = schema.to_parquet(
        [row | {"phashes": [C ^ 1], "digests": [1], "inputs": [0], "offset": 0, "length": 0}],
        schema.SEQUENCES,
        {"tar_sha256": "x"},
    )
    other.storage.put("sequences/a-b/000000.parquet", manifest)
    find_duplicates(dataset, DedupSettings(against=(other.uri,)))
    left = {(0, index) for index, hashes in enumerate(SEQUENCES) if C not in hashes}
    assert kept(dataset, "all-against-held-out") == left


def test_missing_and_old_marks_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="run `uvd dedup`"):
        open_split(dataset.uri, "train", duplicates="all")
    find_duplicates(dataset, DedupSettings())
    write(dataset, 1)
    with pytest.raises(DatasetError, match="have changed"):
        open_split(dataset.uri, "train", duplicates="all")

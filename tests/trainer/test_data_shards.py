"""What the loader reads: splits, hold-outs for evaluation, stores, and bad shards, which are named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from token_streams import (
    CONTEXT,
    images_of,
    packed,
    parts_of,
    sequences,
    stream,
    write_tokens,
)

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.storage import Storage
from uvd.manifests.tokens import BOS, EOS, PAD
from uvd.sequences import Seeds
from uvd.trainer.data import (
    EmptySplitError,
    PackedTokens,
    TokenDataError,
    evaluation_batches,
    open_split,
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tokens") / "data")
    write_tokens(folder)
    return folder


def _evaluated(uri: str, max_tokens: int, packing: str = "concat") -> NDArray[np.int64]:
    batches = evaluation_batches(
        parts_of(uri, "val"),
        context=CONTEXT[packing],
        rows=2,
        max_tokens=max_tokens,
        seeds=Seeds(0),
        packing=packing,  # type: ignore[arg-type]
    )
    rows = np.concatenate([batch.tokens for batch in batches])
    if packing == "aligned":
        return rows
    return np.concatenate([rows[0, :1], rows[:, 1:].reshape(-1)])


def test_evaluation_covers_the_split_once_and_pads_the_end(uri: str) -> None:
    total = open_split(uri, "val").tokens
    everything = _evaluated(uri, 10**6)
    assert (everything[total:] == PAD).all()
    assert Counter(images_of(everything[:total])) == sequences("val")
    aligned = _evaluated(uri, 10**6, "aligned")
    assert Counter(image for row in aligned for image in images_of(row)) == sequences("val")
    some = _evaluated(uri, 1500)
    assert (some != PAD).sum() == 1500
    assert (some == _evaluated(uri, 1500)).all()


def test_evaluation_names_its_sequences(uri: str) -> None:
    for batch in evaluation_batches(parts_of(uri, "val"), context=600, rows=2, max_tokens=10**6, seeds=Seeds(0)):
        assert [len(keys) > 0 for keys in batch.keys] == [True] * len(batch.tokens)


def test_manifests_are_read_by_split(make_dataset: Any) -> None:
    uri = make_dataset()
    split = open_split(uri, "train")
    assert (split.tokenizer, split.tokenizer_fingerprint) == ("uvd-test", "f" * 64)
    assert split.tokens == 2 * 2 * 5 * 514
    assert open_split(uri, "val").tokens == 2 * 2 * 514
    assert not open_split(uri, "test").shards
    assert split.shards.sources == ("images", "video")
    assert split.shards.only("video").sources == ("video",)
    assert PackedTokens(split.shards.only("video"), context=514, seeds=Seeds(0)).epoch_tokens == 2 * 5 * 514
    rows = PackedTokens(split.shards, context=514, seeds=Seeds(0)).batch(20)
    assert len({keys[0] for keys in rows.keys}) == 20
    assert (rows.tokens[:, 0] == BOS).all()
    assert (rows.tokens[:, 513] == EOS).all()


def test_a_store_that_is_not_a_local_folder_gives_the_same(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = packed(uri)
    opened = Storage.__init__

    def as_remote(self: Storage, address: str) -> None:
        opened(self, address)
        self.local_root = None

    monkeypatch.setattr(Storage, "__init__", as_remote)
    there = packed(uri)
    for _ in range(30):
        assert (here.batch(4).tokens == there.batch(4).tokens).all()


def test_an_empty_split_is_an_error(uri: str) -> None:
    with pytest.raises(EmptySplitError, match="no sequences"):
        PackedTokens(parts_of(uri, "test"), context=514, seeds=Seeds(0))
    assert list(evaluation_batches(parts_of(uri, "test"), context=8, rows=1, max_tokens=9, seeds=Seeds(0))) == []


def test_tokens_of_two_tokenizers_must_be_told_apart(make_dataset: Any) -> None:
    make_dataset(tokenizer="one")
    uri = make_dataset(tokenizer="two")
    with pytest.raises(DatasetError, match="one, two"):
        open_split(uri, "train")
    assert open_split(uri, "train", "two").tokenizer == "two"
    with pytest.raises(DatasetError, match="three"):
        open_split(uri, "train", "three")


def test_shards_of_two_fingerprints_are_refused(make_dataset: Any) -> None:
    make_dataset(fingerprint="a" * 64, sources=("images",))
    uri = make_dataset(fingerprint="b" * 64, sources=("video",))
    with pytest.raises(TokenDataError, match="aaaaaaaaaaaa"):
        open_split(uri, "train")


def _overwrite(uri: str, key: str, at: int, ids: list[int]) -> None:
    """Puts other ids into a sequence, from token `at` on."""
    dataset = Dataset(uri)
    source, shard, _ = key.split("-")
    (found,) = [s for s in dataset.shards(f"tokens/uvd-test/{source}") if s.name == shard]
    (row,) = [row for row in dataset.manifest(found).to_pylist() if row["key"] == key]
    path = Path(uri) / found.tar
    data = bytearray(path.read_bytes())
    data[row["offset"] + 2 * at : row["offset"] + 2 * (at + len(ids))] = np.array(ids, "<u2").tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("at", "ids", "message"),
    [
        (7, [9000], "id 9000 at token 7 is not a code"),
        (300, [BOS], f"id {BOS} at token 300 is not a code"),
        (0, [17], "begins with id 17"),
        (513, [17], "ends with 17"),
    ],
)
def test_ids_that_are_no_framed_sequence_name_shard_and_key(
    make_dataset: Any, at: int, ids: list[int], message: str
) -> None:
    uri, key = make_dataset(), "video-000001-000003"
    _overwrite(uri, key, at, ids)
    with pytest.raises(TokenDataError, match=rf"video/000001\.tar, sequence {key}.*{message}"):
        PackedTokens(open_split(uri, "train").shards, context=514, seeds=Seeds(0)).batch(20)


def test_a_torn_shard_is_named(make_dataset: Any) -> None:
    uri = make_dataset(sources=("video",))
    tar = Path(uri) / "tokens/uvd-test/video/000001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(TokenDataError, match=r"000001\.tar ends inside sequence video-000001-000001"):
        PackedTokens(open_split(uri, "train").shards, context=514, seeds=Seeds(0)).batch(10)


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_shard_that_vanishes_within_an_epoch_is_named(tmp_path: Path, suffix: str) -> None:
    uri = str(tmp_path / "data")
    write_tokens(uri)
    data = packed(uri)
    data.batch(1)
    for path in (tmp_path / "data/tokens/t/video").glob(f"*.{suffix}"):
        path.unlink()
    with pytest.raises(TokenDataError, match=rf"video/00000\d\.{suffix} cannot be read"):
        stream(data, 2 * data.epoch_tokens)


def test_a_manifest_that_changes_meanwhile_is_named(make_dataset: Any) -> None:
    uri = make_dataset(sources=("video",))
    data = PackedTokens(open_split(uri, "train").shards, context=514, seeds=Seeds(0))
    make_dataset(["train"] * 3, sources=("video",))
    with pytest.raises(TokenDataError, match=r"video/00000\d\.parquet has changed"):
        data.batch(4)


def test_a_damaged_manifest_is_named(make_dataset: Any) -> None:
    uri = make_dataset(sources=("video",))
    manifest = Path(uri) / "tokens/uvd-test/video/000001.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    with pytest.raises(TokenDataError, match=r"000001\.parquet cannot be read"):
        open_split(uri, "train")

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uvd.manifests.tokens import BOS, EOS, PAD
from uvd.sequences import Seeds
from uvd.trainer.data import (
    IGNORE,
    Batch,
    EmptySplitError,
    PackedTokens,
    TokenDataError,
    epoch_order,
    evaluation_batches,
    open_split,
)


class ArrayShard:
    """Framed sequences in memory; the codes of sequence i are all `i`."""

    def __init__(self, first: int, lengths: list[int], source: str = "images") -> None:
        self.name, self.source, self._first = f"{source}/{first}", source, first
        self.sequences = [
            np.array([BOS, *[first + index] * (length - 2), EOS], np.uint16) for index, length in enumerate(lengths)
        ]
        self.lengths = np.array(lengths, np.int64)

    def key(self, index: int) -> str:
        return f"key-{self._first + index}"

    def read(self, index: int, start: int, stop: int) -> NDArray[np.uint16]:
        return self.sequences[index][start:stop]


LENGTHS = [3, 9, 5, 4, 30, 7, 3, 12, 6, 5]


def shards() -> list[ArrayShard]:
    return [ArrayShard(0, LENGTHS), ArrayShard(10, LENGTHS, "video")]


def packed(context: int = 8, seed: int = 0, **more: Any) -> PackedTokens:
    return PackedTokens(shards(), context=context, seeds=Seeds(seed), **more)


def stream(data: PackedTokens, tokens: int, rows: int = 3) -> NDArray[np.int64]:
    """The first `tokens` inputs of the stream."""
    parts: list[NDArray[np.int64]] = []
    while sum(part.size for part in parts) < tokens:
        parts.append(data.batch(rows).tokens[:, :-1].reshape(-1))
    return np.concatenate(parts)[:tokens]


def sequences_of(tokens: NDArray[np.int64]) -> list[tuple[int, ...]]:
    assert tokens[0] == BOS
    assert tokens[-1] == EOS
    return [tuple(part[:-1]) for part in np.split(tokens, np.flatnonzero(tokens == BOS))[1:]]


def test_an_epoch_is_every_sequence_exactly_once_whole_and_framed() -> None:
    data = packed()
    total = 2 * sum(LENGTHS)
    assert data.epoch_tokens == total
    both = stream(data, 2 * total)
    expected = Counter((BOS, *[index] * (LENGTHS[index % 10] - 2)) for index in range(20))
    first, second = sequences_of(both[:total]), sequences_of(both[total:])
    assert Counter(first) == expected
    assert Counter(second) == expected
    assert first != second


def test_targets_are_the_inputs_moved_by_one() -> None:
    data = packed(context=8)
    rows = np.concatenate([data.batch(2).tokens for _ in range(10)])
    assert (rows[:-1, -1] == rows[1:, 0]).all()


def test_order_is_a_function_of_the_seed() -> None:
    one, same, other = (stream(packed(seed=seed), 400) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_one_global_order(world: int) -> None:
    alone, together = packed(), [packed() for _ in range(world)]
    for _ in range(12):
        whole = alone.batch(6)
        parts = [data.batch(6, rank, world) for rank, data in enumerate(together)]
        assert (whole.tokens == np.concatenate([part.tokens for part in parts])).all()
        assert whole.keys == [row for part in parts for row in part.keys]


@pytest.mark.parametrize("done", [0, 1, 7, 40])
def test_state_resumes_to_the_token(done: int) -> None:
    data = packed()
    for _ in range(done):
        data.batch(3)
    again = packed()
    again.restore(data.state())
    for _ in range(9):
        assert (data.batch(3).tokens == again.batch(3).tokens).all()


def test_keys_name_the_sequences_of_a_row() -> None:
    batch = packed().batch(30)
    for row, keys in zip(batch.tokens, batch.keys, strict=True):
        assert {f"key-{token}" for token in row if token < 20} <= set(keys)


def test_a_split_shorter_than_a_chunk_repeats() -> None:
    data = PackedTokens([ArrayShard(0, [3])], context=8, seeds=Seeds(0))
    assert data.batch(1).tokens.tolist() == [[BOS, 0, EOS] * 3]


def test_source_weights_repeat_thin_out_and_drop() -> None:
    many = [ArrayShard(0, [3] * 1000), ArrayShard(1000, [3] * 1000, "video"), ArrayShard(2000, [3] * 9, "laion")]
    order = epoch_order(many, Seeds(0), {"images": 2.0, "video": 0.25, "laion": 0.0})
    counts = np.bincount(order, minlength=2009)
    assert (counts[:1000] == 2).all()
    assert set(counts[1000:2000]) == {0, 1}
    assert 200 < counts[1000:2000].sum() < 300
    assert not counts[2000:].any()
    with pytest.raises(EmptySplitError):
        epoch_order(many, Seeds(0), {"images": 0.0, "video": 0.0, "laion": 0.0})
    with pytest.raises(TokenDataError, match="vidoe"):
        packed(source_weights={"vidoe": 2.0})


def test_pad_has_no_label() -> None:
    inputs, labels = Batch(np.array([[BOS, 5, PAD, PAD]]), [[]]).tensors(torch.device("cpu"))
    assert inputs.tolist() == [[BOS, 5, PAD]]
    assert labels.tolist() == [[5, IGNORE, IGNORE]]


def test_evaluation_covers_the_split_once_and_pads_the_end() -> None:
    batches = list(evaluation_batches(shards(), context=8, rows=3, max_tokens=10_000, seeds=Seeds(0)))
    labels = np.concatenate([batch.tokens[:, 1:].reshape(-1) for batch in batches])
    total = 2 * sum(LENGTHS)
    assert (labels != PAD).sum() == total - 1
    assert (labels[: total - 1] != PAD).all()
    some = list(evaluation_batches(shards(), context=8, rows=3, max_tokens=40, seeds=Seeds(0)))
    assert sum(int((batch.tokens[:, 1:] != PAD).sum()) for batch in some) == 39


def test_an_id_out_of_range_names_shard_and_key() -> None:
    broken = shards()
    broken[1].sequences[4][7] = PAD + 1
    data = PackedTokens(broken, context=8, seeds=Seeds(0))
    with pytest.raises(TokenDataError, match=rf"shard video/10, sequence key-14: id {PAD + 1} at token 7"):
        stream(data, 200)


def test_a_wrong_offset_is_noticed() -> None:
    broken = shards()
    broken[0].sequences[2][0] = 17
    with pytest.raises(TokenDataError, match="key-2 begins with id 17"):
        stream(PackedTokens(broken, context=8, seeds=Seeds(0)), 200)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(EmptySplitError, match="no sequences"):
        PackedTokens([], context=8, seeds=Seeds(0))


# The rest reads what the project's own writer has put on disk.


def test_manifests_are_read_by_split(make_dataset: Any) -> None:
    uri = make_dataset()
    split = open_split(uri, "train")
    assert (split.tokenizer, split.tokenizer_fingerprint) == ("uvd-test", "f" * 64)
    assert split.tokens == 2 * 2 * 5 * 514
    assert open_split(uri, "val").tokens == 2 * 2 * 514
    assert open_split(uri, "test").shards == ()
    data = PackedTokens(split.shards, context=514, seeds=Seeds(0))
    rows = data.batch(20)
    assert len({keys[0] for keys in rows.keys}) == 20
    assert (rows.tokens[:, 0] == BOS).all()
    assert (rows.tokens[:, 513] == EOS).all()
    assert rows.tokens[:, 1:513].max() < 8192


def test_tokens_of_two_tokenizers_must_be_told_apart(make_dataset: Any) -> None:
    make_dataset(tokenizer="one")
    uri = make_dataset(tokenizer="two")
    with pytest.raises(TokenDataError, match="one, two"):
        open_split(uri, "train")
    assert open_split(uri, "train", "two").tokenizer == "two"
    with pytest.raises(TokenDataError, match="three"):
        open_split(uri, "train", "three")


def test_shards_of_two_fingerprints_are_refused(make_dataset: Any) -> None:
    make_dataset(fingerprint="a" * 64, sources=("images",))
    uri = make_dataset(fingerprint="b" * 64, sources=("video",))
    with pytest.raises(TokenDataError, match="aaaaaaaaaaaa"):
        open_split(uri, "train")


def test_a_vanished_or_torn_shard_is_named(make_dataset: Any) -> None:
    uri = make_dataset(sources=("video",))
    tar = Path(uri) / "tokens/uvd-test/video/000001.tar"
    split = open_split(uri, "train")
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(TokenDataError, match=r"000001\.tar ends inside sequence video-000001"):
        PackedTokens(split.shards, context=514, seeds=Seeds(0)).batch(10)


def test_a_missing_shard_is_named(make_dataset: Any) -> None:
    uri = make_dataset(sources=("video",))
    (Path(uri) / "tokens/uvd-test/video/000001.tar").unlink()
    with pytest.raises(TokenDataError, match=r"000001\.tar cannot be read"):
        PackedTokens(open_split(uri, "train").shards, context=514, seeds=Seeds(0)).batch(10)

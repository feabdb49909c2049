"""The loader's stream: every sequence once in both packings, one order whoever asks, resumable at every batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from token_streams import (
    BUFFER,
    CONTEXT,
    PART,
    code,
    epoch_rows,
    images_of,
    packed,
    sequences,
    stream,
    whole,
    write_tokens,
)

from uvd.manifests.tokens import BOS, EOS, PAD
from uvd.sequences import Seeds
from uvd.trainer.data import (
    IGNORE,
    Batch,
    EmptySplitError,
    PackedTokens,
    TokenDataError,
    documents,
    open_split,
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tokens") / "data")
    write_tokens(folder)
    return folder


def test_a_concat_epoch_is_every_sequence_of_the_split_once(uri: str) -> None:
    data, expected = packed(uri), sequences("train")
    total = open_split(uri, "train").tokens
    assert data.epoch_tokens == total
    assert data.padding == 0
    both = stream(data, 2 * total)
    first, second = images_of(both[:total]), images_of(both[total:])
    assert Counter(first) == Counter(second) == expected
    assert first != second
    assert whole(first)
    assert (both == BOS).sum() == (both == EOS).sum() == 2 * sum(image == 0 for _, image in expected.elements())


def test_an_aligned_epoch_is_every_image_of_the_split_once(uri: str) -> None:
    data, expected = packed(uri, "aligned"), sequences("train")
    first, second = epoch_rows(data), epoch_rows(data)
    for rows in (first, second):
        assert Counter(image for row in rows for image in images_of(row)) == expected
        assert all(whole(images_of(row)) for row in rows)
        assert (rows[:, 0] == BOS).all()
    assert (first != second).any() if first.shape == second.shape else True
    for row in first:
        used = int((row != PAD).sum())
        assert (row[used:] == PAD).all()
        assert (row[:used] != PAD).all()
    # Each sequence ends once, however many rows its images are in.
    assert (first == EOS).sum() == sum(image == 0 for _, image in expected.elements())


def test_an_epoch_says_how_long_it_is_and_how_much_is_padding(uri: str) -> None:
    data = packed(uri, "aligned", buffer_tokens=1 << 20)
    rows = epoch_rows(data)
    assert data.epoch_tokens == len(rows) * CONTEXT["aligned"]
    assert data.padding == pytest.approx((rows[:, 1:] == PAD).mean())
    assert 0 < data.padding < 0.2


@pytest.mark.parametrize("packing", ["concat", "aligned"])
def test_weights_repeat_thin_out_and_drop(uri: str, packing: str) -> None:
    twice, never = (
        packed(uri, packing, source_weights={"video": 2.0}),
        packed(uri, packing, source_weights={"laion": 0}),
    )
    expected = sequences("train", "video")
    for data, wanted in ((twice, sequences("train") + expected), (never, expected)):
        if packing == "concat":
            found = images_of(stream(data, data.epoch_tokens))
        else:
            found = [image for row in epoch_rows(data) for image in images_of(row)]
        assert Counter(found) == wanted


def test_a_weight_of_a_half_shows_another_half_each_epoch(uri: str) -> None:
    half = packed(uri, context=258, source_weights={"video": 0, "laion": 0.5})
    epochs: list[list[tuple[int, int]]] = [[] for _ in range(41)]
    while (epoch := half.state()["epoch"]) < 40:
        epochs[epoch] += images_of(half.batch(1).tokens[0, :-1])
    assert all(len(set(images)) == len(images) for images in epochs)
    seen = sum(map(len, epochs))
    assert seen == pytest.approx(40 * half.epoch_tokens / 258, rel=0.1)
    assert half.epoch_tokens == sequences("train", "laion").total() * 258 / 2
    assert len(set(map(tuple, map(sorted, epochs)))) > 30


def test_weights_that_make_no_sense_are_refused(uri: str) -> None:
    with pytest.raises(TokenDataError, match="vidoe"):
        packed(uri, source_weights={"vidoe": 2.0})
    with pytest.raises(EmptySplitError, match="leave no sequence"):
        packed(uri, source_weights={"video": 0, "laion": 0})
    with pytest.raises(EmptySplitError, match="epochs"):
        packed(uri, source_weights={"video": 0, "laion": 1e-9}).batch(1)


def test_hold_outs_are_never_in_train(uri: str) -> None:
    held_out = set(sequences("val"))
    assert held_out
    assert not held_out & set(images_of(stream(packed(uri), packed(uri).epoch_tokens)))
    val = open_split(uri, "val")
    assert set(images_of(stream(PackedTokens(val.shards, context=600, seeds=Seeds(0)), val.tokens))) == held_out


def test_blocks_are_bounded_and_mix_sources(uri: str) -> None:
    data = packed(uri)
    largest, mixed = 0, 0
    while data.state()["epoch"] < 2:
        data.batch(1)
        largest = max(largest, *(len(block) for block in data._blocks.values()))
        assert len(data._blocks) <= 2
        block = data._blocks.get((data.state()["epoch"], data.state()["block"]))
        if block is not None:
            mixed += len({part for part, _ in block.origins(0, len(block))}) > 1
    assert largest <= BUFFER + PART + 4098
    assert largest < data.epoch_tokens / 2
    assert mixed


def test_order_is_a_function_of_the_seed(uri: str) -> None:
    one, same, other = (stream(packed(uri, seed=seed), 30_000) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_targets_are_the_inputs_moved_by_one(uri: str) -> None:
    data = packed(uri)
    rows = np.concatenate([data.batch(2).tokens for _ in range(80)])  # over the ends of blocks and of an epoch
    assert data.state()["epoch"] >= 1
    assert (rows[:-1, -1] == rows[1:, 0]).all()


@pytest.mark.parametrize("packing", ["concat", "aligned"])
@pytest.mark.parametrize("world", [2, 3, 6])
def test_workers_share_one_global_order(uri: str, packing: str, world: int) -> None:
    alone, together = packed(uri, packing), [packed(uri, packing) for _ in range(world)]
    for _ in range(12):
        batch = alone.batch(6)
        parts = [data.batch(6, rank, world) for rank, data in enumerate(together)]
        assert (batch.tokens == np.concatenate([part.tokens for part in parts])).all()
        assert batch.keys == [row for part in parts for row in part.keys]
        assert all(data.state() == alone.state() for data in together)
    with pytest.raises(ValueError, match="5 rows"):
        alone.batch(5, 0, 2)


@pytest.mark.parametrize("packing", ["concat", "aligned"])
def test_state_resumes_at_every_batch(uri: str, packing: str) -> None:
    data = packed(uri, packing)
    states, batches = [], []
    for _ in range(40):
        states.append(data.state())
        batches.append(data.batch(2).tokens)
    again = packed(uri, packing)
    for at in (36, 0, 11, 5, 17, 27, 3):
        again.restore(states[at])
        for expected in batches[at : at + 4]:
            assert (again.batch(2).tokens == expected).all()
    assert data.state()["epoch"] >= 1


def test_the_place_in_another_stream_is_refused(uri: str) -> None:
    state = packed(uri).state()
    for other in (
        packed(uri, seed=1),
        packed(uri, context=500),
        packed(uri, "aligned"),
        packed(uri, buffer_tokens=9999),
    ):
        with pytest.raises(TokenDataError, match="checkpoint's place"):
            other.restore(state)
    with pytest.raises(TokenDataError, match="checkpoint's place"):
        packed(uri).restore({"epoch": 0, "position": 4})


def test_keys_name_the_sequences_of_a_row(uri: str) -> None:
    for packing in ("concat", "aligned"):
        data = packed(uri, packing)
        for _ in range(6):
            batch = data.batch(5)
            for row, keys in zip(batch.tokens, batch.keys, strict=True):
                if packing == "aligned":
                    codes = [image[0] for image in images_of(row) if image[1] in (0, 8)]
                    named = [code(k.split("-")[0], *(int(n) for n in k.split("-")[1:])) for k in keys]
                    assert named == codes
                assert (row == BOS).sum() <= len(keys) <= (row == BOS).sum() + 1


def test_a_split_shorter_than_a_row_repeats(make_dataset: Any) -> None:
    uri = make_dataset(["train"], sources=("video",), images=1)
    rows = PackedTokens(open_split(uri, "train").shards, context=1000, seeds=Seeds(0)).batch(4).tokens
    assert (np.flatnonzero(rows[:, :-1].reshape(-1) == BOS) % 258 == 0).all()
    assert (rows == BOS).sum() >= 15


def test_labels_of_padding_and_of_other_documents() -> None:
    tokens = np.array([[BOS, 5, EOS, BOS, 7, EOS, PAD, PAD]])
    inputs, labels = Batch(tokens).tensors(torch.device("cpu"))
    assert inputs.tolist() == [[BOS, 5, EOS, BOS, 7, EOS, PAD]]
    assert labels.tolist() == [[5, EOS, BOS, 7, EOS, IGNORE, IGNORE]]
    _, masked = Batch(tokens, mask_documents=True).tensors(torch.device("cpu"))
    assert masked.tolist() == [[5, EOS, IGNORE, 7, EOS, IGNORE, IGNORE]]


def test_documents_begin_at_bos_and_at_padding() -> None:
    rows = [[BOS, 5, EOS, BOS, 7, EOS, PAD, PAD], [3, 4, EOS, BOS, 1, 1, 1, 1], [PAD] * 8]
    numbers, places = documents(torch.tensor(rows))
    assert numbers.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 1, 1], [0] * 8]
    assert places.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4], list(range(8))]


def test_the_model_masks_documents_by_their_places(micro: str) -> None:
    from uvd.trainer.model import build_model

    model = build_model(micro).eval()
    rng = np.random.default_rng(0)
    one, two = (np.array([BOS, *rng.integers(0, 8192, length), EOS]) for length in (20, 31))
    row = torch.tensor(np.concatenate([one, two, [PAD] * 5]))[None]
    with torch.no_grad():
        together = model(input_ids=row, position_ids=documents(row)[1], use_cache=False).logits[0]
        apart = [model(input_ids=torch.tensor(part)[None], use_cache=False).logits[0] for part in (one, two)]
        crossing = model(input_ids=row, use_cache=False).logits[0]
    expected = torch.cat(apart)
    torch.testing.assert_close(together[: len(expected)], expected, rtol=1e-4, atol=1e-5)
    assert (crossing[22:55] - expected[22:]).abs().max() > 1e-3

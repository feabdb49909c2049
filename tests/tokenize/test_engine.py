"""The queue that fills batches from several shards, and the engine on it: order, failures, memory, precision."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from tests_support import smooth_photo

from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.duplicates import Duplicates
from uvd.manifests.image_shard import ImageShardWriter
from uvd.manifests.token_shard import iter_token_shard
from uvd.manifests.tokens import unframe
from uvd.sequences import Picture, VisualSequence
from uvd.tokenize.batching import EncodingQueue
from uvd.tokenize.encoded import encode_all
from uvd.tokenize.engine import tokenize_shard
from uvd.tokenize.precision import flips
from uvd.tokenize.tokenizer import TokenizerError, load_tokenizer

BAD = 7
"""The grey level whose pictures the fake model cannot encode."""


class FakeEncoder:
    """A picture's ids are its grey level; remembers what each batch held."""

    batch_size = 4
    tokens_per_image = 256

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def pinned(self) -> bool:
        return False

    def launch(self, images: torch.Tensor) -> FakeEncoder.Launched:
        self.gate.wait()
        assert images.shape == (4, 256, 256, 3)
        levels = images[:, 0, 0, 0].numpy().astype(np.uint16)
        self.batches.append(levels.tolist())
        if 99 in levels:
            raise RuntimeError("the device fell over")
        return self.Launched(levels)

    class Launched:
        def __init__(self, levels: np.ndarray) -> None:
            self.levels = levels

        def wait(self) -> tuple[np.ndarray, np.ndarray]:
            return np.repeat(self.levels[:, None], 256, axis=1), self.levels != BAD


def grey(level: int) -> np.ndarray:
    return np.full((256, 256, 3), level, np.uint8)


def outcome(value: np.ndarray | Exception) -> list[int] | str:
    return str(value) if isinstance(value, Exception) else value[:, 0].tolist()


def test_sequences_come_back_in_order_and_the_last_batch_is_padded():
    encoder = FakeEncoder()
    sequences = [("a", [grey(1)]), ("b", [grey(level) for level in range(10, 17)]), ("c", [grey(3), grey(4)])]
    with EncodingQueue(encoder) as queue:
        done = [(name, outcome(ids)) for name, ids in encode_all(sequences, queue)]
    assert done == [("a", [1]), ("b", list(range(10, 17))), ("c", [3, 4])]
    assert encoder.batches == [[1, 10, 11, 12], [13, 14, 15, 16], [3, 4, 0, 0]]


def test_batches_are_filled_across_the_shards_of_two_threads():
    encoder, found = FakeEncoder(), {}
    barrier = threading.Barrier(2)

    def shard(first: int) -> None:
        def sequences():
            barrier.wait()  # both are feeding before either gives its first picture
            for level in range(first, first + 9):
                yield level, [grey(level)]

        found[first] = [(name, outcome(ids)) for name, ids in encode_all(sequences(), queue)]

    with EncodingQueue(encoder) as queue:
        threads = [threading.Thread(target=shard, args=(first,)) for first in (20, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for first in (20, 60):
        assert found[first] == [(level, [level]) for level in range(first, first + 9)]
    # 18 pictures in batches of 4: only the very last is part-filled.
    assert len(encoder.batches) == 5
    assert sum(batch.count(0) for batch in encoder.batches) == 2


def test_a_slow_model_holds_back_those_who_feed_it():
    encoder, given = FakeEncoder(), []
    encoder.gate.clear()

    def sequences():
        for level in range(1, 61):
            given.append(level)
            yield level, [grey(level)]

    with EncodingQueue(encoder) as queue:
        done: list[int] = []
        worker = threading.Thread(target=lambda: done.extend(name for name, _ in encode_all(sequences(), queue)))
        worker.start()
        worker.join(0.5)
        waiting = len(given)
        encoder.gate.set()
        worker.join()
    assert waiting <= 4 * 4 + 1  # four buffers of four pictures, and the one that waits for room
    assert done == list(range(1, 61))


def test_only_the_sequence_without_numbers_fails():
    sequences = [("good", [grey(1)]), ("bad", [grey(2), grey(BAD)]), ("fine", [grey(3)])]
    with EncodingQueue(FakeEncoder()) as queue:
        done = {name: outcome(ids) for name, ids in encode_all(sequences, queue)}
    assert done["good"] == [1]
    assert done["fine"] == [3]
    assert "NaN" in done["bad"]


def test_an_error_of_the_device_reaches_those_it_concerns_and_the_queue_goes_on():
    sequences = [("lost", [grey(99), grey(1), grey(1), grey(1)]), ("next", [grey(5)])]
    with EncodingQueue(FakeEncoder()) as queue:
        done = {name: outcome(ids) for name, ids in encode_all(sequences, queue)}
    assert "fell over" in done["lost"]
    assert done["next"] == [5]


def make_shard(root, levels: list[list[int]]) -> tuple[Dataset, Shard]:
    dataset = Dataset(str(root))
    with ImageShardWriter(dataset, "images", 0, lossless=True) as writer:
        for number, sequence in enumerate(levels):
            pictures = tuple(Picture("image", grey(level), str(level), (256, 256)) for level in sequence)
            writer.add(VisualSequence(pictures, "frames", "d", "train", frozenset({number})))
        writer.commit(len(levels), [], "f")
    return dataset, Shard("sequences/images", 0)


def test_a_shard_that_the_model_cannot_encode_is_named_and_leaves_nothing(tmp_path):
    dataset, shard = make_shard(tmp_path, [[1, 2], [BAD], [3]])
    with EncodingQueue(FakeEncoder()) as queue:
        with pytest.raises(TokenizerError, match=r"sequences/images/000000, sequence images-000000-000001: .*NaN"):
            tokenize_shard(dataset, shard, "t", queue, "f", dict)
        # The queue is not left waiting for the rest of that shard.
        assert [outcome(ids) for _, ids in encode_all([("x", [grey(8)])], queue)] == [[8]]
    assert not [path for path in (tmp_path / "tokens").rglob("*") if path.is_file()]


def test_a_shard_becomes_tokens(tmp_path):
    dataset, shard = make_shard(tmp_path, [[1, 2, 3], [4], [5, 6]])
    with EncodingQueue(FakeEncoder()) as queue:
        counts = tokenize_shard(dataset, shard, "t", queue, "f", lambda: {"device": "fake"})
    assert (counts.sequences, counts.images) == (3, 6)
    found = [unframe(tokens)[:, 0].tolist() for _, tokens in iter_token_shard(dataset, Shard("tokens/t/images", 0))]
    assert found == [[1, 2, 3], [4], [5, 6]]
    assert dataset.metadata(Shard("tokens/t/images", 0))["device"] == "fake"


def test_what_dedup_has_marked_is_rejected_and_never_encoded(tmp_path):
    dataset, shard = make_shard(tmp_path, [[1], [BAD], [2, 2], [3]])
    marked = {"images": np.array([1, 2, 2])}  # the second, and both pictures of the third
    duplicates = Duplicates("all", "f", frozenset({"image"}), False, marked)
    with EncodingQueue(FakeEncoder()) as queue:
        counts = tokenize_shard(dataset, shard, "t", queue, "f", dict, duplicates=duplicates)
    assert (counts.sequences, counts.rejected) == (2, 2)
    tokens = Shard("tokens/t/images", 0)
    assert [row["key"][-6:] for row in dataset.manifest(tokens).to_pylist()] == ["000000", "000003"]
    rejects = dataset.rejects(tokens).to_pylist()
    assert [(row["input"], row["reason"]) for row in rejects] == [(1, "near_duplicate"), (2, "near_duplicate")]
    assert "pass all" in rejects[0]["detail"]


# --- the real model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.stack([smooth_photo(seed, 256, 256) for seed in range(6)])


@pytest.fixture(scope="module")
def wanted(photos) -> np.ndarray:
    return load_tokenizer("uvd-small", "cpu", batch_size=4).encode(photos)


def test_the_queue_gives_the_ids_of_the_tokenizer(photos, wanted):
    encoder = load_tokenizer("uvd-small", "cpu", batch_size=4, encoder_only=True)
    with EncodingQueue(encoder) as queue:
        found = [ids for _, ids in encode_all([(n, [photo]) for n, photo in enumerate(photos)], queue)]
    assert np.array_equal(np.concatenate(found), wanted)


def test_latents_do_not_depend_on_the_place_in_the_batch(photos):
    tokenizer = load_tokenizer("uvd-small", "cpu", batch_size=4, encoder_only=True)
    pixels = torch.from_numpy(photos[:4]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        first = tokenizer.model.latents(pixels.contiguous(memory_format=torch.channels_last))
        for shift in (1, 2, 3):
            moved = pixels.roll(shift, 0).contiguous(memory_format=torch.channels_last)
            assert torch.equal(tokenizer.model.latents(moved).roll(-shift, 0), first)


def exhausted_above(tokenizer, limit: int):
    """The tokenizer with a device whose memory holds `limit` images."""
    latents = tokenizer.model.latents

    def limited(images: torch.Tensor) -> torch.Tensor:
        if len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return latents(images)

    tokenizer._latents = limited
    return tokenizer


def test_without_memory_the_batch_is_halved_until_it_fits_and_stays_so(photos, wanted, caplog):
    tokenizer = exhausted_above(load_tokenizer("uvd-small", "cpu", batch_size=8, encoder_only=True), 2)
    with EncodingQueue(tokenizer) as queue:
        found = [ids for _, ids in encode_all([(n, [photo]) for n, photo in enumerate(photos)], queue)]
    assert tokenizer.batch_size == 2
    assert [record.getMessage() for record in caplog.records] == [
        "cpu is out of memory; going on with batches of 4 images",
        "cpu is out of memory; going on with batches of 2 images",
    ]
    assert (np.concatenate(found) == wanted).mean() > 0.999  # another batch shape: the last bit may differ


def test_encode_gives_every_image_its_ids_though_the_batch_is_halved_on_the_way(photos, wanted):
    tokenizer = exhausted_above(load_tokenizer("uvd-small", "cpu", batch_size=4, encoder_only=True), 2)
    many = np.concatenate([photos, photos, photos])
    assert (tokenizer.encode(many) == np.concatenate([wanted] * 3)).mean() > 0.999
    assert (tokenizer.batch_size, tokenizer.halvings) == (2, 1)


def test_a_failed_device_is_remembered():
    class Broken(FakeEncoder):
        def launch(self, images: torch.Tensor) -> FakeEncoder.Launched:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with EncodingQueue(Broken()) as queue:
        ((_, outcome_of_it),) = encode_all([("x", [grey(1)])], queue)
        assert "illegal memory access" in str(outcome_of_it)
        assert queue.broken


def test_a_sequence_without_pictures_does_not_wait_for_ever():
    with EncodingQueue(FakeEncoder()) as queue:
        assert [outcome(ids) for _, ids in encode_all([("none", []), ("one", [grey(4)])], queue)] == [[], [4]]


def test_no_memory_for_one_image_is_an_error(photos):
    tokenizer = exhausted_above(load_tokenizer("uvd-small", "cpu", batch_size=2, encoder_only=True), 0)
    with pytest.raises(TokenizerError, match="no memory for one image"):
        tokenizer.encode(photos)


def test_bf16_is_another_tokenizer_and_its_flips_are_counted(photos):
    exact = load_tokenizer("uvd-small", "cpu", batch_size=4, encoder_only=True)
    rounded = load_tokenizer("uvd-small", "cpu", batch_size=4, encoder_only=True, precision="bf16")
    assert rounded.fingerprint != exact.fingerprint
    none, some = flips(exact, exact, photos), flips(rounded, exact, photos)
    assert none.different == 0
    assert 0 < some.share < 0.2
    assert str(some).startswith(f"bf16: {some.different:,} of 1,536 ids (")


@pytest.mark.slow
def test_a_compiled_encoder_gives_nearly_the_same_ids(photos, wanted):
    compiled = load_tokenizer("uvd-small", "cpu", batch_size=4, encoder_only=True, compiled=True)
    assert (compiled.encode(photos) == wanted).mean() > 0.99
    assert compiled.fingerprint == load_tokenizer("uvd-small", "cpu").fingerprint

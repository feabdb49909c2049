"""Shards: accounting, commit, token framing, and what plain webdataset makes of them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import webdataset
from tests_support import dataset_bytes, smooth_photo

from uvd.manifests import (
    Dataset,
    DatasetError,
    ImageShardWriter,
    Shard,
    TokenShardWriter,
    iter_token_shard,
    read_image_shard,
    read_sequence,
    read_tokens,
)
from uvd.manifests.codec import CodecError, decode, encode_jpeg, encode_png
from uvd.manifests.dataset import ConservationError
from uvd.manifests.find import find_sequence
from uvd.manifests.token_shard import decode_histogram
from uvd.manifests.tokens import BOS, EOS, TokenFramingError, frame, unframe
from uvd.sequences import Picture, Reason, Reject, VisualSequence
from uvd.sequences.phash import distance, phash

ENTRY = {"fingerprint": "f", "config": {}}


def sequence(index: int, images: int = 2, drawn: bool = False) -> VisualSequence:
    pictures = tuple(
        Picture("image", smooth_photo(100 * index + n, 256, 256), f"{index}.jpg", (400, 300), n, drawn)
        for n in range(images)
    )
    return VisualSequence(pictures, "frames", "d", "train", frozenset({index}))


def write_images(root, count: int = 3, images: int = 2) -> Dataset:
    dataset = Dataset(str(root))
    dataset.declare("sequences", "s", ENTRY)
    with ImageShardWriter(dataset, "s", 0) as writer:
        for index in range(count):
            writer.add(sequence(index, images, drawn=index == 1))
        writer.commit(count + 1, [Reject(count, "bad.jpg", Reason.NOT_IMAGE, "html")], "f0", "f")
    return dataset


def test_images_come_back_by_stream_and_by_key(tmp_path):
    dataset = write_images(tmp_path)
    (shard,) = dataset.shards("sequences/s")
    stored = list(read_image_shard(dataset, shard))
    assert [item.key for item in stored] == [f"s-000000-{n:06d}" for n in range(3)]
    assert np.array_equal(stored[1].pictures()[0], sequence(1).pictures[0].pixels)  # PNG is exact
    difference = stored[0].pictures()[0].astype(int) - sequence(0).pictures[0].pixels
    assert np.abs(difference).mean() < 4  # JPEG q95
    where, row = find_sequence(dataset, "s-000000-000001")
    assert np.array_equal(read_sequence(dataset, where, row).pictures(), stored[1].pictures())
    with pytest.raises(DatasetError, match="nearest: s-000000-00000"):
        find_sequence(dataset, "s-000000-000009")


def test_webdataset_reads_image_shards(tmp_path):
    write_images(tmp_path)
    (shard,) = (tmp_path / "sequences/s").glob("*.tar")
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"s-000000-{n:06d}" for n in range(3)]
    assert samples[0]["00.jpg"].shape == (256, 256, 3)
    assert samples[1]["01.png"].dtype == np.uint8
    assert samples[0]["json"] == {"layout": "frames", "roles": ["image"] * 2, "source": "s", "split": "train"}


@pytest.mark.parametrize(
    ("inputs", "rejected"), [(4, []), (2, []), (4, [0]), (3, [7])], ids=["lost", "foreign", "lost-2", "foreign-2"]
)
def test_a_shard_that_does_not_add_up_is_not_committed(tmp_path, inputs, rejected):
    dataset = Dataset(str(tmp_path))
    dataset.declare("sequences", "s", ENTRY)
    rejects = [Reject(index, "x", Reason.MISSING) for index in rejected]
    with ImageShardWriter(dataset, "s", 0) as writer:
        for index in range(3):
            writer.add(sequence(index, 1))
        with pytest.raises(ConservationError, match="accounted"):
            writer.commit(inputs, rejects, "f0")
    assert dataset_bytes(tmp_path).keys() == {"dataset.json"}


def test_an_input_used_in_part_counts_as_used(tmp_path):
    dataset = Dataset(str(tmp_path))
    dataset.declare("sequences", "s", ENTRY)
    with ImageShardWriter(dataset, "s", 0) as writer:
        writer.add(sequence(0, 1))
        counts = writer.commit(1, [Reject(0, "v.mp4", Reason.TRUNCATED)], "f0")
    assert (counts.used, counts.rejected, counts.partial) == (1, 0, 1)
    (shard,) = dataset.shards("sequences/s")
    assert dataset.rejects(shard)["partial"].to_pylist() == [True]


def tokens_of(root, lengths: list[int]) -> tuple[Dataset, list[np.ndarray]]:
    dataset = Dataset(str(root))
    dataset.declare("tokens", "t/s", ENTRY)
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 8192, (length, 256)).astype(np.uint16) for length in lengths]
    row = {"source": "s", "dataset": "d", "layout": "frames", "split": "train"}
    with TokenShardWriter(dataset, "t", "s", 0) as writer:
        for number, part in enumerate(codes):
            key = f"s-000000-{number:06d}"
            writer.add({**row, "key": key, "num_images": len(part), "roles": ["frame"] * len(part)}, part)
        writer.commit(len(codes), "f0", {"tokenizer": "t"})
    return dataset, codes


def test_tokens_come_back_framed(tmp_path):
    dataset, codes = tokens_of(tmp_path, [1] * 70 + [16] * 9 + [3, 16, 16, 16])
    (shard,) = dataset.shards("tokens/t/s")
    rows = list(iter_token_shard(dataset, shard))
    assert len(rows) == len(codes)
    for (row, tokens), expected in zip(rows, codes, strict=True):
        assert tokens[0] == BOS
        assert tokens[-1] == EOS
        assert np.array_equal(unframe(tokens), expected)
        assert np.array_equal(read_tokens(dataset, shard, row), tokens)
    histogram = decode_histogram(dataset.metadata(shard)["histogram"])
    assert np.array_equal(histogram, np.bincount(np.concatenate(codes).reshape(-1), minlength=8192))


def test_webdataset_reads_token_shards(tmp_path):
    _, codes = tokens_of(tmp_path, [1] * 70 + [16, 16])
    (shard,) = (tmp_path / "tokens/t/s").glob("*.tar")
    found = []
    for sample in webdataset.WebDataset(str(shard), shardshuffle=False).decode():
        tokens, offsets = sample["tokens.npy"], sample["json"]["offsets"]
        assert tokens.dtype == np.uint16
        found += [unframe(tokens[a:b]) for a, b in itertools.pairwise(offsets)]
    assert all(np.array_equal(a, b) for a, b in zip(found, codes, strict=True))


@pytest.mark.parametrize("lengths", [[1] * 640, [16] * 40])
def test_tar_overhead_stays_under_10_percent(tmp_path, lengths):
    dataset, codes = tokens_of(tmp_path, lengths)
    (shard,) = dataset.shards("tokens/t/s")
    content = sum(2 * (part.size + 2) for part in codes)
    assert dataset.metadata(shard)["tar_bytes"] < 1.1 * content


@pytest.mark.parametrize(
    "tokens",
    [
        np.array([], np.uint16),
        np.array([BOS, EOS], np.uint16),
        frame(np.zeros((1, 256), np.uint16))[:-1],
        frame(np.zeros((1, 256), np.uint16))[1:],
        np.array([BOS, *[0] * 300, EOS], np.uint16),
        np.array([BOS, *[0] * 255, 8192, EOS], np.uint16),
    ],
)
def test_bad_framing_is_refused(tokens):
    with pytest.raises(TokenFramingError):
        unframe(tokens)


def test_codec_refuses_other_sizes_formats_and_damage():
    photo = smooth_photo(1, 256, 256)
    jpeg, png = encode_jpeg(photo), encode_png(photo)
    assert np.array_equal(decode(png, "png"), photo)
    for data, extension in [
        (jpeg[: len(jpeg) // 2], "jpg"),
        (png[: len(png) // 2], "png"),
        (png, "jpg"),
        (jpeg, "png"),
        (b"", "jpg"),
        (b"", "png"),
        (jpeg, "gif"),
        (encode_png(smooth_photo(1, 128, 256)), "png"),
        (encode_jpeg(smooth_photo(1, 256, 512)), "jpg"),
    ]:
        with pytest.raises(CodecError):
            decode(data, extension)


def test_perceptual_hash_tells_copies_from_others():
    photo = smooth_photo(1, 256, 256)
    copy = decode(encode_jpeg(photo), "jpg")
    assert distance(phash(photo), phash(copy)) <= 4
    assert distance(phash(photo), phash(smooth_photo(2, 256, 256))) > 12


def test_shard_names_hold_more_than_a_million():
    assert Shard("f", 1_600_000).tar == "f/1600000.tar"


def test_the_json_member_holds_no_text_of_the_input(tmp_path):
    dataset = write_images(tmp_path)
    (shard,) = dataset.shards("sequences/s")
    data = dataset.storage.read(shard.tar)
    start = data.index(b'{"layout"')
    description = json.loads(data[start : data.index(b"}", start) + 1])
    assert description.keys() == {"layout", "roles", "source", "split"}

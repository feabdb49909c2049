"""One job of a build: the bytes of the two-step way, whatever was there before, and bounded ways in and out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from build_support import Beside, encoder, in_one, in_two_steps
from tests_support import dataset_bytes, write_photo
from video_support import write_clip

from uvd.manifests import Dataset
from uvd.manifests.kept_pictures import PicturesNotKeptError
from uvd.manifests.verify import verify
from uvd.pipeline import encoding_client
from uvd.pipeline.build_shard import build_shard
from uvd.pipeline.encoding_client import PICTURE_BYTES, Allowance, EncodedCall, RemoteQueue
from uvd.sources.images import ImagesConfig
from uvd.sources.video import VideoConfig
from uvd.tokenize.encoded import TokenizerError, encode_all

MADE_BY = {"device": "cpu", "batch_size": 8}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for seed in range(3):
        write_photo(folder / "photos" / f"{seed}.jpg", seed)
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    (folder / "photos" / "last.jpg").write_bytes(b"alone in its shard, and no photo")
    return folder


@pytest.fixture(scope="module")
def network():
    return encoder()


@pytest.fixture(scope="module")
def calm(inputs, tmp_path_factory) -> Path:
    """What two steps make of the photos."""
    out = tmp_path_factory.mktemp("calm") / "dataset"
    in_two_steps(out, photos(inputs))
    return out


@pytest.fixture
def beside(monkeypatch, network) -> Beside:
    return Beside(monkeypatch, [network.encode, network.encode], Allowance(3, 2))


def photos(inputs: Path, **settings: object) -> ImagesConfig:
    about = {"dataset": "photos", "input": inputs / "photos", "shard_size": 2, "layouts": {"pairs": 1.0}}
    return ImagesConfig.model_validate({**about, "derive": ("grey",), **settings})


@pytest.mark.parametrize("codec", ["jpeg", "lossless"])
def test_the_bytes_are_those_of_ingest_and_tokenize(inputs, beside, tmp_path, codec):
    config = photos(inputs, image_codec=codec)
    in_two_steps(tmp_path / "two", config)
    in_one(tmp_path / "one", beside.service, config)
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")
    one = Dataset.existing(str(tmp_path / "one"))
    assert verify(one, deep=True).problems == []
    shards = [one.metadata(shard) for shard in one.shards("tokens/muse-vqgan/images")]
    assert [shard["sequences"] > 0 for shard in shards] == [True, True, False]  # of the last all is refused
    assert shards[2]["device"] == "cpu"


def test_several_sources(inputs, beside, tmp_path):
    write_clip(tmp_path / "clips" / "a.mp4", 12)
    clips = VideoConfig(dataset="clips", input=tmp_path / "clips", min_frames=4, strides=(3,), layouts={"frames": 1.0})
    in_two_steps(tmp_path / "two", photos(inputs), clips)
    in_one(tmp_path / "one", beside.service, photos(inputs), clips)
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")


def test_pictures_that_are_there_are_not_made_again(inputs, calm, beside, tmp_path, monkeypatch):
    config = photos(inputs)
    shutil.copytree(calm, tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "tokens")
    (tmp_path / "one" / "sequences" / "images" / "000001.parquet").unlink()  # killed just before
    reads = []
    read = type(config).model_validate
    monkeypatch.setattr(type(config), "model_validate", lambda content: reads.append(1) or read(content))
    in_one(tmp_path / "one", beside.service, config)
    assert len(reads) == 1
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(calm)


def test_without_pictures_all_else_is_the_same(inputs, calm, beside, tmp_path):
    jobs = in_one(tmp_path / "one", beside.service, photos(inputs), keep=False)
    one, two = dataset_bytes(tmp_path / "one"), dataset_bytes(calm)
    tars = {name for name in two if name.startswith("sequences/") and name.endswith(".tar")}
    assert len(tars) == 3
    recorded = json.loads(one["dataset.json"])
    assert recorded["sequences"]["images"].pop("pictures") == "not kept"
    assert recorded == json.loads(two["dataset.json"])
    assert {**one, "dataset.json": b""} == {name: data for name, data in two.items() if name not in tars} | {
        "dataset.json": b""
    }
    # Killed between the two commits: the manifest is no reason to look for a tar.
    (tmp_path / "one" / "tokens" / "muse-vqgan" / "images" / "000000.parquet").unlink()
    build_shard(jobs[0], beside.service)
    assert dataset_bytes(tmp_path / "one") == one


def test_a_shard_whose_encoding_fails_leaves_nothing(inputs, monkeypatch, tmp_path):
    def encode(pictures: np.ndarray) -> EncodedCall:
        return EncodedCall(np.zeros((len(pictures), 256), np.uint16), {1: "NaN"}, MADE_BY)

    beside = Beside(monkeypatch, [encode], Allowance(4, 1))
    with pytest.raises(TokenizerError, match="sequences/images/000000, sequence images-000000-000000: NaN"):
        in_one(tmp_path / "one", beside.service, photos(inputs))
    assert dataset_bytes(tmp_path / "one").keys() == {"dataset.json"}


def test_a_lost_actor_is_no_fault_of_the_shard(inputs, monkeypatch, tmp_path):
    def encode(pictures: np.ndarray) -> EncodedCall:
        raise encoding_client.ray.exceptions.ActorDiedError

    beside = Beside(monkeypatch, [encode], Allowance(4, 1))
    with pytest.raises(encoding_client.ray.exceptions.ActorDiedError):
        in_one(tmp_path / "one", beside.service, photos(inputs))
    assert dataset_bytes(tmp_path / "one").keys() == {"dataset.json"}


def numbered(pictures: np.ndarray) -> EncodedCall:
    return EncodedCall(np.repeat(pictures[:, :1, 0, 0].astype(np.uint16), 256, axis=1), {}, MADE_BY)


def grey(value: int) -> np.ndarray:
    return np.full((256, 256, 3), value, np.uint8)


def test_no_more_calls_are_out_than_allowed(monkeypatch):
    beside = Beside(monkeypatch, [numbered, numbered], Allowance(4, 3))
    queue = RemoteQueue(beside.service)
    sequences = [(n, [grey(n)] * (1 + n % 5)) for n in range(60)]
    found = list(encode_all(sequences, queue))
    assert [name for name, _ in found] == list(range(60))
    assert all((ids == name).all() and ids.shape == (1 + name % 5, 256) for name, ids in found)
    assert 2 <= beside.handles[0].most + beside.handles[1].most <= 4
    assert beside.handles[0].most <= 2  # the idle one is chosen


def test_a_failed_picture_fails_its_own_sequence_alone(monkeypatch):
    def encode(pictures: np.ndarray) -> EncodedCall:
        call = numbered(pictures)
        return EncodedCall(call.ids, {place: "NaN" for place, value in enumerate(call.ids[:, 0]) if value == 3}, {})

    beside = Beside(monkeypatch, [encode], Allowance(4, 1))
    found = dict(encode_all([(n, [grey(n)] * 2) for n in range(6)], RemoteQueue(beside.service)))
    assert {name for name, ids in found.items() if isinstance(ids, Exception)} == {3}


def test_who_stops_early_waits_for_nobody(monkeypatch):
    beside = Beside(monkeypatch, [numbered], Allowance(1, 50))
    queue = RemoteQueue(beside.service)
    monkeypatch.setattr(encoding_client, "wait_for", lambda *_, **__: pytest.fail("waited"))

    def broken():
        yield 0, [grey(1)] * 3
        raise ValueError("a bug in a source")

    with pytest.raises(ValueError, match="a bug"):
        list(encode_all(broken(), queue))


def test_what_a_lost_actor_had_others_do(monkeypatch):
    beside = Beside(monkeypatch, [numbered] * 3, Allowance(2, 4))
    monkeypatch.setattr(encoding_client, "LATE_S", 0.05)
    beside.handles[0].gone = True
    sequences = [(n, [grey(n)] * 3) for n in range(20)]
    found = list(encode_all(sequences, RemoteQueue(beside.service)))
    assert [name for name, _ in found] == list(range(20))
    assert all((ids == name).all() for name, ids in found)
    assert beside.handles[0].waiting


def test_actors_of_two_kinds_are_both_named(monkeypatch):
    def other(pictures: np.ndarray) -> EncodedCall:
        return EncodedCall(numbered(pictures).ids, {}, {"device": "A100", "batch_size": 4})

    beside = Beside(monkeypatch, [numbered, other], Allowance(1, 2))
    queue = RemoteQueue(beside.service)
    list(encode_all([(0, [grey(1)] * 4)], queue))
    assert queue.made_by() == {"device": "A100 + cpu", "batch_size": 4}


def test_tasks_together_leave_half_of_the_object_store():
    for store, tasks in ((256 << 20, 2), (256 << 20, 16), (256 << 20, 128), (4 << 30, 64)):
        room = Allowance.of(store, tasks)
        assert room.pictures >= 1
        assert room.calls >= 1
        assert tasks * room.calls * room.pictures * PICTURE_BYTES <= store / 2
    assert Allowance.of(0, 8) == Allowance(1, 1)
    assert Allowance.of(256 << 20, 2) == Allowance(16, 8)


def test_a_worker_of_a_build_needs_no_torch():
    # A handle of an actor imports the actor's module too.
    code = "import sys, uvd.pipeline.build_shard, uvd.pipeline.encoding_actor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_reading_pictures_that_were_not_kept_says_so(inputs, beside, tmp_path):
    from uvd.manifests import read_image_shard, read_sequence

    in_one(tmp_path, beside.service, photos(inputs), keep=False)
    dataset = Dataset.existing(str(tmp_path))
    shard = dataset.shards("sequences/images")[0]
    with pytest.raises(PicturesNotKeptError, match="--drop-images"):
        list(read_image_shard(dataset, shard))
    with pytest.raises(PicturesNotKeptError, match="sequences/images"):
        read_sequence(dataset, shard, dataset.manifest(shard).to_pylist()[0])

"""An object store that fails: what passes is tried again without a trace, what does not is explained; secrets stay."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands_support import finished, uvd, wait_for
from object_store import BUCKET, SECRET, Fault, ObjectStore, free_port, object_store, run_uvd
from rich.console import Console
from tests_support import dataset_bytes, write_photo

from uvd.manifests import Dataset, lease, s3_objects
from uvd.manifests.dataset import Shard
from uvd.manifests.image_shard import read_image_shard
from uvd.manifests.lease import FolderHeldError, hold
from uvd.manifests.storage import Storage, StorageError
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import ingest, make_shard, plan
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.sequences import object_stores
from uvd.sequences.object_stores import ObjectStoreError
from uvd.sources.base import SourceError
from uvd.sources.images import ImagesConfig
from uvd.sources.input_place import InputPlace

MB = 1 << 20
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_uvd(capsys, *arguments)


@pytest.fixture(autouse=True)
def impatient(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed soon, and nothing is tried for long."""
    store.heal()
    monkeypatch.setattr(object_stores, "SILENCE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(object_stores, "ATTEMPTS", 4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        write_photo(folder / f"{seed:02d}.jpg", seed)
    return folder


def make(uri: str, photos: Path) -> None:
    """Two shards, in this process."""
    config, dataset = ImagesConfig(dataset="p", input=photos, shard_size=2), Dataset(uri)
    entry = config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        make_shard(job)


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "d"
    make(str(out), photos)
    return dataset_bytes(out)


@pytest.fixture(scope="module")
def sound(store: ObjectStore, photos: Path) -> str:
    make(store.uri("sound"), photos)
    return store.uri("sound")


@pytest.mark.parametrize(
    ("fault", "method", "where"),
    [
        ("500", "PUT", "000000.tar"),
        ("503", "PUT", "000001.parquet"),
        pytest.param("500", "PUT", "dataset.json", marks=pytest.mark.slow),
        ("late-500", "PUT", "000000.parquet"),
        ("silent", "PUT", "000001.tar"),
        ("cut-upload", "PUT", "000001.tar"),
        pytest.param("503", "GET", "list-type", marks=pytest.mark.slow),
        pytest.param("500", "HEAD", "dataset.json", marks=pytest.mark.slow),
        pytest.param("500", "DELETE", ".lease", marks=pytest.mark.slow),
    ],
)
def test_what_fails_in_passing_while_writing_leaves_no_trace(store, photos, expected, fault: Fault, method, where):
    name = f"written-{fault}-{method}-{where}".replace(".", "")
    store.fail(fault, 1 if fault in ("silent", "cut-upload") else 2, method, where)
    make(store.uri(name), photos)
    assert store.met
    assert store.data(name) == expected


@pytest.mark.parametrize(("fault", "times"), [("500", 1), ("503", 1), ("silent", 1), ("slow", 5), ("cut", 1)])
@pytest.mark.parametrize(
    "where", ["000001.tar", "000001.parquet", pytest.param("dataset.json", marks=pytest.mark.slow)]
)
def test_what_fails_in_passing_while_reading_changes_nothing(store, sound, fault: Fault, times, where):
    undisturbed = list(read_image_shard(Dataset.existing(sound), Shard("sequences/images", 1)))
    store.fail(fault, times, "GET", where)
    assert list(read_image_shard(Dataset.existing(sound), Shard("sequences/images", 1))) == undisturbed
    assert [met for met, _, _ in store.met]


def test_a_large_object_survives_every_fault(store, monkeypatch):
    """In parts, each of which meets something."""
    monkeypatch.setattr(s3_objects, "PART_BYTES", 5 * MB)
    body = os.urandom(17 * MB)
    for part, fault in enumerate(("500", "cut-upload", "silent", "late-500"), start=1):
        store.fail(fault, 1, "PUT", f"partNumber={part}")  # type: ignore[arg-type]
    Storage(store.uri("large")).put("a.tar", body)
    assert len(store.met) == 4
    assert store.objects("large/") == {"a.tar": body}
    assert Storage(store.uri("large")).read("a.tar") == body
    assert store.open_uploads() == []


def test_an_upload_that_fails_for_good_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr(s3_objects, "PART_BYTES", 5 * MB)
    monkeypatch.setattr(object_stores, "ATTEMPTS", 2)
    store.fail("500", 99, "PUT", "partNumber=2")
    with pytest.raises(ObjectStoreError, match=rf"{BUCKET}.*writing 'failed/a.tar'.*failed 2 times in a row"):
        Storage(store.uri("failed")).put("a.tar", bytes(17 * MB))
    assert store.objects("failed/") == {}
    assert store.open_uploads() == []


UPLOAD = """
import sys
from uvd.manifests import s3_objects
from uvd.manifests.lease import FolderHeldError, hold
from uvd.manifests.storage import Storage
s3_objects.PART_BYTES = 5 << 20
Storage(sys.argv[1]).put("sequences/a/000000.tar", bytes(17 << 20))
"""


def test_what_a_killed_upload_left_is_swept(store):
    store.fail("silent", 99, "PUT", "partNumber=3")
    process = subprocess.Popen([sys.executable, "-c", UPLOAD, store.uri("killed")])
    try:
        end = time.monotonic() + 60
        while not store.met and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert store.open_uploads() == ["killed/sequences/a/000000.tar"]
    dataset = Dataset(store.uri("killed"))
    dataset.sweep("sequences/ab")  # another folder's
    assert store.open_uploads() == ["killed/sequences/a/000000.tar"]
    dataset.sweep("sequences/a")
    assert store.open_uploads() == []
    assert store.objects("killed/") == {}


def test_of_a_shard_without_manifest_nothing_stays(store):
    storage = Storage(store.uri("torn"))
    for name in ("000000.tar", "000000.rejects.parquet", "000001.tar"):
        storage.put(f"sequences/a/{name}", b"x")
    Dataset(store.uri("torn")).sweep("sequences/a")
    assert store.objects("torn/") == {}


@pytest.mark.parametrize(
    ("fault", "says"),
    [("403", "refuses access"), ("500", "failed 2 times in a row"), ("silent", "failed 2 times in a row")],
)
def test_what_fails_for_good_is_explained(store, run, sound, monkeypatch, fault: Fault, says):
    monkeypatch.setattr(object_stores, "ATTEMPTS", 2)
    store.fail(fault, 99, "", "/sound/dataset.json")
    code, printed = run("stats", "--dataset", sound)
    assert code == 1
    assert says in printed
    assert BUCKET in printed
    assert "sound/dataset.json" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("where", ["000001.parquet", "000001.tar"])
def test_what_cannot_be_reached_is_not_called_damaged(store, run, sound, tmp_path, where):
    """Nobody is told to delete it, and no repair touches it."""
    sheet = str(tmp_path / "sheet.png")
    store.fail("403", 999, "GET", where)
    commands = [("show", "images-000001-000000", "--out", sheet)]
    if where.endswith(".parquet"):
        commands += [("stats",), ("dedup",), ("stats", "--sql", "select count(*) from sequences where key > 'a'")]
    for name, *more in commands:
        code, printed = run(name, "--dataset", sound, *more)
        assert code == 1, name
        assert "ACCESS_DENIED" in printed, name
        assert where in printed or "--sql" in printed, printed
        assert "elete" not in printed
        assert "Traceback" not in printed
    before = store.data("sound")
    code, printed = run("verify", "--dataset", sound, "--deep", "--repair")
    assert (code, "unreachable" in printed) == (3, True), printed
    assert store.data("sound") == before


def test_one_run_at_a_time(store, monkeypatch):
    for name, seconds in (("BEAT_S", 0.2), ("LEASE_S", 2.0), ("_POLL_S", 0.1)):
        monkeypatch.setattr(lease, name, seconds)
    told = pytest.raises(FolderHeldError, match="another run writes sequences/a in s3://")
    with hold(Storage(store.uri("held")), ["sequences/a"]):
        with told, hold(Storage(store.uri("held")), ["sequences/a"]):
            pass
        store.fail("500", 2, "PUT", ".lease")
        time.sleep(1)
        with hold(Storage(store.uri("held")), ["sequences/b"]):
            pass
    assert store.objects("held/") == {}


def test_a_wrong_bucket(store, run, photos, tmp_path):
    code, printed = run("stats", "--dataset", "s3://no-such-bucket/d")
    assert (code, "there is no bucket 'no-such-bucket'" in printed) == (1, True), printed
    (tmp_path / "c.yaml").write_text(f"source: images\ndataset: p\ninput: {photos}\n")
    code, printed = run("ingest", "images", "--config", str(tmp_path / "c.yaml"), "--out", "s3://no-such-bucket/d")
    assert (code, "no such bucket" in printed, "Traceback" in printed) == (1, True, False), printed


def test_a_wrong_dataset(store, run):
    code, printed = run("stats", "--dataset", store.uri("nothing"))
    assert (code, "there is no dataset.json" in printed) == (1, True), printed


def test_a_store_that_is_not_there(store, run, monkeypatch):
    monkeypatch.setattr(object_stores, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    code, printed = run("stats", "--dataset", store.uri("sound"))
    assert (code, "cannot be reached" in printed, "Traceback" in printed) == (1, True, False), printed


def test_no_credentials(store, run, photos, tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(f"source: images\ndataset: p\ninput: {photos}\n")
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        code, printed = run("ingest", "images", "--config", str(tmp_path / "c.yaml"), "--out", store.uri("anonymous"))
    assert (code, "set AWS_ACCESS_KEY_ID" in printed, "Traceback" in printed) == (1, True, False), printed
    assert store.objects("anonymous/") == {}


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_credentials_in_an_address_are_refused_and_not_repeated(run, scheme, capsys):
    uri = f"{scheme}://someone:{SECRET}@{BUCKET}/d"
    with pytest.raises(StorageError, match=f"{scheme}://{BUCKET}/d was given with credentials") as refused:
        Dataset(uri)
    with pytest.raises(SourceError) as refused_input:
        InputPlace(uri)
    code, printed = run("stats", "--dataset", uri)
    assert code == 1
    assert "AWS_ACCESS_KEY_ID" in printed
    assert not [text for text in (str(refused.value), str(refused_input.value), printed) if SECRET in text]


@pytest.mark.slow
def test_shards_that_cannot_be_written_fail_and_are_made_later(store, photos, expected, run, tmp_path):
    """Exit code 3, named shard, and no traceback; the same command finishes when the store is well again."""
    (tmp_path / "c.yaml").write_text(f"source: images\ndataset: p\ninput: {photos}\nshard_size: 2\n")
    command = ("ingest", "images", "--config", str(tmp_path / "c.yaml"), "--out", store.uri("refused"))
    store.fail("403", 99, "PUT", "000001.tar")
    with ray_runtime(num_cpus=2):
        code, printed = run(*command)
        assert code == 3, printed
        assert "shard 000001 failed: " in printed
        assert "refused/sequences/images/000001.tar" in printed
        assert "refuses access" in printed
        assert "Traceback" not in printed
        store.heal()
        code, printed = run(*command)
        assert code == 0, printed
    files = store.data("refused")
    assert {name: files[name] for name in expected if name != "dataset.json"} == {
        name: body for name, body in expected.items() if name != "dataset.json"
    }
    assert SECRET.encode() not in b"".join(store.objects("").values())


@pytest.mark.slow
def test_a_killed_run_goes_on(store, tmp_path):
    """The driver and all its workers die while shards are written; the lease of the dead is waited for."""
    for seed in range(24):
        write_photo(tmp_path / "photos" / f"{seed:02d}.jpg", seed, 1500, 2000)
    config = ImagesConfig(dataset="p", input=tmp_path / "photos", shard_size=2)
    (tmp_path / "c.yaml").write_text(f"source: images\ndataset: p\ninput: {config.input}\nshard_size: 2\n")

    def start() -> subprocess.Popen[str]:
        arguments = ("--config", str(tmp_path / "c.yaml"), "--out", store.uri("interrupted"), "--num-cpus", "2")
        return uvd("ingest", "images", *arguments)

    def manifests() -> int:
        return sum(1 for name in store.objects("interrupted/sequences/images/") if re.fullmatch(r"\d+\.parquet", name))

    store.fail("slow", 99, "PUT")
    process = start()
    wait_for(process, lambda: manifests() >= 3)
    process.kill()
    printed, _ = process.communicate()
    assert 3 <= manifests() < 24 / 2, printed
    store.heal()
    printed = finished(start())
    assert ingest(config, str(tmp_path / "d"), console=Console(quiet=True)).complete
    assert store.data("interrupted") == dataset_bytes(tmp_path / "d")
    assert [name for name in store.objects("interrupted/runs/") if name.endswith(".lease")] == []
    assert store.open_uploads() == []
    assert SECRET not in printed
    assert SECRET.encode() not in b"".join(store.objects("").values())

"""Datasets on an object store: every command does there what it does on a local disk, to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import KEY_ID, SECRET, ObjectStore, object_store, run_uvd
from rich.console import Console
from starlette.testclient import TestClient
from tests_support import dataset_bytes, write_photo

from uvd.manifests import Dataset, blocks, survey
from uvd.manifests.dataset import ConfigChangedError
from uvd.manifests.stats import statistics
from uvd.pipeline.browse.app import Browser
from uvd.pipeline.ingest import ingest
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.pipeline.tokenizing import ALLOCATOR, TokenizeSettings, tokenize
from uvd.sources.images import ImagesConfig
from uvd.trainer import model as models
from uvd.trainer.config import TrainConfig
from uvd.trainer.data import open_split
from uvd.trainer.train import train

TOKENIZER = Path(__file__).parents[1] / "data" / "muse-vqgan"
TOKENS = "tokens/muse-vqgan/images"
CONSOLE = Console(quiet=True)
PHOTOS, SHARD = 12, 6
FILES = {
    "dataset.json",
    *(
        f"{folder}/{number:06d}.{ending}"
        for folder in ("sequences/images", TOKENS)
        for number in range(PHOTOS // SHARD)
        for ending in ("tar", "parquet", "rejects.parquet")
    ),
}
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """With a Ray whose workers know of it, because it was started after."""
    with object_store() as store, ray_runtime(num_cpus=2, environment=ALLOCATOR):
        yield store


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_uvd(capsys, *arguments)


def config(folder: Path, **more: Any) -> ImagesConfig:
    holdout = {"val": 0.3}
    return ImagesConfig(**({"dataset": "p", "input": folder, "shard_size": SHARD, "holdout": holdout} | more))


def make(uri: str, photos: Path) -> None:
    assert ingest(config(photos), uri, num_cpus=2, console=CONSOLE).complete
    settings = TokenizeSettings(str(TOKENIZER), device="cpu")
    for _, result in tokenize(Dataset(uri), (), settings, console=CONSOLE):
        assert result.complete


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(PHOTOS - 1):
        write_photo(folder / f"{seed:02d}.jpg", seed)
    shutil.copy(folder / "00.jpg", folder / "copy.jpg")
    return folder


@pytest.fixture(scope="module")
def local(store: ObjectStore, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "data"
    make(str(out), photos)
    return out


@pytest.fixture(scope="module")
def made(store: ObjectStore, photos: Path) -> list[tuple[str, str]]:
    """The dataset `data`; gives the requests that making it took."""
    store.heal()
    make(store.uri("data"), photos)
    return list(store.requests)


@pytest.fixture
def remote(store: ObjectStore, made: object) -> str:
    store.heal()
    return store.uri("data")


@pytest.fixture(scope="module")
def objects(store: ObjectStore, made: object) -> dict[str, bytes]:
    return store.objects("data/")


@pytest.fixture
def copied(store: ObjectStore, objects: dict[str, bytes], request: pytest.FixtureRequest) -> str:
    """A copy of the dataset to spoil."""
    name = request.node.name.partition("[")[0]
    for key, body in objects.items():
        store.client.put_object(Bucket=store.bucket, Key=f"{name}/{key}", Body=body)
    store.heal()
    return name


def test_every_object_is_the_local_file_and_there_is_nothing_else(store, remote, local):
    assert store.data("data") == dataset_bytes(local)
    assert set(store.data("data")) == FILES
    assert not [name for name in store.objects("data/") if name.endswith((".lease", ".tmp", "/"))]
    assert store.open_uploads() == []


def test_no_object_holds_a_secret(store, remote):
    everything = b"".join(store.objects("").values())
    assert len(everything) > 100_000
    assert SECRET.encode() not in everything
    assert KEY_ID.encode() not in everything


def test_nobody_asks_for_shards_one_by_one(made):
    """A first run knows from listings that nothing is there, and writes each file once."""
    shards = [(method, path) for method, path in made if "/sequences/" in path and "?" not in path]
    before = shards[: shards.index(next(item for item in shards if item[0] != "PUT"))]
    assert len(before) == len(set(before)) == 3 * PHOTOS // SHARD
    listings = [path for _, path in made if "list-type=2" in path and path.endswith("sequences%2Fimages%2F")]
    assert len(listings) <= 8, listings


def test_again_is_nothing_to_do(store, remote, photos):
    result = ingest(config(photos), remote, console=CONSOLE)
    assert (result.complete, result.run.done, result.existing) == (True, 0, PHOTOS // SHARD)
    assert not [path for method, path in store.requests if method == "PUT" and "/sequences/" in path]


def test_other_settings_are_refused_and_overwrite_makes_anew(store, copied, photos, tmp_path):
    other = config(photos, shard_size=PHOTOS)
    with pytest.raises(ConfigChangedError, match=f"s3://{store.bucket}/{copied} was made with other settings"):
        ingest(other, store.uri(copied), console=CONSOLE)
    assert ingest(other, store.uri(copied), overwrite=True, console=CONSOLE).complete
    assert ingest(other, str(tmp_path / "d"), console=CONSOLE).complete
    assert store.data(copied) == dataset_bytes(tmp_path / "d")


def test_statistics_are_those_of_the_local_dataset(remote, local):
    there, here = statistics(Dataset(remote)), statistics(Dataset(str(local)))
    for content in (there, here):
        del content["dataset"], content["costs"]
    assert json.dumps(there, default=str) == json.dumps(here, default=str)


@pytest.mark.parametrize("format", ["table", "json"])
def test_stats(run, remote, format):
    code, printed = run("stats", "--dataset", remote, "--format", format)
    assert code == 0, printed
    assert "muse-vqgan" in printed


def test_stats_keeps_its_index(store, run, copied, monkeypatch):
    """Of many shards only, and not of what is so new that a change in the same second would not show."""
    monkeypatch.setattr(survey, "KEPT_FROM", 1)
    monkeypatch.setattr(blocks, "SETTLED_S", -60)
    assert run("stats", "--dataset", store.uri(copied))[0] == 0
    assert "index/statistics.parquet" in store.objects(f"{copied}/")
    store.heal()
    assert run("stats", "--dataset", store.uri(copied))[0] == 0
    assert not [path for _, path in store.requests if path.endswith("0.parquet")]


def test_sql(run, remote):
    code, printed = run(
        "stats", "--dataset", remote, "--format", "json", "--sql", "select count(*) n, max(num_images) i from sequences"
    )
    assert (code, json.loads(printed)) == (0, [{"n": PHOTOS, "i": 1}])


def test_card(run, remote, tmp_path):
    code, printed = run("stats", "--dataset", remote, "--format", "html", "--out", str(tmp_path / "card.html"))
    assert code == 0, printed
    page = (tmp_path / "card.html").read_text()
    assert remote in page
    assert page.count("data:image/") >= 3


def test_show_draws_the_same_sheet(run, remote, local, tmp_path):
    for number, uri in enumerate((remote, str(local))):
        arguments = ("--dataset", uri, "--out", str(tmp_path / f"{number}.png"))
        assert run("show", "images-000001-000002", *arguments)[0] == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def test_verify_deep(run, remote):
    code, printed = run("verify", "--dataset", remote, "--deep")
    assert (code, "0 problems" in printed) == (0, True), printed


def test_a_flipped_object_is_found_and_repaired(store, run, copied, remote):
    key = f"{copied}/sequences/images/000001.tar"
    body = bytearray(store.objects(key)[""])
    body[1500] ^= 4
    store.client.put_object(Bucket=store.bucket, Key=key, Body=bytes(body))
    store.client.delete_object(Bucket=store.bucket, Key=f"{copied}/{TOKENS}/000000.parquet")
    code, printed = run("verify", "--dataset", store.uri(copied), "--deep")
    assert code == 1
    assert "sequences/images/000001" in printed
    code, printed = run("verify", "--dataset", store.uri(copied), "--deep", "--repair", "--num-cpus", "2")
    assert (code, "all repaired" in printed) == (0, True), printed
    assert store.data(copied) == store.data("data")


def test_dedup(store, run, copied, local, tmp_path):
    shutil.copytree(local, tmp_path / "d")
    code, printed = run("dedup", "--dataset", store.uri(copied))
    assert (code, "1 groups" in printed) == (0, True), printed
    assert run("dedup", "--dataset", str(tmp_path / "d"))[0] == 0
    assert store.data(copied)["dedup/all.parquet"] == (tmp_path / "d" / "dedup" / "all.parquet").read_bytes()


def test_a_view_beside_its_base(store, run, remote, local, tmp_path):
    code, printed = run("subset", "--dataset", remote, "--split", "train", "--out", store.uri("view"))
    assert code == 0, printed
    assert run("subset", "--dataset", str(local), "--split", "train", "--out", str(tmp_path / "view"))[0] == 0
    there, here = store.data("view"), dataset_bytes(tmp_path / "view")
    base = json.loads(there.pop("dataset.json"))["view"]["base"]
    del here["dataset.json"]
    assert (base, there) == (remote, here)
    code, printed = run("verify", "--dataset", store.uri("view"), "--deep")
    assert code == 0, printed
    code, printed = run("subset", "--dataset", remote, "--split", "train", "--out", store.uri("view"))
    assert (code, "nothing to do" in printed) == (0, True), printed


@pytest.mark.parametrize("format", ["lvm-jsonl", "numpy", "hf"])
def test_exports_are_the_same(run, remote, local, tmp_path, format):
    for name, uri in (("there", remote), ("here", str(local))):
        code, printed = run("export", "--dataset", uri, "--format", format, "--out", str(tmp_path / name))
        assert code == 0, printed
    there, here = (dataset_bytes(tmp_path / name) for name in ("there", "here"))
    assert there.keys() == here.keys()
    for name in here:
        assert there[name].replace(remote.encode(), str(local).encode()) == here[name]


def test_import_to_the_store(store, run, remote, tmp_path):
    assert run("export", "--dataset", remote, "--format", "lvm-jsonl", "--out", str(tmp_path / "lvm"))[0] == 0
    for out in (store.uri("imported"), str(tmp_path / "d")):
        code, printed = run("import", "lvm-jsonl", str(tmp_path / "lvm"), "--out", out, "--num-cpus", "2")
        assert code == 0, printed
    assert store.data("imported") == dataset_bytes(tmp_path / "d")


def test_training_takes_the_same_steps(remote, local, tmp_path, monkeypatch):
    monkeypatch.setitem(models.SIZES, "micro", models.ModelSize(32, 64, 2, 2, context=600))
    assert open_split(remote, "train").digest == open_split(str(local), "train").digest
    settings = TrainConfig(
        size="micro", steps=3, batch_tokens=600, micro_batch=1, num_threads=1, val_every=3, val_tokens=600, device="cpu"
    )
    losses = []
    for number, uri in enumerate((remote, str(local))):
        records: list[dict[str, Any]] = []
        train(settings, uri, tmp_path / str(number), use_ray=False, on_progress=records.append)
        losses.append([record["loss"] for record in records if "loss" in record])
    assert losses[0] == losses[1] != []


def test_browse(remote):
    browser = Browser(Dataset.existing(remote), str(TOKENIZER))
    browser.catalog.prepare()
    client = TestClient(browser.app(["127.0.0.1"]), base_url="http://127.0.0.1", raise_server_exceptions=False)
    page = client.get("/?split=train")
    assert page.status_code == 200
    assert "images-000000-000000" in page.text or "images-000000-000001" in page.text
    assert client.get("/sequence/images-000001-000002").status_code == 200


def test_an_endpoint_in_the_uri(store, run, photos, made, tmp_path, monkeypatch):
    """It leads there, workers too, and is in no key and no file."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = store.server.removeprefix("http://")
    query = f"?endpoint_override={host}&scheme=http&region=us-east-1"
    store.heal()
    assert ingest(config(photos), store.uri("query") + query, num_cpus=2, console=CONSOLE).complete
    assert run("dedup", "--dataset", store.uri("query") + query)[0] == 0
    assert run("dedup", "--dataset", store.uri("query") + query, "--against", store.uri("data") + query)[0] == 0
    view = store.uri("query-view") + query
    assert run("subset", "--dataset", store.uri("data") + query, "--split", "train", "--out", view)[0] == 0
    assert run("verify", "--dataset", view, "--deep")[0] == 0
    assert run("stats", "--dataset", view)[0] == 0
    assert store.requests == []  # which are those to AWS_ENDPOINT_URL
    files = {**store.objects("query/"), **store.objects("query-view/")}
    assert {"dedup/all.parquet", "dedup/all-against-data.parquet"} < set(files)
    for name, body in files.items():
        assert host.encode() not in body, name
        assert b"endpoint_override" not in body, name
        assert "?" not in name

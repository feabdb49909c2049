"""The demo's data by jobs of a cluster into S3: the local dataset's bytes, and every way of looking at it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from object_store import ObjectStore, object_store, run_uvd
from PIL import Image
from ray_cluster import RayCluster, ray_cluster
from rich.console import Console
from starlette.testclient import TestClient
from tests_support import dataset_bytes

from uvd.manifests import Dataset
from uvd.pipeline.browse.app import Browser
from uvd.pipeline.demo.inputs import lay_out
from uvd.pipeline.demo.photo_server import serve, write_urls
from uvd.pipeline.demo.run import source_configs

pytestmark = [pytest.mark.slow, pytest.mark.samples, pytest.mark.timeout(3000)]
ROOT = Path(__file__).parents[2]
DEADLINE_S = 1500
TRAINING = {"size": "atto", "context": 528, "batch_tokens": 528, "steps": 4, "warmup_steps": 1, "val_every": 4}


@dataclass(frozen=True)
class Made:
    """The demo's dataset, made twice.

    Attributes:
        remote: by two steps, as jobs, on S3.
        local: by `uvd build` on this machine.
        said: what each `make submit-…` printed.
    """

    store: ObjectStore
    remote: str
    local: Path
    said: dict[str, str]
    run: Path


def make(cluster: RayCluster, target: str, *arguments: str) -> str:
    # What is set up stays so: a test installs nothing.
    command = ["make", "-o", ".venv/.complete", f"submit-{target}", f"ADDRESS={cluster.address}"]
    command += ["SUBMIT=--shared-paths", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=cluster.environment(), capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, f"{target}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def build(config: Path, out: Path) -> None:
    command = [".venv/bin/uvd", "build", "--config", str(config), "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("demo")
    inputs = root / "inputs"
    lay_out(inputs, Console(quiet=True))
    # The cluster is started after the store: its workers find credentials in their environment, as on real nodes.
    with (
        object_store() as store,
        serve(inputs / "photos", inputs / "port.txt") as address,
        ray_cluster(2, 200 << 20) as cluster,
    ):
        write_urls(inputs / "photos", address, inputs / "laion" / "urls.parquet")
        configs = {config.source: config.model_dump(mode="json") for config in source_configs(inputs)}
        remote, said = store.uri("demo"), {}
        for source, content in configs.items():
            file = root / f"{source}.yaml"
            file.write_text(yaml.safe_dump(content))
            place = (f"CONFIG={file}", f"INPUT={content['input']}", f"DATASET={remote}")
            said[source] = make(cluster, source, *place)
        said["tokenize"] = make(cluster, "tokenize", f"DATASET={remote}", "ARGS=--device cpu")
        (root / "train.yaml").write_text(yaml.safe_dump(TRAINING))
        said["train"] = make(cluster, "train", f"DATASET={remote}", f"CONFIG={root}/train.yaml", f"RUN={root}/run")
        everything = {"tokenizer": "uvd-small", "sources": configs}
        (root / "build.yaml").write_text(yaml.safe_dump(everything))
        build(root / "build.yaml", root / "local")
        small = {"tokenizer": "uvd-small", "sources": {"video": configs["video"]}}
        (root / "small.yaml").write_text(yaml.safe_dump(small))
        said["build"] = make(cluster, "build", f"CONFIG={root}/small.yaml", f"DATASET={store.uri('built')}")
        yield Made(store, remote, root / "local", said, root / "run")


def data(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without logs of runs and the index, which are not data."""
    return {name: content for name, content in files.items() if name.startswith(("sequences/", "tokens/"))}


def test_jobs_into_s3_make_the_bytes_of_a_local_build(made: Made) -> None:
    here, there = data(dataset_bytes(made.local)), data(made.store.objects("demo/"))
    assert set(here) == set(there)
    assert [name for name in here if here[name] != there[name]] == []
    assert len(here) > 60
    fused = data(made.store.objects("built/"))
    assert len(fused) > 6
    assert {name: here[name] for name in fused} == fused
    assert made.store.open_uploads() == []


def test_each_target_follows_its_job_to_the_end(made: Made) -> None:
    for target, said in made.said.items():
        assert "shards committed" in said or target == "train", said
    assert (made.run / "model" / "config.json").is_file()


def test_it_is_sound_and_explains_itself(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said = run_uvd(capsys, "verify", "--dataset", made.remote, "--deep")
    assert code == 0, said
    code, said = run_uvd(capsys, "stats", "--dataset", made.remote, "--format", "json")
    assert code == 0, said
    found = json.loads(said)
    assert len(found["sources"]) == 7
    assert sum(row["images"] for row in found["sources"]) > 1000
    assert all(row["inputs"] == row["used"] + row["rejected"] for row in found["accounting"])
    code, said = run_uvd(capsys, "stats", "--dataset", made.remote, "--by", "source,role")
    assert code == 0, said
    assert "objaverse" in said
    code, said = run_uvd(capsys, "stats", "--dataset", made.remote, "--sql", "select count(*) n from sequences")
    assert code == 0, said
    card = tmp_path / "card.html"
    code, said = run_uvd(capsys, "stats", "--dataset", made.remote, "--format", "html", "--out", str(card))
    assert code == 0, said
    assert 100_000 < card.stat().st_size < 10_000_000


def test_duplicates_subsets_and_exports(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # The demo serves the photos of `images` over HTTP too, so each is there twice.
    for more, at_least in (("--exact", 20), ("--bits=3", 40)):
        code, said = run_uvd(capsys, "dedup", "--dataset", made.remote, more)
        assert code == 0, said
        name = "all-exact" if more == "--exact" else "all"
        assert made.store.objects(f"demo/dedup/{name}.parquet") != {}
        marked = int(said.split(" groups; ")[1].split(" images")[0].replace(",", ""))
        assert marked >= at_least, said
    view = str(tmp_path / "view")
    code, said = run_uvd(
        capsys, "subset", "--dataset", made.remote, "--where", "source = 'video'", "--out", made.store.uri("view")
    )
    assert code == 0, said
    code, said = run_uvd(capsys, "export", "--dataset", made.store.uri("view"), "--format", "numpy", "--out", view)
    assert code == 0, said
    key = "video-000000-000000"
    code, said = run_uvd(
        capsys, "show", key, "--dataset", made.remote, "--decoded", "--out", str(tmp_path / "sheet.png")
    )
    assert code == 0, said
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 20


def test_it_can_be_looked_through(made: Made) -> None:
    browser = Browser(Dataset.existing(made.remote), "uvd-small")
    browser.catalog.prepare()
    client = TestClient(browser.app(["127.0.0.1"]), base_url="http://127.0.0.1", raise_server_exceptions=False)
    page = client.get("/?source=objaverse")
    assert page.status_code == 200
    assert "objaverse-000000-000000" in page.text
    assert client.get("/sequence/video-000000-000000").status_code == 200

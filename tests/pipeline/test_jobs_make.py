"""Every `make submit-…` on a real cluster, from raw inputs to a trained model; and a job that reaches S3 by --env."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from annotated_support import object_mask, scene, write_picture
from object_store import SECRET, environment, object_store
from object_support import textured_glb, write
from ray_cluster import RayCluster, ray_cluster
from scenes_support import scenes
from tests_support import dataset_bytes, smooth_photo, write_photo
from video_support import write_clip

from uvd.manifests import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.demo.published_images import lay_out_coco

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests/data/muse-vqgan"
DEADLINE_S = 900
PHOTOS = 10
TRAINING = {"size": "atto", "context": 528, "batch_tokens": 528, "steps": 2, "warmup_steps": 1, "val_every": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("wheels"))


def run(command: list[str], **variables: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def photos(folder: Path) -> Path:
    for seed in range(PHOTOS):
        write_photo(folder / f"{seed}.jpg", seed)
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def laion(folder: Path) -> Path:
    """A tar as img2dataset writes it."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for key in range(PHOTOS):
            image = cv2.imencode(".jpg", smooth_photo(key))[1].tobytes()
            about = json.dumps({"url": f"http://e.org/{key}.jpg", "status": "success", "key": f"{key:09d}"}).encode()
            for ending, data in (("jpg", image), ("json", about)):
                info = tarfile.TarInfo(f"{key:09d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def video(folder: Path) -> Path:
    for number in range(2):
        write_clip(folder / f"{number}.mp4", frames=200)
    return folder


def annotated(folder: Path) -> Path:
    lay_out_coco(folder, scenes(4))
    return folder / "images"


def categories(folder: Path) -> Path:
    for seed in range(16):
        write_photo(folder / f"class-{seed % 2}" / f"{seed}.jpg", seed)
    return folder


def annotated_video(folder: Path) -> Path:
    for number in range(16):
        write_picture(folder / "clip/frames" / f"{number:03d}.jpg", scene(number))
        mask = object_mask(number, 0).astype(np.uint8) + 2 * object_mask(number, 1).astype(np.uint8)
        write_picture(folder / "clip/masks" / f"{number:03d}.png", mask)
    return folder


def objaverse(folder: Path) -> Path:
    for seed in range(2):
        write(folder / f"{seed}.glb", textured_glb(seed))
    return folder


INPUTS: dict[str, Callable[[Path], Path]] = {
    "images": photos,
    "laion": laion,
    "video": video,
    "annotated": annotated,
    "categories": categories,
    "annotated-video": annotated_video,
    "objaverse": objaverse,
}


def test_every_target_from_raw_inputs_to_a_trained_model(cluster, wheels, tmp_path):
    data, variables = tmp_path / "data", {**cluster.environment(), "UVD_WHEELS": wheels}

    def submit(target: str, *arguments: str) -> str:
        # What is set up stays so: a test installs nothing.
        made = ["make", "-o", ".venv/.complete", f"submit-{target}", f"ADDRESS={cluster.address}"]
        return run([*made, *arguments], **variables)

    for source, lay_out in INPUTS.items():
        more = "--set shard_size=2"
        if source == "annotated":
            more += f" --set annotations=[{tmp_path}/annotated/instances.json]"
        out = submit(source, f"DATASET={data}", f"INPUT={lay_out(tmp_path / source)}", f"ARGS={more}")
        assert f"sequences/{source}:" in out
        assert "shards committed" in out
    submit("tokenize", f"DATASET={data}", f"TOKENIZER={TOKENIZER}")
    found = verify(Dataset.existing(str(data)), deep=True)
    assert not found.findings

    (tmp_path / "train.yaml").write_text(yaml.safe_dump(TRAINING))
    submit("train", f"DATASET={data}", f"CONFIG={tmp_path}/train.yaml", f"RUN={tmp_path}/run")
    assert (tmp_path / "run/model/config.json").is_file()

    build = {"sources": {"images": {"config": str(ROOT / "configs/images.yaml"), "shard_size": 2}}}
    build["sources"]["images"]["input"] = str(tmp_path / "images")
    (tmp_path / "build.yaml").write_text(yaml.safe_dump({"tokenizer": str(TOKENIZER), **build}))
    submit("build", f"DATASET={tmp_path}/built", f"CONFIG={tmp_path}/build.yaml")
    assert not verify(Dataset.existing(f"{tmp_path}/built"), deep=True).findings

    # A job makes what a local run makes, to the byte.
    local = ["ingest", "images", "--config", "configs/images.yaml", "--out", f"{tmp_path}/local"]
    local += ["--set", f"input={tmp_path}/images", "--set", "shard_size=2"]
    run([sys.executable, "-m", "uvd.pipeline.cli", *local], **{**variables, "RAY_AUTH_MODE": "disabled"})
    here, there = dataset_bytes(tmp_path / "local"), dataset_bytes(data)
    compared = [name for name in here if name.startswith("sequences/images/")]
    assert len(compared) == 3 * 6
    assert {name: here[name] for name in compared} == {name: there[name] for name in compared}


def test_a_job_reads_and_writes_an_object_store_with_the_credentials_of_its_submitter(cluster, wheels, tmp_path):
    with object_store() as store:  # after the cluster, which therefore knows nothing of it
        for path in laion(tmp_path / "tars").iterdir():
            store.client.upload_file(str(path), store.bucket, f"tars/{path.name}")
        variables = {**cluster.environment(), "UVD_WHEELS": wheels}
        assert variables["AWS_SECRET_ACCESS_KEY"] == SECRET
        command = ["jobs", "submit", "--address", cluster.address]
        command += [word for name in environment(store) for word in ("--env", name)]
        command += ["--", "ingest", "laion", "--config", "configs/laion.yaml", "--out", store.uri("data")]
        command += ["--set", f"input={store.uri('tars')}", "--set", "shard_size=4"]
        out = run([sys.executable, "-m", "uvd.pipeline.cli", *command], **variables)
        assert "3 shards committed" in out
        assert len([name for name in store.objects("data/sequences/laion/") if name.endswith(".tar")]) == 3
    kept = [path for path in cluster.folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert {path.name for path in kept} <= {"uvd-environment.json"}

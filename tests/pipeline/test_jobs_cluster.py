"""Jobs on a real cluster of one node with a token: followed, refused twice, stopped, resumed; nothing told too much."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands_support import committed
from ray_cluster import RayCluster, ray_cluster
from tests_support import write_photo
from typer.testing import CliRunner

from uvd.manifests import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.cli import app
from uvd.pipeline.jobs.errors import JobRunningError
from uvd.sequences.errors import UserError

PHOTOS, SHARDS = 400, 40
DEADLINE_S = 120
SECRET = "open-sesame-1001"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as started:
        yield started


@pytest.fixture
def uvd(cluster, monkeypatch, tmp_path):
    """Runs `uvd` in this process as a user of the cluster; returns (exit code, standard output, standard error)."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token_path))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
    monkeypatch.setenv("UVD_WHEELS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UVD_TEST_SECRET", SECRET)

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, arguments)
        if isinstance(result.exception, UserError):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photos that take some seconds to read: links to four files of some megapixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        write_photo(tmp_path / f"{seed}.jpg", seed, 1500, 2000)
    for number in range(PHOTOS):
        os.link(tmp_path / f"{number % 4}.jpg", folder / f"{number:04d}.jpg")
    return folder


def record(uvd, job_id: str) -> dict:
    return next(job for job in json.loads(uvd("jobs", "list", "--format", "json")[1]) if job["id"] == job_id)


def test_a_job_is_refused_twice_then_stopped_then_resumed_to_the_end(uvd, cluster, photos, tmp_path):
    data = tmp_path / "data"
    command = ["ingest", "images", "--config", "configs/images.yaml", "--out", str(data), "--set", f"input={photos}"]
    command += ["--set", f"shard_size={PHOTOS // SHARDS}"]
    code, out, _ = uvd("jobs", "submit", "--no-follow", "--env", "UVD_TEST_SECRET", "--", *command)
    job_id = out.strip()
    assert code == 0
    assert job_id.startswith("uvd-ingest-images-")
    assert job_id.endswith("-1")
    with pytest.raises(JobRunningError, match=job_id):
        uvd("jobs", "submit", "--no-follow", "--", *command)

    deadline = time.monotonic() + DEADLINE_S
    while committed(data, "sequences") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert record(uvd, job_id)["state"] == "running"
    assert job_id in uvd("jobs", "top", "--once")[1]
    uvd("jobs", "stop", job_id)
    stopped = record(uvd, job_id)
    assert stopped["state"] == "stopped"
    assert 2 <= committed(data, "sequences") < SHARDS
    # It was asked, not killed: it says so itself.
    log = uvd("jobs", "logs", job_id)[1]
    assert f"of {SHARDS} shards committed" in log
    assert "The same command again goes on from there" in log
    assert "uvd 0" in log

    code, out, told = uvd("jobs", "resume", job_id)
    assert code == 0, out + told
    assert f"sequences/images: {SHARDS} shards committed" in out
    assert f"{job_id.removesuffix('-1')}-2 succeeded" in told
    assert not verify(Dataset.existing(str(data)), deep=True).findings
    assert not [path for path in data.rglob("*") if path.suffix in (".tmp", ".lease")]
    assert "nothing to resume" in uvd("jobs", "resume", f"{job_id.removesuffix('-1')}-2")[2]

    # What was passed by --env is in the file made for it, and nowhere else that Ray keeps.
    holders = [path for path in cluster.folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert {path.name for path in holders} == {"uvd-environment.json"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders)
    assert SECRET not in uvd("jobs", "list", "--format", "json")[1]


def test_the_exit_code_is_the_commands(uvd, photos, tmp_path):
    command = ["ingest", "images", "--config", "configs/images.yaml", "--out", str(tmp_path / "d"), "--set", "shard=4"]
    code, out, told = uvd("jobs", "submit", "--", *command)
    assert code == 2
    assert "did you mean 'shard_size'?" in out
    assert "failed (exit code 2)" in told
    assert not (tmp_path / "d").exists()

"""`uvd ingest laion` against a real server, killed in the middle: the same bytes, and every row accounted for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands_support import finished, finished_despite_kills, killed_and_run_again, uvd
from tests_support import dataset_bytes, write_photo

from uvd.benchmarks.photo_host import url
from uvd.manifests.dataset import Dataset
from uvd.manifests.stats import statistics
from uvd.manifests.verify import verify

PORT = 18_742
ROWS = 240
CONFIG = """
source: laion
dataset: killed
input: {urls}
shard_size: 20
fetch: {{allow_private_hosts: true, retries: 0}}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laion")
    for seed in range(24):
        write_photo(folder / "photos" / f"{seed:02d}.jpg", seed, 1200, 1600)
    pq.write_table(pa.table({"url": [url(number, PORT) for number in range(ROWS)]}), folder / "urls.parquet")
    (folder / "laion.yaml").write_text(CONFIG.format(urls=folder / "urls.parquet"))
    host = [sys.executable, "-m", "uvd.benchmarks.photo_host", str(folder / "photos"), str(PORT)]
    with subprocess.Popen(host, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        yield folder / "laion.yaml"
        server.terminate()


def ingest(config: Path, out: Path, *more: str) -> subprocess.Popen:
    return uvd("ingest", "laion", "--config", str(config), "--out", str(out), *more)


@pytest.fixture(scope="module")
def calm(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calm") / "dataset"
    finished(ingest(config, out, "--num-cpus", "1"))
    return out


def test_every_row_is_used_or_rejected(calm):
    (row,) = statistics(Dataset.existing(str(calm)))["accounting"]
    assert row["inputs"] == ROWS == row["used"] + row["rejected"]
    assert row["rejected"] >= sum(number % 33 == 7 for number in range(ROWS))  # the 404s, and photos that repeat
    assert verify(Dataset.existing(str(calm)), deep=True).problems == []


@pytest.mark.parametrize("seed", [1, 2])
def test_killing_the_driver_costs_nothing(config, calm, tmp_path, seed):
    killed_and_run_again(lambda: ingest(config, tmp_path / "d"), tmp_path / "d", seed, 8)
    assert dataset_bytes(tmp_path / "d") == dataset_bytes(calm)


def test_killing_workers_costs_nothing(config, calm, tmp_path):
    out = tmp_path / "d"
    assert finished_despite_kills(ingest(config, out), 0.15)
    assert dataset_bytes(out) == dataset_bytes(calm)

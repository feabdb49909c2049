"""`uvd ingest objaverse` killed in the middle: the same bytes, nothing lost, and no process that draws left behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest
from commands_support import finished, finished_despite_kills, killed_and_run_again, uvd
from object_support import OBJ, textured_glb, write, zipped
from tests_support import dataset_bytes

from uvd.manifests.dataset import Dataset
from uvd.manifests.stats import statistics
from uvd.manifests.verify import verify

OBJECTS = 8
CONFIG = """
source: objaverse
dataset: killed
input: {objects}
shard_size: 3
roles: [view, depth]
views: 17
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objaverse")
    for number in range(OBJECTS):
        write(folder / "objects" / f"{number:02d}.glb", textured_glb(number))
    write(folder / "objects" / "05.zip", zipped({"scene.glb": textured_glb(5), "readme.txt": b""}))
    write(folder / "objects" / "03.glb", textured_glb(3)[:3000])
    write(folder / "objects" / "07.obj", OBJ.replace("1 0 0", "nan 0 0"))
    rows = [f"{number:02d}.glb" for number in range(OBJECTS)] + ["05.zip", "07.obj", "gone.glb"]
    write(folder / "objects" / "list.json", json.dumps(rows))
    write(folder / "objaverse.yaml", CONFIG.format(objects=folder / "objects" / "list.json"))
    return folder / "objaverse.yaml"


def ingest(config: Path, out: Path, *more: str) -> subprocess.Popen:
    return uvd("ingest", "objaverse", "--config", str(config), "--out", str(out), *more)


@pytest.fixture(scope="module")
def calm(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calm") / "dataset"
    finished(ingest(config, out))
    return out


def test_every_object_is_used_or_rejected(calm):
    (row,) = statistics(Dataset.existing(str(calm)))["accounting"]
    assert (row["inputs"], row["used"], row["rejected"]) == (OBJECTS + 3, OBJECTS, 3)
    assert verify(Dataset.existing(str(calm)), deep=True).problems == []


@pytest.mark.parametrize("seed", [1, 2])
def test_killing_the_driver_costs_nothing(config, calm, tmp_path, seed):
    killed_and_run_again(lambda: ingest(config, tmp_path / "d"), tmp_path / "d", seed, 4)
    assert dataset_bytes(tmp_path / "d") == dataset_bytes(calm)


def test_killing_workers_costs_nothing_and_leaves_no_process(config, calm, tmp_path):
    out = tmp_path / "d"
    assert finished_despite_kills(ingest(config, out, "--num-cpus", "1"), 0.3)
    assert dataset_bytes(out) == dataset_bytes(calm)
    assert orphaned_renderers() == []


def orphaned_renderers() -> list[psutil.Process]:
    handler = "uvd.renderers.multiview_worker:render_file"
    found = psutil.process_iter(["cmdline", "ppid"])
    return [process for process in found if handler in (process.info["cmdline"] or []) and process.info["ppid"] == 1]

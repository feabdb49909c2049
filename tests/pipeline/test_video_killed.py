"""`uvd ingest video` killed in the middle: the same bytes, nothing lost, and no decoder left behind."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from commands_support import committed, finished, kill_worker, uvd, wait_for
from tests_support import dataset_bytes
from video_support import write_clip

from uvd.manifests.dataset import Dataset
from uvd.manifests.stats import statistics
from uvd.manifests.verify import verify

SIZE = (1280, 720)
CLIPS = (
    ("a.mp4", "libx264"),
    ("b.webm", "libvpx-vp9"),
    ("c.avi", "mpeg4"),
    ("d.mkv", "libx265"),
    ("e.mov", "libx264"),
    ("f.mp4", "libx264"),
)
CONFIG = """
source: video
dataset: killed
input: {clips}
shard_size: 1
strides: [2, 5]
min_frames: 8
resize: random_crop
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    (folder / "clips").mkdir()
    for name, codec in CLIPS:
        write_clip(folder / "clips" / name, 120, codec, size=SIZE)
    (folder / "clips" / "broken.mp4").write_bytes((folder / "clips/a.mp4").read_bytes()[:5000])
    (folder / "video.yaml").write_text(CONFIG.format(clips=folder / "clips"))
    return folder / "video.yaml"


def ingest(config: Path, out: Path, *more: str) -> subprocess.Popen:
    return uvd("ingest", "video", "--config", str(config), "--out", str(out), *more)


@pytest.fixture(scope="module")
def calm(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calm") / "dataset"
    finished(ingest(config, out, "--num-cpus", "1"))
    return out


def test_every_clip_is_used_or_rejected(calm):
    (row,) = statistics(Dataset.existing(str(calm)))["accounting"]
    assert (row["inputs"], row["used"], row["rejected"]) == (len(CLIPS) + 1, len(CLIPS), 1)
    assert verify(Dataset.existing(str(calm)), deep=True).problems == []


@pytest.mark.parametrize("seed", [1, 2])
def test_killing_the_driver_costs_nothing(config, calm, tmp_path, seed):
    out, rng = tmp_path / "d", random.Random(seed)
    process = ingest(config, out)
    target = rng.randrange(1, 5)
    wait_for(process, lambda: committed(out, "sequences") >= target)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished(ingest(config, out))
    assert dataset_bytes(out) == dataset_bytes(calm)


def test_killing_workers_costs_nothing_and_leaves_no_decoder(config, calm, tmp_path):
    out, killed = tmp_path / "d", 0
    process = ingest(config, out, "--num-cpus", "1")
    while process.poll() is None and killed < 3:
        time.sleep(0.3)
        killed += kill_worker(process, "make_shard")
    finished(process)
    assert killed
    assert dataset_bytes(out) == dataset_bytes(calm)
    assert [
        p for p in psutil.process_iter(["cmdline"]) if "uvd.sources.video_child:handle" in (p.info["cmdline"] or [])
    ] == []

"""`uvd ingest video` killed in the middle: the same bytes, nothing lost, and no decoder left behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest
from commands_support import finished, finished_despite_kills, killed_and_run_again, uvd
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
    killed_and_run_again(lambda: ingest(config, tmp_path / "d"), tmp_path / "d", seed, 5)
    assert dataset_bytes(tmp_path / "d") == dataset_bytes(calm)


def test_killing_workers_costs_nothing_and_leaves_no_decoder(config, calm, tmp_path):
    out = tmp_path / "d"
    assert finished_despite_kills(ingest(config, out, "--num-cpus", "1"), 0.3)
    assert dataset_bytes(out) == dataset_bytes(calm)
    assert orphaned_decoders() == []


def orphaned_decoders() -> list[psutil.Process]:
    handler = "uvd.sources.video_child:handle"
    found = psutil.process_iter(["cmdline", "ppid"])
    return [process for process in found if handler in (process.info["cmdline"] or []) and process.info["ppid"] == 1]

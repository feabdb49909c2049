"""Exactly once: whatever is killed whenever, the same command again gives the same bytes and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from commands_support import committed, finished, kill_worker, uvd, wait_for
from tests_support import dataset_bytes, write_photo

from uvd.manifests import Dataset
from uvd.manifests.verify import verify

TOKENIZER = Path(__file__).parents[1] / "data" / "muse-vqgan"
CONFIG = """
source: images
dataset: photos
input: {photos}
shard_size: 2
derive: [grey]
resize: random_crop
layouts: {{pairs: 1}}
holdout: {{val: 0.2}}
"""


class Commands:
    """The two commands under test, on one set of inputs."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "images.yaml"
        self.config.write_text(CONFIG.format(photos=folder / "photos"))

    def ingest(self, out: Path, *more: str) -> subprocess.Popen:
        return uvd("ingest", "images", "--config", str(self.config), "--out", str(out), *more)

    def tokenize(self, out: Path, *more: str) -> subprocess.Popen:
        return uvd("tokenize", "--dataset", str(out), "--tokenizer", str(TOKENIZER), "--device", "cpu", *more)


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Commands:
    folder = tmp_path_factory.mktemp("inputs")
    for seed in range(13):
        # Large, so that a shard takes long enough to be killed in its middle.
        write_photo(folder / "photos" / f"{seed:02d}.jpg", seed, 2400, 3000)
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    return Commands(folder)


@pytest.fixture(scope="module")
def calm(commands, tmp_path_factory) -> Path:
    """A dataset whose making nothing disturbed, on one CPU."""
    out = tmp_path_factory.mktemp("calm") / "dataset"
    finished(commands.ingest(out, "--num-cpus", "1"))
    finished(commands.tokenize(out, "--num-cpus", "1"))
    return out


def assert_same(out: Path, calm: Path, sections: tuple[str, ...] = ("sequences", "tokens")) -> None:
    def part(root: Path) -> dict[str, bytes]:
        return {name: data for name, data in dataset_bytes(root).items() if name.split("/")[0] in sections}

    assert part(out).keys() == part(calm).keys()  # no gap, no leftover, no temporary file
    assert part(out) == part(calm)


def test_workers_and_repetition_do_not_change_a_byte(commands, calm, tmp_path):
    finished(commands.ingest(tmp_path / "d", "--num-cpus", "2"))
    finished(commands.tokenize(tmp_path / "d", "--num-cpus", "2"))
    assert dataset_bytes(tmp_path / "d") == dataset_bytes(calm)
    assert verify(Dataset.existing(str(calm)), deep=True).problems == []


def test_a_second_run_does_nothing_and_says_so(commands, calm):
    before = dataset_bytes(calm)
    assert "nothing to do" in finished(commands.ingest(calm))
    assert "nothing to do" in finished(commands.tokenize(calm))
    assert dataset_bytes(calm) == before


def test_a_changed_config_is_refused_and_explained(commands, calm):
    before = dataset_bytes(calm)
    output = finished(commands.ingest(calm, "--set", "resize=stretch"), code=2)
    assert "config.resize: 'random_crop' → 'stretch'" in output
    assert "--overwrite" in output
    assert dataset_bytes(calm) == before


def test_changed_inputs_are_refused(commands, calm, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(commands.config.parent / "photos", photos)
    (photos / "12.jpg").unlink()
    output = finished(commands.ingest(calm, "--set", f"input={photos}"), code=2)
    assert "other inputs" in output


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_killing_the_driver_at_random_moments(commands, calm, tmp_path, seed):
    out, rng = tmp_path / "d", random.Random(seed)
    for command, section in ((commands.ingest, "sequences"), (commands.tokenize, "tokens")):
        process = command(out)
        target = rng.randrange(1, 5)
        wait_for(process, lambda section=section, target=target: committed(out, section) >= target)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        finished(command(out))
    assert_same(out, calm)


def test_killing_workers_costs_nothing(commands, calm, tmp_path):
    out, rng, killed = tmp_path / "d", random.Random(3), 0
    process = commands.ingest(out, "--num-cpus", "1")
    while process.poll() is None and killed < 3:
        time.sleep(rng.uniform(0.05, 0.3))
        killed += kill_worker(process, "make_shard")
    finished(process)
    assert killed
    assert_same(out, calm, ("sequences",))


def test_killing_the_tokenizing_actor_costs_nothing(commands, calm, tmp_path):
    out = tmp_path / "d"
    shutil.copytree(calm, out)
    shutil.rmtree(out / "tokens")
    process, killed = commands.tokenize(out, "--num-cpus", "1"), 0
    while process.poll() is None and killed < 2:
        time.sleep(0.2)
        killed += kill_worker(process, "TokenizeActor.run")
    finished(process)
    assert killed
    assert_same(out, calm)


def test_a_signal_stops_cleanly_and_says_how_to_go_on(commands, calm, tmp_path):
    out = tmp_path / "d"
    process = commands.ingest(out, "--num-cpus", "1")
    wait_for(process, lambda: committed(out, "sequences") >= 1)
    process.send_signal(signal.SIGTERM)
    output = finished(process, code=3)
    assert "same command again goes on" in output
    assert not [name for name in dataset_bytes(out) if name.endswith(".tmp")]
    finished(commands.ingest(out))
    assert_same(out, calm, ("sequences",))


@pytest.mark.slow
def test_nothing_of_ray_outlives_a_killed_driver(commands, tmp_path):
    process = commands.ingest(tmp_path / "d")
    wait_for(process, lambda: committed(tmp_path / "d", "sequences") >= 1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=180)
    assert alive == []

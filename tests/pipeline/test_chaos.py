"""The failure campaign's short form: seeded kills on a Ray cluster of several nodes, and that its checks can fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests_support import dataset_bytes

from uvd.benchmarks.chaos.campaign import Campaign, Outcome, campaign
from uvd.benchmarks.chaos.check import check
from uvd.benchmarks.chaos.cluster import Cluster
from uvd.benchmarks.chaos.faults import FAULTS
from uvd.benchmarks.chaos.report import BEGIN, END, table, write_page
from uvd.manifests import lease

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with campaign(("video",), tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.fixture(scope="module")
def calm(prepared) -> Path:
    return prepared.workloads["video"].calm


@pytest.mark.parametrize(("fault", "seed", "codes"), [("worker", 1, [0]), ("raylet", 2, [0]), ("driver", 3, [KILLED])])
def test_a_kill_costs_nothing(prepared: Campaign, fault, seed, codes):
    for again in range(6):  # on a fast machine a run may be over before its fault comes: then another one is drawn
        outcome = prepared.run(seed + 100 * again, FAULTS[fault], "video")
        assert outcome.problems == []
        assert outcome.identical
        if outcome.struck:
            break
    assert outcome.struck
    assert outcome.codes[:1] == codes


@pytest.mark.slow
@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in ("worker", "raylet", "driver")])
def test_every_fault_costs_nothing(prepared: Campaign, fault):
    if not FAULTS[fault].possible():
        pytest.skip(f"{fault} is not possible on this machine")
    outcome = prepared.run(4, FAULTS[fault], "video")
    assert outcome.problems == []


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda root: (root / "sequences/video/000003.tar").write_bytes(b"other"), "different"),
        (lambda root: (root / "sequences/video/000003.parquet").unlink(), "different"),
        (lambda root: (root / "sequences/video/.000003.tar.0123456789ab.tmp").write_bytes(b""), "leftovers"),
        (lambda root: _leave_a_lease(root), "leftovers"),
        (lambda root: (root / "sequences/video/000099.tar").write_bytes(b""), "leftovers"),
        (lambda root: _lose_a_reject(root), "unaccounted"),
    ],
    ids=["changed", "missing", "temporary", "lease", "stray", "unaccounted"],
)
def test_the_check_sees(calm, tmp_path, damage, found):
    shutil.copytree(calm, tmp_path / "dataset")
    assert check(tmp_path / "dataset", calm).good
    damage(tmp_path / "dataset")
    assert getattr(check(tmp_path / "dataset", calm), found)


def _leave_a_lease(root: Path) -> None:
    """A claim of a process of this machine that is dead."""
    claim = root / "runs" / "writing.sequences.video.0123456789ab.lease"
    claim.write_text(json.dumps({"boot": lease._boot(), "pid": 1}))


def _lose_a_reject(root: Path) -> None:
    """A manifest that says of one input less that it was rejected."""
    for path in sorted((root / "sequences/video").glob("[0-9]*.parquet")):
        manifest = pq.read_table(path) if "rejects" not in path.name else None
        if manifest is not None and b'"rejected":1' in manifest.schema.metadata[b"uvd"]:
            about = manifest.schema.metadata[b"uvd"].replace(b'"rejected":1', b'"rejected":0')
            pq.write_table(manifest.replace_schema_metadata({b"uvd": about}), path)
            return


def test_the_table_has_a_row_for_every_fault_and_goes_between_its_markers(tmp_path):
    good = Outcome(0, "worker", "photos", struck=1, codes=[0], tries=1, seconds=9.0, identical=True)
    bad = Outcome(1, "driver", "video", struck=1, codes=[KILLED], tries=1, leftovers=2, problems=["leftovers"])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page([good, bad], page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "**1 of 2 runs good.**" in text
    lines = {line.split("|")[1].strip(): line.split("|")[3:] for line in table([good, bad]).split("\n") if "|" in line}
    assert [cell.strip() for cell in lines["worker"][:6]] == ["1", "1", "1", "0", "0", "0"]
    assert [cell.strip() for cell in lines["driver"][:6]] == ["1", "1", "0", "2", "0", "1"]
    assert FAULTS.keys() < lines.keys()


@pytest.mark.slow
def test_a_killed_campaign_leaves_no_process(tmp_path):
    code = (
        "import sys, time\n"
        "from uvd.benchmarks.chaos.cluster import Cluster\n"
        "cluster = Cluster()\n"
        "cluster.start(1)\n"
        "print(cluster.folder, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    folder = ""
    try:
        assert parent.stdout is not None
        folder = parent.stdout.readline().strip()
        assert _mentioning(folder)
        parent.kill()
        end = time.monotonic() + 60
        while _mentioning(folder) and time.monotonic() < end:
            time.sleep(0.5)
        assert _mentioning(folder) == []
    finally:
        parent.kill()
        parent.communicate(timeout=30)
        for pid in _mentioning(folder) if folder else []:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _mentioning(folder: str) -> list[int]:
    """Processes whose command names this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if folder.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_a_build_may_begin_before_any_node_has_come(prepared: Campaign, calm, tmp_path):
    config = tmp_path / "build.yaml"
    config.write_text(f"tokenizer: {{name: uvd-small, device: cpu}}\nsources: {{video: {calm.parent}/video.yaml}}\n")
    out = tmp_path / "dataset"
    command = [sys.executable, "-m", "uvd.pipeline.cli", "build", "--config", str(config), "--out", str(out)]
    with Cluster() as cluster:
        cluster.start(0)
        environment = {**os.environ, **cluster.environment}
        driver = subprocess.Popen([*command, "--address", cluster.address], env=environment)
        try:
            time.sleep(8)
            cluster.add_node()
            assert driver.wait(timeout=200) == 0
        finally:
            driver.kill()
            driver.wait(timeout=30)
    same = dataset_bytes(calm)
    made = {name: data for name, data in dataset_bytes(out).items() if name in same and name != "dataset.json"}
    assert made == {name: data for name, data in same.items() if name != "dataset.json"}


@pytest.mark.slow
def test_nodes_have_their_own_resources_and_die_alone():
    with Cluster() as cluster:
        cluster.start(1)
        other = cluster.add_node()
        cluster.nodes[0].kill()
        assert [node is other for node in cluster.living()] == [True]
        cluster.restore(2)
        assert len(cluster.living()) == 2

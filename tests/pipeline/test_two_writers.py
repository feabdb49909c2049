"""Two runs on one dataset: the second refuses and names the first, or waits; the dead never block for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from commands_support import committed, finished, uvd, wait_for
from pyarrow import fs
from tests_support import dataset_bytes, write_photo

from uvd.manifests import Dataset, lease
from uvd.manifests.lease import FolderHeldError, LeaseLostError, hold, writers
from uvd.manifests.storage import Storage
from uvd.pipeline.runlog import RunLog

HOLDER = """
import sys, time
from uvd.manifests.lease import hold, FolderHeldError
from uvd.manifests.storage import Storage
root, folder, seconds, wait = sys.argv[1:]
begun = time.monotonic()
while True:
    try:
        with hold(Storage(root), [folder], wait=wait == "wait"):
            print("held", time.monotonic(), flush=True)
            time.sleep(float(seconds))
            print("leaving", time.monotonic(), flush=True)
        break
    except FolderHeldError as error:
        print("refused", error, flush=True)
        break
"""


class ObjectStore(Storage):
    """A folder seen as an object store is: no rename, no locks; files are put whole and listed."""

    def __init__(self, root: Path) -> None:
        self.uri, self.local_root = f"store://{root}", None
        root.mkdir(parents=True, exist_ok=True)
        (root / lease.FOLDER).mkdir(exist_ok=True)
        self.filesystem, self._root = fs.LocalFileSystem(), str(root)


def holder(root: Path, folder: str = "sequences/a", seconds: float = 60, wait: str = "refuse") -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(root), folder, str(seconds), wait]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def claims(root: Path) -> list[str]:
    return sorted(path.name for path in (root / lease.FOLDER).iterdir())


@pytest.fixture
def short(monkeypatch):
    """Leases of three seconds: long enough for a thread that a busy machine lets wait."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "LEASE_S", 3.0)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path):
    first = holder(tmp_path)
    try:
        assert said(first).startswith("held")
        told = pytest.raises(FolderHeldError, match=rf"writes sequences/a .*process {first.pid} on .*--wait")
        with told, hold(Storage(str(tmp_path)), ["sequences/a"]):
            pass
        (seen,), dead = writers(Storage(str(tmp_path)))
        assert (seen.pid, seen.folder, seen.held, dead) == (first.pid, "sequences.a", True, [])
        with hold(Storage(str(tmp_path)), ["sequences/b", "tokens/t/a"]):
            pass  # other folders are free
    finally:
        first.kill()
        first.wait()


def test_a_killed_holder_on_this_machine_is_taken_over_at_once(tmp_path):
    first = holder(tmp_path)
    assert said(first).startswith("held")
    first.kill()
    first.wait()
    assert writers(Storage(str(tmp_path))) == ([], [f"{lease.FOLDER}/{claims(tmp_path)[0]}"])
    with hold(Storage(str(tmp_path)), ["sequences/a"]):
        assert len(claims(tmp_path)) == 1
    assert claims(tmp_path) == []


def test_a_stopped_holder_keeps_its_folder(tmp_path):
    first = holder(tmp_path)
    try:
        assert said(first).startswith("held")
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(FolderHeldError), hold(Storage(str(tmp_path)), ["sequences/a"]):
            pass
    finally:
        first.kill()
        first.wait()


def test_racing_processes_never_hold_at_the_same_time(tmp_path):
    racers = [holder(tmp_path, seconds=0.3, wait="wait") for _ in range(4)]
    lines = [process.communicate(timeout=60)[0].split("\n") for process in racers]
    spans = sorted((float(held.split()[1]), float(left.split()[1])) for held, left, *_ in lines)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert claims(tmp_path) == []


def test_of_racing_processes_that_do_not_wait_one_wins(tmp_path):
    racers = [holder(tmp_path, seconds=4) for _ in range(3)]
    lines = sorted(process.communicate(timeout=60)[0].split()[0] for process in racers)
    assert lines == ["held", "refused", "refused"]


def test_waiting_ends_when_the_holder_does(tmp_path):
    first, told = holder(tmp_path, seconds=1.5), []
    assert said(first).startswith("held")
    with hold(Storage(str(tmp_path)), ["sequences/a"], wait=True, say=told.append):
        assert first.wait(timeout=10) == 0
    assert told[0].startswith(f"sequences/a: waiting for process {first.pid} on ")


def test_on_an_object_store_a_live_holder_is_seen_to_live(tmp_path, short):
    with hold(ObjectStore(tmp_path), ["sequences/a"]):
        for _ in range(2):
            told = pytest.raises(FolderHeldError, match=f"process {os.getpid()}")
            with told, hold(ObjectStore(tmp_path), ["sequences/a"]):
                pass
        time.sleep(1.5 * lease.LEASE_S)  # it is renewed for as long as it is held
        with pytest.raises(FolderHeldError), hold(ObjectStore(tmp_path), ["sequences/a"]):
            pass
    assert claims(tmp_path) == []


def test_on_an_object_store_a_dead_holder_blocks_no_longer_than_its_lease(tmp_path, short):
    dead = lease._Claim(ObjectStore(tmp_path), "sequences/a")
    dead.put(held=True)
    start, told = time.monotonic(), []
    with hold(ObjectStore(tmp_path), ["sequences/a"], say=told.append):
        assert time.monotonic() - start >= lease.LEASE_S
        assert len(claims(tmp_path)) == 1
    assert "whether it lives: process" in told[0]


def test_on_an_object_store_the_dead_are_told_from_those_who_write(tmp_path, short):
    dead = lease._Claim(ObjectStore(tmp_path), "sequences/a")
    dead.put(held=True)
    living = lease._Claim(ObjectStore(tmp_path), "sequences/b")
    living.put(held=True)
    lease._MINE.clear()  # as another process sees them
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease.BEAT_S):
            living.put(held=True)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        alive, left = writers(ObjectStore(tmp_path))
    finally:
        ended.set()
        thread.join()
    assert ([holder.folder for holder in alive], left) == (["sequences.b"], [dead.path])


def test_on_an_object_store_threads_never_hold_at_the_same_time(tmp_path, short):
    inside, most, lock = [0], [0], threading.Lock()

    def run() -> None:
        for _ in range(3):
            with hold(ObjectStore(tmp_path), ["sequences/a"], wait=True):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0.02)
                with lock:
                    inside[0] -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (inside, most, claims(tmp_path)) == ([0], [1], [])


def test_a_lost_lease_stops_the_run(tmp_path, short):
    stopped = threading.Event()

    def run() -> None:
        with hold(ObjectStore(tmp_path), ["sequences/a"]) as held:
            held.call_when_lost(stopped.set)
            for name in claims(tmp_path):  # as another run does that has watched it for long enough
                (tmp_path / lease.FOLDER / name).unlink()
            assert stopped.wait(10)

    with pytest.raises(LeaseLostError, match="same command again"):
        run()


def test_a_claim_that_says_nothing_is_not_dead_at_first_sight(tmp_path, short):
    (tmp_path / lease.FOLDER).mkdir()
    (tmp_path / lease.FOLDER / "writing.sequences.a.0123456789ab.lease").write_bytes(b"")
    start = time.monotonic()
    with hold(Storage(str(tmp_path)), ["sequences/a"]):
        assert time.monotonic() - start >= lease.LEASE_S


def test_dataset_json_loses_no_entry_on_an_object_store(tmp_path, short):
    names = [f"source-{number}" for number in range(6)]

    def declare(name: str) -> None:
        dataset = Dataset(str(tmp_path))
        dataset.storage = ObjectStore(tmp_path)
        dataset.declare("sequences", name, {"fingerprint": name})

    threads = [threading.Thread(target=declare, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Dataset(str(tmp_path)).sources() == names


def test_a_command_names_no_password(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["uvd", "ingest", "--out", "s3://key:secret@bucket/d"])
    with hold(Storage(str(tmp_path)), ["sequences/a"]):
        (name,) = claims(tmp_path)
        text = (tmp_path / lease.FOLDER / name).read_text()
    assert "secret" not in text
    assert "bucket" in text


def test_a_run_log_that_would_hold_a_password_holds_no_settings(tmp_path):
    for number, place in enumerate(("s3://key:secret@bucket/lists", "s3://bucket/lists")):
        RunLog(Storage(str(tmp_path)), "ingest", f"a{number}", {"input": place}).close()
    first, second = (path.read_text() for path in sorted((tmp_path / lease.FOLDER).glob("*.jsonl"), key=str))
    assert "secret" not in first + second
    assert '"settings": {"input": "s3://bucket/lists"}' in second


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "photos"
    for seed in range(12):
        write_photo(folder / f"{seed:02d}.jpg", seed, 2000, 2600)
    (folder.parent / "images.yaml").write_text(f"source: images\ndataset: p\ninput: {folder}\nshard_size: 2\n")
    return folder


def test_two_runs_of_the_command(photos, tmp_path):
    """The second refuses with code 1, another waits; the dataset is that of one run alone, and no claim is left."""
    config, out = photos.parent / "images.yaml", tmp_path / "d"

    def ingest(to: Path, *more: str) -> subprocess.Popen:
        return uvd("ingest", "images", "--config", str(config), "--out", str(to), "--num-cpus", "1", *more)

    first = ingest(out)
    wait_for(first, lambda: committed(out, "sequences") >= 1)
    output = finished(ingest(out), code=1)
    assert f"process {first.pid}" in output
    assert "another run writes sequences/images" in output
    waiting = ingest(out, "--wait")
    finished(first)
    assert "nothing to do" in finished(waiting)
    finished(ingest(tmp_path / "alone"))
    assert dataset_bytes(out) == dataset_bytes(tmp_path / "alone")
    assert not [path for path in (out / "runs").iterdir() if path.suffix == ".lease"]

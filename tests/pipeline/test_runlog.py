"""A run log that cannot be written ends no run, unless it is its first line."""

from __future__ import annotations

import errno
import json

import pytest

from uvd.manifests.storage import Storage
from uvd.pipeline import cli
from uvd.pipeline.runlog import RunLog


def full_disk() -> object:
    return open("/dev/full", "wb", buffering=0)


def test_what_could_not_be_written_comes_when_there_is_room_again(tmp_path):
    log = RunLog(Storage(str(tmp_path)), "ingest", "photos")
    file, log._file = log._file, full_disk()
    log.event("shard", shard=1)
    log._file.close()
    log._file = file
    log.event("shard", shard=2)
    log.close(shards=2)
    events = [json.loads(line) for line in (tmp_path / log.path).read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "shard", "shard", "end"]
    assert [event.get("shard") for event in events] == [None, 1, 2, None]


def test_an_incomplete_log_is_told(tmp_path, capsys):
    log = RunLog(Storage(str(tmp_path)), "ingest", "photos")
    log._file.close()
    log._file = full_disk()
    log.close()
    assert "could not be written to its end: [Errno 28]" in capsys.readouterr().err


def test_without_its_first_line_nothing_begins(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: full_disk())
    with pytest.raises(OSError, match="No space left"):
        RunLog(Storage(str(tmp_path)), "ingest", "photos")


def test_an_aborted_file_leaves_nothing_on_a_full_disk(tmp_path):
    pending = Storage(str(tmp_path)).create("a.tar")
    pending.stream.close()
    pending.stream = open("/dev/full", "wb")  # noqa: SIM115 - abort closes it
    pending.stream.write(b"not written yet")
    pending.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message(monkeypatch, capsys):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/runs/log")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("uvd: [Errno 28] No space left on device: '/data/runs/log'. When that")

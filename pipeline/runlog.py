"""Run logs: `runs/<time>-<stage>-<name>.jsonl`, one event a line: when, where and how long. Never part of the data.

On an object store, which knows no appending, that file holds the first event, and `….jsonl.00001`, `….jsonl.00002`, …
hold the others; `manifests.runs` reads them as one.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from typing import Any

from rich.console import Console

from uvd import __version__
from uvd.manifests.runs import FOLDER, part
from uvd.manifests.storage import Storage
from uvd.sequences.object_stores import CREDENTIALS

PART_LINES, PART_S = 10_000, 300.0
"""On an object store a part is put after so many lines or seconds: 4 MB each, and 160 for 1.6 million shards."""


class RunLog:
    """Writes events as they happen on a local dataset; on an object store in parts, so that few are held at a time.

    Its first line says how the run was called, which a repair looks up: it must be there if the run is killed. A later
    line that cannot be written ends no run: it comes with the next.

    Raises:
        OSError: if the first line cannot be written.
    """

    def __init__(self, storage: Storage, stage: str, name: str, settings: Mapping[str, Any] | None = None) -> None:
        self._storage = storage
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.path = f"{FOLDER}/{started}-{stage}-{name.replace('/', '-')}-{os.getpid()}.jsonl"
        self._waiting, self._lines = bytearray(), 0  # lines since the last attempt to write
        self._parts, self._next_part = 0, 0.0
        self._file: FileIO | None = None
        if storage.local_root is not None:
            (storage.local_root / FOLDER).mkdir(parents=True, exist_ok=True)
            self._file = (storage.local_root / self.path).open("ab", buffering=0)
        about: dict[str, Any] = {"settings": dict(settings)} if settings else {}
        if CREDENTIALS.search(json.dumps(about)):
            about = {}  # a log is no place for passwords
        self._add("start", stage=stage, name=name, host=socket.gethostname(), uvd_version=__version__, **about)
        self._write()

    def event(self, event: str, **values: Any) -> None:
        """Adds a line."""
        self._add(event, **values)
        if self._file is not None or self._lines >= PART_LINES or time.monotonic() >= self._next_part:
            with suppress(OSError):
                self._write()

    def close(self, **summary: Any) -> None:
        """Adds the `end` event; says on standard error if the log stays incomplete."""
        self._add("end", **summary)
        try:
            self._write()
        except OSError as error:
            message = f"the run's log {self.path} could not be written to its end: {error}"
            Console(stderr=True).print(message, style="yellow", markup=False, soft_wrap=True)
        if self._file is not None:
            self._file.close()

    def _add(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, sort_keys=True)
        self._waiting += line.encode() + b"\n"
        self._lines += 1

    def _write(self) -> None:
        """Writes what waits; what could not be written goes on waiting."""
        self._lines = 0
        if self._file is not None:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        else:
            self._next_part = time.monotonic() + PART_S
            self._storage.put(part(self.path, self._parts), bytes(self._waiting))
            self._parts += 1
            self._waiting.clear()

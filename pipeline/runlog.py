"""Run logs: `runs/<time>-<stage>-<name>.jsonl`, one event a line: when, where and how long. Never part of the data."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from uvd import __version__
from uvd.manifests.storage import Storage

FOLDER = "runs"
_CREDENTIALS = re.compile(r"://[^/\s@]+@")


class RunLog:
    """Appends events as they happen on a local dataset; on an object store the log is put when the run begins and ends.

    Its first line says how the run was called, which a repair looks up: it must be there if the run is killed.
    """

    def __init__(self, storage: Storage, stage: str, name: str, settings: Mapping[str, Any] | None = None) -> None:
        self._storage = storage
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.path = f"{FOLDER}/{started}-{stage}-{name.replace('/', '-')}-{os.getpid()}.jsonl"
        self._lines: list[str] = []
        self._file = None
        if storage.local_root is not None:
            (storage.local_root / FOLDER).mkdir(parents=True, exist_ok=True)
            self._file = (storage.local_root / self.path).open("a")
        about: dict[str, Any] = {"settings": dict(settings)} if settings else {}
        if _CREDENTIALS.search(json.dumps(about)):
            about = {}  # a log is no place for passwords
        self.event("start", stage=stage, name=name, host=socket.gethostname(), uvd_version=__version__, **about)
        if self._file is None:
            self._put()

    def event(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, sort_keys=True)
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self, **summary: Any) -> None:
        self.event("end", **summary)
        if self._file is None:
            self._put()
        else:
            self._file.close()

    def _put(self) -> None:
        self._storage.put(self.path, ("\n".join(self._lines) + "\n").encode())

"""Logs of workers: one JSON object a line on standard error, each naming the shard that was being made.

Ray keeps what a worker writes there in its session's log files and shows it by `ray logs`, so a line can be looked for
by shard on a whole cluster. Keys: `time`, `level`, `logger`, `message`, `node`, `pid`; within a shard also `stage`,
`source`, `shard`, `attempt`; and `exception` with a traceback. Warnings of libraries come the same way. What libraries
in C write to standard error themselves stays as it is.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

import ray

from uvd.sequences.object_stores import CREDENTIALS

MAX_MESSAGE = 16_384
"""Characters of a message or traceback that are kept: a message may quote an input, and those are of any length."""
_log = logging.getLogger("uvd.worker")
_shard: ContextVar[Mapping[str, Any] | None] = ContextVar("shard", default=None)

P = ParamSpec("P")
R = TypeVar("R")


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: ASCII, no line breaks, no passwords of URLs."""

    def __init__(self) -> None:
        super().__init__()
        self._node = socket.gethostname()

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _clean(record.getMessage()),
            "node": self._node,
            "pid": record.process,
            **(_shard.get() or {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _clean(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class WorkerHandler(logging.StreamHandler[Any]):
    """Writes JSON lines to whatever standard error is now."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def logs_as_json() -> bool:
    return any(isinstance(handler, WorkerHandler) for handler in logging.getLogger().handlers)


def log_as_json(level: int = logging.INFO) -> None:
    """Sends all of this process's logging, and Python's warnings, to standard error as JSON lines; once is enough.

    Args:
        level: of `uvd`'s own loggers; libraries are heard from `WARNING` on.
    """
    if logs_as_json():
        return
    logging.getLogger().addHandler(WorkerHandler())
    logging.getLogger("uvd").setLevel(level)
    logging.captureWarnings(True)


@contextmanager
def shard_context(stage: str, folder: str, shard: int, attempt: int = 1) -> Iterator[None]:
    """What is logged within the block names the shard; its begin, end or failure is logged too.

    In a Ray worker the first block turns on `log_as_json`. Elsewhere, as when a driver makes a shard itself, logging
    stays as the program has it, and beginnings and ends are not logged.

    Args:
        stage: `ingest`, `tokenize`, …
        folder: of the shard's source, below `sequences/` or `tokens/`.
    """
    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        log_as_json()
    events = logs_as_json()
    token = _shard.set({"stage": stage, "source": folder, "shard": f"{shard:06d}", "attempt": attempt})
    start = time.monotonic()
    try:
        if events:
            _log.info("shard begun")
        yield
        if events:
            _log.info("shard done in %.1f s", time.monotonic() - start)
    except BaseException:
        if events:
            _log.exception("shard failed after %.1f s", time.monotonic() - start)
        raise
    finally:
        _shard.reset(token)


def in_this_context(function: Callable[P, R]) -> Callable[P, R]:
    """For another thread to call once: what it logs names the shard of the thread that is here now.

    Threads begin with a context of their own, so `pool.submit(in_this_context(work), …)`.
    """
    context = copy_context()

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.run(function, *args, **kwargs)

    return call


def _clean(text: str) -> str:
    text = CREDENTIALS.sub("://…@", text)
    if len(text) <= MAX_MESSAGE:
        return text
    half = MAX_MESSAGE // 2  # of both ends: a traceback names its error last
    return f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"

"""Untrusted work in a child process with limits: a crash, a hang or a flood of memory rejects one input, no more.

The child imports its handler once and serves many requests. Requests and answers are JSON and raw arrays over pipes;
nothing that comes from the child is ever unpickled or evaluated. It dies with its parent (PR_SET_PDEATHSIG), writes no
files, and is replaced after a failure. A call costs 0.2 ms and the copy of its arrays; a start costs the imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uvd.sequences.reject import Reason, RejectedInput

START_TIMEOUT_S = 180.0
"""For the imports and the first contact; not part of any request's limit."""

MAX_HEADER_BYTES = 1 << 20
MAX_REPLY_BYTES = 1 << 28
DTYPES = ("|u1", "<u2", "<u4", "<i4", "<i8", "<f4", "<f8")
STDERR_TAIL_BYTES = 2000
POLL_S = 0.05
HEADER = struct.Struct("<I")

CHILD_ENVIRONMENT: Mapping[str, str] = {
    "PYTHONHASHSEED": "0",  # sets iterate in one order
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class IsolationError(RuntimeError):
    """The child cannot be started at all: a fault of the installation, not of an input."""


class _ChildDied(Exception):  # noqa: N818 - internal signal, turned into a verdict by `call`
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class IsolatedProcess:
    """A child that runs `handler` (`package.module:function`) on one request at a time.

    The handler takes a dict and returns `(dict, list of arrays)`, or raises `RejectedInput`. Use as a context manager,
    from one thread.

    Args:
        timeout_s: wall time a request.
        memory_bytes: resident memory of the child, watched from outside; allocations are capped at the same number.
        environment: added to the child's.
    """

    def __init__(
        self, handler: str, *, timeout_s: float, memory_bytes: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.handler = handler
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self.environment = dict(environment or {})
        self._child: subprocess.Popen[bytes] | None = None
        self._reply_fd = -1
        self._served = 0
        self._stderr = b""
        self._stderr_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Runs the handler on `request`, which must be JSON-able.

        A child that died on its first request has shown what the input does. One that died later is replaced and the
        request tried once more, so that no verdict depends on what came before.

        Raises:
            RejectedInput: what the handler raised, or `CRASHED` or `TIMEOUT` with the end of the child's stderr.
            IsolationError: when no child can be started.
        """
        while True:
            if self._child is not None and self._child.poll() is not None:
                self._stop()  # died while idle: killed from outside
            if self._child is None:
                self._start()
            fresh = self._served == 0
            self._served += 1
            self._stderr = b""
            try:
                return self._exchange(json.dumps(request).encode())
            except _ChildDied as died:
                detail = f"{died.detail}: {self._last_words()}".rstrip(": ")
                self._stop()
                if fresh or died.reason is Reason.TIMEOUT:
                    raise RejectedInput(died.reason, detail) from None

    def close(self) -> None:
        """Ends the child. The object can be used again; it would start another."""
        self._stop()

    def _start(self) -> None:
        reply_fd, child_fd = os.pipe()
        command = [sys.executable, "-P", "-m", "uvd.sources.isolation_child", self.handler]
        command += [str(child_fd), str(os.getpid()), str(self.memory_bytes), str(self.timeout_s)]
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(child_fd,),
                env={**os.environ, **CHILD_ENVIRONMENT, **self.environment},
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the parent, which stops its children itself
            )
        finally:
            os.close(child_fd)
        self._reply_fd = reply_fd
        self._served = 0
        self._stderr = b""
        self._stderr_open = True
        os.set_blocking(self._stderr_fd(), False)
        os.set_blocking(reply_fd, False)
        try:
            header, _ = self._receive(time.monotonic() + START_TIMEOUT_S, memory_bytes=None)
        except _ChildDied as died:
            words = self._last_words()
            self._stop()
            raise IsolationError(f"{self.handler} does not start: {died.detail}: {words}") from None
        if header.get("status") != "ready":
            self._stop()
            raise IsolationError(f"{self.handler} answered {header!r} at its start")

    def _exchange(self, request: bytes) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(HEADER.pack(len(request)) + request)
        except OSError as error:
            raise _ChildDied(Reason.CRASHED, f"request: {error}") from error
        header, arrays = self._receive(time.monotonic() + self.timeout_s, self.memory_bytes)
        status = header.get("status")
        if status == "ok" and isinstance(header.get("result"), dict):
            return header["result"], arrays
        if status == "rejected":
            try:
                reason = Reason(header.get("reason", ""))
            except ValueError:
                raise _ChildDied(Reason.CRASHED, "malformed answer") from None
            raise RejectedInput(reason, str(header.get("detail", ""))[:STDERR_TAIL_BYTES])
        raise _ChildDied(Reason.CRASHED, str(header.get("detail", "malformed answer"))[:STDERR_TAIL_BYTES])

    def _receive(self, deadline: float, memory_bytes: int | None) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline, memory_bytes))
        if length > MAX_HEADER_BYTES:
            raise _ChildDied(Reason.CRASHED, f"malformed answer: header of {length} bytes")
        try:
            header = json.loads(bytes(self._read(length, deadline, memory_bytes)))
            shapes = [(np.dtype(dtype), tuple(map(int, shape))) for dtype, shape in _arrays_of(header)]
        except (ValueError, TypeError, RecursionError) as error:
            raise _ChildDied(Reason.CRASHED, f"malformed answer: {error}") from error
        sizes = [int(np.prod(shape, dtype=object)) * dtype.itemsize for dtype, shape in shapes]
        if any(size < 0 for size in sizes) or sum(sizes) > MAX_REPLY_BYTES:
            raise _ChildDied(Reason.CRASHED, f"malformed answer: arrays of {sum(sizes)} bytes")
        arrays = [
            np.frombuffer(self._read(size, deadline, memory_bytes), dtype=dtype).reshape(shape)
            for size, (dtype, shape) in zip(sizes, shapes, strict=True)
        ]
        return header, arrays

    def _read(self, count: int, deadline: float, memory_bytes: int | None) -> bytearray:
        """`count` bytes of the answer, while stderr is drained and time and memory are watched."""
        data = bytearray(count)
        filled = 0
        poll = select.poll()
        poll.register(self._reply_fd, select.POLLIN)
        if self._stderr_open:
            poll.register(self._stderr_fd(), select.POLLIN)
        while filled < count:
            ready = {fd for fd, _ in poll.poll(1000 * POLL_S)}
            if self._stderr_fd() in ready and not self._drain_stderr():
                poll.unregister(self._stderr_fd())
            if self._reply_fd in ready:
                chunk = os.read(self._reply_fd, min(count - filled, 1 << 20))
                if not chunk:
                    raise _ChildDied(Reason.CRASHED, self._exit_words())
                data[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
                continue
            if time.monotonic() > deadline:
                raise _ChildDied(Reason.TIMEOUT, "no answer in time")
            if memory_bytes is not None and self._resident_bytes() > memory_bytes:
                raise _ChildDied(Reason.CRASHED, f"memory over the limit of {memory_bytes >> 20} MiB")
        return data

    def _stderr_fd(self) -> int:
        assert self._child is not None
        assert self._child.stderr is not None
        return self._child.stderr.fileno()

    def _drain_stderr(self) -> bool:
        """Keeps the tail of what the child wrote; False at its end."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._stderr_fd(), 1 << 16):
                self._stderr = (self._stderr + chunk)[-STDERR_TAIL_BYTES:]
            self._stderr_open = False
        return self._stderr_open

    def _resident_bytes(self) -> int:
        assert self._child is not None
        try:
            with open(f"/proc/{self._child.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # gone already, or a system without /proc: the child's own limit remains
            return 0

    def _exit_words(self) -> str:
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._child.wait(timeout=5)
            return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return "closed its pipe"

    def _last_words(self) -> str:
        if self._child is not None:
            self._drain_stderr()
        lines = [line.strip() for line in self._stderr.decode(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-500:]

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        os.close(self._reply_fd)
        for pipe in (child.stdin, child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _arrays_of(header: Any) -> list[tuple[str, list[int]]]:
    if not isinstance(header, dict):
        raise ValueError("header is not an object")
    arrays = header.get("arrays", [])
    for dtype, _ in arrays:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}")
    return [(dtype, shape) for dtype, shape in arrays]

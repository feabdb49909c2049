"""The child's side of `uvd.sources.isolation`: limits itself, imports the handler, answers until its stdin closes.

Run as `python -m uvd.sources.isolation_child HANDLER REPLY_FD PARENT_PID MEMORY_BYTES TIMEOUT_S`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import struct
import sys
import time
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uvd.sequences.reject import RejectedInput

HEADER = struct.Struct("<I")
PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Asks Linux for SIGKILL when the parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def limit(memory_bytes: int) -> None:
    """No core dumps, no written files, and no more private memory than `memory_bytes`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or memory_bytes < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, hard))


def limit_next_request(timeout_s: float) -> None:
    """A last resort should the parent not be there to count: the kernel ends this request by CPU time or by alarm."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + 4 * timeout_s + 2)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or seconds < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))
    signal.alarm(int(2 * timeout_s + 10))


def send(pipe: BinaryIO, header: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
    arrays = [np.ascontiguousarray(array) for array in arrays]
    described = header | {"arrays": [[array.dtype.str, list(array.shape)] for array in arrays]}
    text = json.dumps(described).encode()
    pipe.write(HEADER.pack(len(text)) + text)
    for array in arrays:
        pipe.write(array.data)
    pipe.flush()


def main(handler: str, reply_fd: str, parent: str, memory_bytes: str, timeout_s: str) -> None:
    die_with(int(parent))
    reply = os.fdopen(int(reply_fd), "wb")
    module, _, function = handler.partition(":")
    handle = getattr(importlib.import_module(module), function)
    limit(int(memory_bytes))
    send(reply, {"status": "ready"}, [])
    requests = sys.stdin.buffer
    while head := requests.read(HEADER.size):
        request = json.loads(requests.read(HEADER.unpack(head)[0]))
        limit_next_request(float(timeout_s))
        try:
            result, arrays = handle(request)
            header = {"status": "ok", "result": result}
        except RejectedInput as rejected:
            header = {"status": "rejected", "reason": rejected.reason, "detail": rejected.detail}
            arrays = []
        except BaseException as error:
            # The process may be in any state now: say why, and let the parent start another.
            detail = f"{type(error).__name__}: {error}"[:1000]
            send(reply, {"status": "failed", "detail": detail}, [])
            time.sleep(60)  # until the parent has read it and ends this process
            raise
        signal.alarm(0)
        send(reply, header, arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Handlers that misbehave on request, for the tests of `uvd.sources.isolation`; imported by the child by name."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.sequences.reject import Reason, RejectedInput


def misbehave(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Does what `request["do"]` says."""
    what = request["do"]
    if what == "echo":
        return {"pid": os.getpid(), "value": request["value"]}, [np.arange(6, dtype=np.uint8).reshape(2, 3)]
    if what == "reject":
        raise RejectedInput(Reason.NO_FACES, "nothing there")
    if what == "raise":
        raise RuntimeError("a fault of the library")
    if what == "abort":
        print("corrupted size vs. prev_size", file=sys.stderr, flush=True)
        os.abort()
    if what == "segfault":
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(600)
    if what == "spin":
        while True:
            pass
    if what == "allocate":
        blocks = [np.ones(1 << 24, dtype=np.uint8) for _ in range(1 << 10)]
        return {"blocks": len(blocks)}, []
    if what == "write":
        with open(request["path"], "wb") as file:
            file.write(b"x")
    if what == "flood":
        os.write(2, b"noise " * 200_000)
        return {}, []
    if what == "pickle":
        return {}, [np.array([object()])]
    if what == "lie":
        for fd in range(3, 64):
            try:
                os.write(fd, b"\xff" * 64)
            except OSError:
                continue
    return {}, []


def render_or_die(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """`render_file`, but a file named `abort.*` aborts as a broken parser would."""
    from uvd.renderers.multiview_worker import render_file

    if Path(request["path"]).stem == "abort":
        os.abort()
    return render_file(request)


def hang_or_answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Grey views at once, but a file named `hang.*` never comes back."""
    if Path(request["path"]).stem == "hang":
        time.sleep(600)
    size = request["size"]
    return {}, [np.full((len(request["cameras"]), size, size, 3), 128, dtype=np.uint8)]


def hang_or_read_video(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """`video_child.handle`, but a file named `hang.*` never comes back, and `late.*` not when its frames are wanted."""
    from uvd.sources.video_child import handle

    stem = Path(request["path"]).stem
    if stem == "hang" or (stem == "late" and request["operation"] == "frames"):
        while True:
            pass
    if stem == "abort":
        os.abort()
    return handle(request)

"""The log of a training run: one JSON object a line, the same numbers for TensorBoard, and a way to watch both grow.

Written by the first worker. A resumed run first drops the records after the state that it goes on from, so that every
step is logged once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

Record = dict[str, Any]
Progress = Callable[[Record], None]
TENSORBOARD = "tensorboard"
_POLL_S = 0.5


class TrainingLog:
    """Appends records, each with a `step`.

    Args:
        path: the `.jsonl` file; event files go to `tensorboard/` beside it.
        step: of the state that the run goes on from, 0 for a new run.
        on_progress: is called with each record.
    """

    def __init__(self, path: Path, step: int, on_progress: Progress | None = None) -> None:
        self._path, self._on_progress = path, on_progress
        kept = [record for record in read_log(path) if record["step"] <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, path)
        self._events = SummaryWriter(str(path.parent / TENSORBOARD), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, record["step"])
        if self._on_progress is not None:
            self._on_progress(record)

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Shows `(H, W, 3)` uint8 RGB in TensorBoard."""
        self._events.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()


def read_log(path: Path) -> list[Record]:
    """The records of a log; a torn last line is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@contextmanager
def followed(path: Path, on_progress: Progress | None) -> Iterator[None]:
    """Calls `on_progress` with each record that another process appends to the log while the block runs."""
    if on_progress is None:
        yield
        return
    done = threading.Event()
    seen = len(read_log(path))

    def follow() -> None:
        nonlocal seen
        last = False
        while not last:
            last = done.wait(_POLL_S)
            records = read_log(path)
            # A resumed run cuts its log back to the checkpoint first.
            seen = min(seen, len(records))
            for record in records[seen:]:
                on_progress(record)
            seen = len(records)

    thread = threading.Thread(target=follow, name="training-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

"""The log of a run: `log.jsonl`, a line a record, written by the first worker and followed by whoever watches.

Fields: step, tokens (seen), epoch, progress (0 to 1), loss (nats a token, mean since the line before), perplexity, lr,
grad_norm, tokens_per_s, data_s (seconds of waiting for data since the line before), elapsed_s, at times val_loss.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uvd.trainer.checkpoint import RunState

Record = dict[str, Any]
Progress = Callable[[Record], None]
_POLL_S = 0.5


class Window:
    """What happened since the last line of the log."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._losses: list[float] = []
        self._tokens = 0
        self.data_s = 0.0

    def add(self, loss: float, tokens: int) -> None:
        self._losses.append(loss)
        self._tokens += tokens

    def record(self, state: RunState, progress: float, rate: float, norm: float, val_loss: float | None) -> Record:
        loss = math.fsum(self._losses) / len(self._losses)
        record: Record = {
            "step": state.step,
            "tokens": state.tokens,
            "epoch": state.data["epoch"],
            "progress": round(progress, 4),
            "loss": loss,
            "perplexity": _perplexity(loss),
            "lr": rate,
            "grad_norm": norm,
            "tokens_per_s": round(self._tokens / (time.monotonic() - self._start), 1),
            "data_s": round(self.data_s, 4),
            "elapsed_s": round(state.elapsed_s, 2),
        }
        if val_loss is not None:
            record |= {"val_loss": val_loss, "val_perplexity": _perplexity(val_loss)}
        return record


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


class Log:
    """`log.jsonl`: a line a record. A resumed run first drops the lines after its checkpoint."""

    def __init__(self, path: Path, step: int, on_progress: Progress | None) -> None:
        self._path, self._on_progress = path, on_progress
        kept = [record for record in read_log(path) if record["step"] <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, path)

    def write(self, record: Record) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self._on_progress is not None:
            self._on_progress(record)


def read_log(path: Path) -> list[Record]:
    """The records of a log; a torn last line is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def progress_line(record: Record) -> str:
    """One line for a person: `step 120 · 0.25 M tokens · loss 6.21 · perplexity 498 · 2,100 tokens/s · 34 %`."""
    parts = [
        f"step {record['step']:,}",
        f"{record['tokens'] / 1e6:.2f} M tokens",
        f"loss {record['loss']:.3f}",
        f"perplexity {record['perplexity']:,.0f}",
        f"{record['tokens_per_s']:,.0f} tokens/s",
        f"{100 * record['progress']:.0f} %",
    ]
    if "val_loss" in record:
        parts.append(f"val loss {record['val_loss']:.3f}")
    return " · ".join(parts)


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

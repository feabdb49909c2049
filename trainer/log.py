"""What the transformer's training logs: `log.jsonl`, a record each `log_every` steps.

Fields: step, tokens (seen), epoch, progress (0 to 1), loss (nats a token, mean since the line before), perplexity, lr,
grad_norm, tokens_per_s, data_s (seconds of waiting for data since the line before), elapsed_s, at times val_loss.
"""

from __future__ import annotations

import math
import time

from uvd.tokenize.training_log import Record
from uvd.trainer.checkpoint import RunState


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

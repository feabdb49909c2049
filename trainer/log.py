"""What the transformer's training logs: `log.jsonl`, a record each `log_every` steps.

Fields: step, tokens (seen), epoch, progress (0 to 1), loss (nats a token, mean since the line before), perplexity,
loss/SOURCE (of each source's tokens), lr, grad_norm, tokens_per_s (of all workers), mfu (share of the devices' peak,
see `uvd.trainer.flops`; 0 if that is not known), memory_gib (largest so far on the first worker: of the GPU, or else of
the process), data_s (seconds of waiting for data since the line before), elapsed_s; at times val_loss, val_perplexity
and val_loss/SOURCE.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from uvd.tokenize.training_log import Record
from uvd.trainer.checkpoint import RunState

_KIB, _GIB = 1 << 10, 1 << 30


@dataclass(frozen=True, slots=True)
class Validation:
    """Mean loss in nats a token, over all of the held-out sample and of each source in it."""

    loss: float
    by_source: Mapping[str, float]


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

    def record(
        self,
        state: RunState,
        *,
        progress: float,
        rate: float,
        norm: float,
        by_source: Mapping[str, float],
        device_share: float,
        device: torch.device,
        validation: Validation | None,
    ) -> Record:
        """`device_share`: of the peak of all devices together that one token a second needs."""
        loss = math.fsum(self._losses) / len(self._losses)
        speed = self._tokens / (time.monotonic() - self._start)
        record: Record = {
            "step": state.step,
            "tokens": state.tokens,
            "epoch": state.data["epoch"],
            "progress": round(progress, 4),
            "loss": loss,
            "perplexity": _perplexity(loss),
            **{f"loss/{source}": value for source, value in by_source.items()},
            "lr": rate,
            "grad_norm": norm,
            "tokens_per_s": round(speed, 1),
            "mfu": round(speed * device_share, 4),
            "memory_gib": round(_memory_gib(device), 3),
            "data_s": round(self.data_s, 4),
            "elapsed_s": round(state.elapsed_s, 2),
        }
        if validation is not None:
            record |= {"val_loss": validation.loss, "val_perplexity": _perplexity(validation.loss)}
            record |= {f"val_loss/{source}": value for source, value in validation.by_source.items()}
        return record


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / _GIB


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
    if record.get("mfu"):
        parts.append(f"MFU {100 * record['mfu']:.1f} %")
    if "val_loss" in record:
        parts.append(f"val loss {record['val_loss']:.3f}")
    return " · ".join(parts)

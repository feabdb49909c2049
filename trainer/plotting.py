"""Loss against tokens of several training runs, the LVM paper's figure of scaling (arXiv 2312.00785, section 4.1).

Lines are the training loss, smoothed; points are the loss on the held-out split. Read from each run's `log.jsonl`, so a
run may still be under way. Takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from uvd.sequences.errors import UserError
from uvd.tokenize.training_log import Record, read_log
from uvd.trainer.checkpoint import checkpoints, read_provenance
from uvd.trainer.evaluate.chart import COLOURS, Curve, line_chart
from uvd.trainer.model import SIZES, build_model, count_parameters
from uvd.trainer.train import LOG, MODEL

Measure = Literal["loss", "perplexity", "val_loss"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
MEGA = 1e6
_SMOOTHED_SHARE = 0.05
_LOG_FROM = 100.0
"""From this ratio of the last to the first number of tokens on, their axis is logarithmic."""


class PlotError(UserError):
    """Runs that cannot be drawn."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """What a run has logged.

    Attributes:
        folder: of the run.
        label: in the legend.
        records: of its log, at least one.
    """

    folder: Path
    label: str
    records: tuple[Record, ...]

    def curve(self, field: str, smooth: int = 1) -> Curve:
        """A field of the log against millions of tokens, each value the mean of the last `smooth`."""
        found = [(record["tokens"] / MEGA, record[field]) for record in self.records if field in record]
        values = [value for _, value in found]
        means = [float(np.mean(values[max(0, end - smooth) : end])) for end in range(1, len(values) + 1)]
        return Curve(self.label, tuple(tokens for tokens, _ in found), tuple(means))


def read_runs(folders: Sequence[str | Path]) -> list[RunLog]:
    """The logs of runs, labelled by model size (`tiny, 5.0 M`), or by folder where that does not tell them apart.

    Raises:
        PlotError: if a folder holds no log of a transformer's training.
    """
    runs = [read_run(folder) for folder in folders]
    labels = [run.label for run in runs]
    return [replace(run, label=run.folder.name) if labels.count(run.label) > 1 else run for run in runs]


def read_run(folder: str | Path, label: str | None = None) -> RunLog:
    """The log of one run; the size is known from its first checkpoint on.

    Raises:
        PlotError: if the folder holds no log of a transformer's training.
    """
    run = Path(folder).expanduser()
    records = [record for record in read_log(run / LOG) if {"tokens", "loss"} <= set(record)]
    if not records:
        raise PlotError(f"{run} has no {LOG} with a line of `uvd train` in it: name the folder given to it by --out")
    for place in () if label else (run / MODEL, *reversed(checkpoints(run))):
        if (provenance := read_provenance(place)) is not None and provenance.size in SIZES:
            label = f"{provenance.size}, {human_count(parameters(provenance.size))}"
            break
    return RunLog(run, label or run.name, tuple(records))


def parameters(size: str) -> int:
    """Number of parameters of a size, embeddings included."""
    return count_parameters(build_model(size, device="meta"))


def human_count(number: float) -> str:
    """`5.0 M`, `344 M`, `3.1 B`."""
    value, unit = (number / 1e9, "B") if number >= 1e9 else (number / MEGA, "M")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def loss_chart(
    runs: Sequence[RunLog], y: Measure = "loss", title: str = "", smooth: int | None = None
) -> NDArray[np.uint8]:
    """Draws runs against millions of tokens seen.

    Args:
        y: `loss` (nats a token, with points for the held-out loss), `perplexity` (exp of both, on a logarithmic axis),
            or `val_loss` alone.
        smooth: lines of the log of which each shown value is the mean; by default a twentieth of the log.

    Returns:
        `(520, 900, 3)` uint8 RGB.

    Raises:
        PlotError: for more runs than there are colours, or if no run has what is asked for.
    """
    if len(runs) > len(COLOURS):
        raise PlotError(f"{len(runs)} runs in one chart: at most {len(COLOURS)} can be told apart")
    lines = [run.curve("loss", smooth or max(1, math.floor(_SMOOTHED_SHARE * len(run.records)))) for run in runs]
    held_out = [run.curve("val_loss") for run in runs]
    if y == "perplexity":
        lines, held_out = [_exponential(curve) for curve in lines], [_exponential(curve) for curve in held_out]
    if y == "val_loss":
        if missing := [str(run.folder) for run, curve in zip(runs, held_out, strict=True) if not curve.x]:
            raise PlotError(f"no val_loss in the log of {', '.join(missing)}: train with val_every above 0")
        lines = held_out
    tokens = [value for curve in (*lines, *held_out) for value in curve.x]
    return line_chart(
        lines,
        title=title or ("Loss on the held-out split" if y == "val_loss" else "Training (lines) and held-out (points)"),
        x_axis="millions of tokens",
        y_axis={"loss": "nats a token", "perplexity": "perplexity", "val_loss": "nats a token"}[y],
        log_x=max(tokens) / min(tokens) >= _LOG_FROM,
        log_y=y == "perplexity",
        points=held_out,
    )


def _exponential(curve: Curve) -> Curve:
    return Curve(curve.name, curve.x, tuple(math.exp(min(value, 700.0)) for value in curve.y))

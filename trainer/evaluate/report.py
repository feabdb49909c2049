"""The result of an evaluation: settings, protocol and rows, as JSON, as a table's cells, and as a chart.

A row is one line of the table: which group (a fold, a role, a form of puzzle), who predicted, and the measures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from uvd.manifests.sheet import save_png
from uvd.trainer.evaluate.chart import Curve, bar_chart, line_chart
from uvd.trainer.evaluate.prompting import Pixels

MAX_GROUPS = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results.

    Attributes:
        group: what was measured on, such as `fold 0`, `depth`, `mean`.
        predictor: who gave the answers: `model`, or a baseline.
        episodes: how many were measured.
        measures: by name; NaN where a measure is not defined.
    """

    group: str
    predictor: str
    episodes: int
    measures: dict[str, float]


@dataclass(slots=True)
class Report:
    """What one evaluation gives.

    Attributes:
        task: its name.
        protocol: a sentence or two on what was measured and how.
        settings: of the run, and the model's and tokenizer's names; JSON-able.
        rows: see `Row`.
        curves: drawn as lines instead of bars, such as perplexity against frames of context.
        notes: what was left out, and why.
        sheet: contact sheet of some episodes, `(H, W, 3)` uint8 RGB, or None.
        axis: what the chart shows: name of the measure.
        better: `higher` or `lower`.
        undrawn: predictors that are left out of the chart, because they would hide the others.
        x_axis: of the curves.
        log_y: whether the curves' y axis is logarithmic.
    """

    task: str
    protocol: str
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sheet: Pixels | None = None
    axis: str = ""
    better: str = "higher"
    undrawn: tuple[str, ...] = ()
    x_axis: str = ""
    log_y: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "protocol": self.protocol,
            "settings": self.settings,
            "better": self.better,
            "rows": [
                {"group": row.group, "predictor": row.predictor, "episodes": row.episodes, **_finite(row.measures)}
                for row in self.rows
            ],
            "curves": [asdict(curve) for curve in self.curves],
            "notes": self.notes,
        }

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def measures(self) -> list[str]:
        """Names of all measures, in the order of the rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row.measures))

    def cells(self) -> list[list[str]]:
        """The table's rows as text: group, predictor, episodes, measures; empty where a row has none."""
        names = self.measures()
        return [
            [row.group, row.predictor, f"{row.episodes:,}", *(format_cell(row.measures.get(name)) for name in names)]
            for row in self.rows
        ]

    def chart(self) -> Pixels | None:
        """The curves, or bars of the measure `axis` for each group and predictor; None if there is nothing to draw."""
        if self.curves:
            return line_chart(self.curves, title=self.task, x_axis=self.x_axis, y_axis=self.axis, log_y=self.log_y)
        groups = dict.fromkeys(row.group for row in self.rows)
        # Too many groups for one chart: the last one is their mean.
        drawn = list(groups) if len(groups) <= MAX_GROUPS else list(groups)[-1:]
        bars = {
            (row.group, row.predictor): row.measures.get(self.axis, float("nan"))
            for row in self.rows
            if row.group in drawn and row.predictor not in self.undrawn
        }
        bars = {key: value for key, value in bars.items() if isfinite(value)}
        return bar_chart(bars, title=f"{self.task}: {self.axis}, {self.better} is better") if bars else None

    def save(self, folder: str | Path) -> list[Path]:
        """Writes TASK.json, TASK.png (the chart) and TASK-sheet.png; returns what was written."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{self.task}.json"]
        written[0].write_text(self.as_json() + "\n", encoding="utf-8")
        for picture, name in ((self.chart(), f"{self.task}.png"), (self.sheet, f"{self.task}-sheet.png")):
            if picture is not None:
                save_png(picture, folder / name)
                written.append(folder / name)
        return written


def mean_row(rows: Sequence[Row], predictor: str, name: str = "mean") -> Row:
    """The unweighted mean of one predictor's rows, such as of the four folds; NaN if one of them lacks a measure."""
    mine = [row for row in rows if row.predictor == predictor]
    names = dict.fromkeys(measure for row in mine for measure in row.measures)
    means = {measure: sum(row.measures.get(measure, float("nan")) for row in mine) / len(mine) for measure in names}
    return Row(name, predictor, sum(row.episodes for row in mine), means)


def _finite(measures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if isfinite(value) else None for name, value in measures.items()}


def format_cell(value: float | None) -> str:
    """A measure in a table; empty if there is none."""
    if value is None or not isfinite(value):
        return ""
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"

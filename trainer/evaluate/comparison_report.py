"""The result of a comparison of trained models: tables in Markdown and JSON, loss against tokens, bars by task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from uvd.manifests.sheet import save_png
from uvd.trainer.config import TrainConfig
from uvd.trainer.evaluate.chart import bar_chart
from uvd.trainer.evaluate.context import PROTOCOL as CONTEXT_PROTOCOL
from uvd.trainer.evaluate.prompting import Pixels
from uvd.trainer.evaluate.report import MAX_GROUPS, Report, Row, format_cell
from uvd.trainer.plotting import MEGA, human_count, loss_chart, read_run

PROTOCOL = (
    "Every model was trained on the same number of tokens, in batches of the same size and by the same schedule. "
    "train loss: mean of the last tenth of training; val loss: of the same sample of the held-out split, after the "
    "last step; both in nats a token. tokens/s includes the measurements of the val loss."
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A trained model.

    Attributes:
        name: see `Variant`.
        run: its folder.
        config: of its training.
        parameters: of all matrices.
        embeddings: of them in the tables of the vocabulary, at both ends.
        tokens: that it has seen.
        epochs: whole ones that it has seen of its data.
        seconds: of training, the measurements of the held-out loss included.
        train_loss, val_loss: nats a token.
        context: the report of `evaluate_context`; None if the dataset has no pairs.
    """

    name: str
    run: Path
    config: TrainConfig
    parameters: int
    embeddings: int
    tokens: int
    epochs: int
    seconds: float
    train_loss: float
    val_loss: float
    context: Report | None

    def numbers(self) -> dict[str, float]:
        return {
            "parameters, M": self.parameters / MEGA,
            "without embeddings, M": (self.parameters - self.embeddings) / MEGA,
            "learning rate": self.config.learning_rate,
            "tokens, M": self.tokens / MEGA,
            "epochs": float(self.epochs),
            "tokens/s": self.tokens / self.seconds,
            "train loss": self.train_loss,
            "val loss": self.val_loss,
        }


@dataclass(slots=True)
class ComparisonReport:
    """What `compare` gives.

    Attributes:
        task: `scaling` or `ablation`.
        dataset: its URI.
        pairs: numbers of example pairs that were asked for.
        has_pairs: whether the dataset has pairs to measure tasks on.
        models: those that were trained and measured, in the order in which they were asked for.
        failures: name of a model → what went wrong.
        settings: what else a reader must know.
    """

    task: str
    dataset: str
    pairs: Sequence[int]
    has_pairs: bool
    models: list[Measured] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, model: Measured) -> None:
        self.models.append(model)

    def notes(self) -> list[str]:
        """What can be read off the numbers, failures first."""
        notes = [f"FAILED, not in the tables: {name}: {why}" for name, why in self.failures.items()]
        if not self.has_pairs:
            notes.append("The dataset has no held-out pairs: only losses were measured.")
        if self.task == "scaling" and len(self.models) > 1:
            ordered = sorted(self.models, key=lambda model: model.parameters)
            for name in ("train loss", "val loss"):
                values = [model.numbers()[name] for model in ordered]
                falls = all(after < before for before, after in pairwise(values))
                notes.append(f"{name} {'falls' if falls else 'does NOT fall'} with every larger model.")
        for model in self.models:
            notes += [f"{model.name}: {note}" for note in _gains(model)]
        return notes

    def rows(self) -> list[Row]:
        """One for each annotation type and model: perplexity after the most pairs, and after each number of them."""
        return [
            Row(role, model.name, found[0].episodes, {row.predictor: row.measures["perplexity"] for row in found})
            for role in self.roles()
            for model in self.models
            if (found := _of_role(model, role))
        ]

    def roles(self) -> list[str]:
        return list(dict.fromkeys(row.group for model in self.models if model.context for row in model.context.rows))

    def as_reports(self) -> list[Report]:
        """Training and tasks in the form in which all evaluations are printed."""
        settings = {"model": ", ".join(model.name for model in self.models), "tokenizer": "", **self.settings}
        training = [Row("training", model.name, 0, model.numbers()) for model in self.models]
        reports = [Report(self.task, PROTOCOL, settings, training, notes=self.notes())]
        if tasks := self.rows():
            reports.append(Report("context", CONTEXT_PROTOCOL, settings, tasks))
        return reports

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "protocol": PROTOCOL,
            "settings": {"dataset": self.dataset, "pairs": list(self.pairs), **self.settings},
            "models": {
                model.name: {
                    **model.numbers(),
                    "seconds": model.seconds,
                    "config": model.config.model_dump(mode="json"),
                    "tasks": _tasks_of(model),
                }
                for model in self.models
            },
            "failures": self.failures,
            "notes": self.notes(),
        }

    def charts(self) -> dict[str, Pixels]:
        """By what they show: `loss` against tokens, `tasks` by model, `pairs` before the query for the last model."""
        if not self.models:
            return {}
        runs = [read_run(model.run, f"{model.name}, {human_count(model.parameters)}") for model in self.models]
        charts = {"loss": loss_chart(runs, title=f"{self.task}: training (lines) and held-out (points)")}
        first = {role: _pooled(self.models[0], role) for role in self.roles()}
        bars = {
            (role, model.name): _pooled(model, role) / first[role]
            for role in self.roles()[:MAX_GROUPS]
            for model in self.models
        }
        if bars:
            title = f"{self.task}: perplexity after {max(self.pairs)} pairs, relative to {self.models[0].name}"
            charts["tasks"] = bar_chart(bars, title=title)
        last = self.models[-1]
        if last.context is not None and (chart := last.context.chart()) is not None:
            charts["pairs"] = chart
        return charts

    def as_markdown(self) -> str:
        """The tables and notes, with the charts beside them as `save` writes them."""
        lines = [f"# {self.task}", "", PROTOCOL, ""]
        lines += [f"- {name}: {value}" for name, value in {"dataset": self.dataset, **self.settings}.items()]
        lines += ["", *(f"- {note}" for note in self.notes()), ""]
        if self.models:
            names = list(self.models[0].numbers())
            cells = [[model.name, *(format_cell(value) for value in model.numbers().values())] for model in self.models]
            lines += ["## Training", "", *_table(["model", *names], cells), "", f"![loss]({self.task}-loss.png)", ""]
        if self.roles():
            lines += self._tasks()
        return "\n".join(lines) + "\n"

    def _tasks(self) -> list[str]:
        lines = ["## Tasks", "", CONTEXT_PROTOCOL, "", f"![tasks]({self.task}-tasks.png)", ""]
        for model in self.models:
            if model.context is None:
                continue
            names = ["annotation", "examples", "episodes", *model.context.measures()]
            lines += [f"### {model.name}", "", *_table(names, model.context.cells()), ""]
            lines += [f"- {note}" for note in model.context.notes]
        return [*lines, f"Curves of {self.models[-1].name}:", "", f"![pairs]({self.task}-pairs.png)", ""]

    def save(self, folder: str | Path) -> list[Path]:
        """Writes TASK.json, TASK.md and the charts TASK-*.png; returns what was written."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{self.task}.json", folder / f"{self.task}.md"]
        written[0].write_text(self.as_json() + "\n", encoding="utf-8")
        written[1].write_text(self.as_markdown(), encoding="utf-8")
        for name, picture in self.charts().items():
            written.append(folder / f"{self.task}-{name}.png")
            save_png(picture, written[-1])
        return written


def _tasks_of(model: Measured) -> dict[str, Any] | None:
    """Rows and notes; the settings are the comparison's own."""
    if model.context is None:
        return None
    return {name: value for name, value in model.context.as_dict().items() if name in ("rows", "notes")}


def _of_role(model: Measured, role: str) -> list[Row]:
    return [row for row in model.context.rows if row.group == role] if model.context else []


def _pooled(model: Measured, role: str) -> float:
    """After the most pairs."""
    return _of_role(model, role)[-1].measures["pooled"]


def _gains(model: Measured) -> list[str]:
    """For which annotation types the 95 % interval of the ratio lies below 1, above it, or holds it."""
    last = {role: _of_role(model, role)[-1] for role in dict.fromkeys(row.group for row in _rows(model))}
    ratios = {role: row.measures for role, row in last.items() if "ratio" in row.measures}
    if not ratios:
        return []
    lower = [role for role, found in ratios.items() if found["ratio high"] < 1]
    higher = [role for role, found in ratios.items() if found["ratio low"] > 1]
    undecided = [role for role in ratios if role not in lower + higher]
    return [
        f"the most examples lower the perplexity of {', '.join(lower) or 'nothing'}, raise that of "
        f"{', '.join(higher) or 'nothing'}; undecided (the 95 % interval holds 1): {', '.join(undecided) or 'nothing'}"
    ]


def _rows(model: Measured) -> list[Row]:
    return model.context.rows if model.context else []


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    return head + [f"| {' | '.join(row)} |" for row in rows]

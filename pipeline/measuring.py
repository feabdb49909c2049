"""What all tasks of `uvd eval` do around a measurement: load the model, show progress, print the table, write files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from uvd.pipeline.config import ConfigError

if TYPE_CHECKING:
    from uvd.trainer.evaluate.prompting import Asking
    from uvd.trainer.evaluate.report import Report
    from uvd.trainer.prompter import Prompter

FORMATS, PRECISIONS = ("table", "json"), ("fp32", "bf16")
Advance = Callable[[int], None]


def measure_model(
    measure: Callable[[Prompter, Advance], Report],
    model: Path,
    tokenizer: str,
    device: str,
    precision: str,
    out: Path | None,
    format: str,
    asking: Asking | None = None,
) -> None:
    """Loads the model, measures under a progress bar, prints the result and writes it."""
    for name, value, known in (("format", format, FORMATS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"--{name} {value}: expected {' or '.join(known)}")
    from uvd.trainer.prompter import Prompter

    console = Console(stderr=True)
    prompter = Prompter.load(model, tokenizer, device, precision=precision)
    with Progress(
        "[progress.description]{task.description}",
        "{task.completed} episodes, {task.elapsed:.0f} s",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("measuring", total=None)
        report = measure(prompter, lambda done: progress.advance(task, done))
    report.settings |= {"model": str(model), "tokenizer": prompter.tokenizer.name}
    report.settings |= {"tokenizer_fingerprint": prompter.tokenizer.fingerprint, "precision": precision}
    report.settings |= {"device": str(prompter.device), "context_images": prompter.context_images}
    if asking is not None:
        sampling = asking.sampling
        report.settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    if format == "json":
        print(report.as_json())
    else:
        print_table(report, Console())
    for path in report.save(out) if out is not None else []:
        console.print(f"wrote {path}", markup=False)


def print_table(report: Report, console: Console) -> None:
    """Prints a result's rows, protocol and notes; its settings name `model` and `tokenizer`."""
    console.print(f"{report.task}: {report.settings['model']}, {report.settings['tokenizer']}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for name in ("group", "predictor"):
        table.add_column(name)
    for name in ("episodes", *report.measures()):
        justify: Literal["right"] = "right"
        table.add_column(name, justify=justify)
    previous = None
    for cells in report.cells():
        if previous not in (None, cells[0]) and not report.curves:
            table.add_section()
        table.add_row("" if cells[0] == previous else cells[0], *cells[1:])
        previous = cells[0]
    console.print(table)
    for note in (report.protocol, *report.notes):
        console.print(note, style="dim", markup=False, highlight=False)

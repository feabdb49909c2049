"""Commands that look: `uvd stats`, `uvd show`, `uvd verify`, `uvd doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import DatasetOption
from uvd.pipeline.config import ConfigError

TITLES = {
    "families": "Images by kind of data, beside UVDv1",
    "sources": "Sources",
    "layouts": "Layouts",
    "splits": "Splits",
    "roles": "Roles",
    "accounting": "Planned inputs = used + rejected",
    "rejects": "Rejected inputs",
    "reject_hosts": "Hosts with most rejected inputs",
    "tokens": "Tokens",
}


def stats(
    dataset: DatasetOption,
    format: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
    sql: Annotated[str | None, typer.Option(help="Ask the views sequences, tokens and rejects yourself.")] = None,
) -> None:
    """Show what is in a dataset: shares beside UVDv1's, layouts, splits, rejects, tokens.

    Examples:

        uvd stats --dataset ~/uvd-data

        uvd stats --dataset ~/uvd-data --sql "select dataset, count(*) from sequences group by all"
    """
    from uvd.manifests.stats import query, statistics

    if format not in ("table", "json"):
        raise ConfigError(f"--format {format}: expected table or json")
    opened = Dataset.existing(dataset)
    if sql is not None:
        rows = query(opened, sql).to_pylist()
        _print_json(rows) if format == "json" else Console().print(_table("", rows))
        return
    if format == "json":
        _print_json(statistics(opened))
        return
    print_statistics(opened, Console())


def print_statistics(dataset: Dataset, console: Console) -> None:
    """Prints the tables of `uvd stats`."""
    from uvd.manifests.stats import flatten, statistics

    for name, rows in flatten(statistics(dataset)):
        console.print(_table(TITLES[name], rows))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        numeric = isinstance(rows[0][name], int | float)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def show(
    key: Annotated[str, typer.Argument(help="Key of a sequence, as manifests and `uvd stats --sql` give it.")],
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    decoded: Annotated[
        bool, typer.Option("--decoded", help="Beside it, the pictures decoded from its tokens.")
    ] = False,
    tokenizer: Annotated[str, typer.Option(help="Whose tokens to decode.")] = "uvd-small",
) -> None:
    """Draw one sequence as a contact sheet.

    Example:

        uvd show video-000000-000000 --dataset ~/uvd-data --out sequence.png --decoded
    """
    from uvd.manifests.sheet import save_png
    from uvd.pipeline.showing import sequence_sheet

    save_png(sequence_sheet(Dataset.existing(dataset), key, tokenizer if decoded else None), str(out))
    Console(stderr=True).print(f"wrote {out}", markup=False)


def verify(
    dataset: DatasetOption,
    deep: Annotated[bool, typer.Option("--deep", help="Read and decode everything, not only manifests.")] = False,
) -> None:
    """Check that a dataset holds what its manifests say, and nothing else.

    Example:

        uvd verify --dataset ~/uvd-data --deep
    """
    from uvd.manifests.verify import verify as run

    opened = Dataset.existing(dataset)
    total = sum(1 for section in ("sequences", "tokens") for _ in opened.all_shards(section))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("verifying", total=total)
        result = run(opened, deep=deep, advance=lambda: progress.advance(task))
    for problem in result.problems:
        console.print(problem, style="red", markup=False)
    kind = "deep" if deep else "shallow (use --deep to read every byte)"
    summary = f"{result.shards} shards, {result.sequences} rows checked, {len(result.problems)} problems; {kind}"
    console.print(summary, style="red" if result.problems else "green", markup=False)
    if result.problems:
        raise typer.Exit(1)


def doctor() -> None:
    """Check this machine: Python, torch, Ray, OpenGL, MMPose, disk; says how to mend what fails."""
    from uvd.pipeline.doctor import checks

    table = Table(show_header=False, box=None)
    failed = False
    for check in checks():
        failed |= not check.ok
        table.add_row("[green]ok[/]" if check.ok else "[red]FAIL[/]", check.name, escape(check.finding))
        if not check.ok:
            table.add_row("", "", f"→ {escape(check.fix)}")
    Console().print(table)
    if failed:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    for command in (stats, show, verify, doctor):
        app.command()(command)

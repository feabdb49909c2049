"""Commands that look: `uvd stats`, `uvd show`, `uvd doctor`."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import DatasetOption
from uvd.pipeline.config import ConfigError

if TYPE_CHECKING:
    from uvd.manifests.survey import Survey

TITLES = {
    "by": "Shares",
    "families": "Images by kind of data, beside UVDv1",
    "sources": "Sources",
    "datasets": "Datasets",
    "layouts": "Layouts",
    "roles": "Roles",
    "splits": "Splits",
    "accounting": "Planned inputs = used + rejected",
    "rejects": "Rejected inputs",
    "reject_hosts": "Hosts with most rejected inputs",
    "reject_datasets": "Rejected inputs by dataset",
    "tokens": "Tokens",
    "codebook": "Codebook use",
    "duplicates": "Duplicates marked by `uvd dedup`",
    "costs": "Throughput and cost by stage, of all runs",
}
DECIMALS_TO = 10_000
SHORTENED_FROM = 10_000_000
_NO_BREAK = "\N{NO-BREAK SPACE}"
_POWERS = {6: "M", 9: "G", 12: "T"}
PROGRESS_FROM = 2000
"""Shards from which on reading them is shown."""


def stats(
    dataset: DatasetOption,
    format: Annotated[str, typer.Option("--format", help="table, json, or html: a card to show.")] = "table",
    out: Annotated[
        Path | None, typer.Option(help="With html: the file; NAME-card.html of the dataset by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With html: of the pictures that are shown.")] = 0,
    by: Annotated[
        str | None, typer.Option(help="One more table, by these: source, dataset, layout, split, role; a,b for pairs.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Shares of the sequences for which this SQL condition holds.")
    ] = None,
    sql: Annotated[str | None, typer.Option(help="Ask the views sequences, tokens, rejects and runs yourself.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Whose tokens are counted; the one with most by default.")
    ] = None,
    index: Annotated[
        bool, typer.Option("--index/--no-index", help="Use and keep DATASET/index; without, read every manifest.")
    ] = True,
) -> None:
    """Show what is in a dataset: shares beside UVDv1's, tokens, codebook use, rejects, duplicates, cost.

    Examples:

        uvd stats --dataset ~/uvd-data

        uvd stats --dataset ~/uvd-data --by dataset,split --where "layout = 'pairs' and num_images >= 8"

        uvd stats --dataset ~/uvd-data --format html --out card.html

        uvd stats --dataset ~/uvd-data --sql "select dataset, count(*) from sequences group by all"
    """
    from uvd.manifests.stats import query, statistics

    if format not in ("table", "json", "html"):
        raise ConfigError(f"--format {format}: expected table, json or html")
    if format == "html":
        if sql is not None or by is not None or where is not None:
            raise ConfigError("--format html is a card of the whole dataset: it takes no --sql, --by or --where")
        _write_card(Dataset.existing(dataset), out, seed, index)
        return
    if sql is not None and (by is not None or where is not None or tokenizer is not None):
        raise ConfigError("--sql stands alone: say by, where and tokenizer in the query itself")
    opened = Dataset.existing(dataset)
    if sql is not None:
        rows = query(opened, sql).to_pylist()
        _print_json(rows) if format == "json" else Console().print(_table(rows))
        return
    names = [name.strip() for name in by.split(",")] if by is not None else []
    content = statistics(opened, where, names, tokenizer=tokenizer, counted=_survey(opened, index))
    if format == "json":
        _print_json(content)
    else:
        _print_tables(content, Console())


def _write_card(dataset: Dataset, out: Path | None, seed: int, use_index: bool) -> None:
    from uvd.pipeline.card.card import dataset_card

    path = out or Path(f"{dataset.uri.rstrip('/').rpartition('/')[2]}-card.html")
    page = dataset_card(dataset, seed=seed, counted=_survey(dataset, use_index))
    path.expanduser().parent.mkdir(parents=True, exist_ok=True)
    path.expanduser().write_text(page, encoding="utf-8")
    Console(stderr=True).print(f"wrote {path} ({len(page) / 1e6:.1f} MB)", markup=False)


def print_statistics(dataset: Dataset, console: Console) -> None:
    """Prints the tables of `uvd stats`."""
    from uvd.manifests.stats import statistics

    _print_tables(statistics(dataset), console)


def _survey(dataset: Dataset, use_index: bool) -> Survey:
    """Reads the manifests, or the index; many of them with a bar."""
    from uvd.manifests.survey import survey

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading manifests", total=None, visible=False)

        def advance(done: int, of: int) -> None:
            progress.update(task, advance=done, total=of, visible=of >= PROGRESS_FROM)

        return survey(dataset, use_index=use_index, advance=advance)


def _print_tables(content: dict[str, Any], console: Console) -> None:
    from uvd.manifests.stats import flatten

    for name, rows in flatten(content):
        # Not as the table's title, which would be folded to the width of a narrow table.
        console.print(f"[bold]{TITLES[name]}[/]")
        console.print(_table(rows), "")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    """DuckDB's sums of integers are decimals; dates and the like become text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in rows[0] if rows else ():
        numeric = isinstance(rows[0][name], int | float)
        # Where there is too little room, headings are folded and not the content.
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", no_wrap=not numeric)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    """Numbers for people: large ones to five digits (`--format json` has them all)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    if abs(value) < SHORTENED_FROM:
        return f"{value:,.2f}" if isinstance(value, float) and abs(value) < DECIMALS_TO else f"{round(value):,}"
    power = next(power for power in (12, 9, 6) if abs(value) >= 10**power)
    return f"{value / 10**power:,.2f}{_NO_BREAK}{_POWERS[power]}"


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
    for command in (stats, show, doctor):
        app.command()(command)

"""Commands that move tokens: `uvd export`, `uvd import`, `uvd subset`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import SHARDS_FAILED, AddressOption, CpusOption, DatasetOption, OverwriteOption
from uvd.pipeline.config import ConfigError
from uvd.pipeline.ray_runtime import LOCAL
from uvd.pipeline.reporting import report

TokenizerOption = Annotated[str | None, typer.Option(help="Whose tokens; needed if there are several.")]
SourceOption = Annotated[list[str] | None, typer.Option(help="Source to take, repeatable; all by default.")]
SplitOption = Annotated[str | None, typer.Option(help="train, val or test; all by default.")]
WhereOption = Annotated[
    str | None,
    typer.Option(help="SQL condition over key, source, dataset, layout, split, num_images, num_tokens, roles."),
]
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_TOKENIZER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_count(text: str) -> int:
    """A number of tokens: `300000`, `10M`, `1.5B`.

    Raises:
        ConfigError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMBGT]?)", text.strip().upper())
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 1:
        raise ConfigError(f"{text!r} is no number of tokens: expected one such as 300000, 10M or 1.5B")
    return count


def export(
    dataset: DatasetOption,
    format: Annotated[str, typer.Option("--format", help="lvm-jsonl, numpy or hf.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    tokenizer: TokenizerOption = None,
    source: SourceOption = None,
    split: SplitOption = None,
    where: WhereOption = None,
    shuffle: Annotated[
        int | None, typer.Option(help="Seed of a random order; by default by source, shard and row.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write token sequences as files for other programs: LVM's JSON lines, an array for numpy, Parquet for `datasets`.

    Examples:

        uvd export --dataset ~/uvd-data --format lvm-jsonl --split train --shuffle 0 --out ~/lvm-train

        uvd export --dataset ~/uvd-data --format numpy --where "layout = 'pairs'" --out ~/pairs
    """
    from uvd.manifests.export import FORMATS, Format
    from uvd.manifests.export import export as run
    from uvd.manifests.selection import Selection

    if format not in FORMATS:
        raise ConfigError(f"--format {format}: expected {', '.join(FORMATS)}")
    console = Console(stderr=True)
    with _bar(console) as progress:
        task = progress.add_task("exporting sequences", total=None)
        counts = run(
            Dataset.existing(dataset),
            Selection(tokenizer, tuple(source or ()), split, where),
            cast(Format, format),
            out,
            shuffle=shuffle,
            overwrite=overwrite,
            start=lambda counts: progress.update(task, total=counts.sequences),
            advance=lambda: progress.advance(task),
        )
    _say(console, f"wrote {counts.sequences:,} sequences, {counts.images:,} images, {counts.tokens:,} tokens to {out}")


def import_tokens(
    format: Annotated[str, typer.Argument(help="lvm-jsonl.")],
    inputs: Annotated[list[Path], typer.Argument(help="Files, or folders of .jsonl files.")],
    out: Annotated[str, typer.Option(help="Dataset to make or continue: a path or URI.")],
    name: Annotated[str, typer.Option(help="Folder below tokens/TOKENIZER/, and the first part of keys.")] = "lvm",
    raw: Annotated[str, typer.Option("--raw", help="Name of the raw data, for statistics; NAME by default.")] = "",
    tokenizer: Annotated[str, typer.Option(help="Name of the tokenizer that made the codes.")] = "unknown",
    fingerprint: Annotated[str, typer.Option(help="Its fingerprint, as `uvd tokenizer info` prints it.")] = "unknown",
    val: Annotated[float, typer.Option(min=0, max=0.99, help="Share held out as val, by hash of the codes.")] = 0.0,
    address: AddressOption = LOCAL,
    num_cpus: CpusOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn token files of others into token shards.

    The tokenizer is recorded as `unknown` unless it is given, or an `export.json` beside the files names it.

    Example:

        uvd import lvm-jsonl ~/lvm-train --name lvm --tokenizer lvm-vqgan --out ~/uvd-data
    """
    from uvd.pipeline.importing import ImportSettings, import_lvm_jsonl

    if format != "lvm-jsonl":
        raise ConfigError(f"cannot import {format!r}: expected lvm-jsonl")
    for option, pattern, value in (("name", _NAME, name), ("tokenizer", _TOKENIZER, tokenizer)):
        if not pattern.fullmatch(value):
            raise ConfigError(f"--{option} {value}: it becomes a folder, so letters, digits, _ and - only")
    console = Console(stderr=True)
    holdout = (("val", val),) if val else ()
    settings = ImportSettings(name, raw or name, tokenizer, fingerprint, holdout)
    result = import_lvm_jsonl(
        Dataset(out), inputs, settings, address=address, num_cpus=num_cpus, overwrite=overwrite, console=console
    )
    if not report(result, f"tokens of {name}", out, console):
        raise typer.Exit(SHARDS_FAILED)


def subset(
    dataset: DatasetOption,
    out: Annotated[str, typer.Option(help="Dataset to make: a path or URI.")],
    tokenizer: TokenizerOption = None,
    source: SourceOption = None,
    split: SplitOption = None,
    where: WhereOption = None,
    tokens: Annotated[str | None, typer.Option(help="At most so many, such as 10M; a random sample.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another view.")] = False,
) -> None:
    """Make a view: a dataset of some sequences of another, whose tars it refers to. Nothing is copied but manifests.

    A larger --tokens with the same seed holds all of a smaller one.

    Example:

        uvd subset --dataset ~/uvd-data --where "source = 'video'" --tokens 10M --out ~/uvd-10m
    """
    from uvd.manifests.selection import Selection
    from uvd.manifests.subset import subset as run

    console, opened = Console(stderr=True), Dataset.existing(dataset)
    with _bar(console) as progress:
        task = progress.add_task("manifests", total=None)
        counts = run(
            opened,
            Selection(tokenizer, tuple(source or ()), split, where),
            out,
            tokens=parse_count(tokens) if tokens is not None else None,
            seed=seed,
            overwrite=overwrite,
            advance=lambda: progress.advance(task),
        )
    if counts is None:
        _say(console, f"{out} is this view already, nothing to do")
        return
    _say(
        console,
        f"{out}: a view of {opened.uri} with {counts.sequences:,} sequences, {counts.images:,} images, "
        f"{counts.tokens:,} tokens in {counts.shards:,} shards",
    )


def _bar(console: Console) -> Progress:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command("import")(import_tokens)
    app.command()(subset)

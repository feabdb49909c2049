"""Commands that compare models: `uvd eval scaling`, `uvd eval ablation`, `uvd eval context`, `uvd train plot`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import SHARDS_FAILED, AddressOption, DatasetOption, SetOption
from uvd.pipeline.cli_eval_model import (
    BatchOption,
    DeviceOption,
    FormatOption,
    ModelOption,
    OutOption,
    PrecisionOption,
    SeedOption,
    SourceOption,
    SplitOption,
)
from uvd.pipeline.cli_tokenizer import TokenizerOption
from uvd.pipeline.config import ConfigError, override, read_yaml, validate
from uvd.pipeline.measuring import FORMATS, Advance, measure_model, print_table
from uvd.pipeline.ray_runtime import LOCAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvd.trainer.config import TrainConfig
    from uvd.trainer.evaluate.comparison import Tasks, Variant
    from uvd.trainer.evaluate.report import Report
    from uvd.trainer.prompter import Prompter

ConfigOption = Annotated[Path, typer.Option(help="YAML file of `uvd train`, with steps and context.")]
FolderOption = Annotated[Path, typer.Option(help="Folder for the runs and the report; the same one resumes.")]
ReportOption = Annotated[Path | None, typer.Option(help="Folder for the report, instead of --out.")]
PairsOption = Annotated[str, typer.Option(help="Numbers of example pairs before the query.")]
RoleOption = Annotated[list[str] | None, typer.Option(help="Annotation, repeatable; all that can be by default.")]
AskedOption = Annotated[int, typer.Option(min=1, help="Episodes of each annotation.")]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
LR_RULES = ("fixed", "width")


def context(
    dataset: DatasetOption,
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    role: RoleOption = None,
    pairs: PairsOption = "0,1,2,4",
    episodes: AskedOption = 200,
    split: SplitOption = None,
    source: SourceOption = None,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Perplexity of true annotations after 0, 1, 2, 4 … example pairs, on the dataset's held-out `pairs` sequences.

    Example:

        uvd eval context --dataset ~/uvd-data --model runs/tiny --pairs 0,1,2 --out results
    """

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.context import evaluate_context

        asked = _tasks(pairs, role, episodes, split, source, seed, batch)
        return evaluate_context(
            prompter,
            Dataset.existing(dataset),
            roles=asked.roles,
            pairs=asked.pairs,
            episodes=episodes,
            splits=asked.splits,
            sources=asked.sources,
            seed=seed,
            batch=batch,
            advance=advance,
        )

    measure_model(measure, model, tokenizer, device, precision, out, format)


def scaling(
    dataset: DatasetOption,
    config: ConfigOption,
    out: FolderOption,
    sizes: Annotated[str, typer.Option(help="Model sizes, such as 300m,600m,1b.")],
    settings: SetOption = None,
    lr_rule: Annotated[
        str, typer.Option(help="fixed: one learning rate; width: that of the first size, by its width over a size's.")
    ] = "fixed",
    tokenizer: TokenizerOption = "uvd-small",
    role: RoleOption = None,
    pairs: PairsOption = "0,1,2,4",
    episodes: AskedOption = 200,
    split: SplitOption = None,
    source: SourceOption = None,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    report: ReportOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    address: AddressOption = LOCAL,
) -> None:
    """Train several model sizes on the same tokens; compare losses and the perplexity of each annotation.

    Finished runs are kept and begun ones resumed; a run with other settings or data is refused.

    Example:

        uvd eval scaling --dataset ~/uvd-data --config configs/scaling-demo.yaml --sizes femto,pico --out runs/sizes
    """
    from uvd.trainer.evaluate.comparison import size_variants
    from uvd.trainer.model import SIZES

    if lr_rule not in LR_RULES:
        raise ConfigError(f"--lr-rule {lr_rule}: expected {' or '.join(LR_RULES)}")
    names = [name.strip() for name in sizes.split(",")]
    if unknown := [name for name in names if name not in SIZES]:
        raise ConfigError(f"--sizes {sizes}: no size {unknown[0]!r}; there are {', '.join(SIZES)}")
    parsed = _config(config, settings)
    variants = size_variants(parsed, names, by_width=lr_rule == "width")
    asked = _tasks(pairs, role, episodes, split, source, seed, batch)
    _compare("scaling", variants, dataset, out, asked, tokenizer, device, address, format, report, {"lr_rule": lr_rule})


def ablation(
    dataset: DatasetOption,
    config: ConfigOption,
    out: FolderOption,
    subsets: Annotated[str, typer.Option(help="NAME=SOURCE,…; NAME=… Sources to keep; none named keeps all.")],
    settings: SetOption = None,
    tokenizer: TokenizerOption = "uvd-small",
    role: RoleOption = None,
    pairs: PairsOption = "0,1,2,4",
    episodes: AskedOption = 200,
    split: SplitOption = None,
    source: SourceOption = None,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    report: ReportOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    address: AddressOption = LOCAL,
) -> None:
    """Train one model size on several subsets of the data, as many tokens of each; measure all on the same tasks.

    Example:

        uvd eval ablation --dataset ~/uvd-data --config configs/lvm-300m.yaml --set steps=20000 --out runs/subsets
        --subsets "all=;images=laion,images;images+video=laion,images,video"
    """
    from uvd.trainer.evaluate.comparison import subset_variants, token_sources

    parsed = _config(config, settings)
    chosen = parse_subsets(subsets)
    variants = subset_variants(parsed, chosen, token_sources(Dataset.existing(dataset), parsed.tokenizer))
    asked = _tasks(pairs, role, episodes, split, source, seed, batch)
    facts = {"subsets": {name: list(kept) or "all sources" for name, kept in chosen.items()}}
    _compare("ablation", variants, dataset, out, asked, tokenizer, device, address, format, report, facts)


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `uvd train`.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    y: Annotated[str, typer.Option("--y", help="loss, perplexity or val_loss.")] = "loss",
    smooth: Annotated[
        int | None, typer.Option(min=1, help="Lines of the log in each mean; default a twentieth of the log.")
    ] = None,
    title: Annotated[str, typer.Option(help="Above the chart.")] = "",
) -> None:
    """Draw loss against tokens of several training runs: lines for training, points for the held-out split.

    Example:

        uvd train plot runs/300m runs/600m runs/1b --out scaling.png
    """
    from uvd.manifests.sheet import save_png
    from uvd.trainer.plotting import MEASURES, loss_chart, read_runs

    if y not in MEASURES:
        raise ConfigError(f"--y {y}: expected {', '.join(MEASURES)}")
    measure = next(name for name in MEASURES if name == y)
    save_png(loss_chart(read_runs(runs), measure, title, smooth), out)
    Console(stderr=True).print(f"wrote {out}", markup=False)


def parse_subsets(text: str) -> dict[str, tuple[str, ...]]:
    """`all=;images=laion,images` → `{"all": (), "images": ("laion", "images")}`.

    Raises:
        ConfigError: for what is not of this form, or a name that is no folder's.
    """
    subsets: dict[str, tuple[str, ...]] = {}
    for part in text.split(";"):
        name, equals, sources = (piece.strip() for piece in part.partition("="))
        if not equals or not NAME.fullmatch(name) or name in subsets:
            raise ConfigError(f"--subsets: {part!r} is not a new NAME=SOURCE,…; name: letters, digits, + . _ -")
        subsets[name] = tuple(source.strip() for source in sources.split(",") if source.strip())
    return subsets


def parse_pairs(text: str) -> tuple[int, ...]:
    """
    Raises:
        ConfigError: unless it is numbers from 0 to 127 with commas between.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 3 and int(part) < 128 for part in parts):
        raise ConfigError(f"--pairs {text}: expected numbers such as 0,1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def _config(path: Path, settings: list[str] | None) -> TrainConfig:
    from uvd.trainer.config import TrainConfig

    return validate(TrainConfig, override(read_yaml(path), settings or []), str(path))


def _tasks(
    pairs: str,
    roles: list[str] | None,
    episodes: int,
    splits: list[str] | None,
    sources: list[str] | None,
    seed: int,
    batch: int,
) -> Tasks:
    from uvd.trainer.evaluate.comparison import Tasks
    from uvd.trainer.evaluate.dataset_episodes import HELD_OUT

    found = tuple(splits) if splits else HELD_OUT
    return Tasks(tuple(roles or ()), parse_pairs(pairs), episodes, found, tuple(sources or ()), seed, batch)


def _compare(
    task: str,
    variants: Sequence[Variant],
    dataset: str,
    out: Path,
    tasks: Tasks,
    tokenizer: str,
    device: str,
    address: str,
    format: str,
    report_folder: Path | None,
    facts: dict[str, Any],
) -> None:
    """Trains, measures, prints and writes; exit code 3 if a model failed."""
    from uvd.pipeline.ray_runtime import ray_runtime
    from uvd.pipeline.tokenizing import ALLOCATOR
    from uvd.trainer.evaluate.comparison import compare
    from uvd.trainer.log import progress_line
    from uvd.trainer.prompter import Prompter
    from uvd.trainer.train import TrainingStoppedError

    if format not in FORMATS:
        raise ConfigError(f"--format {format}: expected {' or '.join(FORMATS)}")
    console = Console(stderr=True)

    def show(name: str, record: dict[str, Any]) -> None:
        console.print(f"{name}: {progress_line(record)}", markup=False, highlight=False)

    threads = str(variants[0].config.num_threads)
    try:
        with ray_runtime(address, environment={**ALLOCATOR, "OMP_NUM_THREADS": threads}):
            report = compare(
                task,
                variants,
                Dataset.existing(dataset),
                out.expanduser(),
                tasks,
                lambda run: Prompter.load(run, tokenizer, device),
                on_progress=show,
            )
    except TrainingStoppedError as stopped:
        console.print("stopped, a checkpoint is saved; the same command goes on", style="yellow", markup=False)
        raise typer.Exit(SHARDS_FAILED) from stopped
    report.dataset = dataset
    report.settings |= {**facts, "tokenizer": tokenizer}
    if format == "json":
        print(report.as_json())
    else:
        for part in report.as_reports():
            print_table(part, Console())
    for path in report.save(report_folder or out):
        console.print(f"wrote {path}", markup=False)
    for name, why in report.failures.items():
        console.print(f"{name} FAILED: {why}", style="red", markup=False)
    if report.failures:
        raise typer.Exit(SHARDS_FAILED)


def register_eval(app: typer.Typer) -> None:
    for command in (context, scaling, ablation):
        app.command()(command)

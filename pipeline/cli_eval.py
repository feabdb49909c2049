"""Commands that measure: `uvd eval tokenizer`, and the tasks of `cli_eval_model` and `cli_scaling`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from uvd.manifests.dataset import Dataset
from uvd.pipeline import cli_eval_model, cli_scaling
from uvd.pipeline.config import ConfigError
from uvd.sequences.example import SPLITS

if TYPE_CHECKING:
    from uvd.pipeline.evaluating import Evaluation, SourceQuality
    from uvd.tokenize.tokenizer import Precision

eval_app = typer.Typer(help="Measure tokenizers and models.", no_args_is_help=True)
PROBLEMS_SHOWN = 5
CHOICES = {
    "split": ("all", *SPLITS),
    "precision": ("fp32", "bf16"),
    "format": ("table", "json"),
}


@eval_app.command("tokenizer")
def eval_tokenizer(
    dataset: Annotated[str | None, typer.Option(help="Dataset: a path, or s3://, gs://, file:// URI.")] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Image file or folder instead; repeatable.")] = None,
    tokenizer: Annotated[str, typer.Option(help="Embedded tokenizer by name, or a folder.")] = "uvd-small",
    source: Annotated[list[str] | None, typer.Option(help="Source to measure, repeatable; all by default.")] = None,
    split: Annotated[str, typer.Option(help="all, train, val or test.")] = "all",
    max_images: Annotated[int, typer.Option(min=1, help="Pictures a source, chosen evenly over it.")] = 1000,
    features: Annotated[
        Path | None, typer.Option(help="mobilenet_v2-b0353104.pth; adds perceptual and Fréchet distance.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the tokenizer.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the choice of pictures.")] = 0,
    format: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
    sheet: Annotated[Path | None, typer.Option(help="PNG of pictures, reconstructions and errors.")] = None,
) -> None:
    """Measure how well a tokenizer keeps pictures: PSNR, SSIM, use of the codebook, per source and over all.

    LPIPS is added where the `lpips` package and the weights of its trunk are installed.

    Examples:

        uvd eval tokenizer --dataset ~/uvd-data --tokenizer uvd-small --split val

        uvd eval tokenizer --images ~/photos --features mobilenet_v2-b0353104.pth --format json
    """
    from uvd.manifests.sheet import save_png
    from uvd.pipeline.evaluating import dataset_groups, evaluate, file_group, quality_sheet
    from uvd.tokenize.mobilenet import load_mobilenet
    from uvd.tokenize.perceptual import LpipsLoss, lpips_at_hand
    from uvd.tokenize.tokenizer import load_tokenizer

    for name, value in (("split", split), ("precision", precision), ("format", format)):
        if value not in CHOICES[name]:
            raise ConfigError(f"--{name} {value}: expected one of {', '.join(CHOICES[name])}")
    _check_device(device)
    if (dataset is None) == (not images):
        raise ConfigError("give either --dataset or --images")
    if images and (source or split != "all"):
        raise ConfigError("--source and --split choose from a dataset, not from --images")
    loaded = load_tokenizer(tokenizer, device=device, precision=cast("Precision", precision))
    network = load_mobilenet(features).to(loaded.device) if features else None
    lpips = LpipsLoss().to(loaded.device) if lpips_at_hand() else None
    if images:
        groups = [file_group(images, max_images, seed)]
    else:
        groups = dataset_groups(Dataset.existing(str(dataset)), source or (), split, max_images, seed)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=sum(group.size for group in groups))
        evaluation = evaluate(loaded, groups, network, lambda pictures: progress.advance(task, pictures), lpips)
    heading = {
        "tokenizer": loaded.name,
        "fingerprint": loaded.fingerprint,
        "precision": precision,
        "device": str(loaded.device),
        "codes": loaded.vocab.codes,
        "features": features.name if features else None,
        "lpips": lpips is not None,
        "split": split if dataset else None,
        "max_images": max_images,
        "seed": seed,
    }
    _say_problems(evaluation, console)
    if format == "json":
        rows = [row.as_dict() for row in evaluation.sources]
        print(json.dumps({**heading, "sources": rows, "all": evaluation.total.as_dict()}, indent=1, ensure_ascii=False))
    else:
        _print_table(evaluation, heading, Console())
    if sheet:
        save_png(quality_sheet(evaluation, f"{loaded.name}: reconstructions"), sheet)
        console.print(f"wrote {sheet}", markup=False)


def _check_device(device: str) -> None:
    import torch

    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu") and (kind != "cuda" or not (number or "0").isdecimal()):
        raise ConfigError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: there are {torch.cuda.device_count()} GPUs; use --device cpu")


def _say_problems(evaluation: Evaluation, console: Console) -> None:
    for row in evaluation.sources:
        for problem in row.unreadable[:PROBLEMS_SHOWN]:
            console.print(f"{row.source}: unreadable, left out: {problem}", style="red", markup=False, soft_wrap=True)
        if len(row.unreadable) > PROBLEMS_SHOWN:
            console.print(f"{row.source}: and {len(row.unreadable) - PROBLEMS_SHOWN} more", style="red", markup=False)


def _print_table(evaluation: Evaluation, heading: dict[str, Any], console: Console) -> None:
    console.print(f"tokenizer {heading['tokenizer']}, {heading['precision']}, {heading['device']}", markup=False)
    console.print(f"fingerprint {heading['fingerprint']}", markup=False, highlight=False)
    columns = ["images", "PSNR", "pooled", "SSIM", "usage", "perplexity"]
    if heading["features"] is not None:
        columns += ["perceptual", "Fréchet"]
    if heading["lpips"]:
        columns.append("LPIPS")
    if evaluation.total.unreadable:
        columns.append("unread")
    # Narrow, so that all of it fits a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("source")
    for name in columns:
        table.add_column(name, justify="right")
    for row in evaluation.sources:
        table.add_row(row.source, *_cells(row, columns))
    if len(evaluation.sources) > 1:
        table.add_section()
        table.add_row("all", *_cells(evaluation.total, columns))
    console.print(table)
    notes = [
        "PSNR      dB, mean over images; pooled: of the error over all their pixels",
        f"usage     share of the {heading['codes']:,} codes; perplexity: so many, if used evenly",
    ]
    if heading["features"] is not None:
        notes.append("Fréchet   and perceptual: distances of MobileNetV2's features; Fréchet, no FID,")
        notes.append("          falls as images are added: compare it at equal numbers only")
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)


def _cells(row: SourceQuality, columns: list[str]) -> list[str]:
    cells = {"images": "0", "unread": f"{len(row.unreadable):,}"}
    if (quality := row.quality) is not None:
        cells |= {
            "images": f"{quality.pictures:,}",
            "PSNR": f"{quality.psnr:.2f}",
            "pooled": f"{quality.psnr_pooled:.2f}",
            "SSIM": f"{quality.ssim:.3f}",
            "usage": f"{quality.usage:.1%}",
            "perplexity": f"{quality.perplexity:,.0f}",
            "perceptual": "" if quality.perceptual is None else f"{quality.perceptual:.3f}",
            "LPIPS": "" if quality.lpips is None else f"{quality.lpips:.3f}",
            "Fréchet": "" if quality.frechet is None else f"{quality.frechet:.2f}",
        }
    return [cells.get(name, "") for name in columns]


def register(app: typer.Typer) -> None:
    cli_eval_model.register(eval_app)
    cli_scaling.register_eval(eval_app)
    app.add_typer(eval_app, name="eval")

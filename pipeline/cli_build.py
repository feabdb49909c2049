"""`uvd build`: sources and their tokens in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from uvd.pipeline.build_config import read_build_config
from uvd.pipeline.cli_data import (
    SHARDS_FAILED,
    AddressOption,
    CpusOption,
    GpusOption,
    OverwriteOption,
    SetOption,
    WaitOption,
)
from uvd.pipeline.config import ConfigError
from uvd.pipeline.ray_runtime import LOCAL
from uvd.pipeline.reporting import report


def build(
    config: Annotated[Path, typer.Option(help="YAML file; see configs/build.yaml.")],
    out: Annotated[str, typer.Option(help="Dataset to make or continue: a path or URI.")],
    settings: SetOption = None,
    source: Annotated[list[str] | None, typer.Option(help="Build only this source, repeatable.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Embedded tokenizer by name, or a folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    keep_images: Annotated[
        bool | None, typer.Option("--keep-images/--drop-images", help="Keep the image tars; manifests are, anyway.")
    ] = None,
    num_gpus: GpusOption = None,
    address: AddressOption = LOCAL,
    num_cpus: CpusOption = None,
    overwrite: OverwriteOption = False,
    wait: WaitOption = False,
) -> None:
    """Turn raw inputs of several sources into image shards and token shards in one pass.

    Examples:

        uvd build --config my-build.yaml --out ~/uvd-data

        uvd build --config my-build.yaml --out s3://bucket/uvd --source photos --drop-images --address auto

    The bytes are those of `uvd ingest` and `uvd tokenize` one after the other. The same command again continues a run
    that was stopped, or one of these two.
    """
    from uvd.pipeline.building import BuildOptions
    from uvd.pipeline.building import build as run
    from uvd.pipeline.tokenizing import TokenizeSettings

    given = {"tokenizer.name": tokenizer, "tokenizer.device": device}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    parsed, sources = read_build_config(config, [*(settings or []), *options])
    names = [one.folder for one in sources]
    if unknown := sorted(set(source or []) - set(names)):
        raise ConfigError(f"--source {unknown[0]}: {config} has {', '.join(names)}")
    chosen = [one for one in sources if not source or one.folder in source]
    console = Console(stderr=True)
    for one in chosen:
        if one.warning:
            console.print(f"note: {one.folder}: {one.warning}", style="yellow", markup=False, highlight=False)
    made_with = parsed.tokenizer
    results = run(
        chosen,
        out,
        TokenizeSettings(
            made_with.name, made_with.device, made_with.batch_size, made_with.precision, made_with.compile
        ),
        BuildOptions(
            parsed.keep_images if keep_images is None else keep_images, num_gpus, address, num_cpus, overwrite, wait
        ),
        console,
    )
    complete = [report(result, f"{name} and its tokens", out, console) for name, result in results]
    if len(complete) < len(chosen) or not all(complete):
        raise typer.Exit(SHARDS_FAILED)


def register(app: typer.Typer) -> None:
    app.command()(build)

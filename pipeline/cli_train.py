"""Commands that train the transformer: `uvd train`, `uvd train plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline import cli_scaling
from uvd.pipeline.cli_data import SHARDS_FAILED, AddressOption, SetOption
from uvd.pipeline.config import ConfigError, override, read_yaml, validate
from uvd.pipeline.ray_runtime import LOCAL

train_app = typer.Typer(invoke_without_command=True)


# The three that a run needs are no required options, or `uvd train plot` would ask for them too.
@train_app.callback()
def train(
    context: typer.Context,
    dataset: Annotated[str | None, typer.Option(help="Dataset: a path, or s3://, gs://, file:// URI.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; see configs/tiny.yaml and configs/lvm-*.yaml.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: log, checkpoints, final model.")] = None,
    settings: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    address: AddressOption = LOCAL,
) -> None:
    """Train a transformer on the dataset's tokens, through Ray Train; needs --dataset, --config and --out.

    Ctrl-C or SIGTERM saves a checkpoint after the step under way and exits with 3; --resume goes on as if nothing had
    been. Lost workers are replaced. The log is OUT/log.jsonl, the same for TensorBoard in OUT/tensorboard.

    Examples:

        uvd train --dataset ~/uvd-data --config configs/tiny.yaml --out runs/tiny

        uvd train --dataset s3://bucket/uvd --config configs/lvm-1b.yaml --set num_workers=8 --out /shared/runs/1b

        uvd train plot runs/300m runs/1b --out losses.png
    """
    if context.invoked_subcommand is not None:
        return
    if dataset is None or config is None or out is None:
        given = {"--dataset": dataset, "--config": config, "--out": out}
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise ConfigError(f"uvd train needs {missing}; see uvd train --help")
    from uvd.pipeline.ray_runtime import ray_runtime
    from uvd.pipeline.tokenizing import ALLOCATOR
    from uvd.trainer.config import TrainConfig
    from uvd.trainer.log import progress_line
    from uvd.trainer.train import TrainingStoppedError
    from uvd.trainer.train import train as run

    parsed = validate(TrainConfig, override(read_yaml(config), settings or []), str(config))
    Dataset.existing(dataset)
    console = Console(stderr=True)
    try:
        with ray_runtime(address, environment={**ALLOCATOR, "OMP_NUM_THREADS": str(parsed.num_threads)}):
            run(
                parsed,
                dataset,
                out,
                resume=resume,
                on_progress=lambda record: console.print(progress_line(record), markup=False, highlight=False),
            )
    except TrainingStoppedError as stopped:
        console.print(str(stopped), style="yellow", markup=False, highlight=False)
        raise typer.Exit(SHARDS_FAILED) from stopped
    console.print(f"the model is in {out}/model", style="green", markup=False)


def register(app: typer.Typer) -> None:
    train_app.command()(cli_scaling.plot)
    app.add_typer(train_app, name="train")

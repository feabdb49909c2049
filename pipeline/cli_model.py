"""Commands that learn and what they show: `uvd train`, `uvd prompt`, `uvd demo`, `uvd gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import AddressOption, DatasetOption, SetOption
from uvd.pipeline.cli_tokenizer import ImagesOption, TokenizerOption
from uvd.pipeline.config import override, read_yaml, validate
from uvd.pipeline.ray_runtime import LOCAL


def train(
    dataset: DatasetOption,
    config: Annotated[Path, typer.Option(help="YAML file; see configs/tiny.yaml and configs/lvm-*.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log, checkpoints, final model.")],
    settings: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    address: AddressOption = LOCAL,
) -> None:
    """Train a transformer on the dataset's tokens, through Ray Train.

    Example:

        uvd train --dataset ~/uvd-data --config configs/tiny.yaml --out runs/tiny
    """
    from uvd.pipeline.ray_runtime import ray_runtime
    from uvd.pipeline.tokenizing import ALLOCATOR
    from uvd.trainer.config import TrainConfig
    from uvd.trainer.log import progress_line
    from uvd.trainer.train import train as run

    parsed = validate(TrainConfig, override(read_yaml(config), settings or []), str(config))
    Dataset.existing(dataset)
    console = Console(stderr=True)
    with ray_runtime(address, environment={**ALLOCATOR, "OMP_NUM_THREADS": str(parsed.num_threads)}):
        run(
            parsed,
            dataset,
            out,
            resume=resume,
            on_progress=lambda record: console.print(progress_line(record), markup=False, highlight=False),
        )
    console.print(f"the model is in {out}/model", style="green", markup=False)


def prompt(
    model: Annotated[Path, typer.Option(help="Run of `uvd train`, checkpoint, or Hugging Face folder.")],
    images: ImagesOption,
    out: Annotated[Path, typer.Option(help="PNG sheet to write.")],
    steps: Annotated[int, typer.Option(min=1, max=15, help="Images to predict.")] = 1,
    tokenizer: TokenizerOption = "uvd-small",
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the smallest set of this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0 for all.")] = 0,
    seed: int = 0,
) -> None:
    """Predict what comes after some images, and draw prompt (grey) and prediction (red) as a sheet.

    Examples:

        uvd prompt --model runs/tiny --images f1.png --images f2.png --images f3.png --out next.png

        uvd prompt --model runs/tiny --images a.jpg --images a-boxes.png --images b.jpg --out boxes.png
    """
    from uvd.manifests.sheet import save_png
    from uvd.pipeline.showing import read_pictures
    from uvd.tokenize.tokenizer import load_matching
    from uvd.trainer.prompt import load_model, predict_images, prompt_sheet, trained_on

    loaded = load_matching(tokenizer, trained_on(model))
    transformer = load_model(model, tokenizer_fingerprint=loaded.fingerprint)
    context = read_pictures(images)
    predicted = predict_images(
        transformer, loaded, context, steps, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    save_png(prompt_sheet(context, predicted), str(out))
    Console(stderr=True).print(f"wrote {out}", markup=False)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for inputs, dataset, model and pictures.")] = Path("demo"),
    train_minutes: Annotated[float, typer.Option(min=0.1, help="Time budget of the training.")] = 4.0,
) -> None:
    """Run the whole system on small real data: every source, tokens, training, predictions, pictures to open.

    Takes under 10 minutes on 2 cores; the same command again continues what was interrupted.
    """
    from uvd.pipeline.demo.run import run

    if not run(out, train_minutes, Console(stderr=True)):
        raise typer.Exit(3)


def gallery(
    dataset: DatasetOption = "demo/dataset",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/gallery"),
) -> None:
    """Draw the documentation's pictures from the demo's dataset and sample clips."""
    from uvd.pipeline.demo.gallery import draw_gallery

    Console(stderr=True).print(f"wrote {draw_gallery(Dataset.existing(dataset), out)}", markup=False)


def register(app: typer.Typer) -> None:
    for command in (train, prompt, demo, gallery):
        app.command()(command)

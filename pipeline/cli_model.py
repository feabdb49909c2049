"""Commands that show what a model has learned: `uvd prompt`, `uvd demo`, `uvd gallery`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import DatasetOption
from uvd.pipeline.cli_tokenizer import TokenizerOption
from uvd.pipeline.config import ConfigError


def prompt(
    model: Annotated[Path, typer.Option(help="Run of `uvd train`, checkpoint, or Hugging Face folder.")],
    images: Annotated[
        list[Path] | None, typer.Option(help="Image files in order: frames, query, views; repeatable.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option(help="Files of one pair, chain or group: `a.png,b.png`; repeatable.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="sequential, analogy, composed, category or rotation; see below.")
    ] = None,
    from_dataset: Annotated[
        tuple[str, str] | None, typer.Option(help="Dataset and key of a sequence instead; shows the truth too.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="With --from-dataset: images in the prompt; default all but --steps.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG sheet to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print perplexities as JSON.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Images to predict; default what the form asks for.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Answers to draw, ranked by perplexity.")] = 1,
    tokenizer: TokenizerOption = "uvd-small",
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the smallest set of this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the first candidate; the others count on.")] = 0,
    window: Annotated[
        bool, typer.Option("--window", help="Drop the oldest images if the prompt does not fit the model's context.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the transformer.")] = "fp32",
) -> None:
    """Predict what comes after some images; draw prompt (grey frames) and predictions (red frames) as a sheet.

    Forms: `sequential` continues --images, the default. `analogy` shows a task by --pairs `in,out` and asks for the
    answer to the one image. `composed` does the same with chains `x,A(x),B(A(x))` and predicts all results. `category`
    continues a group of one class, after whole groups in --pairs. `rotation` turns an object on.

    Examples:

        uvd prompt --model runs/tiny --images f1.png --images f2.png --images f3.png --steps 2 --out next.png

        uvd prompt --model runs/tiny --form analogy --pairs a.jpg,a-boxes.png --pairs b.jpg,b-boxes.png
        --images c.jpg --candidates 4 --out boxes.png

        uvd prompt --model runs/tiny --from-dataset ~/uvd-data video-000000-000003 --context 7 --out next.png --json
    """
    from uvd.manifests.sheet import save_png
    from uvd.pipeline.showing import read_pictures
    from uvd.trainer.prompt import answer, answer_sheet, dataset_question, question, ranking, report, true_answer
    from uvd.trainer.prompt_forms import build_prompt
    from uvd.trainer.prompter import Prompter
    from uvd.trainer.sampling import Sampling

    if out is None and not as_json:
        raise ConfigError("give --out, --json or both")
    if (from_dataset is None) == (not images) or (from_dataset is not None and (pairs or form)):
        raise ConfigError("give either --images, with --form and --pairs as it needs, or --from-dataset")
    if from_dataset is None and context is not None:
        raise ConfigError("--context goes with --from-dataset")
    sampling = Sampling(temperature, top_k, top_p)
    prompter = Prompter.load(model, tokenizer, device, precision=precision)
    if from_dataset is not None:
        asked = dataset_question(prompter, Dataset.existing(from_dataset[0]), from_dataset[1], context, steps or 1)
    else:
        rows = [read_pictures([Path(name) for name in row.split(",")]) for row in pairs or []]
        asked = question(prompter, build_prompt(form or "sequential", read_pictures(images or []), rows, steps))
    answers = answer(prompter, asked, candidates=candidates, sampling=sampling, seed=seed, window=window)
    truth = true_answer(prompter, asked, window=window)
    console = Console(stderr=True)
    for line in ranking(answers, truth):
        console.print(line, markup=False, highlight=False)
    if as_json:
        heading = {"model": str(model), "tokenizer": prompter.tokenizer.name, "device": str(prompter.device)}
        print(json.dumps({**heading, "sampling": asdict(sampling), **report(asked, answers, truth)}, indent=1))
    if out is not None:
        save_png(answer_sheet(asked.prompt, answers, truth, f"{model}: {asked.prompt.form}"), out)
        console.print(f"wrote {out}", markup=False)


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
    for command in (prompt, demo, gallery):
        app.command()(command)

"""`uvd play`: a local web page to prompt a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_tokenizer import TokenizerOption


def play(
    model: Annotated[Path, typer.Option(help="Run of `uvd train`, checkpoint, or Hugging Face folder.")],
    tokenizer: TokenizerOption = "uvd-small",
    dataset: Annotated[
        str | None, typer.Option(help="Dataset whose sequences can be prompts too; shows the truth.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. There is no password: whoever reaches it can use the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the transformer.")] = "fp32",
) -> None:
    """Serve a web page on this machine to prompt a model: drop images, choose a form, see predictions and perplexities.

    Shows the sheet of `uvd prompt`, the ranking of the candidates, and the perplexity of every token as a heat map
    beside its picture. Ctrl-C ends it and deletes what was uploaded. The page loads nothing from other machines.

    Example:

        uvd play --model runs/tiny --dataset ~/uvd-data
    """
    from uvd.pipeline.showing import read_pictures
    from uvd.sources.decode import IMAGE_SUFFIXES, MAX_BYTES
    from uvd.trainer.play import Play
    from uvd.trainer.play_server import is_loopback, serve, upload_folder
    from uvd.trainer.prompter import Prompter

    console = Console(stderr=True)
    stored = None if dataset is None else Dataset.existing(dataset)
    prompter = Prompter.load(model, tokenizer, device, precision=precision)
    if not is_loopback(host):
        console.print(f"{host} can be reached from other machines, and there is no password", style="yellow")
    with upload_folder():
        # Gradio reads the folder's name when it is imported.
        from uvd.trainer.play_page import Page

        serve(
            Page(Play(prompter, read_pictures, stored), str(model), sorted(IMAGE_SUFFIXES)),
            host,
            port,
            max_bytes=MAX_BYTES,
            on_ready=lambda address: console.print(f"the page is at {address} (Ctrl-C ends it)", markup=False),
            open_browser=browser,
        )


def register(app: typer.Typer) -> None:
    app.command()(play)

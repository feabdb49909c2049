"""`uvd browse`: a local web app over a dataset."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import DatasetOption


def browse(
    dataset: DatasetOption,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Whose tokens are decoded: name or folder; by default one of the dataset's that uvd has."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. There is no password: whoever reaches it sees the dataset.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8090,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Serve pages on this machine to look through a dataset; changes nothing in it.

    Pages by source, layout, role and split, pictures beside their decoded tokens, search by key or origin, look-alikes
    by perceptual hash, random samples. Ctrl-C ends it. The pages load nothing from other machines.

    Example:

        uvd browse --dataset ~/uvd-data
    """
    from uvd.pipeline.browse.app import Browser
    from uvd.pipeline.browse.server import serve
    from uvd.trainer.play_server import is_loopback

    console = Console(stderr=True)
    pages = Browser(Dataset.existing(dataset), tokenizer)
    if not is_loopback(host):
        console.print(f"{host} can be reached from other machines, and there is no password", style="yellow")
    serve(
        pages,
        host,
        port,
        on_ready=lambda address: console.print(f"the pages are at {address} (Ctrl-C ends it)", markup=False),
        open_browser=browser,
    )


def register(app: typer.Typer) -> None:
    app.command()(browse)

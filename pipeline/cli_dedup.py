"""The command that looks for duplicates: `uvd dedup`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import DatasetOption


def dedup(
    dataset: DatasetOption,
    source: Annotated[list[str] | None, typer.Option(help="Source to compare, repeatable; all by default.")] = None,
    bits: Annotated[int, typer.Option(min=0, max=8, help="Of 64, that near-duplicates differ in at most.")] = 3,
    exact: Annotated[bool, typer.Option("--exact", help="Equal stored bytes alone, no near-duplicates.")] = False,
    roles: Annotated[list[str] | None, typer.Option(help="Pictures that take part, repeatable; `image`.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Dataset of an evaluation set, repeatable: marks what is near it, only that."),
    ] = None,
    memory_gb: Annotated[float, typer.Option(min=0.1, help="Memory of the joins; beyond it they use disk.")] = 4.0,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="Threads; all cores by default.")] = None,
) -> None:
    """Mark near-duplicates by the perceptual hashes in the manifests, over all shards at once.

    Nothing is deleted: the groups are written to DATASET/dedup/all.parquet, or to one named after the sources. Its
    column `exact` tells pictures of the same bytes; with --exact only those are looked for, into all-exact.parquet.

    With --against it is all-against-… instead: every picture near one of an evaluation set. `duplicates: NAME` in the
    config of `uvd train` leaves out what a pass has marked, `uvd tokenize --duplicates NAME` too.

    Examples:

        uvd dedup --dataset ~/uvd-data --source laion

        uvd dedup --dataset ~/uvd-data --exact

        uvd dedup --dataset ~/uvd-data --against ~/kinetics-val --bits 6
    """
    from uvd.manifests.dedup import DedupSettings, find_duplicates

    settings = DedupSettings(
        bits=bits,
        exact=exact,
        sources=tuple(source or ()),
        roles=tuple(roles or ("image",)),
        against=tuple(against or ()),
        memory_gb=memory_gb,
        threads=num_cpus,
    )
    found = find_duplicates(Dataset.existing(dataset), settings)
    share = 100 * found.marked / found.images
    console = Console()
    for line in (
        f"{found.images:,} images, {found.hashes:,} different hashes",
        f"{found.groups:,} groups; {found.marked:,} images ({share:.2f} %) are {'' if exact else 'near-'}duplicates of "
        f"one that stays, {found.equal:,} of them with its perceptual hash, {found.exact:,} with its very bytes",
        *(f"  {images:,} images like {key}" for key, images in found.largest),
        f"wrote {dataset}/{found.path}; no image was removed",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    app.command()(dedup)

"""Which folders a run must hold before it writes: its own, and with `--overwrite` those of what is made from them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.manifests.lease import Lease, hold


def writing(
    dataset: Dataset, folders: Iterable[str], console: Console, *, overwrite: bool = False, wait: bool = False
) -> AbstractContextManager[Lease]:
    """Holds folders for the time of the block; see `manifests.lease`.

    Args:
        folders: `sequences/NAME` or `tokens/TOKENIZER/NAME`; rounds of retries belong to the folder of their source.
        overwrite: they may be emptied, and with them the tokens that were made from them.
        wait: wait for another run that holds one, rather than refuse.

    Raises:
        FolderHeldError: if another run holds one and `wait` is off.
    """
    wanted = set(folders)
    if overwrite:
        sources = {folder.partition("/")[2] for folder in wanted if folder.startswith("sequences/")}
        derived = dataset.token_folders()
        wanted |= {f"tokens/{tokenizer}/{source}" for tokenizer, source in derived if source in sources}

    def say(line: str) -> None:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    return hold(dataset.storage, wanted, wait=wait, say=say)

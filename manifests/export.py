"""Export: chosen token sequences of a dataset as files that other programs read.

The folder appears whole or not at all, and its bytes follow from the sequences, their order, the format and the
versions of uvd and pyarrow. Memory: one shard's manifest, 16 MiB of its tar, a row group; with a shuffle, 2 bytes a
token of a block more.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from uvd import __version__
from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.export_formats import FormatWriter, HubParquet, LvmJsonl, NumpyArrays
from uvd.manifests.selection import SelectedTokens, Selection
from uvd.manifests.storage import fsync_path
from uvd.manifests.tokens import BOS, CODEBOOK_SIZE, EOS, TOKENS_PER_IMAGE

Format = Literal["lvm-jsonl", "numpy", "hf"]
FORMATS: tuple[str, ...] = get_args(Format)
ABOUT = "export.json"
"""Says what an export holds; also the mark by which `--overwrite` knows a folder that it may delete."""


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """What there is to export, or was exported."""

    sequences: int
    images: int
    tokens: int
    """With BOS and EOS."""


def count(selected: SelectedTokens) -> ExportCounts:
    """Sums over the chosen rows of the manifests; no token is read.

    Raises:
        DatasetError: if nothing is chosen.
    """
    sequences = images = tokens = 0
    for shard in selected.shards():
        table = selected.rows(shard)
        sequences += table.num_rows
        images += int(table["num_images"].to_numpy().sum(dtype=np.int64))
        tokens += int(table["num_tokens"].to_numpy().sum(dtype=np.int64))
    if not sequences:
        raise DatasetError(f"no token sequence in {selected.dataset.uri} is chosen: nothing to write")
    return ExportCounts(sequences, images, tokens)


def export(
    dataset: Dataset,
    selection: Selection,
    form: Format,
    out: Path,
    *,
    shuffle: int | None = None,
    overwrite: bool = False,
    start: Callable[[ExportCounts], None] = lambda counts: None,
    advance: Callable[[], None] = lambda: None,
) -> ExportCounts:
    """Writes an export into the folder `out`.

    Args:
        shuffle: seed of the order; by default sequences come by source, shard and row.
        overwrite: replace an earlier export; nothing else is ever deleted.
        start: called with the counts before the first sequence, for progress.
        advance: called after each sequence.

    Raises:
        DatasetError: if nothing is chosen, `out` is there already, or a shard is damaged.
    """
    out = out.expanduser().absolute()
    _check_place(out, overwrite)
    selected = SelectedTokens(dataset, selection)
    fingerprint, counts = selected.tokenizer_fingerprint(), count(selected)
    start(counts)
    with _temporary_folder(out) as folder:
        writer = _writer(form, folder, counts)
        for row, tokens in selected.sequences(shuffle):
            writer.add(row, tokens)
            advance()
        writer.close()
        about = {
            "format": form,
            "uvd_version": __version__,
            "tokenizer": selected.tokenizer,
            "tokenizer_fingerprint": fingerprint,
            "selection": asdict(selection),
            "shuffle": shuffle,
            **asdict(counts),
            "ids": {"codes": CODEBOOK_SIZE, "bos": BOS, "eos": EOS, "codes_per_image": TOKENS_PER_IMAGE},
            "framed": form != "lvm-jsonl",
            "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)},
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _put_in_place(folder, out)
    return counts


def _writer(form: Format, folder: Path, counts: ExportCounts) -> FormatWriter:
    if form == "lvm-jsonl":
        return LvmJsonl(folder)
    return NumpyArrays(folder, counts.sequences) if form == "numpy" else HubParquet(folder)


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / ABOUT).is_file():
        raise DatasetError(f"{out} is there and is no export (it has no {ABOUT}): choose another --out")
    if not overwrite:
        raise DatasetError(f"{out} holds an export already: choose another --out, or --overwrite it")


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, deleted at the end unless it was moved; so are those that killed exports have left."""
    out.parent.mkdir(parents=True, exist_ok=True)
    mine = out.parent / f".{out.name}.{os.urandom(6).hex()}.tmp"
    for old in _left_behind(out):
        shutil.rmtree(old)
    mine.mkdir()
    lock = os.open(mine, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield mine
    finally:
        os.close(lock)
        shutil.rmtree(mine, ignore_errors=True)


def _left_behind(out: Path) -> Iterator[Path]:
    """Temporary folders of `out` that no running export holds."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.tmp")
    for path in sorted(out.parent.iterdir()):
        if not pattern.fullmatch(path.name) or not path.is_dir():
            continue
        lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
        yield path


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _put_in_place(folder: Path, out: Path) -> None:
    for path in (*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder):
        fsync_path(path)
    if out.exists():
        # A folder that is not empty cannot be replaced by a rename; the old one goes when the new one is there.
        old = out.parent / f".{out.name}.{os.urandom(6).hex()}.tmp"
        os.rename(out, old)
        os.rename(folder, out)
        shutil.rmtree(old)
    else:
        os.rename(folder, out)
    fsync_path(out.parent)


def read_about(folder: Path) -> dict[str, Any]:
    """What `export.json` in a folder says; empty if there is none.

    Raises:
        DatasetError: if it is damaged.
    """
    path = folder / ABOUT
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is damaged: {error}") from error
    if not isinstance(about, dict):
        raise DatasetError(f"{path} is damaged: not an object")
    return about

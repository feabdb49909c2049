"""Contact sheets: one sequence of a dataset, reconstructions of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.find import find_sequence, find_tokens
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.kept_pictures import pictures_kept
from uvd.manifests.sheet import contact_sheet
from uvd.manifests.token_shard import read_tokens
from uvd.manifests.tokens import unframe
from uvd.sequences import fit
from uvd.sequences.reject import RejectedInput
from uvd.sources.decode import decode_image, read_bytes

if TYPE_CHECKING:
    from uvd.tokenize.tokenizer import Tokenizer


def sequence_sheet(dataset: Dataset, key: str, tokenizer: str | None = None) -> NDArray[np.uint8]:
    """Draws a sequence, and below each row the pictures decoded from its tokens if `tokenizer` is given.

    Returns:
        `(height, width, 3)` uint8 RGB.

    Raises:
        DatasetError: no such sequence, or it is not tokenized.
        PicturesNotKeptError: its pictures are not kept, and `tokenizer` is not given: then they are left out.
    """
    shard, row = find_sequence(dataset, key)
    labels = [
        f"{number:02d} {role}" + (f" {index}" if index is not None else "")
        for number, (role, index) in enumerate(zip(row["roles"], row["indices"], strict=True))
    ]
    title = f"{key}   {row['dataset']} · {row['layout']} · {row['split']}"
    columns = 8
    if tokenizer is None:
        pictures = list(read_sequence(dataset, shard, row).pictures())
        return contact_sheet(pictures, labels, columns=columns, title=title)
    decoded = _decoded(dataset, key, tokenizer)
    if not pictures_kept(dataset, shard.folder.partition("/")[2]):
        labels = [f"{label} decoded" for label in labels]
        return contact_sheet(decoded, labels, columns=columns, title=f"{title} · pictures not kept")
    pictures = list(read_sequence(dataset, shard, row).pictures())
    pictures, labels = _by_turns(pictures, decoded, labels, columns)
    return contact_sheet(pictures, labels, columns=columns, title=title)


def _decoded(dataset: Dataset, key: str, tokenizer: str) -> list[NDArray[np.uint8]]:
    """The pictures that a sequence's tokens stand for, each `(256, 256, 3)` uint8 RGB."""
    from uvd.tokenize.tokenizer import find_folder, load_matching

    shard, row = find_tokens(dataset, key, find_folder(tokenizer).name)
    made_by = dataset.metadata(shard)["tokenizer_fingerprint"]
    loaded = load_matching(tokenizer, made_by)
    if made_by != loaded.fingerprint:
        raise DatasetError(f"the tokens of {key!r} were made by another tokenizer named {loaded.name!r}")
    return list(loaded.decode(unframe(read_tokens(dataset, shard, row))))


def _by_turns(
    pictures: list[NDArray[np.uint8]], decoded: list[NDArray[np.uint8]], labels: list[str], columns: int
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Rows of pictures and rows of their decoded tokens; the last row is filled up with blanks."""
    blank = np.full_like(pictures[0], 250)
    all_pictures: list[NDArray[np.uint8]] = []
    all_labels: list[str] = []
    for start in range(0, len(pictures), columns):
        for group, suffix in ((pictures, ""), (decoded, " decoded")):
            part = group[start : start + columns]
            fill = min(columns, len(pictures)) - len(part)
            all_pictures += [*part, *[blank] * fill]
            all_labels += [*(label + suffix for label in labels[start : start + columns]), *[""] * fill]
    return all_pictures, all_labels


def read_pictures(files: Sequence[Path]) -> NDArray[np.uint8]:
    """Reads image files as `(N, 256, 256, 3)` uint8 RGB, centre-cropped.

    Raises:
        DatasetError: names the file that cannot be used.
    """
    pictures = []
    for file in files:
        try:
            pixels, _ = decode_image(read_bytes(file))
        except RejectedInput as rejected:
            raise DatasetError(f"{file}: {rejected}") from rejected
        pictures.append(fit(pixels.shape[1], pixels.shape[0]).image(pixels))
    return np.stack(pictures)


def reconstruction_sheet(tokenizer: Tokenizer, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Rows of originals, reconstructions and absolute errors; and the mean PSNR in dB."""
    from uvd.tokenize.metrics import psnr

    decoded = tokenizer.decode(tokenizer.encode(pictures))
    difference = decoded.astype(np.int16) - pictures
    decibels = psnr(np.mean(np.square(difference.astype(np.float64)), axis=(1, 2, 3)))
    columns, rows, labels = 8, [], []
    for start in range(0, len(pictures), columns):
        part = slice(start, start + columns)
        rows += [*pictures[part], *decoded[part], *np.abs(difference[part]).astype(np.uint8)]
        width = len(pictures[part])
        labels += ["original"] * width + [f"{value:.1f} dB" for value in decibels[part]] + ["error"] * width
    sheet = contact_sheet(rows, labels, columns=min(columns, len(pictures)), title=f"{tokenizer.name}: reconstructions")
    return sheet, float(decibels.mean())

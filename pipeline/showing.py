"""One sequence as a labelled contact sheet, with what its tokens decode to beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset
from uvd.manifests.find import find_sequence, find_tokens
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.sheet import contact_sheet
from uvd.manifests.token_shard import read_tokens
from uvd.manifests.tokens import unframe


def sequence_sheet(dataset: Dataset, key: str, tokenizer: str | None = None) -> NDArray[np.uint8]:
    """Draws a sequence, and below each row the pictures decoded from its tokens if `tokenizer` is given.

    Returns:
        `(height, width, 3)` uint8 RGB.

    Raises:
        DatasetError: no such sequence, or it is not tokenized.
    """
    shard, row = find_sequence(dataset, key)
    pictures = list(read_sequence(dataset, shard, row).pictures())
    labels = [
        f"{number:02d} {role}" + (f" {index}" if index is not None else "")
        for number, (role, index) in enumerate(zip(row["roles"], row["indices"], strict=True))
    ]
    title = f"{key}   {row['dataset']} · {row['layout']} · {row['split']}"
    columns = 8
    if tokenizer is not None:
        pictures, labels = _with_decoded(dataset, key, tokenizer, pictures, labels, columns)
    return contact_sheet(pictures, labels, columns=columns, title=title)


def _with_decoded(
    dataset: Dataset, key: str, tokenizer: str, pictures: list[NDArray[np.uint8]], labels: list[str], columns: int
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Rows of pictures and rows of their decoded tokens by turns; the last row is filled up with blanks."""
    from uvd.tokenize.tokenizer import load_tokenizer

    shard, row = find_tokens(dataset, key, tokenizer)
    codes = unframe(read_tokens(dataset, shard, row))
    decoded = list(load_tokenizer(tokenizer).decode(codes))
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

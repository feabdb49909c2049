"""Contact sheets of prompts: what was given in grey frames, what was predicted in red ones, the truth without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.sheet import Frame, contact_sheet

COLUMNS = 8
BLANK = 250


@dataclass(frozen=True, slots=True)
class SheetRow:
    """Pictures that stand together: `(n, H, W, 3)` uint8 RGB, a label for each, and their frame."""

    pictures: NDArray[np.uint8]
    labels: Sequence[str]
    frame: Frame


def rows_sheet(sections: Sequence[Sequence[SheetRow]], *, title: str = "", columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Sections one below the other, each on a line of its own; in a section, rows follow one another.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    columns = min(columns, max(sum(len(row.pictures) for row in section) for section in sections))
    pictures: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    frames: list[Frame] = []
    for section in sections:
        for row in section:
            pictures += list(row.pictures)
            labels += row.labels
            frames += [row.frame] * len(row.pictures)
        # The next section begins on a new line, so blanks fill this one.
        missing = -len(pictures) % columns
        pictures += [np.full_like(pictures[0], BLANK)] * missing
        labels += [""] * missing
        frames += ["none"] * missing
    return contact_sheet(pictures, labels, frames=frames, columns=columns, title=title)


def prompt_sheet(
    context: NDArray[np.uint8],
    predictions: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None = None,
    *,
    title: str = "",
    columns: int = COLUMNS,
) -> NDArray[np.uint8]:
    """One prediction without labels: context in grey frames, predictions in red ones, then what is true, if known.

    Args:
        context, predictions, truth: `(n, H, W, 3)` uint8 RGB of one size.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    given: list[Frame] = ["given"] * len(context)
    predicted: list[Frame] = ["predicted"] * len(predictions)
    known = [] if truth is None else list(truth)
    true: list[Frame] = ["none"] * len(known)
    pictures = [*context, *predictions, *known]
    return contact_sheet(pictures, frames=given + predicted + true, columns=columns, title=title)

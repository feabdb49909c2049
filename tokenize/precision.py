"""How much a precision changes: the ids that differ from those of fp32 on the same pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uvd.tokenize.tokenizer import Precision, Tokenizer


@dataclass(frozen=True, slots=True)
class Flips:
    """Ids compared and ids that differ."""

    precision: Precision
    pictures: int
    ids: int
    different: int

    @property
    def share(self) -> float:
        return self.different / self.ids

    def __str__(self) -> str:
        return (
            f"{self.precision}: {self.different:,} of {self.ids:,} ids ({100 * self.share:.2f} %) differ from fp32 "
            f"on {self.pictures} pictures"
        )


def flips(tokenizer: Tokenizer, reference: Tokenizer, pictures: NDArray[np.uint8]) -> Flips:
    """Compares a tokenizer's ids with those of the same model in fp32.

    Args:
        pictures: `(N, H, W, 3)` uint8 RGB, the same set each time.
    """
    ours, theirs = tokenizer.encode(pictures), reference.encode(pictures)
    return Flips(tokenizer.numerics.precision, len(pictures), theirs.size, int((ours != theirs).sum()))

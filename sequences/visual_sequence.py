"""The visual sequence: 1 to 16 pictures in a meaningful order, the paper's "visual sentence" (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from uvd.sequences.example import SPLITS, Picture

MAX_IMAGES = 16
"""16 images of 256 tokens fill the paper's context of 4096 tokens."""


@dataclass(frozen=True, slots=True)
class VisualSequence:
    """What is written to a shard.

    Attributes:
        pictures: 1 to 16 pictures, in the order in which the model sees them.
        layout: name of the rule that arranged them (`single`, `pairs`, ...).
        dataset: name of the raw dataset.
        split: `train`, `val` or `test`.
        inputs: indices, within the work unit, of all planned inputs that went in (for accounting).
        source: name of the source, set by the writer of the shard.
        key: `<source>-<shard>-<index:06d>`, set by the writer of the shard.
    """

    pictures: tuple[Picture, ...]
    layout: str
    dataset: str
    split: str
    inputs: frozenset[int]
    source: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.pictures) <= MAX_IMAGES:
            raise ValueError(f"a visual sequence holds 1 to {MAX_IMAGES} images, not {len(self.pictures)}")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is not one of {SPLITS}")

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(picture.role for picture in self.pictures)

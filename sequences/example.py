"""What a source hands over: an `Example` is one raw input turned into pictures, each with its role.

A picture is the unit that becomes 256 tokens: 256x256 RGB (LVM paper, arXiv 2312.00785, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 256
"""Side of every picture in pixels; the tokenizer's downsampling of 16 makes it 16x16 = 256 tokens."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Picture:
    """One 256x256 RGB image and where it came from.

    Attributes:
        role: what the image is within its example, in the field's terms: `image`, `frame`, `view`, `boxes`,
            `pose`, `segmentation`, `depth`, `grey`, `masked`, ...
        pixels: `(256, 256, 3)` uint8 RGB.
        origin: URL, or path relative to the source's input, of the raw file. Never a caption or class name.
        size: (width, height) of the raw image in pixels, before the geometric transform.
        index: frame number in a video, view number of an object, or None.
        drawn: True for rendered annotations, which are stored losslessly because their colours carry meaning.
        degraded: True for what a photo would be restored from (grey, masked, noisy): pairs put it before the photo.
    """

    role: str
    pixels: NDArray[np.uint8]
    origin: str
    size: tuple[int, int]
    index: int | None = None
    drawn: bool = False
    degraded: bool = False

    def __post_init__(self) -> None:
        expected = (IMAGE_SIZE, IMAGE_SIZE, 3)
        if self.pixels.shape != expected or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"picture {self.role!r} of {self.origin!r}: {self.pixels.dtype} {self.pixels.shape}, "
                f"expected uint8 {expected}"
            )


@dataclass(frozen=True, slots=True)
class Example:
    """Pictures that belong together: a photo and its annotations, a window of frames, the views of an object.

    Attributes:
        inputs: indices, within the work unit, of the planned inputs that this example was made from.
        dataset: name of the raw dataset (`laion2b-en`, `coco-train2017`).
        split: `train`, `val` or `test`; layouts never mix splits in one sequence.
        pictures: in their natural order; for annotated examples the photo comes first.
        group: what keeps examples together while a shard is made (class folder, video, object). Never written.
    """

    inputs: tuple[int, ...]
    dataset: str
    split: str
    pictures: tuple[Picture, ...]
    group: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is not one of {SPLITS}")
        if not self.pictures:
            raise ValueError(f"example of inputs {self.inputs} has no pictures")

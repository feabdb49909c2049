"""`images`: a folder of photos → one picture each, or pairs with annotations that need none: grey and masked copies.

Colourisation and inpainting (LVM paper, section 3.1) are made from any photo: name them in `derive` and use the layouts
`pairs` or `tuples`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uvd.renderers.derived import DERIVED
from uvd.sequences import Example, Picture, Seeds
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig
from uvd.sources.decode import IMAGE_SUFFIXES, MAX_BYTES, MAX_PIXELS, decode_image, input_files, read_bytes

Derived = Literal["grey", "masked"]


class ImagesConfig(SourceConfig):
    """Settings of the `images` source."""

    source: Literal["images"] = "images"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder, searched recursively."""
    derive: tuple[Derived, ...] = ()
    """Annotations made from the photo itself: `grey` (colourisation), `masked` (inpainting)."""
    min_side: int = Field(64, ge=1)
    """Shortest side of a photo in pixels."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    max_bytes: int = Field(MAX_BYTES, ge=1)


def derive_pictures(photo: Picture, kinds: tuple[str, ...], seeds: Seeds) -> Iterator[Picture]:
    """Pictures made from a photo alone, in the order of `kinds`."""
    for kind in kinds:
        pixels: NDArray[np.uint8] = DERIVED[kind](photo.pixels, seeds.generator(kind))
        yield Picture(kind, pixels, photo.origin, photo.size, photo.index)


class ImagesSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = ImagesConfig
    config: ImagesConfig

    def items(self) -> Iterator[Item]:
        for origin, size in input_files(self.config.input, IMAGE_SUFFIXES, "images"):
            yield {"origin": origin, "bytes": size}

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        config, origin = self.config, item["origin"]
        with self.stages("decode"):
            data = read_bytes(config.input / origin, config.max_bytes)
            pixels, size = decode_image(data, max_pixels=config.max_pixels, min_side=config.min_side)
        with self.stages("resize"):
            transform = self.transform(pixels.shape[1], pixels.shape[0], seeds)
            photo = Picture("image", transform.image(pixels), origin, size)
        with self.stages("render"):
            pictures = (photo, *derive_pictures(photo, config.derive, seeds))
        yield Example((index,), config.dataset, self.split(origin), pictures)

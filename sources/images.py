"""`images`: a folder of photos → one picture each, or pairs and tuples with pictures derived from them or estimated.

Name them in `derive` and `estimate`, and use the layouts `pairs` or `tuples`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from uvd.sequences import Example, Picture, Reject, Seeds
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, WorkUnit
from uvd.sources.decode import IMAGE_SUFFIXES, MAX_BYTES, decode_image, input_files, read_bytes
from uvd.sources.photos import PhotoConfig, PhotoSource


class ImagesConfig(PhotoConfig):
    """Settings of the `images` source."""

    source: Literal["images"] = "images"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder, searched recursively."""
    min_side: int = Field(64, ge=1)
    """Shortest side of a photo in pixels."""
    max_bytes: int = Field(MAX_BYTES, ge=1)


class ImagesSource(PhotoSource, ItemSource):
    config_class: ClassVar[type[SourceConfig]] = ImagesConfig
    config: ImagesConfig

    def items(self) -> Iterator[Item]:
        for origin, size in input_files(self.config.input, IMAGE_SUFFIXES, "images"):
            yield {"origin": origin, "bytes": size}

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        return self.estimated(super().read(unit, seeds))

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        config, origin = self.config, item["origin"]
        with self.stages("decode"):
            data = read_bytes(config.input / origin, config.max_bytes)
            pixels, size = decode_image(data, max_pixels=config.max_pixels, min_side=config.min_side)
        with self.stages("resize"):
            transform = self.transform(pixels.shape[1], pixels.shape[0], seeds)
            photo = Picture("image", transform.image(pixels), origin, size)
            self.show(index, pixels, transform)
        with self.stages("render"):
            pictures = (photo, *self.derived(photo, seeds))
        yield Example((index,), config.dataset, self.split(origin), pictures)

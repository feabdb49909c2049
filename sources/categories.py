"""`categories`: ImageNet-style folders, one a class → sequences of groups of one class.

Class names stay out of the dataset, and file names often hold them, so origins are numbers: `0003/000017.jpg` is file
17 of class 3, both counted from 0 in sorted order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from uvd.sequences import Example, Picture, Seeds
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, SourceError
from uvd.sources.decode import IMAGE_SUFFIXES, MAX_BYTES, MAX_PIXELS, decode_image, input_files, read_bytes


class CategoriesConfig(SourceConfig):
    """Settings of the `categories` source."""

    source: Literal["categories"] = "categories"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder with one folder a class."""
    layouts: dict[str, float] = {"category": 1.0}
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    max_bytes: int = Field(MAX_BYTES, ge=1)


class CategoriesSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = CategoriesConfig
    config: CategoriesConfig

    def items(self) -> Iterator[Item]:
        listed = input_files(self.config.input, IMAGE_SUFFIXES, "images in class folders")
        files = [entry for entry in listed if "/" in entry[0]]
        if not files:
            raise SourceError(f"no images in class folders below {self.config.input}")
        for number, (label, members) in enumerate(groupby(files, key=lambda entry: entry[0].partition("/")[0])):
            for index, (path, size) in enumerate(members):
                origin = f"{number:04d}/{index:06d}{Path(path).suffix.lower()}"
                yield {"origin": origin, "path": path, "bytes": size, "class": label}

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        with self.stages("decode"):
            data = read_bytes(self.config.input / item["path"], self.config.max_bytes)
            pixels, size = decode_image(data, max_pixels=self.config.max_pixels)
        with self.stages("resize"):
            transform = self.transform(pixels.shape[1], pixels.shape[0], seeds)
            picture = Picture("image", transform.image(pixels), item["origin"], size)
        yield Example((index,), self.config.dataset, self.split(item["origin"]), (picture,), group=item["class"])

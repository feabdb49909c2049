"""`categories`: images of classes → sequences of groups of one class.

Inputs: folders, one a class (ImageNet); WebDataset tars with the class of each image (`category_tars`); or a list of
paths and classes (`category_lists`). Class names stay out of the dataset, and file names often hold them, so origins
are numbers: `0003/000017.jpg` is image 17 of class 3, both counted from 0. Classes are sorted, and images within them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from uvd.sequences import Example, Picture, Seeds
from uvd.sources import category_lists, image_tars
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, SourceError
from uvd.sources.category_lists import ListForm, list_items
from uvd.sources.category_tars import CategoryTars
from uvd.sources.decode import IMAGE_SUFFIXES, MAX_BYTES, MAX_PIXELS, decode_image, input_files, read_bytes
from uvd.sources.input_place import InputFile, InputPlace, absolute_place

Form = Literal["folders", "tars", "list"]


class CategoriesConfig(SourceConfig):
    """Settings of the `categories` source."""

    source: Literal["categories"] = "categories"
    input: Annotated[str, BeforeValidator(absolute_place)] = Field(json_schema_extra=NOT_DATA)
    """Folder with one folder a class; a tar or a folder of tars, on disk or an object store (`s3://`, `gs://`); or the
    folder of the images that a list names, or the list itself in that folder."""
    format: Literal["auto", "folders", "tars", "list"] = "auto"
    """`auto`: a list if one is given, tars if there are any, else folders."""
    list_file: Path | None = Field(None, json_schema_extra=NOT_DATA)
    """`.csv` or `.tsv` with columns for path and class, or `.txt` with a path and a class, or a class, a line."""
    list_columns: tuple[str, str] = ("path", "class")
    """Names of the columns of path and class."""
    list_header: tuple[str, ...] = ()
    """Names of all columns, for CSV and TSV whose first row is not a header."""
    layouts: dict[str, float] = {"category": 1.0}
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    max_bytes: int = Field(MAX_BYTES, ge=1)

    @model_validator(mode="after")
    def _list_only_where_it_is_read(self) -> Self:
        if self.list_file is not None and self.format not in ("auto", "list"):
            raise ValueError(f"list_file is a setting of format list, not of {self.format}")
        return self


class CategoriesSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = CategoriesConfig
    config: CategoriesConfig

    def __init__(self, config: SourceConfig) -> None:
        super().__init__(config)
        self._tars: CategoryTars | None = None

    def items(self) -> Iterator[Item]:
        listing = self._list()
        if self.config.format == "list" or listing is not None:
            return self._list_items(listing)
        if "://" in self.config.input:
            return self._tar_items(InputPlace(self.config.input).files(image_tars.SUFFIXES))
        root = Path(self.config.input)
        if root.is_file():
            return self._tar_items(InputPlace(self.config.input).files(image_tars.SUFFIXES))
        suffixes = {"folders": IMAGE_SUFFIXES, "tars": frozenset(image_tars.SUFFIXES)}
        searched = suffixes.get(self.config.format, IMAGE_SUFFIXES | set(image_tars.SUFFIXES))
        files = input_files(root, searched, "images in class folders, or tars")
        tars = [InputFile(path, size) for path, size in files if path.lower().endswith(image_tars.SUFFIXES)]
        images = [entry for entry in files if "/" in entry[0] and not entry[0].lower().endswith(image_tars.SUFFIXES)]
        if tars and images:
            raise SourceError(f"{root} holds tars ({tars[0].name}) and images in class folders: set format")
        return self._tar_items(tars) if tars else self._folder_items(images)

    def _list(self) -> Path | None:
        """The list, if one is given, as a setting or as the input."""
        if self.config.list_file is not None:
            return self.config.list_file
        path = Path(self.config.input)
        return path if path.suffix.lower() in category_lists.SUFFIXES and path.is_file() else None

    def _root(self) -> Path:
        """The folder below which images are: that of the list where the list is the input.

        Raises:
            SourceError: for an object store.
        """
        if "://" in self.config.input:
            raise SourceError(f"input {self.config.input}: images that a list names must be on disk")
        path = Path(self.config.input)
        return path.parent if self.config.list_file is None and path.is_file() else path

    def _list_items(self, listing: Path | None) -> Iterator[Item]:
        if listing is None:
            raise SourceError("format list needs list_file, or an input that is a .csv, .tsv or .txt file")
        form = ListForm(self.config.list_columns, self.config.list_header)
        return list_items(self._root(), listing, form)

    def _tar_items(self, files: list[InputFile]) -> Iterator[Item]:
        if not files or self.config.format == "folders":
            raise SourceError(f"input {self.config.input} holds nothing of format {self.config.format}")
        return self._category_tars().items(files)

    def _category_tars(self) -> CategoryTars:
        if self._tars is None:
            self._tars = CategoryTars(InputPlace(self.config.input))
        return self._tars

    def _folder_items(self, files: list[tuple[str, int]]) -> Iterator[Item]:
        if not files:
            raise SourceError(f"no images in class folders below {self.config.input}")
        for number, (_, members) in enumerate(groupby(files, key=lambda entry: entry[0].partition("/")[0])):
            for index, (path, size) in enumerate(members):
                origin = f"{number:04d}/{index:06d}{PurePosixPath(path).suffix.lower()}"
                yield {"origin": origin, "path": path, "bytes": size}

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        with self.stages("decode"):
            pixels, size = decode_image(self._read(item), max_pixels=self.config.max_pixels)
        with self.stages("resize"):
            transform = self.transform(pixels.shape[1], pixels.shape[0], seeds)
            picture = Picture("image", transform.image(pixels), item["origin"], size)
        # The number of the class, as the origin says it.
        group = item["origin"].partition("/")[0]
        # By its path a photo stays on its side when others join its class, and in other sources of the same folder.
        split = self.split(item.get("path", item["origin"]))
        yield Example((index,), self.config.dataset, split, (picture,), group=group)

    def _read(self, item: Item) -> bytes:
        if "tar" in item:
            return self._category_tars().read(item, self.config.max_bytes)
        return read_bytes(self._root() / item["path"], self.config.max_bytes)

"""`panoptic`: photos with COCO's panoptic JSON and PNGs → segmentation, a colour for each class or for each segment.

Form (cocodataset.org/#format-data): `annotations[]` with `image_id`, `file_name` of a PNG and `segments_info[]`, whose
`id` is the colour R + 256 G + 65536 B of a segment. Rules: colours of classes are places among the sorted category ids
of all JSON files, those of segments places by decreasing area in the photo; crowds are segments as others; void is
black. A PNG covers its photo pixel for pixel, and shows no segment that the JSON does not list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.base import AnnotatedImage, Annotation, Reader
from uvd.sources.annotated.coco_json import MAX_JSON_BYTES, add_images, entries_of
from uvd.sources.annotated.listed_images import FoundImage, ListedImage, find_images, open_listed
from uvd.sources.annotated.map_files import decode_exact_colours
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.decode import read_bytes
from uvd.sources.drawing import Labels, check_size, draw_with, naming
from uvd.sources.json_files import read_json_object

ROLE = "segmentation"
MAX_ID = 0xFFFFFF


@dataclass(frozen=True, slots=True)
class _Map:
    """One entry of `annotations`.

    Attributes:
        json: which of the JSON files it is from.
        name: of its PNG.
        segments: (id, category id) of each.
    """

    json: int
    name: str
    segments: list[tuple[int, int]]


@dataclass
class _Panoptic:
    """What the JSON files say together; maps by image id."""

    images: dict[int, ListedImage] = field(default_factory=dict)
    maps: dict[int, _Map] = field(default_factory=dict)
    categories: list[int] = field(default_factory=list)


class PanopticReader(Reader):
    def items(self) -> Iterator[Item]:
        for folder in self._folders():
            if not folder.is_dir():
                raise SourceError(f"no folder {folder} of panoptic PNGs: say where they are with masks")
        panoptic = _read(self.config.annotations)
        places = {identity: place for place, identity in enumerate(panoptic.categories, start=1)}
        found, lost = find_images(self.config.input, panoptic.images)
        for identity in sorted(panoptic.images):
            described = panoptic.maps.pop(identity, None)
            if identity in lost:
                yield lost[identity]
                continue
            yield self._item(found[identity], described, places)
        for identity in sorted(panoptic.maps):
            detail = f"the JSON does not list the image of {panoptic.maps[identity].name!r}"
            yield refused(f"image_id {identity}", Reason.BAD_ANNOTATION, detail)

    def _folders(self) -> list[Path]:
        """Where the PNGs of each JSON file are."""
        return [self.config.masks or path.with_suffix("") for path in self.config.annotations]

    def _item(self, image: FoundImage, described: _Map | None, places: dict[int, int]) -> Item:
        item: dict[str, Any] = {"origin": image.path, "bytes": [image.num_bytes], "size": list(image.size)}
        if described is None:
            # The photo can still have pictures that need no annotation.
            return item
        try:
            file = _inside(self._folders()[described.json], described.name)
            item["bytes"].append(file.stat().st_size)
            item["segments"] = _colours(described, places)
        except FileNotFoundError:
            return refused(image.path, Reason.MISSING, f"no PNG {described.name!r} in the folder of masks")
        except (OSError, ValueError) as error:
            return refused(image.path, Reason.BAD_ANNOTATION, f"file_name {described.name!r} is no path: {error}")
        except RejectedInput as rejected:
            return refused(image.path, rejected.reason, rejected.detail)
        return item | {"json": described.json, "mask": described.name}

    def open(self, item: Item) -> AnnotatedImage:
        size = tuple(item["size"])
        pixels = open_listed(self.config, item["origin"], size)
        if "mask" not in item:
            return AnnotatedImage(pixels, size, item["origin"], ())
        folder = self._folders()[item["json"]]
        origin = f"{folder.name}/{item['mask']}"
        with naming(origin):
            ids = self._ids(_inside(folder, item["mask"]))
        check_size(ids, origin, pixels)
        colours = dict(item["segments"])
        if self.config.colour_by == "segment":
            colours = _by_area(ids, list(colours))
        return AnnotatedImage(
            pixels, size, item["origin"], (Annotation(ROLE, origin, draw_with(ids, colours, origin)),)
        )

    def _ids(self, path: Path) -> Labels:
        colours = decode_exact_colours(read_bytes(path, self.config.max_bytes), self.config.max_pixels)
        return colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def _colours(described: _Map, places: dict[int, int]) -> list[list[int]]:
    """[id, place of its class in the palette] of each segment.

    Raises:
        RejectedInput: for an id that is no colour or is there twice, or a category that the JSON does not list.
    """
    colours: dict[int, int] = {}
    for identity, category in described.segments:
        if not 0 < identity <= MAX_ID:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"segment id {identity} is no colour (1 to {MAX_ID})")
        if identity in colours:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"segment id {identity} is there twice")
        if category not in places:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"category_id {category} is not among the JSON's categories")
        colours[identity] = places[category]
    return [list(pair) for pair in colours.items()]


def _by_area(ids: Labels, segments: list[int]) -> dict[int, int]:
    """Place of each segment by decreasing area in the whole photo; of two equal ones the lower id comes first."""
    present, areas = np.unique(ids, return_counts=True)
    area = dict(zip(present.tolist(), areas.tolist(), strict=True))
    ordered = sorted(segments, key=lambda identity: (-area.get(identity, 0), identity))
    return {identity: place for place, identity in enumerate(ordered, start=1)}


def _inside(folder: Path, name: str) -> Path:
    """
    Raises:
        RejectedInput: if the file that a JSON names lies outside the folder.
        ValueError: if it is no path.
    """
    path = folder / name
    outside = ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute()
    if outside or not path.resolve().is_relative_to(folder.resolve()):
        raise RejectedInput(Reason.BAD_ANNOTATION, f"file_name {name!r} leads out of the folder of masks")
    return path


def _read(paths: tuple[Path, ...]) -> _Panoptic:
    """
    Raises:
        SourceError: names the file, the list, the entry and the key that is missing or wrong.
    """
    panoptic = _Panoptic()
    categories: set[int] = set()
    for number, path in enumerate(paths):
        content = read_json_object(path, MAX_JSON_BYTES, "COCO")
        add_images(panoptic.images, path, entries_of(path, content, "images", id=int, width=int, height=int))
        categories.update(category["id"] for category in entries_of(path, content, "categories", id=int))
        entries = entries_of(path, content, "annotations", image_id=int, file_name=str, segments_info=list)
        content.clear()
        for place, entry in enumerate(entries):
            entries[place] = {}
            within = f"annotations[{place}]."
            segments = entries_of(path, entry, "segments_info", within, id=int, category_id=int)
            if entry["image_id"] in panoptic.maps:
                detail = f"annotations[{place}] has the 'image_id' {entry['image_id']} of another one"
                raise SourceError(f"{path} is not COCO: {detail}")
            pairs = [(segment["id"], segment["category_id"]) for segment in segments]
            panoptic.maps[entry["image_id"]] = _Map(number, entry["file_name"], pairs)
    if not panoptic.images:
        raise SourceError(f"{paths[0]} lists no images")
    panoptic.categories = sorted(categories)
    return panoptic

"""The JSON of VIPSeg's converted form, `panoptic_gt_VIPSeg_{train,val,test}.json`: COCO's video panoptic form.

Read: `annotations[].video_id`, `.annotations[].file_name`, `.segments_info[].id` and `.category_id`, and
`categories[].id`. Names of categories are not read. Parsed once, when planning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from uvd.sources.base import SourceError
from uvd.sources.json_files import read_json_object

SPLITS = ("train", "val", "test")
MAX_JSON_BYTES = 2 << 30
MAX_ID = 0xFFFFFF
"""Segment ids are colours, R + 256 G + 65536 B."""

Segments = dict[int, int]
"""Segment id → category id."""


@dataclass
class Panoptic:
    """What the JSON files say.

    Attributes:
        masks: video → stem of a mask → its segments.
        files: video → name of the JSON file that lists it.
        splits: video → split, where the file's name says one.
        categories: ids of all categories, sorted.
    """

    masks: dict[str, dict[str, Segments]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    categories: list[int] = field(default_factory=list)


def json_files(root: Path) -> list[Path]:
    """The JSON files of a converted data set."""
    return sorted(root.glob("panoptic_gt_VIPSeg*.json"))


def read_panoptic(files: list[Path]) -> Panoptic:
    """Reads and checks the files.

    Raises:
        SourceError: names the file, and the entry that is missing, wrong or there twice.
    """
    panoptic = Panoptic()
    categories: set[int] = set()
    for path in files:
        content = read_json_object(path, MAX_JSON_BYTES, "VIPSeg's panoptic form")
        categories.update(_integer(path, entry, "id") for entry in _entries(path, content, "categories"))
        split = next((split for split in SPLITS if path.stem.endswith(f"_{split}")), None)
        for entry in _entries(path, content, "annotations"):
            video = entry.get("video_id")
            if not isinstance(video, str):
                raise SourceError(f"{path}: an annotation's 'video_id' is {video!r}, expected text")
            if video in panoptic.files:
                raise SourceError(f"{path}: video {video!r} is there twice, or in {panoptic.files[video]} too")
            panoptic.masks[video] = dict(_masks(path, entry))
            panoptic.files[video] = path.name
            if split is not None:
                panoptic.splits[video] = split
    for video, masks in panoptic.masks.items():
        strange = {category for segments in masks.values() for category in segments.values()} - categories
        if strange:
            raise SourceError(f"{panoptic.files[video]}: category {min(strange)} of {video!r} is not in 'categories'")
    panoptic.categories = sorted(categories)
    return panoptic


def _masks(path: Path, annotation: dict[str, Any]) -> Iterator[tuple[str, Segments]]:
    for mask in _entries(path, annotation, "annotations"):
        name = mask.get("file_name")
        if not isinstance(name, str):
            raise SourceError(f"{path}: a mask's 'file_name' is {name!r}, expected text")
        segments: Segments = {}
        for segment in _entries(path, mask, "segments_info"):
            identity, category = _integer(path, segment, "id"), _integer(path, segment, "category_id")
            if not 0 < identity <= MAX_ID:
                raise SourceError(f"{path}: segment id {identity} of {name!r} is no colour (1 to {MAX_ID})")
            if segments.setdefault(identity, category) != category:
                raise SourceError(f"{path}: segment {identity} of {name!r} has two categories")
        yield PurePosixPath(name).stem, segments


def _entries(path: Path, content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = content.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SourceError(f"{path}: {name!r} is missing or not a list of objects")
    return entries


def _integer(path: Path, entry: dict[str, Any], name: str) -> int:
    value = entry.get(name)
    if type(value) is not int:
        raise SourceError(f"{path}: {name!r} is {value!r}, expected a whole number")
    return value

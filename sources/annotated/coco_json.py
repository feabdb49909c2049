"""COCO's JSON for instances and keypoints, and what others add to it: loaded, checked, cut down to what is drawn.

Forms: COCO and Objects365 (cocodataset.org/#format-data), LVIS (`coco_url`, no crowds), keypoints with names of their
own (AP-10K, Human-Art), COCO-WholeBody (hands and face). No class name is read. Memory: what `json.loads` makes of the
largest file and a smaller copy of what is wanted of the others; entries are let go one by one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uvd.sources.annotated.listed_images import ListedImage, listed_image
from uvd.sources.base import SourceError
from uvd.sources.json_files import read_json_object

MAX_JSON_BYTES = 4 << 30
PERSON = 1
"""COCO's category id of people."""

Kept = dict[str, Any]
"""What is kept of an annotation, absent where it has none or it is not wanted: `class` (its category id), `crowd`,
`bbox`, `segmentation`, `keypoints`, `face_kpts`, `lefthand_kpts`, `righthand_kpts`, `person` (its box shows where a
person is); `named` where its category names another number of keypoints than 17, `skeleton` where they are not COCO's.
Values are as in the JSON: whoever draws them checks them."""

Part = Literal["bbox", "segmentation", "keypoints", "person"]
"""What can be wanted of annotations."""

_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_KEYPOINTS = ["nose", *(f"{side} {part}" for part in _PAIRS for side in ("left", "right"))]
AP10K_BEGINS = ["left eye", "right eye", "nose", "neck", "root of tail"]
"""The first of AP-10K's 17: they tell them from all others of that number; paws are called by several names."""
AP10K_COUNT = 17
SIDES = {"l": "left", "r": "right"}
WHOLE_BODY = ("face", "lefthand", "righthand")
"""COCO-WholeBody's parts, each with `_kpts` and `_valid`. Its feet have no place among OpenPose's 18 joints."""


@dataclass
class Coco:
    """What the JSON files of a data set say together.

    Attributes:
        images: by id.
        annotations: by image id.
        categories: ids of all categories, sorted.
    """

    images: dict[int, ListedImage] = field(default_factory=dict)
    annotations: defaultdict[int, list[Kept]] = field(default_factory=lambda: defaultdict(list))
    categories: list[int] = field(default_factory=list)


def read_coco(paths: Sequence[Path], wanted: Collection[Part]) -> Coco:
    """Reads and checks JSON files of the same images.

    An object that is in several files (the same image, annotation id, category and box, as in COCO's instances and
    person keypoints) is one annotation with what each says of it.

    Raises:
        SourceError: names the file, the list, the entry and the key that is missing or wrong.
    """
    coco = Coco()
    categories: set[int] = set()
    for path in paths:
        content = read_json_object(path, MAX_JSON_BYTES, "COCO")
        add_images(coco.images, path, entries_of(path, content, "images", id=int, width=int, height=int))
        listed = entries_of(path, content, "categories", id=int)
        categories.update(category["id"] for category in listed)
        skeletons = dict(_skeletons(path, listed)) if "keypoints" in wanted else {}
        # Those kept are smaller than those of the JSON, which go as soon as they are read.
        entries = entries_of(path, content, "annotations", image_id=int, category_id=int)
        content.clear()
        for number, entry in enumerate(entries):
            entries[number] = {}
            kept = _keep(entry, skeletons.get(entry["category_id"], {}), wanted, several=len(paths) > 1)
            coco.annotations[entry["image_id"]].append(kept)
    if not coco.images:
        raise SourceError(f"{paths[0]} lists no images")
    coco.categories = sorted(categories)
    return coco


def merged(annotations: Sequence[Kept], wanted: Collection[Part]) -> list[Kept]:
    """One annotation for each object of an image, without what only tells objects apart."""
    objects: dict[Any, Kept] = {}
    for number, annotation in enumerate(annotations):
        identity = annotation.pop("id", None)
        key = number if identity is None else (identity, annotation["class"], repr(annotation.get("bbox")))
        objects.setdefault(key, {}).update(annotation)
    for kept in objects.values():
        if "bbox" not in wanted and "person" not in kept:
            kept.pop("bbox", None)
    return list(objects.values())


def entries_of(
    path: Path, content: Mapping[str, Any], name: str, within: str = "", **keys: type
) -> list[dict[str, Any]]:
    """The list `name` of a JSON file, whose entries are objects with these keys of these types.

    Args:
        within: where in the file `content` is, unless it is all of it.

    Raises:
        SourceError: names the file, the entry and the key.
    """
    entries = content.get(name)
    name = within + name
    if not isinstance(entries, list):
        raise SourceError(f"{path} is not COCO: {name!r} is missing or not a list")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise SourceError(f"{path} is not COCO: {name}[{number}] is a {type(entry).__name__}, not an object")
        for key, kind in keys.items():
            # bool is an int to isinstance.
            if type(entry.get(key)) is not kind:
                raise SourceError(f"{path} is not COCO: {name}[{number}] has no {key!r} of type {kind.__name__}")
    return entries


def add_images(images: dict[int, ListedImage], path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Adds the images of one file to those of the files before it.

    Raises:
        SourceError: if two have one id, in this file, or with another name or size in one before it.
    """
    here: set[int] = set()
    for number, entry in enumerate(entries):
        image, identity = listed_image(path, number, entry), entry["id"]
        if identity in here:
            raise SourceError(f"{path} is not COCO: images[{number}] has the 'id' {identity} of another one")
        here.add(identity)
        before = images.setdefault(identity, image)
        if before.size != image.size or before.name.split("/")[-1] != image.name.split("/")[-1]:
            detail = f"{image.name!r} of {image.size}, and in a file before it {before.name!r} of {before.size}"
            raise SourceError(f"{path} is not of the same images: images[{number}] with 'id' {identity} is {detail}")


def _skeletons(path: Path, categories: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Kept]]:
    """Category id → what to note of its keypoints, for categories that name other than COCO's 17.

    Raises:
        SourceError: for keypoints of another skeleton, which cannot be drawn.
    """
    for number, category in enumerate(categories):
        names = category.get("keypoints")
        if not names:
            continue
        plain = [plain_name(name) for name in names] if isinstance(names, list) else []
        count = len(plain)
        if plain[: len(COCO_KEYPOINTS)] == COCO_KEYPOINTS:
            yield category["id"], {} if count == len(COCO_KEYPOINTS) else {"named": count}
        elif count == AP10K_COUNT and plain[: len(AP10K_BEGINS)] == AP10K_BEGINS:
            yield category["id"], {"skeleton": "ap10k"}
        else:
            place = f"categories[{number}] has 'keypoints'"
            raise SourceError(f"{path}: {place} that are neither COCO's nor AP-10K's; leave pose out of render")


def plain_name(name: object) -> str:
    """The name of a keypoint in small words.

    >>> plain_name("left_eye"), plain_name("L_Eye"), plain_name("LeftEye"), plain_name("LEFT EYE")
    ('left eye', 'left eye', 'left eye', 'left eye')
    """
    if not isinstance(name, str):
        return ""
    words = re.findall("[A-Z]?[a-z]+|[A-Z]", name.lower() if name.isupper() else name)
    return " ".join(SIDES.get(word.lower(), word.lower()) for word in words)


def _keep(entry: Mapping[str, Any], skeleton: Kept, wanted: Collection[Part], several: bool) -> Kept:
    kept: Kept = {"class": entry["category_id"]}
    if entry.get("iscrowd"):
        kept["crowd"] = True
    elif "person" in wanted and entry["category_id"] == PERSON:
        kept["person"] = True
    if entry.get("bbox") and ("bbox" in wanted or "person" in kept or several):
        kept["bbox"] = entry["bbox"]
    if several and type(entry.get("id")) is int:
        kept["id"] = entry["id"]
    if "segmentation" in wanted and entry.get("segmentation"):
        kept["segmentation"] = entry["segmentation"]
    if "keypoints" in wanted:
        if entry.get("keypoints") and entry.get("num_keypoints", 1):
            kept |= {"keypoints": entry["keypoints"]} | skeleton
        for part in WHOLE_BODY:
            if entry.get(f"{part}_kpts") and entry.get(f"{part}_valid", True):
                kept[f"{part}_kpts"] = entry[f"{part}_kpts"]
    return kept

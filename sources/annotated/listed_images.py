"""The images that a COCO-form JSON lists: where their files lie below the input, and which way up they are meant.

A file is looked for under the whole `file_name` (LVIS: the last two parts of `coco_url`), then under shorter tails of
it, down to its last part. What two images would share by a tail alone belongs to neither. Listing costs a stat a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.decode import decode_image, read_bytes
from uvd.sources.drawing import ImageFolder

URL_PARTS = 2
"""Of a `coco_url`: folder and name, such as `train2017/000000000009.jpg`."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One entry of `images`.

    Attributes:
        name: `file_name`, or the end of `coco_url`.
        size: (width, height), as the JSON says.
    """

    name: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FoundImage:
    """The file of a listed image.

    Attributes:
        path: relative to the input.
        size: (width, height), as the JSON says.
        num_bytes: of the file.
        exact: whether it lies under its whole name.
    """

    path: str
    size: tuple[int, int]
    num_bytes: int
    exact: bool


def listed_image(path: Path, number: int, entry: Mapping[str, Any]) -> ListedImage:
    """Reads `images[number]` of the JSON file `path`, whose `width` and `height` have been checked.

    Raises:
        SourceError: if it has neither `file_name` nor `coco_url`.
    """
    size = (entry["width"], entry["height"])
    name, url = entry.get("file_name"), entry.get("coco_url")
    if isinstance(name, str):
        return ListedImage(name, size)
    if name is None and isinstance(url, str):
        return ListedImage("/".join(url.split("/")[-URL_PARTS:]), size)
    raise SourceError(f"{path} is not COCO: images[{number}] has no 'file_name' or 'coco_url' of type str")


def find_images(root: Path, images: Mapping[int, ListedImage]) -> tuple[dict[int, FoundImage], dict[int, Item]]:
    """The files of images by id; and by id what has none, as items that are refused.

    Raises:
        SourceError: if `root` is no folder, or not a single file is there.
    """
    if not root.is_dir():
        raise SourceError(f"input {root} is not a folder")
    found: dict[int, FoundImage] = {}
    lost: dict[int, Item] = {}
    for identity, image in images.items():
        try:
            found[identity] = _find(root, image)
        except RejectedInput as rejected:
            lost[identity] = refused(image.name, rejected.reason, rejected.detail)
    if not found and images:
        name = next(iter(images.values())).name
        raise SourceError(f"none of the {len(images)} images that the JSON lists is below {root}, such as {name!r}")
    for identity, others in _shared(found).items():
        detail = f"{others} images of the JSON have the file {found.pop(identity).path!r}"
        lost[identity] = refused(images[identity].name, Reason.BAD_ANNOTATION, detail)
    return found, lost


def _find(root: Path, image: ListedImage) -> FoundImage:
    parts = PurePosixPath(image.name).parts
    if ".." in parts or PurePosixPath(image.name).is_absolute():
        raise RejectedInput(Reason.BAD_ANNOTATION, "file_name leads out of the input folder")
    for first in range(len(parts)):
        path = "/".join(parts[first:])
        try:
            status = (root / path).stat()
        except OSError:
            continue
        except ValueError as error:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"file_name is no path: {error}") from error
        if S_ISREG(status.st_mode):
            return FoundImage(path, image.size, status.st_size, exact=first == 0)
    raise RejectedInput(Reason.MISSING, "no such file below the input, under the whole name or the end of it")


def _shared(found: Mapping[int, FoundImage]) -> dict[int, int]:
    """Images that do not get the file they found, with how many found it: one that has its whole name goes first."""
    claims: defaultdict[str, list[int]] = defaultdict(list)
    for identity, image in found.items():
        claims[image.path].append(identity)
    lost: dict[int, int] = {}
    for claimants in claims.values():
        exact = [identity for identity in claimants if found[identity].exact]
        if len(claimants) > 1:
            lost.update({i: len(claimants) for i in claimants if len(exact) != 1 or i != exact[0]})
    return lost


def open_listed(config: ImageFolder, path: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decodes a listed image so that it agrees with the size that the JSON says.

    Annotations are in upright coordinates, as EXIF has it, if the JSON's size is the upright one. If it is the size as
    stored instead, with width and height swapped, they are in coordinates of the file, and the photo is used as
    stored. Where both sizes are the same (squares, and half turns) this cannot be told, and upright is assumed.

    Returns:
        `(H, W, 3)` uint8 RGB of that size.

    Raises:
        RejectedInput: if it cannot be read, has another size, or its path leads out of the input.
    """
    file = config.input / path
    if not file.resolve().is_relative_to(config.input.resolve()):
        raise RejectedInput(Reason.BAD_ANNOTATION, "file_name leads out of the input folder")
    data = read_bytes(file, config.max_bytes)
    pixels, upright = decode_image(data, max_pixels=config.max_pixels)
    if upright == size:
        return pixels
    if upright == size[::-1]:
        pixels, stored = decode_image(data, max_pixels=config.max_pixels, upright=False)
        if stored == size:
            return pixels
    detail = f"image is {upright[0]}x{upright[1]}, the JSON says {size[0]}x{size[1]}"
    raise RejectedInput(Reason.BAD_ANNOTATION, detail)

"""Pascal VOC's XML: the objects of one photo, with boxes in uvd's coordinates.

`bndbox` counts pixels from 1 and includes both edges, so `xmin..xmax` becomes x = xmin - 1, width = xmax - xmin + 1;
fractions, which VOC 2011 and later have, are kept. `size` may be absent or 0. Objects that are difficult, truncated or
occluded are objects like others; their parts (`part`) are not read. Format: the VOC development kit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.xml_safe import UnsafeXmlError, parse_xml

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 20 classes in VOC's order: the ids of `SegmentationClass` are the places in it, from 1."""

PERSON = 1 + VOC_CLASSES.index("person")
MAX_OBJECTS = 10_000
MAX_COORDINATE = 1e6
"""In pixels: further away is no coordinate of a photo."""


@dataclass(frozen=True, slots=True)
class VocObjects:
    """What one XML file says.

    Attributes:
        size: (width, height) of the photo in pixels, or None where it is absent or 0.
        names: class of each object.
        xywh: `(N, 4)` x, y, width, height in pixels, pixel (0, 0) covering [0, 1) x [0, 1).
    """

    size: tuple[int, int] | None
    names: tuple[str, ...]
    xywh: NDArray[np.float64]


def read_objects(data: bytes) -> VocObjects:
    """
    Raises:
        RejectedInput: says which object and which element; never a class name.
    """
    try:
        root = parse_xml(data)
    except UnsafeXmlError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"XML: {error}") from error
    if root.tag != "annotation":
        raise RejectedInput(Reason.BAD_ANNOTATION, "XML: the outermost element is not 'annotation'")
    objects = root.findall("object")
    if len(objects) > MAX_OBJECTS:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{len(objects)} objects, over {MAX_OBJECTS}")
    boxes = np.array([_box(element, number) for number, element in enumerate(objects, start=1)])
    names = tuple(_name(element, number) for number, element in enumerate(objects, start=1))
    return VocObjects(_size(root), names, boxes.reshape(-1, 4))


def _size(root: Element) -> tuple[int, int] | None:
    sides = []
    for key in ("width", "height"):
        text = (root.findtext(f"size/{key}") or "").strip()
        sides.append(_number(text, f"size/{key}") if text else 0.0)
    width, height = sides
    if width <= 0 or height <= 0:
        return None
    return round(width), round(height)


def _name(element: Element, number: int) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"object {number} has no name")
    return name


def _box(element: Element, number: int) -> tuple[float, float, float, float]:
    edges = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        if text is None:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"object {number} has no bndbox/{key}")
        edges.append(_number(text, f"bndbox/{key} of object {number}"))
    left, top, right, bottom = edges
    if right < left or bottom < top:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"bndbox of object {number} ends before it begins")
    return left - 1, top - 1, right - left + 1, bottom - top + 1


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{what} is not a number") from error
    if not isfinite(value) or abs(value) > MAX_COORDINATE:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{what} is not finite, or beyond any photo")
    return value

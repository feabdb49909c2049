"""YOLO's label files: a line an object, `class cx cy width height` or `class x1 y1 x2 y2 …`, all shares of the photo.

The second form is a polygon of three vertices or more; its box is its bounds. Classes count from 0. Coordinates lie in
[0, 1], as Ultralytics demands; anything else is damage, named by its line. Format: Ultralytics' data set documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

MAX_LABEL_BYTES = 16 << 20
MAX_OBJECTS = 10_000
BOX_NUMBERS = 5
MIN_POLYGON_NUMBERS = 7
MAX_CLASS = 1 << 20


@dataclass(frozen=True, slots=True)
class YoloObjects:
    """What one label file says, in shares of the photo's width and height.

    Attributes:
        classes: `(N,)` from 0.
        xywh: `(N, 4)` x, y, width, height.
        polygons: object number → `(M, 2)` vertices, for those that have an outline.
    """

    classes: NDArray[np.int64]
    xywh: NDArray[np.float64]
    polygons: dict[int, NDArray[np.float64]]


def read_labels(data: bytes) -> YoloObjects:
    """
    Raises:
        RejectedInput: names the line, from 1.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, "not a text file") from error
    classes: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    polygons: dict[int, NDArray[np.float64]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(classes) == MAX_OBJECTS:
            raise _bad(number, f"over {MAX_OBJECTS} objects")
        label, *values = _numbers(line, number)
        if len(values) == BOX_NUMBERS - 1:
            x, y, width, height = values
            boxes.append((x - width / 2, y - height / 2, width, height))
        else:
            polygon = np.array(values).reshape(-1, 2)
            (left, top), (right, bottom) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
            boxes.append((left, top, right - left, bottom - top))
            polygons[len(classes)] = polygon
        classes.append(int(label))
    return YoloObjects(np.array(classes, np.int64), np.array(boxes).reshape(-1, 4), polygons)


def _numbers(line: str, number: int) -> list[float]:
    """The class and the checked coordinates of one line."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise _bad(number, "not numbers alone") from error
    if not all(map(isfinite, values)):
        raise _bad(number, "a number that is not finite")
    count = len(values)
    if count != BOX_NUMBERS and (count < MIN_POLYGON_NUMBERS or count % 2 == 0):
        raise _bad(number, f"{count} numbers, expected 5 for a box, or 7, 9, 11, … for a polygon")
    if not (values[0].is_integer() and 0 <= values[0] < MAX_CLASS):
        raise _bad(number, "the class is not a whole number from 0")
    if min(values[1:]) < 0 or max(values[1:]) > 1:
        raise _bad(number, "a coordinate outside [0, 1]")
    return values


def _bad(number: int, detail: str) -> RejectedInput:
    return RejectedInput(Reason.BAD_ANNOTATION, f"line {number}: {detail}")

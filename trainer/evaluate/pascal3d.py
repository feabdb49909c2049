"""Pascal 3D+ in its published form: objects of a class, cropped, with their visible keypoints.

Input: `Annotations/CLASS_SUBSET/NAME.mat`, `Images/CLASS_SUBSET/NAME.jpg|.JPEG` with SUBSET `pascal` or `imagenet`, and
`Image_sets/CLASS_imagenet_val.txt` or VOC's `val.txt` below `PASCAL/` (Xiang et al., Beyond PASCAL, WACV 2014). A
keypoint is visible if its status is 1. Reading an object takes about 10 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import IMAGE_SIZE, Transform
from uvd.trainer.evaluate.keypoint_picture import COLOURS
from uvd.trainer.evaluate.matlab import MatlabError, read_mat
from uvd.trainer.evaluate.photos import read_file, read_lines, read_photo
from uvd.trainer.evaluate.prompting import EvaluationError

CLASSES = (
    *("aeroplane", "bicycle", "boat", "bottle", "bus", "car"),
    *("chair", "diningtable", "motorbike", "sofa", "train", "tvmonitor"),
)
SUBSETS = {"pascal": ".jpg", "imagenet": ".JPEG"}
VOC_VAL = ("PASCAL/VOCdevkit/VOC2012", "ImageSets/Main/val.txt")
VISIBLE = 1
MARGIN = 0.1
"""Of the box's longer side, that is shown around the box."""
MAX_MAT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class KeypointObject:
    """One object of a photo.

    Attributes:
        photo: path of the photo.
        box: x0, y0, x1, y1 in pixels of the photo, from 0.
        keypoints: `(K, 2)` x, y in pixels of the photo, in the order of the class's sorted keypoint names; NaN for one
            that is not visible.
    """

    photo: str
    box: tuple[float, float, float, float]
    keypoints: NDArray[np.float64]


def objects_of_class(root: Path, name: str, subset: str = "pascal") -> list[KeypointObject]:
    """All objects of a class with at least one visible keypoint, in the order of the photos' names.

    The validation photos where their list is there, or else all that are annotated; objects marked difficult are left
    out, and so are boxes without area.

    Raises:
        EvaluationError: for a class or subset that there is not, or files that cannot be read.
    """
    if name not in CLASSES or subset not in SUBSETS:
        raise EvaluationError(f"{name}, {subset}: expected one of {', '.join(CLASSES)} and of {', '.join(SUBSETS)}")
    folder = f"Annotations/{name}_{subset}"
    listed = _validation_names(root, name, subset)
    stems = sorted(path.stem for path in (root / folder).glob("*.mat"))
    if not stems:
        raise EvaluationError(f"no annotations in {root / folder}: expected Pascal 3D+'s folders")
    found: list[tuple[str, tuple[float, float, float, float], dict[str, tuple[float, float]]]] = []
    names: set[str] = set()
    for stem in stems:
        if listed is not None and stem not in listed:
            continue
        for box, anchors, known in _objects(root, f"{folder}/{stem}.mat", name):
            names |= known
            if anchors:
                found.append((f"Images/{name}_{subset}/{stem}{SUBSETS[subset]}", box, anchors))
    if len(names) > len(COLOURS):
        raise EvaluationError(f"{name} has {len(names)} keypoints, over the {len(COLOURS)} that can be told apart")
    order = sorted(names)
    missing = (np.nan, np.nan)
    return [
        KeypointObject(photo, box, np.array([anchors.get(key, missing) for key in order]))
        for photo, box, anchors in found
    ]


def _validation_names(root: Path, name: str, subset: str) -> frozenset[str] | None:
    """None if there is no list."""
    if subset == "imagenet":
        base, path = root, f"Image_sets/{name}_imagenet_val.txt"
    else:
        base, path = root / VOC_VAL[0], VOC_VAL[1]
    return frozenset(read_lines(base, path)) if (base / path).is_file() else None


Parsed = tuple[tuple[float, float, float, float], dict[str, tuple[float, float]], set[str]]


def _objects(root: Path, path: str, name: str) -> list[Parsed]:
    """Box, visible keypoints from 0, and all keypoint names, of each object of the class in a file."""
    try:
        (record,) = read_mat(read_file(root, path, MAX_MAT_BYTES))["record"]
        return [_parsed(item) for item in record["objects"] if item["class"] == name and not _number(item, "difficult")]
    except (MatlabError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{root / path} is no annotation in Pascal 3D+'s form: {error!r}") from error


def _parsed(item: dict[str, Any]) -> Parsed:
    x0, y0, x1, y1 = np.asarray(item["bbox"], np.float64).reshape(4).tolist()
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0 and x1 - x0 < 1e5 and y1 - y0 < 1e5):
        raise ValueError(f"a box of {x0}, {y0}, {x1}, {y1}")
    anchors = item["anchors"]
    fields: dict[str, Any] = anchors[0] if isinstance(anchors, list) and anchors else {}
    visible = {}
    for key, value in fields.items():
        (anchor,) = value
        place = np.asarray(anchor["location"], np.float64).reshape(-1)
        if _number(anchor, "status") == VISIBLE and len(place) == 2 and np.isfinite(place).all():
            # MATLAB counts pixels from 1, and their centres lie at whole numbers.
            visible[key] = (float(place[0]) - 0.5, float(place[1]) - 0.5)
    return (x0 - 1, y0 - 1, x1, y1), visible, set(fields)


def _number(fields: dict[str, Any], key: str) -> float:
    """A number of a struct; 0 if it is not there or empty."""
    value = np.asarray(fields.get(key, 0.0), np.float64).reshape(-1)
    return float(value[0]) if len(value) else 0.0


def crop_object(root: Path, item: KeypointObject) -> tuple[NDArray[np.uint8], NDArray[np.float64], float]:
    """A square around the object's box with a margin of 10 %; black where it leaves the photo.

    Returns:
        `(256, 256, 3)` uint8 RGB, the keypoints `(K, 2)` in its pixels, and the box's longer side in its pixels.
    """
    photo = read_photo(root, item.photo)
    x0, y0, x1, y1 = item.box
    longer = max(x1 - x0, y1 - y0)
    side = max(1, round(longer * (1 + 2 * MARGIN)))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    height, width = photo.shape[:2]
    if side > 4 * max(height, width):
        raise EvaluationError(f"{root / item.photo} is {width}x{height}, its box is {item.box}")
    square = np.zeros((side, side, 3), np.uint8)
    rows = slice(max(0, top), max(0, min(height, top + side)))
    columns = slice(max(0, left), max(0, min(width, left + side)))
    part = photo[rows, columns]
    square[rows.start - top : rows.start - top + part.shape[0], columns.start - left :][:, : part.shape[1]] = part
    transform = Transform(0, 0, side, side, IMAGE_SIZE)
    keypoints = transform.points(item.keypoints - (left, top))
    # NaN compares as False.
    outside = ~np.all((keypoints >= 0) & (keypoints < IMAGE_SIZE), axis=1)
    keypoints[outside] = np.nan
    return transform.image(square), keypoints, longer * transform.scale[0]

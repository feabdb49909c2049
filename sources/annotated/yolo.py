"""`yolo`: Ultralytics' folders of images and label files → boxes, and segmentation and masks by class from polygons.

A photo's labels are where its path with the last folder `images` replaced by `labels` leads, `.txt` for its suffix: so
`images/train/A.jpg` and `labels/train/A.txt`, or `train/images/A.jpg` and `train/labels/A.txt`. The split is that of a
folder called train, val, valid, validation or test, a year behind it or not. A class's colour is its number plus 1.
Polygons are mapped and then filled at the picture's size, about 0.5 ms each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.coco_masks import decode_coco_segmentation
from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.base import AnnotatedImage, Annotation, Reader
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.drawn_masks import draw_foreground, draw_instances
from uvd.sources.annotated.renders import box_annotations, wanted_renders
from uvd.sources.annotated.yolo_labels import MAX_LABEL_BYTES, YoloObjects, read_labels
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.decode import IMAGE_SUFFIXES, input_files, read_bytes
from uvd.sources.drawing import open_image

IMAGES, LABELS = "images", "labels"
FORM = "images/…/NAME.jpg with labels/…/NAME.txt, or train/images/NAME.jpg with train/labels/NAME.txt"
NAMES_FILES = ("classes",)
"""Text files that labelling tools leave beside the labels."""
_SPLIT = re.compile(r"^(train|val|valid|validation|test)[-_]?\d*$")
MARGIN = 8
"""Pixels around the picture to which polygons are cut: edges along the cut are not seen."""


class YoloReader(Reader):
    def __init__(self, config: AnnotatedConfig) -> None:
        super().__init__(config)
        self._renders = wanted_renders(config)

    def items(self) -> Iterator[Item]:
        root = self.config.input
        files = input_files(root, IMAGE_SUFFIXES | {".txt"}, "images and labels")
        files = [(path, size) for path, size in files if not any(part.startswith(".") for part in path.split("/"))]
        labels = {path: size for path, size in files if path.endswith(".txt") and LABELS in path.split("/")[:-1]}
        photos = [(path, size) for path, size in files if not path.lower().endswith(".txt")]
        if not labels or not any(labels_of(path) for path, _ in photos):
            raise SourceError(f"{root} does not hold {FORM}")
        taken: set[str] = set()
        for path, size in photos:
            place = labels_of(path)
            if place is None:
                yield refused(path, Reason.NO_ANNOTATION, f"not below a folder {IMAGES!r}")
            elif place in taken:
                yield refused(path, Reason.NO_ANNOTATION, "another photo has this name")
            else:
                taken.add(place)
                yield self._item(path, size, place, labels.get(place))
        for place in sorted(labels.keys() - taken):
            if PurePosixPath(place).stem not in NAMES_FILES:
                yield refused(place, Reason.MISSING, f"no photo of this name in {IMAGES}")

    def _item(self, path: str, size: int, place: str, label_size: int | None) -> Item:
        if not self.config.adds_pictures:
            if label_size is None:
                return refused(path, Reason.NO_ANNOTATION, f"no {place}")
            if not label_size:
                return refused(path, Reason.NO_ANNOTATION, f"{place} is empty: nothing in this photo is labelled")
        item = {"origin": path, "labels": None if label_size is None else place, "bytes": [size, label_size or 0]}
        split = split_in(path)
        return item if split is None else item | {"split": split}

    def open(self, item: Item) -> AnnotatedImage:
        origin, place = item["origin"], item["labels"]
        objects = self._objects(place) if place is not None else read_labels(b"")
        pixels, size = open_image(self.config, origin)
        return AnnotatedImage(pixels, size, origin, tuple(self._annotations(place or "", objects, size)))

    def _objects(self, place: str) -> YoloObjects:
        """
        Raises:
            RejectedInput: names the file.
        """
        try:
            return read_labels(read_bytes(self.config.input / place, MAX_LABEL_BYTES))
        except RejectedInput as rejected:
            raise RejectedInput(rejected.reason, f"{place}, {rejected.detail}") from rejected

    def _annotations(self, place: str, objects: YoloObjects, size: tuple[int, int]) -> Iterator[Annotation]:
        """What there is to draw of a photo, in the order of `render`."""
        places = objects.classes + 1
        outlined = sorted(objects.polygons)
        masks = PolygonMasks([objects.polygons[number] * size for number in outlined])
        outlined_places = places[outlined]
        for kind in self._renders:
            if kind in ("boxes", "filled_boxes"):
                xywh = objects.xywh * (*size, *size)
                yield from box_annotations(kind, place, xywh, places, self.config.boxes_over_image)
            elif kind == "segmentation" and outlined:
                yield Annotation(kind, place, draw_instances(masks, outlined_places))
            elif kind == "foreground":
                for of_class in np.unique(outlined_places).tolist():
                    members = np.flatnonzero(outlined_places == of_class).tolist()
                    yield Annotation(kind, place, draw_foreground(masks, members), group=str(of_class))


class PolygonMasks:
    """`MasksAfter` of polygons; several drawings of one photo share what is filled.

    Args:
        polygons: one each object, `(M, 2)` vertices in pixels of the photo.
    """

    def __init__(self, polygons: Sequence[NDArray[np.float64]]) -> None:
        self._polygons = polygons
        self._after: tuple[Transform, list[NDArray[np.bool_]]] | None = None

    def __call__(self, transform: Transform) -> Sequence[NDArray[np.bool_]]:
        """
        Raises:
            RejectedInput: for an outline that is too long to fill.
        """
        if self._after is None or self._after[0] != transform:
            self._after = transform, [_filled(transform.points(polygon), transform.size) for polygon in self._polygons]
        return self._after[1]


def _filled(polygon: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """`(size, size)` bool."""
    cut = cut_polygon(polygon, -MARGIN, size + MARGIN)
    if len(cut) < 3:
        return np.zeros((size, size), np.bool_)
    try:
        return decode_coco_segmentation([cut.ravel().tolist()], size, size)
    except ValueError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"polygon: {error}") from error


def cut_polygon(polygon: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """The part of a polygon `(M, 2)` within the square from `low` to `high`, by Sutherland and Hodgman (1974)."""
    if low <= polygon.min() and polygon.max() <= high:
        return polygon
    for axis, edge, sign in ((0, low, 1), (0, high, -1), (1, low, 1), (1, high, -1)):
        if not len(polygon):
            break
        following = np.roll(polygon, -1, axis=0)
        inside = sign * (polygon[:, axis] - edge) >= 0
        crosses = inside != np.roll(inside, -1)
        run = following[:, axis] - polygon[:, axis]
        share = np.where(crosses, (edge - polygon[:, axis]) / np.where(crosses, run, 1.0), 0.0)
        crossing = polygon + share[:, None] * (following - polygon)
        polygon = np.stack([polygon, crossing], axis=1)[np.stack([inside, crosses], axis=1)]
    return polygon


def labels_of(path: str) -> str | None:
    """Where the labels of a photo are, or None if it is in no folder `images`.

    >>> labels_of("images/train/images/a.b.jpg")
    'images/train/labels/a.b.txt'
    """
    parts = list(PurePosixPath(path).with_suffix(".txt").parts)
    for number in reversed(range(len(parts) - 1)):
        if parts[number] == IMAGES:
            return "/".join([*parts[:number], LABELS, *parts[number + 1 :]])
    return None


def split_in(path: str) -> str | None:
    """The split that a folder's name says.

    >>> split_in("valid/images/a.jpg"), split_in("images/train2017/a.jpg"), split_in("images/a.jpg")
    ('val', 'train', None)
    """
    for part in path.split("/")[:-1]:
        if match := _SPLIT.match(part):
            return "val" if match[1].startswith("val") else match[1]
    return None

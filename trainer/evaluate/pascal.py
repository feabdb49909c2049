"""Pascal-5i and Pascal VOC's boxes in their published form, as episodes of one class.

Input: `JPEGImages/NAME.jpg`, masks in `SegmentationClassAug/NAME.png` or `SegmentationClass/NAME.png` (ids 1 to 20, 255
void), `Annotations/NAME.xml`, lists in `ImageSets/`. Fold i holds classes 5i + 1 to 5i + 5 (Shaban et al., One-Shot
Learning for Semantic Segmentation, arXiv 1709.03410). Reading a photo and its mask takes about 10 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Resize, fit
from uvd.trainer.evaluate.photos import read_file, read_label_map, read_lines, read_photo
from uvd.trainer.evaluate.prompting import EvaluationError, Pixels
from uvd.trainer.evaluate.scorers import box_mask

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""In VOC's order: ids of the masks are places in it, from 1."""
FOLDS, FOLD_CLASSES = 4, 5
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
MAX_XML_BYTES = 1 << 20
MAX_OBJECTS = 1000

Objects = list[tuple[int, tuple[float, ...]]]
"""(class id, box) of each object of a photo; a box is x, y, width, height in pixels from 0."""


def fold_classes(fold: int) -> tuple[int, ...]:
    """The class ids of a fold: 1 to 5, 6 to 10, 11 to 15, 16 to 20.

    Raises:
        EvaluationError: for a fold that is not 0 to 3.
    """
    if not 0 <= fold < FOLDS:
        raise EvaluationError(f"fold {fold}: there are 0 to {FOLDS - 1}")
    return tuple(range(FOLD_CLASSES * fold + 1, FOLD_CLASSES * (fold + 1) + 1))


@dataclass(frozen=True, slots=True)
class Pascal:
    """A folder in VOC's form, `VOCdevkit/VOC2012` or one that holds it."""

    root: Path

    @classmethod
    def open(cls, folder: str | Path) -> Pascal:
        """
        Raises:
            EvaluationError: if there is no `JPEGImages` in it.
        """
        base = Path(folder).expanduser()
        for root in (base, base / "VOC2012", base / "VOCdevkit" / "VOC2012"):
            if (root / "JPEGImages").is_dir():
                return cls(root)
        raise EvaluationError(f"no JPEGImages in {base}: expected Pascal VOC's folders, such as VOCdevkit/VOC2012")

    @property
    def masks(self) -> str:
        """
        Raises:
            EvaluationError: if there is no folder of masks.
        """
        for name in MASK_FOLDERS:
            if (self.root / name).is_dir():
                return name
        raise EvaluationError(f"neither {' nor '.join(MASK_FOLDERS)} in {self.root}")

    def fold_pairs(self, fold: int, lists: Path | None = None) -> list[tuple[str, int]]:
        """(photo, class id) of all validation photos of a fold's classes; a photo is there once for each class.

        Args:
            lists: folder with the published lists `fold0.txt` …, lines `NAME__CC`. Without it the photos of
                `ImageSets/Segmentation/val.txt` are taken whose mask shows at least one pixel of the class.

        Raises:
            EvaluationError: for lists or masks that cannot be read, or a class outside the fold.
        """
        classes = fold_classes(fold)
        if lists is not None:
            return _published_list(lists, fold)
        shown = _classes_shown(self.root, self.masks)
        pairs = [(name, number) for number in classes for name, there in shown if number in there]
        if not pairs:
            raise EvaluationError(f"no validation photo in {self.root} shows a class of fold {fold}")
        return pairs

    def mask_pair(self, name: str, number: int, resize: Resize) -> Pixels:
        """`(2, 256, 256, 3)`: the photo, and the class white on black; void and other classes are black."""
        photo = read_photo(self.root, f"JPEGImages/{name}.jpg")
        ids = read_label_map(self.root, f"{self.masks}/{name}.png")
        if ids.shape != photo.shape[:2]:
            raise EvaluationError(f"{self.masks}/{name}.png is {ids.shape[::-1]}, its photo {photo.shape[1::-1]}")
        transform = fit(photo.shape[1], photo.shape[0], resize)
        return np.stack([transform.image(photo), white_on_black(transform.labels(ids) == number)])

    def single_objects(self, split: str, max_share: float) -> list[tuple[str, int, tuple[float, ...]]]:
        """(photo, class id, box) of photos with exactly one object, whose box is under `max_share` of the photo.

        Args:
            split: name of a list in `ImageSets/Main`: `train`, `val` or `trainval`.

        Raises:
            EvaluationError: for a list or an XML file that cannot be read.
        """
        found = []
        for name, objects, size in _objects_listed(self.root, split):
            if len(objects) == 1:
                ((number, box),) = objects
                if number and box[2] * box[3] < max_share * size[0] * size[1]:
                    found.append((name, number, box))
        return found

    def box_pair(self, name: str, box: tuple[float, ...], resize: Resize) -> Pixels:
        """`(2, 256, 256, 3)`: the photo, and the filled box white on black."""
        photo = read_photo(self.root, f"JPEGImages/{name}.jpg")
        transform = fit(photo.shape[1], photo.shape[0], resize)
        x0, y0, x1, y1 = np.rint(transform.boxes(np.array([box]))[0]).astype(int).tolist()
        mask = box_mask((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), transform.size, transform.size)
        return np.stack([transform.image(photo), white_on_black(mask)])


def white_on_black(mask: NDArray[np.bool_]) -> Pixels:
    """`(H, W)` bool → `(H, W, 3)` uint8."""
    return np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[:, :, None], 3, axis=2)


def _published_list(folder: Path, fold: int) -> list[tuple[str, int]]:
    classes = fold_classes(fold)
    pairs = []
    for line in read_lines(folder, f"fold{fold}.txt"):
        name, _, number = line.rpartition("__")
        if not name or not number.isdecimal() or int(number) not in classes:
            raise EvaluationError(f"{folder}/fold{fold}.txt: {line!r} is not NAME__CC with a class of {classes}")
        pairs.append((name, int(number)))
    return pairs


@lru_cache(maxsize=2)
def _classes_shown(root: Path, masks: str) -> tuple[tuple[str, frozenset[int]], ...]:
    """Of each validation photo the classes that its mask shows; VOC's 1,449 masks take about 5 s, once."""
    names = read_lines(root, "ImageSets/Segmentation/val.txt")
    return tuple((name, frozenset(np.unique(read_label_map(root, f"{masks}/{name}.png")).tolist())) for name in names)


@lru_cache(maxsize=4)
def _objects_listed(root: Path, split: str) -> tuple[tuple[str, Objects, tuple[int, int]], ...]:
    """Name, objects and size of all photos of a list; VOC's 5,800 XML files take about 2 s, once."""
    names = [line.split()[0] for line in read_lines(root, f"ImageSets/Main/{split}.txt")]
    return tuple((name, *read_boxes(root, f"Annotations/{name}.xml")) for name in names)


def read_boxes(root: Path, name: str) -> tuple[Objects, tuple[int, int]]:
    """Objects of one of VOC's XML files, as (class id, box), and the photo's (width, height).

    Boxes count pixels from 1 in the file and from 0 here: x, y, width, height. A name outside VOC's classes has id 0.

    Raises:
        EvaluationError: for a file that is not such XML; document types, and so entities, are refused.
    """
    element = _parse(read_file(root, name, MAX_XML_BYTES), f"{root / name}")
    objects = element.findall("object")
    if len(objects) > MAX_OBJECTS:
        raise EvaluationError(f"{root / name}: over {MAX_OBJECTS} objects")
    try:
        size = (int(element.findtext("size/width", "")), int(element.findtext("size/height", "")))
        boxes: Objects = []
        for item in objects:
            x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            if not all(isfinite(value) for value in (x0, y0, x1, y1)) or x1 < x0 or y1 < y0:
                raise ValueError("a box is empty or no number")
            label = item.findtext("name", "").strip()
            number = CLASSES.index(label) + 1 if label in CLASSES else 0
            boxes.append((number, (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)))
    except ValueError as error:
        raise EvaluationError(f"{root / name} is no annotation in VOC's form: {error}") from error
    return boxes, size


def _parse(data: bytes, name: str) -> Element:
    tree = TreeBuilder()

    def refuse(*_: object) -> None:
        # Entities, which can grow without bound, need a document type, and VOC's files have none.
        raise EvaluationError(f"{name}: document types are not read")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: tree.start(tag, attributes)
    parser.EndElementHandler = lambda tag: tree.end(tag)
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(data, True)
        return tree.close()
    except (expat.ExpatError, LookupError) as error:
        raise EvaluationError(f"{name} is no XML: {error}") from error

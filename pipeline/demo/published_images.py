"""Annotated photos laid out in the forms in which data sets of images are published.

The forms are those that docs/sources.md lists for `annotated`. What is written is what `Scene` says, so a reader must
give it back; names of classes are made up where a form wants them, because uvd must not let them through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
from numpy.typing import NDArray

PERSON = 1
"""Category of people."""
MIN_PART = 16
"""Pixels of the smallest part of a mask that gets a polygon."""
CITYSCAPES_CLASSES = (7, 11, 21, 23, 24, 26, 33)
"""Of Cityscapes' label ids, for categories 1 to 7."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneObject:
    """One annotated object.

    Attributes:
        category: from 1.
        mask: `(H, W)` bool, what is visible of it.
        keypoints: `(17, 3)` float64 of a person, COCO's: x, y, 2 if visible, else zeros; or None.
    """

    category: int
    mask: NDArray[np.bool_]
    keypoints: NDArray[np.float64] | None = None

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the mask, in whole pixels."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A photo, what is in it from back to front, and if it is known how far away.

    Attributes:
        name: without suffix.
        pixels: `(H, W, 3)` uint8 RGB.
        objects: none covers another: masks are of what is visible.
        depth_m: `(H, W)` float32 metres, 0 where unknown; or None.
    """

    name: str
    pixels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    depth_m: NDArray[np.float32] | None = None

    def labels(self, value: Callable[[int, SceneObject], int], void: int = 0) -> NDArray[np.int32]:
        """`(H, W)` int32: of each pixel what `value` says of its object, whose place from 1 comes first."""
        labels = np.full(self.pixels.shape[:2], void, np.int32)
        for place, entry in enumerate(self.objects, start=1):
            labels[entry.mask] = value(place, entry)
        return labels


def polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Outlines of a mask as COCO polygons; specks of under 16 pixels are left out."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    kept = [contour for contour in contours if len(contour) >= 3 and cv2.contourArea(contour) >= MIN_PART]
    # Contours run through pixel centres; COCO's coordinates have the first pixel's centre at 0.5.
    return [(contour.reshape(-1) + 0.5).tolist() for contour in kept]


def lay_out_coco(root: Path, scenes: Sequence[Scene], missing: Sequence[str] = ()) -> None:
    """`images/NAME.jpg` and `instances.json`.

    Args:
        missing: names of images that the JSON lists, and that are not there.
    """
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, start=1):
        save(root / "images" / f"{scene.name}.jpg", scene.pixels)
        for entry in scene.objects:
            if outlines := polygons(entry.mask):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **_coco_entry(entry, outlines)})
    images = [_coco_image(number, scene) for number, scene in enumerate(scenes, start=1)]
    for name in missing:
        images.append({"id": len(images) + 1, "file_name": name, "width": 640, "height": 480})
    content = {"images": images, "annotations": annotations, "categories": _categories(scenes)}
    (root / "instances.json").write_text(json.dumps(content))


def _coco_entry(entry: SceneObject, outlines: list[list[float]]) -> dict[str, Any]:
    common = {"category_id": entry.category, "iscrowd": 0, "bbox": list(entry.box), "segmentation": outlines}
    if entry.keypoints is None:
        return common
    keypoints = [round(float(value), 1) for value in entry.keypoints.reshape(-1)]
    return {**common, "keypoints": keypoints, "num_keypoints": int((entry.keypoints[:, 2] > 0).sum())}


def _coco_image(number: int, scene: Scene) -> dict[str, Any]:
    height, width = scene.pixels.shape[:2]
    return {"id": number, "file_name": f"{scene.name}.jpg", "width": width, "height": height}


def _categories(scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    return [{"id": identity} for identity in sorted({e.category for scene in scenes for e in scene.objects})]


def lay_out_panoptic(root: Path, scenes: Sequence[Scene]) -> None:
    """`images/NAME.jpg`, `panoptic.json`, and `panoptic/NAME.png`, whose colours are segment ids."""
    annotations = []
    for number, scene in enumerate(scenes, start=1):
        save(root / "images" / f"{scene.name}.jpg", scene.pixels)
        ids = scene.labels(lambda place, _: _segment_id(place))
        save(
            root / "panoptic" / f"{scene.name}.png",
            np.stack([(ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=2),
        )
        segments = [
            {"id": _segment_id(place), "category_id": entry.category, "iscrowd": 0, "area": int(entry.mask.sum())}
            for place, entry in enumerate(scene.objects, start=1)
        ]
        annotations.append({"image_id": number, "file_name": f"{scene.name}.png", "segments_info": segments})
    images = [_coco_image(number, scene) for number, scene in enumerate(scenes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": _categories(scenes)}
    (root / "panoptic.json").write_text(json.dumps(content))


def _bytes_of(ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    return np.stack([(ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=2)


def _segment_id(place: int) -> int:
    """All three bytes are used."""
    return place * 70_001


def lay_out_voc(root: Path, scenes: Sequence[Scene]) -> None:
    """`JPEGImages/NAME.jpg`, `Annotations/NAME.xml`, and `SegmentationClass/NAME.png` with void around objects."""
    for scene in scenes:
        save(root / "JPEGImages" / f"{scene.name}.jpg", scene.pixels)
        labels = scene.labels(lambda _, entry: entry.category).astype(np.uint8)
        edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        save(root / "SegmentationClass" / f"{scene.name}.png", np.where(edges, np.uint8(255), labels))
        path = root / "Annotations" / f"{scene.name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_voc_xml(scene))


VOC_NAMES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car")
"""The first of Pascal VOC's 20 classes, for categories 1 to 7."""


def _voc_xml(scene: Scene) -> str:
    height, width = scene.pixels.shape[:2]
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    objects = []
    for entry in scene.objects:
        left, top, box_width, box_height = entry.box
        # The first pixel is 1, and the last one belongs to the box.
        edges = {"xmin": left + 1, "ymin": top + 1, "xmax": left + box_width, "ymax": top + box_height}
        box = "".join(f"<{name}>{value}</{name}>" for name, value in edges.items())
        objects.append(f"<object><name>{VOC_NAMES[entry.category - 1]}</name><bndbox>{box}</bndbox></object>")
    return f"<annotation><filename>{escape(scene.name)}.jpg</filename>{size}{''.join(objects)}</annotation>\n"


def lay_out_yolo(root: Path, scenes: Sequence[Scene]) -> None:
    """`images/NAME.jpg`, and `labels/NAME.txt` with a line of class, centre and size for each box."""
    for scene in scenes:
        save(root / "images" / f"{scene.name}.jpg", scene.pixels)
        height, width = scene.pixels.shape[:2]
        lines = []
        for entry in scene.objects:
            left, top, box_width, box_height = entry.box
            centre = (left + box_width / 2) / width, (top + box_height / 2) / height
            values = (*centre, box_width / width, box_height / height)
            lines.append(" ".join([str(entry.category - 1), *(f"{value:.6f}" for value in values)]))
        path = root / "labels" / f"{scene.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))


def lay_out_ade20k(root: Path, scenes: Sequence[Scene]) -> None:
    """`images/training/NAME.jpg` and `annotations/training/NAME.png`, 0 for void."""
    for scene in scenes:
        save(root / "images/training" / f"{scene.name}.jpg", scene.pixels)
        save(
            root / "annotations/training" / f"{scene.name}.png",
            scene.labels(lambda _, entry: entry.category).astype(np.uint8),
        )


def lay_out_cityscapes(root: Path, scenes: Sequence[Scene]) -> None:
    """`leftImg8bit/train/town/NAME_leftImg8bit.png` and `gtFine/train/town/NAME_gtFine_labelIds.png`."""
    for scene in scenes:
        save(root / "leftImg8bit/train/town" / f"{scene.name}_leftImg8bit.png", scene.pixels)
        labels = scene.labels(lambda _, entry: CITYSCAPES_CLASSES[entry.category - 1]).astype(np.uint8)
        save(root / "gtFine/train/town" / f"{scene.name}_gtFine_labelIds.png", labels)


def lay_out_depth(root: Path, scenes: Sequence[Scene]) -> None:
    """`images/NAME.jpg`, and `depth/NAME.png` of 16 bit in millimetres, 0 where unknown."""
    for scene in scenes:
        if scene.depth_m is not None:
            save(root / "images" / f"{scene.name}.jpg", scene.pixels)
            save(root / "depth" / f"{scene.name}.png", np.rint(scene.depth_m * 1000).astype(np.uint16))


def lay_out_pairs(root: Path, scenes: Sequence[Scene], degrade: Callable[[Scene], NDArray[np.uint8]]) -> None:
    """`input/NAME.jpg`, degraded, and `target/NAME.jpg`, as it was."""
    for scene in scenes:
        save(root / "input" / f"{scene.name}.jpg", degrade(scene))
        save(root / "target" / f"{scene.name}.jpg", scene.pixels)


def save(path: Path, pixels: NDArray[np.generic]) -> None:
    """Writes `(H, W, 3)` uint8 RGB as JPEG of quality 95 or PNG, by suffix; or `(H, W)` uint8 or uint16 ids as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = pixels[:, :, ::-1] if pixels.ndim == 3 else pixels
    _, data = cv2.imencode(path.suffix, shown, [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else [])
    path.write_bytes(data.tobytes())

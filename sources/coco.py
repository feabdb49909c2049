"""`annotated`: images with COCO annotations → boxes, OpenPose skeletons, segmentation, and derived pictures.

Reads the COCO object-detection form (instances and person keypoints, cocodataset.org/#format-data). A class's colour is
its place among the sorted category ids: stable over the dataset, and no class name is read. The JSON is parsed once,
when planning; each work unit carries the annotations of its images.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uvd.renderers.boxes import render_boxes, visible_boxes
from uvd.renderers.coco_masks import decode_coco_segmentation
from uvd.renderers.palette import PALETTE_SIZE
from uvd.renderers.pose import render_pose, visible_people
from uvd.renderers.segmentation import render_instances
from uvd.sequences import Example, Picture, Reason, Seeds, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, SourceError
from uvd.sources.decode import MAX_BYTES, MAX_PIXELS, decode_image, read_bytes
from uvd.sources.images import derive_pictures

Annotation = dict[str, Any]
AnnotationKind = Literal["boxes", "pose", "segmentation", "grey", "masked"]
DERIVED_KINDS = ("grey", "masked")
KEYPOINTS = 17
MAX_JSON_BYTES = 4 << 30


class CocoConfig(SourceConfig):
    """Settings of the `annotated` source."""

    source: Literal["annotated"] = "annotated"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder of the images that the JSON's `file_name`s name."""
    annotations: tuple[Path, ...] = Field(json_schema_extra=NOT_DATA, min_length=1)
    """COCO JSON files of the same images, such as instances and person keypoints."""
    render: tuple[AnnotationKind, ...] = ("boxes", "pose", "segmentation", "grey", "masked")
    """What to draw, where an image has it."""
    boxes_over_image: bool = True
    """Boxes over the photo, the paper's overlay; otherwise on black."""
    layouts: dict[str, float] = {"pairs": 1.0, "tuples": 1.0}
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    max_bytes: int = Field(MAX_BYTES, ge=1)


class CocoSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = CocoConfig
    config: CocoConfig

    def items(self) -> Iterator[Item]:
        images: dict[int, dict[str, Any]] = {}
        annotations: dict[int, list[Annotation]] = defaultdict(list)
        categories: set[int] = set()
        for path in self.config.annotations:
            content = _load(path)
            images.update(_unique(path, content["images"]))
            categories.update(category["id"] for category in content["categories"])
            for annotation in content["annotations"]:
                annotations[annotation["image_id"]].append(annotation)
        colours = {identity: number + 1 for number, identity in enumerate(sorted(categories))}
        for identity in sorted(images):
            image = images[identity]
            kept = [_keep(annotation, colours) for annotation in annotations.pop(identity, [])]
            size = [image["width"], image["height"]]
            origin = image["file_name"]
            yield {"origin": origin, "bytes": self._bytes(origin), "size": size, "annotations": kept}
        for identity in sorted(annotations):
            yield {"origin": f"image_id {identity}", "bytes": None, "size": None, "annotations": []}

    def _bytes(self, origin: str) -> int | None:
        """Size of an image file, so that a replaced one is noticed; None for what the worker will refuse."""
        try:
            return (self.config.input / origin).stat().st_size
        except (OSError, ValueError):
            return None

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        origin = item["origin"]
        if item["size"] is None:
            raise RejectedInput(Reason.BAD_ANNOTATION, "annotations of an image that the JSON does not list")
        with self.stages("decode"):
            pixels, size = self._decode(origin)
        if list(size) != item["size"]:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"image is {size[0]}x{size[1]}, the JSON says {item['size']}")
        transform = self.transform(*size, seeds)
        photo = Picture("image", transform.image(pixels), origin, size)
        with self.stages("render"):
            drawn = list(self._drawn(photo, item["annotations"], transform))
            derived = [kind for kind in self.config.render if kind in DERIVED_KINDS]
            if not drawn and not derived:
                raise RejectedInput(Reason.NO_ANNOTATION, "no annotation is visible in the crop")
            pictures = (photo, *drawn, *derive_pictures(photo, tuple(derived), seeds))
        yield Example((index,), self.config.dataset, self.split(origin), pictures)

    def _decode(self, origin: str) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        path = self.config.input / origin
        try:
            inside = path.resolve().is_relative_to(self.config.input.resolve())
        except ValueError as error:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"file_name is no path: {error}") from error
        if not inside:
            raise RejectedInput(Reason.BAD_ANNOTATION, "file_name leads out of the input folder")
        return decode_image(read_bytes(path, self.config.max_bytes), max_pixels=self.config.max_pixels)

    def _drawn(self, photo: Picture, annotations: Sequence[Annotation], transform: Transform) -> Iterator[Picture]:
        """The label pictures that this image has, in the order of `render`."""
        renderers = {"boxes": self._boxes, "pose": self._pose, "segmentation": self._segmentation}
        for kind in self.config.render:
            if kind in renderers:
                pixels = renderers[kind](photo, annotations, transform)
                if pixels is not None:
                    yield Picture(kind, pixels, photo.origin, photo.size, drawn=True)

    def _boxes(
        self, photo: Picture, annotations: Sequence[Annotation], transform: Transform
    ) -> NDArray[np.uint8] | None:
        boxed = [annotation for annotation in annotations if annotation["bbox"] and not annotation["crowd"]]
        if not boxed:
            return None
        corners = transform.boxes(np.array([_numbers(annotation, "bbox", 4) for annotation in boxed]))
        visible = visible_boxes(corners)
        if not visible.any():
            return None
        classes = np.array([_class(annotation) for annotation in boxed])[visible]
        background = photo.pixels if self.config.boxes_over_image else None
        return render_boxes(corners[visible], classes, background=background)

    def _pose(
        self, photo: Picture, annotations: Sequence[Annotation], transform: Transform
    ) -> NDArray[np.uint8] | None:
        people = [
            _numbers(annotation, "keypoints", 3 * KEYPOINTS) for annotation in annotations if annotation["keypoints"]
        ]
        if not people:
            return None
        keypoints = np.array(people).reshape(-1, KEYPOINTS, 3)
        keypoints[:, :, :2] = transform.points(keypoints[:, :, :2])
        if not visible_people(keypoints).any():
            return None
        return render_pose(keypoints)

    def _segmentation(
        self, photo: Picture, annotations: Sequence[Annotation], transform: Transform
    ) -> NDArray[np.uint8] | None:
        masks, classes = [], []
        for annotation in annotations:
            if not annotation["segmentation"]:
                continue
            try:
                mask = decode_coco_segmentation(annotation["segmentation"], photo.size[1], photo.size[0])
            except ValueError as error:
                raise RejectedInput(Reason.BAD_ANNOTATION, f"segmentation: {error}") from error
            masks.append(transform.labels(mask))
            classes.append(_class(annotation))
        if not any(mask.any() for mask in masks):
            return None
        return render_instances(np.stack(masks), np.array(classes))


def _numbers(annotation: Annotation, key: str, count: int) -> NDArray[np.float64]:
    """The numbers of one annotation entry.

    Raises:
        RejectedInput: unless it is a list of `count` finite numbers.
    """
    listed = annotation[key]
    numeric = isinstance(listed, list) and all(type(value) in (int, float) for value in listed)
    if not numeric:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{key} is not a list of numbers")
    try:
        values = np.array(listed, dtype=np.float64)
    except OverflowError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{key} holds a number that is too large") from error
    if values.shape != (count,) or not np.isfinite(values).all():
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{key} is not {count} finite numbers")
    return values


def _class(annotation: Annotation) -> int:
    if annotation["class"] is None:
        raise RejectedInput(Reason.BAD_ANNOTATION, "category_id is not among the JSON's categories")
    if annotation["class"] >= PALETTE_SIZE:
        raise RejectedInput(
            Reason.BAD_ANNOTATION, f"class {annotation['class']} is beyond the palette's {PALETTE_SIZE}"
        )
    return annotation["class"]


def _load(path: Path) -> dict[str, Any]:
    """Parses a COCO JSON file and checks its form.

    Raises:
        SourceError: names the file and the key that is missing or wrong.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SourceError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} is not COCO: the top level is a {type(content).__name__}, not an object")
    _check_list(path, content, "images", {"id": int, "file_name": str, "width": int, "height": int})
    _check_list(path, content, "annotations", {"image_id": int, "category_id": int})
    _check_list(path, content, "categories", {"id": int})
    return content


def _unique(path: Path, images: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    by_id = {image["id"]: image for image in images}
    if len(by_id) != len(images):
        raise SourceError(f"{path} is not COCO: {len(images) - len(by_id)} images have an id that another one has")
    return by_id


def _check_list(path: Path, content: dict[str, Any], name: str, keys: dict[str, type]) -> None:
    entries = content.get(name)
    if not isinstance(entries, list):
        raise SourceError(f"{path} is not COCO: {name!r} is missing or not a list")
    for number, entry in enumerate(entries):
        for key, kind in keys.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise SourceError(f"{path} is not COCO: {name}[{number}] has no {key!r} of type {kind.__name__}")


def _keep(annotation: Annotation, colours: dict[int, int]) -> Annotation:
    """What rendering needs of one annotation; damaged parts become a reject later, in the worker."""
    return {
        "class": colours.get(annotation["category_id"]),
        "crowd": bool(annotation.get("iscrowd")),
        "bbox": annotation.get("bbox"),
        "segmentation": annotation.get("segmentation"),
        "keypoints": annotation.get("keypoints") if annotation.get("num_keypoints", 1) else None,
    }

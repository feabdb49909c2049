"""`coco`: photos with COCO-form JSON → boxes, skeletons, segmentation, and a mask for each class.

Rules: a class's colour is its place among the sorted category ids of all JSON files. Crowd regions are neither boxed
nor posed, but segmented. Boxes without area or outside the crop are not drawn; numbers that are not finite and damaged
masks cost their photo. Files are parsed once, when planning; each item carries the annotations of its photo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.skeletons import AP10K, FACE, HAND, OPENPOSE_BODY, Skeleton
from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.base import AnnotatedImage, Annotation, Reader
from uvd.sources.annotated.coco_json import Kept, Part, merged, read_coco
from uvd.sources.annotated.config import AnnotatedConfig, Render
from uvd.sources.annotated.drawn_boxes import draw_boxes
from uvd.sources.annotated.drawn_masks import CocoMasks, draw_foreground, draw_instances
from uvd.sources.annotated.drawn_poses import draw_poses
from uvd.sources.annotated.listed_images import find_images, open_listed
from uvd.sources.base import Item, refused
from uvd.sources.drawing import Draw

MAX_OBJECTS = 10_000
"""Of one photo: data sets have up to a few hundred, aerial ones a few thousand."""
KEYPOINTS, HAND_POINTS, FACE_POINTS = 17, 21, 68
HANDS = ("lefthand_kpts", "righthand_kpts")

NEEDS: dict[Render, Part] = {
    "boxes": "bbox",
    "filled_boxes": "bbox",
    "pose": "keypoints",
    "segmentation": "segmentation",
    "foreground": "segmentation",
}


class CocoReader(Reader):
    def __init__(self, config: AnnotatedConfig) -> None:
        super().__init__(config)
        pose = config.estimate.pose
        self._shows_people = pose is not None and pose.boxes == "given"
        self._wanted: set[Part] = {NEEDS[kind] for kind in config.render}
        if self._shows_people:
            self._wanted.add("person")

    def items(self) -> Iterator[Item]:
        coco = read_coco(self.config.annotations, self._wanted)
        colours = {identity: place for place, identity in enumerate(coco.categories, start=1)}
        found, lost = find_images(self.config.input, coco.images)
        for identity in sorted(coco.images):
            kept = merged(coco.annotations.pop(identity, []), self._wanted)
            if identity in lost:
                yield lost[identity]
                continue
            for annotation in kept:
                annotation["class"] = colours.get(annotation["class"])
            image = found[identity]
            yield {"origin": image.path, "bytes": image.num_bytes, "size": list(image.size), "annotations": kept}
        for identity in sorted(coco.annotations):
            detail = "annotations of an image that the JSON does not list"
            yield refused(f"image_id {identity}", Reason.BAD_ANNOTATION, detail)

    def open(self, item: Item) -> AnnotatedImage:
        origin, size, annotations = item["origin"], tuple(item["size"]), item["annotations"]
        if len(annotations) > MAX_OBJECTS:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"{len(annotations)} annotations, over {MAX_OBJECTS}")
        for annotation in annotations:
            if annotation["class"] is None:
                raise RejectedInput(Reason.BAD_ANNOTATION, "category_id is not among the JSON's categories")
        pixels = open_listed(self.config, origin, size)
        drawn = tuple(self._annotations(origin, annotations, size))
        return AnnotatedImage(pixels, size, origin, drawn, _people(annotations) if self._shows_people else None)

    def _annotations(self, origin: str, annotations: Sequence[Kept], size: tuple[int, int]) -> Iterator[Annotation]:
        """What there is to draw of a photo, in the order of `render`."""
        segmented = [annotation for annotation in annotations if annotation.get("segmentation")]
        masks = CocoMasks([annotation["segmentation"] for annotation in segmented], size)
        for kind in self.config.render:
            draw: Draw | None = None
            if kind in ("boxes", "filled_boxes"):
                draw = self._boxes(annotations, filled=kind == "filled_boxes")
            elif kind == "pose":
                parts = _parts(annotations)
                draw = draw_poses(parts) if parts else None
            elif kind == "segmentation":
                draw = draw_instances(masks, _classes(segmented)) if segmented else None
            else:
                for place in sorted(set(_classes(segmented).tolist())):
                    members = [number for number, kept in enumerate(segmented) if kept["class"] == place]
                    yield Annotation(kind, origin, draw_foreground(masks, members), group=str(place))
            if draw is not None:
                yield Annotation(kind, origin, draw)

    def _boxes(self, annotations: Sequence[Kept], filled: bool) -> Draw | None:
        boxed = [kept for kept in annotations if kept.get("bbox") and not kept.get("crowd")]
        if not boxed:
            return None
        xywh = np.array([_numbers(kept, "bbox", 4) for kept in boxed])
        return draw_boxes(xywh, _classes(boxed), self.config.boxes_over_image, filled)


def _classes(annotations: Sequence[Kept]) -> NDArray[np.int64]:
    return np.array([annotation["class"] for annotation in annotations], dtype=np.int64)


def _people(annotations: Sequence[Kept]) -> NDArray[np.float64]:
    """`(N, 4)` boxes of people, for networks that find poses in boxes; none of the photo's annotations may be one."""
    boxed = [annotation for annotation in annotations if annotation.get("person") and annotation.get("bbox")]
    boxes = np.array([_numbers(annotation, "bbox", 4) for annotation in boxed]).reshape(-1, 4)
    return boxes[(boxes[:, 2:] > 0).all(axis=1)]


def _parts(annotations: Sequence[Kept]) -> list[tuple[Skeleton, NDArray[np.float64]]]:
    """Bodies, animals, hands and faces of all that are no crowds: kinds with `(N, K, 3)` points in raw pixels."""
    posed = [annotation for annotation in annotations if not annotation.get("crowd")]
    bodies: dict[str, list[NDArray[np.float64]]] = {"coco": [], "ap10k": []}
    for kept in posed:
        if kept.get("keypoints"):
            points = _numbers(kept, "keypoints", 3 * kept.get("named", KEYPOINTS)).reshape(-1, 3)
            bodies[kept.get("skeleton", "coco")].append(points[:KEYPOINTS])
    hands = [_points(kept, key, HAND_POINTS) for kept in posed for key in HANDS if kept.get(key)]
    faces = [_points(kept, "face_kpts", FACE_POINTS) for kept in posed if kept.get("face_kpts")]
    parts = ((OPENPOSE_BODY, bodies["coco"]), (AP10K, bodies["ap10k"]), (HAND, hands), (FACE, faces))
    return [(skeleton, np.stack(points)) for skeleton, points in parts if points]


def _points(annotation: Kept, key: str, count: int) -> NDArray[np.float64]:
    """`(count, 3)` points of a hand or face, whose visibility in COCO-WholeBody is any number over 0 for "yes"."""
    points = _numbers(annotation, key, 3 * count).reshape(-1, 3)
    points[:, 2] = points[:, 2] > 0
    return points


def _numbers(annotation: Kept, key: str, count: int) -> NDArray[np.float64]:
    """The numbers of one annotation entry.

    Raises:
        RejectedInput: unless it is a list of `count` finite numbers.
    """
    listed = annotation[key]
    if not isinstance(listed, list) or not all(type(value) in (int, float) for value in listed):
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{key} is not a list of numbers")
    try:
        values = np.array(listed, dtype=np.float64)
    except OverflowError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{key} holds a number that is too large") from error
    if values.shape != (count,) or not np.isfinite(values).all():
        wrong = f"{len(values)} numbers" if len(values) != count else "numbers that are not finite"
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{key}: {wrong}, expected {count} finite ones")
    return values

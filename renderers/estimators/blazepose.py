"""Human pose and person masks by BlazePose on CPU: COCO keypoints for images without annotation.

A detector finds people in the image, and in overlapping squares of a long one, at 224x224; for each, a second network
takes a rotated 256x256 crop and returns landmarks and a person mask, twice, the second time from a crop placed by its
own first result. Weights are the Apache-2.0 `.tflite` files of MediaPipe, run by LiteRT. About 12 ms a window and 45 ms
a person on one core.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.renderers.canvas import check_rgb
from uvd.renderers.estimators.base import EstimatorFilesError, View
from uvd.renderers.estimators.blazepose_geometry import (
    COCO_OF_LANDMARKS,
    DETECTOR_SIDE,
    LANDMARK_SIDE,
    Crop,
    anchors,
    blend_overlapping,
    crop_around,
    decode_detections,
    decode_landmarks,
    letterbox,
    windows,
)
from uvd.renderers.estimators.config import PoseSettings
from uvd.renderers.estimators.pose import PoseEstimator

DETECTOR = "pose_detection.tflite"
LANDMARK_NET = "pose_landmark_full.tflite"

IN_WHEEL = {DETECTOR: "mediapipe/modules/pose_detection", LANDMARK_NET: "mediapipe/modules/pose_landmark"}
"""Where MediaPipe's package has them, and `uvd samples` puts them below its folder."""

OUTPUT_SHAPES = {
    DETECTOR: [(1, 2254, 12), (1, 2254, 1)],
    LANDMARK_NET: [(1, 195), (1, 1), (1, 256, 256, 1), (1, 64, 64, 39), (1, 117)],
}
"""What each network returns, in order: a file that answers otherwise is not the one that is meant."""

HIPS, CIRCLE = 33, 34
"""Landmarks that place the next crop."""

SAME_PERSON = 0.15
"""Two results are one person if their keypoints lie, on average, nearer than this share of the larger body's size."""


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """One estimated person, in raw pixels.

    Attributes:
        keypoints: `(17, 3)` float64, COCO's order: x, y, score in [0, 1]; score 0 outside the image.
        box: left, top, right, bottom of mask and visible keypoints together, within the image.
        score: the landmark network's probability that the crop holds a person.
        mask: `(H, W)` bool, or None when masks were not asked for.
    """

    keypoints: NDArray[np.float64]
    box: tuple[float, float, float, float]
    score: float
    mask: NDArray[np.bool_] | None


class BlazePose:
    """Loads both networks once; `estimate` is deterministic for a given thread count. Not safe between threads.

    Args:
        model_dir: folder as `model_files` takes it.
        threshold: least probability of a detection.
        presence: least probability, by the landmark network, that a crop holds a person.
        max_people: most people per image, the surest first.
        masks: whether to return person masks.
        num_threads: of LiteRT; part of what a dataset's bytes depend on.

    Raises:
        EstimatorFilesError: for missing or foreign weights, or without LiteRT.
    """

    def __init__(
        self,
        model_dir: Path | str | None = None,
        threshold: float = 0.5,
        presence: float = 0.8,
        max_people: int = 10,
        masks: bool = True,
        num_threads: int = 1,
    ) -> None:
        self.threshold = threshold
        self.presence = presence
        self.max_people = max_people
        self.masks = masks
        files = model_files(model_dir)
        self._detector = _interpreter(files[DETECTOR], num_threads)
        self._landmark_net = _interpreter(files[LANDMARK_NET], num_threads)
        self._anchors = anchors()

    def estimate(self, image: NDArray[np.uint8]) -> list[Person]:
        """People in an `(H, W, 3)` uint8 RGB image, the surest first; an empty list when there are none.

        Raises:
            ValueError: for an image of another shape or type.
        """
        check_rgb(image)
        people = [self._person(image, crop) for crop in self._detect(image)[: self.max_people]]
        found = sorted((p for p in people if p is not None), key=lambda person: -person.score)
        return _without_duplicates(found)

    def _detect(self, image: NDArray[np.uint8]) -> list[Crop]:
        """Crops around the people found in any of the image's windows, the surest first."""
        found = [self._detect_in(image, window) for window in windows(image.shape[1], image.shape[0])]
        points = np.concatenate([points for points, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        return [crop_around(detection[2], detection[3]) for detection, _ in blend_overlapping(points, scores)]

    def _detect_in(
        self, image: NDArray[np.uint8], window: tuple[int, int, int, int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Detections `(D, 6, 2)` in raw pixels of the whole image, and their scores."""
        left, top, width, height = window
        boxed, scale, bar_left, bar_top = letterbox(image[top : top + height, left : left + width])
        raw, logits = _run(self._detector, boxed.astype(np.float32) / np.float32(127.5) - np.float32(1))
        points, scores = decode_detections(raw[0], logits[0, :, 0], self._anchors, self.threshold)
        return (points * DETECTOR_SIDE - (bar_left, bar_top)) / scale + (left, top), scores

    def _person(self, image: NDArray[np.uint8], crop: Crop) -> Person | None:
        first = self._landmarks(image, crop)
        if first is None:
            return None
        # The detector sees a small person in few pixels; the landmarks place the crop better.
        better = crop_around(*crop.to_raw(first[0][[HIPS, CIRCLE], :2]))
        second = self._landmarks(image, better)
        (landmarks, score, logits), crop = (first, crop) if second is None else (second, better)
        keypoints = np.empty((17, 3))
        body = landmarks[list(COCO_OF_LANDMARKS)]
        keypoints[:, :2] = crop.to_raw(body[:, :2])
        height, width = image.shape[:2]
        inside = ((keypoints[:, :2] >= 0) & (keypoints[:, :2] < (width, height))).all(axis=1)
        keypoints[:, 2] = np.where(inside, body[:, 2], 0.0)
        mask = _largest_parts(crop.paste(logits, height, width), keypoints)
        box = _box(mask, keypoints)
        if box is None:
            return None
        return Person(keypoints, box, score, mask if self.masks else None)

    def _landmarks(
        self, image: NDArray[np.uint8], crop: Crop
    ) -> tuple[NDArray[np.float64], float, NDArray[np.float32]] | None:
        """Landmarks in the unit square, probability of a person, mask logits; None below the threshold."""
        pixels = crop.cut(image).astype(np.float32) / np.float32(255)
        raw, flag, mask, heatmaps, _ = _run(self._landmark_net, pixels)
        score = float(flag[0, 0])
        if not score >= self.presence or not np.isfinite(raw).all():
            return None
        return decode_landmarks(raw[0], heatmaps[0]), score, mask.reshape(LANDMARK_SIDE, LANDMARK_SIDE)


class BlazePoseEstimator(PoseEstimator):
    """The `pose` pictures of views by BlazePose; one view at a time, on one thread of the CPU."""

    side = 512
    """The detector shrinks a view to 224; the landmark network wants a person of half this side in 256 pixels."""

    def __init__(self, settings: PoseSettings) -> None:
        super().__init__(settings.threshold)
        self._model = BlazePose(settings.model_dir, masks=False, num_threads=1)

    def people(self, views: Sequence[View]) -> list[NDArray[np.float64]]:
        found = [self._model.estimate(view.pixels) for view in views]
        # The surest comes first, and is to be on top.
        return [np.array([person.keypoints for person in reversed(people)]).reshape(-1, 17, 3) for people in found]


def samples_folder() -> Path:
    """Where `uvd samples` puts files: `$UVD_SAMPLES`, or `~/.cache/uvd/samples`."""
    return Path(os.environ.get("UVD_SAMPLES") or Path.home() / ".cache/uvd/samples")


def model_files(folder: Path | str | None = None) -> dict[str, Path]:
    """Name → file of both networks.

    Args:
        folder: has both files in it, or where they lie in MediaPipe's package; None: `samples_folder()`.

    Raises:
        EstimatorFilesError: if one is missing.
    """
    root = samples_folder() if folder is None else Path(folder).expanduser()
    found = {}
    for name, place in IN_WHEEL.items():
        paths = [path for path in (root / name, root / place / name) if path.is_file()]
        if not paths:
            raise EstimatorFilesError(f"{root / name} is missing; `uvd samples` fetches MediaPipe's pose models")
        found[name] = paths[0]
    return found


def _interpreter(path: Path, num_threads: int) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise EstimatorFilesError(f"LiteRT is not installed (pip install ai-edge-litert): {error}") from error
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=num_threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise EstimatorFilesError(f"{path} is not a TFLite model: {error}") from error
    shapes = [tuple(output["shape"].tolist()) for output in interpreter.get_output_details()]
    if shapes != OUTPUT_SHAPES[path.name]:
        raise EstimatorFilesError(f"{path} returns {shapes}, BlazePose returns {OUTPUT_SHAPES[path.name]}")
    return interpreter


def _run(interpreter: Any, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels[None])
    interpreter.invoke()
    return [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]


def _largest_parts(mask: NDArray[np.bool_], keypoints: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Keeps the connected parts of a mask that hold a visible keypoint: the others belong to somebody else."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    columns, rows = keypoints[keypoints[:, 2] >= 0.3, :2].astype(np.int64).T
    touched = np.zeros(count, dtype=np.bool_)
    touched[labels[rows, columns]] = True
    touched[0] = False
    return touched[labels]


def _box(mask: NDArray[np.bool_], keypoints: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    """Bounds of mask and visible keypoints; None when there are neither."""
    visible = keypoints[keypoints[:, 2] >= 0.3, :2]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = [visible] if len(visible) else []
    if len(rows):
        corners.append(np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], dtype=np.float64))
    if not corners:
        return None
    points = np.concatenate(corners)
    left, top = points.min(axis=0).tolist()
    right, bottom = points.max(axis=0).tolist()
    return left, top, right, bottom


def _without_duplicates(people: list[Person]) -> list[Person]:
    """Drops a person whose keypoints lie on those of a surer one: two detections that led to the same body."""
    kept: list[Person] = []
    for person in people:
        if all(_distance(person, other) > SAME_PERSON for other in kept):
            kept.append(person)
    return kept


def _distance(a: Person, b: Person) -> float:
    """Mean distance of corresponding keypoints over the larger body's size, the root of its box's area."""
    size = max((p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) for p in (a, b)) ** 0.5
    return float(np.linalg.norm(a.keypoints[:, :2] - b.keypoints[:, :2], axis=1).mean() / max(size, 1.0))

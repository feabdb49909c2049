"""Other ways to draw annotations, one process a way; run by the interpreter that has the library.

`supervision`: BoxAnnotator, MaskAnnotator, EdgeAnnotator and VertexAnnotator. `mmpose`: PoseLocalVisualizer, "openpose"
style. Each has one thread and one core, draws RGB arrays into RGB arrays, and is given its own classes of detections,
whose making is not timed.

    python -P renderer_peers.py WAY CORE, and lines of {"file": ANNOTATIONS.npz, "task": NAME, "passes": N, "out": FILE}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Draw = Callable[[], Pixels]
"""Draws one picture from the start: a fresh canvas, and everything on it."""

LIMBS = ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10))
HEAD = ((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6))
"""COCO's skeleton, keypoints from 0."""


def unpack_masks(annotations: Mapping[str, NDArray[Any]], picture: int) -> NDArray[np.bool_]:
    """`(N, H, W)` bool masks of a picture; they are stored as bits."""
    packed, side = annotations["masks"][picture], annotations["photos"].shape[1]
    return np.unpackbits(packed, axis=-1, count=side).astype(np.bool_)


class Supervision:
    """Its annotators change the picture they are given, so each drawing starts with a copy, as its manual has it."""

    def __init__(self) -> None:
        import supervision as library  # type: ignore[import-not-found]

        self._library = library
        self._boxes = library.BoxAnnotator(thickness=2)
        self._masks = library.MaskAnnotator()
        edges = [(start + 1, end + 1) for start, end in LIMBS + HEAD]
        self._edges = library.EdgeAnnotator(thickness=2, edges=edges)
        self._vertices = library.VertexAnnotator(radius=3)

    def boxes(self, annotations: Mapping[str, NDArray[Any]], picture: int) -> Draw:
        photo = annotations["photos"][picture]
        found = self._library.Detections(
            xyxy=annotations["boxes"][picture].astype(np.float32), class_id=annotations["classes"][picture]
        )
        return lambda: self._boxes.annotate(photo.copy(), found)

    def masks(self, annotations: Mapping[str, NDArray[Any]], picture: int) -> Draw:
        photo = annotations["photos"][picture]
        found = self._library.Detections(
            xyxy=annotations["mask_boxes"][picture].astype(np.float32),
            mask=unpack_masks(annotations, picture),
            class_id=annotations["classes"][picture],
        )
        return lambda: self._masks.annotate(photo.copy(), found)

    def skeletons(self, annotations: Mapping[str, NDArray[Any]], picture: int) -> Draw:
        black = np.zeros_like(annotations["photos"][picture])
        people = annotations["people"][picture]
        found = self._library.KeyPoints(xy=people[..., :2].astype(np.float32), visible=people[..., 2] > 0)
        return lambda: self._vertices.annotate(self._edges.annotate(black.copy(), found), found)


class MMPose:
    """Skeletons only: its boxes come with labels and go through the same drawing calls."""

    def __init__(self) -> None:
        from uvd.renderers import mm_compat

        mm_compat.install()
        from mmengine.structures import InstanceData
        from mmpose.visualization import PoseLocalVisualizer

        self._instances = InstanceData
        self._visualizer = PoseLocalVisualizer()
        self._visualizer.set_dataset_meta({"dataset_name": "coco"}, skeleton_style="openpose")
        self._visualizer.radius, self._visualizer.line_width = 3, 2

    def skeletons(self, annotations: Mapping[str, NDArray[Any]], picture: int) -> Draw:
        black = np.zeros_like(annotations["photos"][picture])
        people = annotations["people"][picture]
        found = self._instances(keypoints=people[..., :2], keypoints_visible=people[..., 2])
        draw = self._visualizer._draw_instances_kpts
        return lambda: draw(black.copy(), found, kpt_thr=0.3, skeleton_style="openpose")


WAYS: Mapping[str, Callable[[], Any]] = {"supervision": Supervision, "mmpose": MMPose}


def time_a_picture(drawings: list[Draw], passes: int) -> float:
    """Seconds of the processor that a picture takes, on average over all of them, `passes` times each."""
    start = time.process_time()
    for _ in range(passes):
        for draw in drawings:
            draw()
    return (time.process_time() - start) / (passes * len(drawings))


def main(name: str, core: str) -> None:
    os.sched_setaffinity(0, [int(core)])
    cv2.setNumThreads(1)
    # Libraries print: answers go to the real standard output, all else to the error output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    way = WAYS[name]()
    for line in sys.stdin:
        job = json.loads(line)
        with np.load(job["file"]) as arrays:
            annotations = dict(arrays)
        make = getattr(way, job["task"])
        drawings = [make(annotations, picture) for picture in range(len(annotations["photos"]))]
        seconds = time_a_picture(drawings, job["passes"])
        if job["out"] is not None:
            np.savez(job["out"], pictures=np.stack([draw() for draw in drawings]))
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Human pose by a top-down network of MMPose: a detector of MMDetection or an annotation says where people are.

Configs are Python files that MMEngine runs; checkpoints are read without running code. On a CPU the networks see one
box or view at a time (batches bring nothing there), on a GPU batches of one size. One core, with fresh weights:
RTMDet-tiny 0.4 s and RTMDet-m 1.6 s a view; RTMPose-t 0.04 s, RTMPose-m 0.14 s, HRNet-w32 0.5 s a person.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uvd.renderers import mm_compat
from uvd.renderers.estimators.base import EstimatorFilesError, View
from uvd.renderers.estimators.batches import EstimateError, exact, torch_device
from uvd.renderers.estimators.config import PoseSettings
from uvd.renderers.estimators.mm_checkpoint import Checkpoint, load_weights, read_checkpoint
from uvd.renderers.estimators.pose import PoseEstimator
from uvd.renderers.pose import KEYPOINTS
from uvd.sequences.errors import DeviceError

PERSON = 0
"""The detector's class, as in COCO."""

MIN_SCORE, MAX_OVERLAP = 0.3, 0.3
"""A detection's least score, and most overlap (IoU) with a surer one: those of MMPose's top-down demo."""

MIN_BOX = 4.0
"""Least side of a box inside the view, in pixels of the view."""

MAX_PEOPLE = 50
"""In a view: the surest, or of given boxes the largest."""

_PAIRED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_NAMES = ["nose", *(f"{side}_{part}" for part in _PAIRED for side in ("left", "right"))]
"""What MMPose calls COCO's 17 keypoints."""


class MMPoseEstimator(PoseEstimator):
    """The `pose` pictures of views, people with the surest box on top.

    Args:
        settings: with backend `mmpose`.
        device: `auto`, `cpu` or `cuda`.
        batch_size: of boxes or views, on a GPU.

    Raises:
        EstimatorFilesError: if MMPose is not installed, a file is missing or refused, weights do not fit, or the
            network's first 17 keypoints are not COCO's.
        DeviceError: for `cuda` without a GPU.
    """

    side = 640
    """What detectors of MMDetection are mostly trained on, so that they need not resize a view."""

    def __init__(self, settings: PoseSettings, device: str = "auto", batch_size: int = 8) -> None:
        super().__init__(settings.threshold)
        assert settings.config is not None
        assert settings.checkpoint is not None
        place = torch_device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise DeviceError("device is cuda, but torch sees no GPU here")
        size = 1 if place.type == "cpu" else batch_size
        _import_mmpose()
        self._pose = _open_pose_network(settings.config, settings.checkpoint, place, size)
        self._detector: _Network | None = None
        if settings.boxes == "detected":
            assert settings.detector_config is not None
            assert settings.detector_checkpoint is not None
            self._detector = _open_detector(settings.detector_config, settings.detector_checkpoint, place, size)

    def people(self, views: Sequence[View]) -> list[NDArray[np.float64]]:
        """As in `PoseEstimator`. Views without boxes have no people where boxes are to be given."""
        images = [np.ascontiguousarray(view.pixels[..., ::-1]) for view in views]
        if self._detector is not None:
            boxes = detected_people(self._detector, images)
        else:
            boxes = [given_people(view.boxes, self.side) for view in views]
        inputs = [
            {"img": image, "bbox": box[None]} for image, found in zip(images, boxes, strict=True) for box in found
        ]
        keypoints = keypoints_in(self._pose, inputs)
        ends = np.cumsum([len(found) for found in boxes])
        return np.split(keypoints, ends[:-1])


def given_people(boxes: NDArray[np.float64] | None, side: int) -> NDArray[np.float32]:
    """`(N, 4)` boxes left, top, right, bottom, cut to the view, smallest first; without those that leave nothing."""
    if boxes is None or not len(boxes):
        return np.zeros((0, 4), np.float32)
    cut = np.clip(boxes[np.isfinite(boxes).all(axis=1)], 0, side)
    width, height = (cut[:, 2:] - cut[:, :2]).T
    kept = np.minimum(width, height) >= MIN_BOX
    order = np.argsort((width * height)[kept], kind="stable")
    return cut[kept][order][-MAX_PEOPLE:].astype(np.float32)


class _Network:
    """A model with the test pipeline of its config, run in batches of one size.

    Args:
        model: of MMPose or MMDetection.
        pipeline: makes one input ready.
        shared: what the pipeline is to find in every input.
        batch_size: of every call; the last one is filled up with copies of its last input.
    """

    def __init__(
        self, model: Any, pipeline: Callable[[dict[str, Any]], Any], shared: Mapping[str, Any], batch_size: int
    ) -> None:
        self.model = model
        self.shared = shared
        self.batch_size = batch_size
        self._pipeline = pipeline

    def run(self, inputs: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        """The `pred_instances` of each input, in order."""
        from mmengine.dataset import pseudo_collate

        for start in range(0, len(inputs), self.batch_size):
            part = inputs[start : start + self.batch_size]
            full = [*part, *[part[-1]] * (self.batch_size - len(part))]
            batch = pseudo_collate([self._pipeline({**self.shared, **each}) for each in full])
            with exact():
                results = self.model.test_step(batch)
            for result in results[: len(part)]:
                yield result.pred_instances


def keypoints_in(network: _Network, inputs: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """`(N, 17, 3)` x, y, score: one person for each input, an `img` `(H, W, 3)` uint8 BGR and a `bbox` `(1, 4)`.

    Raises:
        EstimateError: if an answer is not finite.
    """
    people = np.zeros((len(inputs), KEYPOINTS, 3))
    for person, found in zip(people, network.run(inputs), strict=True):
        person[:, :2] = found.keypoints[0, :KEYPOINTS, :2]
        person[:, 2] = found.keypoint_scores[0, :KEYPOINTS]
    if not np.isfinite(people).all():
        raise EstimateError("the pose network answers with numbers that are not finite; its weights may be damaged")
    return people


def detected_people(network: _Network, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """For each `(side, side, 3)` uint8 BGR image `(N, 4)` float32 boxes left, top, right, bottom, the surest last."""
    return [_sure_people(found, image.shape[0]) for found, image in zip(_detect(network, images), images, strict=True)]


def _detect(network: _Network, images: Sequence[NDArray[np.uint8]]) -> Iterator[Any]:
    return network.run([{"img": image} for image in images])


def _sure_people(found: Any, side: int) -> NDArray[np.float32]:
    boxes, scores = found.bboxes.cpu().numpy().astype(np.float64), found.scores.cpu().numpy().astype(np.float64)
    kept = (found.labels.cpu().numpy() == PERSON) & (scores > MIN_SCORE)
    boxes, scores = np.clip(boxes[kept], 0, side), scores[kept]
    order = mm_compat.suppress(boxes, scores, MAX_OVERLAP)[:MAX_PEOPLE]
    boxes = boxes[order[::-1]]
    return boxes[(boxes[:, 2:] - boxes[:, :2] >= MIN_BOX).all(axis=1)].astype(np.float32)


def _import_mmpose() -> None:
    try:
        mm_compat.install()
    except ImportError as error:
        raise EstimatorFilesError(str(error)) from error


@contextmanager
def _reading(config: Path) -> Iterator[Path]:
    """A config is code, and so is what it names: it can fail in any way, and then the config is to blame."""
    config = config.expanduser()
    if not config.is_file():
        raise EstimatorFilesError(f"no such config: {config}")
    try:
        # Both packages warn, past any filter, that no checkpoint is given; ours is loaded afterwards.
        with warnings.catch_warnings(record=True):
            yield config
    except EstimatorFilesError:
        raise
    except Exception as error:
        raise EstimatorFilesError(f"{config} gives no network: {type(error).__name__}: {error}") from error


def _open_pose_network(config: Path, weights: Path, device: torch.device, batch_size: int) -> _Network:
    checkpoint = read_checkpoint(weights)
    with _reading(config) as path:
        from mmengine.dataset import Compose
        from mmpose.apis import init_model
        from mmpose.models import TopdownPoseEstimator

        model = init_model(str(path), device=str(device))
        if not isinstance(model, TopdownPoseEstimator):
            raise EstimatorFilesError(f"{config} is a {type(model).__name__}, no top-down network")
        load_weights(model, checkpoint, path)
        meta = _keypoint_meta(model, checkpoint)
        pipeline = Compose(model.cfg.test_dataloader.dataset.pipeline)
        network = _Network(model, pipeline, {"bbox_score": np.ones(1, np.float32), **meta}, batch_size)
        _check_keypoints(network, meta, path)
    return network


def _keypoint_meta(model: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the checkpoint says of its keypoints, else the config: names, and pairs that change places in a mirror."""
    meta = checkpoint.dataset_meta if "keypoint_id2name" in checkpoint.dataset_meta else model.dataset_meta
    return {key: meta[key] for key in ("keypoint_id2name", "flip_indices", "num_keypoints", "dataset_name")}


def _check_keypoints(network: _Network, meta: Mapping[str, Any], config: Path) -> None:
    """Runs the network once: the number of keypoints that comes out must be the one that has names."""
    names = [meta["keypoint_id2name"][place] for place in range(meta["num_keypoints"])]
    chosen = network.model.test_cfg.get("output_keypoint_indices")
    names = names if chosen is None else [names[place] for place in chosen]
    if names[:KEYPOINTS] != COCO_NAMES:
        raise EstimatorFilesError(
            f"{config}: the {len(names)} keypoints of {meta['dataset_name']!r} do not begin with COCO's 17"
        )
    blank = {"img": np.zeros((64, 64, 3), np.uint8), "bbox": np.array([[0, 0, 64, 64]], np.float32)}
    try:
        (found,) = network.run([blank])
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        # Mirrored copies need as many keypoints as have names.
        why = f"{type(error).__name__} {error}".strip()
        raise EstimatorFilesError(
            f"{config} cannot be run with the {len(names)} keypoints of {meta['dataset_name']!r}: {why}"
        ) from error
    if found.keypoints.shape[1] != len(names):
        raise EstimatorFilesError(
            f"{config} predicts {found.keypoints.shape[1]} keypoints, and {meta['dataset_name']!r} has {len(names)}"
        )


def _open_detector(config: Path, weights: Path, device: torch.device, batch_size: int) -> _Network:
    checkpoint = read_checkpoint(weights)
    classes = checkpoint.dataset_meta.get("classes") or ("person",)
    if not isinstance(classes, list | tuple) or str(classes[PERSON]).casefold() != "person":
        raise EstimatorFilesError(f"{weights}: the detector's first class is not 'person': {str(classes)[:80]}")
    with _reading(config) as path:
        from mmcv.transforms import Compose
        from mmdet.apis import init_detector
        from mmdet.utils import get_test_pipeline_cfg

        model = init_detector(str(path), device=str(device))
        load_weights(model, checkpoint, path)
        _forget_unsure_boxes(model)
        steps = get_test_pipeline_cfg(model.cfg.copy())
        steps[0].type = "mmdet.LoadImageFromNDArray"
        network = _Network(model, Compose(steps), {"img_id": 0}, batch_size)
        detected_people(network, [np.zeros((64, 64, 3), np.uint8)])
    return network


def _forget_unsure_boxes(model: Any) -> None:
    """Detectors keep boxes down to a score of 0.001 for their evaluation. They cannot suppress a surer one, so nothing
    changes but the time, which grows with their square.
    """
    for module in model.modules():
        limits = getattr(module, "test_cfg", None)
        if isinstance(limits, dict) and "score_thr" in limits:
            limits["score_thr"] = max(limits["score_thr"], MIN_SCORE)

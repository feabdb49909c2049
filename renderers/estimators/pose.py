"""Human pose of photos without annotation: one interface, with BlazePose or a top-down network of MMPose behind it.

A backend finds COCO keypoints in the pixels of a view; here they are scaled to the picture and drawn on black as
`uvd.renderers.pose` draws annotated ones. Drawing costs under 1 ms a photo; what the networks cost is said with them.
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.estimators.base import Estimates, Estimator, EstimatorFilesError, View
from uvd.renderers.estimators.config import PoseSettings
from uvd.renderers.pose import render_pose, visible_people
from uvd.sequences import IMAGE_SIZE

ROLE = "pose"


class PoseEstimator(Estimator):
    """Draws what a backend finds: subclass, set `side`, implement `people`.

    Args:
        threshold: keypoints with a lower score are not drawn.
    """

    roles = (ROLE,)

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    @abstractmethod
    def people(self, views: Sequence[View]) -> list[NDArray[np.float64]]:
        """For each view `(N, 17, 3)` keypoints in COCO's order: x, y in pixels of the view, score. The last person is
        drawn on top.
        """

    def estimate(self, views: Sequence[View]) -> list[Estimates]:
        return [draw_people(people, self.side, self.threshold) for people in self.people(views)]


def draw_people(keypoints: NDArray[np.float64], side: int, threshold: float) -> Estimates:
    """The `pose` picture of a view, or nothing when nobody is visible in it.

    Args:
        keypoints: `(N, 17, 3)`: x, y in pixels of the view, score.
        side: of the view in pixels.
        threshold: least score of a visible keypoint.
    """
    scaled = keypoints * (IMAGE_SIZE / side, IMAGE_SIZE / side, 1.0)
    scaled = scaled[visible_people(scaled, threshold=threshold)]
    return {ROLE: render_pose(scaled, threshold=threshold)} if len(scaled) else {}


def open_pose_estimator(settings: PoseSettings, device: str = "auto", batch_size: int = 8) -> Estimator:
    """Loads the backend of the settings; only that one is imported.

    Args:
        device: `auto`, `cpu` or `cuda`. BlazePose always runs on the CPU.
        batch_size: photos, and boxes, that a network sees at once.

    Raises:
        EstimatorFilesError: if files are missing or not what they should be.
        DeviceError: for `cuda` without a GPU.
    """
    if settings.backend == "mmpose":
        from uvd.renderers.estimators.mmpose import MMPoseEstimator

        return MMPoseEstimator(settings, device, batch_size)
    from uvd.renderers.estimators.blazepose import BlazePoseEstimator

    return BlazePoseEstimator(settings)


def pose_files(settings: PoseSettings) -> dict[str, Path]:
    """Name → file that decides what is estimated, the same names on every machine; nothing is loaded or run.

    Raises:
        EstimatorFilesError: if a file is missing, or a config is not Python.
    """
    if settings.backend == "blazepose":
        from uvd.renderers.estimators.blazepose import model_files

        return model_files(settings.model_dir)
    configs = {"config": settings.config}
    weights = {"checkpoint": settings.checkpoint}
    if settings.boxes == "detected":
        configs["detector_config"] = settings.detector_config
        weights["detector_checkpoint"] = settings.detector_checkpoint
    found = {name: _existing(path) for name, path in weights.items() if path is not None}
    for name, path in configs.items():
        files = dict.fromkeys(_config_files(_existing(path), ())) if path is not None else ()
        found.update({f"{name}.{place}" if place else name: file for place, file in enumerate(files)})
    return found


def _existing(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_file():
        raise EstimatorFilesError(f"no such file: {path}")
    return path.resolve()


def _config_files(config: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """A config of MMEngine and those that its `_base_` names, read and not run. Bases of installed packages
    (`mmpose::...`) are left out: the package's version decides them.
    """
    if config in above:
        raise EstimatorFilesError(f"{config} is its own _base_")
    yield config
    if config.suffix != ".py":
        return
    for name in _bases(config):
        if "::" not in name:
            yield from _config_files(_existing(config.parent / name), (*above, config))


def _bases(config: Path) -> list[str]:
    try:
        for node in ast.parse(config.read_bytes()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == "_base_" for target in targets):
                assert isinstance(node, ast.Assign)
                bases = ast.literal_eval(node.value)
                return [bases] if isinstance(bases, str) else [str(base) for base in bases]
    except (SyntaxError, ValueError, TypeError, RecursionError, OSError) as error:
        raise EstimatorFilesError(f"{config} is not a config that can be read: {error}") from error
    return []

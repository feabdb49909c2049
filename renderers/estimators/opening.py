"""Which estimators a config asks for: loaded once a process, and identified by the hash of their files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uvd.renderers.estimators.base import Estimator, EstimatorFilesError
from uvd.renderers.estimators.config import EstimateConfig
from uvd.renderers.estimators.hub import deciding_files, folder_of


@functools.lru_cache(maxsize=2)
def open_estimators(config: EstimateConfig) -> tuple[Estimator, ...]:
    """The estimators of a config, in the order of their pictures.

    Raises:
        EstimatorFilesError: if files are missing or not what they should be.
    """
    return tuple(_open(config))


def _open(config: EstimateConfig) -> Iterator[Estimator]:
    if config.depth is not None:
        from uvd.renderers.estimators.depth import DepthEstimator

        from_depth = config.normals if config.normals is not None and not config.normals.model else None
        yield DepthEstimator(config.depth, from_depth, config.device, config.batch_size)
    if config.normals is not None and config.normals.model:
        from uvd.renderers.estimators.normals import NormalsEstimator

        yield NormalsEstimator(config.normals, config.device, config.batch_size)
    if config.edges is not None:
        from uvd.renderers.estimators.edges import EdgeEstimator

        yield EdgeEstimator(config.edges, config.device, config.batch_size)
    if config.segmentation is not None:
        from uvd.renderers.estimators.segmentation import SegmentationEstimator

        yield SegmentationEstimator(config.segmentation, config.device, config.batch_size)
    if config.pose is not None:
        from uvd.renderers.estimators.pose import open_pose_estimator

        yield open_pose_estimator(config.pose, config.device, config.batch_size)


def weights_of(config: EstimateConfig) -> dict[str, Any]:
    """Estimator → sha256 of each file that decides what it draws, by name.

    Raises:
        EstimatorFilesError: if something is not there.
    """
    found: dict[str, Any] = {}
    for name in ("depth", "normals", "segmentation"):
        settings = getattr(config, name)
        if settings is not None and settings.model:
            folder = folder_of(settings.model)
            found[name] = {path.name: _sha256(path) for path in deciding_files(folder)}
    if config.edges is not None:
        weights = config.edges.weights.expanduser()
        if not weights.is_file():
            raise EstimatorFilesError(f"no such file: {weights}")
        found["edges"] = {"weights": _sha256(weights)}
    if config.pose is not None:
        from uvd.renderers.estimators.pose import pose_files

        found["pose"] = {name: _sha256(path) for name, path in pose_files(config.pose).items()}
    return found


def _sha256(path: Path) -> str:
    state = path.stat()
    return _sha256_of(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256_of(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

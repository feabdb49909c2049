"""Depth by any depth-estimation network of `transformers`, and normals from it by geometry, in one forward pass.

Depth is drawn by `uvd.renderers.depth`: each picture from its own nearest to its own farthest point, near is bright, a
picture without relief is mid-grey. Inverse depth is known only up to scale and shift, so for normals the farthest
point is taken to be `FARTHEST` times as far away as the nearest; distances are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForDepthEstimation
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

from uvd.renderers.depth import render_depth
from uvd.renderers.estimators.base import Estimates, Estimator, EstimatorFilesError, View
from uvd.renderers.estimators.batches import resized
from uvd.renderers.estimators.config import DepthSettings, NormalsSettings
from uvd.renderers.estimators.hub import folder_of
from uvd.renderers.estimators.pretrained import Pretrained
from uvd.renderers.normals import normals_from_depth, render_normals

FARTHEST = 10.0
"""Distance of the farthest point in distances of the nearest, where only relative inverse depth is known."""


class DepthEstimator(Estimator):
    """
    Args:
        settings: which network, and what it predicts.
        from_depth: if set, normals are drawn too.
        device: `auto`, `cpu` or `cuda`.
        batch_size: of every forward pass.

    Raises:
        EstimatorFilesError: see `Pretrained`.
    """

    def __init__(
        self, settings: DepthSettings, from_depth: NormalsSettings | None, device: str, batch_size: int
    ) -> None:
        self._predicts = settings.predicts
        self._from_depth = from_depth
        self.roles = ("depth",) if from_depth is None else ("depth", "normals")
        self._network = Pretrained(
            folder_of(settings.model),
            AutoModelForDepthEstimation,
            tuple(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES),
            "depth",
            lambda output: (output.predicted_depth,),
            device,
            batch_size,
        )
        if len(getattr(self._network.config, "bin_configurations", ())) > 1:
            # ZoeDepth with an indoor and an outdoor head lets a whole batch vote for one of them.
            self._network.batch_size = 1
        self._network.check()
        self.side = self._network.pixels.side

    def estimate(self, views: Sequence[View]) -> list[Estimates]:
        """
        Raises:
            EstimateError: if the network's answer is not finite.
        """
        return [self._drawn(depth) for (depth,) in self._network(views)]

    def _drawn(self, predicted: torch.Tensor) -> Estimates:
        if predicted.ndim != 2:
            raise EstimatorFilesError(
                f"{self._network.folder} predicts {tuple(predicted.shape)}, not one depth a pixel"
            )
        depth = resized(self._network.pixels.without_border(predicted[None]))[0]
        drawn = {"depth": render_depth(depth, predicts=self._predicts)}
        if self._from_depth is not None:
            distance = depth if self._predicts == "metric" else distance_of(depth)
            drawn["normals"] = render_normals(normals_from_depth(distance, self._from_depth.fov_degrees))
        return drawn


def distance_of(inverse: NDArray[np.float32]) -> NDArray[np.float64]:
    """Relative inverse depth `(H, W)` → distance, 1 at the nearest point and `FARTHEST` at the farthest."""
    values = inverse.astype(np.float64)
    low, high = values.min(), values.max()
    share = (values - low) / (high - low) if high > low else np.ones_like(values)
    return 1.0 / (1.0 / FARTHEST + share * (1.0 - 1.0 / FARTHEST))

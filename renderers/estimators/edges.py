"""Edges by HED, white on black: the probability of an edge at each pixel, from 0 to 255.

The network sees the photo at `SIDE` pixels and its answer is shrunk to the picture, over the area of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from uvd.renderers.estimators.base import Estimates, Estimator, View
from uvd.renderers.estimators.batches import in_batches, resized, torch_device
from uvd.renderers.estimators.config import EdgesSettings
from uvd.renderers.estimators.hed import load_hed

SIDE = 384
"""Of what HED sees: about the size of its training images (BSDS500, 481x321). At 256 fine parts run together; at 512
outlines break up, at twice the cost.
"""


class EdgeEstimator(Estimator):
    """
    Args:
        settings: which weights.
        device: `auto`, `cpu` or `cuda`.
        batch_size: of every forward pass.

    Raises:
        EstimatorFilesError: see `load_hed`.
    """

    side = SIDE
    roles = ("edges",)

    def __init__(self, settings: EdgesSettings, device: str, batch_size: int) -> None:
        self._device = torch_device(device)
        self._batch_size = batch_size
        self._hed = load_hed(settings.weights).to(self._device)

    def estimate(self, views: Sequence[View]) -> list[Estimates]:
        """
        Raises:
            EstimateError: if the network's answer is not finite.
        """
        return [
            {"edges": cv2.cvtColor(np.rint(resized(edges)[0] * 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)}
            for (edges,) in in_batches(views, self._batch_size, self._device, self._network)
        ]

    def _network(self, views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._hed(views.permute(0, 3, 1, 2).float()),)

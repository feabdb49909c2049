"""Surface normals by a DPT with three output channels, as Omnidata trains them (arXiv 2110.04994).

Its files are those of a depth DPT of `transformers` but for the last convolution. Such a head ends in a ReLU, so what
it returns is the picture of the normals, (n + 1) / 2, in the axes of Omnidata and 2D-3D-S: x to the right, y down, z
towards the viewer. They are turned to the axes of `uvd.renderers.normals`, in which y is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import DPTForDepthEstimation

from uvd.renderers.estimators.base import Estimates, Estimator, EstimatorFilesError, View
from uvd.renderers.estimators.batches import resized
from uvd.renderers.estimators.config import NormalsSettings
from uvd.renderers.estimators.hub import folder_of, shards_of
from uvd.renderers.estimators.pretrained import Pretrained, check_family
from uvd.renderers.normals import render_normals

LAST = "head.head.4.weight"
"""The convolution that decides how many channels a DPT predicts."""

_AXES = np.array([1.0, -1.0, 1.0])
"""From y down to y up."""


class ThreeChannelDPT(DPTForDepthEstimation):
    """A DPT whose `predicted_depth` is `(N, 3, h, w)`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.head.head[4] = torch.nn.Conv2d(self.head.head[4].in_channels, 3, kernel_size=1)


class NormalsEstimator(Estimator):
    """
    Args:
        settings: which network.
        device: `auto`, `cpu` or `cuda`.
        batch_size: of every forward pass.

    Raises:
        EstimatorFilesError: see `Pretrained`; also for a DPT of another number of channels.
    """

    roles = ("normals",)

    def __init__(self, settings: NormalsSettings, device: str, batch_size: int) -> None:
        folder = folder_of(settings.model)
        check_family(folder, ("dpt",), "normals")
        channels = _channels(folder)
        if channels != 3:
            raise EstimatorFilesError(
                f"{folder} predicts {channels} channels, normals have 3"
                + ("; for normals from depth leave the model of normals empty" if channels == 1 else "")
            )
        self._network = Pretrained(
            folder,
            ThreeChannelDPT,
            ("dpt",),
            "normals",
            lambda output: (output.predicted_depth,),
            device,
            batch_size,
        )
        self._network.check()
        self.side = self._network.pixels.side

    def estimate(self, views: Sequence[View]) -> list[Estimates]:
        """
        Raises:
            EstimateError: if the network's answer is not finite.
        """
        return [{"normals": render_normals(self._normals(picture))} for (picture,) in self._network(views)]

    @staticmethod
    def _normals(picture: torch.Tensor) -> np.ndarray:
        """`(3, h, w)` picture of normals, resized → `(256, 256, 3)` vectors, y up."""
        return (resized(picture.clamp(0, 1)).transpose(1, 2, 0) * 2.0 - 1.0) * _AXES


def _channels(folder: Path) -> int:
    """How many channels the weights' last convolution has, read from the files' headers."""
    whole = "model.safetensors"
    try:
        name = whole if (folder / whole).is_file() else shards_of(folder)[LAST]
        with safe_open(folder / name, framework="pt") as tensors:
            return int(tensors.get_slice(LAST).get_shape()[0])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise EstimatorFilesError(f"{folder} has no readable weight {LAST}, the last of a DPT: {error}") from error

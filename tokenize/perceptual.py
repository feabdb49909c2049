"""Perceptual losses: how different two pictures look, for training a tokenizer that is sharp and not only close.

Three kinds, by what is at hand: LPIPS (Zhang et al., 2018, arXiv 1801.03924) through the `lpips` package when the
weights of its trunk lie in torch's hub cache; the same idea on MobileNetV2 features; and, with nothing fetched at all,
a comparison of local contrast over a pyramid (after multi-scale SSIM, Wang et al., 2003).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvd.tokenize.mobilenet import FeatureNetError, MobileNetV2, load_mobilenet

PerceptualKind = Literal["auto", "lpips", "mobilenet", "contrast", "none"]
LPIPS_TRUNK = "vgg16-397923af.pth"
LOSS_TAPS = (1, 3, 6, 13)
"""Strides 2 to 16: a crop of 64 pixels still has 16 places at the coarsest."""
LEVELS = 4
CONTRAST_FLOOR = 0.03**2
"""Variance, of values in [0, 1], below which contrast is noise: as C2 in SSIM."""


def perceptual_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Distance of two pictures' features: each place's channels at unit length, squared differences, mean of places.

    Args:
        first, second: maps `(N, C, h, w)` of the same network, one each layer.

    Returns:
        `(N,)`, the sum over layers.
    """
    return torch.stack(
        [(_unit(a) - _unit(b)).pow(2).sum(dim=1).mean(dim=(1, 2)) for a, b in zip(first, second, strict=True)]
    ).sum(dim=0)


def _unit(features: Tensor) -> Tensor:
    return features / (features.pow(2).sum(dim=1, keepdim=True) + 1e-8).sqrt()


class PerceptualLoss(nn.Module):
    """`forward(reconstructions, originals)`: `(N, 3, H, W)` float, about [0, 1] -> a scalar, 0 for equal pictures.

    Attributes:
        kind: which of the three it is.
    """

    kind: str

    def forward(self, reconstructions: Tensor, originals: Tensor) -> Tensor:
        raise NotImplementedError


class MobileNetLoss(PerceptualLoss):
    kind = "mobilenet"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.network: MobileNetV2 = load_mobilenet(weights)

    def forward(self, reconstructions: Tensor, originals: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.network.features(originals, LOSS_TAPS)
        return perceptual_distance(self.network.features(reconstructions, LOSS_TAPS), wanted).mean()


class ContrastLoss(PerceptualLoss):
    """One minus the contrast-and-structure term of SSIM, over a pyramid of halved pictures; needs no weights."""

    kind = "contrast"

    def forward(self, reconstructions: Tensor, originals: Tensor) -> Tensor:
        total = reconstructions.new_zeros(())
        levels = 0
        while levels < LEVELS and min(originals.shape[2:]) >= 8:
            total = total + 1 - _structure(reconstructions, originals).mean()
            reconstructions, originals = F.avg_pool2d(reconstructions, 2), F.avg_pool2d(originals, 2)
            levels += 1
        return total / max(1, levels)


def _structure(first: Tensor, second: Tensor) -> Tensor:
    """(2 cov + C) / (var + var + C) over 7x7 windows."""
    mean = [F.avg_pool2d(x, 7, 1) for x in (first, second)]
    variance = [F.avg_pool2d(x * x, 7, 1) - m * m for x, m in zip((first, second), mean, strict=True)]
    covariance = F.avg_pool2d(first * second, 7, 1) - mean[0] * mean[1]
    return (2 * covariance + CONTRAST_FLOOR) / (variance[0] + variance[1] + CONTRAST_FLOOR)


class LpipsLoss(PerceptualLoss):
    kind = "lpips"

    def __init__(self) -> None:
        super().__init__()
        import lpips

        self.network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def distances(self, first: Tensor, second: Tensor) -> Tensor:
        """`(N, 3, H, W)` float in [0, 1] each -> `(N,)`."""
        return cast(Tensor, self.network(first, second, normalize=True)).flatten()

    def forward(self, reconstructions: Tensor, originals: Tensor) -> Tensor:
        return self.distances(reconstructions, originals).mean()


def lpips_at_hand() -> bool:
    """True if the `lpips` package and its VGG-16 weights are here, so that nothing is downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_TRUNK
    return importlib.util.find_spec("lpips") is not None and weights.is_file()


def perceptual_loss(kind: PerceptualKind, weights: Path | None = None) -> PerceptualLoss | None:
    """The loss of a kind; None for `none`.

    Args:
        kind: `auto` takes LPIPS if it is at hand, else MobileNetV2 if `weights` is given, else `contrast`.
        weights: torchvision's MobileNetV2 file.

    Raises:
        FeatureNetError: if the kind that was asked for cannot be had.
    """
    if kind == "auto":
        kind = "lpips" if lpips_at_hand() else "mobilenet" if weights is not None else "contrast"
    if kind == "none":
        return None
    if kind == "contrast":
        return ContrastLoss()
    if kind == "mobilenet":
        if weights is None:
            raise FeatureNetError("the perceptual loss `mobilenet` needs `perceptual_weights`: MobileNetV2's file")
        return MobileNetLoss(weights)
    if not lpips_at_hand():
        raise FeatureNetError(f"LPIPS needs the package `lpips` and {LPIPS_TRUNK} in torch's hub cache")
    return LpipsLoss()

"""The adversarial part of a VQGAN's loss (Esser et al., 2021, arXiv 2012.09841, section 3.1).

A PatchGAN discriminator (Isola et al., 2017) judges overlapping patches with the hinge loss. Its weight adapts so that,
at the decoder's last layer, its gradient is a fixed share of the reconstruction's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_LIMIT = 1e4
NORM_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """4x4 convolutions that halve the picture `layers` times, then two that do not; one score a patch.

    Groups are normalised and not batches, so that a score depends on its picture alone and workers need not exchange
    statistics. With three layers a patch is 70 pixels wide.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        stack: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, 8)
            stack += [
                nn.Conv2d(width, wider, 4, 2 if layer < layers else 1, 1, bias=False),
                nn.GroupNorm(NORM_GROUPS, wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        stack.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.layers = nn.Sequential(*stack)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` in [0, 1] -> scores `(N, 1, h, w)`: high for real."""
        return self.layers(images * 2 - 1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss: scores of real patches above 1, of made ones below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """The factor that makes two gradients of the decoder's last layer equally long, at most 10,000."""
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(max=WEIGHT_LIMIT)


def last_layer_gradient(decoded: Tensor, weight: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of the decoder's last weight for a gradient of its output; the graph stays."""
    return torch.autograd.grad(decoded, weight, upstream, retain_graph=True)[0]

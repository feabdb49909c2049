"""MobileNetV2 as a feature extractor (Sandler et al., 2018, arXiv 1801.04381), from torchvision's ImageNet weights.

The file is torchvision's `mobilenet_v2-b0353104.pth`; `uvd tokenizer samples` fetches it. Batch norms are folded into
the convolutions, so the network is fixed: it judges pictures and is never trained. About 0.6 GFLOPs at 224x224.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from uvd.sequences.errors import UserError

BLOCKS = (*[(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)],)
"""Expansion, channels, repeats and stride of each group of blocks (table 2 of the paper)."""
TAPS = (1, 3, 6, 13, 17)
"""Blocks whose outputs are features: strides 2, 4, 8, 16 and 32 with 16, 24, 32, 96 and 320 channels."""
POOLED = 1280
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, in the order RGB, as the weights expect them."""
NORM_EPS = 1e-5
MAX_BYTES = 64 << 20


class FeatureNetError(UserError):
    """The weights of the feature network are missing or are not MobileNetV2's."""


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; added to its input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion != 1 else None
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else self.expand(x).clamp(0, 6)
        h = self.project(self.depthwise(h).clamp(0, 6))
        return x + h if self.adds else h


class MobileNetV2(nn.Module):
    """The convolutional part, with batch norms folded in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        blocks, width = [], 32
        for expansion, channels, repeats, stride in BLOCKS:
            for index in range(repeats):
                blocks.append(InvertedResidual(width, channels, stride if index == 0 else 1, expansion))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width, POOLED, 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor, taps: tuple[int, ...] = TAPS) -> list[Tensor]:
        """`(N, 3, H, W)` float in [0, 1] -> the outputs of the blocks `taps`, each `(N, C, H/stride, W/stride)`.

        Blocks behind the last tap are not computed.
        """
        return self._run(images, taps, max(taps))[0]

    def pooled(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` float in [0, 1] -> `(N, 1280)`, the mean over places before the classifier."""
        return self.features_and_pooled(images)[1]

    def features_and_pooled(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Both, for the price of one."""
        found, last = self._run(images, TAPS, len(self.blocks))
        return found, self.head(last).clamp(0, 6).mean(dim=(2, 3))

    def _run(self, images: Tensor, taps: tuple[int, ...], blocks: int) -> tuple[list[Tensor], Tensor]:
        x = self._stem(images)
        found = []
        for index, block in enumerate(self.blocks[:blocks], start=1):
            x = block(x)
            if index in taps:
                found.append(x)
        return found, x

    def _stem(self, images: Tensor) -> Tensor:
        normal = (images - self.get_buffer("mean")) / self.get_buffer("deviation")
        return self.stem(normal).clamp(0, 6)


def load_mobilenet(file: Path) -> MobileNetV2:
    """Reads torchvision's state dict; no gradients, evaluation only.

    Raises:
        FeatureNetError: if the file is missing, holds anything but tensors, or is another network.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise FeatureNetError(f"{file} is larger than {MAX_BYTES} bytes: not MobileNetV2")
        state = torch.load(file, map_location="cpu", weights_only=True)
        model = MobileNetV2()
        model.load_state_dict(_folded(state))
    except FeatureNetError:
        raise
    except KeyError as error:
        raise FeatureNetError(f"{file} is not torchvision's MobileNetV2: it has no {error}") from error
    except Exception as error:
        # Missing files, torch's own and pickle's errors: all mean that this file cannot serve.
        raise FeatureNetError(f"{file} cannot be read as torchvision's MobileNetV2: {error}") from error
    return model.eval().requires_grad_(False)


def _folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's keys to ours, every batch norm folded into the convolution before it."""
    places = {"stem": ("features.0.0", "features.0.1"), "head": ("features.18.0", "features.18.1")}
    index = 0
    for expansion, _, repeats, _ in BLOCKS:
        for _ in range(repeats):
            theirs, ours = f"features.{index + 1}.conv", f"blocks.{index}"
            first = 0
            if expansion != 1:
                places[f"{ours}.expand"] = (f"{theirs}.0.0", f"{theirs}.0.1")
                first = 1
            places[f"{ours}.depthwise"] = (f"{theirs}.{first}.0", f"{theirs}.{first}.1")
            places[f"{ours}.project"] = (f"{theirs}.{first + 1}", f"{theirs}.{first + 2}")
            index += 1
    folded = {}
    for name, (conv, norm) in places.items():
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + NORM_EPS)
        folded[f"{name}.weight"] = state[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return folded

"""Initial weights that let a VQGAN learn fast: a picture pyramid, with residual blocks that start as identities.

With default weights a narrow model needs hundreds of steps to pass the mean colour of an image through its five levels.
Here every change of resolution starts near averaging (down) or repeating (up), every change of width near a copy, and
every residual block adds nothing, so that the first steps already learn blurred pictures (measured in the model card).
"""

from __future__ import annotations

import torch
from torch import nn

from uvd.tokenize.vqgan import VQGAN, Downsample, ResidualBlock, Upsample

MIXING = 0.3
"""Random weights beside the pyramid, as a share of those that would keep the variance."""

OFFSET = 3.0
"""Of the channels before the last norms, in standard deviations of the signal, roughly."""


@torch.no_grad()
def start_as_pyramid(model: VQGAN) -> None:
    """Sets the initial weights in place; draws from torch's generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            if module.nin_shortcut is not None:
                _copy_channels(module.nin_shortcut, slice(0, 1), 1.0)
        elif isinstance(module, Downsample) and module.conv is not None:
            _copy_channels(module.conv, slice(0, 2), 0.25)
        elif isinstance(module, Upsample) and module.conv is not None:
            _copy_channels(module.conv, slice(1, 2), 1.0)
    _pass_through(model.encoder.mid.block_2, model.encoder.norm_out)
    if model.decoder is not None:
        _pass_through(model.decoder.up[0].block[-1], model.decoder.norm_out)
        model.decoder.conv_out.weight.mul_(0.3)
        nn.init.constant_(model.decoder.conv_out.bias, 0.5)


def _copy_channels(conv: nn.Conv2d, taps: slice, value: float) -> None:
    """Adds a copy of input channel c to output channel c; output channels beyond the inputs stay random."""
    shared = min(conv.in_channels, conv.out_channels)
    conv.weight[:shared].mul_(MIXING)
    for channel in range(shared):
        conv.weight[channel, channel, taps, taps] += value


def _pass_through(block: ResidualBlock, norm: nn.GroupNorm) -> None:
    """Makes the last norm of a chain keep an image's mean and contrast, which a plain GroupNorm takes away.

    Offsets of alternating sign, large beside the signal, make up most of each group's deviation; the norm's own scale
    and shift take them out again.
    """
    signs = torch.ones(norm.num_channels)
    signs[1::2] = -1
    block.conv2.bias.copy_(OFFSET * signs)
    norm.weight.fill_(OFFSET)
    norm.bias.copy_(1.0 - OFFSET * signs)

"""Initial weights of a norm-free VQGAN in closed form: the encoder a PCA of patches, the decoder linear regressions.

With random weights a narrow model needs thousands of steps to find what a PCA of 16x16 patches knows at once. Here
every residual block starts as an identity, every change of resolution as the best linear map: down by principal
directions of 2x2 patches, up by least squares on 3x3 neighbourhoods. SiLU stays out of the way because
silu(x) - silu(-x) = x, so a signal given as (x, -x) passes it unchanged. Takes some seconds for a few hundred crops.
Models with norms get `start_weights` instead.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvd.tokenize.vqgan import VQGAN, Decoder, DownStage, Encoder, ResidualBlock, UpStage

GREY = 0.5
RIDGE = 1e-6
ROWS = 200_000
"""Most samples that a regression looks at."""


@torch.no_grad()
def start_weights(model: VQGAN) -> None:
    """Initial weights that keep the variance of signals, residual blocks that start as identities, grey pictures.

    On a narrow model this is worth 3 dB after 100 steps over torch's default.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            torch.nn.init.zeros_(module.conv2.weight)
    assert model.decoder is not None
    model.decoder.conv_out.weight.mul_(0.3)
    assert model.decoder.conv_out.bias is not None
    model.decoder.conv_out.bias.fill_(0.5)


@torch.no_grad()
def linear_start(model: VQGAN, images: Tensor) -> None:
    """Sets all weights in place, save for the codebook.

    Args:
        model: with decoder, without norms, with convolutions in its changes of resolution.
        images: `(N, 3, H, W)` float in [0, 1].

    Raises:
        ValueError: for a model of another kind.
    """
    config = model.config
    if model.decoder is None or config.norm_groups or not config.resample_with_conv:
        raise ValueError("the linear start needs a decoder, no norms, and convolutions in the changes of resolution")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            _zero(module.bias)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            if module.nin_shortcut is not None:
                module.nin_shortcut.weight.copy_(_eye(module.nin_shortcut.weight))
    pyramid, directions = _start_encoder(model.encoder, images - GREY, config.z_channels)
    for conv in (model.quant_conv, model.post_quant_conv):
        assert conv is not None
        conv.weight.copy_(_eye(conv.weight))
    _start_decoder(model.decoder, pyramid, directions)


def _start_encoder(encoder: Encoder, images: Tensor, latent_channels: int) -> tuple[list[Tensor], Tensor]:
    """Returns the features of each resolution, finest first, and the `(z, C)` directions of the latents."""
    encoder.conv_in.weight.zero_()
    colours = torch.arange(images.shape[1])
    encoder.conv_in.weight[colours, colours, 1, 1] = 1.0
    assert encoder.conv_in.bias is not None
    encoder.conv_in.bias[colours] = -GREY
    pyramid = [images]
    stages = cast(list[DownStage], list(encoder.down))
    for stage in stages:
        if stage.downsample is None:
            continue
        conv = cast(nn.Conv2d, stage.downsample.conv)
        known = pyramid[-1]
        patches = F.pixel_unshuffle(known, 2)
        # Half of an orthonormal map: features keep the scale of pixels from level to level.
        rows = principal(patches, min(patches.shape[1], conv.weight.shape[0])) / 2
        conv.weight.zero_()
        conv.weight[: len(rows), : known.shape[1], :2, :2] = rows.unflatten(1, (known.shape[1], 2, 2))
        pyramid.append(torch.einsum("kc,nchw->nkhw", rows, patches))
    directions = principal(pyramid[-1], latent_channels)
    shortcut = cast(ResidualBlock, stages[-1].block[0]).nin_shortcut
    if shortcut is None or shortcut.weight.shape[0] < 2 * latent_channels:
        raise ValueError("the linear start needs a last stage that is wider than its input and than twice the latents")
    shortcut.weight.zero_()
    z, width = directions.shape
    shortcut.weight[:z, :width, 0, 0] = directions
    shortcut.weight[z : 2 * z, :width, 0, 0] = -directions
    _pass_through_silu(encoder.conv_out, z)
    return pyramid, directions


def _start_decoder(decoder: Decoder, pyramid: list[Tensor], directions: Tensor) -> None:
    decoder.conv_in.weight.zero_()
    decoder.conv_in.weight[: directions.shape[1], :, 1, 1] = directions.t()
    decoded = torch.einsum("zc,zd,ndhw->nchw", directions, directions, pyramid[-1])
    for stage, target in zip(reversed(cast(list[UpStage], list(decoder.up))), reversed(pyramid[:-1]), strict=False):
        assert stage.upsample is not None
        conv = cast(nn.Conv2d, stage.upsample.conv)
        assert conv.bias is not None
        coarse = F.interpolate(decoded, scale_factor=2.0, mode="nearest")
        weight, bias = regression(coarse, target)
        conv.weight.zero_()
        _zero(conv.bias)
        signs = (1.0, -1.0) if target is pyramid[0] else (1.0,)
        for part, sign in enumerate(signs):
            places = slice(part * len(weight), (part + 1) * len(weight))
            conv.weight[places, : coarse.shape[1]] = sign * weight
            conv.bias[places] = sign * bias
        decoded = F.conv2d(coarse, weight, bias, padding=1)
    _pass_through_silu(decoder.conv_out, pyramid[0].shape[1])
    assert decoder.conv_out.bias is not None
    decoder.conv_out.bias.fill_(GREY)


def principal(features: Tensor, number: int) -> Tensor:
    """The `number` leading principal directions, without centring, of `(N, C, h, w)`: `(number, C)`, orthonormal."""
    flat = features.transpose(0, 1).flatten(1).double()
    values, vectors = torch.linalg.eigh(flat @ flat.t())
    return vectors[:, values.argsort(descending=True)[:number]].t().to(features.dtype)


def regression(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares for a 3x3 convolution that takes `(N, C, h, w)` to `(N, K, h, w)`: weight `(K, C, 3, 3)`, bias."""
    columns = inputs.shape[1] * 9
    gram = torch.zeros(columns + 1, columns + 1, dtype=torch.float64)
    moments = torch.zeros(columns + 1, targets.shape[1], dtype=torch.float64)
    seen = 0
    for image, target in zip(inputs.split(4), targets.split(4), strict=True):
        patches = F.unfold(image, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
        rows = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], dim=1)
        gram += rows.t() @ rows
        moments += rows.t() @ target.flatten(2).transpose(1, 2).flatten(0, 1).double()
        seen += len(rows)
        if seen >= ROWS:
            break
    gram += RIDGE * gram.diagonal().mean() * torch.eye(columns + 1, dtype=torch.float64)
    solution = torch.linalg.solve(gram, moments).t().to(inputs.dtype)
    return solution[:, :-1].reshape(-1, inputs.shape[1], 3, 3).contiguous(), solution[:, -1].contiguous()


def _pass_through_silu(conv: nn.Conv2d, channels: int) -> None:
    """A 3x3 convolution whose output k is input k less input `channels` + k."""
    conv.weight.zero_()
    places = torch.arange(channels)
    conv.weight[places, places, 1, 1] = 1.0
    conv.weight[places, channels + places, 1, 1] = -1.0


def _eye(weight: Tensor) -> Tensor:
    """1x1 kernels that copy channels as far as there are any."""
    return torch.eye(weight.shape[0], weight.shape[1])[:, :, None, None]


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)

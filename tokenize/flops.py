"""What a VQGAN costs: floating-point operations an image, counted on the real modules without computing anything.

The model runs once on torch's meta device under its FLOP counter. Counted are convolutions and matrix products, a
multiplication and an addition as two operations; norms, activations and sums are not. Takes under a second.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from uvd.tokenize.vqgan import VQGAN, VQGANConfig, VQGANError


def encoder_flops(config: VQGANConfig, side: int = 256) -> int:
    """Operations from one `side` x `side` picture to its ids: encoder, `quant_conv` and codebook search.

    Raises:
        VQGANError: if `side` is not a positive multiple of the model's stride.
    """
    _latent_side(config, side)
    with torch.device("meta"), torch.no_grad():
        model = VQGAN(config, with_decoder=False).eval()
        picture = torch.empty(1, config.num_channels, side, side)
        with FlopCounterMode(display=False) as counter:
            model.encode(picture)
    return counter.get_total_flops()


def decoder_flops(config: VQGANConfig, side: int = 256) -> int:
    """Operations from the ids of one picture to its `side` x `side` pixels: `post_quant_conv` and decoder.

    Raises:
        VQGANError: if `side` is not a positive multiple of the model's stride.
    """
    latent_side = _latent_side(config, side)
    with torch.device("meta"), torch.no_grad():
        model = VQGAN(config).eval()
        ids = torch.empty(1, latent_side * latent_side, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model.decode(ids, latent_side, latent_side)
    return counter.get_total_flops()


def _latent_side(config: VQGANConfig, side: int) -> int:
    if side < 1 or side % config.downsampling:
        raise VQGANError(f"side {side} is not a positive multiple of {config.downsampling}")
    return side // config.downsampling

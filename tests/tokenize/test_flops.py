"""Operation counts of the VQGAN, against counts by hand."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from uvd.pipeline.cli import app
from uvd.tokenize.flops import decoder_flops, encoder_flops
from uvd.tokenize.vqgan import VQGANConfig, VQGANError

TINY = VQGANConfig(
    attn_resolutions=(),
    channel_mult=(1, 2),
    commitment_cost=0.25,
    dropout=0.0,
    hidden_channels=2,
    no_attn_mid_block=False,
    num_channels=3,
    num_embeddings=5,
    num_res_blocks=1,
    quantized_embed_dim=4,
    resample_with_conv=True,
    resolution=8,
    z_channels=3,
    norm_groups=0,
)


def conv(side: int, kernel: int, inputs: int, outputs: int) -> int:
    """A convolution with a `side` x `side` output: a multiplication and an addition for each weight and position."""
    return 2 * side**2 * kernel**2 * inputs * outputs


ATTENTION = 4 * conv(4, 1, 4, 4) + 2 * (2 * 16 * 16 * 4)
MIDDLE = 4 * conv(4, 3, 4, 4) + ATTENTION
SEARCH = 2 * 16 * 4 * 5
ENCODER = (
    conv(8, 3, 3, 2)  # conv_in
    + 2 * conv(8, 3, 2, 2)  # first stage
    + conv(4, 3, 2, 2)  # downsample
    + (conv(4, 3, 2, 4) + conv(4, 3, 4, 4) + conv(4, 1, 2, 4))  # second stage, with its shortcut
    + MIDDLE
    + conv(4, 3, 4, 3)  # conv_out
    + conv(4, 1, 3, 4)  # quant_conv
    + SEARCH
)
DECODER = (
    conv(4, 1, 4, 3)  # post_quant_conv
    + conv(4, 3, 3, 4)  # conv_in
    + MIDDLE
    + 4 * conv(4, 3, 4, 4)  # second stage, two blocks
    + conv(8, 3, 4, 4)  # upsample
    + (conv(8, 3, 4, 2) + conv(8, 3, 2, 2) + conv(8, 1, 4, 2))  # first stage, first block with its shortcut
    + 2 * conv(8, 3, 2, 2)
    + conv(8, 3, 2, 3)  # conv_out
)


def test_counts_are_those_by_hand():
    assert encoder_flops(TINY, 8) == ENCODER == 53_504
    assert decoder_flops(TINY, 8) == DECODER == 96_256


def test_convolutions_grow_with_the_area():
    no_attention = TINY.model_copy(update={"no_attn_mid_block": True})
    assert encoder_flops(no_attention, 16) == 4 * encoder_flops(no_attention, 8)
    assert decoder_flops(no_attention, 16) == 4 * decoder_flops(no_attention, 8)


def test_attention_that_does_not_run_costs_nothing():
    held = TINY.model_copy(update={"attn_resolutions": (4,)})
    assert encoder_flops(held, 8) == ENCODER
    assert encoder_flops(held.model_copy(update={"lone_attention": True}), 8) == ENCODER + ATTENTION
    assert decoder_flops(held, 8) == DECODER + 2 * ATTENTION


@pytest.mark.parametrize("side", [0, -2, 7])
def test_sides_that_do_not_fit_are_refused(side):
    for count in (encoder_flops, decoder_flops):
        with pytest.raises(VQGANError, match="multiple of 2"):
            count(TINY, side)


def test_info_shows_cost_size_and_identity():
    text = CliRunner().invoke(app, ["tokenizer", "info"])
    assert text.exit_code == 0
    facts = json.loads(CliRunner().invoke(app, ["tokenizer", "info", "uvd-small", "--json"]).output)
    parts = facts["parameters"]
    assert parts["all"] == parts["encoder"] + parts["decoder"] + parts["codebook"]
    assert facts["vocabulary"] == {"codes": 8192, "bos": 8192, "eos": 8193, "pad": 8194, "size": 8292}
    assert (facts["stride"], facts["tokens_per_image"]) == (16, 256)
    shown = [f"{parts['codebook']:,}", facts["fingerprint"], facts["preprocessing"], facts["precision"]]
    shown += [f"{part} {cost:.2f}" for part, cost in facts["gflops_per_image"].items()]
    for value in shown:
        assert value in text.output

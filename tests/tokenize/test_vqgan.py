from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from uvd.tokenize.vqgan import VQGAN, VQGANConfig, VQGANError, nearest_codes

FIXTURE = Path(__file__).parents[1] / "data" / "muse-vqgan"

LVM = {
    "attn_resolutions": [],
    "channel_mult": [1, 2, 2, 4, 6],
    "commitment_cost": 0.25,
    "dropout": 0.0,
    "hidden_channels": 128,
    "no_attn_mid_block": True,
    "num_channels": 3,
    "num_embeddings": 8192,
    "num_res_blocks": 2,
    "quantized_embed_dim": 64,
    "resample_with_conv": True,
    "resolution": 256,
    "z_channels": 64,
}
SMALL = LVM | {
    "channel_mult": [1, 2],
    "hidden_channels": 32,
    "num_embeddings": 64,
    "quantized_embed_dim": 8,
    "resolution": 32,
    "z_channels": 16,
}


def golden() -> dict[str, np.ndarray]:
    with np.load(FIXTURE / "golden.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gives_the_ids_and_pictures_of_the_original_code(memory_format):
    expected = golden()
    model = VQGAN(VQGANConfig.from_file(FIXTURE / "config.json")).eval()
    model.load_state_dict(load_file(FIXTURE / "model.safetensors"))
    model = model.to(memory_format=memory_format)
    images = torch.from_numpy(expected["images"]).permute(0, 3, 1, 2).float().div(255)
    with torch.inference_mode():
        ids = model.encode(images.contiguous(memory_format=memory_format))
        decoded = model.decode(ids, 16, 16).mul(255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(ids.numpy(), expected["token_ids"])
    assert np.abs(decoded - expected["reconstruction"].astype(np.float32)).max() <= 1


def test_parameters_of_the_published_model_have_its_names_and_shapes():
    with torch.device("meta"):
        model = VQGAN(VQGANConfig.from_dict(LVM))
    lines = (FIXTURE / "lvm-state-dict.txt").read_text().splitlines()
    published = {name: shape for name, shape, _ in (line.split("\t") for line in lines)}
    assert len(published) == 277
    assert {name: str(tuple(value.shape)) for name, value in model.state_dict().items()} == published
    assert sum(value.numel() for value in model.parameters()) == 146_244_675


def test_attention_blocks_follow_the_config_and_the_quirk():
    # One block a stage: the encoder holds one attention block and skips it, the decoder holds two and runs them.
    config = VQGANConfig.from_dict(SMALL | {"num_res_blocks": 1, "attn_resolutions": [16], "no_attn_mid_block": False})
    torch.manual_seed(0)
    model = VQGAN(config).eval()
    names = set(model.state_dict())
    assert {
        "encoder.down.1.attn.0.proj_out.weight",
        "decoder.up.1.attn.1.q.bias",
        "encoder.mid.attn_1.norm.weight",
    } <= names
    assert not any(name.startswith(("encoder.down.0.attn", "decoder.up.0.attn")) for name in names)
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        before = model.latents(images), model.reconstruct(model.latents(images))
        model.encoder.down[1].attn[0].proj_out.weight.mul_(3)
        assert torch.equal(model.latents(images), before[0])
        model.decoder.up[1].attn[0].proj_out.weight.mul_(3)
        assert not torch.allclose(model.reconstruct(before[0]), before[1])
        model.encoder.mid.attn_1.v.weight.mul_(3)
        assert not torch.allclose(model.latents(images), before[0])


def test_two_blocks_a_stage_run_the_encoders_attention():
    model = VQGAN(VQGANConfig.from_dict(SMALL | {"num_res_blocks": 2, "attn_resolutions": [16]})).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        before = model.latents(images)
        model.encoder.down[1].attn[1].proj_out.weight.mul_(3)
        assert not torch.allclose(model.latents(images), before)


def test_attention_is_softmax_over_positions():
    model = VQGAN(VQGANConfig.from_dict(SMALL | {"no_attn_mid_block": False})).eval()
    block = model.encoder.mid.attn_1
    x = torch.randn(2, 64, 4, 3)
    with torch.inference_mode():
        h = block.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * 64**-0.5, dim=2)
        expected = x + block.proj_out(torch.einsum("bij,bcj->bci", weights, v).view_as(x))
        assert torch.allclose(block(x), expected, atol=1e-5)


def test_resampling_without_convolution_has_no_weights():
    model = VQGAN(VQGANConfig.from_dict(SMALL | {"resample_with_conv": False})).eval()
    assert not any("sample.conv" in name for name in model.state_dict())
    with torch.inference_mode():
        assert model.decode(model.encode(torch.rand(1, 3, 32, 32)), 16, 16).shape == (1, 3, 32, 32)


def test_search_takes_the_first_of_equal_codes_and_does_not_depend_on_the_chunk():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-3, 4, (40, 4), generator=generator).float()
    codes = torch.cat([codes, codes])  # every code twice: the later copy must never win
    latents = torch.randint(-3, 4, (101, 4), generator=generator).float()
    distances = (latents[:, None] - codes[None]).pow(2).sum(2)
    first = torch.tensor([int((row == row.min()).nonzero()[0]) for row in distances])
    for rows in (1, 7, 2048):
        assert torch.equal(nearest_codes(latents, codes, rows), first)


def test_search_is_fp32_for_half_precision_input():
    codes = torch.tensor([[1000.0], [1000.4]])
    assert nearest_codes(torch.tensor([[1000.5]], dtype=torch.float16), codes).tolist() == [1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_channels": None}, "hidden_channels"),
        ({"num_embeddings": 10**9}, "num_embeddings"),
        ({"channel_mult": []}, "channel_mult"),
        ({"hidden_channels": 16}, "16 channels"),
        ({"resolution": 250}, "resolution 250"),
        ({"use_ema": True}, "use_ema"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(change, named):
    with pytest.raises(VQGANError, match=named):
        VQGANConfig.from_dict(LVM | change)


def test_every_published_key_must_be_there_and_underscored_ones_are_ignored():
    assert VQGANConfig.from_dict(LVM | {"_class_name": "VQGANModel"}) == VQGANConfig.from_dict(LVM)
    for key in LVM:
        with pytest.raises(VQGANError, match=key):
            VQGANConfig.from_dict({k: v for k, v in LVM.items() if k != key})


def test_config_files_that_are_no_config(tmp_path):
    path = tmp_path / "config.json"
    for content in ("", "[1]", "{", '{"a": ' * 100_000):
        path.write_text(content)
        with pytest.raises(VQGANError, match=r"config\.json"):
            VQGANConfig.from_file(path)
    path.write_text(VQGANConfig.from_dict(LVM).to_json())
    assert VQGANConfig.from_file(path) == VQGANConfig.from_dict(LVM)
    assert json.loads(path.read_text())["norm_groups"] == 32


def test_without_its_decoder_a_model_still_encodes():
    model = VQGAN(VQGANConfig.from_dict(SMALL), with_decoder=False)
    assert not any(name.startswith(("decoder.", "post_quant_conv.")) for name in model.state_dict())
    with pytest.raises(VQGANError, match="decoder"):
        model.decode(model.encode(torch.rand(1, 3, 32, 32)), 16, 16)

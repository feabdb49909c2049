"""The linear start: a model that reconstructs before it is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_support import smooth_photo

from uvd.tokenize.linear_start import linear_start, principal, regression
from uvd.tokenize.training import TokenizerTrainConfig
from uvd.tokenize.vqgan import VQGAN

SETTINGS = {"hidden_channels": 8, "channel_mult": (1, 2, 4, 8, 16), "norm_groups": 0}


def photos(count: int) -> torch.Tensor:
    stack = np.stack([smooth_photo(seed, 64, 64) for seed in range(count)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(255)


def model(**changes) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(TokenizerTrainConfig(**{**SETTINGS, **changes}).model)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).pow(2).mean().log10())


def test_it_reconstructs_photos_that_it_has_not_seen():
    tested, untrained = model(), model()
    images = photos(40)
    linear_start(tested, images[:32])
    with torch.no_grad():
        after = psnr(tested.reconstruct(tested.latents(images[32:])), images[32:])
        before = psnr(untrained.reconstruct(untrained.latents(images[32:])), images[32:])
    assert after > 18
    assert after > before + 8


def test_it_is_a_function_of_the_images():
    states = []
    for _ in range(2):
        tested = model()
        linear_start(tested, photos(8))
        states.append(tested.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_every_block_starts_as_an_identity():
    tested = model()
    linear_start(tested, photos(8))
    x = torch.randn(1, 128, 4, 4)
    assert torch.allclose(tested.encoder.mid(x), x)


@pytest.mark.parametrize("changes", [{"norm_groups": 2}, {"channel_mult": (1, 2, 4, 8, 8)}, {"z_channels": 100}])
def test_other_models_are_refused(changes):
    with pytest.raises(ValueError, match="linear start needs"):
        linear_start(model(**changes), photos(4))


def test_principal_directions_are_orthonormal_and_regression_finds_a_known_map():
    features = torch.randn(4, 12, 8, 8)
    rows = principal(features, 5)
    assert torch.allclose(rows @ rows.t(), torch.eye(5), atol=1e-5)
    weight, bias = torch.randn(3, 12, 3, 3), torch.randn(3)
    target = torch.nn.functional.conv2d(features, weight, bias, padding=1)
    found, offset = regression(features, target)
    assert torch.allclose(found, weight, atol=1e-3)
    assert torch.allclose(offset, bias, atol=1e-3)

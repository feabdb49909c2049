from __future__ import annotations

import pytest
import torch

from uvd.trainer.model import SIZES, UnknownSizeError, build_model, count_parameters, model_config

PUBLISHED_MILLIONS = {"100m": 117, "300m": 291, "600m": 648, "1b": 1147, "3b": 3275, "7b": 6544}


@pytest.mark.parametrize(("size", "millions"), PUBLISHED_MILLIONS.items())
def test_parameter_counts_are_the_published_ones(size: str, millions: int) -> None:
    assert round(count_parameters(build_model(size, device="meta")) / 1e6) == millions


def test_config_follows_the_released_models() -> None:
    config = model_config("300m")
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (8292, 4096, 1e-6)
    assert (config.initializer_range, config.tie_word_embeddings) == (0.02, False)
    assert config.rope_parameters["rope_theta"] == 10_000
    assert set(SIZES) == {"atto", "femto", "pico", "tiny", *PUBLISHED_MILLIONS}


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(micro: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (build_model(micro, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.config._attn_implementation == "sdpa"
    assert one.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(UnknownSizeError, match="300m"):
        build_model("300M")

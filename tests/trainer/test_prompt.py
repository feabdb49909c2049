from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from uvd.manifests.tokens import BOS
from uvd.trainer.checkpoint import CheckpointError, FingerprintMismatchError, Provenance, save_model
from uvd.trainer.model import build_model
from uvd.trainer.prompt import (
    PromptError,
    draw,
    generate,
    load_model,
    predict_images,
    prompt_of,
    prompt_sheet,
)


def codes(images: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 8192, (images, 256)).astype(np.uint16)


@pytest.fixture
def small(micro: str) -> LlamaForCausalLM:
    return build_model(micro, context=1025).eval()


def test_cached_greedy_generation_equals_whole_forward_passes(small: LlamaForCausalLM) -> None:
    with torch.no_grad():
        for parameter in small.parameters():  # larger weights: logits far enough apart that rounding decides nothing
            parameter.mul_(5)
    prompt = prompt_of(codes(1))
    cached = generate(small, prompt, 1, temperature=0).reshape(-1)
    whole = torch.from_numpy(np.concatenate([prompt, cached]))[None]
    with torch.no_grad():
        logits = small(input_ids=whole, use_cache=False).logits[0, :, :8192]
    # Greedy without a cache would choose the argmax after each prefix; by induction the prefixes are the same.
    assert (logits[len(prompt) - 1 : -1].argmax(dim=1).numpy() == cached).all()
    assert len(set(cached.tolist())) > 10


def test_special_ids_are_never_drawn_and_end_tokens_are_not_trusted(small: LlamaForCausalLM) -> None:
    favourite = 4711
    with torch.no_grad():
        small.model.norm.weight.zero_()  # all logits 0, but for the bias below
    head = torch.nn.Linear(32, 8292)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[8192:] = 100.0
        head.bias[favourite] = 30.0
    small.lm_head = head
    small.generation_config.eos_token_id = favourite
    small.config.eos_token_id = favourite
    for settings in ({"temperature": 0.0}, {"temperature": 2.0, "top_p": 0.9999, "top_k": 8000}):
        drawn = generate(small, prompt_of(codes(1)), 1, **settings)  # type: ignore[arg-type]
        assert drawn.shape == (1, 256)
        assert drawn.dtype == np.uint16
        assert drawn.max() < 8192
        assert (drawn == favourite).sum() > 128


def test_generation_is_a_function_of_the_seed(small: LlamaForCausalLM) -> None:
    one, same, other = (generate(small, prompt_of(codes(1)), 1, seed=seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_draws_follow_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)

    def shares(**settings: Any) -> NDArray[np.float64]:
        drawn = [draw(np.log(probabilities), rng, **settings) for _ in range(4000)]
        return np.bincount(drawn, minlength=4) / len(drawn)

    assert shares() == pytest.approx(probabilities, abs=0.03)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_p=0.9) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.03)
    assert shares(top_p=0.4) == pytest.approx([1, 0, 0, 0])
    assert shares(temperature=0.01) == pytest.approx([1, 0, 0, 0])
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}):
        with pytest.raises(PromptError):
            draw(np.log(probabilities), rng, **bad)  # type: ignore[arg-type]


def test_the_context_is_limited(micro: str, small: LlamaForCausalLM) -> None:
    with pytest.raises(PromptError, match="at most 4 images"):
        generate(small, prompt_of(codes(3)), 2)
    exact = build_model(micro, context=512).eval()  # BOS + 2 images, of which the last token is not fed
    assert generate(exact, prompt_of(codes(1)), 1).shape == (1, 256)


@pytest.mark.parametrize("tokens", [np.array([], np.int64), np.array([[1, 2]]), np.array([8292]), np.array([-1])])
def test_a_bad_prompt_is_refused(small: LlamaForCausalLM, tokens: NDArray[np.int64]) -> None:
    with pytest.raises(PromptError):
        generate(small, tokens, 1)


@pytest.mark.parametrize("vocabulary", [8192, 8292])
def test_plain_transformers_checkpoints_load(tmp_path: Path, vocabulary: int) -> None:
    plain = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=513,
        )
    )
    plain.save_pretrained(tmp_path / "plain")
    model = load_model(tmp_path / "plain", tokenizer_fingerprint="0" * 64)  # it says nothing about its tokenizer
    prompt = prompt_of(codes(1), vocabulary)
    assert (prompt[0] == BOS) == (vocabulary == 8292)
    assert generate(model, prompt, 1).max() < 8192


def test_what_is_not_a_visual_model_is_refused(tmp_path: Path, small: LlamaForCausalLM) -> None:
    with pytest.raises(CheckpointError, match="no model in"):
        load_model(tmp_path)
    text = LlamaConfig(vocab_size=320, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(text).save_pretrained(tmp_path / "text")
    with pytest.raises(CheckpointError, match="vocabulary of 320"):
        load_model(tmp_path / "text")
    save_model(tmp_path / "ours", small, Provenance("uvd-test", "f" * 64, "micro", 1025))
    (tmp_path / "ours/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path / "ours")


def test_the_tokenizer_must_be_the_one_of_the_training_data(tmp_path: Path, small: LlamaForCausalLM) -> None:
    save_model(tmp_path / "run/model", small, Provenance("uvd-test", "f" * 64, "micro", 1025))
    assert load_model(tmp_path / "run", tokenizer_fingerprint="f" * 64).config.hidden_size == 32
    with pytest.raises(FingerprintMismatchError, match="ids mean different things"):
        load_model(tmp_path / "run", tokenizer_fingerprint="0" * 64)


class FlatTokenizer:
    """Every image is one colour, every code is its red value."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        return np.repeat(images[:, :1, 0, 0].astype(np.uint16), 256, axis=1)

    def decode(self, ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
        return np.broadcast_to((ids[:, :1, None, None] % 256).astype(np.uint8), (len(ids), 256, 256, 3)).copy()


def test_images_in_images_out(small: LlamaForCausalLM) -> None:
    images = np.full((2, 256, 256, 3), 7, np.uint8)
    assert predict_images(small, FlatTokenizer(), images, 2).shape == (2, 256, 256, 3)
    for count in (0, 16):
        with pytest.raises(PromptError, match="1 to 15"):
            predict_images(small, FlatTokenizer(), np.zeros((count, 256, 256, 3), np.uint8))


def test_the_sheet_tells_predictions_from_context() -> None:
    context, predictions = np.full((9, 16, 16, 3), 10, np.uint8), np.full((2, 16, 16, 3), 20, np.uint8)
    sheet = prompt_sheet(context, predictions)
    red = (sheet == (214, 40, 40)).all(axis=2)
    assert (sheet == 10).all(axis=2).sum() == 9 * 256
    assert (sheet == 20).all(axis=2).sum() == 2 * 256
    assert red.sum() > 2 * 16 * 4
    assert not red[: sheet.shape[0] // 2].any()

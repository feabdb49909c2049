"""Drawing and scoring: cache, special ids, seeds, batches, context, perplexity; and foreign checkpoints."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from uvd.manifests.tokens import BOS
from uvd.sequences.errors import DeviceError
from uvd.tokenize.tokenizer import Tokenizer
from uvd.trainer import prompter as prompters
from uvd.trainer.checkpoint import CheckpointError, FingerprintMismatchError, Provenance, save_model
from uvd.trainer.pretrained import load_model
from uvd.trainer.prompter import Prompter
from uvd.trainer.sampling import PLAIN, PromptError, Sampling, choose, draw_tokens, losses_after, uniforms_of

NO_TOKENIZER = cast("Tokenizer", None)
GREEDY = Sampling(temperature=0)


def codes(images: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 8192, (images, 256))


def llama(vocabulary: int = 8292, context: int = 1025, **changes: Any) -> LlamaForCausalLM:
    """As plain transformers makes it, with grouped heads and larger weights, so that rounding decides nothing."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, max_position_embeddings=context, **shape
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def small() -> Prompter:
    return Prompter(llama(), NO_TOKENIZER)


@pytest.fixture(scope="module")
def bare() -> Prompter:
    return Prompter(llama(8192), NO_TOKENIZER)


def plain_losses(model: LlamaForCausalLM, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p of tokens 1, 2, … of `(T,)`, from one forward pass without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].double()
    return -logits.log_softmax(dim=1)[:-1].gather(1, torch.from_numpy(tokens[1:])[:, None])[:, 0].numpy()


def framed(images: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[BOS], images.reshape(-1)])


def test_drawing_with_a_cache_equals_whole_forward_passes(small: Prompter) -> None:
    prompts = [codes(1, 1), codes(2, 2)]
    drawn = small.sample(prompts, 1, GREEDY)
    for prompt, ids, losses in zip(prompts, drawn.ids, drawn.losses, strict=True):
        whole = framed(np.concatenate([prompt, ids]))
        with torch.no_grad():
            logits = small.model(input_ids=torch.from_numpy(whole)[None], use_cache=False).logits[0, :, :8192]
        # Greedy without a cache would choose the argmax after each prefix; by induction the prefixes are the same.
        assert (logits[-257:-1].argmax(dim=1).numpy() == ids[0]).all()
        assert len(set(ids[0].tolist())) > 10
        assert losses[0] == pytest.approx(plain_losses(small.model, whole)[-256:], abs=1e-4)


def test_special_ids_are_never_drawn() -> None:
    model = llama()
    head = torch.nn.Linear(64, 8292)
    favourite = 4711
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[8192:] = 100.0
        head.bias[favourite] = 40.0
    model.lm_head = head
    # An ordinary code as end token, as in LVM's files, stops nothing.
    model.generation_config.eos_token_id = model.config.eos_token_id = favourite
    for sampling in (GREEDY, Sampling(2.0, 8000, 0.9999), Sampling(4.0)):
        ids, losses = draw_tokens(model, framed(codes(1))[None], uniforms_of(3, 40)[None], sampling)
        assert ids.shape == (1, 40)
        assert ids.max() < 8192
        assert (ids == favourite).sum() > 10
        # Losses are those of the whole distribution, in which the special ids have nearly all probability.
        assert losses.min() > 60


def test_a_row_depends_on_its_prompt_and_seed_alone() -> None:
    prompter = Prompter(llama(num_hidden_layers=1), NO_TOKENIZER, batch_size=2)
    prompts = [codes(1, 1), codes(2, 2), codes(1, 3), codes(1, 1), codes(1, 1)]
    seeds = [5, 5, 6, 5, 7]
    sampling = Sampling(0.9, 500, 0.95)
    together = prompter.sample(prompts, 1, sampling, seeds)
    alone = prompter.sample(prompts[2:3], 1, sampling, seeds[2:3])
    assert (alone.ids[0] == together.ids[2]).all()
    assert alone.losses[0].tobytes() == together.losses[2].tobytes()
    assert (together.ids[0] == together.ids[3]).all()
    assert (together.ids[0] != together.ids[4]).any()
    # What is drawn is scored as if it had been given.
    assert prompter.perplexity(prompts, together.ids[:, 0]) == pytest.approx(together.perplexities(), rel=1e-5)
    assert prompter.complete([]).shape == (0, 1, 256)


def test_draws_follow_the_probabilities() -> None:
    probabilities = np.array([0.3, 0.05, 0.5, 0.15])
    logits = torch.from_numpy(np.log(probabilities)).expand(4000, 4)
    uniforms = torch.from_numpy(uniforms_of(0, 4000))

    def shares(sampling: Sampling) -> NDArray[np.float64]:
        return np.bincount(choose(logits, uniforms, sampling).numpy(), minlength=4) / 4000

    assert shares(PLAIN) == pytest.approx(probabilities, abs=0.03)
    assert shares(Sampling(top_k=2)) == pytest.approx([0.375, 0, 0.625, 0], abs=0.03)
    assert shares(Sampling(top_k=99)) == pytest.approx(probabilities, abs=0.03)
    assert shares(Sampling(top_p=0.9)) == pytest.approx([0.316, 0, 0.526, 0.158], abs=0.03)
    assert shares(Sampling(top_p=0.4)) == pytest.approx([0, 0, 1, 0])
    assert shares(Sampling(top_k=3, top_p=0.8)) == pytest.approx([0.375, 0, 0.625, 0], abs=0.03)
    assert shares(Sampling(temperature=0.01)) == pytest.approx([0, 0, 1, 0])
    assert shares(Sampling(temperature=2)) == pytest.approx(probabilities**0.5 / (probabilities**0.5).sum(), abs=0.03)
    assert shares(GREEDY) == pytest.approx([0, 0, 1, 0])
    assert choose(logits[:2], torch.tensor([0.0, 1 - 2**-53]), PLAIN).tolist() == [0, 3]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}]
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="expected temperature"):
        Sampling(**bad)


def test_the_context_is_limited_and_a_window_keeps_the_end(small: Prompter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert small.context_images == 4
    with pytest.raises(PromptError, match="at most 4 images"):
        small.sample([codes(3)], 2)
    with pytest.raises(PromptError, match="at most 4 images"):
        small.perplexity([codes(4)], codes(1))
    read: list[tuple[int, int]] = []

    def short(_: Any, prompts: NDArray[np.int64], uniforms: NDArray[np.float64], __: Sampling) -> Any:
        read.append(prompts.shape)
        return (uniforms * 8192).astype(np.int64), uniforms

    monkeypatch.setattr(prompters, "draw_tokens", short)
    drawn = small.sample([codes(6)], 3, window=2, seeds=[4])
    assert drawn.ids.reshape(-1).tolist() == (uniforms_of(4, 768) * 8192).astype(np.int64).tolist()
    # 6 images: 4 are dropped, 2 drawn at once; then 4: 2 are dropped for the third.
    assert read == [(4, 1 + 2 * 256), (4, 1 + 2 * 256)]
    with pytest.raises(PromptError, match="leaves no prompt"):
        Prompter(llama(8192, 512, num_hidden_layers=1), NO_TOKENIZER).sample([codes(3)], 1, window=3)


def test_the_last_token_needs_no_position() -> None:
    exact = Prompter(llama(context=512, num_hidden_layers=1), NO_TOKENIZER)  # BOS and 2 images, but for one token
    assert exact.context_images == 2
    assert exact.complete([codes(1)]).shape == (1, 1, 256)
    assert Prompter(llama(8192, 511, num_hidden_layers=1), NO_TOKENIZER).context_images == 2


@pytest.mark.parametrize("ids", [codes(1) + 8192, codes(1) - 8192, codes(1)[0], codes(1) / 2, codes(1)[:, :9]])
def test_a_bad_prompt_is_refused(small: Prompter, ids: NDArray[Any]) -> None:
    with pytest.raises(PromptError):
        small.sample([ids])
    with pytest.raises(PromptError):
        small.perplexity([codes(1)], ids)


def test_numbers_of_prompts_seeds_and_answers_must_agree(small: Prompter) -> None:
    for call in (
        lambda: small.sample([codes(1)], seeds=[1, 2]),
        lambda: small.perplexity([codes(1)], codes(2)),
        lambda: small.sample([codes(1)], 0),
        lambda: small.token_losses(codes(0)),
    ):
        with pytest.raises(PromptError):
            call()


def test_perplexity_equals_a_plain_forward_pass(small: Prompter, bare: Prompter) -> None:
    prompts, answers = [codes(2, 1), codes(1, 2), codes(2, 1), codes(2, 1)], codes(4, 3)
    for prompter, start in ((small, [BOS]), (bare, [])):
        expected = [
            np.exp(
                plain_losses(prompter.model, np.concatenate([start, *prompt, answer]).astype(np.int64))[-256:].mean()
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        assert prompter.perplexity(prompts, answers) == pytest.approx(expected, rel=1e-4)
        # Bit for bit the same alone and among others.
        assert prompter.perplexity(prompts[2:3], answers[2:3])[0] == prompter.perplexity(prompts, answers)[2]
    assert small.perplexity([codes(0)], answers[:1]).shape == (1,)
    with pytest.raises(PromptError, match="no BOS"):
        bare.perplexity([codes(0)], answers[:1])


def test_token_losses_equal_a_plain_forward_pass(small: Prompter, bare: Prompter) -> None:
    sequence = codes(4, 5)
    losses = small.token_losses(sequence)
    assert losses.shape == (4, 256)
    assert losses.reshape(-1) == pytest.approx(plain_losses(small.model, framed(sequence)), abs=1e-4)
    without = bare.token_losses(sequence).reshape(-1)
    assert np.isnan(without[0])
    assert without[1:] == pytest.approx(plain_losses(bare.model, sequence.reshape(-1)), abs=1e-4)
    with pytest.raises(PromptError, match="at most 4 images"):
        small.token_losses(codes(5))


def test_memory_that_does_not_hold_a_batch_halves_it(small: Prompter, monkeypatch: pytest.MonkeyPatch) -> None:
    prompter = Prompter(small.model, NO_TOKENIZER, batch_size=4)

    def tight(_: Any, prompts: NDArray[np.int64], uniforms: NDArray[np.float64], __: Sampling) -> Any:
        if len(prompts) > room:
            raise torch.OutOfMemoryError("full")
        return prompts[:, 1:257], uniforms

    monkeypatch.setattr(prompters, "draw_tokens", tight)
    prompts, room = [codes(1, seed) for seed in range(5)], 2
    assert (prompter.complete(prompts)[:, 0] == np.concatenate(prompts)).all()
    assert prompter.batch_size == 2
    room = 0
    with pytest.raises(PromptError, match="no memory for one prompt"):
        prompter.complete(prompts)


def test_a_model_that_gives_no_numbers_is_named() -> None:
    model = llama(num_hidden_layers=1)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    for call in (
        lambda: draw_tokens(model, np.array([[BOS]]), np.zeros((1, 2)), PLAIN),
        lambda: losses_after(model, np.array([BOS]), codes(1)),
    ):
        with pytest.raises(PromptError, match="NaN"):
            call()


def same_logits(one: LlamaForCausalLM, other: LlamaForCausalLM) -> bool:
    tokens = torch.from_numpy(codes(1))
    with torch.no_grad():
        return torch.equal(one(input_ids=tokens).logits, other(input_ids=tokens).logits)


@pytest.mark.parametrize("vocabulary", [8192, 8292])
def test_plain_transformers_checkpoints_load(tmp_path: Path, vocabulary: int) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    plain = llama(vocabulary, rope_parameters=rope, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    plain.save_pretrained(tmp_path)
    # It says nothing about its tokenizer, so any will do.
    assert same_logits(load_model(tmp_path, tokenizer_fingerprint="0" * 64), plain)
    assert load_model(tmp_path, precision="bf16").dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="precision 'fp8'"):
        load_model(tmp_path, precision="fp8")


def test_older_forms_load(tmp_path: Path) -> None:
    """Several files, `.bin` ones, stored wavelengths, `rope_theta` of its own, and ids that a text model had."""
    plain = llama(rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    plain.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert same_logits(load_model(tmp_path / "shards"), plain)
    old = tmp_path / "old"
    old.mkdir()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = {name: getattr(plain.config, name) for name in (*names, "num_key_value_heads", "max_position_embeddings")}
    special = {"pad_token_id": 32000, "eos_token_id": 2, "rms_norm_eps": 1e-6, "rope_theta": 5000.0}
    (old / "config.json").write_text(json.dumps({"model_type": "llama", "rope_scaling": None, **special, **config}))
    state = {**plain.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    halves = {key: value.half() for key, value in state.items()}
    torch.save(halves, old / "pytorch_model.bin")
    plain.load_state_dict(halves, strict=False)
    assert same_logits(load_model(old), plain)


def test_tied_embeddings_load(tmp_path: Path) -> None:
    plain = llama(tie_word_embeddings=True)
    plain.save_pretrained(tmp_path)
    assert same_logits(load_model(tmp_path), plain)


def test_a_generation_config_is_not_even_read(tmp_path: Path) -> None:
    plain = llama()
    plain.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 1, 2], "max_length": -')
    assert same_logits(load_model(tmp_path), plain)


class Payload:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.marker, "ran")


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    llama(num_hidden_layers=1).save_pretrained(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    marker = tmp_path / "ran"
    content = pickle.dumps({"model.norm.weight": Payload(marker), "padding": b"0" * 2_000_000}, protocol=2)
    (tmp_path / "model/pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path / "model")
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # so the payload works


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 320}, "vocabulary of 320"),
        ({"model_type": "gpt2"}, "type 'gpt2'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "does not describe a Llama"),
        ({"hidden_act": "no-such"}, "does not describe a Llama"),
        ({"hidden_size": 4096, "head_dim": 16}, "promises"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unknown"),
        ({"intermediate_size": 128}, "not of the shape"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    llama().save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_damaged_and_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model in"):
        load_model(tmp_path)
    llama(num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged" * 500_000)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights in"):
        load_model(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for places, message in (({"a": "../x.safetensors"}, "does not name"), ({"a": "x.safetensors"}, "not there")):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path)


def test_the_tokenizer_must_be_the_one_of_the_training_data(tmp_path: Path) -> None:
    save_model(tmp_path / "run/model", llama(), Provenance("uvd-test", "f" * 64, "micro", 1025))
    assert load_model(tmp_path / "run", tokenizer_fingerprint="f" * 64).config.hidden_size == 64
    with pytest.raises(FingerprintMismatchError, match="ids mean different things"):
        load_model(tmp_path / "run", tokenizer_fingerprint="0" * 64)
    with pytest.raises(FingerprintMismatchError):
        Prompter.load(tmp_path / "run", "uvd-small", "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=device):
        Prompter.load(tmp_path, "uvd-small", device)

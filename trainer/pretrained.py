"""Loads a Llama of visual tokens from a run, a checkpoint or any Hugging Face folder, as LVM and DeLVM release them.

A folder is not trusted: only the numbers of `config.json` that describe a Llama are taken, weights are safetensors, or
`.bin` without running code, and must fit key by key. `generation_config.json` is not read at all: its end tokens are
ordinary codes. Costs the weights once in memory, and one file of them more while loading.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from uvd.manifests.tokens import CODEBOOK_SIZE, VOCAB_SIZE
from uvd.tokenize.state_dicts import TokenizerError, read_weights
from uvd.trainer.checkpoint import CheckpointError, check_fingerprint, checkpoints, read_provenance

MAX_CONFIG_BYTES, MAX_INDEX_BYTES = 1 << 20, 16 << 20
MAX_LAYERS, MAX_WIDTH, MAX_CONTEXT = 512, 1 << 17, 1 << 20
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": MAX_WIDTH,
    "intermediate_size": MAX_WIDTH,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": MAX_WIDTH,
    "max_position_embeddings": MAX_CONTEXT,
}
"""Numbers that every config has, and the largest that is believed."""
OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


def load_model(
    path: str | Path,
    *,
    tokenizer_fingerprint: str | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> LlamaForCausalLM:
    """Loads a run folder, a checkpoint, or any Hugging Face Llama folder with LVM's vocabulary (8292, or 8192 bare).

    Args:
        path: of a run, its final model is taken, or else its newest checkpoint.
        tokenizer_fingerprint: of the tokenizer that will be used with it, to be checked.
        precision: `fp32` or `bf16`, whatever the file has.

    Raises:
        CheckpointError: if there is no model, or not a Llama of this vocabulary, or its files are damaged.
        FingerprintMismatchError: if it was trained on tokens of another tokenizer.
    """
    if precision not in PRECISIONS:
        raise CheckpointError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    folder = model_folder(Path(path))
    if tokenizer_fingerprint is not None:
        check_fingerprint(read_provenance(folder), tokenizer_fingerprint, "the tokenizer")
    config = _read_config(folder)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    except (ValueError, TypeError, RuntimeError, KeyError, ArithmeticError) as error:
        raise CheckpointError(f"{folder}/config.json does not describe a Llama: {error}") from error
    files = _weight_files(folder)
    parameters, size = sum(weight.numel() for weight in model.parameters()), sum(file.stat().st_size for file in files)
    if parameters > size:
        raise CheckpointError(f"{folder}: config.json promises {parameters:,} weights, the files have {size:,} bytes")
    _load_weights(model, files, torch.device(device), PRECISIONS[precision])
    return model.eval()


def trained_on(path: str | Path) -> str | None:
    """Fingerprint of the tokenizer whose tokens a model was trained on; None for models that do not say."""
    provenance = read_provenance(model_folder(Path(path)))
    return None if provenance is None else provenance.tokenizer_fingerprint


def model_folder(path: Path) -> Path:
    """The folder with `config.json`: the path itself, a run's `model/`, or its newest checkpoint.

    Raises:
        CheckpointError: if there is none.
    """
    path = path.expanduser()
    for folder in (path, path / "model", *reversed(checkpoints(path))):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(f"no model in {path}: neither config.json, nor model/, nor checkpoints/step-*")


def _read_json(path: Path, limit: int) -> dict[str, Any]:
    try:
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path} is larger than {limit:,} bytes")
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _read_config(folder: Path) -> LlamaConfig:
    path = folder / "config.json"
    content = _read_json(path, MAX_CONFIG_BYTES)
    if content.get("model_type") != "llama":
        raise CheckpointError(f"{folder} is a model of type {content.get('model_type')!r}, not a Llama")
    vocabulary = content.get("vocab_size")
    if vocabulary not in (CODEBOOK_SIZE, VOCAB_SIZE):
        raise CheckpointError(
            f"{folder} has a vocabulary of {vocabulary}; a visual model has {CODEBOOK_SIZE} or {VOCAB_SIZE}"
        )
    for name, largest in SHAPE.items():
        value = content.get(name)
        if type(value) is not int or not 1 <= value <= largest:
            raise CheckpointError(f"{path}: {name} is {value!r}; expected a number from 1 to {largest:,}")
    known = {name: content[name] for name in (*SHAPE, *OPTIONAL) if content.get(name) is not None}
    try:
        # Special ids are left out: a foreign one may be a code, or lie outside of the vocabulary.
        return LlamaConfig(**known, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    except Exception as error:
        # Its validation raises classes of its own, by huggingface_hub's version.
        raise CheckpointError(f"{path} does not describe a Llama: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    """The files with the weights; names in an index are plain ones of this folder.

    Raises:
        CheckpointError: if there are none, or an index names other files.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = _read_json(index, MAX_INDEX_BYTES).get("weight_map")
            names = set(places.values()) if isinstance(places, dict) else set()
            bad = [file for file in names if not isinstance(file, str) or Path(file).name != file]
            if bad or not names:
                raise CheckpointError(f"{index} does not name weight files of its folder: {bad[:3]}")
            if missing := sorted(file for file in names if not (folder / file).is_file()):
                raise CheckpointError(f"{index} names {missing[0]}, which is not there")
            return [folder / file for file in sorted(names)]
    raise CheckpointError(f"no weights in {folder}: expected {' or '.join(WEIGHTS)}, or an index of several files")


def _load_weights(model: LlamaForCausalLM, files: list[Path], device: torch.device, dtype: torch.dtype) -> None:
    """Gives a model on the `meta` device its weights.

    Raises:
        CheckpointError: if a file is damaged, or keys or shapes are not those of the config.
    """
    state: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors = read_weights(file)
        except TokenizerError as error:
            raise CheckpointError(f"{file.parent} cannot be loaded as a Llama model: {error}") from error
        state |= {key: value.to(device, dtype) for key, value in tensors.items() if "rotary_emb.inv_freq" not in key}
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = sorted(key for key in expected if key not in state or tuple(state[key].shape) != expected[key])
    extra = sorted(state.keys() - expected.keys())
    folder = files[0].parent
    if wrong or extra:
        raise CheckpointError(
            f"{folder} cannot be loaded as a Llama model: {len(wrong)} weights are missing or not of the shape that "
            f"config.json says, {len(extra)} are unknown: {', '.join((wrong + extra)[:5])}"
        )
    model.load_state_dict(state, assign=True)
    # Rotary wavelengths are computed, not stored.
    model.model.rotary_emb = LlamaRotaryEmbedding(config=model.config).to(device)

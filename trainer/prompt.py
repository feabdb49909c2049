"""Prompts a model as the paper does: some images in, the next images out (arXiv 2312.00785, sections 4.2 and 4.3).

A prompt is `[BOS]` and the images' tokens; tokens are drawn one at a time with a KV cache. Ids from 8192 on are never
drawn and no end token is trusted: in LVM's files `eos_token_id` is an ordinary code. An image costs 256 forward passes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from uvd.manifests.sheet import Frame, contact_sheet
from uvd.manifests.tokens import BOS, CODEBOOK_SIZE, TOKENS_PER_IMAGE, VOCAB_SIZE
from uvd.sequences import Seeds
from uvd.sequences.errors import UserError
from uvd.trainer.checkpoint import CheckpointError, check_fingerprint, checkpoints, read_provenance

MAX_CONTEXT_IMAGES = 15
"""One more is predicted: 16 images fill the paper's context."""


class PromptError(UserError):
    """A prompt that the model cannot take."""


class Tokenizer(Protocol):
    """What `predict_images` needs of a tokenizer."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """`(N, 256, 256, 3)` uint8 RGB to `(N, 256)` ids."""
        ...

    def decode(self, ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """`(N, 256)` ids to `(N, 256, 256, 3)` uint8 RGB."""
        ...


def load_model(
    path: str | Path, *, tokenizer_fingerprint: str | None = None, device: torch.device | str = "cpu"
) -> LlamaForCausalLM:
    """Loads a run folder, a checkpoint, or any Hugging Face Llama folder with LVM's vocabulary (8292, or 8192 bare).

    Args:
        path: of a run, its final model is taken, or else its newest checkpoint.
        tokenizer_fingerprint: of the tokenizer that will be used with it, to be checked.

    Raises:
        CheckpointError: if there is no model, or not a Llama of this vocabulary.
        FingerprintMismatchError: if it was trained on tokens of another tokenizer.
    """
    folder = _model_folder(Path(path))
    provenance = read_provenance(folder)
    if tokenizer_fingerprint is not None:
        check_fingerprint(provenance, tokenizer_fingerprint, "the tokenizer")
    disable_progress_bar()
    try:
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        if config.vocab_size not in (CODEBOOK_SIZE, VOCAB_SIZE):
            raise CheckpointError(
                f"{folder} has a vocabulary of {config.vocab_size}; a visual model has {CODEBOOK_SIZE} or {VOCAB_SIZE}"
            )
        model = LlamaForCausalLM.from_pretrained(
            folder, config=config, local_files_only=True, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as a Llama model: {error}") from error
    return model.to(device).eval()


def trained_on(path: str | Path) -> str | None:
    """Fingerprint of the tokenizer whose tokens a model was trained on; None for models that do not say."""
    provenance = read_provenance(_model_folder(Path(path)))
    return None if provenance is None else provenance.tokenizer_fingerprint


def _model_folder(path: Path) -> Path:
    for folder in (path, path / "model", *reversed(checkpoints(path))):
        if (folder / "config.json").exists():
            return folder
    raise CheckpointError(f"no model in {path}: neither config.json, nor model/, nor checkpoints/step-*")


@torch.no_grad()
def generate(
    model: LlamaForCausalLM,
    prompt_tokens: NDArray[np.integer],
    num_images: int = 1,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> NDArray[np.uint16]:
    """Draws the tokens of the next images.

    Args:
        prompt_tokens: `(T,)` ids: BOS (left out for a model without it) and whole images.
        num_images: how many to draw.
        temperature: 0 takes the likeliest token each time.
        top_p: smallest set of tokens whose probability adds up to this is drawn from; 1 for all.
        top_k: so many of the likeliest tokens are drawn from; 0 for all.
        seed: same seed, same images.

    Returns:
        `(num_images, 256)` uint16 in [0, 8192).

    Raises:
        PromptError: if the prompt is empty, has ids out of range, or leaves too little of the model's context.
    """
    context = int(model.config.max_position_embeddings)
    total = num_images * TOKENS_PER_IMAGE
    _check_prompt(prompt_tokens, total, context, model.config.vocab_size)
    rng = Seeds(seed, ("trainer", "prompt")).generator()
    step = torch.from_numpy(prompt_tokens.astype(np.int64))[None].to(model.device)
    cache = None
    drawn = np.empty(total, np.uint16)
    for position in range(total):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[0, -1, :CODEBOOK_SIZE].float().cpu().numpy().astype(np.float64)
        drawn[position] = draw(logits, rng, temperature=temperature, top_p=top_p, top_k=top_k)
        step = torch.tensor([[int(drawn[position])]], device=model.device)
    return drawn.reshape(num_images, TOKENS_PER_IMAGE)


def _check_prompt(tokens: NDArray[np.integer], wanted: int, context: int, vocabulary: int) -> None:
    if tokens.ndim != 1 or not len(tokens):
        raise PromptError(f"a prompt is one row of token ids, not {tokens.shape}")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise PromptError(
            f"the prompt has ids from {tokens.min()} to {tokens.max()}; the model's vocabulary is {vocabulary}"
        )
    # The last token that is drawn is not fed back, so it needs no position.
    needed = len(tokens) + wanted - 1
    if needed > context:
        fits = (context - 1) // TOKENS_PER_IMAGE
        raise PromptError(
            f"prompt and prediction need {needed} tokens, the model's context is {context}: "
            f"at most {fits} images, the predicted ones included"
        )


def draw(
    logits: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> int:
    """Draws one id from `(V,)` logits: first top-k, then top-p, on the probabilities at the given temperature.

    Raises:
        PromptError: for settings out of range.
    """
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise PromptError(f"temperature {temperature}, top_p {top_p}, top_k {top_k}: out of range")
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    weights = np.exp((logits[order] - logits[order[0]]) / temperature)
    sums = np.cumsum(weights / weights.sum())
    keep = int(np.searchsorted(sums, top_p)) + 1 if top_p < 1 else len(sums)
    return int(order[np.searchsorted(sums[:keep], rng.random() * sums[:keep][-1], side="right").clip(max=keep - 1)])


def predict_images(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    images: NDArray[np.uint8],
    steps: int = 1,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Predicts the images that follow.

    Args:
        images: `(N, 256, 256, 3)` uint8 RGB, 1 to 15 of them: frames, or pairs and a query.
        steps: how many images to predict.

    Returns:
        `(steps, 256, 256, 3)` uint8 RGB.

    Raises:
        PromptError: for no images, over 15, or more than the model's context holds.
    """
    if not 1 <= len(images) <= MAX_CONTEXT_IMAGES:
        raise PromptError(f"a prompt takes 1 to {MAX_CONTEXT_IMAGES} images, not {len(images)}")
    prompt = prompt_of(tokenizer.encode(images), model.config.vocab_size)
    drawn = generate(model, prompt, steps, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    return tokenizer.decode(drawn)


def prompt_of(codes: NDArray[np.uint16], vocabulary: int = VOCAB_SIZE) -> NDArray[np.int64]:
    """`[BOS]` and the `(n, 256)` codes of the context images; a vocabulary of bare codes has no BOS."""
    body = codes.reshape(-1).astype(np.int64)
    return body if vocabulary <= BOS else np.concatenate([[BOS], body])


def prompt_sheet(
    context: NDArray[np.uint8],
    predictions: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None = None,
    *,
    title: str = "",
    columns: int = 8,
) -> NDArray[np.uint8]:
    """A contact sheet: context images in grey frames, predictions in red ones, then what is true, if known, unframed.

    Args:
        context, predictions, truth: `(n, H, W, 3)` uint8 RGB of one size.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    given: list[Frame] = ["given"] * len(context)
    predicted: list[Frame] = ["predicted"] * len(predictions)
    known = [] if truth is None else list(truth)
    true: list[Frame] = ["none"] * len(known)
    pictures = [*context, *predictions, *known]
    return contact_sheet(pictures, frames=given + predicted + true, columns=columns, title=title)

"""A trained transformer with its tokenizer: images in, the next images out, and how likely given images are.

A prompt is `[BOS]` and the images' tokens (arXiv 2312.00785, sections 4.2 and 4.3); a vocabulary of 8192 bare codes has
no BOS. A drawn image costs 256 forward passes of one position, an image that is read or scored one of 256.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from uvd.manifests.tokens import BOS, CODEBOOK_SIZE, TOKENS_PER_IMAGE
from uvd.sequences.errors import DeviceError
from uvd.tokenize.tokenizer import Tokenizer, load_matching
from uvd.trainer.pretrained import load_model, trained_on
from uvd.trainer.sampling import PLAIN, PromptError, Sampling, draw_tokens, losses_after, uniforms_of

CPU_BATCH, GPU_BATCH = 4, 8

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completions:
    """What was drawn: ids `(B, images, 256)` int64, and `(B, images, 256)` float64 losses in nats, as `perplexity` has
    them: under the model's own distribution, not the sampling's."""

    ids: NDArray[np.int64]
    losses: NDArray[np.float64]

    def perplexities(self) -> NDArray[np.float64]:
        """`(B,)`: exp of the mean loss over all drawn tokens of a row."""
        return np.exp(self.losses.mean(axis=(1, 2)))


class Prompter:
    """A trained transformer with its tokenizer.

    Attributes:
        model, tokenizer: on the same device.
        batch_size: rows that are drawn together. Fewer are filled up with copies, so every pass has this shape: on a
            CPU a row's ids are then the same bytes alone and among others. Halved for good when the memory of the
            device does not hold it.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer: Tokenizer, batch_size: int | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size or (GPU_BATCH if self.device.type == "cuda" else CPU_BATCH)

    @classmethod
    def load(
        cls,
        model: str | Path,
        tokenizer: str | Path,
        device: str = "auto",
        *,
        precision: str = "fp32",
        batch_size: int | None = None,
    ) -> Prompter:
        """Loads both and checks that they belong together.

        Args:
            model: run of `uvd train`, checkpoint, or a Hugging Face Llama folder with 8192 or 8292 ids.
            tokenizer: name of an embedded tokenizer, or a folder.
            device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
            precision: `fp32` or `bf16`, of the transformer.

        Raises:
            CheckpointError: if there is no model, or none of this vocabulary, or its files are damaged.
            FingerprintMismatchError: if it was trained on tokens of another tokenizer.
            TokenizerError: for the tokenizer's part.
            DeviceError: if there is no such device.
        """
        device = _device(device)
        images = load_matching(tokenizer, trained_on(model), device)
        if images.tokens_per_image != TOKENS_PER_IMAGE:
            raise PromptError(f"tokenizer {images.name}: {images.tokens_per_image} tokens an image, not 256")
        transformer = load_model(model, tokenizer_fingerprint=images.fingerprint, device=device, precision=precision)
        return cls(transformer, images, batch_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def has_bos(self) -> bool:
        """Whether the vocabulary has ids beyond the codes."""
        return int(self.model.config.vocab_size) > BOS

    @property
    def context(self) -> int:
        """Positions of the model."""
        return int(self.model.config.max_position_embeddings)

    @property
    def context_images(self) -> int:
        """How many images fit the model's context, the predicted ones included: 16 in 4096 tokens.

        The last token of all is never fed back, so BOS takes its place.
        """
        return (self.context + (0 if self.has_bos else 1)) // TOKENS_PER_IMAGE

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """`(N, 256, 256, 3)` uint8 RGB to `(N, 256)` int64 ids."""
        return self.tokenizer.encode(images).astype(np.int64)

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """`(N, 256)` ids in [0, 8192) to `(N, 256, 256, 3)` uint8 RGB."""
        return self.tokenizer.decode(_checked(ids).astype(np.uint16))

    def complete(
        self,
        prompts: Sequence[NDArray[np.int64]],
        images: int = 1,
        sampling: Sampling = PLAIN,
        seeds: Sequence[int] | None = None,
        *,
        window: int = 0,
    ) -> NDArray[np.int64]:
        """The ids of the next images, `(B, images, 256)` int64 in [0, 8192); see `sample`."""
        return self.sample(prompts, images, sampling, seeds, window=window).ids

    def sample(
        self,
        prompts: Sequence[NDArray[np.int64]],
        images: int = 1,
        sampling: Sampling = PLAIN,
        seeds: Sequence[int] | None = None,
        *,
        window: int = 0,
    ) -> Completions:
        """Draws the next images. Equal prompts are read once; prompts of one length are drawn together.

        Args:
            prompts: `(K_i, 256)` ids of whole images each, lengths may differ; BOS is put before.
            images: how many to draw after each.
            seeds: one for each prompt; 0, 1, 2, … by default. A row's draws are a function of model, prompt and seed.
            window: 0 refuses what does not fit the context. Otherwise the oldest images are dropped, so many at a time,
                until at least one more fits: 2 keeps pairs whole.

        Raises:
            PromptError: for ids out of range, an empty prompt without BOS, or more than the context holds.
        """
        prompts = [_checked(prompt) for prompt in prompts]
        numbers = range(len(prompts)) if seeds is None else seeds
        if len(numbers) != len(prompts):
            raise PromptError(f"{len(prompts)} prompts, but {len(numbers)} seeds")
        if images < 1:
            raise PromptError(f"{images} images to draw; at least 1")
        uniforms = [uniforms_of(seed, images * TOKENS_PER_IMAGE).reshape(images, -1) for seed in numbers]
        ids = np.empty((len(prompts), images, TOKENS_PER_IMAGE), np.int64)
        losses = np.empty(ids.shape, np.float64)
        for rows in _by_length(prompts):
            texts = [prompts[row] for row in rows]
            done = 0
            while done < images:
                texts, now = self.fit(texts, images - done, window)
                part = slice(done, done + now)
                drawn = self._draw(np.stack(texts), np.stack([uniforms[row][part] for row in rows]), sampling)
                ids[rows, part], losses[rows, part] = drawn
                texts = [np.concatenate([text, new]) for text, new in zip(texts, drawn[0], strict=True)]
                done += now
        return Completions(ids, losses)

    def perplexity(self, prompts: Sequence[NDArray[np.int64]], answers: NDArray[np.int64]) -> NDArray[np.float64]:
        """How surprised the model is by answers, under its whole vocabulary. Neighbours with equal prompts share work.

        Args:
            prompts: `(K_i, 256)` ids each; BOS is put before.
            answers: `(B, 256)` ids.

        Returns:
            `(B,)` float64: exp of the mean of -log p over the answer's 256 tokens.

        Raises:
            PromptError: as for `sample`.
        """
        return np.exp(self.answer_losses(prompts, answers).mean(axis=1))

    def answer_losses(self, prompts: Sequence[NDArray[np.int64]], answers: NDArray[np.int64]) -> NDArray[np.float64]:
        """-log p in nats of each token of the answers, `(B, 256)` float64; see `perplexity`."""
        answers = _checked(answers)
        if len(answers) != len(prompts):
            raise PromptError(f"{len(prompts)} prompts, but {len(answers)} answers")
        same: dict[bytes, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            same[_checked(prompt).tobytes()].append(row)
        losses = np.empty(answers.shape, np.float64)
        for rows in same.values():
            prompt = prompts[rows[0]]
            self._check_room(len(prompt), 1)
            losses[rows] = losses_after(self.model, self._framed(prompt[None])[0], answers[rows])
        return losses

    def token_losses(self, sequence: NDArray[np.int64]) -> NDArray[np.float64]:
        """-log p in nats of every token of a sequence, from one forward pass.

        Args:
            sequence: `(K, 256)` ids.

        Returns:
            `(K, 256)` float64. Without BOS in the vocabulary nothing comes before the first token: its loss is NaN.

        Raises:
            PromptError: for ids out of range, no images, or more than the context holds.
        """
        sequence = _checked(sequence)
        if not len(sequence):
            raise PromptError("a sequence of no images has no losses")
        self._check_room(len(sequence) - 1, 1)
        body = sequence.reshape(1, -1)
        if self.has_bos:
            return losses_after(self.model, np.array([BOS]), body).reshape(sequence.shape)
        rest = losses_after(self.model, body[0, :1], body[:, 1:])
        return np.concatenate([[np.nan], rest[0]]).reshape(sequence.shape)

    def fit(self, prompts: list[NDArray[np.int64]], images: int, window: int) -> tuple[list[NDArray[np.int64]], int]:
        """Prompts of one length cut to the context, and how many of `images` can be drawn after them at once.

        Raises:
            PromptError: if they do not fit, without a window; or if a window leaves nothing.
        """
        length = len(prompts[0])
        if not window:
            self._check_room(length, images, "; a window (--window) drops the oldest")
            return prompts, images
        over = max(0, length + 1 - self.context_images)
        kept = length - -(-over // window) * window
        if kept < (0 if self.has_bos else 1):
            raise PromptError(
                f"the model's context holds {self.context_images} images: dropping {window} at a time leaves no prompt"
            )
        return [prompt[length - kept :] for prompt in prompts], min(images, self.context_images - kept)

    def _check_room(self, length: int, images: int, remedy: str = "") -> None:
        fits = self.context_images
        if length + images > fits:
            raise PromptError(
                f"{length} images and {images} more do not fit the model's context of {self.context} tokens: "
                f"at most {fits} images, the predicted ones included{remedy}"
            )
        if not length and not self.has_bos:
            raise PromptError("this model's vocabulary has no BOS: a prompt needs at least one image")

    def _framed(self, prompts: NDArray[np.int64]) -> NDArray[np.int64]:
        """`(B, K, 256)` ids as `(B, T)` with BOS before."""
        body = prompts.reshape(len(prompts), -1)
        return np.concatenate([np.full((len(body), 1), BOS), body], axis=1) if self.has_bos else body

    def _draw(
        self, prompts: NDArray[np.int64], uniforms: NDArray[np.float64], sampling: Sampling
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`(B, K, 256)` prompts, `(B, images, 256)` uniforms: ids and losses of the uniforms' shape, batch by batch."""
        framed, chances = self._framed(prompts), uniforms.reshape(len(prompts), -1)
        parts = []
        start = 0
        while start < len(framed):
            stop = min(start + self.batch_size, len(framed))
            # Copies of the last row, which is read once, fill the batch.
            rows = np.minimum(np.arange(start, start + self.batch_size), stop - 1)
            try:
                ids, losses = draw_tokens(self.model, framed[rows], chances[rows], sampling)
            except torch.OutOfMemoryError as error:
                self._halve_batch(error)
                continue
            parts.append((ids[: stop - start], losses[: stop - start]))
            start = stop
        ids, losses = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
        return ids.reshape(uniforms.shape), losses.reshape(uniforms.shape)

    def _halve_batch(self, error: torch.OutOfMemoryError) -> None:
        if self.batch_size == 1:
            raise PromptError(f"{self.device} has no memory for one prompt: {error}") from error
        self.batch_size //= 2
        log.warning("%s is out of memory; going on with %d prompts at a time", self.device, self.batch_size)
        torch.cuda.empty_cache()


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number or "0").isdecimal():
        raise DeviceError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs; use cpu")
    return name


def _by_length(prompts: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Row numbers in groups of one length, in order of first appearance."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[len(prompt)].append(row)
    return list(groups.values())


def _checked(ids: NDArray[np.integer]) -> NDArray[np.int64]:
    if ids.ndim != 2 or ids.shape[1] != TOKENS_PER_IMAGE or ids.dtype.kind not in "iu":
        raise PromptError(f"expected (images, 256) integer ids, got {ids.dtype} {ids.shape}")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= CODEBOOK_SIZE):
        raise PromptError(f"ids from {ids.min()} to {ids.max()}; codes are 0 to {CODEBOOK_SIZE - 1}")
    return ids.astype(np.int64)

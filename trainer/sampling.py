"""Drawing tokens from a Llama with a KV cache, and the losses of tokens that are given.

Prompts of one length run together. A prompt is read alone, once for all that share it; its keys and values lie in
buffers that are allocated once, so that a drawn token costs one forward pass of one position and no copy of the cache.
Ids from 8192 on are never drawn. The random numbers of a row depend on its seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from uvd.manifests.tokens import CODEBOOK_SIZE
from uvd.sequences import Seeds
from uvd.sequences.errors import UserError


class PromptError(UserError):
    """A prompt or setting that the model cannot take."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: first top-k, then top-p, on the probabilities at the temperature.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_k: so many of the likeliest tokens are drawn from; 0 for all.
        top_p: the smallest set of likeliest tokens whose probability adds up to this is drawn from; 1 for all.

    Raises:
        PromptError: for values out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise PromptError(
                f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: "
                "expected temperature >= 0, top_k >= 0, 0 < top_p <= 1"
            )


PLAIN = Sampling()
"""The model's own distribution over the codes."""


def choose(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draws one id a row by inverting the cumulative distribution.

    Args:
        logits: `(B, V)`.
        uniforms: `(B,)` float64 in [0, 1).

    Returns:
        `(B,)` int64 in [0, V).
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    scaled = logits.double()
    scaled = (scaled - scaled.amax(dim=1, keepdim=True)) / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        scaled = scaled.masked_fill(scaled < _threshold(scaled, sampling), -torch.inf)
    # Cumulated in the order of ids, not of probabilities: a near tie in the order then moves no other token.
    sums = scaled.exp().cumsum(dim=1)
    targets = uniforms[:, None] * sums[:, -1:]
    # A target is below the last sum, so the first sum above it belongs to a token that has probability.
    return torch.searchsorted(sums, targets, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _threshold(scaled: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`(B, 1)`: the smallest logit that is drawn from. Equal logits stay or go together."""
    count = min(sampling.top_k or scaled.shape[1], scaled.shape[1])
    best = scaled.topk(count, dim=1).values
    if sampling.top_p == 1:
        return best[:, -1:]
    weights = best.softmax(dim=1)
    # The token that reaches top_p still counts: what lies before it has not reached it.
    kept = (weights.cumsum(dim=1) - weights < sampling.top_p).sum(dim=1, keepdim=True)
    return best.gather(1, kept - 1)


def uniforms_of(seed: int, count: int) -> NDArray[np.float64]:
    """The random numbers of one row, `(count,)` in [0, 1): a function of the seed; a longer row begins the same."""
    return Seeds(seed, ("trainer", "prompt")).generator().random(count)


class _BufferLayer(DynamicLayer):
    """Keys and values of one layer in buffers of `batch` rows and `room` positions; gives views of what is filled."""

    def __init__(self, batch: int, room: int) -> None:
        super().__init__()
        self.batch, self.room = batch, room
        self.rows = slice(0, batch)
        self.filled = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def buffer(states: torch.Tensor) -> torch.Tensor:
            return states.new_empty((self.batch, states.shape[1], self.room, states.shape[3]))

        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[2]
        self.keys[self.rows, :, self.filled : end] = key_states
        self.values[self.rows, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[self.rows, :, :end], self.values[self.rows, :, :end]

    def get_seq_length(self) -> int:
        return self.filled

    def copy_row(self, source: int, target: int) -> None:
        for buffer in (self.keys, self.values):
            buffer[target, :, : self.filled] = buffer[source, :, : self.filled]


class _BufferCache(Cache):
    def __init__(self, model: LlamaForCausalLM, batch: int, room: int) -> None:
        self.buffers = [_BufferLayer(batch, room) for _ in range(model.config.num_hidden_layers)]
        super().__init__(layers=list(self.buffers))

    def read_row(self, row: int) -> None:
        """Starts one row anew; the next forward pass is of that row alone."""
        for layer in self.buffers:
            layer.rows, layer.filled = slice(row, row + 1), 0

    def read_all(self) -> None:
        for layer in self.buffers:
            layer.rows = slice(0, layer.batch)

    def cut(self, length: int) -> None:
        """Forgets what lies behind the first `length` positions."""
        for layer in self.buffers:
            layer.filled = length

    def copy_row(self, source: int, target: int) -> None:
        for layer in self.buffers:
            layer.copy_row(source, target)


def _read_prompts(model: LlamaForCausalLM, prompts: torch.Tensor, room: int) -> tuple[_BufferCache, torch.Tensor]:
    """Reads `(B, T)` prompts one by one, equal ones once: the cache, and `(B, V)` float32 logits of what comes next."""
    cache = _BufferCache(model, len(prompts), room)
    first: dict[bytes, int] = {}
    logits: list[torch.Tensor] = []
    for row, prompt in enumerate(prompts.cpu().numpy()):
        known = first.setdefault(prompt.tobytes(), row)
        if known < row:
            cache.copy_row(known, row)
            logits.append(logits[known])
            continue
        cache.read_row(row)
        output = model(input_ids=prompts[row : row + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits.append(output.logits[0, -1].float())
    cache.read_all()
    return cache, torch.stack(logits)


@torch.inference_mode()
def draw_tokens(
    model: LlamaForCausalLM,
    prompts: NDArray[np.int64],
    uniforms: NDArray[np.float64],
    sampling: Sampling,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draws the next tokens of prompts of one length.

    Args:
        prompts: `(B, T)` ids, T at least 1.
        uniforms: `(B, N)` random numbers in [0, 1), one for each token to draw.

    Returns:
        ids `(B, N)` in [0, 8192), and their losses `(B, N)`: -log p in nats under the model's whole, unchanged
        distribution, whatever the sampling.

    Raises:
        PromptError: if the model gives no numbers (NaN).
    """
    count = uniforms.shape[1]
    tokens = torch.from_numpy(prompts).to(model.device)
    chances = torch.from_numpy(uniforms).to(model.device)
    cache, logits = _read_prompts(model, tokens, prompts.shape[1] + count - 1)
    drawn = torch.empty((len(prompts), count), dtype=torch.int64, device=model.device)
    losses = torch.empty((len(prompts), count), dtype=torch.float32, device=model.device)
    for position in range(count):
        chosen = choose(logits[:, :CODEBOOK_SIZE], chances[:, position], sampling)
        drawn[:, position] = chosen
        losses[:, position] = cross_entropy(logits, chosen, reduction="none")
        if position + 1 < count:
            output = model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True)
            logits = output.logits[:, -1].float()
    return drawn.cpu().numpy(), _finite(losses)


@torch.inference_mode()
def losses_after(model: LlamaForCausalLM, prompt: NDArray[np.int64], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p in nats of given tokens after one prompt, which is read once. Answers run one by one.

    Args:
        prompt: `(T,)` ids, T at least 1.
        answers: `(B, N)` ids.

    Returns:
        `(B, N)` float64, under the model's whole vocabulary.

    Raises:
        PromptError: if the model gives no numbers (NaN).
    """
    count = answers.shape[1]
    targets = torch.from_numpy(answers).to(model.device)
    cache, first = _read_prompts(model, torch.from_numpy(prompt)[None].to(model.device), len(prompt) + count - 1)
    losses = torch.empty(targets.shape, dtype=torch.float32, device=model.device)
    for row, target in enumerate(targets):
        losses[row, :1] = cross_entropy(first, target[:1], reduction="none")
        if count > 1:
            cache.cut(len(prompt))
            logits = model(input_ids=target[None, :-1], past_key_values=cache, use_cache=True).logits[0]
            losses[row, 1:] = cross_entropy(logits.float(), target[1:], reduction="none")
    return _finite(losses)


def _finite(losses: torch.Tensor) -> NDArray[np.float64]:
    values = losses.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise PromptError("the model gives NaN or infinite losses: its weights are damaged")
    return values

"""The transformer on its workers: sharded by FSDP2 if there are several, each layer compiled or recomputed as asked.

Layers are the unit of all three: one is gathered (`fully_shard`), compiled or kept for the backward pass at a time.
Several workers hold 16 bytes a parameter together, and each one gathered layer; the first also has the initial
weights in main memory once, while they are handed out. One worker is not sharded and pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from uvd.tokenize.workers import Workers
from uvd.trainer.config import TrainConfig
from uvd.trainer.model import build_model


def build_parallel(config: TrainConfig, workers: Workers) -> LlamaForCausalLM:
    """The model of a run, freshly initialised, ready to train; the weights are the same for any number of workers."""
    if workers.count == 1:
        model = build_model(config.size, context=config.context_length, seed=config.seed, device=workers.device)
        _prepare_layers(model, config)
        return model
    model = build_model(config.size, context=config.context_length, device="meta")
    _prepare_layers(model, config)
    low = torch.bfloat16 if uses_bf16(config, workers.device) else None
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=precision)
    fully_shard(model, mp_policy=precision)
    model.to_empty(device=workers.device)
    # Not a weight, so not handed out below.
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(workers.device)
    whole = build_model(config.size, context=config.context_length, seed=config.seed) if workers.rank == 0 else None
    set_model_state_dict(
        model,
        whole.state_dict() if whole is not None else {},
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    )
    return model


def _prepare_layers(model: LlamaForCausalLM, config: TrainConfig) -> None:
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.compile:
        for layer in model.model.layers:
            layer.compile()


def uses_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16; sums, norms' statistics and the loss are in float32 either way."""
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def forward_precision(
    model: torch.nn.Module, config: TrainConfig, device: torch.device
) -> AbstractContextManager[object]:
    """The context of a forward pass: autocast for one worker; sharded weights are gathered in bfloat16 already."""
    if isinstance(model, FSDPModule) or not uses_bf16(config, device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def exchange_gradients(model: torch.nn.Module, now: bool) -> None:
    """Whether the next backward pass sums the gradients over the workers: once a step, after its last micro batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def clip_gradients(model: torch.nn.Module, largest: float) -> torch.Tensor:
    """Scales the gradients to a norm of at most `largest`; returns the norm that they had over all workers."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest).detach()
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def whole_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights by name, gathered from the workers and copied to main memory in turn; all workers must iterate."""
    for name, weight in model.state_dict().items():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        yield name, whole.detach().to("cpu", copy=True).contiguous()

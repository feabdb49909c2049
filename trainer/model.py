"""The visual transformer: a plain `transformers.LlamaForCausalLM` in the sizes of the LVM paper, and four for a CPU.

Vocabulary 8292, untied embeddings, RMSNorm eps 1e-6, initial standard deviation 0.02, rotary positions, SDPA attention
(arXiv 2312.00785, section 3.3 and the released configs). Costs 4 bytes a parameter, 16 with gradients and AdamW state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from uvd.manifests.tokens import BOS, EOS, PAD, VOCAB_SIZE
from uvd.sequences import Seeds
from uvd.sequences.errors import UserError


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The numbers that tell one size from another.

    Attributes:
        hidden: width of the residual stream.
        ffn: width of the gated feed-forward layer.
        layers: number of decoder layers.
        heads: attention heads; the head dimension is hidden / heads.
        context: longest sequence in tokens.
        rope_theta: base of the rotary wavelengths.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    context: int = 4096
    rope_theta: float = 10_000.0


SIZES = {
    "atto": ModelSize(8, 24, 1, 1, context=2064),
    "femto": ModelSize(16, 48, 1, 1, context=2064),
    "pico": ModelSize(32, 96, 1, 1, context=2064),
    "tiny": ModelSize(192, 512, 4, 3, context=2064),
    "100m": ModelSize(640, 1664, 22, 10),
    "300m": ModelSize(1024, 2688, 22, 8),
    "600m": ModelSize(1536, 4096, 22, 16),
    "1b": ModelSize(2048, 5504, 22, 16),
    "3b": ModelSize(3200, 8640, 26, 32),
    "7b": ModelSize(4096, 11008, 32, 32),
}


class UnknownSizeError(UserError):
    """A model size that is not in `SIZES`."""


def model_config(size: str, context: int | None = None) -> LlamaConfig:
    """The Hugging Face config of a size.

    Args:
        size: a key of `SIZES`.
        context: longest sequence in tokens, instead of the size's own.

    Raises:
        UnknownSizeError: for a name that is not in the table.
    """
    if size not in SIZES:
        raise UnknownSizeError(f"unknown model size {size!r}; there are {', '.join(SIZES)}")
    shape = SIZES[size]
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=context or shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def build_model(
    size: str, *, context: int | None = None, seed: int = 0, device: torch.device | str = "cpu"
) -> LlamaForCausalLM:
    """A freshly initialised float32 model; the weights are a function of size and seed.

    On the `meta` device nothing is allocated, which is enough to count parameters.
    """
    draw = Seeds(seed, ("trainer", "init")).generator().integers(2**63)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draw))
        with torch.device("meta" if str(device) == "meta" else "cpu"):
            model = LlamaForCausalLM._from_config(model_config(size, context), attn_implementation="sdpa")
    return model if str(device) == "meta" else model.to(device)


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

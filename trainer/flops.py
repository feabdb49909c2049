"""What a token costs a transformer to train and what devices can do: both sides of model FLOPs utilisation (MFU)."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations a second, from the makers' data sheets; the longest name that fits counts."""


def flops_per_token(config: LlamaConfig, context: int) -> float:
    """Floating-point operations of a forward and a backward pass for one token, as PaLM counts them (arXiv 2204.02311,
    appendix B): 6 a weight that multiplies, and 12 x layers x width x context for attention, its causal half counted
    twice as that paper does. The input embedding multiplies nothing; recomputed activations do not count.
    """
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_width = config.num_key_value_heads * head_dim
    attention = config.hidden_size * (2 * heads * head_dim + 2 * kv_width)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    weights = config.num_hidden_layers * layer + config.hidden_size * config.vocab_size
    return 6.0 * weights + 12.0 * config.num_hidden_layers * heads * head_dim * context


def peak_flops(device: torch.device) -> float:
    """Bfloat16 operations a second that a device can do at most; 0 for a CPU or a device that is not in the table."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    fitting = [known for known in PEAK_BF16 if known in name]
    return PEAK_BF16[max(fitting, key=len)] if fitting else 0.0

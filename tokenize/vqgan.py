"""The VQGAN of the taming-transformers family that LVM took its tokens from (open-muse's `VQGANModel`).

Convolutional encoder and decoder around a codebook (Esser et al., 2021, arXiv 2012.09841). Names of parameters and the
order of operations follow the published checkpoints, so those load unchanged and give the same ids. LVM's encoder
costs 217 GFLOPs a 256x256 image; cost grows with the square of `hidden_channels`.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

MAX_CONFIG_BYTES = 1 << 20
UNWRITTEN_DEFAULTS = ("pixel_range", "lone_attention")
"""Keys that `config.json` holds only when they differ from their default: older fingerprints stay what they are."""
SEARCH_ROWS = 2048
"""Latents compared with the codebook at once: 64 MB of distances at 8192 codes, whatever the batch."""


class VQGANError(ValueError):
    """A config or an input that this family of models cannot take; the message names it."""


class VQGANConfig(BaseModel):
    """What a checkpoint's `config.json` says. Nothing that shapes the model has a default, except the last three keys,
    which published configs do not have.

    Keys that start with an underscore (`_class_name`, `_version`) are ignored; any other unknown key is an error,
    because it may change the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    attn_resolutions: tuple[int, ...]
    """Feature-map sizes, at an input of `resolution`, whose stages get attention blocks."""
    channel_mult: tuple[int, ...] = Field(min_length=1, max_length=8)
    """Width of each stage in units of `hidden_channels`; every stage but the last halves the picture."""
    commitment_cost: float = Field(ge=0, le=100)
    dropout: float = Field(ge=0, lt=1)
    hidden_channels: int = Field(ge=1, le=1024)
    no_attn_mid_block: bool
    num_channels: int = Field(ge=1, le=16)
    num_embeddings: int = Field(ge=1, le=1 << 20)
    num_res_blocks: int = Field(ge=1, le=16)
    quantized_embed_dim: int = Field(ge=1, le=4096)
    resample_with_conv: bool
    resolution: int = Field(ge=8, le=4096)
    z_channels: int = Field(ge=1, le=4096)
    norm_groups: int = Field(32, ge=0, le=1024)
    """Groups of every GroupNorm; 0 for no norms, which `linear_start` needs. The published models all have 32 and their
    configs do not name it."""
    pixel_range: Literal["unit", "symmetric"] = "unit"
    """What encoder and decoder were trained on: [0, 1] (open-muse) or [-1, 1] (taming-transformers). Pixels of this
    class's users are in [0, 1] either way. Scaling cannot be folded into the first convolution, whose zero padding
    is black in the one range and grey in the other."""
    lone_attention: bool = False
    """Whether a stage that holds one attention block uses it (taming-transformers); see `Stage.forward`."""

    @model_validator(mode="after")
    def _consistent(self) -> VQGANConfig:
        for channels in self.stage_channels:
            if channels < 1 or channels > 8192:
                raise ValueError(f"a stage of {channels} channels: hidden_channels x channel_mult must be 1 to 8192")
            if self.norm_groups and channels % self.norm_groups:
                raise ValueError(f"a stage of {channels} channels does not divide into {self.norm_groups} groups")
        if self.resolution % self.downsampling:
            raise ValueError(f"resolution {self.resolution} is not a multiple of {self.downsampling}")
        return self

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return tuple(self.hidden_channels * mult for mult in self.channel_mult)

    @property
    def downsampling(self) -> int:
        """Pixels a side that one token stands for: the f of "f=16"."""
        return 2 ** (len(self.channel_mult) - 1)

    def stage_resolution(self, level: int) -> int:
        return self.resolution // 2**level

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VQGANConfig:
        """Raises VQGANError naming every missing, unknown or impossible key."""
        try:
            return cls.model_validate({k: v for k, v in values.items() if not k.startswith("_")})
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
            raise VQGANError("not a VQGAN config: " + "; ".join(problems)) from error

    @classmethod
    def from_file(cls, path: Path) -> VQGANConfig:
        """Raises VQGANError when the file is missing, too large, not JSON or not such a config."""
        try:
            with path.open("rb") as file:
                text = file.read(MAX_CONFIG_BYTES + 1)
            if len(text) > MAX_CONFIG_BYTES:
                raise VQGANError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
            values = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise VQGANError(f"{path}: {error}") from error
        if not isinstance(values, dict):
            raise VQGANError(f"{path}: not a JSON object")
        try:
            return cls.from_dict(values)
        except VQGANError as error:
            raise VQGANError(f"{path}: {error}") from error

    def to_json(self) -> str:
        values = self.model_dump(mode="json")
        for key in UNWRITTEN_DEFAULTS:
            if values[key] == type(self).model_fields[key].default:
                del values[key]
        return json.dumps(values, indent=1, sort_keys=True) + "\n"


def _norm(config: VQGANConfig, channels: int) -> nn.Module:
    if not config.norm_groups:
        return nn.Identity()
    return nn.GroupNorm(config.norm_groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    def __init__(self, config: VQGANConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the feature map."""

    def __init__(self, config: VQGANConfig, channels: int) -> None:
        super().__init__()
        self.norm = _norm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as the published weights expect


class Upsample(nn.Module):
    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Stage(nn.Module):
    """Residual blocks of one resolution, then a change of resolution except at the end of the chain."""

    def __init__(self, config: VQGANConfig, channels: tuple[int, int], num_blocks: int, resolution: int) -> None:
        super().__init__()
        widths = [channels[0]] + [channels[1]] * num_blocks
        self.block = nn.ModuleList(ResidualBlock(config, a, b) for a, b in pairwise(widths))
        attends = resolution in config.attn_resolutions
        self.attn = nn.ModuleList(AttentionBlock(config, channels[1]) for _ in range(num_blocks if attends else 0))
        self.fewest_attending = 1 if config.lone_attention else 2

    def forward(self, x: Tensor) -> Tensor:
        # open-muse tests for more than one attention block, so that a stage with a single one (an encoder with
        # num_res_blocks 1) holds its weights and does not use them. Published ids depend on it. taming does use them.
        attends = len(self.attn) >= self.fewest_attending
        for index, block in enumerate(self.block):
            x = block(x)
            if attends:
                x = self.attn[index](x)
        return x


class DownStage(Stage):
    def __init__(self, config: VQGANConfig, level: int) -> None:
        widths = (config.hidden_channels, *config.stage_channels)
        super().__init__(
            config, (widths[level], widths[level + 1]), config.num_res_blocks, config.stage_resolution(level)
        )
        last = level == len(config.channel_mult) - 1
        self.downsample = None if last else Downsample(widths[level + 1], config.resample_with_conv)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(x)


class UpStage(Stage):
    def __init__(self, config: VQGANConfig, level: int) -> None:
        widths = (*config.stage_channels, config.stage_channels[-1])
        super().__init__(
            config, (widths[level + 1], widths[level]), config.num_res_blocks + 1, config.stage_resolution(level)
        )
        self.upsample = None if level == 0 else Upsample(widths[level], config.resample_with_conv)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)


class MiddleBlock(nn.Module):
    def __init__(self, config: VQGANConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(config, channels, channels)
        self.attn_1 = None if config.no_attn_mid_block else AttentionBlock(config, channels)
        self.block_2 = ResidualBlock(config, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if self.attn_1 is not None:
            x = self.attn_1(x)
        return self.block_2(x)


class Encoder(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        top = config.stage_channels[-1]
        self.conv_in = nn.Conv2d(config.num_channels, config.hidden_channels, 3, padding=1)
        self.down = nn.ModuleList(DownStage(config, level) for level in range(len(config.channel_mult)))
        self.mid = MiddleBlock(config, top)
        self.norm_out = _norm(config, top)
        self.conv_out = nn.Conv2d(top, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        top, bottom = config.stage_channels[-1], config.stage_channels[0]
        self.conv_in = nn.Conv2d(config.z_channels, top, 3, padding=1)
        self.mid = MiddleBlock(config, top)
        self.up = nn.ModuleList(UpStage(config, level) for level in range(len(config.channel_mult)))
        self.norm_out = _norm(config, bottom)
        self.conv_out = nn.Conv2d(bottom, config.num_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for stage in reversed(self.up):  # stored by ascending level, run from the coarsest
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def nearest_codes(latents: Tensor, codebook: Tensor, rows: int = SEARCH_ROWS) -> Tensor:
    """The codebook entry nearest to each latent in squared L2 distance, the first one on ties.

    Args:
        latents: (M, D), any float type; compared in fp32.
        codebook: (K, D).
        rows: latents compared at once; memory is `rows` x K floats for any M.

    Returns:
        (M,) int64.
    """
    codes = codebook.float().t()
    code_norms = codes.pow(2).sum(dim=0, keepdim=True)
    found = []
    for part in latents.float().split(rows):
        norms = part.pow(2).sum(dim=1, keepdim=True) + code_norms
        found.append(torch.addmm(norms, part, codes, alpha=-2.0).argmin(dim=1))
    return torch.cat(found)


class Codebook(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_embeddings, config.quantized_embed_dim)

    def ids(self, z: Tensor) -> Tensor:
        """(N, D, h, w) latents -> (N, h * w) int64 in raster order."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        return nearest_codes(flat, self.embedding.weight).view(z.shape[0], -1)

    def lookup(self, ids: Tensor, height: int, width: int) -> Tensor:
        """(N, height * width) ids -> (N, D, height, width)."""
        return self.embedding(ids).unflatten(1, (height, width)).permute(0, 3, 1, 2)


class VQGAN(nn.Module):
    """Encoder, codebook and decoder.

    Args:
        config: the checkpoint's own config.
        with_decoder: False leaves the decoder out, for encoding with less memory.
    """

    decoder: Decoder | None
    post_quant_conv: nn.Conv2d | None

    def __init__(self, config: VQGANConfig, with_decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.quantized_embed_dim, 1)
        self.quantize = Codebook(config)
        self.post_quant_conv = nn.Conv2d(config.quantized_embed_dim, config.z_channels, 1) if with_decoder else None
        self.decoder = Decoder(config) if with_decoder else None

    def latents(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] -> (N, D, H/f, W/f), before the codebook."""
        if self.config.pixel_range == "symmetric":
            images = images * 2 - 1
        return self.quant_conv(self.encoder(images))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """(N, D, h, w) codebook vectors -> (N, 3, h*f, w*f) around [0, 1], not clamped."""
        if self.decoder is None or self.post_quant_conv is None:
            raise VQGANError("this model was built without its decoder")
        images: Tensor = self.decoder(self.post_quant_conv(quantized))
        return (images + 1) / 2 if self.config.pixel_range == "symmetric" else images

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] -> (N, H/f * W/f) int64 ids in raster order."""
        return self.quantize.ids(self.latents(images))

    def decode(self, ids: Tensor, height: int, width: int) -> Tensor:
        """(N, height * width) ids -> (N, 3, height*f, width*f) float in [0, 1]."""
        return self.reconstruct(self.quantize.lookup(ids, height, width)).clamp(0, 1)

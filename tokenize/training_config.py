"""Settings of `uvd tokenizer train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uvd.manifests.tokens import CODEBOOK_SIZE
from uvd.sequences import IMAGE_SIZE
from uvd.tokenize.perceptual import PerceptualKind
from uvd.tokenize.vqgan import VQGANConfig

PLACE_SETTINGS = {"device", "num_threads", "num_workers", "perceptual_weights"}
"""Where a run is computed, not what: these may change when it is resumed."""


class TokenizerTrainConfig(BaseModel):
    """Settings of `uvd tokenizer train`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The model; see VQGANConfig.
    hidden_channels: int = 16
    channel_mult: tuple[int, ...] = (1, 2, 4, 8, 8)
    num_res_blocks: int = 1
    attn_resolutions: tuple[int, ...] = ()
    no_attn_mid_block: bool = True
    z_channels: int = 16
    quantized_embed_dim: int = 16
    num_embeddings: int = 8192
    norm_groups: int = 8

    seed: int = 0
    steps: int = Field(6000, ge=1)
    kmeans_step: int = Field(800, ge=0)
    """Steps as a plain autoencoder before the codebook is made."""
    freeze_encoder: bool = False
    """After that, train the decoder only: latents and codes stay put."""
    start_batches: int = Field(64, ge=1)
    """Batches that a model without norms takes its first weights from (`linear_start`)."""
    kmeans_batches: int = Field(96, ge=1)
    """Batches whose latents are clustered."""
    batch_size: int = Field(8, ge=1)
    """Crops a step, over all workers."""
    first_crop: int = Field(64, ge=16)
    """Side of the random crops before the codebook is made, a multiple of 16: many cheap steps."""
    crop: int = Field(96, ge=16)
    """Side of the random crops from then on."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak while the model is an autoencoder; falls to 2 % along a cosine."""
    second_rate: float = Field(0.25, gt=0)
    """Peak after the codebook is made, as a share of the first; another cosine."""
    warmup_steps: int = Field(200, ge=0)

    l1_weight: float = Field(1.0, ge=0)
    l2_weight: float = Field(4.0, ge=0)
    perceptual: PerceptualKind = "auto"
    """auto: LPIPS or MobileNetV2 if their weights are at hand, else `contrast`, which needs none."""
    perceptual_weight: float = Field(0.1, ge=0)
    perceptual_weights: Path | None = None
    """torchvision's MobileNetV2 file, for `mobilenet`."""
    adversarial_weight: float = Field(0.8, ge=0)
    """Share of the discriminator's gradient against that of the reconstruction, at the last layer; 0 for none."""
    adversarial_step: int = Field(4000, ge=0)
    """The step from which the discriminator takes part."""
    discriminator_channels: int = Field(32, ge=8, multiple_of=8)
    discriminator_layers: int = Field(3, ge=1, le=5)

    codebook: Literal["ema", "linear"] = "linear"
    """How codes follow the latents: `ema`, each the running mean of its latents; `linear`, one learned matrix moves all
    of them together, so none is left behind."""
    commitment_cost: float = 0.25
    codebook_decay: float = Field(0.995, gt=0, lt=1)
    """Of the running counts (and sums) of each code."""
    revive_below: float = Field(0.01, ge=0)
    """A code chosen less often than this a step, on average, is replaced by a latent of the batch."""
    ema_decay: float = Field(0.998, ge=0, lt=1)
    """Of the exported weights."""
    clip_norm: float = Field(1.0, gt=0)

    max_pictures: int = Field(100_000, ge=1)
    """Of a dataset: they are decoded once into the run's folder, 196,608 bytes each."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocasts the networks; losses and codebook stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    num_threads: int = Field(2, ge=1)
    num_workers: int = Field(1, ge=1)
    """Ray Train workers, each with its share of every batch."""
    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1)
    """Steps between exports, each with a sheet of reconstructions and a state to resume from."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kmeans_step >= self.steps:
            raise ValueError(f"kmeans_step {self.kmeans_step} must come before the last of {self.steps} steps")
        stride = self.model.downsampling
        for crop in (self.first_crop, self.crop):
            if crop % stride or crop > IMAGE_SIZE:
                raise ValueError(f"crop {crop} is not a multiple of {stride} up to {IMAGE_SIZE}")
        if self.num_embeddings > CODEBOOK_SIZE:
            raise ValueError(f"{self.num_embeddings} codes are more than the vocabulary's {CODEBOOK_SIZE}")
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size {self.batch_size} does not divide among {self.num_workers} workers")
        return self

    @property
    def model(self) -> VQGANConfig:
        shared = {name: getattr(self, name) for name in VQGANConfig.model_fields if name in type(self).model_fields}
        return VQGANConfig(**shared, dropout=0.0, num_channels=3, resample_with_conv=True, resolution=IMAGE_SIZE)

    @property
    def identity(self) -> str:
        """What a resumed run must share with the one that it continues."""
        return self.model_dump_json(exclude=PLACE_SETTINGS)

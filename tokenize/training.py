"""Training a VQGAN tokenizer on pictures: L1 + L2 reconstruction, k-means start of the codebook, EMA codebook updates.

The model first learns as a plain autoencoder; then its latents are clustered into the codebook (k-means) and training
goes on through the quantizer with the straight-through estimator (van den Oord et al., 2017). Codes that no latent
chooses are revived with latents of the batch. Exported weights are an exponential moving average.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import save_file

from uvd.manifests.sheet import contact_sheet, save_png
from uvd.manifests.tokens import CODEBOOK_SIZE
from uvd.sequences import IMAGE_SIZE, Seeds
from uvd.tokenize.linear_start import linear_start
from uvd.tokenize.picture_pool import PicturePool, pool_digest
from uvd.tokenize.quantizer import TrainedCodebook
from uvd.tokenize.tokenizer import TokenizerError
from uvd.tokenize.vqgan import VQGAN, ResidualBlock, VQGANConfig

STATE = "training_state.pt"
LOG = "training.jsonl"


class TokenizerTrainConfig(BaseModel):
    """Settings of `uvd tokenizer train`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The model; see VQGANConfig.
    hidden_channels: int = 16
    channel_mult: tuple[int, ...] = (1, 2, 4, 8, 8)
    num_res_blocks: int = 1
    z_channels: int = 16
    quantized_embed_dim: int = 16
    num_embeddings: int = 8192
    norm_groups: int = 8

    seed: int = 0
    steps: int = Field(6000, ge=1)
    kmeans_step: int = Field(800, ge=0)
    """Steps as a plain autoencoder before the codebook is made."""
    freeze_encoder: bool = True
    """After that, train the decoder only: latents stay put, so every code of the k-means stays in use. False trains
    all, which needs a budget in which codes can be revived again and again."""
    start_batches: int = Field(64, ge=1)
    """Batches that a model without norms takes its first weights from (`linear_start`)."""
    kmeans_batches: int = Field(96, ge=1)
    """Batches whose latents are clustered."""
    batch_size: int = Field(8, ge=1)
    first_crop: int = Field(64, ge=16)
    """Side of the random crops before the codebook is made, a multiple of 16: many cheap steps."""
    crop: int = Field(96, ge=16)
    """Side of the random crops from then on."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak while the model is an autoencoder; falls to 2 % along a cosine."""
    second_rate: float = Field(0.25, gt=0)
    """Peak after the codebook is made, as a share of the first; another cosine."""
    warmup_steps: int = Field(200, ge=0)
    l1_weight: float = 1.0
    l2_weight: float = 4.0
    commitment_cost: float = 0.25
    codebook_decay: float = Field(0.995, gt=0, lt=1)
    """Of the running sums that each code is the mean of."""
    revive_below: float = Field(0.01, ge=0)
    """A code chosen less often than this a step, on average, is replaced by a latent of the batch."""
    ema_decay: float = Field(0.998, ge=0, lt=1)
    clip_norm: float = 1.0
    device: str = "cpu"
    num_threads: int = Field(2, ge=1)
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
        return self

    @property
    def model(self) -> VQGANConfig:
        return VQGANConfig(
            attn_resolutions=(),
            channel_mult=self.channel_mult,
            commitment_cost=self.commitment_cost,
            dropout=0.0,
            hidden_channels=self.hidden_channels,
            no_attn_mid_block=True,
            num_channels=3,
            num_embeddings=self.num_embeddings,
            num_res_blocks=self.num_res_blocks,
            quantized_embed_dim=self.quantized_embed_dim,
            resample_with_conv=True,
            resolution=256,
            z_channels=self.z_channels,
            norm_groups=self.norm_groups,
        )


class TokenizerTraining:
    """The state of one run: model, its moving average, codebook, optimizer, step."""

    def __init__(
        self, config: TokenizerTrainConfig, pool: PicturePool, out: Path, heldout: PicturePool | None = None
    ) -> None:
        torch.set_num_threads(config.num_threads)
        torch.manual_seed(config.seed)
        self.config, self.pool, self.out, self.heldout = config, pool, out, heldout
        self.seeds = Seeds(config.seed, ("tokenizer",))
        self.step = 0
        self.model = _place(VQGAN(config.model), config.device)
        if config.norm_groups:
            start_weights(self.model)
        else:
            crops = [self._batch("start", number) for number in range(config.start_batches)]
            linear_start(self.model, torch.cat(crops))
        self.average = _place(VQGAN(config.model), config.device)
        self.average.load_state_dict(self.model.state_dict())
        self.codebook = TrainedCodebook(
            self.model.quantize.embedding.weight, config.codebook_decay, config.revive_below
        )
        trained = [value for name, value in self.model.named_parameters() if not name.startswith("quantize.")]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)

    def run(self, say: Callable[[str], None]) -> None:
        """Trains to the last step, saving as it goes."""
        config = self.config
        self.out.mkdir(parents=True, exist_ok=True)
        started, begun_at = time.monotonic(), self.step
        _trim_log(self.out / LOG, self.step)
        with (self.out / LOG).open("a") as log:
            while self.step < config.steps:
                if self.step == config.kmeans_step:
                    say(f"step {self.step}: clustering latents into {config.num_embeddings} codes")
                    self._start_codebook()
                values = self._train_step()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    rate = (self.step - begun_at) * config.batch_size / (time.monotonic() - started)
                    record = {"step": self.step, **values, "crops_per_s": round(rate, 2)}
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                    say(f"step {self.step}/{config.steps}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.save()
                    if self.heldout is not None and self.step > config.kmeans_step:
                        measured = {"step": self.step, **self.measure(self.heldout)}
                        log.write(json.dumps(measured) + "\n")
                        say(", ".join(f"{k} {v}" for k, v in measured.items()))

    def _learning_rate(self) -> float:
        config = self.config
        if self.step < config.warmup_steps:
            return config.learning_rate * (self.step + 1) / config.warmup_steps
        first = (config.warmup_steps, config.kmeans_step, config.learning_rate)
        second = (config.kmeans_step, config.steps, config.learning_rate * config.second_rate)
        begin, end, peak = first if self.step < config.kmeans_step else second
        position = (self.step - begin) / max(1, end - begin)
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * position)))

    def _batch(self, stream: str, number: int) -> torch.Tensor:
        """`(B, 3, crop, crop)` float in [0, 1]: random pictures, places and mirror images, by the seed alone."""
        rng = self.seeds.generator(stream, number)
        side = self.config.first_crop if self.step < self.config.kmeans_step else self.config.crop
        crops = np.empty((self.config.batch_size, side, side, 3), np.uint8)
        for index, which in enumerate(rng.integers(len(self.pool), size=self.config.batch_size)):
            picture = self.pool[int(which)]
            top, left = rng.integers(0, np.array(picture.shape[:2]) - side + 1)
            crop = picture[top : top + side, left : left + side]
            crops[index] = crop[:, ::-1] if rng.integers(2) else crop
        return self._tensor(crops).contiguous(memory_format=torch.channels_last)

    def _train_step(self) -> dict[str, float]:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        images = self._batch("batch", self.step)
        frozen = config.freeze_encoder and self.step >= config.kmeans_step
        with torch.set_grad_enabled(not frozen):
            latents = self.model.latents(images)
        quantized, commitment = latents, latents.new_zeros(())
        if self.step >= config.kmeans_step:
            quantized = self.codebook.quantize(latents, self.seeds.generator("revive", self.step))
            commitment = F.mse_loss(latents, quantized)
            quantized = latents + (quantized - latents).detach()
        difference = self.model.reconstruct(quantized) - images
        squared = difference.pow(2).mean()
        loss = config.l1_weight * difference.abs().mean() + config.l2_weight * squared
        loss = loss + config.commitment_cost * commitment
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; the last saved state is good")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return {
            "loss": round(loss.item(), 5),
            "psnr": round(-10 * math.log10(max(squared.item(), 1e-10)), 3),
            "commitment": round(commitment.item(), 5),
            "codes_used": self.codebook.used,
            "codebook_perplexity": round(self.codebook.perplexity, 1),
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """Goes on with the averaged weights, whose latents are clustered."""
        self.average.quantize.load_state_dict(self.model.quantize.state_dict())
        self.model.load_state_dict(self.average.state_dict())
        latents = [self.model.latents(self._batch("kmeans", number)) for number in range(self.config.kmeans_batches)]
        self.codebook.start(torch.cat(latents), len(latents), self.seeds.generator("kmeans"))

    def save(self) -> None:
        """Writes the export, a sheet, and the state to resume from, the state last and atomically."""
        # The codebook is a running mean already; averaging it again would only make it lag.
        self.average.quantize.load_state_dict(self.model.quantize.state_dict())
        export(self.average, self.out)
        save_png(self._sheet(), str(self.out / f"reconstructions-{self.step:06d}.png"))
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "codebook": self.codebook.state(),
            "optimizer": self.optimizer.state_dict(),
            "config": self._identity(),
        }
        temporary = self.out / f".{STATE}.part"
        torch.save(state, temporary)
        temporary.rename(self.out / STATE)

    def _identity(self) -> str:
        """Settings and pictures: what a resumed run must share with the one that it continues."""
        return f"{self.config.model_dump_json(exclude={'device', 'num_threads'})} {pool_digest(self.pool)}"

    def resume(self) -> None:
        """Goes on from the state in `out`: the same numbers as if the run had not stopped.

        Raises:
            TokenizerError: if that state belongs to other settings.
        """
        state: dict[str, Any] = torch.load(self.out / STATE, map_location=self.config.device, weights_only=True)
        if state["config"] != self._identity():
            raise TokenizerError(f"{self.out / STATE} was made with other settings or pictures")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.codebook.load(state["codebook"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def measure(self, pictures: PicturePool) -> dict[str, float]:
        """Mean PSNR (dB) of whole pictures through the codebook, and how many codes they use."""
        psnr, used = [], torch.zeros(self.config.num_embeddings, dtype=torch.bool, device=self.config.device)
        for index in range(len(pictures)):
            image = self._tensor(pictures[index][None])
            ids = self.average.encode(image)
            side = image.shape[2] // self.config.model.downsampling
            error = float((self.average.decode(ids, side, side) - image).pow(2).mean())
            psnr.append(-10 * math.log10(max(error, 1e-10)))
            used[ids] = True
        return {"heldout_psnr": round(float(np.mean(psnr)), 3), "heldout_codes": int(used.sum())}

    def _tensor(self, pictures: NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [0, 1], channels last, on the device."""
        return torch.from_numpy(pictures).to(self.config.device).permute(0, 3, 1, 2).float().div(255)

    @torch.no_grad()
    def _sheet(self) -> NDArray[np.uint8]:
        """Eight pictures of the pool above their reconstructions."""
        chosen = np.linspace(0, len(self.pool) - 1, 8).astype(int)
        originals = [self.pool[int(index)] for index in chosen]
        images = self._tensor(np.stack(originals))
        latents = self.average.latents(images)
        if self.step > self.config.kmeans_step:
            ids = self.average.quantize.ids(latents)
            latents = self.average.quantize.lookup(ids, latents.shape[2], latents.shape[3])
        decoded = self.average.reconstruct(latents).clamp(0, 1).mul(255).round().to(torch.uint8)
        rows = [*originals, *decoded.permute(0, 2, 3, 1).cpu().numpy()]
        return contact_sheet(rows, title=f"step {self.step}: pictures of the pool, reconstructions below")


def _trim_log(log: Path, step: int) -> None:
    """Drops what a killed run logged beyond the state it goes on from, so that each step is logged once."""
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        log.write_text("".join(kept))


@torch.no_grad()
def start_weights(model: VQGAN) -> None:
    """Initial weights that keep the variance of signals, residual blocks that start as identities, grey pictures.

    On a narrow model this is worth 3 dB after 100 steps over torch's default.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            torch.nn.init.zeros_(module.conv2.weight)
    assert model.decoder is not None
    model.decoder.conv_out.weight.mul_(0.3)
    assert model.decoder.conv_out.bias is not None
    model.decoder.conv_out.bias.fill_(0.5)


def _place(model: VQGAN, device: str) -> VQGAN:
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def export(model: VQGAN, out: Path) -> None:
    """Writes `config.json` and `model.safetensors` (fp16: half the size, ids change in the last bit only)."""
    state = {name: value.detach().half().contiguous().cpu() for name, value in model.state_dict().items()}
    temporary = out / ".model.safetensors.part"
    save_file(state, temporary)
    temporary.rename(out / "model.safetensors")
    (out / "config.json").write_text(model.config.to_json())


def train_tokenizer(
    config: TokenizerTrainConfig,
    pool: PicturePool,
    out: Path,
    *,
    heldout: PicturePool | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Trains a tokenizer on a pool of pictures and leaves it in `out`, ready for `load_tokenizer`.

    Args:
        heldout: pictures never trained on, 256x256; measured at every export.
        resume: go on from the state in `out`, if there is one.
        say: called with one line of progress now and then.
    """
    if (out / STATE).exists() and not resume:
        raise TokenizerError(f"{out} holds a training run already: go on with --resume, or choose another folder")
    training = TokenizerTraining(config, pool, out, heldout)
    if resume and (out / STATE).exists():
        training.resume()
        say(f"going on from step {training.step}")
    training.run(say)

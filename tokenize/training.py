"""Training a VQGAN tokenizer: reconstruction, perceptual and adversarial losses, and a codebook that follows.

The model first learns as a plain autoencoder; then its latents are clustered into the codebook (k-means) and training
goes on through the quantizer with the straight-through estimator (van den Oord et al., 2017); later a discriminator
joins (Esser et al., 2021). Exported weights are an exponential moving average. On a CPU a resumed run repeats an
uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from uvd.manifests.sheet import contact_sheet, save_png
from uvd.sequences import Seeds
from uvd.tokenize.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    last_layer_gradient,
)
from uvd.tokenize.linear_start import linear_start, start_weights
from uvd.tokenize.perceptual import perceptual_loss
from uvd.tokenize.picture_pool import PicturePool, pool_digest
from uvd.tokenize.quantizer import EmaCodebook, LinearCodebook
from uvd.tokenize.tokenizer import TokenizerError
from uvd.tokenize.training_config import TokenizerTrainConfig
from uvd.tokenize.training_log import Progress, Record, TrainingLog
from uvd.tokenize.vqgan import VQGAN
from uvd.tokenize.workers import Workers

STATE = "training_state.pt"
LOG = "training.jsonl"
MEASURED = 512


@dataclass(frozen=True, slots=True)
class Upstream:
    """The loss of a batch: its gradient at the decoder's output, and its parts for the log."""

    gradient: Tensor
    parts: dict[str, Tensor]


class TokenizerTraining:
    """The state of one run: model, its moving average, codebook, discriminator, optimizers, step."""

    def __init__(
        self,
        config: TokenizerTrainConfig,
        pool: PicturePool,
        out: Path,
        heldout: PicturePool | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.workers = workers or Workers(config.device, config.num_threads)
        self.device = self.workers.device
        torch.manual_seed(config.seed)
        self.config, self.pool, self.out, self.heldout = config, pool, out, heldout
        self.seeds = Seeds(config.seed, ("tokenizer",))
        self.step = 0
        self.model = self._started()
        self.workers.share(self.model.state_dict().values())
        self.average = _place(VQGAN(config.model), self.device)
        self.average.load_state_dict(self.model.state_dict())
        kind = LinearCodebook if config.codebook == "linear" else EmaCodebook
        codes = self.model.quantize.embedding.weight
        self.codebook = kind(codes, config.codebook_decay, config.revive_below, self.workers.gather)
        loss = perceptual_loss(config.perceptual, config.perceptual_weights) if config.perceptual_weight else None
        self.perceptual = None if loss is None else loss.to(self.device)
        self.discriminator = self._make_discriminator()
        trained = [value for name, value in self.model.named_parameters() if not name.startswith("quantize.")]
        trained += self.codebook.parameters()
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)

    def _started(self) -> VQGAN:
        """The model with its first weights, the same on every worker."""
        model = VQGAN(self.config.model)
        if self.config.norm_groups:
            start_weights(model)
        else:
            batches = range(self.config.start_batches)
            linear_start(model, torch.cat([self._batch("start", number, whole=True).cpu() for number in batches]))
        return _place(model, self.device)

    def _make_discriminator(self) -> PatchDiscriminator | None:
        config = self.config
        if not config.adversarial_weight or config.adversarial_step >= config.steps:
            return None
        made = PatchDiscriminator(config.discriminator_channels, config.discriminator_layers).to(self.device)
        self.discriminator_optimizer = torch.optim.AdamW(
            made.parameters(), lr=config.learning_rate, betas=(0.5, 0.9), weight_decay=1e-4
        )
        return made

    @property
    def perceptual_kind(self) -> str:
        return "none" if self.perceptual is None else self.perceptual.kind

    def run(self, on_progress: Progress | None = None) -> None:
        """Trains to the last step, saving as it goes; `on_progress` is called with each record of the log."""
        config = self.config
        self.out.mkdir(parents=True, exist_ok=True)
        log = TrainingLog(self.out / LOG, self.step, on_progress) if self.workers.rank == 0 else None
        started, begun_at = time.monotonic(), self.step
        while self.step < config.steps:
            if self.step == config.kmeans_step:
                self._start_codebook()
            values = self._train_step()
            last = self.step == config.steps
            if log is not None and (self.step % config.log_every == 0 or last):
                rate = (self.step - begun_at) * config.batch_size / (time.monotonic() - started)
                log.write({"step": self.step, **values, "crops_per_s": round(rate, 2)})
            if log is not None and (self.step % config.save_every == 0 or last):
                self._save(log)
        self.workers.wait()
        if log is not None:
            log.close()

    def _learning_rate(self) -> float:
        """Two cosines, before and after the codebook is made, each with a linear warm-up."""
        config = self.config
        first = (0, config.kmeans_step, config.learning_rate)
        second = (config.kmeans_step, config.steps, config.learning_rate * config.second_rate)
        begin, end, peak = first if self.step < config.kmeans_step else second
        warm = min(1.0, (self.step - begin + 1) / max(1, config.warmup_steps))
        position = (self.step - begin) / max(1, end - begin)
        return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * position)))

    def _batch(self, stream: str, number: int, *, whole: bool = False) -> Tensor:
        """`(B, 3, crop, crop)` float in [0, 1]: random pictures, places and mirror images, by the seed alone.

        Args:
            whole: the batch of all workers, not this one's share.
        """
        rng = self.seeds.generator(stream, number)
        side = self.config.first_crop if self.step < self.config.kmeans_step else self.config.crop
        crops = np.empty((self.config.batch_size, side, side, 3), np.uint8)
        for index, which in enumerate(rng.integers(len(self.pool), size=self.config.batch_size)):
            picture = self.pool[int(which)]
            top, left = rng.integers(0, np.array(picture.shape[:2]) - side + 1)
            crop = picture[top : top + side, left : left + side]
            crops[index] = crop[:, ::-1] if rng.integers(2) else crop
        share = crops if whole else crops[self.workers.rank :: self.workers.count]
        return self._tensor(share).contiguous(memory_format=torch.channels_last)

    def _train_step(self) -> Record:
        config = self.config
        self._set_learning_rate()
        images = self._batch("batch", self.step)
        quantizing = self.step >= config.kmeans_step
        with self._autocast(), torch.set_grad_enabled(not (config.freeze_encoder and quantizing)):
            latents = self.model.latents(images).float()
        quantized, code_loss = latents, latents.new_zeros(())
        if quantizing:
            codes, commitment, pull = self.codebook.quantize(latents, self.seeds.generator("revive", self.step))
            code_loss = config.commitment_cost * commitment + pull
            self._share_codebook()
            quantized = latents + (codes - latents).detach()
        with self._autocast():
            decoded = self.model.reconstruct(quantized).float()
        upstream = self._upstream(decoded, images)
        self.optimizer.zero_grad(set_to_none=True)
        if code_loss.requires_grad:
            torch.autograd.backward([decoded, code_loss], [upstream.gradient, None])
        else:
            decoded.backward(upstream.gradient)
        self._update(self.optimizer)
        self._update_average()
        parts = {**upstream.parts, "code_loss": code_loss.detach()}
        if self._adversarial:
            parts["discriminator_loss"] = self._train_discriminator(decoded.detach(), images)
        self.step += 1
        return self._record(parts)

    @property
    def _adversarial(self) -> bool:
        return self.discriminator is not None and self.step >= self.config.adversarial_step

    def _upstream(self, decoded: Tensor, images: Tensor) -> Upstream:
        """The losses on the decoder's output, which is cut off here: each is differentiated once, the decoder once.

        Raises:
            FloatingPointError: if the loss is not a number.
        """
        config = self.config
        output = decoded.detach().requires_grad_()
        difference = output - images
        squared = difference.pow(2).mean()
        parts = {"l1": difference.abs().mean(), "l2": squared}
        loss = config.l1_weight * parts["l1"] + config.l2_weight * squared
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(output, images)
            loss = loss + config.perceptual_weight * parts["perceptual"]
        parts["loss"] = loss
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; the last saved state is good")
        (gradient,) = torch.autograd.grad(loss, output)
        if self._adversarial:
            assert self.discriminator is not None
            assert self.model.decoder is not None
            with self._autocast():
                parts["adversarial"] = -self.discriminator(output).float().mean()
            (pull,) = torch.autograd.grad(parts["adversarial"], output)
            last = [last_layer_gradient(decoded, self.model.decoder.conv_out.weight, g) for g in (gradient, pull)]
            self.workers.average(last)
            parts["adversarial_scale"] = adaptive_weight(*last)
            gradient = gradient + config.adversarial_weight * parts["adversarial_scale"] * pull
        return Upstream(gradient, {name: value.detach() for name, value in parts.items()})

    def _train_discriminator(self, decoded: Tensor, images: Tensor) -> Tensor:
        assert self.discriminator is not None
        with self._autocast():
            real, fake = self.discriminator(images).float(), self.discriminator(decoded).float()
        loss = discriminator_loss(real, fake)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._update(self.discriminator_optimizer)
        return loss.detach()

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        """One step with the workers' mean gradient, clipped."""
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.workers.average(parameter.grad for parameter in trained)
        norm = torch.nn.utils.clip_grad_norm_(trained, self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm.item()} at step {self.step}; the last saved state is good")
        optimizer.step()

    def _set_learning_rate(self) -> None:
        optimizers = [self.optimizer] if self.discriminator is None else [self.optimizer, self.discriminator_optimizer]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _record(self, parts: dict[str, Tensor]) -> Record:
        """This worker's losses; PSNR in dB; the codebook is all workers'."""
        squared = max(float(parts.pop("l2")), 1e-10)
        record: Record = {name: round(float(value), 5) for name, value in parts.items()}
        return record | {
            "psnr": round(-10 * math.log10(squared), 3),
            "codes_used": self.codebook.used,
            "codebook_perplexity": round(self.codebook.perplexity, 1),
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        self.codebook.refresh(decay)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """Goes on with the averaged weights, whose latents are clustered."""
        self.model.load_state_dict(self.average.state_dict())
        batches = range(self.config.kmeans_batches)
        latents = [self.model.latents(self._batch("kmeans", number)) for number in batches]
        self.codebook.start(torch.cat(latents), len(latents), self.seeds.generator("kmeans"))
        self._share_codebook()

    def _share_codebook(self) -> None:
        """Sums on GPUs depend on the order of threads: without this, workers' codes would drift apart by last bits."""
        self.workers.share([self.codebook.codes, *self.codebook.buffers()])

    def _save(self, log: TrainingLog) -> None:
        """Writes the export, a sheet, and the state to resume from, the state last and atomically."""
        with torch.no_grad():
            # Not the average of past codes: one that was revived would lie between its old place and the new one.
            self.average.quantize.embedding.weight.copy_(self.codebook.averaged())
        export(self.average, self.out)
        sheet = self._sheet()
        save_png(sheet, str(self.out / f"reconstructions-{self.step:06d}.png"))
        log.picture("reconstructions", sheet, self.step)
        temporary = self.out / f".{STATE}.part"
        torch.save(self._state(), temporary)
        temporary.rename(self.out / STATE)
        if self.heldout is not None and self.step > self.config.kmeans_step:
            log.write({"step": self.step, **self.measure(self.heldout)})

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "step": self.step,
            "config": self._identity(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "codebook": self.codebook.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        return state

    def _identity(self) -> str:
        return f"{self.config.identity} {self.perceptual_kind} {pool_digest(self.pool)}"

    def resume(self) -> None:
        """Goes on from the state in `out`: the same numbers as if the run had not stopped.

        Raises:
            TokenizerError: if that state belongs to other settings.
        """
        state: dict[str, Any] = torch.load(self.out / STATE, map_location=self.device, weights_only=True)
        if state["config"] != self._identity():
            raise TokenizerError(f"{self.out / STATE} was made with other settings or pictures")
        self.step = state["step"]
        for name in ("model", "average", "codebook", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

    @torch.no_grad()
    def measure(self, pictures: PicturePool) -> dict[str, float]:
        """Mean PSNR (dB) of whole pictures (at most 512) through the codebook, and how many codes they use."""
        psnr, used = [], torch.zeros(self.config.num_embeddings, dtype=torch.bool, device=self.device)
        for index in np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), MEASURED)).astype(int)):
            image = self._tensor(pictures[int(index)][None])
            ids = self.average.encode(image)
            side = image.shape[2] // self.config.model.downsampling
            error = float((self.average.decode(ids, side, side) - image).pow(2).mean())
            psnr.append(-10 * math.log10(max(error, 1e-10)))
            used[ids] = True
        return {"heldout_psnr": round(float(np.mean(psnr)), 3), "heldout_codes": int(used.sum())}

    def _tensor(self, pictures: NDArray[np.uint8]) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [0, 1], channels last, on the device."""
        return torch.from_numpy(np.array(pictures)).to(self.device).permute(0, 3, 1, 2).float().div(255)

    @torch.no_grad()
    def _sheet(self) -> NDArray[np.uint8]:
        """Eight pictures, held out if there are such, above their reconstructions."""
        pool = self.pool if self.heldout is None else self.heldout
        chosen = np.linspace(0, len(pool) - 1, 8).astype(int)
        originals = [pool[int(index)] for index in chosen]
        latents = self.average.latents(self._tensor(np.stack(originals)))
        if self.step > self.config.kmeans_step:
            ids = self.average.quantize.ids(latents)
            latents = self.average.quantize.lookup(ids, latents.shape[2], latents.shape[3])
        decoded = self.average.reconstruct(latents).clamp(0, 1).mul(255).round().to(torch.uint8)
        rows = [*originals, *decoded.permute(0, 2, 3, 1).cpu().numpy()]
        return contact_sheet(rows, title=f"step {self.step}: pictures, reconstructions below")


def _place(model: VQGAN, device: torch.device) -> VQGAN:
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def export(model: VQGAN, out: Path) -> None:
    """Writes `config.json` and `model.safetensors` (fp16: half the size, ids change in the last bit only)."""
    state = {name: value.detach().half().contiguous().cpu() for name, value in model.state_dict().items()}
    temporary = out / ".model.safetensors.part"
    save_file(state, temporary)
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    temporary.rename(out / "model.safetensors")
    (out / "config.json").write_text(model.config.to_json())


def train_tokenizer(
    config: TokenizerTrainConfig,
    pool: PicturePool,
    out: Path,
    *,
    heldout: PicturePool | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
    workers: Workers | None = None,
) -> None:
    """Trains a tokenizer on a pool of pictures and leaves it in `out`, ready for `load_tokenizer`.

    Args:
        heldout: pictures never trained on, 256x256; measured at every export.
        resume: go on from the state in `out`, if there is one.
        on_progress: called with each record of the log.
        workers: this worker among its peers; by default alone.

    Raises:
        TokenizerError: if `out` holds another run.
    """
    if (out / STATE).exists() and not resume:
        raise TokenizerError(f"{out} holds a training run already: go on with --resume, or choose another folder")
    training = TokenizerTraining(config, pool, out, heldout, workers)
    if resume and (out / STATE).exists():
        training.resume()
    training.run(on_progress)

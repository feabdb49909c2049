from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from uvd.tokenize.quantizer import TrainedCodebook
from uvd.tokenize.tokenizer import TokenizerError, load_tokenizer
from uvd.tokenize.training import LOG, STATE, TokenizerTrainConfig, TokenizerTraining, train_tokenizer
from uvd.tokenize.vqgan import nearest_codes

TINY = TokenizerTrainConfig(
    hidden_channels=8,
    channel_mult=(1, 1, 1, 1, 2),
    norm_groups=4,
    z_channels=8,
    quantized_embed_dim=4,
    num_embeddings=32,
    steps=6,
    kmeans_step=2,
    kmeans_batches=4,
    batch_size=4,
    first_crop=32,
    crop=48,
    warmup_steps=2,
    num_threads=1,
    log_every=1,
    save_every=3,
)


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


@pytest.fixture(scope="module")
def run(pool, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_tokenizer(TINY, pool, out, say=lambda line: None)
    return out


class Killed(Exception):  # noqa: N818 - not an error of the program
    """Stands for a kill between two steps."""


def losses(out: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (out / LOG).read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.mark.parametrize("killed_after", [3, 5])
def test_a_resumed_run_ends_in_the_same_bytes(run, pool, tmp_path, killed_after):
    def kill(line: str) -> None:
        if line.startswith(f"step {killed_after + (killed_after == 3)}/"):
            raise Killed

    with pytest.raises(Killed):
        train_tokenizer(TINY, pool, tmp_path, say=kill)
    train_tokenizer(TINY, pool, tmp_path, resume=True, say=lambda line: None)
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert dict(losses(tmp_path)) == dict(losses(run))


def test_each_step_is_logged_once_even_after_a_resume(run, pool, tmp_path):
    def kill(line: str) -> None:
        if line.startswith("step 5/"):
            raise Killed

    with pytest.raises(Killed):
        train_tokenizer(TINY, pool, tmp_path, say=kill)
    train_tokenizer(TINY, pool, tmp_path, resume=True, say=lambda line: None)
    assert losses(tmp_path) == losses(run)


def test_the_export_is_a_tokenizer(run, pool):
    tokenizer = load_tokenizer(run, "cpu", batch_size=2)
    ids = tokenizer.encode(pool[:2])
    assert ids.max() < 32
    assert tokenizer.decode(ids).shape == (2, 256, 256, 3)
    assert list(run.glob("reconstructions-*.png"))


def test_held_out_pictures_are_measured_through_the_codebook(pool, tmp_path):
    train_tokenizer(TINY, pool, tmp_path, heldout=pool[:3], say=lambda line: None)
    records = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    measured = [record for record in records if "heldout_psnr" in record]
    assert [record["step"] for record in measured] == [3, 6]
    tokenizer = load_tokenizer(tmp_path, "cpu", batch_size=1)
    ids = tokenizer.encode(pool[:3])
    errors = (tokenizer.decode(ids).astype(np.float64) - pool[:3]) / 255
    psnr = float(np.mean([-10 * math.log10(float((error**2).mean())) for error in errors]))
    assert measured[-1]["heldout_psnr"] == pytest.approx(psnr, abs=0.1)
    assert measured[-1]["heldout_codes"] == pytest.approx(len(np.unique(ids)), abs=3)


def test_other_settings_do_not_continue_a_run(run, pool):
    with pytest.raises(TokenizerError, match="other settings"):
        train_tokenizer(TINY.model_copy(update={"seed": 1}), pool, run, resume=True, say=lambda line: None)


def test_the_state_holds_no_code(run):
    state = torch.load(run / STATE, weights_only=True)
    assert state["step"] == 6


def test_a_loss_that_is_not_finite_stops_the_run(pool, tmp_path):
    training = TokenizerTraining(TINY, pool, tmp_path)
    with torch.no_grad():
        training.model.encoder.conv_in.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 0"):
        training.run(lambda line: None)


def test_training_learns_to_reconstruct(tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 1), np.uint8)
    squares = grey.repeat(32, axis=1).repeat(32, axis=2).repeat(3, axis=3)
    changes = {"steps": 70, "kmeans_step": 40, "batch_size": 8, "norm_groups": 2, "learning_rate": 2e-3}
    crops = {"first_crop": 64, "crop": 64, "save_every": 70}
    train_tokenizer(TINY.model_copy(update=changes | crops), squares, tmp_path, say=lambda line: None)
    values = [loss for _, loss in losses(tmp_path)]
    assert np.mean(values[30:40]) < 0.6 * np.mean(values[:5])  # as an autoencoder
    assert np.mean(values[-10:]) < 0.6 * np.mean(values[:5])  # and through the codebook


def make_codebook(codes: int, **settings: float) -> TrainedCodebook:
    return TrainedCodebook(torch.zeros(codes, 2), **({"decay": 0.9, "revive_below": 0.01} | settings))


def grid(points: torch.Tensor) -> torch.Tensor:
    """(M, 2) latents as a (1, 2, M, 1) feature map."""
    return points.t()[None, :, :, None]


def test_k_means_finds_the_clusters():
    rng = np.random.default_rng(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = centres.repeat(50, 1) + torch.from_numpy(rng.normal(0, 0.1, (200, 2))).float()
    codebook = make_codebook(16)
    codebook.start(grid(points), 1, rng)
    assert torch.isfinite(codebook.codes).all()
    nearest = codebook.codes[nearest_codes(points, codebook.codes)]
    assert (nearest - points).norm(dim=1).max() < 1


def test_codes_move_to_the_mean_of_their_latents_and_dead_ones_are_revived():
    rng = np.random.default_rng(0)
    codebook = make_codebook(4, revive_below=0.2)
    codebook.start(grid(torch.tensor([[0.0, 0.0], [5.0, 5.0], [50.0, 50.0], [-50.0, 9.0]])), 1, rng)
    latents = grid(torch.tensor([[0.0, 0.2], [5.2, 5.0]]).repeat(64, 1))
    for _ in range(200):
        quantized = codebook.quantize(latents, rng)
    assert torch.allclose(quantized, latents, atol=1e-2)
    assert codebook.codes.abs().max() < 6  # the two codes far from every latent came back
    assert 1 <= codebook.perplexity <= 4

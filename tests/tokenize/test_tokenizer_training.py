from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests_support import smooth_photo

from uvd.manifests.dataset import Dataset
from uvd.manifests.image_shard import ImageShardWriter
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.sequences import Picture, VisualSequence
from uvd.tokenize.adversarial import PatchDiscriminator, adaptive_weight, discriminator_loss, last_layer_gradient
from uvd.tokenize.quantizer import EmaCodebook, LinearCodebook, TrainedCodebook
from uvd.tokenize.tokenizer import TokenizerError, load_tokenizer
from uvd.tokenize.training import LOG, STATE, TokenizerTraining, train_tokenizer
from uvd.tokenize.training_config import TokenizerTrainConfig
from uvd.tokenize.training_log import TENSORBOARD, Record
from uvd.tokenize.training_worker import progress_line, train_on_workers
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
    perceptual="contrast",
    adversarial_step=4,
    discriminator_channels=8,
    discriminator_layers=1,
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
    train_tokenizer(TINY, pool, out)
    return out


class Killed(Exception):  # noqa: N818 - not an error of the program
    """Stands for a kill between two steps."""


def losses(out: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (out / LOG).read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def killed_at(step: int):
    def kill(record: Record) -> None:
        if record["step"] == step:
            raise Killed

    return kill


@pytest.mark.parametrize("codebook", ["linear", "ema"])
def test_a_resumed_run_ends_in_the_same_bytes(pool, tmp_path, codebook):
    config = TINY.model_copy(update={"codebook": codebook})
    train_tokenizer(config, pool, tmp_path / "whole")
    with pytest.raises(Killed):
        train_tokenizer(config, pool, tmp_path / "killed", on_progress=killed_at(5))
    train_tokenizer(config, pool, tmp_path / "killed", resume=True)
    whole, killed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.parametrize("killed_after", [4, 5])
def test_a_run_killed_before_and_after_the_discriminator_joined(run, pool, tmp_path, killed_after):
    with pytest.raises(Killed):
        train_tokenizer(TINY, pool, tmp_path, on_progress=killed_at(killed_after))
    train_tokenizer(TINY, pool, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert dict(losses(tmp_path)) == dict(losses(run))


def test_each_step_is_logged_once_even_after_a_resume(run, pool, tmp_path):
    with pytest.raises(Killed):
        train_tokenizer(TINY, pool, tmp_path, on_progress=killed_at(5))
    train_tokenizer(TINY, pool, tmp_path, resume=True)
    assert losses(tmp_path) == losses(run)


def test_the_export_is_a_tokenizer(run, pool):
    tokenizer = load_tokenizer(run, "cpu", batch_size=2)
    ids = tokenizer.encode(pool[:2])
    assert ids.max() < 32
    assert tokenizer.decode(ids).shape == (2, 256, 256, 3)
    assert list(run.glob("reconstructions-*.png"))


def test_held_out_pictures_are_measured_through_the_codebook(pool, tmp_path):
    train_tokenizer(TINY, pool, tmp_path, heldout=pool[:3])
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
        train_tokenizer(TINY.model_copy(update={"seed": 1}), pool, run, resume=True)


def test_the_state_holds_no_code(run):
    state = torch.load(run / STATE, weights_only=True)
    assert state["step"] == 6


def test_a_loss_that_is_not_finite_stops_the_run(pool, tmp_path):
    training = TokenizerTraining(TINY, pool, tmp_path)
    with torch.no_grad():
        training.model.encoder.conv_in.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 0"):
        training.run()


def test_training_learns_to_reconstruct(tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 1), np.uint8)
    squares = grey.repeat(32, axis=1).repeat(32, axis=2).repeat(3, axis=3)
    changes = {"steps": 70, "kmeans_step": 40, "batch_size": 8, "norm_groups": 2, "learning_rate": 2e-3}
    crops = {"first_crop": 64, "crop": 64, "save_every": 70, "perceptual": "none", "adversarial_weight": 0.0}
    train_tokenizer(TINY.model_copy(update=changes | crops), squares, tmp_path)
    values = [loss for _, loss in losses(tmp_path)]
    assert np.mean(values[30:40]) < 0.6 * np.mean(values[:5])  # as an autoencoder
    assert np.mean(values[-10:]) < 0.6 * np.mean(values[:5])  # and through the codebook


def make_codebook(codes: int, kind: type[TrainedCodebook] = EmaCodebook, **settings: float) -> TrainedCodebook:
    return kind(torch.zeros(codes, 2), **({"decay": 0.9, "revive_below": 0.01} | settings))


def grid(points: torch.Tensor) -> torch.Tensor:
    """(M, 2) latents as a (1, 2, M, 1) feature map."""
    return points.t()[None, :, :, None]


@pytest.mark.parametrize("kind", [EmaCodebook, LinearCodebook])
def test_k_means_finds_the_clusters(kind):
    rng = np.random.default_rng(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = centres.repeat(50, 1) + torch.from_numpy(rng.normal(0, 0.1, (200, 2))).float()
    codebook = make_codebook(16, kind)
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
        quantized, _, _ = codebook.quantize(latents, rng)
    assert torch.allclose(quantized, latents, atol=1e-2)
    assert codebook.codes.abs().max() < 6  # the two codes far from every latent came back
    assert 1 <= codebook.perplexity <= 4


def test_linear_codes_follow_latents_that_drift_and_all_stay_in_use():
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(0, 1, (256, 2))).float()
    codebook = make_codebook(64, LinearCodebook, revive_below=0.0)
    codebook.start(grid(points), 1, rng)
    optimizer = torch.optim.Adam(codebook.parameters(), lr=0.02)
    for step in range(200):
        _, _, pull = codebook.quantize(grid(points * (1 + step / 200)), rng)
        optimizer.zero_grad()
        pull.backward()
        optimizer.step()
        codebook.refresh(0.9)
    used = nearest_codes(points * 2, codebook.codes).unique()
    assert len(used) > 56
    assert torch.allclose(codebook.averaged(), codebook.codes, atol=0.2)


def test_a_dead_linear_code_becomes_a_latent():
    rng = np.random.default_rng(0)
    codebook = make_codebook(2, LinearCodebook, revive_below=0.2)
    codebook.start(grid(torch.tensor([[1.0, 0.0], [90.0, 90.0]])), 1, rng)
    with torch.no_grad():
        codebook.matrix.copy_(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))  # so that a centre is not its code
    for _ in range(200):
        codebook.quantize(grid(torch.tensor([[1.0, 0.5], [2.0, 3.0]]).repeat(64, 1)), rng)
    codebook.refresh(0.9)
    assert {tuple(code) for code in codebook.codes.round(decimals=3).tolist()} <= {(1.0, 0.5), (2.0, 3.0)}


def test_the_discriminator_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    real, fake = torch.rand(8, 3, 32, 32), torch.full((8, 3, 32, 32), 0.5)
    judge = PatchDiscriminator(8, 1)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    before = discriminator_loss(judge(real), judge(fake))
    for _ in range(30):
        loss = discriminator_loss(judge(real), judge(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * before
    assert judge(real).mean() > judge(fake).mean()


def test_the_adaptive_weight_makes_the_gradients_at_the_last_layer_equally_long():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 3, 3, padding=1)
    decoded = layer(torch.rand(2, 4, 8, 8))
    first, second = (last_layer_gradient(decoded, layer.weight, torch.rand_like(decoded) * k) for k in (1.0, 50.0))
    scaled = adaptive_weight(first, second) * second
    assert scaled.norm() == pytest.approx(float(first.norm()), rel=1e-3)
    assert adaptive_weight(first, torch.zeros_like(first)) == 1e4


def test_the_discriminator_joins_at_its_step_and_changes_the_decoder(run, pool, tmp_path):
    records = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    assert [record["step"] for record in records if "discriminator_loss" in record] == [5, 6]
    train_tokenizer(TINY.model_copy(update={"adversarial_weight": 0.0}), pool, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes()
    assert dict(losses(tmp_path))[4] == dict(losses(run))[4]


def test_the_same_numbers_go_to_tensorboard(run):
    assert list((run / TENSORBOARD).glob("events.*"))


def test_a_line_of_progress_names_step_and_losses():
    line = progress_line({"step": 350, "l1": 0.1, "loss": 0.125, "psnr": 22.5}, 8000)
    assert line == "step 350/8,000 · loss 0.125 · psnr 22.5"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"norm_groups": 0, "start_batches": 2, "channel_mult": (1, 2, 4, 8, 16)}])
def test_two_workers_of_ray_train_end_where_one_does(pool, tmp_path, changes):
    np.save(tmp_path / "pool.npy", pool, allow_pickle=False)
    config = TINY.model_copy(update={"adversarial_step": 3, **changes})
    train_on_workers(config, tmp_path / "one", pool=tmp_path / "pool.npy", use_ray=False)
    with ray_runtime(num_cpus=2):
        two = config.model_copy(update={"num_workers": 2})
        train_on_workers(two, tmp_path / "two", pool=tmp_path / "pool.npy")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        if not name.startswith("quantize."):  # k-means sees the same latents in another order
            # Sums in another order, six optimizer steps and fp16: close, not equal.
            assert torch.allclose(value.float(), second[name].float(), atol=2e-2), name
    assert len(losses(tmp_path / "two")) == len(losses(tmp_path / "one"))


def test_a_dataset_without_held_out_pictures_is_trained_on_all_the_same(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    with ImageShardWriter(dataset, "images", 0) as writer:
        for number in range(3):
            picture = Picture("image", smooth_photo(number, 256, 256), str(number), (256, 256))
            writer.add(VisualSequence((picture,), "single", "d", "train", frozenset({number})))
        writer.commit(3, [], "f")
    dataset.declare("sequences", "images", {"fingerprint": ""})
    tar = tmp_path / "d" / "sequences" / "images" / "000000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[512:600] = bytes(88)  # the first picture's JPEG header
    tar.write_bytes(damaged)
    for resume in (False, True):
        out = tmp_path / "run"
        train_on_workers(TINY, out, dataset=str(tmp_path / "d"), resume=resume, use_ray=False)
    pools = sorted(file.stat().st_size for file in out.glob("pictures-*.raw"))
    assert pools == [0, 2 * 256 * 256 * 3]  # nothing held out, and two of three pictures

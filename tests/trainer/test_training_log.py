"""What a line of the trainer's log says, and how a run is stopped and its losses are told apart."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from uvd.sequences import Seeds
from uvd.tokenize.training_log import read_log
from uvd.trainer import flops
from uvd.trainer.checkpoint import checkpoints
from uvd.trainer.config import TrainConfig
from uvd.trainer.data import IGNORE, PackedTokens, open_split
from uvd.trainer.flops import flops_per_token, peak_flops
from uvd.trainer.loss import SourceLosses, token_losses
from uvd.trainer.model import build_model
from uvd.trainer.train import TrainingStoppedError, train

CONTEXT = 600


def config(**more: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "size": "micro",
        "context": CONTEXT,
        "batch_tokens": 2 * CONTEXT,
        "steps": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "val_every": 0,
        "log_every": 1,
        "num_threads": 1,
    }
    return TrainConfig(**(values | more))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_is_bitwise_the_same(
    micro: str, make_dataset: Any, tmp_path: Path, number: signal.Signals
) -> None:
    uri, run = make_dataset(), tmp_path / "run"

    def send(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(TrainingStoppedError, match=r"step-00000[23] is saved, go on with --resume"):
        train(config(), uri, run, use_ray=False, on_progress=send)
    assert signal.getsignal(number) == before
    (saved,) = checkpoints(run)
    assert read_log(run / "log.jsonl")[-1]["step"] == int(saved.name.removeprefix("step-"))
    assert not (run / "model").exists()
    assert not (run / ".stop").exists()
    train(config(), uri, run, resume=True, use_ray=False)
    train(config(), uri, tmp_path / "calm", use_ray=False)
    losses = [[record["loss"] for record in read_log(path / "log.jsonl")] for path in (run, tmp_path / "calm")]
    assert losses[0] == losses[1]


def test_losses_by_source_add_up_to_the_loss(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset(sources=("images", "video"))
    train(config(val_every=6, val_tokens=10_000, steps=6), uri, tmp_path / "run", use_ray=False)
    last = read_log(tmp_path / "run/log.jsonl")[-1]
    for prefix in ("", "val_"):
        parts = [last[f"{prefix}loss/{source}"] for source in ("images", "video")]
        assert min(parts) < last[f"{prefix}loss"] < max(parts)
    # Of the held-out split, two sequences of each source, all tokens are measured but for the very first.
    assert last["val_loss"] == pytest.approx(
        sum(last[f"val_loss/{name}"] for name in ("images", "video")) / 2, rel=1e-3
    )


@pytest.mark.parametrize(("packing", "context"), [("concat", 600), ("concat", 100), ("aligned", 600), ("aligned", 300)])
def test_each_target_knows_its_source(make_dataset: Any, packing: Any, context: int) -> None:
    # Codes below 100 are of images; video has them too, but seldom.
    make_dataset(sources=("images",), ids=100)
    shards = open_split(make_dataset(sources=("video",)), "train").shards
    data = PackedTokens(shards, context=context, seeds=Seeds(0), packing=packing)
    targets, sources = [], []
    rows = -(-data.epoch_tokens // context)
    for _ in range(rows):
        batch = data.batch(2)
        labels = batch.tensors(torch.device("cpu"))[1].numpy()
        found = batch.sources()
        assert found.shape == labels.shape
        targets.append(labels[labels != IGNORE])
        sources.append(found[labels != IGNORE])
    target, source = np.concatenate(targets), np.concatenate(sources)
    assert shards.sources == ("images", "video")
    assert (source[(target >= 100) & (target < 8192)] == 1).all()
    assert (target[source == 0] < 100).mean() == pytest.approx(512 / 514, abs=0.01)
    assert (source == 1).mean() == pytest.approx(0.5, abs=0.03)


def test_source_sums_leave_out_what_has_no_label() -> None:
    sums = SourceLosses(("a", "b", "c"), torch.device("cpu"))
    labels = torch.tensor([[5, IGNORE, 7, 8]])
    sums.add(torch.tensor([[1.0, 0.0, 2.0, 4.0]]), labels, torch.tensor([[0, 0, 1, 1]]))
    assert sums.means() == {"a": 1.0, "b": 3.0}


def test_the_z_loss_is_the_square_of_the_log_of_the_sum(micro: str) -> None:
    model = build_model(micro)
    inputs = torch.randint(0, 8192, (2, 20))
    labels = inputs.roll(-1, 1)
    labels[:, -3:] = IGNORE
    losses, z_loss = token_losses(model, inputs, labels, config(z_loss=0.5))
    logits = model(input_ids=inputs).logits
    assert float(z_loss.detach()) == pytest.approx(0.5 * float(logits.logsumexp(-1)[:, :-3].square().sum()), rel=1e-5)
    assert float(losses.sum()) == pytest.approx(
        float(-logits.log_softmax(-1)[:, :-3].gather(-1, labels[:, :-3, None]).sum()), rel=1e-5
    )
    assert (losses[:, -3:] == 0).all()
    without, none = token_losses(model, inputs, labels, config())
    assert torch.equal(without, losses)
    assert float(none) == 0
    z_loss.backward()
    assert float(model.lm_head.weight.grad.abs().sum()) > 0


def test_operations_a_token_are_those_of_the_matrices() -> None:
    model = build_model("tiny")
    context = 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, context, dtype=torch.int64), use_cache=False)
    matrices = counter.get_flop_counts()["Global"]
    linear = sum(count for name, count in matrices.items() if "mm" in str(name) and "bmm" not in str(name))
    shape = model.config
    attention = 12 * shape.num_hidden_layers * shape.hidden_size * context
    assert flops_per_token(shape, context) == pytest.approx(3 * linear / context + attention)


def test_a_model_of_three_billion_weights_costs_six_times_that() -> None:
    model = build_model("3b", device="meta")
    weights = sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()
    assert flops_per_token(model.config, 0) == pytest.approx(6 * weights, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A10G", 70e12), ("Some GPU", 0.0)],
)
def test_peaks_are_found_by_the_longest_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr(flops.torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(SimpleNamespace(type="cuda")) == peak  # type: ignore[arg-type]
    assert peak_flops(torch.device("cpu")) == 0


def test_a_line_has_memory_and_a_share_of_the_peak(
    micro: str, make_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvd.trainer.train.peak_flops", lambda device: 1e12)
    train(config(steps=2), make_dataset(), tmp_path / "run", use_ray=False)
    last = read_log(tmp_path / "run/log.jsonl")[-1]
    per_token = flops_per_token(build_model("micro", context=CONTEXT, device="meta").config, CONTEXT)
    assert last["mfu"] == pytest.approx(last["tokens_per_s"] * per_token / 1e12, abs=1e-4)
    assert 0.05 < last["memory_gib"] < 24
    assert math.isfinite(last["data_s"])

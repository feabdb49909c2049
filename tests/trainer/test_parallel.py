"""Several workers: FSDP2 on gloo in two real processes, checkpoints that change their number, compiled layers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from uvd.manifests.dataset import Dataset
from uvd.tokenize.training_log import read_log
from uvd.trainer import model as models
from uvd.trainer.checkpoint import CheckpointError, checkpoints, load_checkpoint
from uvd.trainer.config import TrainConfig
from uvd.trainer.parallel import build_parallel
from uvd.trainer.pretrained import load_model
from uvd.trainer.train import train, train_worker

CONTEXT = 600
MICRO = models.ModelSize(32, 64, 2, 2, context=CONTEXT)


def config(**more: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "size": "micro",
        "context": CONTEXT,
        "batch_tokens": 4 * CONTEXT,
        "steps": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "val_every": 3,
        "val_tokens": 3 * CONTEXT,
        "log_every": 1,
        "num_threads": 1,
        "keep_checkpoints": 3,
    }
    return TrainConfig(**(values | more))


class StopHere(Exception):  # noqa: N818 - stands for a kill
    pass


def stop_in_step_4(record: dict[str, Any]) -> None:
    if record["step"] == 4:
        raise StopHere


def a_worker(rank: int, port: int, runs: list[dict[str, Any]]) -> None:
    models.SIZES["micro"] = MICRO
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for settings in runs:
        train_worker(settings)
    dist.destroy_process_group()


def run_two_workers(*runs: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(a_worker, (port, list(runs)), nprocs=2)


def settings(config: TrainConfig, uri: str, run: Path) -> dict[str, Any]:
    run.mkdir(exist_ok=True)
    return {"config": config.model_dump(mode="json"), "dataset": Dataset(uri).uri, "out": str(run)}


def numbers(run: Path, name: str = "loss") -> list[float]:
    return [record[name] for record in read_log(run / "log.jsonl") if name in record]


def test_two_sharded_workers_equal_one_and_their_checkpoints_are_exchanged(
    micro: str, make_dataset: Any, tmp_path: Path
) -> None:
    uri = make_dataset()
    one, two, from_one, masked = (tmp_path / name for name in ("one", "two", "from-one", "masked"))
    train(config(), uri, one, use_ray=False)
    with pytest.raises(StopHere):
        train(config(), uri, from_one, use_ray=False, on_progress=stop_in_step_4)
    layout = {"packing": "aligned", "mask_documents": True, "activation_checkpointing": True, "micro_batch": 2}
    run_two_workers(
        settings(config(num_workers=2), uri, two),
        settings(config(num_workers=2), uri, from_one),
        settings(config(num_workers=2, steps=2, **layout), uri, masked),
    )
    # Steps 4 to 6 of `from_one` are those of two workers, which went on from the checkpoint of one.
    for run in (two, from_one):
        for name in ("loss", "grad_norm", "val_loss", "loss/images", "val_loss/video"):
            assert numbers(run, name) == pytest.approx(numbers(one, name), rel=1e-4), name
    assert numbers(two)[0] != numbers(two)[5]
    weights = [load_model(run).state_dict() for run in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)

    assert [path.name for path in checkpoints(two)] == ["step-000003", "step-000006"]
    assert len(list((two / "checkpoints/step-000003/optimizer").iterdir())) == 2
    assert not list((two / "checkpoints").glob(".*"))
    (two / "checkpoints/step-000006").rename(tmp_path / "dropped")
    train(config(), uri, two, resume=True, use_ray=False)
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-4)
    assert len(list((two / "checkpoints/step-000006/optimizer").iterdir())) == 1

    alone = tmp_path / "alone"
    train(config(steps=2, **layout), uri, alone, use_ray=False)
    assert numbers(masked) == pytest.approx(numbers(alone), rel=1e-4)


def test_a_checkpoint_with_a_part_missing_is_refused(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    run, uri = tmp_path / "run", make_dataset()
    run_two_workers(settings(config(num_workers=2, steps=1), uri, run))
    (part,) = (run / "checkpoints/step-000001/optimizer").glob("shard-00002-*")
    part.unlink()
    with pytest.raises(CheckpointError, match="step-000001 cannot be loaded"):
        train(config(), uri, run, resume=True, use_ray=False)


def test_a_checkpoint_of_another_model_is_refused(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(steps=1), make_dataset(), run, use_ray=False)
    other = models.build_model("tiny")
    with pytest.raises(CheckpointError, match="step-000001 cannot be loaded"):
        load_checkpoint(checkpoints(run)[-1], other, torch.optim.AdamW(other.parameters()))


def test_recomputed_activations_change_nothing(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset()
    for name, more in (("kept", {}), ("again", {"activation_checkpointing": True})):
        train(config(steps=3, **more), uri, tmp_path / name, use_ray=False)
    assert numbers(tmp_path / "again") == numbers(tmp_path / "kept")


@pytest.mark.slow
def test_compiled_layers_learn_the_same(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset()
    train(config(), uri, tmp_path / "eager", use_ray=False)
    train(config(compile=True), uri, tmp_path / "compiled", use_ray=False)
    assert numbers(tmp_path / "compiled") == pytest.approx(numbers(tmp_path / "eager"), rel=1e-4)
    plain = load_model(tmp_path / "compiled").state_dict()
    assert plain.keys() == load_model(tmp_path / "eager").state_dict().keys()


def test_layers_are_compiled_only_if_asked(micro: str) -> None:
    from uvd.tokenize.workers import Workers

    for compiled in (False, True):
        layers = build_parallel(config(compile=compiled), Workers("cpu", 1)).model.layers
        assert [layer._compiled_call_impl is not None for layer in layers] == [compiled] * 2

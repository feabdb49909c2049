from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from uvd.tokenize.training_log import read_log
from uvd.trainer.checkpoint import CheckpointError, FingerprintMismatchError, checkpoints, read_provenance
from uvd.trainer.config import TrainConfig
from uvd.trainer.data import EmptySplitError
from uvd.trainer.log import progress_line
from uvd.trainer.prompt import load_model
from uvd.trainer.train import NonFiniteLossError, RunExistsError, learning_rate, train

CONTEXT = 600


class StopHere(Exception):  # noqa: N818 - stands for a kill
    pass


def config(size: str, **more: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "size": size,
        "context": CONTEXT,
        "batch_tokens": 2 * CONTEXT,
        "steps": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "val_every": 0,
        "log_every": 1,
        "num_threads": 1,
    }
    return TrainConfig(**(values | more))


def stop_after(step: int) -> Any:
    def stop(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise StopHere

    return stop


def losses(run: Path) -> list[tuple[int, float, float, float]]:
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in read_log(run / "log.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"mask_documents": True},
        {"packing": "aligned", "mask_documents": True, "context": 528, "batch_tokens": 1056},
    ],
    ids=["concat", "masked", "aligned"],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    micro: str, make_dataset: Any, tmp_path: Path, data: dict[str, Any]
) -> None:
    uri = make_dataset()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(micro, **data), uri, whole, use_ray=False)
    with pytest.raises(StopHere):  # killed in step 5, two steps after the checkpoint
        train(config(micro, **data), uri, parts, use_ray=False, on_progress=stop_after(5))
    assert [path.name for path in checkpoints(parts)] == ["step-000003"]
    (parts / "checkpoints" / ".step-000006.tmp").mkdir()  # as a kill within the checkpoint would leave it
    train(config(micro, **data), uri, parts, resume=True, use_ray=False)
    assert losses(parts) == losses(whole)
    assert [step for step, *_ in losses(parts)] == [1, 2, 3, 4, 5, 6]
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((parts / "checkpoints").glob(".*"))


def test_micro_batches_add_up_to_the_batch(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset()
    for size in (1, 2):
        train(config(micro, micro_batch=size), uri, tmp_path / str(size), use_ray=False)
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert [line[1] for line in one] == pytest.approx([line[1] for line in two], rel=1e-5)


def test_it_learns_a_repeated_sequence(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset(["train"], sources=("video",), ids=16)
    settings = config(micro, steps=40, learning_rate=2e-2, checkpoint_every=0, log_every=10)
    train(settings, uri, tmp_path / "run", use_ray=False)
    first, *_, last = losses(tmp_path / "run")
    assert first[1] == pytest.approx(math.log(8292), abs=0.3)
    assert last[1] < 3.0


def test_log_checkpoints_and_model_folder(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    settings = config(micro, checkpoint_every=2, keep_checkpoints=2, val_every=3)
    model = train(settings, make_dataset(), tmp_path / "run", use_ray=False, on_progress=seen.append)
    assert seen == read_log(tmp_path / "run/log.jsonl")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000004", "step-000006"]
    last = seen[-1]
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))
    assert (last["tokens"], last["progress"]) == (6 * 2 * CONTEXT, 1.0)
    assert {"tokens_per_s", "data_s", "lr", "grad_norm", "elapsed_s", "epoch"} <= set(last)
    assert ["val_loss" in record for record in seen] == [False, False, True, False, False, True]
    assert last["val_loss"] == pytest.approx(math.log(8292), abs=0.3)
    assert "val loss" in progress_line(last)
    provenance = read_provenance(model)
    assert provenance is not None
    assert (provenance.tokenizer, provenance.tokenizer_fingerprint) == ("uvd-test", "f" * 64)
    assert (provenance.step, provenance.context) == (6, CONTEXT)
    assert {"model.safetensors", "config.json", "uvd.json"} <= {path.name for path in model.iterdir()}


def test_a_finished_run_has_nothing_left_to_do(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset()
    train(config(micro), uri, tmp_path / "run", use_ray=False)
    before = losses(tmp_path / "run")
    seen: list[dict[str, Any]] = []
    train(config(micro), uri, tmp_path / "run", resume=True, use_ray=False, on_progress=seen.append)
    assert seen == []
    assert losses(tmp_path / "run") == before


def test_a_run_is_not_overwritten(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset()
    train(config(micro, steps=1), uri, tmp_path / "run", use_ray=False)
    with pytest.raises(RunExistsError, match="--resume"):
        train(config(micro, steps=1), uri, tmp_path / "run", use_ray=False)


def test_nan_stops_and_names_the_sequences(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset(sources=("video",))
    run = tmp_path / "run"
    with pytest.raises(StopHere):
        train(config(micro), uri, run, use_ray=False, on_progress=stop_after(4))
    wild = config(micro, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteLossError, match=r"step \d.*video-00000\d-00000\d.*step-000003"):
        train(wild, uri, run, resume=True, use_ray=False)
    assert [path.name for path in checkpoints(run)] == ["step-000003"]
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    assert not (run / "model").exists()


def test_another_tokenizer_is_refused(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(micro), make_dataset(), run, use_ray=False)
    other = make_dataset(name="other", fingerprint="0" * 64)
    with pytest.raises(FingerprintMismatchError, match="000000000000"):
        train(config(micro, steps=9), other, run, resume=True, use_ray=False)


def test_other_settings_or_other_data_are_refused(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    run, uri = tmp_path / "run", make_dataset()
    train(config(micro), uri, run, use_ray=False)
    with pytest.raises(CheckpointError, match="seed: 0 → 1"):
        train(config(micro, seed=1), uri, run, resume=True, use_ray=False)
    grown = make_dataset(["train"] * 7, name="grown")
    with pytest.raises(CheckpointError, match="other token shards"):
        train(config(micro, steps=9), grown, run, resume=True, use_ray=False)


def test_a_damaged_checkpoint_is_named(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    run, uri = tmp_path / "run", make_dataset()
    train(config(micro), uri, run, use_ray=False)
    for part in (run / "checkpoints/step-000006/optimizer").iterdir():
        part.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="step-000006 cannot be loaded"):
        train(config(micro, steps=9), uri, run, resume=True, use_ray=False)


def test_an_empty_train_split_is_named(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(EmptySplitError, match="train split"):
        train(config(micro), make_dataset(["val"]), tmp_path / "run", use_ray=False)


def test_epochs_give_the_number_of_steps(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset(["train"] * 3)  # 12 sequences of 514 tokens
    train(config(micro, steps=None, epochs=1.0), uri, tmp_path / "run", use_ray=False)
    assert losses(tmp_path / "run")[-1][0] == math.ceil(12 * 514 / (2 * CONTEXT))


def test_a_time_budget_ends_the_run(micro: str, make_dataset: Any, tmp_path: Path) -> None:
    settings = config(micro, steps=1_000_000, max_minutes=1 / 60)
    model = train(settings, make_dataset(), tmp_path / "run", use_ray=False)
    assert read_log(tmp_path / "run/log.jsonl")[-1]["progress"] >= 1
    assert model.exists()


def test_learning_rate_warms_up_and_falls_to_its_end() -> None:
    settings = TrainConfig(size="tiny", batch_tokens=2064, learning_rate=1.0, warmup_steps=4, final_lr_fraction=0.2)
    assert [learning_rate(settings, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(settings, 99, 0.5) == pytest.approx(0.6)
    assert learning_rate(settings, 99, 1.0) == pytest.approx(0.2)


def test_a_torn_log_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_log(path) == [{"step": 1}]


def ray_workers() -> list[psutil.Process]:
    """Processes of the workers of Ray Train."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any("RayTrainWorker" in part for part in process.info["cmdline"] or ())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_been(
    make_dataset: Any, tmp_path: Path, workers: int
) -> None:
    uri = make_dataset()
    settings = config("tiny", num_workers=workers, steps=12, checkpoint_every=2)
    train(config("tiny", steps=12, checkpoint_every=2), uri, tmp_path / "calm", use_ray=False)
    killed: list[int] = []

    def kill_one(record: dict[str, Any]) -> None:
        if record["step"] >= 5 and not killed and (found := ray_workers()):
            found[-1].kill()
            killed.append(found[-1].pid)

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        model = train(settings, uri, tmp_path / "run", on_progress=kill_one)
    finally:
        ray.shutdown()
    assert killed
    assert model.exists()
    expected = losses(tmp_path / "calm")
    if workers == 1:
        assert losses(tmp_path / "run") == expected
    else:
        assert [line[1] for line in losses(tmp_path / "run")] == pytest.approx([line[1] for line in expected], rel=1e-4)


@pytest.mark.slow
def test_a_worker_that_always_fails_is_given_up(make_dataset: Any, tmp_path: Path) -> None:
    uri = make_dataset()

    def kill(record: dict[str, Any]) -> None:
        for process in ray_workers():
            process.kill()

    settings = config("tiny", steps=1000, checkpoint_every=0, max_restarts=1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(Exception, match=r"(?i)worker|actor|died"):
            train(settings, uri, tmp_path / "run", on_progress=kill)
    finally:
        ray.shutdown()
    assert not (tmp_path / "run/model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_train_gives_the_losses_of_this_process(make_dataset: Any, tmp_path: Path, workers: int) -> None:
    uri = make_dataset()
    settings = config("tiny", num_workers=workers, steps=4, checkpoint_every=2)
    alone = config("tiny", steps=4, checkpoint_every=2)
    train(alone, uri, tmp_path / "alone", use_ray=False)
    seen: list[dict[str, Any]] = []
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        model = train(settings, uri, tmp_path / "ray", on_progress=seen.append)
        with pytest.raises(FingerprintMismatchError):
            train(settings, make_dataset(name="other", fingerprint="0" * 64), tmp_path / "ray", resume=True)
    finally:
        ray.shutdown()
    expected = [line[1] for line in losses(tmp_path / "alone")]
    assert [record["loss"] for record in seen] == (expected if workers == 1 else pytest.approx(expected, rel=1e-4))
    assert model.exists()
    assert not (tmp_path / "ray/.ray").exists()
    shutil.rmtree(tmp_path / "ray")

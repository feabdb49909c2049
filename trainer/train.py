"""Trains the transformer on packed tokens: one loop, read from top to bottom, run as a Ray Train worker.

The paper's recipe (arXiv 2312.00785, section 3.3): next-token prediction over concatenated sequences, AdamW, cosine.
A run folder gets `log.jsonl`, `checkpoints/step-*` and, at the end, `model/` in Hugging Face form. On a CPU a resumed
run repeats the losses of an uninterrupted one bit for bit. Costs 16 bytes a parameter over all workers, a copy of 12
while a checkpoint is written, and the logits of a micro batch.
"""

from __future__ import annotations

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from uvd.manifests.dataset import Dataset
from uvd.manifests.fingerprint import differences
from uvd.sequences import Seeds
from uvd.sequences.errors import UserError
from uvd.sequences.object_stores import plain_uri
from uvd.sequences.stopping import stop_on_signals
from uvd.tokenize.training_log import Progress, TrainingLog, followed
from uvd.tokenize.workers import Workers, fit_on_ray
from uvd.trainer.checkpoint import (
    CheckpointError,
    Provenance,
    RunState,
    check_fingerprint,
    checkpoints,
    load_checkpoint,
    read_provenance,
)
from uvd.trainer.checkpointer import Checkpointer, export_model
from uvd.trainer.config import TrainConfig
from uvd.trainer.data import IGNORE, EmptySplitError, PackedTokens, TokenSplit, evaluation_batches, open_split
from uvd.trainer.flops import flops_per_token, peak_flops
from uvd.trainer.log import Validation, Window
from uvd.trainer.loss import SourceLosses, token_losses
from uvd.trainer.parallel import build_parallel, clip_gradients, exchange_gradients

LOG = "log.jsonl"
MODEL = "model"
STOP = ".stop"
"""A file of this name in the run folder asks the workers to save a checkpoint and end."""
FIXED_FIELDS = (
    *("size", "context", "tokenizer", "source_weights", "seed"),
    *("packing", "mask_documents", "buffer_tokens"),
)
"""Settings that a resumed run may not change: the rest of the stream or the model would not be what was begun."""
_KEYS_SHOWN = 20


class RunExistsError(UserError):
    """The run folder holds another run."""


class TrainingStoppedError(UserError):
    """A signal ended the run before its last step; the checkpoint is there to go on from."""


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


def train(
    config: TrainConfig,
    dataset: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    use_ray: bool = True,
    on_progress: Progress | None = None,
) -> Path:
    """Trains a model on the `train` split of a tokenized dataset.

    Args:
        dataset: path or URI.
        out: run folder; on several machines, on a file system that all of them see.
        resume: go on from the newest checkpoint of `out`; without one, start from the beginning.
        use_ray: run as a Ray Train worker (Ray must be initialised), else in this process.
        on_progress: is called with each record of the log, from another thread if Ray is used.

    Returns:
        The folder of the final model.

    Raises:
        RunExistsError: if `out` holds a run and `resume` is False.
        EmptySplitError, TokenDataError: if there is nothing fit to train on.
        CheckpointError: if the checkpoint does not fit config or dataset (FingerprintMismatchError: or tokenizer).
        NonFiniteLossError: if training diverged.
        TrainingStoppedError: if SIGTERM or SIGINT asked for an end: after the step under way, with a checkpoint.
    """
    run = Path(out).expanduser().absolute()
    if not resume and ((run / LOG).exists() or (run / "checkpoints").exists()):
        raise RunExistsError(f"{run} holds a training run already: go on with --resume, or choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    settings = {
        "config": config.model_dump(mode="json"),
        "dataset": Dataset(str(dataset)).address,
        "out": str(run),
    }
    stop = run / STOP
    stop.unlink(missing_ok=True)
    with stop_on_signals(stop.touch):
        if use_ray:
            newest, most = lambda: checkpoints(run)[-1:], config.max_restarts
            with followed(run / LOG, on_progress):
                fit_on_ray(train_worker, settings, config, run, max_restarts=most, newest=newest)
        else:
            train_worker(settings, on_progress)
    if stop.exists():
        stop.unlink()
        saved = checkpoints(run)
        raise TrainingStoppedError(f"stopped; {saved[-1] if saved else 'nothing'} is saved, go on with --resume")
    return run / MODEL


def train_worker(settings: dict[str, Any], on_progress: Progress | None = None) -> None:
    """The training loop of one worker; `settings` holds config, dataset and out (see `train`)."""
    config, run = TrainConfig(**settings["config"]), Path(settings["out"])
    workers = Workers(config.device, config.num_threads)
    device = workers.device

    split = open_split(settings["dataset"], "train", config.tokenizer, duplicates=config.duplicates)
    held_out = open_split(settings["dataset"], "val", split.tokenizer, duplicates=config.duplicates)
    if not split.shards:
        place = plain_uri(settings["dataset"])
        raise EmptySplitError(f"the train split of {place} holds no sequences of {split.tokenizer}")
    data = PackedTokens(
        split.shards,
        context=config.context_length,
        seeds=Seeds(config.seed, ("trainer",)),
        source_weights=config.source_weights,
        packing=config.packing,
        mask_documents=config.mask_documents,
        buffer_tokens=config.buffer_tokens,
    )
    steps = config.steps or max(1, math.ceil(config.epochs * data.epoch_tokens / config.batch_tokens))

    model = build_parallel(config, workers)
    optimizer = _optimizer(model, config)
    state = _resumed(run, config, split, model, optimizer, data)
    peak = workers.count * peak_flops(device)
    device_share = flops_per_token(model.config, config.context_length) / peak if peak else 0.0
    log = TrainingLog(run / LOG, state.step, on_progress) if workers.rank == 0 else None

    start = time.monotonic() - state.elapsed_s
    window, by_source = Window(), SourceLosses(split.shards.sources, device)
    stopped = False
    model.train()
    with Checkpointer(run, workers, config.keep_checkpoints) as checkpointer:
        while not stopped and (progress := _progress(config, state, steps)) < 1:
            before = time.monotonic()
            batch = data.batch(config.batch_rows, workers.rank, workers.count)
            inputs, labels = batch.tensors(device)
            sources = torch.from_numpy(batch.sources()).to(device, non_blocking=True)
            window.data_s += time.monotonic() - before

            rate = learning_rate(config, state.step, progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
            targets = workers.sum((labels != IGNORE).sum()).clamp(min=1)
            losses = []
            rows = range(0, len(inputs), config.micro_batch)
            for row in rows:
                chunk = slice(row, row + config.micro_batch)
                exchange_gradients(model, row == rows[-1])
                each, z_loss = token_losses(model, inputs[chunk], labels[chunk], config)
                loss = each.sum()
                # FSDP2 averages over the workers, and the loss is a share of their sum.
                ((loss + z_loss) / targets * workers.count).backward()
                losses.append(loss.detach() / targets)
                by_source.add(each.detach(), labels[chunk], sources[chunk])
            norm = clip_gradients(model, config.clip_norm)
            loss = workers.sum(torch.stack(losses).sum())
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise _non_finite(run, state.step + 1, losses, batch.keys, config.micro_batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            state.step += 1
            state.tokens += config.batch_tokens
            state.data = data.state()
            state.elapsed_s, asked = workers.agree([time.monotonic() - start, float((run / STOP).exists())])
            stopped, progress = bool(asked), _progress(config, state, steps)
            window.add(float(loss), config.batch_tokens)
            last = stopped or progress >= 1

            validation = None
            if config.val_every and held_out.shards and (state.step % config.val_every == 0 or progress >= 1):
                validation = evaluate(model, held_out, config, workers)
            preempted = False
            if last or state.step % config.log_every == 0 or state.step == 1 or validation is not None:
                workers.sum(by_source.sums)
                record = window.record(
                    state,
                    progress=progress,
                    rate=rate,
                    norm=float(norm),
                    by_source=by_source.means(),
                    device_share=device_share,
                    device=device,
                    validation=validation,
                )
                if log is not None:
                    log.write(record)
                workers.report(record)
                preempted = workers.preempted()
                window, by_source = Window(), SourceLosses(split.shards.sources, device)
            due = config.checkpoint_every and state.step % config.checkpoint_every == 0
            if last or preempted or due:
                provenance = _provenance(config, split, state, plain_uri(settings["dataset"]))
                checkpointer.save(model, optimizer, state, provenance)
            checkpointer.check()

    if log is not None:
        log.close()
        if not stopped:
            export_model(checkpoints(run)[-1], run / MODEL)
    workers.wait()


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up over `warmup_steps`, times a cosine over the whole run down to `final_lr_fraction`.

    Args:
        step: optimizer steps done.
        progress: share of the run that is done, by steps or by time.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warm * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, split: TokenSplit, config: TrainConfig, workers: Workers) -> Validation:
    """Mean loss in nats a token on a fixed seeded sample of at most `val_tokens` tokens of a split, also by source."""
    model.eval()
    by_source = SourceLosses(split.shards.sources, workers.device)
    batches = evaluation_batches(
        split.shards,
        context=config.context_length,
        rows=config.micro_batch,
        max_tokens=config.val_tokens,
        packing=config.packing,
        mask_documents=config.mask_documents,
        seeds=Seeds(0, ("trainer", "evaluation")),
    )
    while turn := list(islice(batches, workers.count)):
        # Sharded layers are gathered by all workers at once: one without a batch runs another's and drops the losses.
        batch = turn[min(workers.rank, len(turn) - 1)]
        inputs, labels = batch.tensors(workers.device)
        losses, _ = token_losses(model, inputs, labels, config)
        if workers.rank < len(turn):
            by_source.add(losses, labels, torch.from_numpy(batch.sources()).to(workers.device))
    nats, tokens = workers.sum(by_source.sums).sum(1).tolist()
    model.train()
    return Validation(nats / tokens, by_source.means())


def _optimizer(model: LlamaForCausalLM, config: TrainConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    gains = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _resumed(
    run: Path,
    config: TrainConfig,
    split: TokenSplit,
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    data: PackedTokens,
) -> RunState:
    """Restores the newest checkpoint of the run, if there is one.

    Raises:
        CheckpointError: if it was made with other fixed settings or other data.
    """
    settings = config.model_dump(mode="json")
    if not (saved := checkpoints(run)):
        return RunState(config=settings, data_digest=split.digest)
    newest = saved[-1]
    check_fingerprint(read_provenance(newest), split.tokenizer_fingerprint, "the dataset")
    state = load_checkpoint(newest, model, optimizer)
    before, after = ({name: values.get(name) for name in FIXED_FIELDS} for values in (state.config, settings))
    if changes := differences(before, after):
        raise CheckpointError(f"{newest} was made with other settings: {'; '.join(changes)}")
    if state.data_digest != split.digest:
        raise CheckpointError(f"{newest} was trained on other token shards than the dataset holds now")
    state.config = settings
    data.restore(state.data)
    return state


def _progress(config: TrainConfig, state: RunState, steps: int) -> float:
    by_time = state.elapsed_s / (60 * config.max_minutes) if config.max_minutes else 0.0
    return max(state.step / steps, by_time)


def _provenance(config: TrainConfig, split: TokenSplit, state: RunState, dataset: str) -> Provenance:
    return Provenance(
        tokenizer=split.tokenizer,
        tokenizer_fingerprint=split.tokenizer_fingerprint,
        size=config.size,
        context=config.context_length,
        step=state.step,
        tokens=state.tokens,
        dataset=dataset,
    )


def _non_finite(
    run: Path, step: int, losses: list[torch.Tensor], keys: list[list[str]], micro_batch: int
) -> NonFiniteLossError:
    """The error that names the sequences of the micro batches that went wrong, or all if only the gradient did."""
    bad = [number for number, loss in enumerate(losses) if not torch.isfinite(loss)] or range(len(losses))
    rows = [row for number in bad for row in keys[number * micro_batch : (number + 1) * micro_batch]]
    names = list(dict.fromkeys(key for row in rows for key in row))
    more = f" and {len(names) - _KEYS_SHOWN} more" if len(names) > _KEYS_SHOWN else ""
    saved = checkpoints(run)
    return NonFiniteLossError(
        f"loss or gradient is not finite at step {step}; sequences: {', '.join(names[:_KEYS_SHOWN])}{more}. "
        f"Last good checkpoint: {saved[-1] if saved else 'none'}. Lower the learning rate and go on with --resume."
    )

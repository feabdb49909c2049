"""Trains the transformer on packed tokens: one loop, read from top to bottom, run as a Ray Train worker.

The paper's recipe (arXiv 2312.00785, section 3.3): next-token prediction over concatenated sequences, AdamW, cosine.
A run folder gets `log.jsonl`, `checkpoints/step-*` and, at the end, `model/` in Hugging Face form. On a CPU a resumed
run repeats the losses of an uninterrupted one bit for bit. Costs 16 bytes a parameter and the logits of a micro batch.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from uvd.manifests.dataset import Dataset
from uvd.manifests.fingerprint import differences
from uvd.sequences import Seeds
from uvd.sequences.errors import UserError
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
    save_checkpoint,
    save_model,
)
from uvd.trainer.config import TrainConfig
from uvd.trainer.data import (
    IGNORE,
    EmptySplitError,
    PackedTokens,
    TokenSplit,
    documents,
    evaluation_batches,
    open_split,
)
from uvd.trainer.log import Window
from uvd.trainer.model import build_model

LOG = "log.jsonl"
MODEL = "model"
FIXED_FIELDS = (
    *("size", "context", "tokenizer", "source_weights", "seed"),
    *("packing", "mask_documents", "buffer_tokens"),
)
"""Settings that a resumed run may not change: the rest of the stream or the model would not be what was begun."""
_KEYS_SHOWN = 20


class RunExistsError(UserError):
    """The run folder holds another run."""


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
    """
    run = Path(out).expanduser().absolute()
    if not resume and ((run / LOG).exists() or (run / "checkpoints").exists()):
        raise RunExistsError(f"{run} holds a training run already: go on with --resume, or choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    settings = {
        "config": config.model_dump(mode="json"),
        "dataset": Dataset(str(dataset)).uri,
        "out": str(run),
    }
    if use_ray:
        with followed(run / LOG, on_progress):
            fit_on_ray(train_worker, settings, config, run)
    else:
        train_worker(settings, on_progress)
    return run / MODEL


def train_worker(settings: dict[str, Any], on_progress: Progress | None = None) -> None:
    """The training loop of one worker; `settings` holds config, dataset and out (see `train`)."""
    config, run = TrainConfig(**settings["config"]), Path(settings["out"])
    workers = Workers(config.device, config.num_threads)
    device = workers.device

    split = open_split(settings["dataset"], "train", config.tokenizer, duplicates=config.duplicates)
    held_out = open_split(settings["dataset"], "val", split.tokenizer, duplicates=config.duplicates)
    if not split.shards:
        raise EmptySplitError(f"the train split of {settings['dataset']} holds no sequences of {split.tokenizer}")
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

    model = build_model(config.size, context=config.context_length, seed=config.seed, device=device)
    optimizer = _optimizer(model, config)
    state = _resumed(run, config, split, model, optimizer, data)
    parallel = workers.wrap(model)
    log = TrainingLog(run / LOG, state.step, on_progress) if workers.rank == 0 else None

    start = time.monotonic() - state.elapsed_s
    window = Window()
    parallel.train()
    while (progress := _progress(config, state, steps)) < 1:
        before = time.monotonic()
        batch = data.batch(config.batch_rows, workers.rank, workers.count)
        inputs, labels = batch.tensors(device)
        window.data_s += time.monotonic() - before

        rate = learning_rate(config, state.step, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        targets = workers.sum((labels != IGNORE).sum()).clamp(min=1)
        losses = []
        rows = range(0, len(inputs), config.micro_batch)
        for row in rows:
            chunk = slice(row, row + config.micro_batch)
            with workers.exchange(parallel, row == rows[-1]):
                loss = _loss_sum(parallel, inputs[chunk], labels[chunk], config, device) / targets
                (loss * workers.count).backward()  # DDP averages over the workers; the loss is a share of their sum
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        loss = workers.sum(torch.stack(losses).sum())
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise _non_finite(run, state.step + 1, losses, batch.keys, config.micro_batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        state.step += 1
        state.tokens += config.batch_tokens
        state.data = data.state()
        state.elapsed_s = workers.agree(time.monotonic() - start)
        progress = _progress(config, state, steps)
        window.add(float(loss), config.batch_tokens)

        val_loss = None
        if config.val_every and held_out.shards and (state.step % config.val_every == 0 or progress >= 1):
            val_loss = evaluate(model, held_out, config, workers)
        if state.step % config.log_every == 0 or progress >= 1 or state.step == 1 or val_loss is not None:
            record = window.record(state, progress, rate, float(norm), val_loss)
            if log is not None:
                log.write(record)
            workers.report(record)
            window = Window()
        if (config.checkpoint_every and state.step % config.checkpoint_every == 0) or progress >= 1:
            if workers.rank == 0:
                provenance = _provenance(config, split, state, settings["dataset"])
                save_checkpoint(run, model, optimizer, state, provenance, config.keep_checkpoints)
            workers.wait()

    if log is not None:
        log.close()
        save_model(run / MODEL, model, _provenance(config, split, state, settings["dataset"]))
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
def evaluate(
    model: LlamaForCausalLM,
    split: TokenSplit,
    config: TrainConfig,
    workers: Workers,
) -> float:
    """Mean loss a token, in nats, on a fixed seeded sample of at most `val_tokens` tokens of a split."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=workers.device)
    batches = evaluation_batches(
        split.shards,
        context=config.context_length,
        rows=config.micro_batch,
        max_tokens=config.val_tokens,
        packing=config.packing,
        mask_documents=config.mask_documents,
        seeds=Seeds(0, ("trainer", "evaluation")),
    )
    for number, batch in enumerate(batches):
        if number % workers.count == workers.rank:
            inputs, labels = batch.tensors(workers.device)
            sums[0] += _loss_sum(model, inputs, labels, config, workers.device)
            sums[1] += (labels != IGNORE).sum()
    sums = workers.sum(sums)
    model.train()
    return float(sums[0] / sums[1])


def _loss_sum(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    config: TrainConfig,
    device: torch.device,
) -> torch.Tensor:
    """Sum of the cross entropy over all labels, in nats, computed in float32."""
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        # Positions that start again with each document are what SDPA masks by; without them all of a row is seen.
        positions = documents(inputs)[1] if config.mask_documents else None
        logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")


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

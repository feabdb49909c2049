"""The trainer beside a bare loop of the same Hugging Face model: tokens a second, MFU, time waiting for data, by turns.

The bare loop is what one would write in twenty lines: the model's own loss on the same random tokens, all in memory,
backward, clipping, fused AdamW. Ours is `uvd train` without Ray: a dataset's shards, packing, shuffling, losses by
source, log. Both run the same steps at the same precision; the first ones are not counted. On a GPU the paper's sizes
run with compiled layers, and the bare loop too.

    python -m uvd.benchmarks.train [--sizes tiny] [--rounds 5] [--steps 40]
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uvd.benchmarks.record import median, rounds_by_turns, write_result
from uvd.manifests.dataset import Dataset
from uvd.manifests.token_shard import TokenShardWriter
from uvd.tokenize.training_log import read_log
from uvd.trainer.config import TrainConfig
from uvd.trainer.flops import flops_per_token, peak_flops
from uvd.trainer.model import build_model, count_parameters
from uvd.trainer.parallel import uses_bf16
from uvd.trainer.train import LOG, train

WARM_STEPS = 5
IMAGES = 16
BARS = {"times_bare_loop_cpu": 0.97, "data_share": 0.01, "mfu": {"300m": 0.45, "600m": 0.45, "1b": 0.45, "3b": 0.40}}


def write_tokens(folder: Path, tokens: int) -> str:
    """A dataset of about so many tokens: random codes in sequences of 16 images, of two sources."""
    dataset = Dataset(str(folder))
    rng = np.random.default_rng(0)
    per_source = max(8, round(tokens / (2 * (256 * IMAGES + 2))))
    for source in ("images", "video"):
        dataset.declare("tokens", f"made-up/{source}", {"fingerprint": "0"})
        with TokenShardWriter(dataset, "made-up", source, 0) as writer:
            for index in range(per_source):
                row: dict[str, Any] = {"key": f"{source}-000000-{index:06d}", "source": source, "dataset": "made-up"}
                row |= {"layout": "frames", "split": "train", "num_images": IMAGES, "roles": ["frame"] * IMAGES}
                writer.add(row, rng.integers(0, 8192, (IMAGES, 256)).astype(np.uint16))
            writer.commit(per_source, "0", {"tokenizer": "made-up", "tokenizer_fingerprint": "0"})
    return str(folder)


@dataclass
class Ours:
    """`train`, anew each time; notes the share of the time that it waited for data."""

    config: TrainConfig
    dataset: str
    data_shares: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            train(self.config, self.dataset, Path(folder) / "run", use_ray=False)
            log = read_log(Path(folder) / "run" / LOG)
        counted = [record for record in log if record["step"] >= WARM_STEPS]
        seconds = counted[-1]["elapsed_s"] - counted[0]["elapsed_s"]
        self.data_shares.append(sum(record["data_s"] for record in counted[1:]) / seconds)
        return float((counted[-1]["tokens"] - counted[0]["tokens"]) / seconds)


@dataclass
class Bare:
    """The loop that one would write without us."""

    config: TrainConfig

    def __call__(self) -> float:
        config = self.config
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(config.num_threads)
        model = build_model(config.size, context=config.context_length, device=device)
        if config.compile:
            for layer in model.model.layers:
                layer.compile()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        bf16 = uses_bf16(config, device)
        rows = torch.randint(0, 8192, (64, config.context_length), device=device)
        assert config.steps is not None
        for step in range(config.steps):
            if step == WARM_STEPS:
                _synchronise(device)
                start = time.monotonic()
            for first in range(0, config.batch_rows, config.micro_batch):
                chosen = torch.arange(first, first + config.micro_batch) + step * config.batch_rows
                inputs = rows[chosen % len(rows)]
                with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
                    loss = model(input_ids=inputs, labels=inputs, use_cache=False).loss
                (loss * config.micro_batch / config.batch_rows).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
        _synchronise(device)
        return (config.steps - WARM_STEPS) * config.batch_tokens / (time.monotonic() - start)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def bench_size(size: str, rounds: int, steps: int, micro_batch: int, rows: int, threads: int) -> dict[str, Any]:
    """One size: both ways by turns."""
    model = build_model(size, device="meta")
    gpu = torch.cuda.is_available()
    context = model.config.max_position_embeddings
    config = TrainConfig(
        size=size,
        batch_tokens=rows * context,
        micro_batch=micro_batch,
        steps=steps,
        warmup_steps=0,
        val_every=0,
        checkpoint_every=0,
        log_every=5,
        compile=gpu,
        num_threads=threads,
    )
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(config, write_tokens(Path(folder), 2 * steps * config.batch_tokens))
        measured = rounds_by_turns({f"{size} uvd": ours, f"{size} bare loop": Bare(config)}, rounds)
    speed, bare = (median(values) for values in measured.values())
    ratios = [mine / other for mine, other in zip(*measured.values(), strict=True)]
    cost = flops_per_token(model.config, context)
    peak = peak_flops(torch.device("cuda" if gpu else "cpu"))
    return {
        "parameters": count_parameters(model),
        "context": context,
        "rows_a_step": rows,
        "micro_batch": micro_batch,
        "tokens_per_s": round(speed, 1),
        "bare_tokens_per_s": round(bare, 1),
        "times_bare_loop": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "tflops": round(speed * cost / 1e12, 4),
        "mfu": round(speed * cost / peak, 4) if peak else 0,
        "data_share": round(median(ours.data_shares), 5),
    }


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="300m,600m,1b,3b" if gpu else "tiny")
    parser.add_argument("--rounds", type=int, default=3 if gpu else 5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--micro-batch", type=int, default=4 if gpu else 1)
    parser.add_argument("--rows", type=int, default=32 if gpu else 1, help="rows of one context in a step")
    parser.add_argument("--threads", type=int, default=8 if gpu else 2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    sizes = {
        size: bench_size(size, given.rounds, given.steps, given.micro_batch, given.rows, given.threads)
        for size in given.sizes.split(",")
    }
    content = {"rounds": given.rounds, "steps": given.steps, "threads": given.threads, "bars": BARS, "sizes": sizes}
    print(f"wrote {write_result('train', content, given.out)}")


if __name__ == "__main__":
    main()

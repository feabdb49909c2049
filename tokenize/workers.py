"""The workers of a training run: this process alone, or those that Ray Train started and joined by torch.distributed.

The transformer is sharded by FSDP2 (`uvd.trainer.parallel`); the tokenizer's gradients are averaged by `average`: its
networks take turns in a step. One worker exchanges nothing and pays nothing.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig

from uvd.sequences.errors import DeviceError, UserError

WAIT_S = 6 * 3600
_LOG = logging.getLogger(__name__)


class Distribution(Protocol):
    """What a training config says of its workers."""

    @property
    def num_workers(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def num_threads(self) -> int: ...


class Workers:
    """This worker among its peers.

    Attributes:
        rank: 0 to count - 1; worker 0 writes log and checkpoints.
        count: number of workers.
        device: where this worker's model lives.
    """

    def __init__(self, device: str = "auto", num_threads: int = 1) -> None:
        """
        Raises:
            DeviceError: for `cuda` without a GPU.
        """
        torch.set_num_threads(num_threads)
        joined = dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        # Workers that something else joined, such as torchrun, have nobody to report to.
        self._in_ray = joined and ray.is_initialized()
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("device is cuda, but torch sees no GPU here")
        if device == "cpu" or not torch.cuda.is_available():
            self.device = torch.device("cpu")
        else:
            self.device = ray.train.torch.get_device() if self._in_ray else torch.device("cuda")

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    @torch.no_grad()
    def average(self, gradients: Iterable[torch.Tensor | None]) -> None:
        """Replaces gradients by their mean over all workers, in one exchange."""
        present = [gradient for gradient in gradients if gradient is not None]
        if self.count == 1 or not present:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in present])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(present, flat.split([g.numel() for g in present]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all workers, which have as many each, one worker's after another's."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @torch.no_grad()
    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives all workers what the first one has."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def agree(self, values: list[float]) -> list[float]:
        """The first worker's numbers, such as its clock, so that all do the same after the same step."""
        if self.count == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return shared.tolist()

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()

    def report(self, record: dict[str, Any]) -> None:
        """Hands a log record to Ray Train, which waits for all workers."""
        if self._in_ray:
            ray.train.report(record)

    def preempted(self) -> bool:
        """Whether a worker's machine is about to be taken away; all workers must ask alike."""
        return self._in_ray and ray.train.get_preemption_info() is not None


def fit_on_ray(
    worker: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    config: Distribution,
    run: Path,
    *,
    max_restarts: int = 0,
    newest: Callable[[], object] = lambda: None,
) -> None:
    """Runs `worker(settings)` on `config.num_workers` Ray Train workers and waits.

    Args:
        max_restarts: how often in a row workers that were lost, or failed by an error that is not the user's, are
            started anew, `worker` then going on from its newest checkpoint. (Ray Train's `max_failures` would start
            those again too whose error comes back.) Machines that are taken away by notice do not count.
        newest: tells the newest checkpoint; the count begins anew when it changes.

    Raises:
        RuntimeError: if Ray is not initialised.
        DeviceError: if Ray lacks the CPUs or GPUs.
        Exception: what the first failing worker raised.
    """
    if not ray.is_initialized():
        raise RuntimeError("training on Ray needs an initialised Ray: call ray.init first, or pass use_ray=False")
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    failures, known = 0, newest()
    while True:
        try:
            # Ray Train takes over SIGINT if it runs in the main thread.
            with ThreadPoolExecutor(1, thread_name_prefix="uvd-fit") as waiting:
                waiting.submit(_fit, worker, settings, config, run).result()
            return
        except WorkerGroupError as error:
            errors = list(error.worker_failures.values())
            failures, known = (failures + 1 if newest() == known else 1), newest()
            if users := [failure for failure in errors if isinstance(failure, UserError)]:
                raise users[0] from error
            if failures > max_restarts:
                raise errors[0] from error
            _LOG.warning("workers lost (%s); starting them anew, %d of %d", errors[0], failures, max_restarts)


def _fit(worker: Callable[[dict[str, Any]], None], settings: dict[str, Any], config: Distribution, run: Path) -> None:
    there = ray.cluster_resources()
    gpus, cpus = there.get("GPU", 0), int(there.get("CPU", 0))
    if config.num_workers > cpus or (config.device == "cuda" and gpus < config.num_workers):
        raise DeviceError(
            f"{config.num_workers} workers on {config.device} asked for; Ray has {cpus} CPUs and {gpus:g} GPUs"
        )
    # Threads beyond the CPUs there are would make Ray wait for ever; with fewer, training is only slower.
    reserved = max(1, min(config.num_threads, cpus // config.num_workers))
    use_gpu = config.device == "cuda" or (config.device == "auto" and gpus >= config.num_workers)
    # Ray Train keeps nothing that we need: our checkpoints are the run's state.
    scratch = run / ".ray"
    trainer = ray.train.torch.TorchTrainer(
        worker,
        train_loop_config=settings,
        # The others wait while the first worker decodes a dataset, measures and saves.
        torch_config=TorchConfig(timeout_s=WAIT_S),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": reserved, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(name="run", storage_path=str(scratch)),
    )
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

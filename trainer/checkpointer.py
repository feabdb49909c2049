"""Saves checkpoints while training goes on: the state is copied to main memory, then written by other threads.

Each worker writes its part of the optimizer's state through torch's distributed checkpoint; the first one writes the
gathered weights and, when all parts are on the disk, gives the folder its name. One save is under way at a time: its
copies cost 8 bytes a parameter over all workers, and 4 more on the first.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter
from transformers import LlamaForCausalLM

from uvd.tokenize.workers import Workers
from uvd.trainer.checkpoint import (
    MODEL_FILES,
    OPTIMIZER,
    STATE,
    CheckpointError,
    Provenance,
    RunState,
    checkpoints,
    commit_folder,
    optimizer_tensors,
    temporary_folder,
    whole_folder,
    write_model,
)
from uvd.trainer.parallel import whole_weights


class Checkpointer:
    """Writes `checkpoints/step-N` of a run and drops all but the newest; all workers call it alike."""

    def __init__(self, run: Path, workers: Workers, keep: int) -> None:
        self._run, self._workers, self._keep = run, workers, keep
        # Of its own: training exchanges gradients meanwhile. In main memory, whatever those are exchanged by.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="uvd-checkpoint")
        self._pending: Future[Any] | None = None

    def save(
        self, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: RunState, provenance: Provenance
    ) -> None:
        """Takes a copy of the state and begins to write it; waits for the save before it, if that is still under way.

        Raises:
            CheckpointError: if the save before it failed.
        """
        self.wait()
        folder = self._run / "checkpoints" / f"step-{state.step:06d}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        if self._workers.rank == 0:
            temporary_folder(folder)
        self._workers.wait()
        weights = {name: weight for name, weight in whole_weights(model) if self._workers.rank == 0}
        parts = _begin_parts(optimizer_tensors(model, optimizer), temporary / OPTIMIZER, self._group)
        if self._workers.rank:
            self._pending = parts
            return
        saved = json.dumps(asdict(state), indent=1, sort_keys=True)

        def finish() -> None:
            write_model(temporary, model.config, weights, provenance)
            (temporary / STATE).write_text(saved)
            parts.result()
            commit_folder(temporary, folder)
            for old in checkpoints(self._run)[: -self._keep]:
                shutil.rmtree(old)

        self._pending = self._writer.submit(finish)

    def check(self) -> None:
        """
        Raises:
            CheckpointError: if a save has failed.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until all that was saved is on the disk.

        Raises:
            CheckpointError: if it could not be written.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except (Exception, CheckpointException) as error:
            raise CheckpointError(f"a checkpoint of {self._run} could not be written: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Waits; if the block failed, that is what is raised, and not what may have happened to the save."""
        if error is None:
            self.wait()
        self._writer.shutdown(wait=True)


def _begin_parts(tensors: dict[str, torch.Tensor], folder: Path, group: dist.ProcessGroup | None) -> Future[Any]:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    begun = dcp.async_save(tensors, storage_writer=writer, process_group=group)
    assert isinstance(begun, Future)
    return begun


def export_model(checkpoint: Path, folder: Path) -> None:
    """Copies the model of a checkpoint, without the trainer's state, to a folder of its own; replaces one there."""
    with whole_folder(folder) as temporary:
        for name in MODEL_FILES:
            shutil.copyfile(checkpoint / name, temporary / name)

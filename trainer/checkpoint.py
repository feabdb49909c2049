"""Model folders and checkpoints: Hugging Face form (safetensors + config.json) beside the trainer's own state.

A checkpoint is a folder `checkpoints/step-000100` that appears whole, by rename, or not at all. It is a model folder
that plain `transformers` loads, with `optimizer/`, a distributed checkpoint of torch (DCP) in safetensors of which each
worker wrote its part, and `trainer_state.json`. It costs 12 bytes a parameter. Nothing is pickled.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader
from transformers import LlamaConfig, LlamaForCausalLM

from uvd import __version__
from uvd.manifests.storage import fsync_path
from uvd.sequences.errors import UserError

# Said at each load and save of a single process.
warnings.filterwarnings("ignore", message="torch.distributed is (disabled, )?unavailable")

PROVENANCE = "uvd.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer"
STATE = "trainer_state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
MODEL_FILES = ("config.json", WEIGHTS, PROVENANCE)
_STEP = re.compile(r"^step-(\d{6,})$")


class CheckpointError(UserError):
    """A checkpoint or model folder that cannot be used as asked."""


class FingerprintMismatchError(CheckpointError):
    """Tokens of one tokenizer meet a model of another."""


@dataclass(slots=True)
class Provenance:
    """What a model was made from: `uvd.json` in its folder.

    Attributes:
        tokenizer: name of the tokenizer.
        tokenizer_fingerprint: of its weights, preprocessing and precision.
        size, context: of the model.
        step, tokens: how long it was trained.
        dataset: path or URI of the training data.
    """

    tokenizer: str
    tokenizer_fingerprint: str
    size: str
    context: int
    step: int = 0
    tokens: int = 0
    dataset: str = ""
    uvd_version: str = __version__


@dataclass(slots=True)
class RunState:
    """How far a run is: everything but the tensors.

    Attributes:
        step: optimizer steps done.
        tokens: tokens seen.
        elapsed_s: seconds of training, over all resumed parts.
        data: state of `PackedTokens`.
        data_digest: of the shards' contents.
        config: of the run, as JSON.
    """

    config: dict[str, Any]
    data_digest: str
    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    data: dict[str, int] = field(default_factory=dict)


def save_model(folder: Path, model: LlamaForCausalLM, provenance: Provenance) -> None:
    """Writes a model folder that plain `transformers` loads; replaces one that is there."""
    with whole_folder(folder) as temporary:
        write_model(temporary, model.config, model.state_dict(), provenance)


def write_model(folder: Path, config: LlamaConfig, weights: dict[str, torch.Tensor], provenance: Provenance) -> None:
    """Writes `config.json`, `model.safetensors`, `uvd.json`; no generation config: its end token would be a code."""
    config = copy.deepcopy(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / PROVENANCE).write_text(json.dumps(asdict(provenance), indent=1, sort_keys=True))


def load_checkpoint(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> RunState:
    """Restores weights and optimizer in place, whatever number of workers saved them and reads them now.

    Raises:
        CheckpointError: if a file is missing, damaged or does not fit the model.
    """
    try:
        state = RunState(**json.loads((folder / STATE).read_text()))
        moments = optimizer_tensors(model, optimizer, state.step)
        for tensors, path in ((model.state_dict(), folder), (moments, folder / OPTIMIZER)):
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, SafetensorError, CheckpointException) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be loaded: {error}") from error
    return state


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int | None = None
) -> dict[str, torch.Tensor]:
    """AdamW's moments of each weight, by `<weight>.<moment>`; with `step`, zeros to be filled, and its count set."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        if step is not None:
            count = torch.tensor(float(step), device=weight.device)
            optimizer.state[weight] = {"step": count, **{moment: torch.zeros_like(weight) for moment in MOMENTS}}
        tensors |= {f"{name}.{moment}": optimizer.state[weight][moment] for moment in MOMENTS}
    return tensors


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    steps = ((_STEP.match(path.name), path) for path in (run / "checkpoints").glob("step-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in steps if match)]


def read_provenance(folder: Path) -> Provenance | None:
    """What a model folder says about itself; None for one that uvd did not write.

    Raises:
        CheckpointError: if its `uvd.json` is damaged.
    """
    path = folder / PROVENANCE
    if not path.exists():
        return None
    try:
        return Provenance(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def check_fingerprint(provenance: Provenance | None, fingerprint: str, what: str) -> None:
    """
    Raises:
        FingerprintMismatchError: if the model was trained on tokens of another tokenizer than `fingerprint`.
    """
    if provenance is not None and provenance.tokenizer_fingerprint != fingerprint:
        raise FingerprintMismatchError(
            f"{what} belongs to tokenizer fingerprint {fingerprint[:12]}, but the model was trained on tokens of "
            f"{provenance.tokenizer} {provenance.tokenizer_fingerprint[:12]}: their ids mean different things"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears whole, by rename when the block ends well, or not at all; replaces one that is there."""
    temporary = temporary_folder(folder)
    try:
        yield temporary
        commit_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def temporary_folder(folder: Path) -> Path:
    """An empty folder to fill before it gets its name. One run writes there at a time: what killed ones left goes."""
    for stale in folder.parent.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir(parents=True)
    return temporary


def commit_folder(temporary: Path, folder: Path) -> None:
    """Makes sure that all of it is on the disk, then gives it its name."""
    for path in sorted(temporary.rglob("*")):
        fsync_path(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(temporary, folder)
    fsync_path(folder.parent)

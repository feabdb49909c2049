"""Model folders and checkpoints: Hugging Face form (safetensors + config.json) beside the trainer's own state.

A checkpoint is a folder `checkpoints/step-000100` that appears whole, by rename, or not at all. It costs 12 bytes a
parameter. Weights and optimizer state are safetensors: nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from uvd import __version__
from uvd.manifests.storage import fsync_path
from uvd.sequences.errors import UserError

PROVENANCE = "uvd.json"
_WEIGHTS = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "trainer_state.json"
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
    _write_folder(folder, lambda temporary: _model_files(temporary, model, provenance))


def save_checkpoint(
    run: Path,
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    provenance: Provenance,
    keep: int,
) -> Path:
    """Writes `checkpoints/step-N` and drops all but the newest `keep`."""

    def write(temporary: Path) -> None:
        _model_files(temporary, model, provenance)
        save_file(_optimizer_tensors(optimizer), temporary / _OPTIMIZER)
        (temporary / _STATE).write_text(json.dumps(asdict(state), indent=1, sort_keys=True))

    folder = run / "checkpoints" / f"step-{state.step:06d}"
    _write_folder(folder, write)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer | None = None) -> RunState:
    """Restores weights, optimizer and torch's generator in place.

    Raises:
        CheckpointError: if a file is missing or does not fit the model.
    """
    try:
        state = RunState(**json.loads((folder / _STATE).read_text()))
        model.load_state_dict(load_file(folder / _WEIGHTS))
        if optimizer is not None:
            _restore_optimizer(optimizer, load_file(folder / _OPTIMIZER))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be loaded: {error}") from error
    return state


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by `<number of the parameter>.<name>`, and torch's generator."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}
    return {**tensors, "rng": torch.get_rng_state()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors.pop("rng"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    # Groups and their settings come from the config, as they were built.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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


def _model_files(folder: Path, model: LlamaForCausalLM, provenance: Provenance) -> None:
    disable_progress_bar()
    model.save_pretrained(folder)
    (folder / PROVENANCE).write_text(json.dumps(asdict(provenance), indent=1, sort_keys=True))


def _write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    # One run writes here at a time, so these are what killed ones left.
    for stale in folder.parent.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        for path in sorted(temporary.iterdir()):
            fsync_path(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        fsync_path(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise

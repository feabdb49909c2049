"""Checkpoints of MMPose and MMDetection read without running code: tensors, plain values and arrays of numpy.

MMEngine's own loader unpickles anything. A training checkpoint also carries its logs, objects of MMEngine; an inert
stand-in takes their place, and a file that asks for any other class is refused by name. Weights must fit the model.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from uvd.renderers.estimators.base import EstimatorFilesError

MAX_BYTES = 16 << 30
REBUILD = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where numpy 1 and 2 say that arrays are rebuilt."""

KINDS = ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
"""Types of arrays that may be rebuilt."""

INERT = ("mmengine.", "builtins.getattr", "__builtin__.getattr")
"""What a training checkpoint's logs are made of; `getattr` fetches the methods of their statistics."""

IGNORED = ("data_preprocessor.mean", "data_preprocessor.std")
"""Older checkpoints hold them as weights; the config has the same numbers."""


class _Inert:
    """Stands for an object that is not wanted: takes any arguments and any state, and keeps nothing."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights by name, and what was stored beside them about the data set: possibly nothing, never trusted."""

    path: Path
    weights: dict[str, torch.Tensor]
    dataset_meta: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads `.safetensors`, or a file of `torch.save`: a state dict, or one under the key `state_dict`.

    Raises:
        EstimatorFilesError: if the file is missing, damaged, or asks for code.
    """
    path = path.expanduser()
    if not path.is_file():
        raise EstimatorFilesError(f"no such checkpoint: {path}")
    if path.stat().st_size > MAX_BYTES:
        raise EstimatorFilesError(f"{path} is larger than {MAX_BYTES} bytes")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise EstimatorFilesError(f"{path} holds no state dict of tensors")
    # Training on several GPUs wraps the model in a `module`.
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return Checkpoint(path, weights, _dataset_meta(content))


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint, config: Path) -> None:
    """Puts a checkpoint's weights into the model of a config; all of them must fit.

    Raises:
        EstimatorFilesError: names the first weights that are missing, extra, of another shape or not finite.
    """
    weights = {name: value for name, value in checkpoint.weights.items() if name not in IGNORED}
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise EstimatorFilesError(f"{checkpoint.path}: not finite: {_some(broken)}")
    try:
        # The model itself renames the weights of older versions while it loads them.
        missing, extra = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise EstimatorFilesError(f"{checkpoint.path} does not fit {config}: {_some(lines)}") from error
    problems = [f"{label} {_some(names)}" for label, names in (("missing", missing), ("extra", extra)) if names]
    if problems:
        raise EstimatorFilesError(f"{checkpoint.path} does not fit {config}: {'; '.join(problems)}")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise EstimatorFilesError(f"{path} cannot be read: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        allowed: list[Any] = [*_numpy_globals(), *_inert_globals(path)]
        with safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except EstimatorFilesError:
        raise
    except Exception as error:
        # A damaged or hostile file can fail in any way. torch's own message advises to load it with its code.
        first = next(iter(str(error).splitlines()), type(error).__name__)
        why = _refused_global(str(error)) or f"it cannot be read: {first}"
        raise EstimatorFilesError(f"{path} was not loaded: {why}") from error


def _inert_globals(path: Path) -> list[tuple[Any, str]]:
    """The stand-in under each name of MMEngine's that the file asks for.

    Raises:
        EstimatorFilesError: if it asks for anything else that torch and we do not know as harmless.
    """
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise EstimatorFilesError(f"{path} has compressed members, which torch never writes")
    known = {name for _, name in _numpy_globals()}
    unknown = [name for name in get_unsafe_globals_in_checkpoint(str(path)) if name not in known]
    foreign = sorted(name for name in unknown if not name.startswith(INERT))
    if foreign:
        raise EstimatorFilesError(f"{path} was not loaded: {_asks_for(_some(foreign))}")
    return [(_Inert, name) for name in unknown]


def _numpy_globals() -> list[tuple[Any, str]]:
    """What arrays and numbers of numpy are rebuilt from; none of it runs anything that the file says."""
    from numpy._core.multiarray import _reconstruct, scalar

    functions = [(f, f"{module}.{f.__name__}") for f in (_reconstruct, scalar) for module in REBUILD]
    kinds = [
        type(np.dtype(kind)) for kind in ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
    ]
    dtypes = [(kind, f"{kind.__module__}.{kind.__name__}") for kind in kinds]
    return [*functions, *dtypes, (np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]


def _refused_global(message: str) -> str:
    """The class that torch's unpickler refused, if its message names one."""
    words = message.split("GLOBAL ")[1:]
    return _asks_for(words[0].split()[0]) if words else ""


def _asks_for(names: str) -> str:
    return (
        f"it asks for {names}, and uvd runs no code of a checkpoint. Save its state dict alone, as safetensors or with "
        "torch.save, with the program that wrote the file"
    )


def _dataset_meta(content: Any) -> dict[str, Any]:
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        return {}
    found = meta.get("dataset_meta")
    if isinstance(found, dict):
        return {key.lower(): value for key, value in found.items() if isinstance(key, str)}
    return {"classes": meta["CLASSES"]} if "CLASSES" in meta else {}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

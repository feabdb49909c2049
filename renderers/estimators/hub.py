"""Networks in Hugging Face's form, by folder or by hub id: only JSON and safetensors are ever fetched or read.

A hub id is looked up in the local cache first, so that workers and machines without network use what is there; nothing
is run from a repository, and weights that are pickles are refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from uvd.renderers.estimators.base import EstimatorFilesError

PATTERNS = ("*.safetensors", "*.json", "merges.txt")
"""Names of files that decide what a network predicts; merges.txt is part of OneFormer's tokenizer."""

INDEX = "model.safetensors.index.json"
"""Says which weight is in which file, where there are several."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def folder_of(model: str) -> Path:
    """The folder of a network: the path itself, or the snapshot of a hub id.

    Raises:
        EstimatorFilesError: if there is neither, or the folder lacks something.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        check_folder(path)
        return path
    if path.exists():
        raise EstimatorFilesError(f"{path} is a file; a network is a folder with config.json and model.safetensors")
    if not _HUB_ID.fullmatch(model):
        raise EstimatorFilesError(f"no such folder: {path}")
    return snapshot(model)


def snapshot(model_id: str) -> Path:
    """The folder of a hub id's files, from the local cache, or else fetched into it.

    Raises:
        EstimatorFilesError: if they are not in the cache and the hub does not give them, or something is missing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        folder = Path(snapshot_download(model_id, allow_patterns=list(PATTERNS), local_files_only=True))
        check_folder(folder)
    except (OSError, EstimatorFilesError):
        pass  # Nothing in the cache, or not all of it.
    else:
        return folder
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=list(PATTERNS)))
    # An OSError if the hub refuses, a ValueError for a name that cannot be one, an HTTPError if the network breaks off.
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EstimatorFilesError(
            f"{model_id} is no folder, is not in the local Hugging Face cache and cannot be fetched: {reason}"
        ) from error
    check_folder(folder)
    return folder


def deciding_files(folder: Path) -> list[Path]:
    """Files of a folder that decide what its network predicts, sorted by name."""
    return sorted(path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file())


def check_folder(folder: Path) -> None:
    """
    Raises:
        EstimatorFilesError: unless a folder holds `config.json`, `preprocessor_config.json` and safetensors.
    """
    if not (folder / "config.json").is_file():
        raise EstimatorFilesError(f"{folder} has no config.json, so it is no network in Hugging Face's form")
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise EstimatorFilesError(f"{folder} has no preprocessor_config.json, which says how pixels are scaled")
    if (folder / "model.safetensors").is_file():
        return
    if (folder / INDEX).is_file():
        shards = set(shards_of(folder).values())
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise EstimatorFilesError(f"{folder} has no {missing[0]}, which {INDEX} names")
        return
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
    if pickles:
        raise EstimatorFilesError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), which can run code when it is read; "
            "convert it to model.safetensors"
        )
    raise EstimatorFilesError(f"{folder} has no model.safetensors")


def shards_of(folder: Path) -> dict[str, str]:
    """Weight → name of the file that holds it, as the index says.

    Raises:
        EstimatorFilesError: for an index that cannot be read, or names anything but safetensors in this folder.
    """
    try:
        places = json.loads((folder / INDEX).read_bytes())["weight_map"]
        names = {str(weight): str(name) for weight, name in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EstimatorFilesError(f"{folder / INDEX} cannot be read: {error}") from error
    for name in names.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise EstimatorFilesError(f"{folder / INDEX} names {name!r}, which is no safetensors file beside it")
    return names

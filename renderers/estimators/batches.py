"""How networks of torch are run over views: one batch shape, full fp32, no gradients, deterministic kernels.

Convolutions may differ in the last bit with the shape of the batch, so the last batch is filled up with black views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from uvd.renderers.estimators.base import View
from uvd.sequences import IMAGE_SIZE
from uvd.sequences.errors import DeviceError, UserError


class EstimateError(UserError):
    """A network answered with something that cannot be drawn."""


def torch_device(device: str) -> torch.device:
    """`auto` is the GPU if there is one.

    Raises:
        DeviceError: for `cuda` without a GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device: cuda, but torch finds no GPU here; auto takes one where there is one")
    return torch.device(device)


def in_batches(
    views: Sequence[View],
    batch_size: int,
    device: torch.device,
    network: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Runs a network over views, always `batch_size` at a time.

    Args:
        views: squares of one side.
        batch_size: of every call.
        device: where the pixels go.
        network: `(batch_size, side, side, 3)` uint8 RGB → tensors with `batch_size` rows.

    Yields:
        A view's rows of the answers, without the first dimension; in order.

    Raises:
        EstimateError: if an answer holds numbers that are not finite.
    """
    for start in range(0, len(views), batch_size):
        part = views[start : start + batch_size]
        pixels = np.zeros((batch_size, *part[0].pixels.shape), np.uint8)
        for place, view in enumerate(part):
            pixels[place] = view.pixels
        with exact():
            answers = network(torch.from_numpy(pixels).to(device))
        for place in range(len(part)):
            rows = tuple(answer[place] for answer in answers)
            if not all(bool(torch.isfinite(row).all()) for row in rows):
                raise EstimateError("the network answers with numbers that are not finite; its weights may be damaged")
            yield rows


@contextmanager
def exact() -> Iterator[None]:
    """No gradients; on a GPU no TF32 and kernels that give the same bits every time."""
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with flags, torch.inference_mode():
        yield


def resized(maps: torch.Tensor, side: int = IMAGE_SIZE) -> NDArray[np.float32]:
    """`(C, h, w)` float → `(C, side, side)`: bilinear, over the area of a pixel where it shrinks.

    Bilinear, because bicubic overshoots beside edges, and the overshoot would be the nearest or farthest point.
    """
    shrinks = min(maps.shape[1:]) > side
    larger = F.interpolate(maps[None].float(), (side, side), mode="bilinear", align_corners=False, antialias=shrinks)
    return larger[0].cpu().numpy()

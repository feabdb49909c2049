"""Opens a network of `transformers` strictly: the right architecture, all weights, the pixels as its processor says.

A view is already a square of the side that the processor resizes to, so only scaling of values remains; resizing,
cropping and padding to a batch have nothing to do. ZoeDepth's mirrored border is made as its processor makes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from uvd.renderers.estimators.base import EstimatorFilesError, View
from uvd.renderers.estimators.batches import exact, in_batches, torch_device

DEFAULT_SIDE = 480
"""Of processors that keep every image's own size: GLPN's, whose NYU images are 480 pixels high."""
MIN_SIDE, MAX_SIDE = 32, 2048
"""Of what a network may want to see."""

Answers = Callable[[Any], tuple[torch.Tensor, ...]]
"""Takes the tensors that matter out of what a network of `transformers` returns."""

_FILE_ERRORS = (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, AttributeError, SafetensorError)
"""What `transformers` raises for files that do not fit together."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a view becomes a network's input.

    Attributes:
        side: of the view.
        border: mirrored pixels around it, before and after.
        factor: of the values 0 to 255.
        mean, std: of each channel afterwards.
        bgr: whether channels are swapped.
    """

    side: int
    border: tuple[int, int]
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool

    @classmethod
    def of(cls, processor: Any) -> Self:
        """What an image processor does to values."""
        side = _side(processor)
        border = (0, 0)
        if type(processor).__name__.startswith("ZoeDepth") and processor.do_pad:
            side, border = _mirrored(side)
        normalizes = bool(getattr(processor, "do_normalize", False))
        return cls(
            side,
            border,
            float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0,
            tuple(processor.image_mean) if normalizes else (0.0, 0.0, 0.0),
            tuple(processor.image_std) if normalizes else (1.0, 1.0, 1.0),
            bool(getattr(processor, "do_flip_channel_order", False)),
        )

    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        """`(N, side, side, 3)` uint8 RGB → `(N, 3, side, side)` float32, with the border."""
        values = views.flip(-1) if self.bgr else views
        values = values.permute(0, 3, 1, 2).float() * self.factor
        if self.border != (0, 0):
            values = F.pad(values, self.border * 2, mode="reflect")
        mean, std = (values.new_tensor(channels)[:, None, None] for channels in (self.mean, self.std))
        return (values - mean) / std

    def without_border(self, maps: torch.Tensor) -> torch.Tensor:
        """`(C, h, w)` that shows the view with its border → the view alone, rounded to whole pixels."""
        whole = self.side + sum(self.border)
        top, bottom = (round(edge / whole * maps.shape[1]) for edge in (self.border[0], self.border[0] + self.side))
        left, right = (round(edge / whole * maps.shape[2]) for edge in (self.border[0], self.border[0] + self.side))
        return maps[:, top:bottom, left:right]


def _side(processor: Any) -> int:
    """The smaller side of what the processor would make, as a multiple of what it says."""
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    size = dict(size or getattr(processor, "size", None) or {})
    names = ("height", "width", "shortest_edge", "max_height", "max_width")
    sides = [int(size[name]) for name in names if size.get(name)] or [int(size.get("longest_edge") or DEFAULT_SIDE)]
    multiples = [getattr(processor, name, None) or 1 for name in ("ensure_multiple_of", "size_divisor")]
    multiple = math.lcm(*(max(1, int(multiple)) for multiple in multiples))
    side = max(round(min(sides) / multiple), 1) * multiple
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"its images would be {side} pixels wide; {MIN_SIDE} to {MAX_SIDE} can be made")
    return side


def _mirrored(side: int) -> tuple[int, tuple[int, int]]:
    """View and border that fill `side`: ZoeDepth's border is 3 times the root of half the view's side."""
    view = next(view for view in range(side, 0, -1) if view + 2 * int(math.sqrt(view / 2) * 3) <= side)
    before = (side - view) // 2
    return view, (before, side - view - before)


class Pretrained:
    """A network and its pixels on one device.

    Args:
        folder: with `config.json`, `preprocessor_config.json` and safetensors.
        model_class: of `transformers`, one of its `AutoModelFor…` or a model's own.
        families: `model_type`s that are what the caller wants.
        task: what the caller wants, for messages.
        answers: which of the network's outputs count.
        device: `auto`, `cpu` or `cuda`.
        batch_size: of every forward pass.
        processor_settings: more arguments of the image processor.

    Raises:
        EstimatorFilesError: for another architecture, missing weights, files that do not fit together.
    """

    def __init__(
        self,
        folder: Path,
        model_class: Any,
        families: Sequence[str],
        task: str,
        answers: Answers,
        device: str,
        batch_size: int,
        **processor_settings: Any,
    ) -> None:
        self.folder = folder
        self.device = torch_device(device)
        self.batch_size = batch_size
        self.inputs: dict[str, torch.Tensor] = {}
        """Further inputs of the network, one row for all views."""
        self._answers = answers
        check_family(folder, families, task)
        with _files(folder), _quiet():
            from transformers import AutoImageProcessor

            where = {"local_files_only": True, "trust_remote_code": False}
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **where, **processor_settings)
            self.pixels = Pixels.of(self.processor)
            if "Auto" not in model_class.__name__:
                del where["trust_remote_code"]
            model, info = model_class.from_pretrained(
                folder, **where, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        self.config = model.config
        self.model = model.to(self.device).eval()
        self._absent = sorted(info["missing_keys"])

    def check(self) -> None:
        """A first look at one black view, after `inputs` are set.

        Weights that the files lack are of no harm if the answers do not depend on them (DPT's published files lack
        some of a layer that is never used).

        Raises:
            EstimatorFilesError: if the network cannot see such a view, or lacks weights that it needs.
        """
        view = torch.zeros((1, self.pixels.side, self.pixels.side, 3), dtype=torch.uint8, device=self.device)
        with _files(self.folder):
            if not self._absent:
                with exact():
                    self._forward(view)
                return
            needed = _needed(self.model, self._absent, self._forward(view))
        if needed:
            raise EstimatorFilesError(
                f"{self.folder} lacks weights that the network needs: {needed[0]}"
                + (f" and {len(needed) - 1} more" if len(needed) > 1 else "")
            )

    def __call__(self, views: Sequence[View]) -> Iterator[tuple[torch.Tensor, ...]]:
        """The answers for each view, in order; see `in_batches`."""
        return in_batches(views, self.batch_size, self.device, self._forward)

    def _forward(self, views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        more = {name: row.expand(len(views), *row.shape[1:]) for name, row in self.inputs.items()}
        return self._answers(self.model(pixel_values=self.pixels(views), **more))


def check_family(folder: Path, families: Sequence[str], task: str) -> str:
    """The `model_type` of a folder's config.

    Raises:
        EstimatorFilesError: for a config that cannot be read, or a family that does not do the task.
    """
    with _files(folder), _quiet():
        from transformers import PretrainedConfig

        family = PretrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
    if family not in families:
        raise EstimatorFilesError(f"{folder} is a network of type {family}; {task} needs one of {', '.join(families)}")
    return family


def _needed(model: torch.nn.Module, absent: Sequence[str], answers: tuple[torch.Tensor, ...]) -> list[str]:
    """Those of the absent weights that the answers depend on; of buffers that is not known, so all."""
    parameters = dict(model.named_parameters())
    asked = [name for name in absent if name in parameters]
    total = torch.stack([answer.sum() for answer in answers]).sum()
    gradients = torch.autograd.grad(total, [parameters[name] for name in asked], allow_unused=True) if asked else ()
    used = {name for name, gradient in zip(asked, gradients, strict=True) if gradient is not None}
    return [name for name in absent if name in used or name not in parameters]


@contextmanager
def _files(folder: Path) -> Iterator[None]:
    """Turns what `transformers` raises for unfit files into an error that names the folder."""
    try:
        yield
    except _FILE_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EstimatorFilesError(f"{folder}: {lines[0] if lines else type(error).__name__}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No report of loaded weights and no bar; what is missing is checked."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()

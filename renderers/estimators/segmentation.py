"""Semantic or panoptic segmentation by networks of `transformers`, in the colours of the published palette.

Semantic: a class takes the place in the palette after its number, so black means nothing here. Panoptic: segments take
places by their size, the largest first, black is what no segment covers. Scores are resized before the best is taken.
OneFormer knows which classes are stuff, and their segments become one; other networks' stay as they are found.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from uvd.renderers.estimators.base import Estimates, Estimator, EstimatorFilesError, View
from uvd.renderers.estimators.config import SegmentationSettings
from uvd.renderers.estimators.hub import folder_of
from uvd.renderers.estimators.pretrained import Pretrained, check_family
from uvd.renderers.palette import PALETTE_SIZE, paint
from uvd.sequences import IMAGE_SIZE

SEMANTIC = tuple(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
"""Families that score each class at each pixel: SegFormer, UperNet, DPT, BEiT, MobileViT, ..."""
MASKS = ("maskformer", "mask2former", "oneformer")
"""Families that predict masks and a class for each: semantic and panoptic."""

SURE = 0.5
"""Least probability of a mask's class."""
LEFT = 0.8
"""Least share of a mask that other masks leave it, or it is no segment of its own."""


class SegmentationEstimator(Estimator):
    """
    Args:
        settings: which network, and which form of segmentation.
        device: `auto`, `cpu` or `cuda`.
        batch_size: of every forward pass.

    Raises:
        EstimatorFilesError: see `Pretrained`; also for more classes than the palette has colours, and for a OneFormer
            without its tokenizer or list of classes.
    """

    roles = ("segmentation",)

    def __init__(self, settings: SegmentationSettings, device: str, batch_size: int) -> None:
        self._form = settings.form
        folder = folder_of(settings.model)
        families = MASKS if settings.form == "panoptic" else (*SEMANTIC, *MASKS)
        family = check_family(folder, families, f"{settings.form} segmentation")
        self._masks = family in MASKS
        self._network = Pretrained(
            folder,
            AutoModelForUniversalSegmentation if self._masks else AutoModelForSemanticSegmentation,
            families,
            f"{settings.form} segmentation",
            _mask_answers if self._masks else _class_answers,
            device,
            batch_size,
            **({"repo_path": str(folder)} if family == "oneformer" else {}),
        )
        if self._network.config.num_labels >= PALETTE_SIZE:
            raise EstimatorFilesError(
                f"{folder} knows {self._network.config.num_labels} classes, the palette has {PALETTE_SIZE - 1} colours"
            )
        self._stuff: frozenset[int] = frozenset()
        if family == "oneformer":
            self._network.inputs["task_inputs"] = _task(folder, settings.form, self._network)
            things = self._network.processor.metadata["thing_ids"]
            self._stuff = frozenset(range(self._network.config.num_labels)) - frozenset(things)
        self._network.check()
        self.side = self._network.pixels.side

    def estimate(self, views: Sequence[View]) -> list[Estimates]:
        """
        Raises:
            EstimateError: if the network's answer is not finite.
        """
        draw = self._segments if self._form == "panoptic" else self._classes
        return [draw(answer) for answer in self._network(views)]

    def _classes(self, answer: tuple[torch.Tensor, ...]) -> Estimates:
        scores = class_scores(*answer) if self._masks else enlarged(answer[0])
        return {"segmentation": paint(scores.argmax(dim=0).cpu().numpy() + 1)}

    def _segments(self, answer: tuple[torch.Tensor, ...]) -> Estimates:
        classes, masks = answer
        segments = panoptic_segments(classes, masks, self._stuff).cpu().numpy()
        return {"segmentation": paint(by_size(segments))} if segments.any() else {}


def _class_answers(output: Any) -> tuple[torch.Tensor, ...]:
    return (output.logits,)


def _mask_answers(output: Any) -> tuple[torch.Tensor, ...]:
    return output.class_queries_logits, output.masks_queries_logits


def _task(folder: Path, form: str, network: Pretrained) -> torch.Tensor:
    """OneFormer's third input, `(1, task_seq_len)`: what it is to do, in tokens."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        length = network.config.task_seq_len
        tokens = tokenizer(f"the task is {form}", padding="max_length", max_length=length, truncation=True)
        # Padding counts as 0, whatever the tokenizer fills up with.
        task = np.array(tokens["input_ids"]) * np.array(tokens["attention_mask"])
    except Exception as error:
        raise EstimatorFilesError(f"{folder} is a OneFormer without a readable tokenizer: {error}") from error
    return torch.from_numpy(task[None]).to(network.device)


def enlarged(maps: torch.Tensor) -> torch.Tensor:
    """`(C, h, w)` → `(C, 256, 256)`, bilinear."""
    return F.interpolate(maps[None], (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)[0]


def class_scores(classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Scores of classes at each pixel: each mask's, weighed by its class (MaskFormer, arXiv 2107.06278, section 3.4).

    Args:
        classes: `(Q, C + 1)` logits; the last is "nothing".
        masks: `(Q, h, w)` logits.

    Returns:
        `(C, 256, 256)`.
    """
    return torch.einsum("qc,qhw->chw", classes.softmax(dim=-1)[:, :-1], enlarged(masks).sigmoid())


def panoptic_segments(classes: torch.Tensor, masks: torch.Tensor, stuff: Collection[int] = ()) -> torch.Tensor:
    """Segments that do not overlap (MaskFormer, arXiv 2107.06278, section 3.4).

    A pixel goes to the mask with the highest product of class and mask probability. A segment is what a mask gets and
    is itself sure of; a mask that others cover for the most part is dropped.

    Args:
        classes: `(Q, C + 1)` logits; the last is "nothing".
        masks: `(Q, h, w)` logits.
        stuff: classes of which a picture has one segment.

    Returns:
        `(256, 256)` int64, 1 and more for segments, 0 where there is none.
    """
    scores, labels = classes.softmax(dim=-1).max(dim=-1)
    kept = (labels < classes.shape[-1] - 1) & (scores > SURE)
    segments = torch.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=torch.int64, device=masks.device)
    if not kept.any():
        return segments
    shares = enlarged(masks[kept]).sigmoid()
    best = (shares * scores[kept][:, None, None]).argmax(dim=0)
    of_stuff: dict[int, int] = {}
    for place, label in enumerate(labels[kept].tolist()):
        won, wanted = best == place, shares[place] >= 0.5
        shown = won & wanted
        if not shown.any() or int(won.sum()) < LEFT * int(wanted.sum()):
            continue
        new = place + 1
        segments[shown] = of_stuff.setdefault(label, new) if label in stuff else new
    return segments


def by_size(segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(H, W)` ids, 0 or less is nothing → 1 for the largest segment, 2 for the next, ...; ties by id; 0 is nothing."""
    ids, inverse, areas = np.unique(segments, return_inverse=True, return_counts=True)
    ranks = np.zeros(len(ids), np.int64)
    order = np.lexsort((ids, -areas))
    order = order[ids[order] > 0]
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks[inverse].reshape(segments.shape)

"""Semantic or panoptic segmentation by networks of `transformers`, in the colours of the published palette.

Semantic: a class takes the place in the palette after its number, so black means nothing here. Panoptic: segments take
places by their size, the largest first, black is what no segment covers. Scores are resized before the best is taken.
OneFormer knows which classes are stuff, and their segments become one; other networks' stay as they are found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
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

_SIZE = (IMAGE_SIZE, IMAGE_SIZE)


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
        if self._masks:
            outputs = _outputs(answer)
            (classes,) = self._network.processor.post_process_semantic_segmentation(outputs, target_sizes=[_SIZE])
        else:
            scores = F.interpolate(answer[0][None], _SIZE, mode="bilinear", align_corners=False)
            classes = scores[0].argmax(dim=0)
        return {"segmentation": paint(classes.cpu().numpy() + 1)}

    def _segments(self, answer: tuple[torch.Tensor, ...]) -> Estimates:
        (found,) = self._network.processor.post_process_panoptic_segmentation(
            # An empty set: with another one, segments that follow a fused one may get an id that is taken.
            _outputs(answer),
            label_ids_to_fuse=set(),
            target_sizes=[_SIZE],
        )
        if not found["segments_info"]:
            return {}
        segments = found["segmentation"].cpu().numpy().astype(np.int64)
        labels = {int(segment["id"]): int(segment["label_id"]) for segment in found["segments_info"]}
        return {"segmentation": paint(by_size(fused(segments, labels, self._stuff)))}


def _class_answers(output: Any) -> tuple[torch.Tensor, ...]:
    return (output.logits,)


def _mask_answers(output: Any) -> tuple[torch.Tensor, ...]:
    return output.class_queries_logits, output.masks_queries_logits


def _outputs(answer: tuple[torch.Tensor, ...]) -> SimpleNamespace:
    """One view's answer in the form that processors read."""
    return SimpleNamespace(class_queries_logits=answer[0][None], masks_queries_logits=answer[1][None])


def _task(folder: Path, form: str, network: Pretrained) -> torch.Tensor:
    """OneFormer's third input, `(1, task_seq_len)`: what it is to do, in tokens."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        length = network.config.task_seq_len
        tokens = tokenizer(f"the task is {form}", padding="max_length", max_length=length, truncation=True)
        # Padding counts as 0, whatever the tokenizer fills up with.
        task = np.array(tokens["input_ids"]) * np.array(tokens["attention_mask"])
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise EstimatorFilesError(f"{folder} is a OneFormer without a readable tokenizer: {error}") from error
    return torch.from_numpy(task[None]).to(network.device)


def fused(segments: NDArray[np.int64], labels: Mapping[int, int], stuff: Collection[int]) -> NDArray[np.int64]:
    """A map of segments in which those of one class of stuff have the first one's id.

    Args:
        segments: `(H, W)` ids.
        labels: id → class.
        stuff: classes of which a picture has one segment.
    """
    result = segments.copy()
    first: dict[int, int] = {}
    for segment, label in labels.items():
        if label in stuff:
            result[segments == segment] = first.setdefault(label, segment)
    return result


def by_size(segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(H, W)` ids, 0 or less is nothing → 1 for the largest segment, 2 for the next, ...; ties by id; 0 is nothing."""
    ids, inverse, areas = np.unique(segments, return_inverse=True, return_counts=True)
    ranks = np.zeros(len(ids), np.int64)
    order = np.lexsort((ids, -areas))
    order = order[ids[order] > 0]
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks[inverse].reshape(segments.shape)

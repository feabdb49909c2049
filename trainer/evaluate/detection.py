"""`detection`: the box of a single object, drawn as a filled white rectangle on black.

LVM paper's comparison with visual prompting, by the protocol of Bar et al. (arXiv 2209.00647): Pascal VOC 2012 photos
with one object whose box is under 20 % of the photo, queries from `val`, examples of the same class from `train`; the
largest white component of the prediction becomes a rectangle; IoU averaged over episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Resize, Seeds
from uvd.trainer.evaluate.drawn_tasks import episode_sheet, score_episodes
from uvd.trainer.evaluate.pascal import CLASSES, FOLDS, Pascal, fold_classes, white_on_black
from uvd.trainer.evaluate.prompting import (
    DEFAULT_ASKING,
    PREDICTORS,
    Answered,
    Asking,
    Episode,
    EvaluationError,
    VisualModel,
    check_context,
)
from uvd.trainer.evaluate.report import Report, mean_row
from uvd.trainer.evaluate.scorers import Overlap, box_mask, foreground, largest_rectangle, mean_iou, overlap

EPISODES = 1000
MAX_SHARE = 0.2
"""Of the photo's area that the box may cover."""
PROTOCOL = (
    "Pascal VOC photos with a single object whose box covers under 20 % of the photo; queries from val, examples of "
    "the same class from train; the box filled white on black. The bounds of the largest white component (pixels "
    "nearer to white than to black, 8 neighbours) are the predicted box; nothing white is no box, IoU 0. mIoU: mean of "
    "episodes. Folds are those of Pascal-5i, by the query's class."
)


def detection_episodes(
    pascal: Pascal, fold: int, examples: int = 1, episodes: int = EPISODES, seed: int = 0, resize: Resize = "stretch"
) -> Iterator[Episode]:
    """Draws queries of a fold's classes in a seeded order, again and again until there are enough.

    Raises:
        EvaluationError: if no class of the fold has a query and enough examples.
    """
    seeds = Seeds(seed, ("evaluate", "detection", fold))
    classes = fold_classes(fold)
    supports: dict[int, list[tuple[str, tuple[float, ...]]]] = {number: [] for number in classes}
    for name, number, box in pascal.single_objects("train", MAX_SHARE):
        if number in supports:
            supports[number].append((name, box))
    queries = [
        (name, number, box)
        for name, number, box in pascal.single_objects("val", MAX_SHARE)
        if number in supports and len(supports[number]) >= examples
    ]
    if not queries:
        raise EvaluationError(
            f"fold {fold}: no val photo in {pascal.root} has a single object under {MAX_SHARE:.0%} of its area and "
            f"{examples} such photos of its class in train"
        )
    for index in range(episodes):
        turn, place = divmod(index, len(queries))
        name, number, box = queries[int(seeds.generator("order", turn).permutation(len(queries))[place])]
        # A photo that is in both lists is no example of itself.
        others = [support for support in supports[number] if support[0] != name]
        if len(others) < examples:
            raise EvaluationError(f"{name} is in train and val, and its class has too few other examples")
        chosen = seeds.generator("examples", index).choice(len(others), examples, replace=False)
        shown = [pascal.box_pair(others[other][0], others[other][1], resize) for other in chosen]
        asked, truth = pascal.box_pair(name, box, resize)
        yield Episode(f"fold{fold}/{index:05d}", np.concatenate([*shown, asked[None]]), truth, CLASSES[number - 1])


def read_box(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The predicted box of a picture `(H, W, 3)` uint8 RGB, as a mask `(H, W)` bool."""
    return box_mask(largest_rectangle(foreground(picture)), *picture.shape[:2])


def score_box(picture: NDArray[np.uint8], episode: Episode) -> Overlap:
    return overlap(read_box(picture), foreground(episode.truth))


def summarize(overlaps: Sequence[Overlap], _: Sequence[str]) -> dict[str, float]:
    return {"mIoU": mean_iou(overlaps)}


def evaluate_detection(
    model: VisualModel,
    folder: str | Path,
    *,
    folds: Sequence[int] = tuple(range(FOLDS)),
    examples: int = 1,
    episodes: int = EPISODES,
    seed: int = 0,
    resize: Resize = "stretch",
    asking: Asking = DEFAULT_ASKING,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures each fold, and their mean; arguments as of `evaluate_segmentation`.

    Raises:
        EvaluationError: for files that cannot be read, or a prompt that does not fit the model's context.
    """
    check_context(model, 2 * examples + 2, f"{examples} examples, a query and its answer")
    pascal = Pascal.open(folder)
    settings = {"pascal": str(pascal.root), "max_share": MAX_SHARE, "folds": list(folds), "examples": examples}
    settings |= {"episodes": episodes, "seed": seed, "resize": resize}
    report = Report("detection", PROTOCOL, settings, axis="mIoU")
    shown: list[Answered] = []
    for fold in folds:
        drawn = detection_episodes(pascal, fold, examples, episodes, seed, resize)
        rows, first = score_episodes(model, drawn, score_box, summarize, f"fold {fold}", asking, advance)
        report.rows += rows
        shown += first
    if len(folds) > 1:
        report.rows += [mean_row(report.rows, name) for name in PREDICTORS if any(r.predictor == name for r in rows)]
    report.sheet = episode_sheet(shown, "detection", lambda picture, _: white_on_black(read_box(picture)))
    return report

"""`segmentation`: foreground segmentation of Pascal-5i, one or more examples of a class and a query.

LVM paper's comparison with visual prompting, by the protocol of Bar et al. (arXiv 2209.00647): validation photos of
each fold, examples of the query's class from the same fold, masks white on black, photos stretched to the square, 1,000
episodes a fold, IoU of the foreground averaged over episodes. 256 forward passes a batch of episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Resize, Seeds
from uvd.trainer.evaluate.drawn_tasks import episode_sheet, score_episodes
from uvd.trainer.evaluate.pascal import CLASSES, FOLDS, Pascal, white_on_black
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
from uvd.trainer.evaluate.scorers import Overlap, class_iou, foreground, mean_iou, overlap

EPISODES = 1000
PROTOCOL = (
    "Pascal-5i validation photos of each fold; examples of the query's class from the same fold; class white on black, "
    "void black; a predicted pixel is foreground if it is nearer to white than to black. mIoU: IoU of the foreground, "
    "averaged over episodes. class mIoU: pixels summed over a class's episodes first, then averaged over classes."
)


def segmentation_episodes(
    pascal: Pascal,
    fold: int,
    examples: int = 1,
    episodes: int = EPISODES,
    seed: int = 0,
    resize: Resize = "stretch",
    lists: Path | None = None,
) -> Iterator[Episode]:
    """Draws queries in a seeded order of all (photo, class) of the fold, again and again until there are enough.

    Raises:
        EvaluationError: if no class of the fold has more photos than examples are wanted.
    """
    seeds = Seeds(seed, ("evaluate", "segmentation", fold))
    pairs = pascal.fold_pairs(fold, lists)
    of_class: dict[int, list[str]] = {}
    for name, number in pairs:
        of_class.setdefault(number, []).append(name)
    usable = [pair for pair in pairs if len(of_class[pair[1]]) > examples]
    if not usable:
        raise EvaluationError(f"fold {fold}: no class has {examples + 1} photos in {pascal.root}")
    for index in range(episodes):
        turn, place = divmod(index, len(usable))
        name, number = usable[int(seeds.generator("order", turn).permutation(len(usable))[place])]
        others = [other for other in of_class[number] if other != name]
        chosen = seeds.generator("examples", index).choice(len(others), examples, replace=False)
        shown = [pascal.mask_pair(others[other], number, resize) for other in chosen]
        asked, truth = pascal.mask_pair(name, number, resize)
        yield Episode(f"fold{fold}/{index:05d}", np.concatenate([*shown, asked[None]]), truth, CLASSES[number - 1])


def score_mask(picture: NDArray[np.uint8], episode: Episode) -> Overlap:
    return overlap(foreground(picture), foreground(episode.truth))


def summarize(overlaps: Sequence[Overlap], classes: Sequence[str]) -> dict[str, float]:
    return {"mIoU": mean_iou(overlaps), "class mIoU": class_iou(overlaps, classes)}


def evaluate_segmentation(
    model: VisualModel,
    folder: str | Path,
    *,
    folds: Sequence[int] = tuple(range(FOLDS)),
    examples: int = 1,
    episodes: int = EPISODES,
    seed: int = 0,
    resize: Resize = "stretch",
    lists: Path | None = None,
    asking: Asking = DEFAULT_ASKING,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures each fold, and their mean.

    Args:
        folder: in VOC's form.
        lists: folder with the published `fold0.txt` …; without it folds follow from the masks.
        examples: k of k-shot.
        resize: `stretch` as Bar et al., or `center_crop` as uvd's data.

    Raises:
        EvaluationError: for files that cannot be read, or a prompt that does not fit the model's context.
    """
    check_context(model, 2 * examples + 2, f"{examples} examples, a query and its answer")
    pascal = Pascal.open(folder)
    settings: dict[str, Any] = {"pascal": str(pascal.root), "masks": pascal.masks}
    settings |= {"lists": str(lists) if lists else None}
    settings |= {"folds": list(folds), "examples": examples, "episodes": episodes, "seed": seed, "resize": resize}
    report = Report("segmentation", PROTOCOL, settings, axis="mIoU")
    shown: list[Answered] = []
    for fold in folds:
        drawn = segmentation_episodes(pascal, fold, examples, episodes, seed, resize, lists)
        rows, first = score_episodes(model, drawn, score_mask, summarize, f"fold {fold}", asking, advance)
        report.rows += rows
        shown += first
    if len(folds) > 1:
        report.rows += [mean_row(report.rows, name) for name in PREDICTORS if any(r.predictor == name for r in rows)]
    report.sheet = episode_sheet(shown, "segmentation", lambda picture, _: white_on_black(foreground(picture)))
    return report

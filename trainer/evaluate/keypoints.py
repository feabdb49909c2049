"""`keypoints`: an object, and its keypoints as coloured dots.

LVM paper, section 4.3: keypoints of Pascal 3D+, measured by PCK at 0.1. The object is shown as a square crop around its
true box; a keypoint is right within 0.1 of the box's longer side. The dots' form is ours: see `keypoint_picture.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Seeds
from uvd.trainer.evaluate.drawn_tasks import episode_sheet, score_episodes
from uvd.trainer.evaluate.keypoint_picture import draw_keypoints, read_keypoints
from uvd.trainer.evaluate.pascal3d import CLASSES, crop_object, objects_of_class
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
from uvd.trainer.evaluate.scorers import correct_keypoints

EPISODES = 1000
ALPHA = 0.1
PROTOCOL = (
    "Pascal 3D+ objects of each class, cropped to a square around the true box with a margin of 10 %; examples of the "
    "same class in other photos; visible keypoints drawn as dots of one colour each and read back as centres of the "
    "largest spot of each colour. PCK: share of visible keypoints within 0.1 of the box's longer side; the mean is "
    "over classes."
)


def keypoint_episodes(
    root: Path, name: str, examples: int = 3, episodes: int = EPISODES, seed: int = 0, subset: str = "pascal"
) -> Iterator[Episode]:
    """Draws queries of a class in a seeded order, each object at most once; `facts` is (keypoints, longer side).

    Raises:
        EvaluationError: for files that cannot be read, or fewer photos than examples and a query need.
    """
    objects = objects_of_class(root, name, subset)
    if len({item.photo for item in objects}) <= examples:
        raise EvaluationError(f"{name}: {examples} examples and a query need more photos than there are in {root}")
    seeds = Seeds(seed, ("evaluate", "keypoints", name))
    done = 0
    for place in seeds.generator("queries").permutation(len(objects)).tolist():
        query = objects[place]
        others = [item for item in objects if item.photo != query.photo]
        if done == episodes or len(others) < examples:
            continue
        picture, keypoints, size = crop_object(root, query)
        if not np.isfinite(keypoints).any():
            continue
        chosen = seeds.generator("examples", done).choice(len(others), examples, replace=False)
        shown = []
        for other in chosen:
            crop, points, _ = crop_object(root, others[other])
            shown += [crop, draw_keypoints(points)]
        prompt = np.stack([*shown, picture])
        yield Episode(f"{name}/{done:05d}", prompt, draw_keypoints(keypoints), name, (keypoints, size))
        done += 1


def score_keypoints(picture: NDArray[np.uint8], episode: Episode) -> tuple[int, int]:
    keypoints, size = episode.facts
    return correct_keypoints(read_keypoints(picture, len(keypoints)), keypoints, size, ALPHA)


def summarize(counts: Sequence[tuple[int, int]], _: Sequence[str]) -> dict[str, float]:
    right, visible = np.sum(counts, axis=0).tolist()
    return {"PCK@0.1": right / visible if visible else float("nan")}


def evaluate_keypoints(
    model: VisualModel,
    folder: str | Path,
    *,
    classes: Sequence[str] = (),
    subset: str = "pascal",
    examples: int = 3,
    episodes: int = EPISODES,
    seed: int = 0,
    asking: Asking = DEFAULT_ASKING,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures each class, and their mean.

    Args:
        folder: `PASCAL3D+_release1.1`.
        classes: by default all that are annotated.
        episodes: of each class, at most.

    Raises:
        EvaluationError: for files that cannot be read, or a prompt that does not fit the model's context.
    """
    check_context(model, 2 * examples + 2, f"{examples} examples, a query and its answer")
    root = Path(folder).expanduser()
    chosen = list(classes) or [name for name in CLASSES if (root / "Annotations" / f"{name}_{subset}").is_dir()]
    if not chosen:
        raise EvaluationError(f"no Annotations/CLASS_{subset} in {root}: expected PASCAL3D+_release1.1")
    settings = {"pascal3d": str(root), "subset": subset, "classes": chosen, "examples": examples}
    report = Report("keypoints", PROTOCOL, settings | {"episodes": episodes, "seed": seed}, axis="PCK@0.1")
    shown: list[Answered] = []
    for name in chosen:
        drawn = keypoint_episodes(root, name, examples, episodes, seed, subset)
        rows, first = score_episodes(model, drawn, score_keypoints, summarize, name, asking, advance)
        report.rows += rows
        shown += first
    if len(chosen) > 1:
        report.rows += [mean_row(report.rows, name) for name in PREDICTORS if any(r.predictor == name for r in rows)]
    report.sheet = episode_sheet(shown, "keypoints", _as_read)
    return report


def _as_read(picture: NDArray[np.uint8], episode: Episode) -> NDArray[np.uint8]:
    return draw_keypoints(read_keypoints(picture, len(episode.facts[0])))

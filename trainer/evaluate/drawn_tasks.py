"""What tasks with a predicted picture share: all predictors scored, averages, and a sheet of the first episodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.sheet import Frame, contact_sheet
from uvd.trainer.evaluate.prompting import (
    MODEL,
    PREDICTORS,
    QUERY,
    TOKENIZER,
    TRUTH,
    Answered,
    Asking,
    Episode,
    VisualModel,
    answer,
)
from uvd.trainer.evaluate.report import Row

SHEET_EPISODES = 8
Score = TypeVar("Score")


def score_episodes(
    model: VisualModel,
    episodes: Iterable[Episode],
    score: Callable[[NDArray[np.uint8], Episode], Score],
    summary: Callable[[Sequence[Score], Sequence[str]], dict[str, float]],
    group: str,
    asking: Asking,
    advance: Callable[[int], None] = lambda done: None,
    *,
    with_query: bool = False,
) -> tuple[list[Row], list[Answered]]:
    """Asks the model, scores every predictor's picture, and averages.

    Args:
        score: of a picture `(256, 256, 3)` uint8 RGB in an episode.
        summary: of one predictor's scores and the episodes' groups, one each.
        group: name of these episodes in the rows.
        with_query: score the query itself as an answer too.

    Returns:
        a row a predictor, and the first episodes with their pictures.
    """
    scores: dict[str, list[Score]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    shown: list[Answered] = []
    for answered in answer(model, episodes, asking):
        if len(shown) < SHEET_EPISODES:
            shown.append(answered)
        for predictor, picture in answered.pictures.items():
            if predictor == QUERY and not with_query:
                continue
            scores[predictor].append(score(picture, answered.episode))
            groups[predictor].append(answered.episode.group)
        advance(1)
    order = [predictor for predictor in PREDICTORS if predictor in scores]
    rows = [Row(group, name, len(scores[name]), summary(scores[name], groups[name])) for name in order]
    return rows, shown


def episode_sheet(
    shown: Sequence[Answered],
    title: str,
    read: Callable[[NDArray[np.uint8], Episode], NDArray[np.uint8]] | None = None,
) -> NDArray[np.uint8] | None:
    """A row an episode: last example and its answer, query, prediction, what was read from it, and the truth.

    Args:
        read: draws what the scorer reads from a predicted picture; left out if None.

    Returns:
        `(height, width, 3)` uint8 RGB, or None for no episodes.
    """
    pictures: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    frames: list[Frame] = []
    with_example = all(len(answered.episode.prompt) >= 3 for answered in shown)
    for answered in shown:
        episode = answered.episode
        given = list(episode.prompt[-3:] if with_example else episode.prompt[-1:])
        names = ["example", "its answer", "query"][-len(given) :]
        predicted = [answered.pictures[MODEL]]
        told = ["prediction"]
        if read is not None:
            predicted.append(read(answered.pictures[MODEL], episode))
            told.append("as read")
        true = [answered.pictures[TRUTH], answered.pictures[TOKENIZER]]
        pictures += [*given, *predicted, *true]
        labels += [f"{names[0]} {episode.name}", *names[1:], *told, "truth", "truth, tokenized"]
        kinds: tuple[tuple[Frame, int], ...] = (
            ("given", len(given)),
            ("predicted", len(predicted)),
            ("none", len(true)),
        )
        frames += [kind for kind, count in kinds for _ in range(count)]
    if not pictures:
        return None
    columns = len(pictures) // len(shown)
    return contact_sheet(pictures, labels, columns=columns, title=title, frames=frames)

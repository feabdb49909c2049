"""`frames`: perplexity of the next frame of a video after 1 to 15 frames of context.

LVM paper, section 4.2: sequential prompting on Kinetics-700's validation videos, where perplexity falls as frames are
added. Windows of the `frames` layout of held-out videos; one forward pass a window gives the whole curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from uvd.manifests.dataset import Dataset
from uvd.sequences import Seeds
from uvd.trainer.evaluate.chart import Curve
from uvd.trainer.evaluate.dataset_episodes import HELD_OUT, DatasetPictures, windows
from uvd.trainer.evaluate.perplexity import OTHER, known_rows, perplexity_row
from uvd.trainer.evaluate.prompting import (
    BLANK,
    MODEL,
    EvaluationError,
    PromptCache,
    VisualModel,
    batches,
    blank,
    check_context,
)
from uvd.trainer.evaluate.report import Report

MAX_CONTEXT_FRAMES = 15
PROTOCOL = (
    "Perplexity of frame n + 1 after frames 1 to n of a window, for each n: exp of the mean of -log p over its 256 "
    "tokens, averaged over windows, all of which are long enough for the longest context; pooled: exp of the mean over "
    "all their tokens. Baselines at the longest context: a model that knows the frame (1), every code equally likely, "
    "a black frame, another window's frame."
)


def evaluate_frames(
    model: VisualModel,
    dataset: Dataset,
    *,
    context_frames: int | None = None,
    episodes: int = 1000,
    splits: Sequence[str] = HELD_OUT,
    sources: Sequence[str] = (),
    seed: int = 0,
    batch: int = 8,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures up to `episodes` windows, chosen by the seed.

    Args:
        context_frames: the longest context; by default 15, or what the model's context holds.

    Raises:
        EvaluationError: if no held-out window is long enough, or the model's context is too short.
    """
    longest = context_frames or min(MAX_CONTEXT_FRAMES, model.context_images - 1)
    if not 1 <= longest <= MAX_CONTEXT_FRAMES:
        raise EvaluationError(f"{longest} frames of context: expected 1 to {MAX_CONTEXT_FRAMES}")
    check_context(model, longest + 1, f"{longest} frames and the next one")
    found = windows(dataset, longest + 1, splits, sources)
    order = Seeds(seed, ("evaluate", "frames")).generator().permutation(len(found))[:episodes]
    pictures, cache = DatasetPictures(dataset), PromptCache(model)
    curve: list[list[float]] = [[] for _ in range(longest)]
    wrong: dict[str, list[float]] = {BLANK: [], OTHER: []}
    for part in batches(order.tolist(), max(2, batch)):
        ids = [cache.encode(pictures.read(found[index])) for index in part]
        for window in ids:
            for frames, losses in enumerate(model.token_losses(window)[1:]):
                curve[frames].append(float(np.exp(losses.mean())))
        contexts, last = [window[:-1] for window in ids], np.stack([window[-1] for window in ids])
        black = np.repeat(cache.encode(blank()[None]), len(ids), axis=0)
        wrong[BLANK] += model.perplexity(contexts, black).tolist()
        if len(ids) > 1:
            wrong[OTHER] += model.perplexity(contexts, np.roll(last, 1, axis=0)).tolist()
        advance(len(part))
    settings = {"dataset": dataset.uri, "context_frames": longest, "windows": len(order), "splits": list(splits)}
    settings |= {"sources": list(sources), "seed": seed, "held_out_windows": len(found)}
    report = Report("frames", PROTOCOL, settings, axis="perplexity", better="lower", x_axis="frames of context")
    report.rows = [perplexity_row(f"{frames + 1}", MODEL, values) for frames, values in enumerate(curve)]
    report.rows += [perplexity_row(f"{longest}", name, values) for name, values in wrong.items() if values]
    report.rows += known_rows(f"{longest}", len(order))
    means = tuple(float(np.mean(values)) for values in curve)
    report.curves = [Curve(MODEL, tuple(float(frames + 1) for frames in range(longest)), means)]
    return report

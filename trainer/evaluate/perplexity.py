"""`perplexity`: five example pairs and a query, and how surprised the model is by the true annotation.

LVM paper, section 4.1 and its figures of scaling and of data sets: segmentation, depth, normals and edges of ImageNet's
validation images, 5-shot; exp of the mean of −log p over the answer's 256 tokens, averaged over examples. One forward
pass of 12 images an example, and three more for the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset
from uvd.manifests.tokens import CODEBOOK_SIZE, TOKENS_PER_IMAGE
from uvd.trainer.evaluate.dataset_episodes import HELD_OUT, DatasetPictures, pair_episodes, pairs_by_role
from uvd.trainer.evaluate.prompting import (
    BLANK,
    MODEL,
    TRUTH,
    Episode,
    EvaluationError,
    PromptCache,
    VisualModel,
    batches,
    blank,
    check_context,
)
from uvd.trainer.evaluate.report import Report, Row
from uvd.trainer.evaluate.scorers import perplexity_of

ROLES = ("segmentation", "depth", "normals", "edges")
"""The paper's four annotations."""
NO_EXAMPLES, OTHER, UNIFORM = "no examples", "another's answer", "uniform"
PROTOCOL = (
    "Perplexity of the true answer after example pairs and a query: exp of the mean of -log p over its 256 tokens, "
    "averaged over episodes; pooled: exp of the mean over all tokens of all episodes. Baselines: a model that knows "
    "the answer (1), every code equally likely, the same model without examples, and asked for a black picture or for "
    "the answer of another episode in place of the true one."
)


def evaluate_perplexity(
    model: VisualModel,
    dataset: Dataset,
    *,
    roles: Sequence[str] = (),
    examples: int = 5,
    episodes: int = 1000,
    splits: Sequence[str] = HELD_OUT,
    sources: Sequence[str] = (),
    seed: int = 0,
    batch: int = 8,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures each role of the dataset's held-out pairs.

    Args:
        roles: of the annotations; by default those of the paper that the dataset has, or else all it has.
        examples: pairs before the query.
        episodes: of each role.
        advance: called with the number of episodes that are done.

    Raises:
        EvaluationError: if the dataset has no such pairs, too few of them, or the model's context is too short.
    """
    check_context(model, 2 * examples + 2, f"{examples} example pairs, a query and its answer")
    found = pairs_by_role(dataset, splits, sources)
    wanted = list(roles) or [role for role in ROLES if role in found] or sorted(found)
    if not wanted or set(wanted) - set(found):
        raise EvaluationError(
            f"no pairs of {', '.join(sorted(set(wanted) - set(found))) or 'any role'} in {dataset.uri}, splits "
            f"{', '.join(splits)}; there are {', '.join(sorted(found)) or 'none'}"
        )
    settings = {"dataset": dataset.uri, "examples": examples, "episodes": episodes, "splits": list(splits)}
    settings |= {"sources": list(sources), "seed": seed}
    report = Report("perplexity", PROTOCOL, settings, axis="perplexity", better="lower", undrawn=(UNIFORM,))
    pictures = DatasetPictures(dataset)
    for role in wanted:
        drawn = pair_episodes(pictures, role, found[role], examples, episodes, seed)
        measured: dict[str, list[float]] = {}
        cache = PromptCache(model)
        for part in batches(drawn, max(2, batch)):
            for name, values in _measure(model, cache, part, examples).items():
                measured.setdefault(name, []).extend(values.tolist())
            advance(len(part))
        report.rows += [perplexity_row(role, name, values) for name, values in measured.items()]
        report.rows += known_rows(role, len(measured[MODEL]))
    return report


def _measure(
    model: VisualModel, cache: PromptCache, episodes: Sequence[Episode], examples: int
) -> dict[str, NDArray[np.float64]]:
    prompts = [cache.encode(episode.prompt) for episode in episodes]
    answers = cache.encode(np.stack([episode.truth for episode in episodes]))
    black = np.repeat(cache.encode(blank()[None]), len(episodes), axis=0)
    measured = {MODEL: model.perplexity(prompts, answers)}
    if examples:
        measured[NO_EXAMPLES] = model.perplexity([prompt[-1:] for prompt in prompts], answers)
    measured[BLANK] = model.perplexity(prompts, black)
    if len(episodes) > 1:
        measured[OTHER] = model.perplexity(prompts, np.roll(answers, 1, axis=0))
    return measured


def perplexity_row(group: str, predictor: str, values: Sequence[float]) -> Row:
    """Mean over episodes with its standard error (NaN for one episode), and the perplexity of all their tokens.

    A single hard episode can rule the mean, not the pooled value: it is exp of the mean over all tokens.
    """
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    pooled = float(np.exp(np.mean(np.log(values))))
    return Row(
        group, predictor, len(values), {"perplexity": float(np.mean(values)), "± error": error, "pooled": pooled}
    )


def known_rows(group: str, episodes: int) -> list[Row]:
    """What the scorer gives to a model that knows the answer, and to one that finds every code equally likely."""
    certain = perplexity_of(np.zeros(TOKENS_PER_IMAGE))
    uniform = perplexity_of(np.full(TOKENS_PER_IMAGE, np.log(CODEBOOK_SIZE)))
    return [
        Row(group, TRUTH, episodes, {"perplexity": certain, "pooled": certain}),
        Row(group, UNIFORM, episodes, {"perplexity": uniform, "pooled": uniform}),
    ]

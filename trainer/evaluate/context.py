"""`context`: how much example pairs before the query help: perplexity of the true answer after 0, 1, 2, 4 … of them.

The in-context learning that the LVM paper shows by visual prompts (arXiv 2312.00785, section 4.3), as a curve. Every
point is measured on the same queries, answers and examples: k pairs are the last k of the longest prompt. Costs a
forward pass of 2k + 2 images a point and episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset
from uvd.sequences import Seeds
from uvd.trainer.evaluate.chart import Curve
from uvd.trainer.evaluate.dataset_episodes import (
    HELD_OUT,
    DatasetPictures,
    Stored,
    most_examples,
    pair_episodes,
    pairs_by_role,
)
from uvd.trainer.evaluate.prompting import EvaluationError, PromptCache, VisualModel, batches, check_context
from uvd.trainer.evaluate.report import Report, Row

PAIRS = (0, 1, 2, 4)
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
PROTOCOL = (
    "Perplexity of the true answer after so many example pairs and the query: exp of the mean of -log p over its 256 "
    "tokens, averaged over a query's episodes, then over queries. low and high: 95 % bootstrap interval over queries. "
    "pooled: exp of the mean over all tokens. ratio: pooled, relative to that of the fewest pairs on the same queries, "
    "with an interval of its own; below 1 means that examples help."
)


def evaluate_context(
    model: VisualModel,
    dataset: Dataset,
    *,
    roles: Sequence[str] = (),
    pairs: Sequence[int] = PAIRS,
    episodes: int = 200,
    splits: Sequence[str] = HELD_OUT,
    sources: Sequence[str] = (),
    seed: int = 0,
    batch: int = 8,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures each role of the dataset's held-out pairs.

    Args:
        roles: of the annotations; by default all that have enough pairs, and the report notes which have not.
        pairs: numbers of example pairs before the query.
        episodes: of each role. More than there are held-out pairs ask the same queries again after other examples.
        advance: called with the number of episodes that are done.

    Raises:
        EvaluationError: if the dataset has no such pairs, too few of them, or the model's context is too short.
    """
    counts = sorted(set(pairs))
    if not counts or counts[0] < 0:
        raise EvaluationError(f"numbers of example pairs {list(pairs)}: expected some, none below 0")
    most = counts[-1]
    check_context(model, 2 * most + 2, f"{most} example pairs, a query and its answer")
    found = pairs_by_role(dataset, splits, sources)
    wanted, notes = measurable_roles(found, roles, most, f"{dataset.uri}, splits {', '.join(splits)}")
    settings = {"dataset": dataset.uri, "pairs": counts, "episodes": episodes, "splits": list(splits)}
    settings |= {"sources": list(sources), "seed": seed}
    report = Report("context", PROTOCOL, settings, axis="perplexity", better="lower", log_y=True, notes=notes)
    report.x_axis = "example pairs before the query"
    pictures = DatasetPictures(dataset)
    for role in wanted:
        cache = PromptCache(model)
        queries: list[str] = []
        losses: list[NDArray[np.float64]] = []
        for part in batches(pair_episodes(pictures, role, found[role], most, episodes, seed), batch):
            prompts = [cache.encode(episode.prompt) for episode in part]
            answers = cache.encode(np.stack([episode.truth for episode in part]))
            shorter = [[prompt[2 * (most - count) :] for prompt in prompts] for count in counts]
            losses.append(np.log([model.perplexity(texts, answers) for texts in shorter]).T)
            queries += [blake2b(episode.prompt[-1].tobytes()).hexdigest() for episode in part]
            advance(len(part))
        rng = Seeds(seed, ("evaluate", "context", role)).generator("bootstrap")
        rows = context_rows(role, counts, np.concatenate(losses), queries, rng)
        report.rows += rows
        report.curves.append(Curve(role, tuple(map(float, counts)), tuple(row.measures["perplexity"] for row in rows)))
    return report


def measurable_roles(
    found: dict[str, list[Stored]], roles: Sequence[str], most: int, where: str
) -> tuple[list[str], list[str]]:
    """The roles to measure, and a note on each that is left out because no query has `most` examples.

    Raises:
        EvaluationError: if a role that is asked for by name cannot be measured, or none can.
    """
    few = {role: most_examples(role, pairs) for role, pairs in found.items() if most_examples(role, pairs) < most}
    if missing := sorted(set(roles) - set(found)):
        raise EvaluationError(
            f"no pairs of {', '.join(missing)} in {where}; there are {', '.join(sorted(found)) or 'none'}"
        )
    notes = [
        f"{role}: left out, a held-out query has at most {max(number, 0)} examples" for role, number in few.items()
    ]
    wanted = list(dict.fromkeys(roles)) or sorted(set(found) - set(few))
    if not wanted or set(wanted) & set(few):
        reasons = [note for note in notes if not roles or note.partition(":")[0] in roles]
        raise EvaluationError(f"{most} example pairs: {'; '.join(reasons) or f'there are no pairs in {where}'}")
    return wanted, notes


def context_rows(
    role: str,
    counts: Sequence[int],
    losses: NDArray[np.float64],
    queries: Sequence[str],
    rng: np.random.Generator,
) -> list[Row]:
    """A row for each number of pairs.

    Args:
        counts: numbers of pairs, ascending.
        losses: `(episodes, counts)` float64, nats a token.
        queries: which query each episode asked; episodes of one query are averaged before anything else, because they
            are no independent evidence.
        rng: draws the resamples of queries, the same for all numbers of pairs.
    """
    _, query = np.unique(np.array(queries), return_inverse=True)
    asked = np.bincount(query)
    mean_loss = np.stack([np.bincount(query, column) / asked for column in losses.T])
    perplexity = np.stack([np.bincount(query, column) / asked for column in np.exp(losses).T])
    chosen = rng.integers(len(asked), size=(RESAMPLES, len(asked)))
    rows = []
    for number, count in enumerate(counts):
        low, high = np.percentile(perplexity[number][chosen].mean(axis=1), INTERVAL)
        measures = {"perplexity": perplexity[number].mean(), "low": low, "high": high}
        measures |= {"pooled": np.exp(mean_loss[number].mean())}
        if number:
            gains = mean_loss[number] - mean_loss[0]
            low, high = np.exp(np.percentile(gains[chosen].mean(axis=1), INTERVAL))
            measures |= {"ratio": np.exp(gains.mean()), "ratio low": low, "ratio high": high}
        measures["queries"] = len(asked)
        name = f"{count} pair" if count == 1 else f"{count} pairs"
        rows.append(Row(role, name, len(losses), {key: float(value) for key, value in measures.items()}))
    return rows

"""Models that differ in one thing, trained with the same budget and measured on the same held-out tasks.

`scaling`: model sizes; `ablation`: subsets of the data. Both are figures of the LVM paper (arXiv 2312.00785, section
4.1). Every model sees as many tokens, in batches of the same size, by the same schedule. Costs the training of all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uvd.manifests.dataset import Dataset
from uvd.manifests.fingerprint import differences
from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.sequences.errors import UserError
from uvd.tokenize.training_log import Record, read_log
from uvd.trainer.config import TrainConfig
from uvd.trainer.data import TokenSplit, open_split
from uvd.trainer.evaluate.comparison_report import ComparisonReport, Measured
from uvd.trainer.evaluate.context import PAIRS, evaluate_context, measurable_roles
from uvd.trainer.evaluate.dataset_episodes import HELD_OUT, pairs_by_role
from uvd.trainer.evaluate.prompting import VisualModel
from uvd.trainer.evaluate.report import Report
from uvd.trainer.model import build_model, count_parameters, model_config
from uvd.trainer.train import LOG, MODEL, TrainingStoppedError, train

IDENTITY = "comparison.json"
"""In the run folder of each model: what it is trained on and how, so that no other run is taken for it."""
SHARED = ("steps", "batch_tokens", "packing", "warmup_steps", "final_lr_fraction", "num_threads", "seed")
"""Settings of the training that a report shows; all others are in its JSON."""
_LAST_SHARE = 0.1

log = logging.getLogger(__name__)


class ComparisonError(UserError):
    """A comparison that would not compare like with like, or that cannot be made here."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the models.

    Attributes:
        name: in tables and charts, and of its run folder.
        config: of its training.
    """

    name: str
    config: TrainConfig


@dataclass(frozen=True, slots=True)
class Tasks:
    """What is asked of each model when it is trained; see `evaluate_context`."""

    roles: tuple[str, ...] = ()
    pairs: tuple[int, ...] = PAIRS
    episodes: int = 200
    splits: tuple[str, ...] = HELD_OUT
    sources: tuple[str, ...] = ()
    seed: int = 0
    batch: int = 8


def size_variants(config: TrainConfig, sizes: Sequence[str], by_width: bool = False) -> list[Variant]:
    """The same training for each model size.

    Args:
        by_width: divide the learning rate by the model's width relative to the first size's, as Adam's best rate of a
            matrix falls with its width (muP; Yang et al., arXiv 2203.03466). Otherwise all sizes have one rate.

    Raises:
        UnknownSizeError: for a size that there is not.
    """
    widths = {size: int(model_config(size).hidden_size) for size in sizes}
    variants = []
    for size, width in widths.items():
        rate = config.learning_rate * (widths[sizes[0]] / width if by_width else 1.0)
        variants.append(Variant(size, TrainConfig(**(config.model_dump() | {"size": size, "learning_rate": rate}))))
    return variants


def subset_variants(config: TrainConfig, subsets: Mapping[str, Sequence[str]], sources: Sequence[str]) -> list[Variant]:
    """The same training on each subset of a dataset's sources; an empty list of names keeps all of them.

    Raises:
        ComparisonError: for a source that the dataset has no tokens of.
    """
    variants = []
    for name, kept in subsets.items():
        if missing := sorted(set(kept) - set(sources)):
            raise ComparisonError(f"{name}: no source {missing[0]!r} among the tokens; there are {', '.join(sources)}")
        weights = dict(config.source_weights)
        if kept:
            weights |= {source: 0.0 for source in sources if source not in kept}
        variants.append(Variant(name, TrainConfig(**(config.model_dump() | {"source_weights": weights}))))
    return variants


def token_sources(dataset: Dataset, tokenizer: str | None) -> list[str]:
    """The sources that the dataset has tokens of, by the tokenizer or by its only one."""
    name = open_split(dataset.address, "train", tokenizer).tokenizer
    return sorted(folder.rpartition("/")[2] for found, folder in dataset.token_folders() if found == name)


def compare(
    task: str,
    variants: Sequence[Variant],
    dataset: Dataset,
    out: Path,
    tasks: Tasks,
    load: Callable[[Path], VisualModel],
    *,
    use_ray: bool = True,
    on_progress: Callable[[str, Record], None] = lambda name, record: None,
    advance: Callable[[str, int], None] = lambda name, done: None,
) -> ComparisonReport:
    """Trains what is not trained yet, below `out`, and measures all of it.

    A finished run is kept, one that was begun goes on from its newest checkpoint. A model that fails does not stop the
    others; the report names it in `failures`.

    Args:
        task: `scaling` or `ablation`.
        load: opens a run folder as a model that can be asked.
        use_ray: train as a Ray Train worker.
        on_progress: called with name of the model and record of its log.
        advance: called with name of the model and number of episodes that are done.

    Raises:
        ComparisonError: before anything is trained: if budgets differ, or a run folder holds something else.
        EvaluationError, TokenDataError: if the dataset has not what the tasks need.
        TrainingStoppedError: if a signal asked for an end; calling this again goes on.
    """
    _check_budget(variants)
    splits = {name: open_split(dataset.address, name, variants[0].config.tokenizer) for name in ("train", "val")}
    if not splits["val"].tokens:
        raise ComparisonError(f"{dataset.uri} has no tokens of a val split to measure the loss on")
    has_pairs = _check_tasks(dataset, tasks, variants[0].config.context_length)
    for variant in variants:
        _claim(out / variant.name, variant, splits)
    report = ComparisonReport(task, dataset.uri, tasks.pairs, has_pairs)
    shared = variants[0].config.model_dump(mode="json", include=set(SHARED))
    report.settings = {**shared, "context": variants[0].config.context_length}
    report.settings |= {"episodes": tasks.episodes, "splits": list(tasks.splits), "episode_seed": tasks.seed}
    for variant in variants:
        run = out / variant.name
        try:
            if not _finished(run):
                train(
                    variant.config,
                    dataset.address,
                    run,
                    resume=True,
                    use_ray=use_ray,
                    on_progress=partial(on_progress, variant.name),
                )
            context = _context(run, variant.name, dataset, tasks, load, advance) if has_pairs else None
            report.add(measured(variant, run, context))
        except TrainingStoppedError:
            raise
        except Exception as error:
            # One model less is reported and leads to exit code 3; the others are still worth their hours.
            log.exception("%s failed", variant.name)
            report.failures[variant.name] = f"{type(error).__name__}: {error}"
    return report


def measured(variant: Variant, run: Path, context: Report | None) -> Measured:
    """What is known of a trained model.

    Raises:
        ComparisonError: if its log lacks the held-out loss of the last step.
    """
    records = read_log(run / LOG)
    last = records[-1]
    if "val_loss" not in last:
        raise ComparisonError(f"{run / LOG} ends without a val_loss")
    shape = build_model(variant.config.size, device="meta")
    return Measured(
        name=variant.name,
        run=run,
        config=variant.config,
        parameters=count_parameters(shape),
        embeddings=2 * shape.config.vocab_size * shape.config.hidden_size,
        tokens=last["tokens"],
        epochs=last["epoch"],
        seconds=last["elapsed_s"],
        train_loss=float(
            np.mean([row["loss"] for row in records if row["tokens"] > (1 - _LAST_SHARE) * last["tokens"]])
        ),
        val_loss=last["val_loss"],
        context=context,
    )


def _context(
    run: Path,
    name: str,
    dataset: Dataset,
    tasks: Tasks,
    load: Callable[[Path], VisualModel],
    advance: Callable[[str, int], None],
) -> Report:
    report = evaluate_context(
        load(run),
        dataset,
        roles=tasks.roles,
        pairs=tasks.pairs,
        episodes=tasks.episodes,
        splits=tasks.splits,
        sources=tasks.sources,
        seed=tasks.seed,
        batch=tasks.batch,
        advance=partial(advance, name),
    )
    report.save(run)
    return report


def _check_budget(variants: Sequence[Variant]) -> None:
    if len({variant.name for variant in variants}) < max(2, len(variants)):
        raise ComparisonError(f"a comparison needs two models or more, of different names, not {len(variants)}")
    first = variants[0].config
    if first.steps is None or first.max_minutes is not None:
        raise ComparisonError(
            "every model gets the same number of tokens: set steps (steps x batch_tokens of them), and not max_minutes"
        )
    if not first.val_every:
        raise ComparisonError("val_every is 0: without it there is no held-out loss to compare")
    for variant in variants:
        if variant.config.context_length != first.context_length:
            raise ComparisonError(
                f"{variants[0].name} has a context of {first.context_length} tokens and {variant.name} one of "
                f"{variant.config.context_length}: set context, the same for all"
            )


def _check_tasks(dataset: Dataset, tasks: Tasks, context: int) -> bool:
    """Whether the dataset has held-out pairs; refuses, before hours of training, tasks that cannot be measured."""
    found = pairs_by_role(dataset, tasks.splits, tasks.sources)
    if not found and not tasks.roles:
        return False
    measurable_roles(found, tasks.roles, max(tasks.pairs), f"{dataset.uri}, splits {', '.join(tasks.splits)}")
    fits, needed = context // TOKENS_PER_IMAGE, 2 * max(tasks.pairs) + 2
    if needed > fits:
        raise ComparisonError(
            f"{max(tasks.pairs)} example pairs, a query and its answer are {needed} images; a context of {context} "
            f"tokens holds {fits}: ask for fewer pairs, or train with context {TOKENS_PER_IMAGE * needed + 2}"
        )
    return True


def _claim(run: Path, variant: Variant, splits: Mapping[str, TokenSplit]) -> None:
    """Marks a run folder as this model's.

    Raises:
        ComparisonError: if it is another's; says what differs.
    """
    identity: dict[str, Any] = {
        "config": variant.config.model_dump(mode="json"),
        "tokenizer_fingerprint": splits["train"].tokenizer_fingerprint,
        "digests": {name: split.digest for name, split in splits.items()},
    }
    path = run / IDENTITY
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise ComparisonError(f"{path} is damaged: {error}; delete {run} to train it anew") from error
        if changes := differences(before, identity):
            raise ComparisonError(
                f"{run} was trained with other settings or data: {'; '.join(changes)}. Choose another --out, or "
                "delete that folder"
            )
        return
    if run.exists() and any(run.iterdir()):
        raise ComparisonError(f"{run} is there and no run of a comparison: choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(identity, indent=1) + "\n")
    temporary.rename(path)


def _finished(run: Path) -> bool:
    """The model is written last, and whole."""
    return (run / MODEL / "config.json").exists() and read_log(run / LOG)[-1]["progress"] >= 1

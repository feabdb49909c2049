"""The work of `uvd prompt`: several candidates for what a prompt asks for, ranked by perplexity, as sheet and JSON.

A candidate's perplexity is that of all its tokens under the model's own distribution: the lowest is the one that the
model finds likeliest, which is not always the best picture. A candidate costs 256 forward passes a picture; the prompt
is read once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.find import find_sequence, find_tokens
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.token_shard import read_tokens
from uvd.manifests.tokens import TOKENS_PER_IMAGE, unframe
from uvd.tokenize.tokenizer import Tokenizer
from uvd.trainer.pretrained import load_model, trained_on
from uvd.trainer.prompt_forms import Prompt, period_of
from uvd.trainer.prompt_sheet import COLUMNS, SheetRow, prompt_sheet, rows_sheet
from uvd.trainer.prompter import Prompter
from uvd.trainer.sampling import PLAIN, PromptError, Sampling

__all__ = [
    "Answer",
    "PromptError",
    "Question",
    "answer",
    "answer_sheet",
    "dataset_question",
    "load_model",
    "predict_images",
    "prompt_sheet",
    "question",
    "ranking",
    "report",
    "trained_on",
    "true_answer",
]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its ids, and the true answer where it is known.

    Attributes:
        ids: `(K, 256)` of the prompt's images.
        truth, truth_ids: `(n, 256, 256, 3)` uint8 RGB and `(n, 256)`; n may be below `prompt.steps`.
    """

    prompt: Prompt
    ids: NDArray[np.int64]
    truth: NDArray[np.uint8]
    truth_ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answer:
    """Pictures that were predicted, or are true.

    Attributes:
        seed: None for the truth.
        images: `(n, 256, 256, 3)` uint8 RGB.
        losses: `(n, 256)` nats of each token.
    """

    seed: int | None
    images: NDArray[np.uint8]
    losses: NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.losses.mean()))

    def image_perplexities(self) -> list[float]:
        return [float(value) for value in np.exp(self.losses.mean(axis=1))]


def question(prompter: Prompter, prompt: Prompt) -> Question:
    """A prompt of which the answer is not known."""
    none = np.empty((0, *prompt.images.shape[1:]), np.uint8)
    return Question(prompt, prompter.encode(prompt.images), none, np.empty((0, TOKENS_PER_IMAGE), np.int64))


def dataset_question(
    prompter: Prompter, dataset: Dataset, key: str, context: int | None = None, steps: int = 1
) -> Question:
    """The first pictures of a dataset's sequence as prompt, and the next ones as truth.

    Args:
        key: of a sequence; where the dataset holds only its tokens, they are taken.
        context: pictures in the prompt; all but the last `steps` by default.
        steps: pictures to predict.

    Raises:
        DatasetError: if there is no such sequence, or its tokens are another tokenizer's.
        PromptError: unless 1 <= context <= pictures of the sequence.
    """
    images, ids, layout, roles = _stored(prompter, dataset, key)
    length = len(images) - steps if context is None else context
    if not 1 <= length <= len(images):
        raise PromptError(f"{key} has {len(images)} pictures: a prompt of {length} and {steps} more cannot be taken")
    beyond = range(len(roles) + 1, length + steps + 1)
    labels = [*(f"{number} {role}" for number, role in enumerate(roles, 1)), *map(str, beyond)]
    period = period_of(roles)
    prompt = Prompt(layout, images[:length], steps, tuple(labels[: length + steps]), period)
    end = length + steps
    return Question(prompt, ids[:length], images[length:end], ids[length:end])


def _stored(
    prompter: Prompter, dataset: Dataset, key: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], str, list[str]]:
    """Pictures, ids, layout and roles of a sequence."""
    tokenizer = prompter.tokenizer
    known = key.rpartition("-")[0].rpartition("-")[0]
    if known in dataset.sources() or not dataset.token_folders():
        shard, row = find_sequence(dataset, key)
        images = read_sequence(dataset, shard, row).pictures()
        return images, prompter.encode(images), row["layout"], row["roles"]
    shard, row = find_tokens(dataset, key, tokenizer.name)
    if dataset.metadata(shard)["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise DatasetError(f"the tokens of {key!r} were made by another tokenizer named {tokenizer.name!r}")
    ids = unframe(read_tokens(dataset, shard, row)).astype(np.int64)
    return prompter.decode(ids), ids, row["layout"], row["roles"]


def answer(
    prompter: Prompter,
    asked: Question,
    *,
    candidates: int = 1,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    window: bool = False,
) -> list[Answer]:
    """Draws candidates with seeds `seed`, `seed + 1`, …; the one of least perplexity first.

    Args:
        window: drop the oldest pictures, by whole periods, where the prompt does not fit the context.

    Raises:
        PromptError: for fewer than one candidate, several at temperature 0, or if the prompt does not fit.
    """
    if candidates < 1:
        raise PromptError(f"{candidates} candidates; at least 1")
    if candidates > 1 and sampling.temperature == 0:
        raise PromptError("at temperature 0 all candidates are the same; ask for one, or raise the temperature")
    prompt = asked.prompt
    seeds = range(seed, seed + candidates)
    drawn = prompter.sample(
        [asked.ids] * len(seeds), prompt.steps, sampling, seeds, window=prompt.period if window else 0
    )
    pictures = prompter.decode(drawn.ids.reshape(-1, drawn.ids.shape[2]))
    pictures = pictures.reshape(len(seeds), prompt.steps, *pictures.shape[1:])
    answers = [Answer(*parts) for parts in zip(seeds, pictures, drawn.losses, strict=True)]
    return sorted(answers, key=lambda candidate: candidate.perplexity)


def true_answer(prompter: Prompter, asked: Question, *, window: bool = False) -> Answer | None:
    """The truth and its losses, each picture after the prompt and the true ones before it; None if it is not known."""
    if not len(asked.truth):
        return None
    losses = []
    for known, ids in enumerate(asked.truth_ids):
        before = np.concatenate([asked.ids, asked.truth_ids[:known]])
        (before,), _ = prompter.fit([before], 1, asked.prompt.period if window else 0)
        losses.append(prompter.answer_losses([before], ids[None])[0])
    return Answer(None, asked.truth, np.stack(losses))


def answer_sheet(prompt: Prompt, answers: list[Answer], truth: Answer | None, title: str = "") -> NDArray[np.uint8]:
    """Prompt in grey frames, candidates in red ones, best first, truth unframed, each with its perplexity.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    given = SheetRow(prompt.images, prompt.labels[: len(prompt.images)], "given")
    rows = [
        SheetRow(candidate.images, _labels(prompt, candidate, f"#{rank}"), "predicted")
        for rank, candidate in enumerate(answers, 1)
    ]
    if truth is not None:
        rows.append(SheetRow(truth.images, _labels(prompt, truth, "truth"), "none"))
    # Single pictures stand side by side, longer answers below one another.
    sections = [rows] if prompt.steps == 1 else [[row] for row in rows]
    columns = max(prompt.period, COLUMNS // prompt.period * prompt.period)
    return rows_sheet([[given], *sections], title=title, columns=columns)


def _labels(prompt: Prompt, shown: Answer, name: str) -> list[str]:
    roles = prompt.labels[len(prompt.images) :]
    values = zip(roles, shown.image_perplexities(), strict=False)
    return [f"{name}: {role}, perplexity {value:,.1f}" for role, value in values]


def ranking(answers: list[Answer], truth: Answer | None) -> list[str]:
    """A line for each candidate, best first, and one for the truth."""
    shown = [(f"#{rank} seed {one.seed}", one) for rank, one in enumerate(answers, 1)]
    return [
        f"{name}: perplexity {one.perplexity:,.2f}" for name, one in [*shown, *([("truth", truth)] if truth else [])]
    ]


def report(asked: Question, answers: list[Answer], truth: Answer | None) -> dict[str, Any]:
    """What `uvd prompt --json` prints of a prompt: perplexities of candidates, best first, and of the truth."""
    return {
        "form": asked.prompt.form,
        "prompt_images": len(asked.prompt.images),
        "steps": asked.prompt.steps,
        "candidates": [{"rank": rank, "seed": one.seed, **_numbers(one)} for rank, one in enumerate(answers, 1)],
        "truth": None if truth is None else _numbers(truth),
    }


def _numbers(shown: Answer) -> dict[str, Any]:
    return {"perplexity": shown.perplexity, "image_perplexities": shown.image_perplexities()}


def predict_images(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    images: NDArray[np.uint8],
    steps: int = 1,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Predicts the images that follow: one candidate.

    Args:
        images: `(N, 256, 256, 3)` uint8 RGB: frames, or pairs and a query.
        steps: how many images to predict.

    Returns:
        `(steps, 256, 256, 3)` uint8 RGB.

    Raises:
        PromptError: for no images, or more than the model's context holds.
    """
    if not len(images):
        raise PromptError("a prompt takes at least one image")
    prompter = Prompter(model, tokenizer, batch_size=1)
    sampling = Sampling(temperature, top_k, top_p)
    return prompter.decode(prompter.complete([prompter.encode(images)], steps, sampling, [seed])[0])

"""The work behind `uvd play`, without the page: files or a dataset's sequence in, pictures and numbers out.

Whatever the user can mend is a `UserError`; the page shows its message. Image files are read by the `Reader` that the
command passes in, which caps bytes and pixels before it decodes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.sequences.errors import UserError
from uvd.trainer.play_heat import heat_sheet, token_perplexities
from uvd.trainer.prompt import Answer, Question, answer, answer_sheet, dataset_question, question, true_answer
from uvd.trainer.prompt_forms import FORMS, Prompt, build_prompt
from uvd.trainer.prompt_sheet import COLUMNS, SheetRow, rows_sheet
from uvd.trainer.prompter import Prompter
from uvd.trainer.sampling import PLAIN, PromptError, Sampling

Reader = Callable[[Sequence[Path]], NDArray[np.uint8]]
"""Image files to `(N, 256, 256, 3)` uint8 RGB; a `UserError` names the file that cannot be used."""
MAX_FILES = 64
"""Of one prompt: four contexts of 16 images, of which a window keeps the newest."""
NEEDS = {
    "sequential": "Frames of a video, or any pictures in order: predicts the next ones.",
    "analogy": "One query picture, and example pairs (input, answer, input, answer, …): predicts the query's answer.",
    "composed": "One query picture, and example chains (x, A(x), B(A(x)), …): predicts every step for the query.",
    "category": "Pictures of one class, after whole groups of other classes as examples, or none: predicts more of it.",
    "rotation": "Two or more views of an object that turns by 15° from one to the next: predicts the next views.",
}
"""What each form takes, in a sentence."""
WITH_EXAMPLES = ("analogy", "composed", "category")


class StoppedError(UserError):
    """The user stopped the prediction."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How to answer a prompt.

    Attributes:
        window: drop the oldest pictures, by whole periods, where the prompt does not fit the model's context.
    """

    candidates: int = 1
    sampling: Sampling = PLAIN
    seed: int = 0
    window: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows of a prediction.

    Attributes:
        sheet: prompt, candidates and truth, `(height, width, 3)` uint8 RGB, as `uvd prompt` draws it.
        heat: every predicted picture beside the heat map of its tokens, `(height, width, 3)` uint8 RGB.
        ranking: a row for each candidate, best first, and for the truth: see `RANKING_COLUMNS`.
        tokens: 1/p of each token, `(16, 16)` float64, by the name of its picture.
    """

    sheet: NDArray[np.uint8]
    heat: NDArray[np.uint8]
    ranking: list[list[str]]
    tokens: dict[str, NDArray[np.float64]]


RANKING_COLUMNS = ("candidate", "seed", "perplexity", "of each picture", "median token", "largest token")


class Play:
    """A model to play with.

    Args:
        dataset: its sequences can be prompts, with the truth known.
    """

    def __init__(self, prompter: Prompter, read: Reader, dataset: Dataset | None = None) -> None:
        self.prompter = prompter
        self.dataset = dataset
        self._read = read

    def prompt(
        self, form: str, images: Sequence[Path], examples: Sequence[Path], group: int, steps: int | None
    ) -> Prompt:
        """The prompt that files make.

        Args:
            form: of `FORMS`.
            images: frames, query, begun group or views, in order.
            examples: pictures of pairs, chains or groups, one after another; left aside by forms that have none.
            group: pictures of each chain or group; a pair has two.
            steps: pictures to predict; the form's own number if None.

        Raises:
            PromptError: if they do not make a prompt of this form.
            UserError: names a file that cannot be used.
        """
        if form not in FORMS:
            raise PromptError(f"unknown form {form!r}; there are {', '.join(FORMS)}")
        if form not in WITH_EXAMPLES:
            examples = ()
        size = 2 if form == "analogy" else group
        if not images:
            raise PromptError(f"{form}: no pictures yet. {NEEDS[form]}")
        if len(images) + len(examples) > MAX_FILES:
            raise PromptError(f"{len(images) + len(examples)} pictures; at most {MAX_FILES}")
        if size < 1 or len(examples) % size:
            raise PromptError(f"{form}: {len(examples)} example pictures do not make whole groups of {size}")
        rows = [self._pictures(examples[start : start + size]) for start in range(0, len(examples), size)]
        return build_prompt(form, self._pictures(images), rows, steps)

    def ask(self, prompt: Prompt) -> Question:
        return question(self.prompter, prompt)

    def ask_dataset(self, key: str, context: int | None, steps: int | None) -> Question:
        """A sequence's first pictures as prompt, its next ones as truth; see `dataset_question`."""
        if self.dataset is None:
            raise DatasetError("there is no dataset; start with --dataset")
        if not key.strip():
            raise DatasetError("no key yet: type one, or take a random one")
        return dataset_question(self.prompter, self.dataset, key.strip(), context, steps or 1)

    def random_key(self) -> str:
        """The key of any sequence: a source, a shard of it and a row, each with equal chances.

        Raises:
            DatasetError: if the dataset has no sequences.
        """
        if self.dataset is None:
            raise DatasetError("there is no dataset; start with --dataset")
        mine = self.prompter.tokenizer.name
        folders = [f"sequences/{source}" for source in self.dataset.sources()] or [
            f"tokens/{tokenizer}/{source}" for tokenizer, source in self.dataset.token_folders() if tokenizer == mine
        ]
        # A folder or shard may be empty, so the next one is tried.
        for folder in random.sample(folders, len(folders)):
            shards = self.dataset.shards(folder)
            for shard in random.sample(shards, len(shards)):
                keys = self.dataset.manifest(shard, ["key"])["key"].to_pylist()
                if keys:
                    return str(random.choice(keys))
        raise DatasetError("the dataset has no sequences that this tokenizer can read")

    def predict(self, asked: Question, wish: Wish, on_progress: Callable[[int, int], None], title: str = "") -> Shown:
        """Draws the candidates and measures them.

        Args:
            on_progress: called with forward passes done and expected, before each; may raise `StoppedError`.

        Raises:
            PromptError: if the prompt does not fit the context, or settings do not go together.
        """
        batches = -(-max(1, wish.candidates) // self.prompter.batch_size)
        total = batches * asked.prompt.steps * TOKENS_PER_IMAGE
        with counted_passes(self.prompter.model, lambda done: on_progress(min(done, total), total)):
            answers = answer(
                self.prompter,
                asked,
                candidates=wish.candidates,
                sampling=wish.sampling,
                seed=wish.seed,
                window=wish.window,
            )
            truth = true_answer(self.prompter, asked, window=wish.window)
        return show(asked.prompt, answers, truth, title)

    def _pictures(self, files: Sequence[Path]) -> NDArray[np.uint8]:
        """Reads files; an error names the file as the user does, not the folder that it was uploaded to."""
        pictures = []
        for file in files:
            try:
                pictures.append(self._read([file]))
            except UserError as error:
                raise PromptError(str(error).replace(str(file), file.name)) from error
        return np.concatenate(pictures)


def show(prompt: Prompt, answers: list[Answer], truth: Answer | None, title: str = "") -> Shown:
    """Pictures and numbers of candidates, best first, and of the truth."""
    known = [] if truth is None else [("truth", truth)]
    named = [*((f"#{rank}", one) for rank, one in enumerate(answers, 1)), *known]
    roles = prompt.labels[len(prompt.images) :]
    pictures, losses, names, rows = [], [], [], []
    for name, one in named:
        perplexities = one.image_perplexities()
        pictures += list(one.images)
        losses += list(one.losses)
        names += [f"{name}: {role}, perplexity {value:,.1f}" for role, value in zip(roles, perplexities, strict=False)]
        seed = "" if one.seed is None else str(one.seed)
        middle, largest = np.exp(np.quantile(one.losses, (0.5, 1)))
        each = ", ".join(f"{value:,.2f}" for value in perplexities)
        rows.append([name, seed, f"{one.perplexity:,.2f}", each, f"{middle:,.2f}", f"{largest:,.0f}"])
    tokens = dict(zip(names, token_perplexities(np.stack(losses)), strict=True))
    return Shown(answer_sheet(prompt, answers, truth, title), heat_sheet(pictures, losses, names), rows, tokens)


def prompt_preview(prompt: Prompt) -> NDArray[np.uint8]:
    """The prompt's pictures with what each of them is, `(height, width, 3)` uint8 RGB."""
    columns = max(prompt.period, COLUMNS // prompt.period * prompt.period)
    given = SheetRow(prompt.images, prompt.labels[: len(prompt.images)], "given")
    asked = ", ".join(prompt.labels[len(prompt.images) :])
    return rows_sheet([[given]], title=f"{prompt.form}: asks for {asked}", columns=columns)


@contextmanager
def counted_passes(model: torch.nn.Module, on_pass: Callable[[int], None]) -> Iterator[None]:
    """Calls `on_pass` with the number of forward passes done so far, before each. What it raises ends the work."""
    done = 0

    def count(_: torch.nn.Module, __: object) -> None:
        nonlocal done
        on_pass(done)
        done += 1

    handle = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()

"""`raven`: puzzles whose answer the model chooses among eight candidates, by the lowest perplexity.

LVM paper, section 4.3 and its figures of puzzles and of other prompts, made measurable: matrices as one picture,
matrices as a row of pictures, counting, and series that go on by a simple rule. Chance is 1 in 8. A puzzle costs one
pass over the prompt and eight over candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.sheet import Frame, contact_sheet
from uvd.trainer.evaluate.prompting import (
    BLANK,
    MODEL,
    TOKENIZER,
    TRUTH,
    EvaluationError,
    Pixels,
    PromptCache,
    VisualModel,
    blank,
    check_context,
)
from uvd.trainer.evaluate.puzzle_drawing import Panel, draw_matrix, draw_panel
from uvd.trainer.evaluate.raven_puzzles import CANDIDATES, make_puzzle
from uvd.trainer.evaluate.report import Report, Row
from uvd.trainer.evaluate.scorers import choice_accuracy
from uvd.trainer.evaluate.series_puzzles import SHOWN, make_counting, make_series

PUZZLES = 200
SHEET_PUZZLES = 3
NO_CONTEXT, GAIN, CHANCE = "no context", "gain", "chance"
MATRIX_GRID = 2
"""Slots a side in the panels of a matrix that is one picture: 75 pixels a panel leave no room for more."""
EXAMPLES = 3
FIRST_EXAMPLE = 1 << 30
"""Numbers of example puzzles begin here, so that no example is asked for."""
PROTOCOL = (
    "The candidate of lowest perplexity after the prompt is the model's choice; of eight candidates one is right, and "
    "a wrong one differs from it in one attribute. matrix: solved examples as pairs (without and with the last panel), "
    "then an unsolved one, each a picture. sequence: eight panels, a picture each, row by row. counting: five "
    "pictures, one more or one less each time. series: five pictures that move, grow, darken or take turns. no "
    "context: the model after a black picture alone, which shows what it prefers anyway; gain: the lowest ratio of the "
    "two. truth chooses the candidate nearest to the right picture; tokenizer the one whose tokens differ least from "
    "the right one's (under 1 if two candidates have the same tokens); blank the one nearest to black. Ties share "
    "the point."
)


@dataclass(frozen=True, slots=True)
class Question:
    """A puzzle as pictures.

    Attributes:
        prompt: `(K, 256, 256, 3)` uint8 RGB.
        candidates: `(8, 256, 256, 3)` uint8 RGB.
        answer: place of the right one.
        overview: `(256, 256, 3)`, the puzzle at a glance, for the sheet.
        rule: for the sheet.
    """

    prompt: Pixels
    candidates: Pixels
    answer: int
    overview: Pixels
    rule: str


@dataclass(frozen=True, slots=True)
class Form:
    """How puzzles are put: how many images that takes with the answer, and what makes the question of a number."""

    images: Callable[[int], int]
    question: Callable[[int, int, int], Question]


def matrix_question(seed: int, number: int, examples: int) -> Question:
    """Solved puzzles as pairs of pictures, and one to solve; the candidates are solved matrices."""
    shown: list[Pixels] = []
    for index in range(examples):
        solved = make_puzzle(seed, FIRST_EXAMPLE + number * examples + index, MATRIX_GRID)
        shown += [draw_matrix((*solved.panels, None)), draw_matrix((*solved.panels, solved.candidates[solved.answer]))]
    puzzle = make_puzzle(seed, number, MATRIX_GRID)
    asked = draw_matrix((*puzzle.panels, None))
    candidates = np.stack([draw_matrix((*puzzle.panels, panel)) for panel in puzzle.candidates])
    return Question(np.stack([*shown, asked]), candidates, puzzle.answer, asked, ", ".join(puzzle.rules.values()))


def sequence_question(seed: int, number: int, _: int) -> Question:
    """The eight panels of a puzzle, a picture each."""
    puzzle = make_puzzle(seed, number)
    return _series_question(puzzle.panels, puzzle.candidates, puzzle.answer, ", ".join(puzzle.rules.values()))


def counting_question(seed: int, number: int, _: int) -> Question:
    series = make_counting(seed, number)
    return _series_question(series.panels, series.candidates, series.answer, series.rule)


def series_question(seed: int, number: int, _: int) -> Question:
    series = make_series(seed, number)
    return _series_question(series.panels, series.candidates, series.answer, series.rule)


def _series_question(panels: Sequence[Panel], candidates: Sequence[Panel], answer: int, rule: str) -> Question:
    overview = draw_matrix((*panels, *[None] * (9 - len(panels))))
    prompt, choices = (np.stack([draw_panel(panel) for panel in these]) for these in (panels, candidates))
    return Question(prompt, choices, answer, overview, rule)


FORMS: dict[str, Form] = {
    "matrix": Form(lambda examples: 2 * examples + 2, matrix_question),
    "sequence": Form(lambda _: 9, sequence_question),
    "counting": Form(lambda _: SHOWN + 1, counting_question),
    "series": Form(lambda _: SHOWN + 1, series_question),
}


def questions(form: str, puzzles: int, seed: int = 0, examples: int = EXAMPLES) -> Iterator[Question]:
    """The first puzzles of a seed.

    Raises:
        EvaluationError: for a form that there is not.
    """
    if form not in FORMS:
        raise EvaluationError(f"no form {form!r} of puzzles; there are {', '.join(FORMS)}")
    for number in range(puzzles):
        yield FORMS[form].question(seed, number, examples)


def judge(model: VisualModel, cache: PromptCache, question: Question) -> dict[str, NDArray[np.float64]]:
    """What each predictor gives the eight candidates, `(8,)`: the lowest is its choice."""
    prompt, candidates = cache.encode(question.prompt), cache.encode(question.candidates)
    nothing = cache.encode(blank()[None])
    right = question.candidates[question.answer].astype(np.float64)
    pictures = question.candidates.astype(np.float64)
    after, anyway = (model.perplexity([given] * CANDIDATES, candidates) for given in (prompt, nothing))
    return {
        MODEL: after,
        NO_CONTEXT: anyway,
        GAIN: after / anyway,
        TRUTH: np.square(pictures - right).mean(axis=(1, 2, 3)),
        TOKENIZER: (candidates != candidates[question.answer]).sum(axis=1).astype(np.float64),
        BLANK: np.square(pictures).mean(axis=(1, 2, 3)),
    }


def evaluate_raven(
    model: VisualModel,
    *,
    forms: Sequence[str] = (),
    puzzles: int = PUZZLES,
    examples: int = EXAMPLES,
    seed: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures each form of puzzle.

    Args:
        forms: by default all that fit the model's context.
        puzzles: of each form.
        examples: solved matrices before the one that is asked for.

    Raises:
        EvaluationError: for a form that there is not, or that does not fit the model's context.
    """
    unknown = sorted(set(forms) - set(FORMS))
    if unknown:
        raise EvaluationError(f"no form {unknown[0]!r} of puzzles; there are {', '.join(FORMS)}")
    chosen = list(forms) or [name for name, form in FORMS.items() if form.images(examples) <= model.context_images]
    for name in chosen or ["series"]:
        check_context(model, FORMS[name].images(examples), f"{name} puzzles")
    settings = {"forms": chosen, "puzzles": puzzles, "examples": examples, "seed": seed, "chance": 1 / CANDIDATES}
    report = Report("raven", PROTOCOL, settings, axis="accuracy")
    if left_out := [name for name in FORMS if name not in chosen and not forms]:
        report.notes.append(
            f"not run, because the model's context holds {model.context_images} images: {', '.join(left_out)}"
        )
    sheets: list[tuple[Question, NDArray[np.float64]]] = []
    for name in chosen:
        scores: dict[str, list[NDArray[np.float64]]] = {}
        answers: list[int] = []
        cache = PromptCache(model)
        for number, question in enumerate(questions(name, puzzles, seed, examples)):
            judged = judge(model, cache, question)
            for predictor, values in judged.items():
                scores.setdefault(predictor, []).append(values)
            answers.append(question.answer)
            if number < SHEET_PUZZLES:
                sheets.append((question, judged[MODEL]))
            advance(1)
        for predictor, rows in scores.items():
            accuracy = choice_accuracy(np.stack(rows), np.array(answers))
            report.rows.append(Row(name, predictor, puzzles, {"accuracy": accuracy}))
        report.rows.append(Row(name, CHANCE, puzzles, {"accuracy": 1 / CANDIDATES}))
    report.sheet = _sheet(sheets)
    return report


def _sheet(judged: Sequence[tuple[Question, NDArray[np.float64]]]) -> NDArray[np.uint8] | None:
    """A row a puzzle: overview and candidates with their perplexities; the model's choice has a red frame."""
    pictures: list[Pixels] = []
    labels: list[str] = []
    frames: list[Frame] = []
    for question, perplexities in judged:
        pictures += [question.overview, *question.candidates]
        choice = int(perplexities.argmin())
        labels.append(question.rule[:44])
        for place, value in enumerate(perplexities.tolist()):
            labels.append(f"{value:,.1f}" + (" right" if place == question.answer else ""))
        frames += ["given", *("predicted" if place == choice else "none" for place in range(CANDIDATES))]
    if not pictures:
        return None
    return contact_sheet(pictures, labels, columns=CANDIDATES + 1, title="raven: choices by perplexity", frames=frames)

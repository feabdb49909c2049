"""Candidates, their ranking, truth from a dataset, sheet and report; drawing is patched where it is not meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.tokenize.tokenizer import Tokenizer
from uvd.trainer import prompter as prompters
from uvd.trainer.model import build_model
from uvd.trainer.prompt import (
    Answer,
    PromptError,
    answer,
    answer_sheet,
    dataset_question,
    predict_images,
    prompt_sheet,
    question,
    ranking,
    report,
    true_answer,
)
from uvd.trainer.prompt_forms import analogy, composed, sequential
from uvd.trainer.prompter import Prompter
from uvd.trainer.sampling import Sampling

RED, GREY = (214, 40, 40), (120, 120, 120)


class FlatTokenizer:
    """Every image is one colour, every code is its red value."""

    name, fingerprint = "uvd-test", "f" * 64

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        return np.repeat(images[:, :1, 0, 0].astype(np.uint16), 256, axis=1)

    def decode(self, ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
        return np.broadcast_to((ids[:, :1, None, None] % 256).astype(np.uint8), (len(ids), 256, 256, 3)).copy()


def flat(*values: int) -> NDArray[np.uint8]:
    return np.stack([np.full((256, 256, 3), value, np.uint8) for value in values])


@pytest.fixture
def small(micro: str) -> Prompter:
    model = build_model(micro, context=1025).eval()
    return Prompter(cast("LlamaForCausalLM", model), cast("Tokenizer", FlatTokenizer()))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.int64]]:
    """The prompts that were drawn from; each drawn code is 100, its loss the row's first random number."""
    seen: list[NDArray[np.int64]] = []

    def fake(_: Any, prompts: NDArray[np.int64], uniforms: NDArray[np.float64], __: Sampling) -> Any:
        seen.append(prompts)
        return np.full(uniforms.shape, 100), np.broadcast_to(uniforms[:, :1], uniforms.shape)

    monkeypatch.setattr(prompters, "draw_tokens", fake)
    return seen


def test_candidates_are_ranked_by_perplexity(small: Prompter, drawn: list[NDArray[np.int64]]) -> None:
    asked = question(small, sequential(flat(1, 2), 2))
    answers = answer(small, asked, candidates=5, seed=40)
    assert sorted(cast("int", one.seed) for one in answers) == [40, 41, 42, 43, 44]
    values = [one.perplexity for one in answers]
    assert values == sorted(values)
    assert len(set(values)) == 5
    assert all(one.images.shape == (2, 256, 256, 3) and (one.images == 100).all() for one in answers)
    assert drawn[0][0].tolist() == [8192, *[1] * 256, *[2] * 256]


@pytest.mark.parametrize("changes", [{"candidates": 0}, {"candidates": 2, "sampling": Sampling(temperature=0)}])
def test_candidates_that_cannot_be_are_refused(small: Prompter, changes: dict[str, Any]) -> None:
    with pytest.raises(PromptError):
        answer(small, question(small, sequential(flat(1))), **changes)


def test_a_long_prompt_is_refused_or_loses_whole_pairs(small: Prompter, drawn: list[NDArray[np.int64]]) -> None:
    asked = question(small, analogy([flat(1, 11), flat(2, 12)], flat(3)))
    with pytest.raises(PromptError, match="at most 4 images"):
        answer(small, asked)
    answer(small, asked, window=True)
    assert drawn[0][0, 1::256].tolist() == [2, 12, 3]


def test_truth_from_a_dataset_of_tokens(small: Prompter, make_dataset: Callable[..., str]) -> None:
    dataset = Dataset(make_dataset(images=5, ids=200))
    asked = dataset_question(small, dataset, "video-000001-000002", context=2, steps=2)
    assert asked.prompt.labels == ("1 frame", "2 frame", "3 frame", "4 frame")
    assert asked.truth.shape == (2, 256, 256, 3)
    truth = true_answer(small, asked)
    assert truth is not None
    expected = small.token_losses(np.concatenate([asked.ids, asked.truth_ids]))[2:]
    assert truth.losses == pytest.approx(expected, abs=1e-4)
    assert len(dataset_question(small, dataset, "video-000001-000002", steps=2).ids) == 3
    beyond = dataset_question(small, dataset, "video-000001-000002", context=4, steps=3)
    assert (len(beyond.truth), beyond.prompt.labels[-1]) == (1, "7")
    assert true_answer(small, dataset_question(small, dataset, "video-000001-000002", context=5)) is None


def test_a_dataset_that_cannot_answer_is_refused(small: Prompter, make_dataset: Callable[..., str]) -> None:
    dataset = Dataset(make_dataset(images=2))
    for context in (0, 3):
        with pytest.raises(PromptError, match="has 2 pictures"):
            dataset_question(small, dataset, "video-000000-000000", context)
    with pytest.raises(DatasetError, match="no tokens of"):
        dataset_question(small, dataset, "video-000000-000099")
    with pytest.raises(DatasetError, match="another tokenizer named 'uvd-test'"):
        dataset_question(small, Dataset(make_dataset(name="other", fingerprint="0" * 64)), "video-000000-000000")


def an_answer(seed: int | None, value: int, steps: int, perplexity: float) -> Answer:
    return Answer(seed, flat(*[value] * steps), np.full((steps, 256), np.log(perplexity)))


def count(sheet: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(axis=2).sum())


def top(sheet: NDArray[np.uint8], value: int) -> int:
    """The first line that is inside a picture of this value; letters have it too, but not 256 times."""
    return int(np.argmax((sheet == value).all(axis=2).sum(axis=1) >= 256))


def test_the_sheet_has_all_candidates_and_the_truth() -> None:
    prompt = analogy([flat(51, 52)], flat(53))
    answers = [an_answer(3, 60, 1, 10.0), an_answer(1, 61, 1, 20.0)]
    sheet = answer_sheet(prompt, answers, an_answer(None, 62, 1, 15.0))
    border = 4 * 4 * (256 + 4)
    assert count(sheet, GREY) >= 3 * border
    assert count(sheet, RED) == 2 * border
    for value in (51, 52, 53, 60, 61, 62):
        assert count(sheet, (value,) * 3) >= 256 * 256
    # The prompt is one line of three, candidates and truth the next one.
    assert sheet.shape[1] == 8 + 3 * (256 + 8)
    lines = [top(sheet, value) for value in (51, 60, 61, 62)]
    assert lines[0] < lines[1] == lines[2] == lines[3]


def test_longer_answers_stand_below_one_another() -> None:
    prompt = composed([flat(51, 52, 53)] * 2, flat(54))
    answers = [an_answer(3, 60, 2, 10.0), an_answer(1, 61, 2, 20.0)]
    sheet = answer_sheet(prompt, answers, None, "a title")
    # Chains of three stay whole: two of them a line.
    assert sheet.shape[1] == 8 + 6 * (256 + 8)
    lines = [top(sheet, value) for value in (51, 54, 60, 61)]
    assert lines == sorted(set(lines))


def test_the_report_names_ranks_and_truth(small: Prompter, drawn: list[NDArray[np.int64]]) -> None:
    asked = question(small, sequential(flat(1)))
    answers = [an_answer(3, 60, 1, 10.0), an_answer(1, 61, 1, 20.0)]
    told = report(asked, answers, an_answer(None, 62, 1, 15.0))
    assert [(one["rank"], one["seed"]) for one in told["candidates"]] == [(1, 3), (2, 1)]
    assert told["candidates"][1]["perplexity"] == pytest.approx(20)
    assert told["truth"]["image_perplexities"] == pytest.approx([15])
    assert report(asked, answers, None)["truth"] is None
    lines = ranking(answers, an_answer(None, 62, 1, 15.0))
    assert lines == ["#1 seed 3: perplexity 10.00", "#2 seed 1: perplexity 20.00", "truth: perplexity 15.00"]


def test_images_in_images_out(small: Prompter) -> None:
    predicted = predict_images(small.model, small.tokenizer, flat(7), 1, seed=3)
    expected = small.complete([small.encode(flat(7))], 1, seeds=[3])
    assert (predicted == small.decode(expected[0])).all()
    with pytest.raises(PromptError, match="at least one"):
        predict_images(small.model, small.tokenizer, flat(7)[:0])


def test_the_plain_sheet_tells_predictions_from_context() -> None:
    context, predictions = np.full((9, 16, 16, 3), 10, np.uint8), np.full((2, 16, 16, 3), 20, np.uint8)
    sheet = prompt_sheet(context, predictions)
    red = (sheet == RED).all(axis=2)
    assert count(sheet, (10, 10, 10)) == 9 * 256
    assert count(sheet, (20, 20, 20)) == 2 * 256
    assert red.sum() > 2 * 16 * 4
    assert not red[: sheet.shape[0] // 2].any()

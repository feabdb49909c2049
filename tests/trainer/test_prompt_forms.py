from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.trainer.prompt_forms import (
    FORMS,
    Prompt,
    analogy,
    build_prompt,
    category,
    composed,
    period_of,
    rotation,
    sequential,
)
from uvd.trainer.sampling import PromptError


def flat(*values: int) -> NDArray[np.uint8]:
    """Pictures of one colour each, to see where they go."""
    return np.stack([np.full((256, 256, 3), value, np.uint8) for value in values])


def order(prompt: Prompt) -> list[int]:
    assert len(prompt.labels) == len(prompt.images) + prompt.steps
    return prompt.images[:, 0, 0, 0].tolist()


def test_frames_come_in_order() -> None:
    prompt = sequential(flat(1, 2, 3), 4)
    assert order(prompt) == [1, 2, 3]
    assert prompt.labels[-1] == "frame 7"
    assert (prompt.steps, prompt.period) == (4, 1)


def test_an_analogy_is_pairs_and_a_query() -> None:
    prompt = analogy([flat(1, 11), flat(2, 12)], flat(3))
    assert order(prompt) == [1, 11, 2, 12, 3]
    assert prompt.labels == ("input 1", "answer 1", "input 2", "answer 2", "query", "answer of query")
    assert (prompt.steps, prompt.period) == (1, 2)
    assert order(analogy([], flat(3))) == [3]
    # The paper's: 14 images of pairs, the query is the 15th.
    assert len(analogy([flat(1, 2)] * 7, flat(3)).images) == 15


def test_composed_tasks_ask_for_every_result() -> None:
    prompt = composed([flat(1, 11, 21), flat(2, 12, 22)], flat(3))
    assert order(prompt) == [1, 11, 21, 2, 12, 22, 3]
    assert prompt.labels[-3:] == ("query", "task 1 of query", "task 2 of query")
    assert (prompt.steps, prompt.period) == (2, 3)


def test_a_category_is_whole_groups_and_one_that_is_begun() -> None:
    prompt = category([flat(1, 2, 3, 4), flat(5, 6, 7, 8)], flat(9))
    assert order(prompt) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert prompt.labels == ("class 1",) * 4 + ("class 2",) * 4 + ("class 3",) * 4
    assert (prompt.steps, prompt.period) == (3, 4)
    assert category([flat(1, 2, 3, 4)], flat(9), 2).steps == 2
    assert (category([], flat(1, 2)).steps, category([], flat(1, 2)).period) == (1, 1)


def test_a_rotation_goes_round_by_15_degrees() -> None:
    assert rotation(flat(1, 2), 2).labels == ("0°", "15°", "30°", "45°")
    assert rotation(flat(*range(23)), 2).labels[-1] == "0°"


def test_forms_by_name() -> None:
    pairs, chains = [flat(1, 2)], [flat(1, 2, 3)]
    built = [
        build_prompt("sequential", flat(1), steps=3),
        build_prompt("analogy", flat(3), pairs),
        build_prompt("composed", flat(4), chains, 2),
        build_prompt("category", flat(4), chains),
        build_prompt("rotation", flat(1, 2)),
    ]
    assert [prompt.form for prompt in built] == list(FORMS)
    assert [prompt.steps for prompt in built] == [3, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such", flat(1)), "unknown form"),
        (("sequential", flat(1), [flat(1, 2)]), "takes no pairs"),
        (("sequential", flat(1), [], 0), "at least 1"),
        (("rotation", flat(1)), "two or more"),
        (("analogy", flat(1, 2), [flat(1, 2)]), "the query is one picture, not 2"),
        (("analogy", flat(1), [flat(1, 2, 3)]), "two pictures each"),
        (("analogy", flat(1), [flat(1, 2)], 2), "ask for 1 pictures, not for 2"),
        (("composed", flat(1), []), "not none"),
        (("composed", flat(1), [flat(1, 2)]), "3 pictures or more"),
        (("composed", flat(1), [flat(1, 2, 3), flat(1, 2, 3, 4)]), "of one length"),
        (("category", flat(1), [flat(1, 2), flat(1)]), "of one size"),
        (("category", flat(1, 2), [flat(1, 2)]), "over the groups' size 2"),
        (("sequential", flat(1)[:, :128]), "256x256"),
        (("sequential", flat(1)[:0]), "one or more"),
        (("analogy", flat(1), [flat(1, 2).astype(np.float32)]), "uint8"),
    ],
)
def test_what_makes_no_prompt_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        build_prompt(*arguments)


def test_roles_repeat() -> None:
    assert period_of(["frame"] * 5) == 1
    assert period_of(["image", "boxes"] * 3) == 2
    assert period_of(["a", "b", "c", "a", "b"]) == 3
    assert period_of(["a", "a", "b", "b"]) == 4
    assert period_of(["a"]) == 1

"""Puzzles have one right answer, do not change, and are chosen by perplexity."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from evaluate_support import FakeModel

from uvd.trainer.evaluate.prompting import EvaluationError
from uvd.trainer.evaluate.puzzle_drawing import SHADES, SHAPES, SIZES, Panel, draw_matrix, draw_panel
from uvd.trainer.evaluate.raven import FORMS, evaluate_raven, questions
from uvd.trainer.evaluate.raven_puzzles import ATTRIBUTES, CANDIDATES, RULES, Puzzle, explanations, make_puzzle, rotated
from uvd.trainer.evaluate.series_puzzles import SERIES, make_counting, make_series


def values_of(panel: Panel) -> dict[str, int]:
    """A panel's attributes as places in their tables, read back from the panel."""
    places = SIZES.index(panel.size), SHADES.index(panel.shade), SHAPES.index(panel.shape)
    return dict(zip(ATTRIBUTES, (panel.slots, *places), strict=True))


def fits(puzzle: Puzzle, candidate: Panel) -> bool:
    """Whether some rule of every attribute holds in all three rows with this candidate."""
    matrix = [values_of(panel) for panel in puzzle.panels]
    counts = {"arrangement": candidate.grid**2, "size": len(SIZES), "shade": len(SHADES), "shape": len(SHAPES)}
    last = values_of(candidate)
    for attribute in ATTRIBUTES:
        values = [panel[attribute] for panel in matrix]
        rows = (tuple(values[:3]), tuple(values[3:6]), tuple(values[6:]))
        if last[attribute] not in explanations(attribute, rows, counts[attribute]).values():
            return False
    return True


def unlike(first: Panel, second: Panel) -> list[str]:
    return [field.name for field in fields(Panel) if getattr(first, field.name) != getattr(second, field.name)]


@pytest.mark.parametrize("grid", [2, 3])
def test_exactly_one_candidate_is_right_and_the_others_differ_in_one_attribute(grid):
    used, places = set(), set()
    for number in range(60):
        puzzle = make_puzzle(0, number, grid)
        assert len(set(puzzle.candidates)) == CANDIDATES
        assert [fits(puzzle, panel) for panel in puzzle.candidates] == [
            place == puzzle.answer for place in range(CANDIDATES)
        ]
        right = puzzle.candidates[puzzle.answer]
        differences = [unlike(panel, right) for panel in puzzle.candidates if panel != right]
        assert all(len(names) == 1 for names in differences)
        assert {name for (name,) in differences} == {"slots", "size", "shade", "shape"}
        assert 1 <= sum(name != "constant" for name in puzzle.rules.values()) <= 3
        assert all(panel.slots for panel in (*puzzle.panels, *puzzle.candidates))
        used |= set(puzzle.rules.values())
        places.add(puzzle.answer)
    assert places == set(range(CANDIDATES))
    assert len(used) >= 12


def test_rules_on_known_rows():
    def asked(attribute, rows, values):
        return set(explanations(attribute, rows, values).values())

    assert asked("size", ((0, 1, 2), (1, 2, 3), (0, 1)), 4) == {2}
    assert asked("size", ((0, 1, 2), (1, 2, 3), (2, 3)), 4) == set()  # there is no fifth size
    assert asked("shade", ((0, 3, 1), (3, 1, 0), (1, 0)), 5) == {3}
    assert asked("shape", ((2, 2, 2), (0, 0, 0), (4, 4)), 5) == {4}
    assert asked("shape", ((0, 1, 2), (2, 3, 4), (1, 2)), 5) == set()  # shapes follow no progression
    numbers = tuple(tuple((1 << number) - 1 for number in row) for row in ((1, 2, 3), (4, 5, 9), (3, 4)))
    assert asked("arrangement", numbers, 9) == {0b1111111}
    assert asked("arrangement", ((0b0001, 0b0100, 0b0101), (0b1000, 0b1001, 0b1001), (0b0010, 0b0001)), 4) == {0b0011}
    assert rotated(0b1001, 1, 4) == 0b0011
    assert rotated(0b0011, -1, 4) == 0b1001


def test_puzzles_depend_on_seed_and_number_alone():
    assert make_puzzle(3, 14) == make_puzzle(3, 14)
    assert make_puzzle(3, 14) != make_puzzle(3, 15)
    assert make_puzzle(3, 14) != make_puzzle(4, 14)
    # Results of other days are compared with: a change of the generator must show.
    first = make_puzzle(0, 0)
    assert (first.answer, first.rules["size"]) == (4, "progression +1")


def test_series_go_on_by_one_step():
    for number in range(20):
        series = make_counting(0, number)
        counts = [panel.number for panel in (*series.panels, series.candidates[series.answer])]
        assert set(np.diff(counts).tolist()) in ({1}, {-1})
        assert len({panel.number for panel in series.candidates}) == CANDIDATES
    for number in range(4 * len(SERIES)):
        series = make_series(0, number)
        right = series.candidates[series.answer]
        assert len(set(series.candidates)) == CANDIDATES
        assert all(len(unlike(panel, right)) == 1 for panel in series.candidates if panel != right)
        changes = [unlike(*pair) for pair in zip(series.panels, (*series.panels[1:], right), strict=True)]
        attribute = {"moving": "slots", "growing": "size", "darkening": "shade", "taking turns": "shape"}[series.rule]
        assert changes == [[attribute]] * 5
        if series.rule in ("growing", "darkening"):
            steps = np.diff([getattr(panel, attribute) for panel in (*series.panels, right)])
            assert np.allclose(steps, steps[0])


def test_drawings_differ_wherever_panels_do():
    panel = Panel(0b100010001, SIZES[2], SHADES[2], "circle")
    others = [replace(panel, slots=0b100010000), replace(panel, size=SIZES[1]), replace(panel, shade=SHADES[3])]
    others += [replace(panel, shape=shape) for shape in SHAPES if shape != "circle"]
    drawn = [draw_panel(one) for one in (panel, *others)]
    assert drawn[0].shape == (256, 256, 3)
    assert len({one.tobytes() for one in drawn}) == len(drawn)
    # The filled slots hold ink, the others are white.
    assert (draw_panel(panel)[:85, 86:170] == 255).all()
    assert (draw_panel(panel)[86:170, 86:170] < 255).any()
    matrix = draw_matrix([panel] * 8 + [None])
    assert matrix.shape == (256, 256, 3)
    assert (matrix[180:240, 180:240] == 255).all()
    assert (matrix[12:80, 12:80] < 255).any()


def right_answers(form: str, puzzles: int, examples: int) -> dict[bytes, np.ndarray]:
    return {
        question.prompt[-1].tobytes(): question.candidates[question.answer]
        for question in questions(form, puzzles, 0, examples)
    }


def test_each_form_is_scored():
    answers: dict[bytes, np.ndarray] = {}
    for form in FORMS:
        answers |= right_answers(form, 4, 2)
    done = []
    report = evaluate_raven(FakeModel(answers), puzzles=4, examples=2, advance=done.append)
    found = {(row.group, row.predictor): row.measures["accuracy"] for row in report.rows}
    for form in FORMS:
        assert found[form, "model"] == found[form, "gain"] == 1
        assert found[form, "truth"] == 1
        assert found[form, "tokenizer"] == 1
        # Without the puzzle this model finds all candidates equally likely, and ties share the point.
        assert found[form, "no context"] == found[form, "chance"] == 1 / 8
        assert found[form, "blank"] < 1
    assert sum(done) == 4 * len(FORMS)
    assert report.sheet is not None
    ignorant = evaluate_raven(FakeModel(), forms=["counting"], puzzles=4)
    assert {row.predictor: row.measures["accuracy"] for row in ignorant.rows}["model"] == 1 / 8


def test_examples_of_matrices_are_other_puzzles():
    asked = list(questions("matrix", 3, 0, 2))
    assert all(question.prompt.shape == (5, 256, 256, 3) for question in asked)
    pictures = {picture.tobytes() for question in asked for picture in question.prompt}
    assert len(pictures) == 15


def test_forms_that_do_not_fit_are_left_out_and_named():
    report = evaluate_raven(FakeModel(context_images=8), puzzles=1)
    assert {row.group for row in report.rows} == {"matrix", "counting", "series"}
    assert "8 images: sequence" in report.notes[0]
    with pytest.raises(EvaluationError, match="sequence puzzles needs 9 images of context"):
        evaluate_raven(FakeModel(context_images=8), forms=["sequence"], puzzles=1)
    with pytest.raises(EvaluationError, match="no form 'sudoku'"):
        evaluate_raven(FakeModel(), forms=["sudoku"])
    assert set(RULES) == set(ATTRIBUTES)

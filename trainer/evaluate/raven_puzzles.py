"""Puzzles in the style of Raven's Progressive Matrices, from a seed: 3x3 panels, the last one to be found.

Each attribute (arrangement by number or by position, size, shade, shape) follows one rule along the rows. A puzzle is
kept only if every rule of the family that explains the first two rows and the third's beginning asks for the same last
panel, so exactly one candidate is right. Rules: constant, progression, arithmetic on numbers, union of positions, and
three values that every row permutes (as the rules of RAVEN, Zhang et al., arXiv 1903.02741). About 1 ms a puzzle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from uvd.sequences import Seeds
from uvd.trainer.evaluate.puzzle_drawing import SHADES, SHAPES, SIZES, Panel

CANDIDATES = 8
ATTRIBUTES = ("arrangement", "size", "shade", "shape")
TRIES_A_RULE, MAX_TRIES = 400, 100_000

Rows = tuple[tuple[int, ...], ...]
"""Values of one attribute, row by row; the last row lacks its third where it is asked for."""
Rule = Callable[[Rows, int], int | None]
"""Rows and the number of values of the attribute (slots for arrangements) → the missing value, or None."""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A matrix and its candidates.

    Attributes:
        panels: the eight that are shown, row by row.
        candidates: eight, all different.
        answer: place of the right one among them.
        rules: name of the rule of each attribute.
    """

    panels: tuple[Panel, ...]
    candidates: tuple[Panel, ...]
    answer: int
    rules: dict[str, str]


def _constant(rows: Rows, _: int) -> int | None:
    if all(len(set(row)) == 1 for row in rows):
        return rows[-1][0]
    return None


def _progression(step: int) -> Rule:
    def rule(rows: Rows, values: int) -> int | None:
        steps = {later - earlier for row in rows for earlier, later in pairwise(row)}
        found = rows[-1][1] + step
        return found if steps == {step} and 0 <= found < values else None

    return rule


def _three(rows: Rows, _: int) -> int | None:
    wanted = set(rows[0])
    if len(wanted) != 3 or set(rows[1]) != wanted or not set(rows[-1]) < wanted or len(set(rows[-1])) != 2:
        return None
    return (wanted - set(rows[-1])).pop()


LEVEL_RULES: dict[str, Rule] = {
    "constant": _constant,
    **{f"progression {step:+d}": _progression(step) for step in (-2, -1, 1, 2)},
    "three": _three,
}
"""Of size, shade and shape, whose values are places in their tables; shapes follow no progression."""
SHAPE_RULES = {name: rule for name, rule in LEVEL_RULES.items() if not name.startswith("progression")}


def filled(number: int) -> int:
    """The arrangement of a number: the first slots, in reading order."""
    return (1 << number) - 1


def _by_number(rule: Rule) -> Rule:
    """A rule on the numbers of arrangements that fill the first slots."""

    def applied(rows: Rows, slots: int) -> int | None:
        if any(mask != filled(mask.bit_count()) for row in rows for mask in row):
            return None
        found = rule(tuple(tuple(mask.bit_count() for mask in row) for row in rows), slots + 1)
        return filled(found) if found else None

    return applied


def _sum(sign: int) -> Rule:
    def rule(rows: Rows, values: int) -> int | None:
        if any(row[2] != row[0] + sign * row[1] for row in rows[:-1]):
            return None
        found = rows[-1][0] + sign * rows[-1][1]
        return found if 0 < found < values else None

    return rule


def rotated(mask: int, by: int, slots: int) -> int:
    """An arrangement moved on by `by` slots in reading order, the last slot followed by the first."""
    by %= slots
    return (mask << by | mask >> (slots - by)) & filled(slots)


def _shift(by: int) -> Rule:
    def rule(rows: Rows, slots: int) -> int | None:
        for row in rows:
            for earlier, later in pairwise(row):
                if later != rotated(earlier, by, slots) or later == earlier:
                    return None
        return rotated(rows[-1][1], by, slots)

    return rule


def _union(rows: Rows, _: int) -> int | None:
    if any(row[2] != row[0] | row[1] for row in rows[:-1]):
        return None
    return rows[-1][0] | rows[-1][1]


NUMBER_RULES: dict[str, Rule] = {
    **{f"number {name}": _by_number(rule) for name, rule in LEVEL_RULES.items() if name != "constant"},
    "number sum": _by_number(_sum(1)),
    "number difference": _by_number(_sum(-1)),
}
POSITION_RULES: dict[str, Rule] = {
    "constant": _constant,
    **{f"position shift {by:+d}": _shift(by) for by in (-1, 1)},
    "position union": _union,
    "position three": _three,
}
RULES: dict[str, dict[str, Rule]] = {
    "arrangement": NUMBER_RULES | POSITION_RULES,
    "size": LEVEL_RULES,
    "shade": LEVEL_RULES,
    "shape": SHAPE_RULES,
}


def explanations(attribute: str, rows: Rows, values: int) -> dict[str, int]:
    """Every rule of an attribute that fits rows of 3, 3 and 2 values, and the value it asks for."""
    found = {name: rule(rows, values) for name, rule in RULES[attribute].items()}
    return {name: value for name, value in found.items() if value is not None}


def make_puzzle(seed: int, number: int, grid: int = 3) -> Puzzle:
    """The puzzle of a seed and a number; at least one attribute changes along the rows, at most three.

    Args:
        grid: slots a side of a panel.
    """
    rng = Seeds(seed, ("evaluate", "raven", grid)).generator(number)
    values = {"arrangement": grid * grid, "size": len(SIZES), "shade": len(SHADES), "shape": len(SHAPES)}
    changing = set(rng.permutation(len(ATTRIBUTES))[: int(rng.integers(1, 4))].tolist())
    rules: dict[str, str] = {}
    rows: dict[str, Rows] = {}
    for index, attribute in enumerate(ATTRIBUTES):
        names = [name for name in RULES[attribute] if (name != "constant") == (index in changing)]
        rules[attribute], rows[attribute] = _follow(attribute, names, values[attribute], rng)
    matrix = [_panel({name: rows[name][row][column] for name in ATTRIBUTES}, grid) for row, column in np.ndindex(3, 3)]
    wrong = _distractors(matrix[-1], values, rng)
    place = int(rng.integers(CANDIDATES))
    return Puzzle(tuple(matrix[:-1]), (*wrong[:place], matrix[-1], *wrong[place:]), place, rules)


def _follow(attribute: str, names: list[str], values: int, rng: np.random.Generator) -> tuple[str, Rows]:
    """A rule and three rows that follow it and leave no doubt about the last value."""
    for attempt in range(MAX_TRIES):
        # Some rules cannot be followed, such as steps of two on four sizes: after many tries another one is drawn.
        if attempt % TRIES_A_RULE == 0:
            name = names[int(rng.integers(len(names)))]
        rows = tuple(_row(name, values, attribute, rng) for _ in range(3))
        if "three" in name:
            rows = tuple(tuple(rows[0][place] for place in rng.permutation(3)) for _ in range(3))
        # An arrangement has at least one slot filled; levels are places in their table.
        low, high = (1, filled(values)) if attribute == "arrangement" else (0, values - 1)
        if not all(low <= value <= high for row in rows for value in row):
            continue
        found = explanations(attribute, (*rows[:2], rows[2][:2]), values)
        if name in found and set(found.values()) == {rows[2][2]}:
            return name, rows
    raise AssertionError(f"no rows of {attribute} follow {names} without doubt")


def _row(name: str, values: int, attribute: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Three values that may follow the rule; those that do not are thrown away by `_follow`."""
    kind, _, step = name.rpartition(" ")
    if attribute != "arrangement":
        start = int(rng.integers(values))
        if name == "constant":
            return (start,) * 3
        return _steps(start, int(step)) if kind == "progression" else tuple(rng.choice(values, 3, False).tolist())
    if name.startswith("number"):
        first, second = (int(value) for value in rng.integers(1, values + 1, 2))
        if kind == "number progression":
            numbers = _steps(first, int(step))
        elif name == "number three":
            numbers = tuple((rng.choice(values, 3, False) + 1).tolist())
        else:
            numbers = (first, second, first + second if name == "number sum" else first - second)
        return tuple(filled(min(max(number, 0), values)) for number in numbers)
    first, second, third = (int(mask) for mask in rng.integers(1, filled(values), 3))
    if name == "constant":
        return (first,) * 3
    if kind == "position shift":
        return first, rotated(first, int(step), values), rotated(first, 2 * int(step), values)
    return (first, second, first | second) if name == "position union" else (first, second, third)


def _steps(start: int, step: int) -> tuple[int, ...]:
    return start, start + step, start + 2 * step


def _panel(values: dict[str, int], grid: int) -> Panel:
    places = values["size"], values["shade"], values["shape"]
    return Panel(values["arrangement"], SIZES[places[0]], SHADES[places[1]], SHAPES[places[2]], grid)


def _distractors(answer: Panel, values: dict[str, int], rng: np.random.Generator) -> list[Panel]:
    """Seven different panels, each unlike the answer in one attribute: each attribute once, then as drawn."""
    slots = values["arrangement"]
    arrangements = {filled(number) for number in range(1, slots + 1)} | {rotated(answer.slots, 1, slots)}
    other = {
        "arrangement": [replace(answer, slots=mask) for mask in sorted(arrangements - {answer.slots})],
        "size": [replace(answer, size=size) for size in SIZES if size != answer.size],
        "shade": [replace(answer, shade=shade) for shade in SHADES if shade != answer.shade],
        "shape": [replace(answer, shape=shape) for shape in SHAPES if shape != answer.shape],
    }
    firsts = [panels.pop(int(rng.integers(len(panels)))) for panels in other.values()]
    rest = [panel for panels in other.values() for panel in panels]
    chosen = firsts + [rest[place] for place in rng.permutation(len(rest))[: CANDIDATES - 1 - len(firsts)]]
    return [chosen[place] for place in rng.permutation(len(chosen))]

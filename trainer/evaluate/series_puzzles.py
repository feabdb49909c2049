"""Series of pictures that go on by one simple rule: counting, moving, growing, darkening, taking turns.

The LVM paper's "other prompts" (section 4.3): a few pictures, and the next one. Eight candidates, one right; a wrong
one differs in one attribute. Rules and drawing are as simple as can be, so that a puzzle has one answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from uvd.sequences import Seeds
from uvd.trainer.evaluate.puzzle_drawing import SHADES, SHAPES, SIZES, Panel
from uvd.trainer.evaluate.raven_puzzles import CANDIDATES, filled

SHOWN = 5
"""Pictures before the one that is asked for."""
LEVEL_SIZES = tuple(0.15 + 0.1 * level for level in range(9))
LEVEL_SHADES = tuple(255 - 31 * level for level in range(9))
COUNT_GRID = 3


@dataclass(frozen=True, slots=True)
class Series:
    """Pictures in a row and eight candidates for the next; `answer` is the place of the right one."""

    panels: tuple[Panel, ...]
    candidates: tuple[Panel, ...]
    answer: int
    rule: str


def make_counting(seed: int, number: int) -> Series:
    """One more each time, or one less: 1, 2, 3, 4, 5 → 6 of one to nine."""
    rng = Seeds(seed, ("evaluate", "counting")).generator(number)
    step = int(rng.choice((-1, 1)))
    first = int(rng.integers(1, 9 - SHOWN + 1)) if step == 1 else int(rng.integers(SHOWN + 1, 10))
    look = Panel(1, SIZES[-2], SHADES[int(rng.integers(len(SHADES)))], SHAPES[int(rng.integers(len(SHAPES)))])
    panels = [replace(look, slots=filled(first + step * index)) for index in range(SHOWN + 1)]
    wrong = [replace(look, slots=filled(count)) for count in range(1, 10) if count != panels[-1].number]
    return _series(panels, wrong, f"count {step:+d}", rng)


def make_series(seed: int, number: int) -> Series:
    """A series of one of the rules, which take turns with the number."""
    names = list(SERIES)
    name = names[number % len(names)]
    rng = Seeds(seed, ("evaluate", "series", name)).generator(number)
    panels, wrong = SERIES[name](rng)
    return _series(panels, wrong, name, rng)


def _series(panels: list[Panel], wrong: list[Panel], rule: str, rng: np.random.Generator) -> Series:
    chosen = [wrong[place] for place in rng.permutation(len(wrong))[: CANDIDATES - 1]]
    place = int(rng.integers(CANDIDATES))
    return Series(tuple(panels[:-1]), (*chosen[:place], panels[-1], *chosen[place:]), place, rule)


Made = tuple[list[Panel], list[Panel]]
"""The series with its answer last, and wrong candidates, of which there are at least seven."""


def _look(rng: np.random.Generator, grid: int) -> Panel:
    return Panel(1, 0.7, SHADES[int(rng.integers(len(SHADES)))], SHAPES[int(rng.integers(len(SHAPES)))], grid)


def _moving(rng: np.random.Generator) -> Made:
    """One shape moves on by one slot in reading order, forwards or backwards, around the end."""
    look, start, step = _look(rng, COUNT_GRID), int(rng.integers(9)), int(rng.choice((-1, 1)))
    panels = [replace(look, slots=1 << (start + step * index) % 9) for index in range(SHOWN + 1)]
    return panels, [replace(look, slots=1 << slot) for slot in range(9) if 1 << slot != panels[-1].slots]


def _levels(rng: np.random.Generator) -> list[int]:
    """Six levels of nine, up or down by one."""
    step = int(rng.choice((-1, 1)))
    start = int(rng.integers(0, 9 - SHOWN)) if step == 1 else int(rng.integers(SHOWN, 9))
    return [start + step * index for index in range(SHOWN + 1)]


def _growing(rng: np.random.Generator) -> Made:
    look, levels = _look(rng, 1), _levels(rng)
    panels = [replace(look, size=LEVEL_SIZES[level]) for level in levels]
    return panels, [replace(look, size=size) for level, size in enumerate(LEVEL_SIZES) if level != levels[-1]]


def _darkening(rng: np.random.Generator) -> Made:
    look, levels = _look(rng, 1), _levels(rng)
    panels = [replace(look, shade=LEVEL_SHADES[level]) for level in levels]
    return panels, [replace(look, shade=shade) for level, shade in enumerate(LEVEL_SHADES) if level != levels[-1]]


def _taking_turns(rng: np.random.Generator) -> Made:
    """Two shapes by turns; wrong candidates have another shape or another shade."""
    look = _look(rng, 1)
    pair = [SHAPES[place] for place in rng.choice(len(SHAPES), 2, False)]
    panels = [replace(look, shape=pair[index % 2]) for index in range(SHOWN + 1)]
    answer = panels[-1]
    shapes = [replace(answer, shape=shape) for shape in SHAPES if shape != answer.shape]
    return panels, shapes + [replace(answer, shade=shade) for shade in SHADES if shade != answer.shade]


SERIES: dict[str, Callable[[np.random.Generator], Made]] = {
    "moving": _moving,
    "growing": _growing,
    "darkening": _darkening,
    "taking turns": _taking_turns,
}

"""The paper's forms of visual prompts: pictures in the order that asks for what comes next (arXiv 2312.00785, 4.3).

Pure functions from pictures to a `Prompt`; the orders are those of the dataset's layouts, so that the model has seen
them: frames, pairs, tuples, category and multiview.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import IMAGE_SIZE
from uvd.trainer.sampling import PromptError

VIEW_STEP_DEGREES = 15
"""Between neighbouring views of an orbit of 24."""
Pictures = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Pictures that ask for the next ones.

    Attributes:
        form: a name of `FORMS`, or a dataset's layout.
        images: `(K, 256, 256, 3)` uint8 RGB in order.
        steps: pictures to predict.
        labels: what each picture is, then what each predicted one is: K + steps of them.
        period: pictures after which the pattern repeats; a prompt is shortened by whole periods.
    """

    form: str
    images: Pictures
    steps: int
    labels: tuple[str, ...]
    period: int = 1


def sequential(frames: Pictures, steps: int = 1) -> Prompt:
    """Frames of a video, or any sequence: what comes next.

    Args:
        frames: `(K, 256, 256, 3)` uint8 RGB; the paper gives 7 or 15.
        steps: how many to predict; the paper asks for 1 to 4.

    Raises:
        PromptError: for no frames, or pictures of another shape.
    """
    frames = _pictures(frames, "frames")
    return Prompt("sequential", frames, _at_least_1(steps), _numbered("frame", len(frames) + steps))


def analogy(pairs: Sequence[Pictures], query: Pictures) -> Prompt:
    """Pairs that show a task, and a query to do it on: 7 pairs and the query fill the paper's context.

    Args:
        pairs: each `(2, 256, 256, 3)`: input and answer. None of them leaves the task to the model.
        query: `(1, 256, 256, 3)`.

    Raises:
        PromptError: unless all pairs are two pictures and the query is one.
    """
    if any(len(pair) != 2 for pair in pairs):
        raise PromptError(f"analogy: pairs are two pictures each, not {sorted({len(pair) for pair in pairs})}")
    return _tuples("analogy", pairs, query, ("input", "answer"))


def composed(chains: Sequence[Pictures], query: Pictures) -> Prompt:
    """Chains that show one task after another, and a query: all results are predicted, the last is the composition.

    Args:
        chains: each `(m, 256, 256, 3)`, m at least 3: x, A(x), B(A(x)), …
        query: `(1, 256, 256, 3)`.

    Raises:
        PromptError: for no chain, chains of different lengths or under 3 pictures, or another number of queries.
    """
    lengths = sorted({len(chain) for chain in chains})
    if len(lengths) != 1 or lengths[0] < 3:
        raise PromptError(f"composed: chains are of one length, 3 pictures or more, not {lengths or 'none'}")
    tasks = tuple(f"task {number}" for number in range(1, lengths[0]))
    return _tuples("composed", chains, query, ("input", *tasks))


def category(groups: Sequence[Pictures], begun: Pictures, steps: int | None = None) -> Prompt:
    """Whole groups of pictures, each of one class, and a group that is begun: more of its class.

    Args:
        groups: each `(g, 256, 256, 3)`; the dataset has g of 2, 4, 8 or 16. May be empty.
        begun: `(n, 256, 256, 3)`, 1 <= n, and n < g where there are groups.
        steps: how many to predict: the rest of the group by default, or 1 without groups.

    Raises:
        PromptError: for groups of different sizes, or if `begun` and `steps` are more than a group.
    """
    begun = _pictures(begun, "begun group")
    sizes = sorted({len(group) for group in groups})
    if len(sizes) > 1 or 0 in sizes:
        raise PromptError(f"category: groups are of one size, not {sizes}")
    size = sizes[0] if sizes else 0
    steps = _at_least_1(steps if steps is not None else max(1, size - len(begun)))
    if groups and len(begun) + steps > size:
        raise PromptError(f"category: {len(begun)} pictures and {steps} more are over the groups' size {size}")
    named = [f"class {number}" for number in range(1, len(groups) + 1) for _ in range(size)]
    labels = (*named, *[f"class {len(groups) + 1}"] * (len(begun) + steps))
    images = np.concatenate([*(_pictures(group, "group") for group in groups), begun])
    return Prompt("category", images, steps, labels, max(1, size))


def rotation(views: Pictures, steps: int = 1) -> Prompt:
    """Views of an object that turns by 15° from one to the next: the views that follow.

    Args:
        views: `(K, 256, 256, 3)` in the order of the rotation; two or more show its direction.

    Raises:
        PromptError: for fewer than two views.
    """
    views = _pictures(views, "views")
    if len(views) < 2:
        raise PromptError("rotation: one view does not show a direction; give two or more")
    labels = tuple(f"{number * VIEW_STEP_DEGREES % 360}°" for number in range(len(views) + steps))
    return Prompt("rotation", views, _at_least_1(steps), labels)


FORMS = ("sequential", "analogy", "composed", "category", "rotation")


def build_prompt(form: str, images: Pictures, rows: Sequence[Pictures] = (), steps: int | None = None) -> Prompt:
    """Any form by its name.

    Args:
        form: one of `FORMS`.
        images: frames, query, begun group or views.
        rows: pairs, chains or groups, where the form has them.
        steps: pictures to predict; the form's own number if None.

    Raises:
        PromptError: for an unknown form, or pictures or steps that do not make one.
    """
    if form in ("sequential", "rotation"):
        if rows:
            raise PromptError(f"{form}: takes no pairs, only images in order")
        return (sequential if form == "sequential" else rotation)(images, 1 if steps is None else steps)
    if form == "category":
        return category(rows, images, steps)
    if form not in ("analogy", "composed"):
        raise PromptError(f"unknown form {form!r}; there are {', '.join(FORMS)}")
    prompt = (analogy if form == "analogy" else composed)(rows, images)
    if steps not in (None, prompt.steps):
        raise PromptError(f"{form}: these pairs ask for {prompt.steps} pictures, not for {steps}")
    return prompt


def period_of(roles: Sequence[str]) -> int:
    """The smallest number of pictures after which the roles repeat.

    >>> period_of(["image", "depth", "image", "depth", "image"]), period_of(["frame", "frame"]), period_of(["a", "b"])
    (2, 1, 2)
    """
    return next(
        (step for step in range(1, len(roles)) if all(a == b for a, b in zip(roles, roles[step:], strict=False))),
        max(1, len(roles)),
    )


def _tuples(form: str, rows: Sequence[Pictures], query: Pictures, names: tuple[str, ...]) -> Prompt:
    query = _pictures(query, "query")
    if len(query) != 1:
        raise PromptError(f"{form}: the query is one picture, not {len(query)}")
    images = np.concatenate([*(_pictures(row, "pairs") for row in rows), query])
    labels = tuple(f"{name} {number}" for number in range(1, len(rows) + 1) for name in names)
    asked = ("query", *(f"{name} of query" for name in names[1:]))
    return Prompt(form, images, len(names) - 1, labels + asked, len(names))


def _pictures(images: Pictures, what: str) -> Pictures:
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or images.dtype != np.uint8 or not len(images):
        raise PromptError(f"{what}: expected one or more 256x256 uint8 RGB pictures, got {images.dtype} {images.shape}")
    return images


def _at_least_1(steps: int) -> int:
    if steps < 1:
        raise PromptError(f"{steps} pictures to predict; at least 1")
    return steps


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name} {number}" for number in range(1, count + 1))

"""How classes are named in an input, and how they are numbered: whole numbers by size, then texts in order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

Label = int | str
"""A class as the input names it; it never reaches the dataset."""

MAX_LABEL = 1000
"""Longest name of a class, in characters."""
_WHOLE = re.compile(r"[0-9]{1,18}")


def label_of(value: Any) -> Label:
    """A class from what a file holds: digits are a number, `007` the same one as 7.

    Raises:
        RejectedInput: for anything but a whole number from 0 or a text of some length.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RejectedInput(
            Reason.BAD_ANNOTATION, f"the class is a {type(value).__name__}, no whole number and no text"
        )
    if isinstance(value, int):
        if not 0 <= value < 10**18:
            raise RejectedInput(Reason.BAD_ANNOTATION, "the class is a number below 0, or beyond any class")
        return value
    text = value.strip()
    if not 1 <= len(text) <= MAX_LABEL:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"the class is a text of {len(text)} characters")
    if _WHOLE.fullmatch(text):
        return int(text)
    if re.fullmatch(r"-[0-9]+", text):
        raise RejectedInput(Reason.BAD_ANNOTATION, "the class is a number below 0, or beyond any class")
    return text


def places_of(labels: Iterable[Label]) -> dict[Label, int]:
    """The number of each class in the dataset, from 0."""
    ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
    return {label: place for place, label in enumerate(ordered)}

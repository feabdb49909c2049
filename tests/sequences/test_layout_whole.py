"""`whole` keeps an example as it is, and refuses what could not be told apart later."""

from __future__ import annotations

import pytest

from uvd.sequences import MAX_IMAGES, Seeds
from uvd.sequences.layouts import LAYOUTS, LayoutError, assemble

WEIGHTS = {"whole": 1.0}


def test_an_example_is_a_sequence_in_its_own_order(example):
    examples = [
        example(0, ("image", "depth", "normals", "grey")),
        example(1, ("image",)),
        example(2, ("image", *(f"r{number}" for number in range(1, MAX_IMAGES))), split="val"),
    ]
    made = list(assemble(examples, LAYOUTS, WEIGHTS, Seeds(0)))
    assert [sequence.pictures for sequence in made] == [one.pictures for one in examples]
    assert [sequence.inputs for sequence in made] == [frozenset({0}), frozenset({1}), frozenset({2})]
    assert [sequence.split for sequence in made] == ["train", "train", "val"]
    assert {sequence.layout for sequence in made} == {"whole"}


def test_more_than_16_pictures_are_refused(example):
    with pytest.raises(LayoutError, match=r"'0\.jpg' has 17 pictures"):
        list(assemble([example(0, ("image",) * 17)], LAYOUTS, WEIGHTS, Seeds(0)))


def test_a_group_is_refused_since_it_is_not_written(example):
    with pytest.raises(LayoutError, match="group"):
        list(assemble([example(0, ("image", "foreground"), group="cat")], LAYOUTS, WEIGHTS, Seeds(0)))

"""Pictures, examples, sequences, seeds and splits: what they refuse and what they promise."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from uvd.sequences import Example, Picture, Reason, Seeds, VisualSequence
from uvd.sequences.reject import RejectedInput
from uvd.sequences.seeds import split_of


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((256, 256), np.uint8),
        np.zeros((255, 256, 3), np.uint8),
        np.zeros((256, 256, 3), np.float32),
        np.zeros((256, 256, 4), np.uint8),
    ],
)
def test_a_picture_is_256_256_3_uint8(pixels):
    with pytest.raises(ValueError, match="expected uint8"):
        Picture("image", pixels, "a.jpg", (1, 1))


def test_a_sequence_holds_1_to_16_pictures(picture):
    for count in (0, 17):
        with pytest.raises(ValueError, match="1 to 16"):
            VisualSequence(tuple(picture() for _ in range(count)), "single", "d", "train", frozenset())


def test_unknown_splits_are_refused(picture):
    with pytest.raises(ValueError, match="split"):
        Example((0,), "d", "holdout", (picture(),))


def test_seeds_depend_on_the_path_and_on_nothing_else():
    def draw(seeds: Seeds, *parts: str | int) -> int:
        return int(seeds.generator(*parts).integers(2**62))

    assert draw(Seeds(1), "a", 2) == draw(Seeds(1).child("a"), 2) == draw(Seeds(1, ("a", 2)))
    different = {
        draw(Seeds(1), "a", 2),
        draw(Seeds(2), "a", 2),
        draw(Seeds(1), "a", 3),
        draw(Seeds(1), "a", "2"),
        draw(Seeds(1), 2, "a"),
    }
    assert len(different) == 5


def test_seeded_numbers_never_change():
    # Golden: a change here changes every dataset.
    assert Seeds(0, ("golden",)).generator(1).integers(1000, size=4).tolist() == [577, 82, 20, 298]


def test_splits_follow_the_hash_and_the_fractions():
    fractions = {"val": 0.1, "test": 0.2}
    splits = [split_of(f"video-{number}.mp4", fractions) for number in range(4000)]
    assert splits == [split_of(f"video-{number}.mp4", fractions) for number in range(4000)]
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02
    assert abs(splits.count("test") / 4000 - 0.2) < 0.02


def test_a_verdict_crosses_process_borders():
    verdict = pickle.loads(pickle.dumps(RejectedInput(Reason.BOMB, "too many")))
    assert (verdict.reason, verdict.detail) == (Reason.BOMB, "too many")

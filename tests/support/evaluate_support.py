"""A model that needs no network: it knows pictures by number, and answers as it is told to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from uvd.trainer.evaluate.prompting import GREEDY, Episode
from uvd.trainer.sampling import Sampling

LIKELY, UNLIKELY = 2.0, 500.0


class FakeModel:
    """Keeps every picture it is shown; its ids are the picture's number. A picture of its own is black.

    Attributes:
        answers: bytes of a query → the picture it answers with.
        seen: (prompt, seed) of every completion, the prompt as pictures' numbers.
    """

    def __init__(
        self, answers: dict[bytes, NDArray[np.uint8]] | None = None, policy: str = "known", context_images: int = 16
    ) -> None:
        self.answers = answers or {}
        self.policy = policy
        self.context_images = context_images
        self.pictures: list[NDArray[np.uint8]] = []
        self.numbers: dict[bytes, int] = {}
        self.seen: list[tuple[tuple[int, ...], int]] = []
        self.samplings: list[Sampling] = []

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (256, 256, 3)
        ids = np.zeros((len(images), 256), np.int64)
        for row, image in enumerate(images):
            number = self.numbers.setdefault(image.tobytes(), len(self.pictures))
            if number == len(self.pictures):
                self.pictures.append(image.copy())
            ids[row, :2] = divmod(number, 8192)
        return ids

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([self.pictures[self.number(row)] for row in ids])

    @staticmethod
    def number(row: NDArray[np.int64]) -> int:
        return int(row[0]) * 8192 + int(row[1])

    def complete(
        self,
        prompts: Sequence[NDArray[np.int64]],
        images: int = 1,
        sampling: Sampling = GREEDY,
        seeds: Sequence[int] | None = None,
    ) -> NDArray[np.int64]:
        assert images == 1
        assert seeds is not None
        drawn = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            assert len(prompt) + 1 <= self.context_images
            self.seen.append((tuple(self.number(row) for row in prompt), seed))
            self.samplings.append(sampling)
            drawn.append(self.encode(self._answer(prompt)[None]))
        return np.stack(drawn)

    def _answer(self, prompt: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.policy == "example":
            return self.pictures[self.number(prompt[-2])]
        if self.policy == "blank":
            return np.zeros((256, 256, 3), np.uint8)
        return self.answers[self.pictures[self.number(prompt[-1])].tobytes()]

    def perplexity(self, prompts: Sequence[NDArray[np.int64]], answers: NDArray[np.int64]) -> NDArray[np.float64]:
        """2 for the answer that it knows to the prompt's last picture, 500 for any other."""
        known = [self.answers.get(self.pictures[self.number(prompt[-1])].tobytes()) for prompt in prompts]
        given = [self.pictures[self.number(row)] for row in answers]
        return np.array(
            [
                LIKELY if right is not None and (right == picture).all() else UNLIKELY
                for right, picture in zip(known, given, strict=True)
            ]
        )

    def token_losses(self, sequence: NDArray[np.int64]) -> NDArray[np.float64]:
        """log(100 - place) of every token of a picture, so perplexity falls by one a picture."""
        return np.repeat(np.log(100.0 - np.arange(len(sequence)))[:, None], 256, axis=1)


def model_that_knows(episodes: Iterable[Episode]) -> FakeModel:
    """Answers every query of the episodes with its truth."""
    return FakeModel({episode.prompt[-1].tobytes(): episode.truth for episode in episodes})

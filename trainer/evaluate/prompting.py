"""Episodes and how they are put to a model: example pairs and a query in, one picture out, in batches.

Every episode is scored with the model's picture and with pictures that need no model: the truth itself, the truth
through the tokenizer (what a perfect model reaches), a black picture, and the last example's answer. So a scorer is
seen to work in every result. A predicted picture costs 256 forward passes a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import IMAGE_SIZE, Seeds
from uvd.sequences.errors import UserError
from uvd.trainer.sampling import Sampling

Pixels = NDArray[np.uint8]
"""`(256, 256, 3)` uint8 RGB, or a stack of them."""

MODEL, TRUTH, TOKENIZER, BLANK, EXAMPLE, QUERY = "model", "truth", "tokenizer", "blank", "example", "query"
PREDICTORS = (MODEL, TRUTH, TOKENIZER, BLANK, EXAMPLE, QUERY)
"""Who gave the picture that is scored: the truth as it is and through the tokenizer, a black picture, the answer of the
last example pair (where there is one), the query itself."""

GREEDY = Sampling(temperature=0.0)

T = TypeVar("T")


class EvaluationError(UserError):
    """An evaluation that cannot be run on these inputs or with this model."""


class VisualModel(Protocol):
    """What the tasks need of a `Prompter`: ids are `(…, 256)` int64 in [0, 8192), pictures uint8 RGB of 256x256."""

    @property
    def context_images(self) -> int:
        """How many images fit the model's context, the answer included."""
        ...

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """`(N, 256, 256, 3)` → `(N, 256)`."""
        ...

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """`(N, 256)` → `(N, 256, 256, 3)`."""
        ...

    def complete(
        self,
        prompts: Sequence[NDArray[np.int64]],
        images: int = ...,
        sampling: Sampling = ...,
        seeds: Sequence[int] | None = ...,
    ) -> NDArray[np.int64]:
        """Prompts `(K, 256)` → `(B, images, 256)`."""
        ...

    def perplexity(self, prompts: Sequence[NDArray[np.int64]], answers: NDArray[np.int64]) -> NDArray[np.float64]:
        """exp of the mean −log p of the 256 tokens of each answer `(B, 256)` after its prompt → `(B,)`."""
        ...

    def token_losses(self, sequence: NDArray[np.int64]) -> NDArray[np.float64]:
        """`(K, 256)` → `(K, 256)`, −log p of each token in nats."""
        ...


@dataclass(frozen=True, slots=True)
class Episode:
    """One question to a model.

    Attributes:
        name: unique within the task, such as `fold0/0007`.
        prompt: `(K, 256, 256, 3)` uint8 RGB: example, answer, …, query.
        truth: `(256, 256, 3)` uint8 RGB, the right answer.
        group: what results are averaged within first: a class, a fold.
        facts: what a scorer needs besides the picture, such as keypoints.
    """

    name: str
    prompt: Pixels
    truth: Pixels
    group: str = ""
    facts: Any = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An episode with the pictures of all predictors."""

    episode: Episode
    pictures: dict[str, Pixels]


@dataclass(frozen=True, slots=True)
class Asking:
    """How a model is asked.

    Attributes:
        sampling: how tokens are drawn; by default the likeliest each time.
        seed: of the drawing; each episode has a stream of its own.
        batch: episodes that are handed over together.
    """

    sampling: Sampling = GREEDY
    seed: int = 0
    batch: int = 8


DEFAULT_ASKING = Asking()


@dataclass(slots=True)
class PromptCache:
    """Ids of pictures that come again in many episodes, by their bytes; the oldest are forgotten."""

    model: VisualModel
    size: int = 4096
    _known: dict[bytes, NDArray[np.int64]] = field(default_factory=dict)

    def encode(self, pictures: Pixels) -> NDArray[np.int64]:
        """`(N, 256, 256, 3)` uint8 RGB → `(N, 256)` int64."""
        digests = [blake2b(picture.tobytes(), digest_size=16).digest() for picture in pictures]
        new = {digest: index for index, digest in enumerate(digests) if digest not in self._known}
        if new:
            ids = self.model.encode(pictures[list(new.values())])
            self._known |= dict(zip(new, np.asarray(ids, np.int64), strict=True))
        found = np.stack([self._known[digest] for digest in digests])
        for digest in list(self._known)[: max(0, len(self._known) - self.size)]:
            del self._known[digest]
        return found


def check_context(model: VisualModel, images: int, what: str) -> None:
    """
    Raises:
        EvaluationError: if prompt and answer are more images than the model's context holds.
    """
    if images > model.context_images:
        raise EvaluationError(
            f"{what} needs {images} images of context, the answer included; this model holds {model.context_images}"
        )


def answer(model: VisualModel, episodes: Iterable[Episode], asking: Asking = DEFAULT_ASKING) -> Iterator[Answered]:
    """Puts episodes to the model, batch by batch, and adds the pictures that need no model.

    Raises:
        EvaluationError: if a prompt does not fit the model's context.
    """
    cache = PromptCache(model)
    for batch in batches(episodes, asking.batch):
        check_context(model, max(len(episode.prompt) for episode in batch) + 1, "this prompt")
        prompts = [cache.encode(episode.prompt) for episode in batch]
        seeds = [draw_seed(asking.seed, episode.name) for episode in batch]
        predicted = model.decode(model.complete(prompts, 1, asking.sampling, seeds)[:, 0])
        truths = model.decode(model.encode(np.stack([episode.truth for episode in batch])))
        for episode, picture, through in zip(batch, predicted, truths, strict=True):
            pictures = {MODEL: picture, TRUTH: episode.truth, TOKENIZER: through, BLANK: blank()}
            pictures[QUERY] = episode.prompt[-1]
            if len(episode.prompt) >= 3:
                pictures[EXAMPLE] = episode.prompt[-2]
            yield Answered(episode, pictures)


def blank() -> Pixels:
    """A black picture: the prediction of who sees nothing."""
    return np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def draw_seed(seed: int, name: str) -> int:
    """The seed of one episode's drawing: a function of seed and name, whatever is run beside it."""
    return int(Seeds(seed, ("evaluate", "draw")).generator(name).integers(2**31))


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch

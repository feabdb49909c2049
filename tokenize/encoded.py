"""Ids of sequences as they become known, and what one needs of whatever makes them.

Nothing here, or in the engine, needs torch: a worker that hands its pictures to a service elsewhere stays small.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from uvd.sequences.errors import UserError

T = TypeVar("T")


class TokenizerError(UserError):
    """A tokenizer that cannot be loaded or used; the message names file and keys."""


class EncodedSequence:
    """The ids of one sequence, complete some time after its pictures were added."""

    def __init__(self, images: int, tokens: int) -> None:
        self._ids = np.zeros((images, tokens), np.uint16)
        self._missing = images
        self._done = threading.Event()
        if not images:
            self._done.set()
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def result(self) -> NDArray[np.uint16] | Exception:
        """Waits for the `(images, tokens)` ids; an error if the model failed or gave no numbers for a picture."""
        self._done.wait()
        return self._ids if self._error is None else self._error

    def put(self, number: int, ids: NDArray[np.uint16]) -> None:
        self._ids[number] = ids
        self._missing -= 1
        if not self._missing:
            self._done.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._done.set()


class PictureQueue(Protocol):
    """Where pictures go in and ids come out: an encoder in this process, or a service."""

    def feeding(self) -> AbstractContextManager[None]:
        """While a thread is in here it may add pictures; when it leaves, all that it added is on its way."""

    def add(self, pictures: Sequence[NDArray[np.uint8]]) -> EncodedSequence:
        """Takes the pictures of a sequence, each `(256, 256, 3)` uint8 RGB; waits while there is no room."""


def encode_all(
    sequences: Iterable[tuple[T, list[NDArray[np.uint8]]]], queue: PictureQueue
) -> Generator[tuple[T, NDArray[np.uint16] | Exception], None, None]:
    """Encodes (name, pictures) pairs.

    Yields:
        (name, ids `(images, tokens)` or why there are none), in order, as soon as it and those before it are done.
    """
    waiting: deque[tuple[T, EncodedSequence]] = deque()
    with queue.feeding():
        for name, pictures in sequences:
            waiting.append((name, queue.add(pictures)))
            while waiting and waiting[0][1].done:
                done, encoded = waiting.popleft()
                yield done, encoded.result()
    while waiting:
        done, encoded = waiting.popleft()
        yield done, encoded.result()

"""Full batches from many shards: pictures go in from several threads, one thread runs the model, ids come back.

A batch is filled across sequences and across the shards that an actor works on at the same time; only when nobody has
more to give is a part-filled one sent, padded to the fixed shape. While the device computes one batch, the next is
copied to it and the one after is being filled. Memory: `BUFFERS` batches of pictures (12.6 MB each at 64), whatever the
input.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from uvd.sequences import IMAGE_SIZE
from uvd.tokenize.encoded import EncodedSequence, TokenizerError

BUFFERS = 4
IN_FLIGHT = 2
"""Batches given to the device before the oldest is waited for."""


class Launched(Protocol):
    """A batch on its way through the model."""

    def wait(self) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]: ...


class Encoder(Protocol):
    """What a queue needs of a tokenizer."""

    @property
    def batch_size(self) -> int: ...

    @property
    def tokens_per_image(self) -> int: ...

    def pinned(self) -> bool: ...

    def launch(self, images: torch.Tensor) -> Launched: ...


@dataclass
class _Batch:
    tensor: torch.Tensor
    targets: list[tuple[EncodedSequence, int]] = field(default_factory=list)


class EncodingQueue:
    """Runs one encoder for any number of threads; use as a context manager.

    Args:
        encoder: used from the queue's own thread alone.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._capacity = encoder.batch_size
        shape = (self._capacity, IMAGE_SIZE, IMAGE_SIZE, 3)
        self._free = [
            _Batch(torch.zeros(shape, dtype=torch.uint8, pin_memory=encoder.pinned())) for _ in range(BUFFERS)
        ]
        self._filling: _Batch | None = None
        self._full: deque[_Batch] = deque()
        self._feeders = 0
        self._closed = False
        self.broken = False
        """The device itself failed: nothing that this process asks of it can succeed any more."""
        self._busy_s, self._busy_since = 0.0, 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="encoding", daemon=True)
        self._thread.start()

    def __enter__(self) -> EncodingQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Encodes what was added and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def busy_seconds(self) -> float:
        """Seconds in which the device had a batch, until now; from any thread."""
        since = self._busy_since
        return self._busy_s + (time.monotonic() - since if since else 0.0)

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """While a thread is in here it may add more pictures, so a part-filled batch waits for them."""
        with self._changed:
            self._feeders += 1
        try:
            yield
        finally:
            with self._changed:
                self._feeders -= 1
                self._changed.notify_all()

    def add(self, pictures: Sequence[NDArray[np.uint8]]) -> EncodedSequence:
        """Copies the pictures of a sequence, each `(256, 256, 3)` uint8 RGB, into batches.

        Waits while all batches are full. Call it within `feeding`; wait for results after it, or for done ones.
        """
        sequence = EncodedSequence(len(pictures), self._encoder.tokens_per_image)
        for number, picture in enumerate(pictures):
            with self._changed:
                while self._filling is None:
                    if self._free:
                        self._filling = self._free.pop()
                    else:
                        self._changed.wait()
                batch = self._filling
                batch.tensor[len(batch.targets)].numpy()[...] = picture
                batch.targets.append((sequence, number))
                if len(batch.targets) == self._capacity:
                    self._full.append(batch)
                    self._filling = None
                    self._changed.notify_all()
        return sequence

    def _next(self, wait: bool) -> _Batch | None:
        """The next batch to encode; None if there is none now (or, when waiting, none any more)."""
        with self._changed:
            while True:
                if self._full:
                    return self._full.popleft()
                if self._filling is not None and self._filling.targets and (self._closed or not self._feeders):
                    batch, self._filling = self._filling, None
                    return batch
                if self._closed or not wait:
                    return None
                self._changed.wait()

    def _run(self) -> None:
        in_flight: deque[tuple[_Batch, Launched]] = deque()
        while True:
            batch = self._next(wait=not in_flight)
            if batch is None and not in_flight:
                return
            if batch is not None:
                batch.tensor[len(batch.targets) :] = 0
                self._busy_since = self._busy_since or time.monotonic()
                try:
                    in_flight.append((batch, self._encoder.launch(batch.tensor)))
                except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for the batch get it
                    self._fail(batch, error)
            if in_flight and (batch is None or len(in_flight) >= IN_FLIGHT):
                self._settle(*in_flight.popleft())
            if not in_flight:
                since, self._busy_since = self._busy_since, 0.0
                self._busy_s += time.monotonic() - since

    def _settle(self, batch: _Batch, launched: Launched) -> None:
        try:
            ids, finite = launched.wait()
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(batch, error)
            return
        for row, (sequence, number) in enumerate(batch.targets):
            if finite[row]:
                sequence.put(number, ids[row])
            else:
                sequence.fail(TokenizerError("the encoder gave NaN or infinite latents"))
        self._recycle(batch)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        """Hands the error to everyone whose picture was in the batch; other batches go on."""
        self.broken |= isinstance(error, torch.AcceleratorError)
        for sequence, _ in batch.targets:
            sequence.fail(error)
        self._recycle(batch)

    def _recycle(self, batch: _Batch) -> None:
        with self._changed:
            batch.targets.clear()
            self._free.append(batch)
            self._changed.notify_all()

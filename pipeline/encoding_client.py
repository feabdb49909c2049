"""The near side of the encoding service: what a task needs to hand pictures to actors and get ids back.

Pictures travel through Ray's object store as uint8 arrays, which the actor reads where they lie. A task has a bounded
number of them out, and waits when the actors are behind: it decodes no faster than they encode. Nothing here needs
torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.sequences import IMAGE_SIZE
from uvd.tokenize.encoded import EncodedSequence, TokenizerError

PICTURE_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
PICTURES_A_CALL = 16
"""3 MB. A call costs about a millisecond; the actor fills its batches from several."""
CALLS_OUT = 8
LATE_S = 300.0
"""When no call was answered for so long, others are asked: a node with a GPU may be gone for good."""
_STORE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much one task may have out.

    Attributes:
        pictures: of one call.
        calls: that are not answered.
    """

    pictures: int = PICTURES_A_CALL
    calls: int = CALLS_OUT

    @classmethod
    def of(cls, store_bytes: float, tasks: int) -> Allowance:
        """What lets all tasks of a node together fill half of its object store, so that nothing spills."""
        room = max(1, int(store_bytes * _STORE_SHARE / PICTURE_BYTES / max(1, tasks)))
        pictures = max(1, min(PICTURES_A_CALL, room // 2))
        return cls(pictures, max(1, min(CALLS_OUT, room // pictures)))


@dataclass(frozen=True, slots=True)
class EncodedCall:
    """What an actor answers.

    Attributes:
        ids: `(n, 256)` uint16, of the pictures of the call.
        errors: place in the call → why there are no ids of that picture.
        made_by: device, batch size and so on, as manifests say it.
    """

    ids: NDArray[np.uint16]
    errors: dict[int, str]
    made_by: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EncodingService:
    """The actors, as tasks know them: any number of tasks may use them at the same time.

    Attributes:
        actors: (id of the node if it was chosen, handle).
    """

    actors: tuple[tuple[str, Any], ...]
    allowance: Allowance = Allowance()


@dataclass(slots=True)
class _Call:
    """Pictures on their way: where they lie, whose they are, who was asked last."""

    pictures: Any
    targets: list[tuple[EncodedSequence, int]]
    asked: Any = None
    answered: bool = False


class RemoteQueue:
    """A `PictureQueue` whose encoder is a service. For one thread.

    Attributes:
        waited_s: seconds for which there was nothing to do but wait.
    """

    def __init__(self, service: EncodingService) -> None:
        here = ray.get_runtime_context().get_node_id()
        near = [actor for node, actor in service.actors if node == here]
        self._busy: dict[Any, int] = dict.fromkeys(near or [actor for _, actor in service.actors], 0)
        self._calls = service.allowance.calls
        self._buffer = np.empty((service.allowance.pictures, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self._targets: list[tuple[EncodedSequence, int]] = []
        self._out: dict[Future[EncodedCall], tuple[Any, _Call]] = {}
        self._made_by: list[dict[str, Any]] = []
        self.waited_s = 0.0

    @contextmanager
    def feeding(self) -> Iterator[None]:
        yield
        self._send()
        while self._out:
            self._settle()

    def add(self, pictures: Sequence[NDArray[np.uint8]]) -> EncodedSequence:
        """Takes the pictures of a sequence, each `(256, 256, 3)` uint8 RGB; waits if too many are out.

        Raises:
            RayError: if an actor was lost, and those that came after it too.
        """
        sequence = EncodedSequence(len(pictures), TOKENS_PER_IMAGE)
        for number, picture in enumerate(pictures):
            self._buffer[len(self._targets)] = picture
            self._targets.append((sequence, number))
            if len(self._targets) == len(self._buffer):
                self._send()
        return sequence

    def made_by(self) -> dict[str, Any]:
        """How the ids were made, as manifests say it: of unlike actors all devices, and the smallest batch."""
        if not self._made_by:  # a shard without pictures; it is made by the same actors nevertheless
            self._call()
            self._settle()
        devices = sorted({answer["device"] for answer in self._made_by})
        batch = min(answer["batch_size"] for answer in self._made_by)
        return {**self._made_by[-1], "device": " + ".join(devices), "batch_size": batch}

    def _send(self) -> None:
        if not self._targets:
            return
        while len(self._out) >= self._calls:
            self._settle()
        self._call()

    def _call(self) -> None:
        # A copy in the store, so that the buffer is free at once.
        self._ask(_Call(ray.put(self._buffer[: len(self._targets)]), self._targets))
        self._targets = []

    def _ask(self, call: _Call) -> None:
        """Gives a call to the least busy actor, but not to the one that was asked last if there are others."""
        others = [actor for actor in self._busy if actor is not call.asked]
        call.asked = min(others or self._busy, key=self._busy.__getitem__)
        self._busy[call.asked] += 1
        # A future, and not `ray.get`, because a task that waits there gives its CPU to the next one, which would decode
        # what nobody can encode yet.
        self._out[call.asked.encode.remote(call.pictures).future()] = (call.asked, call)

    def _settle(self) -> None:
        """Takes the answers that are there; waits for the first."""
        start = time.perf_counter()
        done, late = wait_for(self._out, return_when=FIRST_COMPLETED, timeout=LATE_S)
        self.waited_s += time.perf_counter() - start
        for future in done:
            _, call = self._forget(future)
            if not call.answered:
                self._take(call, future.result())
        for future in [future for future, (_, call) in self._out.items() if call.answered]:
            self._forget(future)  # asked twice
        if not done and len(self._busy) > 1:
            for actor, call in [self._out[future] for future in late]:
                if actor is call.asked:
                    self._ask(call)

    def _forget(self, future: Future[EncodedCall]) -> tuple[Any, _Call]:
        actor, call = self._out.pop(future)
        self._busy[actor] -= 1
        return actor, call

    def _take(self, call: _Call, answer: EncodedCall) -> None:
        call.answered = True
        if answer.made_by not in self._made_by:
            self._made_by.append(answer.made_by)
        for place, (sequence, number) in enumerate(call.targets):
            if place in answer.errors:
                sequence.fail(TokenizerError(answer.errors[place]))
            else:
                sequence.put(number, answer.ids[place])

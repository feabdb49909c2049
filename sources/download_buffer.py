"""How many bytes of bodies may be in memory: finished ones that wait for their turn, and parts of those that arrive.

A download that finds no room is dropped and begun again when there is some. The one that the reader waits for always
has room, so the order cannot lock up; memory is `max_bytes` of this buffer and one body.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush


class NoRoomError(Exception):
    """A download does not fit now; `size` is what it would need."""

    def __init__(self, size: int) -> None:
        super().__init__(f"no room for {size} bytes")
        self.size = size


class DownloadBuffer:
    """Counts bytes by the number of the URL.

    Args:
        max_bytes: of all bodies together.
        max_ready: downloads that may be ready for the reader before no new ones are begun.
    """

    def __init__(self, max_bytes: int, max_ready: int) -> None:
        self._max_bytes = max_bytes
        self._max_ready = max_ready
        self._held: dict[int, int] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.used = 0
        self.delivered = 0
        """Downloads that were handed to the reader."""
        self.needed = 0
        """The URL that the reader takes next."""

    def may_start(self, number: int) -> bool:
        """Whether a download may begin; negative numbers are for what is not kept."""
        if number <= self.needed:
            return True
        return self.used < self._max_bytes and self.delivered - self.needed < self._max_ready

    def hold(self, number: int, size: int) -> None:
        """Makes room for a body to be `size` bytes in all, or less than it was.

        Raises:
            NoRoomError: if there is none.
        """
        more = size - self._held.get(number, 0)
        if more > 0 and self.used + more > self._max_bytes and number > self.needed:
            raise NoRoomError(size)
        self._held[number] = size
        self.used += more

    def holds(self, number: int) -> int:
        return self._held.get(number, 0)

    def drop(self, number: int) -> None:
        self.used -= self._held.pop(number, 0)

    async def room(self, number: int, size: int) -> None:
        """Waits until a body has room, and holds it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (number, size, future))
        self.wake()
        await future

    def taken(self, needed: int) -> None:
        """The reader has taken all downloads before `needed`."""
        for number in range(self.needed, needed):
            self.drop(number)
        self.needed = needed

    def wake(self) -> None:
        """Lets those go on that have room now, in order."""
        while self._waiting:
            number, size, future = self._waiting[0]
            if not future.cancelled():
                if self.used + size > self._max_bytes and number > self.needed:
                    return
                self.hold(number, size)
                future.set_result(None)
            heappop(self._waiting)

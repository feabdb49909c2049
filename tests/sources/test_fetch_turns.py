"""Turns, rates and caches of the fetcher, without a network; the settings that sites get to see."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pydantic import ValidationError

from uvd.sequences.reject import TRANSIENT_REASONS, Reason
from uvd.sources import timed_cache
from uvd.sources.fetch_config import FetchConfig
from uvd.sources.timed_cache import TimedCache
from uvd.sources.turns import TokenBucket, Turns


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def anything(number: int) -> bool:
    return True


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that begin a turn and hold it until they are told to end."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def add(self, number: int, host: str) -> None:
        async def wait() -> None:
            await self.turns.begin(number, host)
            self.begun.append(number)

        self.tasks[number] = asyncio.create_task(wait())


def test_turns_go_by_number_and_a_full_host_is_passed_over():
    async def check() -> None:
        crowd = Crowd(Turns(3, 2, None, anything))
        for number, host in enumerate(["a", "a", "a", "a", "b", "b"]):
            crowd.add(number, host)
        await settle()
        assert crowd.begun == [0, 1, 4]
        crowd.turns.end("b")
        await settle()
        assert crowd.begun == [0, 1, 4, 5]
        crowd.turns.end("a")
        await settle()
        assert crowd.begun == [0, 1, 4, 5, 2]
        crowd.add(-1, "c")
        crowd.add(7, "d")
        crowd.turns.end("b")
        await settle()
        assert crowd.begun[5:] == [-1]
        for host in ("c", "a", "a"):
            crowd.turns.end(host)
        await settle()
        assert sorted(crowd.begun) == [-1, 0, 1, 2, 3, 4, 5, 7]

    run(check)


def test_only_what_may_start_does():
    async def check() -> None:
        allowed = {3}
        turns = Turns(9, 9, None, lambda number: number in allowed)
        crowd = Crowd(turns)
        for number in (3, 4, 5):
            crowd.add(number, "a")
        await settle()
        assert crowd.begun == [3]
        allowed.update((4, 5))
        turns.wake()
        await settle()
        assert crowd.begun == [3, 4, 5]

    run(check)


def test_those_who_leave_take_no_turn():
    async def check() -> None:
        crowd = Crowd(Turns(1, 1, None, anything))
        for number in range(4):
            crowd.add(number, "a")
        await settle()
        crowd.tasks[1].cancel()
        await settle()
        crowd.turns.end("a")
        crowd.tasks[2].cancel()  # it has just been given the turn
        await settle()
        assert crowd.begun == [0, 3]
        crowd.turns.end("a")
        crowd.add(9, "b")
        await settle()
        assert crowd.begun == [0, 3, 9]

    run(check)


def test_rates_and_pauses_end():
    async def check() -> None:
        crowd = Crowd(Turns(9, 9, 100.0, anything))
        crowd.turns.pause("a", 0.05)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number in range(103):
            crowd.add(number, "a")
        crowd.turns.slow_down("b", 0.01)
        crowd.add(200, "b")
        await settle()
        assert crowd.begun == [200]
        while len(crowd.begun) < 104:
            await asyncio.sleep(0.005)
            for number in crowd.begun[:]:
                if number != 200 and crowd.tasks[number].done() and number not in ended:
                    ended.add(number)
                    crowd.turns.end("a")
        assert loop.time() - begun >= 0.05 + 0.03 - 0.002

    ended: set[int] = set()
    run(check)


def test_a_bucket_lets_a_burst_go_and_then_its_rate():
    bucket = TokenBucket(rate=10.0, burst=3)
    waits = []
    for _ in range(6):
        waits.append(round(bucket.next_at(100.0) - 100.0, 6))
        bucket.take(max(100.0, bucket.next_at(100.0)))
    assert waits == [0, 0, 0, 0.1, 0.2, 0.3]
    assert bucket.next_at(200.0) == 200.0
    bucket.slow_down(0.5)
    bucket.slow_down(2.0)
    bucket.take(200.0)
    assert bucket.next_at(200.0) == 202.0


def test_the_cache_forgets_by_age_and_by_weight(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timed_cache.time, "monotonic", lambda: now[0])
    cache: TimedCache[str] = TimedCache(max_weight=10)
    cache.put("a", "A", ttl_s=5, weight=4)
    cache.put("b", "B", ttl_s=50, weight=4)
    assert cache.get("a") == "A"
    cache.put("c", "C", ttl_s=50, weight=4)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")
    now[0] = 5
    assert cache.get("a") is None
    cache.put("c", "D", ttl_s=50, weight=1)
    cache.put("huge", "H", ttl_s=50, weight=11)
    cache.put("none", "N", ttl_s=0)
    assert (cache.get("c"), cache.get("huge"), cache.get("none"), len(cache)) == ("D", None, None, 1)


def test_who_we_say_we_are():
    assert FetchConfig().contact_missing
    assert "contact_url is not set" in FetchConfig().user_agent_header
    assert FetchConfig().agent == "uvd"
    known = FetchConfig(contact_url="https://example.org/bot", user_agent="MyBot/2.0 (research)")
    assert not known.contact_missing
    assert known.user_agent_header == "MyBot/2.0 (research) (+https://example.org/bot)"
    assert known.agent == "mybot"
    own = FetchConfig(user_agent="us (mailto:us@example.org)")
    assert (own.contact_missing, own.user_agent_header, own.agent) == (False, "us (mailto:us@example.org)", "us")
    for broken in ("a\r\nHost: b", "", "ä"):
        with pytest.raises(ValidationError):
            FetchConfig(user_agent=broken)


def test_what_passes_is_marked_so():
    assert {reason for reason in Reason if reason.transient} == TRANSIENT_REASONS
    assert Reason("http_5xx").transient
    assert not Reason.OPTED_OUT_ROBOTS.transient

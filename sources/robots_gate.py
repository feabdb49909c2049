"""Asking robots.txt before anything else of a site: once for each scheme, host and port, remembered in the worker.

By RFC 9309: 4xx means that everything is allowed; no answer or a server error that nothing is, unless the config says
otherwise. Costs one small request a site, on the connection that the image then uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from yarl import URL

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.fetch_config import FetchConfig
from uvd.sources.robots import RobotsRules, parse_robots
from uvd.sources.timed_cache import TimedCache

_FAILURE_TTL_S = 60.0
_NO_RULES = frozenset(
    {Reason.HTTP_404, Reason.HTTP_4XX, Reason.HTTP_OTHER, Reason.TOO_MANY_REDIRECTS, Reason.BAD_URL, Reason.NOT_IMAGE}
)
"""What means that a site has no robots.txt."""

Verdict = RobotsRules | RejectedInput


class RobotsGate:
    """Lets URLs through that their site's robots.txt does not forbid.

    Args:
        cache: verdicts of sites; may be shared.
        get: downloads one robots.txt; raises `RejectedInput`.
        slow_down: called with host and seconds where a site sets a `Crawl-delay`.
    """

    def __init__(
        self,
        config: FetchConfig,
        cache: TimedCache[Verdict],
        get: Callable[[URL], Awaitable[bytes]],
        slow_down: Callable[[str, float], None],
    ) -> None:
        self._config = config
        self._cache = cache
        self._get = get
        self._slow_down = slow_down
        self._asked: dict[str, asyncio.Task[Verdict]] = {}

    def passes(self, url: URL) -> bool:
        """Whether a site is known to have no rules at all: the common case, without waiting."""
        if not self._config.honour_robots_txt:
            return True
        verdict = self._cache.get(_site(url))
        return isinstance(verdict, RobotsRules) and not verdict.rules and not verdict.crawl_delay_s

    async def check(self, url: URL) -> None:
        """Waits for the verdict on a URL.

        Raises:
            RejectedInput: `opted_out_robots` with the rule; or, if robots.txt cannot be had, the reason why.
        """
        site = _site(url)
        verdict = self._cache.get(site) or await self._ask(site, url)
        if isinstance(verdict, RejectedInput):
            raise RejectedInput(verdict.reason, verdict.detail)
        if verdict.crawl_delay_s and self._config.max_crawl_delay_s:
            self._slow_down(url.raw_host or "", min(verdict.crawl_delay_s, self._config.max_crawl_delay_s))
        rule = verdict.refusal(url.raw_path_qs)
        if rule is not None:
            raise RejectedInput(Reason.OPTED_OUT_ROBOTS, rule[:200])

    async def _ask(self, site: str, url: URL) -> Verdict:
        task = self._asked.get(site)
        if task is None:
            robots = URL.build(scheme=url.scheme, authority=url.raw_authority, path="/robots.txt", encoded=True)
            task = self._asked[site] = asyncio.create_task(self._verdict(site, robots))
            task.add_done_callback(lambda _: self._asked.pop(site, None))
        return await asyncio.shield(task)

    async def _verdict(self, site: str, robots: URL) -> Verdict:
        verdict: Verdict = RobotsRules()
        ttl, weight = self._config.robots_ttl_s, 64
        try:
            text = (await self._get(robots)).decode("utf-8", "replace")
            verdict = parse_robots(text, self._config.agent)
            weight += verdict.size
        except RejectedInput as rejected:
            if rejected.reason not in _NO_RULES:
                ttl = min(ttl, _FAILURE_TTL_S)
                if self._config.robots_unreachable == "deny":
                    verdict = RejectedInput(rejected.reason, f"robots.txt: {rejected.detail}")
        self._cache.put(site, verdict, ttl, weight)
        return verdict


def _site(url: URL) -> str:
    return f"{url.scheme}://{url.raw_authority}"

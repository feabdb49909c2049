"""Opt-outs of web sites: `robots.txt` by RFC 9309, and the `X-Robots-Tag` header.

The longest rule that matches wins and `allow` wins a tie; `*` and `$` are known; groups that name our agent come before
those for `*`. Matching takes time linear in the rules, whatever they hold. The standard library's parser knows neither
wildcards nor longest match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

MAX_ROBOTS_BYTES = 500 << 10
"""RFC 9309, 2.5: what a crawler must read at least; the rest is ignored."""
MAX_RULES = 5000
"""A file with more rules for one agent is refused as a whole: the host is left alone."""
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
"""`none` stands for noindex and nofollow."""
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives of `X-Robots-Tag` with a colon that does not follow an agent's name."""
_TOKEN = re.compile(r"[a-z_-]+")
_AGENT = re.compile(r"[a-z0-9_*-][a-z0-9_*/.-]*")
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True, slots=True)
class RobotsRules:
    """What one `robots.txt` says to one agent.

    Attributes:
        rules: (pattern, allowed), longest pattern first, `allow` before `disallow` of the same length.
        crawl_delay_s: least time between two requests that the site asks for, or 0.
        size: characters of all patterns, for a cache to bound.
    """

    rules: tuple[tuple[str, bool], ...] = ()
    crawl_delay_s: float = 0.0
    size: int = 0

    def refusal(self, path: str) -> str | None:
        """The rule that forbids a path with its query, or None.

        >>> parse_robots("User-agent: *\\nDisallow: /*.gif$", "uvd").refusal("/a.gif")
        'Disallow: /*.gif$'
        """
        path = _normal(path).replace("*", "%2A").replace("$", "%24")
        if path == "/robots.txt":
            return None
        for pattern, allowed in self.rules:
            if _matches(pattern, path):
                return None if allowed else f"Disallow: {pattern}"
        return None


def parse_robots(text: str, agent: str) -> RobotsRules:
    """The rules of a `robots.txt` for an agent's product token, compared without regard to case.

    Args:
        text: the file; whatever does not parse is skipped, as RFC 9309 asks.
        agent: letters, `_` and `-` only.
    """
    own: list[tuple[str, str]] = []
    common: list[tuple[str, str]] = []
    own_named = for_own = for_all = naming = False
    for line in re.split(r"[\r\n]+", text[:MAX_ROBOTS_BYTES].removeprefix("\ufeff")):
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if name == "user-agent" and colon:
            if not naming:
                for_own = for_all = False
            naming = True
            token = _TOKEN.match(value.lower())
            for_all |= value.startswith("*")
            for_own |= token is not None and token.group() == agent.lower()
            own_named |= for_own
        elif name in ("allow", "disallow", "crawl-delay") and colon:
            naming = False
            if for_own:
                own.append((name, value))
            if for_all:
                common.append((name, value))
    return _compiled(own if own_named else common)


def _compiled(records: list[tuple[str, str]]) -> RobotsRules:
    rules: dict[str, bool] = {}
    delay = 0.0
    for name, value in records:
        if name == "crawl-delay":
            delay = max(delay, _seconds(value))
        elif value:
            pattern = _pattern(value if value[0] in "/*" else "/" + value)
            rules[pattern] = rules.get(pattern, False) or name == "allow"
    if len(rules) > MAX_RULES:
        rules = {"/": False}
    ordered = sorted(rules.items(), key=lambda rule: (-len(rule[0]), not rule[1], rule[0]))
    return RobotsRules(tuple(ordered), delay, sum(map(len, rules)))


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


def _normal(path: str) -> str:
    """One spelling of a path: what must be escaped is, in upper-case hexadecimal digits; what need not be is not."""

    def escape(match: re.Match[str]) -> str:
        character = chr(int(match.group(1), 16))
        return character if character in _UNRESERVED else f"%{match.group(1).upper()}"

    return _ESCAPE.sub(escape, quote(path, safe="!#$%&'()*+,/:;=?@[]|~", errors="replace"))


def _pattern(value: str) -> str:
    """One spelling of a rule: a `$` that is not the last character is a plain one."""
    pattern = re.sub(r"\*+", "*", _normal(value))
    return pattern[:-1].replace("$", "%24") + pattern[-1:]


def _matches(pattern: str, path: str) -> bool:
    anchored = pattern.endswith("$")
    first, *rest = (pattern[:-1] if anchored else pattern).split("*")
    if not path.startswith(first):
        return False
    if not rest:
        return not anchored or path == first
    last = rest.pop() if anchored else ""
    place = len(first)
    for part in rest:
        # The leftmost place leaves most for what follows, so there is nothing to go back to.
        place = path.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return not anchored or (path.endswith(last) and len(path) - len(last) >= place)


def refused_by_header(values: list[str], agent: str) -> list[str]:
    """The opt-outs in all `X-Robots-Tag` headers of a response that are for everybody or for our agent, sorted.

    >>> refused_by_header(["googlebot: noindex, nofollow", "unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "uvd")
    ['noai']
    """
    found = set()
    for value in values:
        ours = True
        for part in value.lower().split(","):
            directive = part.strip()
            while ":" in directive:
                name, _, rest = (piece.strip() for piece in directive.partition(":"))
                if name in _VALUED or name in OPT_OUTS:
                    directive = name
                elif _AGENT.fullmatch(name):
                    ours = name == "*" or name.partition("/")[0] == agent.lower()
                    directive = rest
                else:
                    directive = ""  # the rest of a date
            if ours and directive in OPT_OUTS:
                found.add(directive)
    return sorted(found)

"""robots.txt by RFC 9309, with its own examples, and `X-Robots-Tag` in the forms that sites use."""

from __future__ import annotations

import pytest

from uvd.sources.robots import MAX_RULES, parse_robots, refused_by_header


def allowed(path: str, *rules: str, agent: str = "uvd") -> bool:
    """Whether a path may be fetched under rules for everybody."""
    return parse_robots("\n".join(["User-agent: *", *rules]), agent).refusal(path) is None


RFC_EXAMPLE = """
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""


@pytest.mark.parametrize(
    ("agent", "path", "expected"),
    [
        ("uvd", "/a.gif", False),
        ("uvd", "/a.gif.html", True),
        ("uvd", "/example/page.html", False),
        ("uvd", "/publications/a.png", True),
        ("uvd", "/", True),
        ("foobot", "/", False),
        ("foobot", "/example/page.html", True),
        ("FooBot", "/example/allowed.gif", True),
        ("barbot", "/example/page.html", False),
        ("bazbot", "/example/page.html", False),
        ("bazbot", "/a.gif", True),
        ("quxbot", "/example/page.html", True),
        ("quxbot", "/a.gif", True),
    ],
)
def test_the_simple_example_of_the_rfc(agent, path, expected):
    assert (parse_robots(RFC_EXAMPLE, agent).refusal(path) is None) == expected


def test_the_longest_match_wins_and_allow_wins_a_tie():
    rules = ("Allow: /example/page/", "Disallow: /example/page/disallowed.gif")
    assert allowed("/example/page/", *rules)
    assert not allowed("/example/page/disallowed.gif", *rules)
    assert not allowed("/page", "Disallow: /page", "Allow: /pa")
    assert allowed("/page", "Disallow: /page", "Allow: /page")
    assert allowed("/page", "Allow: /*age", "Disallow: /p*ge")
    assert allowed("/page", "Disallow: /p*ge", "Allow: /*age")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish", False),
        ("/fish", "/catfish", False),
        ("/fish*", "/fishheads/yummy.html", True),
        ("/fish/", "/fish", False),
        ("/*.php", "/folder/a.php?x=1", True),
        ("/*.php$", "/folder/a.php?x=1", False),
        ("/*.php$", "/a.php/b.php", True),
        ("/fish*.php", "/fishheads/catfish.php", True),
        ("/a*b*c$", "/abcbc", True),
        ("/a*bc$", "/abc", True),
        ("/a*bcb$", "/abcb", True),
        ("/ab*b$", "/ab", False),
        ("*", "/anything", True),
        ("$", "/anything", False),
        ("/$", "/", True),
        ("/$", "/a", False),
        ("fish", "/fish", True),
        ("/**a", "/xa", True),
        ("/a?b", "/a?b=1", True),
        ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https://foo.bar", True),
        ("/foo/bar/ツ", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%e3%83%84", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz", True),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html", True),
        ("/path/foo-%24", "/path/foo-$", True),
        ("/a$b", "/a$b", True),
        ("/a%2Fb", "/a/b", False),
    ],
)
def test_patterns(pattern, path, matches):
    assert allowed(path, f"Disallow: {pattern}") != matches


def test_what_files_look_like_in_the_wild():
    text = "\ufeffSitemap: http://a/s.xml\r\nDISALLOW: /early\rUSER-AGENT : UVD/1.0 # us\n\n disallow :/a b # c\nbad\n"
    rules = parse_robots(
        text + "Crawl-delay: 2.5\nUser-agent: other\nDisallow: /other\nuser-agent: uvd\nDisallow: /more", "uvd"
    )
    assert [rules.refusal(path) is None for path in ("/a%20b", "/more", "/other", "/early")] == [
        False,
        False,
        True,
        True,
    ]
    assert rules.crawl_delay_s == 2.5
    assert parse_robots("User-agent: uvdbot\nDisallow: /", "uvd").refusal("/") is None
    assert parse_robots("User-agent: *\nDisallow: /", "uvd").refusal("/robots.txt") is None
    assert parse_robots("User-agent: *\nDisallow: /\nUser-agent: uvd\nDisallow:", "uvd").refusal("/") is None


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e999", "soon", "", "0"])
def test_crawl_delays_that_make_no_sense(value):
    assert parse_robots(f"User-agent: *\nCrawl-delay: {value}", "uvd").crawl_delay_s == 0


def test_hostile_files_cost_little():
    """Stars that a backtracking matcher would take years for; more rules than anybody needs; nothing but agents."""
    assert allowed("/" + "a" * 4000, "Disallow: /" + "*a" * 2000 + "b")
    many = [f"Disallow: /{number}" for number in range(MAX_RULES + 1)]
    assert not allowed("/other", *many)
    assert allowed("/other", *many[1:])
    assert parse_robots("User-agent: *\n" * 30_000 + "Disallow: /a\n" * 30_000, "uvd").size < 10


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["noai"], ["noai"]),
        (["NoAI, NOIMAGEAI"], ["noai", "noimageai"]),
        (["nofollow", "noml"], ["noml"]),
        (["none"], ["none"]),
        (["all, nofollow, noarchive, max-image-preview: large"], []),
        (["googlebot: noindex, nofollow"], []),
        (["googlebot: nofollow", "noindex"], ["noindex"]),
        (["googlebot: nofollow, uvd: noai"], ["noai"]),
        (["UVD: noai"], ["noai"]),
        (["uvd/1.0: noai"], ["noai"]),
        (["*: noai"], ["noai"]),
        (["googlebot: noindex, *: noimageai"], ["noimageai"]),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"], ["noindex"]),
        (["unavailable_after: Fri, 25 Jun 2030 15:00:00 GMT, noindex"], ["noindex"]),
        (["googlebot: unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"], []),
        (["max-snippet:-1,noai"], ["noai"]),
        (["", ",", ":", "::noai", "a b: noai"], []),
    ],
)
def test_the_header(values, found):
    assert refused_by_header(values, "uvd") == found

"""URLs and addresses that nobody may be sent to, in every disguise."""

from __future__ import annotations

import socket

import pytest
from yarl import URL

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.addresses import BlockedAddressError, check_address, literal_address, parse_url, redirect_target
from uvd.sources.fetch import FetchConfig, fetch_in_order


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "gopher://example.org/1",
        "http://me:secret@example.org/a.jpg",
        "http://me@example.org/a.jpg",
        "http://:secret@example.org/a.jpg",
        "http://example.org@/a.jpg",
        "http://example.org\\@127.0.0.1/a.jpg",
        "http://127.0.0.1\\@example.org/a.jpg",
        "http:\\\\example.org\\a.jpg",
        "http://exam\tple.org/a.jpg",
        "http://example.org/a\n.jpg",
        "http://example.org/a.jpg\r\nHost: localhost",
        "http://example.org/" + "a" * 10_000,
        "http:///a.jpg",
        "http:/example.org/a.jpg",
        "//example.org/a.jpg",
        "example.org/a.jpg",
        "http://[::1/a.jpg",
        "http://[::1]x/a.jpg",
        "http://[fe80::1%25eth0]/",
        "http://example.org:99999/a.jpg",
        "http://example.org:port/a.jpg",
        "http://example.org:0/",
        "http://example.org:22/a.jpg",
        "https://example.org:25/a.jpg",
        "http://example.org:6379/a.jpg",
        "http://" + "a" * 64 + ".org/",
        "http://" + "a." * 200 + "org/",
        "http://.../",
        "http://a..org/",
        "http://exam ple.org/",
        "http://%31%32%37.0.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0X7F.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://127.0.0.256/",
        "http://0/",
        "http://example.0x/",
        "",
        "\0",
    ],
)
def test_urls_that_are_not_fetched(url, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    (outcome,) = fetch_in_order([url], FetchConfig(allow_private_hosts=True))
    assert isinstance(outcome, RejectedInput)
    assert outcome.reason == Reason.BAD_URL
    assert len(outcome.detail) <= 300
    assert "secret" not in outcome.detail


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://example.org", "http://example.org/"),
        (" HTTP://EXAMPLE.org/A.JPG\n", "http://example.org/A.JPG"),
        ("http://bücher.example/ä b.jpg", "http://xn--bcher-kva.example/%C3%A4%20b.jpg"),
        ("http://例え.テスト/", "http://xn--r8jz45g.xn--zckzah/"),
        ("http://example.org/a.jpg#@127.0.0.1/", "http://example.org/a.jpg"),
        ("http://example.org/?@127.0.0.1/", "http://example.org/?@127.0.0.1/"),
        ("http://example.org/http%3A%2F%2Fa%2fb?x=%2f&y=a+b", "http://example.org/http%3A%2F%2Fa%2fb?x=%2f&y=a+b"),
        ("http://example.org/100%.jpg", "http://example.org/100%25.jpg"),
        ("http://example.org/../../a.jpg", "http://example.org/a.jpg"),
        ("http://a_b.example.org:8080/x", "http://a_b.example.org:8080/x"),
        ("https://example.org:443/x", "https://example.org/x"),
        ("http://[2606:2800:220:1::]:8080/x", "http://[2606:2800:220:1::]:8080/x"),
    ],
)
def test_urls_as_they_are_sent(url, sent):
    assert str(parse_url(url)) == sent
    assert str(parse_url(sent)) == sent


@pytest.mark.parametrize("digits", ["①②⑦.0.0.1", "127。0。0。1", "１２７.0.0.1"])
def test_other_digits_are_an_address_like_any(digits):
    assert literal_address(parse_url(f"http://{digits}/")) == "127.0.0.1"


def test_which_hosts_are_addresses():
    assert literal_address(parse_url("http://[::ffff:127.0.0.1]/")) == "::ffff:7f00:1"
    assert literal_address(parse_url("http://1.2.3.4/")) == "1.2.3.4"
    assert literal_address(parse_url("http://1.2.3.4.example/")) is None


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "https://example.org/b"),
        ("b?c", "https://example.org/a/b?c"),
        ("//other.org/b", "https://other.org/b"),
        ("http://other.org/b", "http://other.org/b"),
        ("?x", "https://example.org/a/?x"),
    ],
)
def test_redirects_that_are_followed(location, target):
    assert redirect_target(URL("https://example.org/a/"), location) == URL(target)


@pytest.mark.parametrize(
    "location", [None, "", "file:///etc/passwd", "//me:pw@other.org/", "http://[", "data:,x", "//a:22/"]
)
def test_redirects_that_are_not_followed(location):
    with pytest.raises(RejectedInput) as refused:
        redirect_target(URL("https://example.org/a/"), location)
    assert refused.value.reason == Reason.BAD_URL


BLOCKED = [
    "127.0.0.1",
    "127.255.255.254",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "2002:7f00:1::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1%eth0",
    "ff02::1",
    "2001:db8::1",
]
EMBEDDED = [
    pytest.param("::127.0.0.1", id="compatible"),  # RFC 4291, 2.5.5.1
    pytest.param("64:ff9b::a9fe:a9fe", id="nat64"),  # RFC 6052: 169.254.169.254 behind a NAT64 gateway
    pytest.param("fec0::1", id="site-local"),  # RFC 3879
]


@pytest.mark.parametrize("address", [*BLOCKED, *EMBEDDED])
def test_addresses_that_are_not_global_are_blocked(address):
    with pytest.raises(BlockedAddressError):
        check_address(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::", "::ffff:93.184.216.34"])
def test_global_addresses_are_allowed(address):
    check_address(address)

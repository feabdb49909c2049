"""Which URLs and addresses may be fetched at all: pure checks, nothing is asked of anybody.

Only http and https without credentials; hosts are names or addresses in their one canonical spelling (RFC 3986); ports
are not those of other services; addresses are global (IANA's special-purpose registries, as `ipaddress` has them).
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urljoin

from yarl import URL

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
"""All global unicast addresses there are; what lies outside may be translated to IPv4 (64:ff9b::, ::a.b.c.d)."""
MAX_URL_LENGTH = 4096
"""Characters; servers and proxies refuse longer ones anyway."""
BAD_PORTS = frozenset(
    {
        *range(80),  # FTP, SSH, Telnet, SMTP, DNS, finger, …
        *(88, 95, 101, 102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 138, 139, 143, 161, 162, 179),
        *(389, 427, 445, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 543, 544, 548, 554, 556, 563, 587, 601),
        *(631, 636, 873, 989, 990, 993, 995),
        *(1433, 1521, 1719, 1720, 1723, 2049, 2375, 2376, 2379, 3306, 3389, 3659, 4045, 4190, 5060, 5061, 5432, 5900),
        *(6379, *range(6665, 6670), 6697, 9200, 9300, 10080, 11211, 27017),
    }
)
"""Ports of services that are not web servers and might take a request for a command; browsers refuse most of them."""

_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VERBATIM = re.compile(r"[!$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~|]*")
_PARTS = re.compile(r"[a-zA-Z]+://[^/?#]*([^?#]*)(?:\?([^#]*))?")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BlockedAddressError(OSError):
    """A host resolves to an address that is not global."""


def check_address(address: str) -> None:
    """Refuses loopback, private, link-local, metadata, multicast and reserved addresses, IPv4 in IPv6 included.

    Raises:
        BlockedAddressError: with the address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    embedded = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    outside = ip.version == 6 and embedded is None and ip not in GLOBAL_IPV6
    for candidate in (ip, embedded):
        if candidate is not None and (not candidate.is_global or candidate.is_multicast or outside):
            raise BlockedAddressError(f"{address} is not a global address")


def literal_address(url: URL) -> str | None:
    """The host of a checked URL if it is an IP address: such a host is dialled without being resolved."""
    host = url.raw_host or ""
    return host if ":" in host or host.rpartition(".")[2].isdecimal() else None


def parse_url(text: str) -> URL:
    """Checks a URL before anything is asked of it; names in other alphabets become Punycode.

    Path and query stay as they are written where they are ASCII: some servers sign them to the letter.

    Raises:
        RejectedInput: not http or https, no host, credentials inside, too long, control characters, an IPv4 address
            that is not spelled as four decimal numbers, or the port of another service.
    """
    if len(text) > MAX_URL_LENGTH:
        raise RejectedInput(Reason.BAD_URL, f"{len(text)} characters, over {MAX_URL_LENGTH}")
    text = text.strip()
    if _CONTROL.search(text):
        raise RejectedInput(Reason.BAD_URL, "control characters in the URL")
    try:
        url = URL(text)
        scheme, host, port, user = url.scheme, url.raw_host, url.explicit_port, url.user
    except (ValueError, UnicodeError) as error:
        # The message may quote the URL with a password in it.
        raise RejectedInput(Reason.BAD_URL, type(error).__name__ if "@" in text else str(error)[:200]) from error
    if scheme not in ("http", "https") or not host:
        raise RejectedInput(Reason.BAD_URL, f"scheme {scheme[:40]!r}: only http and https with a host are fetched")
    if user is not None or url.password is not None:
        raise RejectedInput(Reason.BAD_URL, "credentials in the URL")
    if port in BAD_PORTS:
        raise RejectedInput(Reason.BAD_URL, f"port {port} is not one of web servers")
    _check_host(host)
    return _verbatim(url, text)


def redirect_target(url: URL, location: str | None) -> URL:
    """Where a redirect leads, checked like any URL. From https to http is allowed: nothing secret is ever sent.

    Raises:
        RejectedInput: as `parse_url`.
    """
    if not location:
        raise RejectedInput(Reason.BAD_URL, "redirect without a place to go")
    try:
        target = urljoin(str(url), location)
    except ValueError as error:
        raise RejectedInput(Reason.BAD_URL, "redirect to what is no URL") from error
    return parse_url(target)


def _check_host(host: str) -> None:
    if ":" in host:
        if "%" in host:
            raise RejectedInput(Reason.BAD_URL, "an IPv6 address with a zone")
        return
    if len(host) > 254 or not _HOST.fullmatch(host):
        raise RejectedInput(Reason.BAD_URL, f"{host[:100]!r} is no host name")
    if not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to the C library, and other things to other readers.
        raise RejectedInput(Reason.BAD_URL, f"{host[:100]!r} is an odd spelling of an address") from error


def _verbatim(url: URL, text: str) -> URL:
    """The URL with its path and query to the letter, if they need no quoting; without the fragment."""
    parts = _PARTS.match(text)
    path, query = (parts.group(1) or "/", parts.group(2) or "") if parts else ("", "")
    if parts and parts.group(1) == url.raw_path and query == url.raw_query_string:
        return url.with_fragment(None) if url.raw_fragment else url
    written = path + query
    if parts is None or "/." in path or not _VERBATIM.fullmatch(written) or _BROKEN_ESCAPE.search(written):
        return url.with_fragment(None)
    return URL.build(scheme=url.scheme, authority=url.raw_authority, path=path, query_string=query, encoded=True)

"""Settings and counters of fetching.

What decides which images a dataset may hold is part of its fingerprint; how fast they come is not (`NOT_DATA`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from uvd import __version__
from uvd.sources.base import NOT_DATA

_PRINTABLE = r"^[\x20-\x7e]*$"


class FetchConfig(BaseModel):
    """How fast, how long and how much to download, and what to leave alone. All limits are those of one worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int = Field(256, ge=1, le=4096, json_schema_extra=NOT_DATA)
    """Requests in flight."""
    per_host: int = Field(8, ge=1, json_schema_extra=NOT_DATA)
    """Requests in flight to one host."""
    per_host_rate: float | None = Field(None, gt=0, json_schema_extra=NOT_DATA)
    """Requests a second to one host, robots.txt and redirects included; none: as fast as it answers."""
    lookahead: int = Field(4096, ge=1, le=100_000, json_schema_extra=NOT_DATA)
    """How many URLs may be begun before the first of them is done. One dead host holds the order up for as long as all
    of its timeouts, so this is much more than `concurrency`."""
    max_buffered_bytes: int = Field(128 << 20, ge=1, json_schema_extra=NOT_DATA)
    """Bodies in memory, whole or in part; the one that is waited for may exceed it by up to `max_bytes`."""

    connect_timeout_s: float = Field(10.0, gt=0, json_schema_extra=NOT_DATA)
    read_timeout_s: float = Field(10.0, gt=0, json_schema_extra=NOT_DATA)
    """Longest silence of a server."""
    total_timeout_s: float = Field(30.0, gt=0, json_schema_extra=NOT_DATA)
    """One attempt, all of its redirects together; waiting for a turn does not count."""
    min_bytes_per_s: int = Field(1024, ge=0, json_schema_extra=NOT_DATA)
    """A body that is slower than this after `read_timeout_s` is given up."""
    max_bytes: int = Field(20 << 20, ge=1)
    """Largest body."""
    retries: int = Field(2, ge=0, le=10, json_schema_extra=NOT_DATA)
    """Further attempts after a transient failure."""
    backoff_s: float = Field(0.5, ge=0, json_schema_extra=NOT_DATA)
    """Longest pause before the first retry; doubles with each, up to 30 s; the pause is drawn from 0 to this."""
    max_retry_after_s: float = Field(30.0, ge=0, json_schema_extra=NOT_DATA)
    """A host that asks for a longer pause (`Retry-After`) is left alone for that long and its images are rejected."""
    max_redirects: int = Field(5, ge=0, le=20)

    dns_concurrency: int = Field(32, ge=1, le=256, json_schema_extra=NOT_DATA)
    """Threads that look up names."""
    dns_timeout_s: float = Field(5.0, gt=0, json_schema_extra=NOT_DATA)
    dns_ttl_s: float = Field(300.0, ge=0, json_schema_extra=NOT_DATA)
    dns_negative_ttl_s: float = Field(60.0, ge=0, json_schema_extra=NOT_DATA)
    """How long a host without address stays one."""
    dns_cache_size: int = Field(20_000, ge=1, json_schema_extra=NOT_DATA)

    user_agent: str = Field(f"uvd/{__version__}", min_length=1, pattern=_PRINTABLE, json_schema_extra=NOT_DATA)
    """Who asks. What comes before the first `/` is the name that robots.txt and `X-Robots-Tag` know us by."""
    contact_url: str = Field("", pattern=_PRINTABLE, json_schema_extra=NOT_DATA)
    """Page or address where a site's owner finds out what this is and how to object; sent with the user agent."""
    honour_opt_outs: bool = True
    """Refuse images whose `X-Robots-Tag` says noai, noimageai, noindex, noimageindex or noml."""
    honour_robots_txt: bool = True
    robots_unreachable: Literal["allow", "deny"] = "deny"
    """What holds if robots.txt cannot be had (5xx, 429, timeout, no connection). RFC 9309 says deny: the image is then
    rejected with the reason why robots.txt failed, which is a transient one."""
    robots_ttl_s: float = Field(3600.0, ge=0, le=86_400, json_schema_extra=NOT_DATA)
    max_crawl_delay_s: float = Field(10.0, ge=0, json_schema_extra=NOT_DATA)
    """Longest `Crawl-delay` that is kept to; a longer one is cut to this."""
    allow_private_hosts: bool = False
    """Allow loopback and private addresses: for tests and intranets only."""

    @property
    def contact_missing(self) -> bool:
        """Whether a site's owner could not tell from the user agent whom to turn to."""
        return not self.contact_url and "://" not in self.user_agent and "@" not in self.user_agent

    @property
    def user_agent_header(self) -> str:
        if self.contact_url:
            return f"{self.user_agent} (+{self.contact_url})"
        return (
            f"{self.user_agent} (dataset builder; contact_url is not set)" if self.contact_missing else self.user_agent
        )

    @property
    def agent(self) -> str:
        """The product token, in lower case."""
        return self.user_agent.partition("/")[0].split()[0].lower() if self.user_agent.strip("/ ") else "uvd"


@dataclass
class FetchStats:
    """What fetching took, for run logs."""

    requests: int = 0
    """Requests sent, redirects, retries and robots.txt included."""
    retries: int = 0
    robots_requests: int = 0
    body_bytes: int = 0
    """Bytes of images that arrived."""
    abandoned: int = 0
    """Downloads dropped and begun again because too many bytes were waiting."""
    dns_lookups: int = 0
    dns_cached: int = 0
    waited_s: float = 0.0
    """Time that the reader of the images waited for the next one."""

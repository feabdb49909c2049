"""Rejects: an input that could not be used, with a reason from a closed vocabulary.

`inputs = used + rejected` holds in every shard, so that nothing disappears and nothing is replaced in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why an input was refused. The values are written to the rejects files and never change meaning."""

    # fetching
    DNS = "dns"
    DNS_TEMPORARY = "dns_temporary"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    HTTP_404 = "http_404"
    HTTP_429 = "http_429"
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    HTTP_OTHER = "http_other"
    BAD_URL = "bad_url"
    BLOCKED_ADDRESS = "blocked_address"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    OPTED_OUT_HEADER = "opted_out_header"
    OPTED_OUT_ROBOTS = "opted_out_robots"
    TRUNCATED = "truncated"
    # filters on what a list says, or on what was downloaded
    FILTERED_SIDE = "filtered_side"
    FILTERED_ASPECT = "filtered_aspect"
    FILTERED_PUNSAFE = "filtered_punsafe"
    FILTERED_PWATERMARK = "filtered_pwatermark"
    FILTERED_SIMILARITY = "filtered_similarity"
    FILTERED_AESTHETIC = "filtered_aesthetic"
    FILTERED_HOST = "filtered_host"
    FILTERED_CONSTANT = "filtered_constant"
    FILTERED_BLACK = "filtered_black"
    FILTERED_STATIC = "filtered_static"
    # files
    MISSING = "missing"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    # images
    NOT_IMAGE = "not_image"
    BOMB = "bomb"
    TOO_SMALL = "too_small"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    HASH_MISMATCH = "hash_mismatch"
    # video
    NOT_VIDEO = "not_video"
    TOO_SHORT = "too_short"
    # annotations
    BAD_ANNOTATION = "bad_annotation"
    NO_ANNOTATION = "no_annotation"
    # 3D objects
    NOT_3D = "not_3d"
    EXTERNAL_REFERENCE = "external_reference"
    NO_FACES = "no_faces"
    TOO_COMPLEX = "too_complex"
    BAD_GEOMETRY = "bad_geometry"
    BLANK_VIEW = "blank_view"
    CRASHED = "crashed"
    # tokens made elsewhere
    BAD_TOKENS = "bad_tokens"
    # assembly
    LEFTOVER = "leftover"

    @property
    def transient(self) -> bool:
        """Whether the same input may well be usable at another time, so that trying it again makes sense."""
        return self in TRANSIENT_REASONS


TRANSIENT_REASONS = frozenset(
    {
        Reason.DNS_TEMPORARY,
        Reason.CONNECT,
        Reason.TIMEOUT,
        Reason.HTTP_429,
        Reason.HTTP_5XX,
        Reason.TRUNCATED,
    }
)
"""What networks and servers get over. `truncated` is one of them because a cut download and a cut file look alike."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One refused input.

    Attributes:
        input: index of the input within its work unit.
        origin: URL or relative path of the input.
        reason: why it was refused.
        detail: one line for a person: the decoder's message, the HTTP status, the value over the limit.
    """

    input: int
    origin: str
    reason: Reason
    detail: str = ""


class RejectedInput(Exception):  # noqa: N818 - it is a verdict on an input, not a failure of the program
    """Raised while one input is read or decoded; the source turns it into a `Reject`."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def reject(self, index: int, origin: str) -> Reject:
        return Reject(input=index, origin=origin, reason=self.reason, detail=self.detail)

    def __reduce__(self) -> tuple[type, tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)

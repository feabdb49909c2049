"""Object stores by URI: opening them for reading through `pyarrow.fs`, and their failures in words.

A URI says where, and by its query how to get there (`endpoint_override`, `scheme`, `region`); who asks is said by the
environment or the credential files of the store's own tools, never by the URI: that ends up in process lists, logs and
messages. `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_S3` are followed as by the AWS tools.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import ArrowException, fs

from uvd.sequences.errors import UserError

CREDENTIALS = re.compile(r"://[^/\s@]+@")
"""In a URI within any text: who asks, which no log may hold."""
ATTEMPTS = 8
"""Of a request that fails in passing (5xx, slow down, no connection), with pauses that double: 20 to 60 s in all."""
CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 20.0
"""A request of whose answer nothing arrives for so long is tried again."""
_S3_OPTIONS = {"region", "scheme", "endpoint_override"}
_FAILURES = ("AWS Error", "google::cloud::", "HTTP response code")
"""What Arrow's messages about failed requests to object stores hold; such errors carry no errno."""
_SETTINGS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine"
_PASSING = "the store failed {attempts} times in a row. Run the same command again later: it goes on from there"
_HINTS = {
    "INVALID_ACCESS_KEY_ID|InvalidAccessKeyId|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|EXPIRED_?TOKEN|ExpiredToken":
        f"the store does not accept the credentials: check {_SETTINGS}",
    "NoCredentials|Unable to locate credentials|Partial credentials":
        f"no credentials were found: set {_SETTINGS}",
    "ACCESS_DENIED|AccessDenied|HTTP status 40[13]|\\b403\\b|Forbidden":
        f"the store refuses access: no credentials, or ones that may not do this. Set {_SETTINGS}",
    "NO_SUCH_BUCKET|NoSuchBucket":
        "there is no such bucket: check its name, AWS_REGION and the endpoint (AWS_ENDPOINT_URL)",
    "PermanentRedirect|HTTP status 301|AuthorizationHeaderMalformed":
        "the bucket is in another region: set AWS_REGION, or ?region=… in the URI",
    "curlCode: (6|7|35|60)\\b|Could not connect|SSL":
        "the store cannot be reached: check the network and the endpoint (AWS_ENDPOINT_URL)",
    "curlCode: \\d+|[Tt]imed? ?out|Connection was closed|SLOW_DOWN|SlowDown": _PASSING,
    "INTERNAL_FAILURE|InternalError|SERVICE_UNAVAILABLE|ServiceUnavailable|HTTP status 5|\\b50[0234]\\b": _PASSING,
}  # fmt: skip
"""What a failure's text holds, and what it means; the first that fits."""


class ObjectStoreError(UserError, OSError):
    """A request to an object store failed for good; what failed may pass, so a shard is tried again."""


@dataclass(frozen=True, slots=True)
class S3Address:
    """Where an S3 bucket is.

    Attributes:
        endpoint: `https://host[:port]`, or empty for AWS itself.
    """

    bucket: str
    region: str
    endpoint: str


def plain_uri(uri: str) -> str:
    """A URI as messages, logs and manifests name it: without what says how to get there, and who asks. Paths stay."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def with_query_of(place: str, uri: str) -> str:
    """`place` with the query of `uri` if both are in the same kind of store and `place` has none."""
    query = uri.partition("?")[2] if "://" in uri else ""
    same = place.partition("://")[0] == uri.partition("://")[0]
    return f"{place}?{query}" if query and same and "?" not in place else place


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """Opens `s3://`, `gs://` and what else Arrow knows.

    Returns:
        (file system, path there); on S3 it tries failing requests again (`ATTEMPTS`) and gives up silent ones.

    Raises:
        UserError: for credentials in the URI, an option or scheme that is not known, or a store out of reach.
    """
    _refuse_credentials(uri)
    try:
        if not uri.startswith("s3://"):
            filesystem, path = fs.FileSystem.from_uri(uri)
            return filesystem, path
        address, path = s3_address(uri)
        scheme, _, host = address.endpoint.rpartition("://")
        filesystem = fs.S3FileSystem(
            region=address.region,
            endpoint_override=host or None,
            scheme=scheme or "https",
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=SILENCE_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )
    except (ArrowException, ValueError, OSError) as error:
        raise UserError(f"cannot open {plain_uri(uri)}: {explain(error)}") from error
    return filesystem, path


def s3_address(uri: str) -> tuple[S3Address, str]:
    """(where the bucket is, `bucket/path`) of an `s3://` URI.

    Raises:
        UserError: for an unknown option in its query, or no bucket.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - _S3_OPTIONS)
    if unknown:
        known = ", ".join(sorted(_S3_OPTIONS))
        raise UserError(f"{plain_uri(uri)}: the option {unknown[0]!r} after ? is not known; there are {known}")
    bucket = parts.netloc
    if not bucket:
        raise UserError(f"{plain_uri(uri)} names no bucket: expected s3://bucket/path")
    endpoint = options.get("endpoint_override") or next(
        (os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), ""
    )
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        endpoint = f"{scheme or options.get('scheme', 'https')}://{host.rstrip('/')}"
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        region = "us-east-1" if endpoint else _region_of(bucket)
    path = unquote(parts.path).strip("/")
    return S3Address(bucket, region, endpoint), f"{bucket}/{path}" if path else bucket


@functools.cache
def _region_of(bucket: str) -> str:
    return str(fs.resolve_s3_region(bucket))


def _refuse_credentials(uri: str) -> None:
    who, at, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    if at and who != "anonymous":  # which Arrow takes for public buckets of GCS
        raise UserError(
            f"{plain_uri(uri)} was given with credentials in it, which process lists and logs would show. Leave them "
            f"out and set {_SETTINGS}."
        )


def is_store_failure(error: BaseException) -> bool:
    """Whether an error is of a request to an object store."""
    if isinstance(error, ObjectStoreError):
        return True
    return isinstance(error, OSError) and error.errno is None and any(mark in str(error) for mark in _FAILURES)


def explain(error: BaseException) -> str:
    """What failed, with bucket and key as the store's library names them, and what to do about it."""
    text = " ".join(str(error).split())
    if isinstance(error, ObjectStoreError):
        return text
    hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), "")
    hint = hint.format(attempts=ATTEMPTS)
    return f"{text.rstrip('.')}. {hint[:1].upper()}{hint[1:]}." if hint else text

"""Addresses of object stores: what a URI may say, what is told of it, and what failures mean."""

from __future__ import annotations

import pytest

from uvd.sequences.errors import UserError
from uvd.sequences.object_stores import (
    ObjectStoreError,
    S3Address,
    explain,
    is_store_failure,
    open_uri,
    plain_uri,
    s3_address,
    with_query_of,
)

VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("uri", "plain"),
    [
        ("s3://b/d?region=x", "s3://b/d"),
        ("s3://b/d/", "s3://b/d"),
        ("s3://key:secret@b/d/e@f", "s3://b/d/e@f"),
        ("s3://key:se@cret@b", "s3://b"),
        ("/a/what?/b", "/a/what?/b"),
    ],
)
def test_how_an_address_is_named(uri, plain):
    assert plain_uri(uri) == plain


@pytest.mark.parametrize(
    ("place", "uri", "opened"),
    [
        ("s3://b/base", "s3://b/view?scheme=http", "s3://b/base?scheme=http"),
        ("s3://b/base", "s3://b/view", "s3://b/base"),
        ("s3://b/base", "/local/view", "s3://b/base"),
        ("s3://b/base", "gs://b/view?anonymous=true", "s3://b/base"),
        ("/local/base", "s3://b/view?scheme=http", "/local/base"),
    ],
)
def test_what_a_view_says_of_the_way_holds_for_its_base(place, uri, opened):
    assert with_query_of(place, uri) == opened


def test_a_query_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general:1")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert s3_address("s3://b/d e/f")[0] == S3Address("b", "eu-west-1", "https://general:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio:9000/")
    assert s3_address("s3://b/d%20e/f/") == (S3Address("b", "eu-west-1", "http://minio:9000"), "b/d e/f")
    told = "s3://b?endpoint_override=ceph:7480&scheme=http&region=here"
    assert s3_address(told) == (S3Address("b", "here", "http://ceph:7480"), "b")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://b/d?acces_key=x", "'acces_key' after \\? is not known; there are endpoint_override, region, scheme"),
        ("s3:///d", "names no bucket"),
        ("ftp://b/d", "cannot open ftp://b/d"),
        ("s3://key:secret@b/d", "s3://b/d was given with credentials"),
    ],
)
def test_what_is_refused(uri, says):
    with pytest.raises(UserError, match=says) as refused:
        open_uri(uri)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("When reading key 'k' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
         "refuses access"),
        ("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached", "failed 8 times in a row"),
        ("AWS Error NETWORK_CONNECTION: curlCode: 7, Could not connect", "cannot be reached"),
        ("AWS Error SLOW_DOWN during GetObject", "failed 8 times in a row"),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject", "in another region"),
    ],
)  # fmt: skip
def test_failures_in_words(text, means):
    assert is_store_failure(OSError(text))
    assert means in explain(OSError(text))
    assert explain(OSError(text)).startswith(text.rstrip("."))


def test_what_is_no_failure_of_a_store():
    assert not is_store_failure(OSError("No space left on device"))
    assert not is_store_failure(FileNotFoundError(2, "No such file", "AWS Error"))
    assert not is_store_failure(ValueError("AWS Error"))
    assert is_store_failure(ObjectStoreError("x"))

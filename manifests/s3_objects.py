"""Writing to S3: objects that appear whole or not at all, and the removal of uploads that were never finished.

Arrow reads; it is not used to write, because a file that it has open is completed when it is closed for whatever
reason, half of a shard too, and because it leaves empty objects in the place of folders. Here an object is one `PUT`,
or a multipart upload that is aborted if it fails; what a killed process left open is found by listing and aborted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from uvd.sequences import object_stores
from uvd.sequences.object_stores import ObjectStoreError, S3Address, explain

PART_BYTES = 32 << 20
"""Of a multipart upload: 10,000 parts are 320 GB. What is smaller is one request."""
_THREADS = 4
_DELETED_AT_ONCE = 1000


class S3Objects:
    """The objects of one bucket, by key. Connects when it is first used; may be shared by threads."""

    def __init__(self, address: S3Address) -> None:
        self._address = address

    @cached_property
    def _client(self) -> Any:
        custom = bool(self._address.endpoint)
        config = Config(
            region_name=self._address.region,
            connect_timeout=object_stores.CONNECT_TIMEOUT_S,
            read_timeout=object_stores.SILENCE_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": object_stores.ATTEMPTS},
            # Other makes of store do not all know subdomains for buckets and the newer checksums.
            s3={"addressing_style": "path" if custom else "auto"},
            request_checksum_calculation="when_required" if custom else "when_supported",
            response_checksum_validation="when_required" if custom else "when_supported",
        )
        with self._explained("opening"):
            # A session of its own: the default one is no thread's to share.
            return boto3.session.Session().client("s3", endpoint_url=self._address.endpoint or None, config=config)

    def put(self, key: str, file: BinaryIO) -> None:
        """Uploads a file from where it stands to its end.

        Raises:
            ObjectStoreError: if that fails for good; there is no object then, nor a part of one.
        """
        transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=_THREADS
        )
        with self._explained(f"writing {key!r}"):
            self._client.upload_fileobj(file, self._address.bucket, key, Config=transfer)

    def delete(self, key: str) -> None:
        """Deletes an object; nothing happens if there is none."""
        with self._explained(f"deleting {key!r}"):
            self._client.delete_object(Bucket=self._address.bucket, Key=key)

    def delete_below(self, prefix: str) -> None:
        """Deletes all objects whose keys begin so."""
        with self._explained(f"deleting what is below {prefix!r}"):
            keys = [{"Key": found["Key"]} for found in self._list("list_objects_v2", "Contents", prefix)]
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                batch = {"Objects": keys[start : start + _DELETED_AT_ONCE], "Quiet": True}
                answer = self._client.delete_objects(Bucket=self._address.bucket, Delete=batch)
                if answer.get("Errors"):
                    first = answer["Errors"][0]
                    raise ObjectStoreError(
                        f"{self._place}: {len(answer['Errors'])} objects could not be deleted, the first is "
                        f"{first['Key']!r}: {first['Code']}"
                    )

    def abort_uploads(self, prefix: str) -> int:
        """Aborts the open multipart uploads of keys that begin so; how many.

        Their parts are not seen in any listing of objects, and are paid for until somebody aborts them.
        """
        with self._explained(f"looking for unfinished uploads below {prefix!r}"):
            uploads = list(self._list("list_multipart_uploads", "Uploads", prefix))
        for upload in uploads:
            with self._explained(f"aborting an unfinished upload of {upload['Key']!r}"):
                self._abort(upload["Key"], upload["UploadId"])
        return len(uploads)

    def _abort(self, key: str, upload: str) -> None:
        gone = self._client.exceptions.NoSuchUpload
        try:
            self._client.abort_multipart_upload(Bucket=self._address.bucket, Key=key, UploadId=upload)
        except gone:
            return  # finished or aborted since it was listed

    def _list(self, operation: str, what: str, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator(operation).paginate(Bucket=self._address.bucket, Prefix=prefix)
        for page in pages:
            yield from page.get(what, ())

    @property
    def _place(self) -> str:
        at = f" at {self._address.endpoint}" if self._address.endpoint else ""
        return f"bucket {self._address.bucket!r}{at}"

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise ObjectStoreError(f"{self._place}, {doing}: {explain(error)}") from error

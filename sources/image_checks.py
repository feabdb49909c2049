"""Checks of an image that has arrived, beyond being decodable: checksum, shape, near-constant, duplicate in its shard.

Images are checked in the order of the rows, whatever the order in which they arrived, and the first of several alike is
kept, so the outcome is a function of the inputs. Duplicates across shards are the matter of the manifests. Costs per
image: sha256 of the file (about 0.1 ms a 100 KB), 0.1 ms for the deviation, 0.05 ms for the perceptual hash if asked.
"""

from __future__ import annotations

from hashlib import md5, sha256

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from uvd.sequences import Reason
from uvd.sequences.phash import phash
from uvd.sequences.reject import RejectedInput

_HEX_DIGITS = {32: md5, 64: sha256}


class ImageCheckConfig(BaseModel):
    """What an image itself must be like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_aspect: float | None = Field(None, ge=1)
    """Longer side by shorter side."""
    min_deviation: float = Field(2.0, ge=0)
    """Standard deviation in grey levels of the channel that varies most, at 256x256; less is a near-constant image,
    such as the blank placeholder of a shop. 0 keeps all."""
    duplicates: bool = True
    """Refuse files whose bytes another one of the shard has."""
    near_duplicate_bits: int | None = Field(None, ge=0, le=32)
    """Refuse pictures whose 64-bit perceptual hash differs by up to this many bits from another's of the shard."""
    verify_hash: bool = False
    """Refuse files that are not those of the list's md5 or sha256 (`columns.hash`); rows without one pass."""


class ImageChecks:
    """The checks of one work unit, which remember its images. Call `file`, `shape` and `picture` in this order."""

    def __init__(self, config: ImageCheckConfig) -> None:
        self._config = config
        self._files: dict[bytes, str] = {}
        self._hashes = np.empty(0, np.uint64)
        self._hashed: list[str] = []

    def file(self, data: bytes, listed_hash: str | None = None) -> bytes:
        """Checks a file's bytes; returns what `picture` wants to remember of them.

        Raises:
            RejectedInput: another checksum than the list's, or the file of another input.
        """
        if self._config.verify_hash and listed_hash:
            expected = listed_hash.strip().lower()
            function = _HEX_DIGITS.get(len(expected))
            if function is None:
                raise RejectedInput(Reason.HASH_MISMATCH, f"{expected[:80]!r} is neither md5 nor sha256")
            if (found := function(data).hexdigest()) != expected:
                raise RejectedInput(Reason.HASH_MISMATCH, f"{found}, listed as {expected}")
        digest = sha256(data).digest() if self._config.duplicates else b""
        if digest in self._files:
            raise RejectedInput(Reason.DUPLICATE, f"same file as {self._files[digest]}")
        return digest

    def shape(self, width: int, height: int) -> None:
        """
        Raises:
            RejectedInput: too narrow.
        """
        bound = self._config.max_aspect
        if bound is not None and max(width, height) > bound * min(width, height):
            raise RejectedInput(Reason.FILTERED_ASPECT, f"{width}x{height}, max_aspect is {bound:g}")

    def picture(self, pixels: NDArray[np.uint8], origin: str, digest: bytes) -> None:
        """Checks `(256, 256, 3)` uint8 RGB, and remembers it if it passes.

        Raises:
            RejectedInput: near-constant, or much like another picture.
        """
        deviation = float(cv2.meanStdDev(pixels)[1].max())
        if deviation < self._config.min_deviation:
            raise RejectedInput(
                Reason.FILTERED_CONSTANT, f"deviation {deviation:.2f}, min_deviation is {self._config.min_deviation:g}"
            )
        if self._config.near_duplicate_bits is not None:
            self._near(np.uint64(phash(pixels)), self._config.near_duplicate_bits, origin)
        if digest:
            self._files[digest] = origin

    def _near(self, hashed: np.uint64, bits: int, origin: str) -> None:
        alike = np.flatnonzero(np.bitwise_count(self._hashes ^ hashed) <= bits)
        if len(alike):
            raise RejectedInput(Reason.NEAR_DUPLICATE, f"much like {self._hashed[int(alike[0])]}")
        self._hashes = np.append(self._hashes, hashed)
        self._hashed.append(origin)

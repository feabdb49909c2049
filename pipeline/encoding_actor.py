"""The actor of the encoding service.

Whoever has a handle of an actor imports its module: this one, which must not import torch, because tasks have handles.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.pipeline.encoding_client import EncodedCall
from uvd.pipeline.metrics import DeviceMetrics, device_label

if TYPE_CHECKING:
    from uvd.pipeline.tokenizing import TokenizeSettings


class EncodingActor:
    """Holds one encoder on one device; calls share its batches."""

    def __init__(self, settings: TokenizeSettings) -> None:
        from uvd.tokenize.batching import EncodingQueue

        self._settings = settings
        self._tokenizer = settings.load()
        self._queue = EncodingQueue(self._tokenizer)
        self._metrics = DeviceMetrics(device_label(settings.device), self._queue.busy_seconds)

    def ready(self) -> None:
        """Returns when the network is loaded."""

    def encode(self, pictures: NDArray[np.uint8]) -> EncodedCall:
        """Encodes `(n, 256, 256, 3)` uint8 RGB."""
        with self._queue.feeding():
            parts = [self._queue.add([picture]) for picture in pictures]
        ids, errors = np.zeros((len(pictures), TOKENS_PER_IMAGE), np.uint16), dict[int, str]()
        for place, part in enumerate(parts):
            result = part.result()
            if isinstance(result, Exception):
                errors[place] = str(result)
            else:
                ids[place] = result[0]
        if self._queue.broken:
            # A failed device stays failed for this process: Ray starts another, perhaps elsewhere, and calls it again.
            os._exit(1)
        return EncodedCall(ids, errors, self._settings.describe(self._tokenizer))

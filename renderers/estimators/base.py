"""The contract of an estimator: batches of square views of photos in, label pictures by role out.

A view is the picture's own crop at the side in pixels that the network wants, so all batches have one shape and the
annotation lies on the picture by construction. Estimators are loaded once a process and run without any randomness; on
a CPU with one thread, so that results depend on the batch alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uvd.sequences.errors import UserError


class EstimatorFilesError(UserError):
    """A network's files are missing, foreign or unreadable, or its package is not installed; the message says which."""


@dataclass(frozen=True, slots=True)
class View:
    """What an estimator sees of one photo.

    Attributes:
        pixels: `(side, side, 3)` uint8 RGB.
        boxes: `(N, 4)` float64 left, top, right, bottom of people in pixels of the view, where an annotation gives
            them; None where it does not.
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64] | None = None


Estimates = Mapping[str, NDArray[np.uint8]]
"""Role → `(256, 256, 3)` uint8 RGB; a role of which nothing is to be seen (nobody in the photo) is left out."""


class Estimator(ABC):
    """Subclass, set `side` and `roles`, implement `estimate`, and build it in `uvd.renderers.estimators.opening`.

    Attributes:
        side: of the views, in pixels.
        roles: of the pictures that it makes, in their order in an example.
    """

    side: int
    roles: tuple[str, ...]

    @abstractmethod
    def estimate(self, views: Sequence[View]) -> list[Estimates]:
        """One mapping a view, in order. The last batch of a shard is smaller than the others; whoever needs one shape
        pads it.
        """

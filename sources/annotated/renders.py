"""What readers of boxes have in common: which drawings of `render` their form can give, and boxes as annotations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from uvd.sources.annotated.base import Annotation
from uvd.sources.annotated.config import AnnotatedConfig, Render
from uvd.sources.annotated.drawn_boxes import draw_boxes
from uvd.sources.base import SourceError
from uvd.sources.drawing import naming


def wanted_renders(config: AnnotatedConfig) -> tuple[Render, ...]:
    """`render` without `pose`, for forms that hold no keypoints.

    Raises:
        SourceError: if `pose` was asked for rather than left at the default.
    """
    if "pose" in config.render and config.render != type(config).model_fields["render"].default:
        raise SourceError(
            f"kind {config.kind} has no keypoints: leave 'pose' out of render (or estimate.pose draws it)"
        )
    return tuple(kind for kind in config.render if kind != "pose")


def box_annotations(
    kind: Render, origin: str, xywh: NDArray[np.float64], classes: NDArray[np.int64], over_image: bool
) -> Iterator[Annotation]:
    """The annotation of kind `boxes` or `filled_boxes`, unless there is no box.

    Args:
        xywh: `(N, 4)` x, y, width, height in raw pixels.
        classes: `(N,)` places in the palette, from 1.

    Raises:
        RejectedInput: for a class beyond the palette.
    """
    if len(classes):
        with naming(origin):
            draw = draw_boxes(xywh, classes, over_image, filled=kind == "filled_boxes")
        yield Annotation(kind, origin, draw)

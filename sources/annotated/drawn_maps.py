"""Maps of a photo → what draws them: the file's numbers by its form, and the rule of sizes.

A map may be larger or smaller than its photo by one factor: the smaller of the two, made larger, covers the other with
each of its sides within one of its pixels. Any other size is refused. Labels, depth and normals are taken through the
transform by nearest neighbour, so that no value is made up; edges and pictures are resized as photos are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.depth import render_depth
from uvd.renderers.grey import render_grey
from uvd.renderers.normals import render_normals
from uvd.renderers.palette import PALETTE_SIZE, VOID
from uvd.renderers.segmentation import render_foreground, render_segmentation
from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.exr import ExrReader
from uvd.sources.annotated.map_files import (
    EXR_MAGIC,
    Values,
    decode_exact_colours,
    decode_ids,
    decode_values,
    one_channel,
    values_of,
)
from uvd.sources.annotated.map_form import Convention, MapForm
from uvd.sources.decode import MIN_SIDE, decode_image, read_bytes
from uvd.sources.drawing import Draw, ImageFolder, naming

MAX_TINT = 16
"""Levels by which the channels of a picture of edges may differ: what JPEG does to grey."""
MIN_LENGTH = 0.5
"""Of a normal stored as integers: shorter ones are not normals, such as the grey of nothing."""
_AXES: dict[Convention, tuple[int, int, int]] = {"opengl": (1, 1, 1), "directx": (1, -1, 1), "opencv": (1, -1, -1)}

Size = tuple[int, int]
"""(height, width)."""


class DrawnMaps:
    """Opens the maps of an input."""

    def __init__(self, config: ImageFolder) -> None:
        self._config = config
        self._exr = ExrReader()

    def close(self) -> None:
        """Ends the child process, if one was needed."""
        self._exr.close()

    def open(self, path: str, form: MapForm, photo: NDArray[np.uint8]) -> list[tuple[str, Draw]]:
        """What draws a map of a photo, with its group: `""`, or for `foreground` each class that it has.

        Args:
            path: relative to the input.
            photo: `(H, W, 3)` uint8, upright.

        Raises:
            RejectedInput: unreadable, not of this form, or of a size that does not fit the photo; names the file.
        """
        with naming(path):
            data = read_bytes(self._config.input / path, self._config.max_bytes)
            return self._open(path, data, form, (photo.shape[0], photo.shape[1]))

    def _open(self, path: str, data: bytes, form: MapForm, photo: Size) -> list[tuple[str, Draw]]:
        most = self._config.max_pixels
        if form.form == "labels":
            return _draw_labels(_label_ids(data, form, most), form, photo)
        if form.form == "colours":
            return [("", _draw_colours(decode_exact_colours(data, most), photo))]
        if form.form in ("picture", "edges"):
            pixels, _ = decode_image(data, max_pixels=most)
            return [("", _draw_picture(pixels if form.form == "picture" else _edges(pixels, form), photo))]
        if data.startswith(EXR_MAGIC):
            place = self._config.input / path
            values = values_of(self._exr.read(place, data, self._config.max_bytes, most))
        else:
            values = decode_values(data, most)
        draw = _draw_normals if form.form == "normals" else _draw_depth
        return [("", draw(values, form, photo))]


def fitted(transform: Transform, photo: Size, size: Size) -> Transform:
    """The transform of a photo, in the pixels of its map."""
    down, across = size[0] / photo[0], size[1] / photo[1]
    return replace(
        transform,
        x=transform.x * across,
        y=transform.y * down,
        width=transform.width * across,
        height=transform.height * down,
    )


def check_fit(photo: Size, size: Size) -> None:
    """
    Raises:
        RejectedInput: unless a map of `size` is its photo, larger or smaller by one factor.
    """
    if min(size) >= MIN_SIDE and _one_factor(photo, size):
        return
    turned = ", which would fit the photo before it is turned upright" if _one_factor(photo[::-1], size) else ""
    detail = f"{size[1]}x{size[0]} pixels{turned if photo[0] != photo[1] else ''}, its photo {photo[1]}x{photo[0]}"
    raise RejectedInput(Reason.BAD_ANNOTATION, detail)


def _one_factor(photo: Size, size: Size) -> bool:
    smaller, larger = sorted((photo, size), key=lambda sides: sides[0] * sides[1])
    ranges = [((small - 1) / large, (small + 1) / large) for small, large in zip(smaller, larger, strict=True)]
    return max(low for low, _ in ranges) <= min(high for _, high in ranges)


def _label_ids(data: bytes, form: MapForm, max_pixels: int) -> NDArray[np.int32]:
    """`(H, W)` int32 places in the palette; 0 is void.

    Raises:
        RejectedInput: not labels, or ids beyond the palette.
    """
    if form.encoding == "ids":
        ids = decode_ids(data, max_pixels)
    else:
        red, green, blue = np.moveaxis(decode_exact_colours(data, max_pixels).astype(np.int32), -1, 0)
        ids = red // 10 * 256 + green if form.encoding == "ade20k" else red + 256 * green + 65536 * blue
    void = np.isin(ids, form.void)
    kept = ids[~void]
    if kept.size:
        low, high = int(kept.min()), int(kept.max())
        if low < 0 or high + form.add >= PALETTE_SIZE:
            worst = low if low < 0 else high
            detail = f"label id {worst} is beyond the palette's {PALETTE_SIZE} colours and not among the void ids"
            raise RejectedInput(Reason.BAD_ANNOTATION, detail)
    places = ids + np.int32(form.add)
    places[void] = VOID
    return places


def _draw_labels(ids: NDArray[np.int32], form: MapForm, photo: Size) -> list[tuple[str, Draw]]:
    size = (ids.shape[0], ids.shape[1])
    check_fit(photo, size)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        labels = fitted(transform, photo, size).labels(ids)
        return render_segmentation(labels.astype(np.int32)), bool(labels.any())

    def draw_class(place: int) -> Draw:
        def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
            mask = fitted(transform, photo, size).labels(ids) == place
            return render_foreground(mask), bool(mask.any())

        return draw

    if not form.foreground:
        return [("", draw)]
    places = np.flatnonzero(np.bincount(ids.ravel())).tolist()
    return [(str(place), draw_class(place)) for place in places if place]


def _draw_colours(pixels: NDArray[np.uint8], photo: Size) -> Draw:
    size = (pixels.shape[0], pixels.shape[1])
    check_fit(photo, size)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        colours = fitted(transform, photo, size).labels(pixels).astype(np.uint8)
        return colours, bool(colours.any())

    return draw


def _draw_picture(pixels: NDArray[np.uint8], photo: Size) -> Draw:
    size = (pixels.shape[0], pixels.shape[1])
    check_fit(photo, size)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        return fitted(transform, photo, size).image(pixels), True

    return draw


def _edges(pixels: NDArray[np.uint8], form: MapForm) -> NDArray[np.uint8]:
    tint = pixels.max(axis=2) - pixels.min(axis=2)
    if int(tint.max()) > MAX_TINT:
        raise RejectedInput(Reason.BAD_ANNOTATION, "has colours, expected edges in one channel")
    grey = render_grey(pixels)
    return 255 - grey if form.invert else grey


def _draw_depth(values: Values, form: MapForm, photo: Size) -> Draw:
    stored = one_channel(values)
    size = (stored.shape[0], stored.shape[1])
    check_fit(photo, size)
    unknown = form.invalid if form.invalid is not None else () if values.peak is None else (0.0,)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        crop = fitted(transform, photo, size).labels(stored)
        # A value such as -99.99 is stored in the file's own precision.
        exact = crop if values.peak is None else crop.astype(np.float64)
        valid = ~np.isin(exact, np.array(unknown, exact.dtype))
        depth = crop.astype(np.float64)
        if form.form == "disparity":
            picture = render_depth(depth, valid, "inverse")
        else:
            metres = depth / form.scale
            valid &= np.isfinite(metres) & (metres > 0)
            if form.near is not None or form.far is not None:
                metres = np.clip(metres, form.near, form.far)
            picture = render_depth(metres, valid, "metric")
        return picture, bool(picture.any())

    return draw


def _draw_normals(values: Values, form: MapForm, photo: Size) -> Draw:
    stored = values.array
    if stored.ndim != 3 or stored.shape[2] < 3:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"has shape {stored.shape}, expected (H, W, 3)")
    size = (stored.shape[0], stored.shape[1])
    check_fit(photo, size)

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        vectors = fitted(transform, photo, size).labels(stored)[..., :3].astype(np.float64)
        valid = None
        if values.peak is not None:
            black = ~vectors.any(axis=2)
            vectors = vectors / values.peak * 2 - 1
            valid = ~black & ((vectors**2).sum(axis=2) >= MIN_LENGTH**2)
        picture = render_normals(vectors * _AXES[form.convention], valid)
        return picture, bool(picture.any())

    return draw

"""Annotations that need no label: pictures made from the photo alone, by name.

Each is what a photo would be restored from: grey for colourisation, black parts for inpainting, noise for denoising.
Each function takes the photo, `(H, W, 3)` uint8 RGB, a seeded generator and the settings, and returns a picture of the
same size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from uvd.renderers.degradations import (
    Blur,
    JpegArtefacts,
    LowLight,
    LowResolution,
    Noise,
    render_blur,
    render_jpeg,
    render_low_light,
    render_low_resolution,
    render_noise,
)
from uvd.renderers.grey import render_grey
from uvd.renderers.inpainting import Inpainting, render_masked
from uvd.renderers.rain import Rain, render_rain

Derived = Literal["grey", "masked", "rain", "noise", "low_light", "blur", "low_resolution", "jpeg"]


class DeriveSettings(BaseModel):
    """How pictures are derived."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inpainting: Inpainting = Inpainting()
    """Of `masked`."""
    rain: Rain = Rain()
    noise: Noise = Noise()
    low_light: LowLight = LowLight()
    blur: Blur = Blur()
    low_resolution: LowResolution = LowResolution()
    jpeg: JpegArtefacts = JpegArtefacts()


Derive = Callable[[NDArray[np.uint8], np.random.Generator, DeriveSettings], NDArray[np.uint8]]

DERIVED: dict[Derived, Derive] = {
    "grey": lambda photo, _rng, _settings: render_grey(photo),
    "masked": lambda photo, rng, settings: render_masked(photo, rng, settings.inpainting),
    "rain": lambda photo, rng, settings: render_rain(photo, rng, settings.rain),
    "noise": lambda photo, rng, settings: render_noise(photo, rng, settings.noise),
    "low_light": lambda photo, rng, settings: render_low_light(photo, rng, settings.low_light),
    "blur": lambda photo, rng, settings: render_blur(photo, rng, settings.blur),
    "low_resolution": lambda photo, rng, settings: render_low_resolution(photo, rng, settings.low_resolution),
    "jpeg": lambda photo, rng, settings: render_jpeg(photo, rng, settings.jpeg),
}

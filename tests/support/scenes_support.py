"""Annotated scenes drawn here: ellipses over smooth photos, with what is in them known exactly."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from tests_support import smooth_photo

from uvd.pipeline.demo.published_images import PERSON, Scene, SceneObject

HEIGHT, WIDTH = 300, 400
STANDING = (
    *((0.5, 0.1), (0.55, 0.07), (0.45, 0.07), (0.6, 0.1), (0.4, 0.1), (0.7, 0.25), (0.3, 0.25), (0.8, 0.42)),
    *((0.2, 0.42), (0.85, 0.6), (0.15, 0.6), (0.6, 0.55), (0.4, 0.55), (0.6, 0.75), (0.4, 0.75), (0.62, 0.95)),
    (0.38, 0.95),
)
"""COCO's 17 keypoints of a standing person, as shares of its box."""


def scenes(count: int = 6) -> list[Scene]:
    """Each holds a person (category 1) and one object of category 2 to 4, in front of a wall that leans away."""
    return [_scene(number) for number in range(count)]


def _scene(number: int) -> Scene:
    pixels = smooth_photo(number, HEIGHT, WIDTH)
    person = _ellipse(150 + 5 * number, 150, 45, 110)
    thing = _ellipse(265, 190 - 6 * number, 50, 40) & ~person
    pixels[person], pixels[thing] = (220, 60, 40), (30, 90, 220)
    depth = np.linspace(4, 9, WIDTH, dtype=np.float32)[None, :].repeat(HEIGHT, axis=0)
    depth[person], depth[thing], depth[:10] = 2, 3, 0
    objects = (SceneObject(PERSON, person, _keypoints(person)), SceneObject(2 + number % 3, thing))
    return Scene(f"scene-{number}", pixels, objects, depth)


def _ellipse(x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (x, y), (width, height), 0, 0, 360, 1, cv2.FILLED)
    return mask.astype(np.bool_)


def _keypoints(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    left, top, width, height = SceneObject(PERSON, mask).box
    places = np.array(STANDING) * (width, height) + (left, top)
    return np.column_stack([places, np.full(17, 2.0)])

"""Cameras around an object: the orbit of UVDv1's Objaverse views, and their exact projection.

24 views at 15 degree steps of azimuth; for each object one elevation in [-45, 45] degrees and one radius in [1.5, 2.2]
(LVM, arXiv 2312.00785), so that an object keeps its size while it turns. Lengths are in diameters of the object's
bounding sphere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VIEWS = 24
RADIUS = (1.5, 2.2)
ELEVATION = (-45.0, 45.0)

FIELD_OF_VIEW = 42.0
"""Degrees. The sphere of radius 0.5 spans 39 degrees from 1.5 and 26 from 2.2: it fills 92 to 61 % and is never cut."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A square pinhole camera that looks at the origin.

    Attributes:
        azimuth: degrees about the up axis +Y; 0 looks from +Z (glTF's front), 90 from +X.
        elevation: degrees above the horizon, within (-90, 90).
        radius: distance to the origin, in object diameters.
        field_of_view: degrees, full angle.
    """

    azimuth: float
    elevation: float
    radius: float
    field_of_view: float = FIELD_OF_VIEW

    @property
    def position(self) -> NDArray[np.float64]:
        a, e = np.radians((self.azimuth, self.elevation))
        return self.radius * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])

    @property
    def pose(self) -> NDArray[np.float64]:
        """`(4, 4)` camera to world; the camera looks along its -Z with +Y up, as OpenGL's."""
        a, e = np.radians((self.azimuth, self.elevation))
        backward = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        right = np.array([np.cos(a), 0.0, -np.sin(a)])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(backward, right), backward], axis=1)
        pose[:3, 3] = self.radius * backward
        return pose

    def project(self, points: NDArray[np.floating], size: int) -> NDArray[np.float64]:
        """Where `(..., 3)` world points fall in a `size` x `size` view: `(..., 2)` x, y from the top left corner."""
        pose = self.pose
        seen = (np.asarray(points, dtype=np.float64) - pose[:3, 3]) @ pose[:3, :3]
        focal = size / 2 / np.tan(np.radians(self.field_of_view) / 2)
        flat = seen[..., :2] / -seen[..., 2:]
        return size / 2 + focal * flat * (1.0, -1.0)


def orbit(
    rng: np.random.Generator,
    views: int = VIEWS,
    radius: tuple[float, float] = RADIUS,
    elevation: tuple[float, float] = ELEVATION,
    field_of_view: float = FIELD_OF_VIEW,
) -> list[Camera]:
    """Cameras of one object: equal steps over the full circle, counter-clockwise from above, the first in front."""
    distance = float(rng.uniform(*radius))
    height = float(rng.uniform(*elevation))
    return [Camera(360.0 * view / views, height, distance, field_of_view) for view in range(views)]

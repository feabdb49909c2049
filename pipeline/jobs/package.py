"""The project as a wheel for the cluster: built from the working tree, byte for byte the same for the same files.

Ray would install a wheel in `py_modules` by `pip install --target` with all its dependencies, several GB from the
internet, and would tell two wheels of one version apart by their names alone. So the wheel's package is handed over
unpacked, as a folder, which Ray names by a hash of its content; the dependencies are those of the cluster's image.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import uvd
from uvd.pipeline.jobs.errors import SubmissionError

BUILD_TIMEOUT_S = 300
_KEPT = 8
"""Wheels in the cache: one is made for each state of the tree that something was submitted from."""
_EPOCH = "315619200"
"""Of the files in a wheel: 1980-01-02, since zip knows no earlier year."""
_ROOT_FILES = ("__init__.py", "pyproject.toml", "README.md", "LICENSE")
_NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


@dataclass(frozen=True)
class Package:
    """What goes to the cluster.

    Attributes:
        folder: a folder named `uvd` that can be imported from where it lies.
        version: of uvd.
        digest: the first 16 hex digits of the wheel's sha256.
        requirements: dependencies as the wheel's metadata has them, extras left out.
    """

    folder: Path
    version: str
    digest: str
    requirements: tuple[str, ...]


def cache_folder() -> Path:
    """Where wheels are kept: `$UVD_WHEELS`, or `~/.cache/uvd/wheels`."""
    return Path(os.environ.get("UVD_WHEELS") or Path.home() / ".cache/uvd/wheels")


def package_for_cluster(folder: Path, root: Path | None = None) -> Package:
    """Builds the wheel, if its like is not in the cache, and unpacks it below `folder`.

    Args:
        root: the working tree; by default the one that this code runs from. Code that was installed from a wheel is
            handed on as it is.

    Raises:
        SubmissionError: if the wheel cannot be built.
    """
    root = root or Path(uvd.__file__).parent
    if not (root / "pyproject.toml").is_file():
        return _installed(root, folder)
    wheel = build_wheel(root)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (metadata,) = folder.glob("uvd-*.dist-info/METADATA")
    about = Parser().parsestr(metadata.read_text())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
    required = tuple(about.get_all("Requires-Dist") or ())
    return Package(folder / "uvd", str(about["Version"]), digest, _without_extras(required))


def _installed(package: Path, folder: Path) -> Package:
    copy = folder / "uvd"
    shutil.copytree(package, copy, ignore=_NOT_CODE)
    required = tuple(importlib.metadata.requires("uvd") or ())
    return Package(copy, uvd.__version__, _digest(copy, _files(copy)), _without_extras(required))


def _without_extras(required: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line for line in required if "extra ==" not in line)


def build_wheel(root: Path) -> Path:
    """The wheel of the tree at `root`, from the cache or built now; takes about 5 s.

    The tree is copied first, so that neither what earlier builds left in `build/` gets in, nor a new one is left there.

    Raises:
        SubmissionError: if setuptools cannot build it.
    """
    with tempfile.TemporaryDirectory(prefix="uvd-wheel-") as scratch:
        copy = Path(scratch) / "tree"
        _copy_tree(root, copy)
        place = cache_folder() / _digest(copy, _files(copy))
        found = sorted(place.glob("*.whl"))
        if found:
            os.utime(place)
            return found[0]
        built = _run_pip(copy, Path(scratch) / "wheel")
        place.parent.mkdir(parents=True, exist_ok=True)
        # Another process may build the same: the last to rename a whole file in wins, and they are the same bytes.
        place.mkdir(exist_ok=True)
        target = place / built.name
        partial = target.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(built, partial)
        partial.replace(target)
    _prune()
    return target


def _copy_tree(root: Path, copy: Path) -> None:
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copy.mkdir()
    for name in _ROOT_FILES:
        shutil.copyfile(root / name, copy / name)
    for package in sorted({name.split(".")[1] for name in listed if "." in name}):
        shutil.copytree(root / package, copy / package, ignore=_NOT_CODE, copy_function=shutil.copyfile)
    for path in _files(copy):
        path.chmod(0o644)  # modes are in the wheel


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(folder: Path, files: Iterator[Path]) -> str:
    digest = hashlib.sha256(f"{sys.version_info[:2]} {importlib.metadata.version('setuptools')}".encode())
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def _run_pip(tree: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--wheel-dir", str(out), str(tree)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    try:
        done = subprocess.run(
            command, cwd=tree.parent, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise SubmissionError(f"pip did not build uvd's wheel within {BUILD_TIMEOUT_S} s") from error
    wheels = sorted(out.glob("*.whl"))
    if done.returncode or not wheels:
        raise SubmissionError(
            f"pip could not build uvd's wheel (it needs setuptools and wheel here):\n{done.stderr.strip()[-2000:]}"
        )
    return wheels[0]


def _prune() -> None:
    places = sorted(cache_folder().iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for place in places[_KEPT:]:
        shutil.rmtree(place, ignore_errors=True)  # another process may be at it too

